"""A server that takes few connections at a time gets all mails on those, and no account is paused for it."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from mailroom.api.http.serialize import attempts
from mailroom.delivery import admission as admission_module
from mailroom.delivery.admission import Admission
from mailroom.model.account import AccountState
from mailroom.model.errors import TooManyConnections
from mailroom.model.retry import Schedule
from mailroom.smtp.connection import Reply
from mailroom.smtp.replies import account_error_of, says_too_many_connections
from mailroom.store.db.database import Database
from tests.services import wait_until
from tests.services.schema import ready
from tests.services.smtpd import ScriptedSMTP
from tests.unit.delivery.test_delivery import Office

POSTFIX = "421 4.7.0 mx Error: too many connections from 192.0.2.1"
EXIM = "421 Too many concurrent SMTP connections; please try again later."
EXCHANGE = (
    "421 4.3.2 The maximum number of concurrent server connections has exceeded a limit, closing"
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = ready(f"sqlite:///{tmp_path}/mailasync.sqlite3")
    yield made
    made.close()


def assert_all_are_sent(office: Office, ids: list[str]) -> None:
    rows = [office.details(id).row for id in ids]
    assert {(row["state"], attempts(row)) for row in rows} == {("sent", 1)}
    assert [office.smtpd.copies(row["message_id"]) for row in rows] == [1] * len(ids)
    [account] = office.accounts.details()
    assert (account["state"], account["failures"]) == (AccountState.OK, 0)


@pytest.mark.parametrize("mails_per_connection", [80, 2])
@pytest.mark.parametrize(
    ("phase", "reply"),
    [
        ("GREETING", POSTFIX),
        ("GREETING", EXIM),
        ("GREETING", EXCHANGE),
        ("GREETING", ""),
        ("GREETING", "554 5.7.0 Too many connections"),
        ("EHLO", POSTFIX),
        ("EHLO", ""),
        ("AUTH", "421 4.7.0 Too many concurrent connections"),
        ("AUTH", "454 4.7.0 too many concurrent logins"),
        ("MAIL", "432 4.3.2 Concurrent connections limit exceeded"),
        ("MAIL", EXCHANGE),
    ],
)
def test_mails_go_by_those_that_it_takes(
    database: Database, phase: str, reply: str, mails_per_connection: int
) -> None:
    with ScriptedSMTP(auth={"alice": "secret"}) as smtpd:
        smtpd.limit_connections(3, reply, at=phase, close=not reply.startswith("454"))
        office = Office(
            database,
            smtpd,
            connections=10,
            mails_per_connection=mails_per_connection,
            user="alice",
            password="secret",
        )
        hold = smtpd.hang("DOT")  # So that all connections are tried before the first is free.
        ids = [office.accept() for _ in range(60)]
        thread = threading.Thread(target=office.delivery.deliver, args=(ids,))
        thread.start()
        wait_until(lambda: smtpd.refused == 7, what="seven of ten are refused")
        hold.release()
        thread.join(60)
        assert_all_are_sent(office, ids)
        assert smtpd.refused == 7
        office.delivery.close()


def test_mails_one_by_one_go_by_those_that_it_takes_as_well(database: Database) -> None:
    with ScriptedSMTP() as smtpd:
        smtpd.limit_connections(3, POSTFIX)
        office = Office(database, smtpd, connections=10)
        hold = smtpd.hang("DOT")
        ids = [office.accept() for _ in range(20)]
        threads = [threading.Thread(target=office.delivery.deliver, args=([id],)) for id in ids]
        for thread in threads:
            thread.start()
        wait_until(lambda: smtpd.refused > 0 and len(hold.connections) == 3, what="three go on")
        hold.release()
        for thread in threads:
            thread.join(60)
        assert_all_are_sent(office, ids)
        office.delivery.close()


@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_that_is_refused_or_reset_says_too_many_recipients_while_others_stand(
    database: Database, reset: bool
) -> None:
    with ScriptedSMTP() as smtpd:
        office = Office(database, smtpd, connections=4)
        office.open_sessions(2)
        if reset:
            smtpd.limit_connections(0, reset=True)
        else:
            smtpd.stop_listening()
        ids = [office.accept() for _ in range(20)]
        assert office.delivery.deliver(ids)
        assert_all_are_sent(office, ids)
        office.delivery.close()


def test_a_server_that_takes_none_pauses_the_account_and_no_mail_loses_an_attempt(
    database: Database,
) -> None:
    with ScriptedSMTP() as smtpd:
        smtpd.limit_connections(0, POSTFIX)
        office = Office(database, smtpd, connections=4)
        ids = [office.accept() for _ in range(8)]
        office.delivery.deliver(ids)
        rows = [office.details(id).row for id in ids]
        assert {row["state"] for row in rows} <= {"deferred"}
        assert all(row["attempt"] == row["excused"] for row in rows)
        [account] = office.accounts.details()
        assert (account["state"], account["reason"]) == (AccountState.PAUSED, POSTFIX)
        office.delivery.close()


@pytest.mark.parametrize("phase", ["RCPT", "DATA", "DOT"])
@pytest.mark.parametrize(
    "reply",
    [
        "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded",
        "554 5.7.0 too many concurrent sessions",
    ],
)
def test_a_mail_that_hears_of_it_late_loses_no_attempt(
    database: Database, phase: Literal["RCPT", "DATA", "DOT"], reply: str
) -> None:
    with ScriptedSMTP() as smtpd:
        smtpd.reply(phase, reply)
        office = Office(database, smtpd)
        found = office.send()
        assert (found.row["state"], found.row["reason"], attempts(found.row)) == (
            "deferred",
            reply,
            1,
        )
        assert found.row["excused"] == 1
        [account] = office.accounts.details()
        assert (account["state"], account["reason"]) == (AccountState.PAUSED, reply)
        assert office.again(found.row["id"]).row["state"] == "sent"
        office.delivery.close()


def test_one_more_is_tried_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    admission = Admission(10)
    granted: list[int] = []
    admission.request("default", 100, granted.append, granted.append)
    for count in range(1, 8):
        admission.release_connection(
            refusal=TooManyConnections(POSTFIX, code=421, open_connections=min(count, 3))
        )
    assert sum(granted) == 10
    admission.release_connection()
    assert sum(granted) == 11
    monkeypatch.setattr(admission_module, "ADD_CONNECTION_AFTER_SECONDS", -1.0)
    admission.release_connection()
    assert sum(granted) == 13  # The place that became free, and one more.


def test_one_is_used_at_least() -> None:
    admission = Admission(1)
    granted: list[int] = []
    admission.request("default", 2, granted.append, granted.append)
    admission.release_connection(refusal=TooManyConnections(POSTFIX, code=421, open_connections=0))
    assert sum(granted) == 2


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply(421, "4.7.0 Too many connections from your IP"), True),
        (Reply(421, "4.3.2 Connection count limit exceeded"), True),
        (Reply(432, "4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded"), True),
        (Reply(554, "5.7.0 too many sessions"), True),
        (Reply(421, "4.7.0 Too many simultaneous sessions"), True),
        (Reply(454, "4.7.0 Too many login attempts, please try again later"), False),
        (Reply(452, "4.5.3 Too many recipients"), False),
        (Reply(421, "4.4.2 Connection timed out"), False),
        (Reply(421, "4.7.0 Error: too many errors"), False),
        (Reply(250, "no concurrent sessions"), False),
    ],
)
def test_words_about_their_number_are_told_from_others(reply: Reply, told: bool) -> None:
    assert says_too_many_connections(reply) == told
    account_error = account_error_of(reply, Schedule((7,)), of_message=False)
    assert (account_error is not None and account_error.waits[0] == 5.0) == told
