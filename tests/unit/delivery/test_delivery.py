"""From a claimed row to an outcome: on the real outbox, with a real SMTP server whose replies are scripted."""

import email
import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from sqlalchemy import Connection, text

from mailroom.api.http.serialize import attempts
from mailroom.delivery.admission import Admission
from mailroom.delivery.attempt import AttemptRunner, Sender
from mailroom.delivery.delivery import Delivery
from mailroom.model.account import DEFAULT_ACCOUNT, NextHop
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import StoreUnavailable
from mailroom.model.ids import new_id
from mailroom.model.message import Address, Attachment, Message
from mailroom.model.retry import Schedule
from mailroom.process import supervisor
from mailroom.smtp.pool import Sessions
from mailroom.store.accounts import Accounts
from mailroom.store.db import database as database_module
from mailroom.store.db.database import Database
from mailroom.store.jobs.jobs import NewJob
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.messages import claims as claims_module
from mailroom.store.messages import outcomes
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import MessageDetails, NewMessage, Outbox
from mailroom.store.workers import Heartbeat
from tests.services import LEASE_SECONDS, wait_until
from tests.services.logs import broken_log
from tests.services.schema import ready
from tests.services.smtpd import ScriptedSMTP

ALICE, BOB, CAROL = (
    Address("alice@example.org"),
    Address("bob@example.org"),
    Address("carol@example.org"),
)
SCHEDULE = "10s, 100s, 1000s"


class Office:
    """A worker without a broker: an outbox, and what delivers from it."""

    def __init__(
        self,
        database: Database,
        smtpd: ScriptedSMTP,
        *,
        on_uncertain: str = "resend",
        connections: int = 4,
        **hop: Any,
    ) -> None:
        self.database, self.smtpd = database, smtpd
        self.outbox = Outbox(database)
        self.heartbeat = Heartbeat(database, new_id(), "worker@here", ["mail"])
        self.heartbeat.beat()
        self.sweeps = Sweeps(database, LEASE_SECONDS, on_uncertain)
        self.claims = Claims(database, self.heartbeat.id, LEASE_SECONDS)
        wanted = {"security": "none", "timeout_seconds": 60, "mails_per_connection": 80, **hop}
        self.sessions = Sessions(NextHop(host=smtpd.host, port=smtpd.port, **wanted))
        self.accounts = Accounts(database, self.claims.limits)
        self.accounts.register()
        runner = AttemptRunner(
            {DEFAULT_ACCOUNT: Sender(ALICE, self.sessions)}, Schedule.parse(SCHEDULE), on_uncertain
        )
        self.delivery = Delivery(self.claims, runner, Admission(connections))

    def accept(self, *to: Address, subject: str = "Hello") -> str:
        id = new_id()
        message = Message(to=to or (BOB,), subject=subject, text="the body")
        self.outbox.accept(NewMessage(id=id, message=message, message_id=f"{id}@example.org"))
        return id

    def open_sessions(self, count: int) -> None:
        """Have so many sessions open that nobody uses."""
        hold = self.smtpd.hold("MAIL", times=count)
        thread = threading.Thread(
            target=self.delivery.deliver, args=([self.accept() for _ in range(count)],)
        )
        thread.start()
        wait_until(lambda: self.smtpd.open_connections == count, what="all sessions are open")
        hold.release()
        thread.join(60)

    def send(self, *to: Address) -> MessageDetails:
        """Accept a mail, try it once, and tell where it stands."""
        id = self.accept(*to)
        assert self.delivery.deliver([id])
        return self.details(id)

    def again(self, id: str) -> MessageDetails:
        """Make a deferred mail due, and try it once more."""
        self.sql("UPDATE messages SET next_attempt_at = 1 WHERE id = :id", id=id)
        self.sql("UPDATE accounts SET until = 1 WHERE until IS NOT NULL")
        assert [
            nudge.id
            for nudge in self.sweeps.due() + self.sweeps.unparked(1000, self.accounts.capacity())
        ] == [id]
        assert self.delivery.deliver([id])
        return self.details(id)

    def details(self, id: str) -> MessageDetails:
        found = self.outbox.details(id)
        assert found is not None
        return found

    def has_sent(self, ids: Sequence[str]) -> bool:
        return {self.details(id).row["state"] for id in ids} == {"sent"}

    def sql(self, statement: str, **values: Any) -> None:
        def run(connection: Connection) -> None:
            connection.execute(text(statement), values)

        self.database.transaction(run)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = ready(f"sqlite:///{tmp_path}/mailasync.sqlite3")
    yield made
    made.close()


@pytest.fixture
def smtpd() -> Iterator[ScriptedSMTP]:
    with ScriptedSMTP() as server:
        yield server
        assert server.violations == []


@pytest.fixture
def office(database: Database, smtpd: ScriptedSMTP) -> Iterator[Office]:
    made = Office(database, smtpd)
    yield made
    made.delivery.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is locked is given up soon."""
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_SECONDS", 0.05)


def unavailable(*args: object) -> NoReturn:
    raise StoreUnavailable("database: away")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Another process has the database to itself."""
    other = sqlite3.connect(f"{directory}/mailasync.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def told(details: MessageDetails) -> list[tuple[str, int | None]]:
    return [(event.event, event.attempt) for event in details.events]


def people(details: MessageDetails) -> list[tuple[str, str]]:
    return [(person["state"], person["reply"]) for person in details.recipients]


def waits_ms(details: MessageDetails) -> int:
    return int(details.row["next_attempt_at"] - details.events[-1].at)


class TestOutcomes:
    def test_a_mail_that_is_taken_is_sent(self, office: Office, smtpd: ScriptedSMTP) -> None:
        found = office.send()
        assert (found.row["state"], found.row["attempt"], found.row["owner"]) == ("sent", 1, None)
        assert people(found) == [("sent", "250 2.0.0 ok")]
        assert told(found) == [("sent", 1)]
        assert smtpd.copies(found.row["message_id"]) == 1

    def test_4xx_defers_it_by_the_schedule(self, office: Office, smtpd: ScriptedSMTP) -> None:
        smtpd.reply("DOT", "451 4.3.0 later")
        found = office.send()
        assert (found.row["state"], found.row["reason"]) == ("deferred", "451 4.3.0 later")
        assert people(found) == [("deferred", "451 4.3.0 later")]
        assert 7000 < waits_ms(found) <= 12_000
        smtpd.reply("MAIL", "452 4.3.1 full")
        assert 79_000 < waits_ms(office.again(found.row["id"])) <= 120_000
        assert office.again(found.row["id"]).row["state"] == "sent"
        assert told(office.details(found.row["id"])) == [
            ("deferred", 1),
            ("deferred", 2),
            ("sent", 3),
        ]

    @pytest.mark.parametrize("phase", ["MAIL", "RCPT", "DATA", "DOT"])
    def test_5xx_fails_it(self, office: Office, smtpd: ScriptedSMTP, phase: str) -> None:
        smtpd.reply(phase, "550 5.7.1 no")
        found = office.send()
        assert (found.row["state"], found.row["reason"], found.row["next_attempt_at"]) == (
            "failed",
            "550 5.7.1 no",
            None,
        )
        assert people(found) == [("failed", "550 5.7.1 no")]
        assert office.send().row["state"] == "sent"

    def test_when_the_schedule_is_used_up_it_fails_and_says_why(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        smtpd.reply("DOT", "451 4.3.0 later", times=None)
        id = office.send().row["id"]
        for _ in range(3):
            found = office.again(id)
        assert (found.row["state"], found.row["reason"]) == (
            "failed",
            "gave up after attempt 4: 451 4.3.0 later",
        )
        assert people(found) == [("failed", "451 4.3.0 later")]
        assert told(found) == [("deferred", 1), ("deferred", 2), ("deferred", 3), ("failed", 4)]

    @pytest.mark.parametrize("phase", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
    def test_a_link_that_is_lost_before_the_payload_defers_it(
        self, office: Office, smtpd: ScriptedSMTP, phase: str
    ) -> None:
        smtpd.drop(phase)
        found = office.send()
        assert (found.row["state"], found.row["uncertain_attempts"], told(found)) == (
            "deferred",
            0,
            [("deferred", 1)],
        )
        assert office.again(found.row["id"]).row["state"] == "sent"
        assert office.send().row["state"] == "sent"

    def test_a_next_hop_that_is_down_defers_it(self, office: Office, smtpd: ScriptedSMTP) -> None:
        smtpd.stop()
        found = office.send()
        assert found.row["state"] == "deferred"
        assert "could not be reached" in found.row["reason"]

    def test_a_mail_that_cannot_be_composed_fails_without_showing_itself(
        self, office: Office, smtpd: ScriptedSMTP, caplog: pytest.LogCaptureFixture
    ) -> None:
        id = office.accept()
        office.sql("UPDATE messages SET message_id = 'two words' WHERE id = :id", id=id)
        office.delivery.deliver([id])
        assert office.details(id).row["reason"] == "could not be composed: ValueError"
        assert "words" not in caplog.text

    def test_a_fault_of_our_own_defers_it_and_leaves_no_row_behind(
        self, office: Office, caplog: pytest.LogCaptureFixture
    ) -> None:
        id = office.accept()
        runner = office.delivery.recorder.runner
        office.delivery.recorder.runner = replace(
            runner, senders={DEFAULT_ACCOUNT: Sender(Address("älice@example.org"), office.sessions)}
        )
        assert office.delivery.deliver([id])
        found = office.details(id)
        office.delivery.recorder.runner = runner
        assert (found.row["state"], found.row["owner"], found.row["reason"]) == (
            "deferred",
            None,
            "internal error: UnicodeEncodeError",
        )
        assert office.send().row["state"] == "sent"

    def test_a_mail_with_nobody_left_to_get_it_ends(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        id = office.accept()
        office.sql("UPDATE recipients SET state = 'sent' WHERE id = :id", id=id)
        office.delivery.deliver([id])
        assert office.details(id).row["state"] == "sent"
        assert smtpd.commands == []


class TestRecipients:
    def test_one_that_was_accepted_gets_no_second_copy_because_another_was_deferred(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        smtpd.reply("RCPT", "450 4.2.1 later", match="carol@")
        found = office.send(BOB, CAROL)
        assert (found.row["state"], people(found)) == (
            "deferred",
            [("sent", "250 2.0.0 ok"), ("deferred", "450 4.2.1 later")],
        )
        found = office.again(found.row["id"])
        assert (found.row["state"], people(found)) == (
            "sent",
            [("sent", "250 2.0.0 ok"), ("sent", "250 2.0.0 ok")],
        )
        assert [delivery.rcpt_tos for delivery in smtpd.messages] == [
            (BOB.address,),
            (CAROL.address,),
        ]
        assert smtpd.messages[0].data == smtpd.messages[1].data

    def test_one_that_is_refused_fails_and_the_others_are_sent(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        smtpd.reply("RCPT", "550 5.1.1 no such user", match="bob@")
        found = office.send(BOB, CAROL)
        assert (found.row["state"], found.row["reason"]) == ("sent", "550 5.1.1 no such user")
        assert people(found) == [("failed", "550 5.1.1 no such user"), ("sent", "250 2.0.0 ok")]

    def test_when_the_last_one_is_given_up_the_mail_was_sent_to_the_others(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        smtpd.reply("RCPT", "450 4.2.1 later", match="carol@", times=None)
        id = office.send(BOB, CAROL).row["id"]
        for _ in range(3):
            found = office.again(id)
        assert found.row["state"] == "sent"
        assert people(found) == [("sent", "250 2.0.0 ok"), ("failed", "450 4.2.1 later")]
        assert len(smtpd.messages) == 1

    def test_all_that_are_refused_fail_the_mail(self, office: Office, smtpd: ScriptedSMTP) -> None:
        smtpd.reply("RCPT", "550 5.1.1 no such user", times=None)
        found = office.send(BOB, CAROL)
        assert found.row["state"] == "failed"
        assert people(found) == [("failed", "550 5.1.1 no such user")] * 2

    @pytest.mark.parametrize(
        "reply",
        [
            "452 4.5.3 too many recipients",
            "552 5.5.3 Error",
            "552 Too many recipients",
            "550 5.5.3 Too many recipients",
        ],
    )
    def test_those_that_were_too_many_for_one_transaction_are_tried_at_once(
        self, office: Office, smtpd: ScriptedSMTP, reply: str
    ) -> None:
        smtpd.reply("RCPT", reply, match="carol@")
        found = office.send(BOB, CAROL)
        assert (found.row["state"], waits_ms(found) < 1000) == ("deferred", True)
        found = office.again(found.row["id"])
        assert (found.row["state"], [state for state, _ in people(found)]) == (
            "sent",
            ["sent", "sent"],
        )
        assert smtpd.copies(found.row["message_id"]) == 2


class TestUncertain:
    def test_no_answer_after_the_dot_is_told_and_the_mail_is_sent_again_under_the_same_id(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        smtpd.drop("DOT")
        found = office.send()
        assert (found.row["state"], found.row["uncertain_attempts"], told(found)) == (
            "deferred",
            1,
            [("uncertain", 1)],
        )
        assert "no reply after the final dot" in found.row["reason"]
        found = office.again(found.row["id"])
        assert (found.row["state"], found.row["uncertain_attempts"]) == ("sent", 1)
        assert smtpd.copies(found.row["message_id"]) == 2
        assert smtpd.payloads[0].data == smtpd.payloads[1].data

    def test_or_is_held_where_that_is_asked_for(
        self, database: Database, smtpd: ScriptedSMTP
    ) -> None:
        office = Office(database, smtpd, on_uncertain="hold")
        smtpd.drop("DOT")
        found = office.send()
        assert (
            found.row["state"],
            found.row["uncertain_attempts"],
            found.row["next_attempt_at"],
        ) == (
            "uncertain",
            1,
            None,
        )
        assert office.sweeps.due() == []
        assert smtpd.copies(found.row["message_id"]) == 1
        office.delivery.close()

    def test_without_end_is_given_up_too(self, office: Office, smtpd: ScriptedSMTP) -> None:
        smtpd.drop("DOT", times=None)
        id = office.send().row["id"]
        for _ in range(3):
            found = office.again(id)
        assert (found.row["state"], found.row["uncertain_attempts"]) == ("uncertain", 4)
        assert people(found)[0][0] == "uncertain"
        assert found.row["reason"].startswith(
            "gave up after attempt 4: no reply after the final dot"
        )


class TestAccount:
    @pytest.mark.parametrize(
        "reply",
        [
            "535 5.7.8 no",
            "534 5.7.9 app password",
            "530 5.7.0 log in",
            "454 4.7.0 too many logins",
            "421 4.7.0 no",
        ],
    )
    def test_trouble_at_login_never_fails_a_mail(self, database: Database, reply: str) -> None:
        with ScriptedSMTP(auth={"alice": "secret"}) as smtpd:
            smtpd.reply("AUTH", reply, times=None)
            office = Office(database, smtpd, user="alice", password="secret")
            id = office.send().row["id"]
            for _ in range(5):
                found = office.again(id)
            assert (found.row["state"], found.row["reason"]) == ("deferred", reply)
            assert 300_000 <= waits_ms(found) <= 9_600_000
            assert (found.row["attempt"], found.row["excused"]) == (6, 6)
            office.delivery.close()

    @pytest.mark.parametrize("phase", ["MAIL", "RCPT", "DATA", "DOT"])
    @pytest.mark.parametrize(
        "reply",
        [
            "550 5.4.5 Daily user sending limit exceeded",
            "550-5.4.5 Daily user\n550 5.4.5 sending limit",
            "550 5.7.1 Daily SMTP relay limit exceeded for user",
            "530 5.7.0 Authentication required",
        ],
    )
    def test_a_limit_that_looks_permanent_is_waited_for(
        self, office: Office, smtpd: ScriptedSMTP, phase: str, reply: str
    ) -> None:
        smtpd.reply(phase, reply)
        found = office.send()
        assert (found.row["state"], people(found)[0][0]) == ("deferred", "deferred")
        assert waits_ms(found) > 700_000

    @pytest.mark.parametrize(
        "reply", ["550 5.1.1 no such user at 10.5.4.50", "550 15.4.5 no", "554 5.4.14 loop"]
    )
    def test_a_refusal_that_only_holds_those_digits_is_final(
        self, office: Office, smtpd: ScriptedSMTP, reply: str
    ) -> None:
        smtpd.reply("RCPT", reply)
        assert office.send().row["state"] == "failed"

    def test_a_server_that_is_busy_for_a_moment_is_asked_again_soon(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        smtpd.reply("MAIL", "421 4.3.2 restarting")
        assert 7000 < waits_ms(office.send()) <= 12_000

    def test_a_temporary_refusal_of_a_recipient_ends_with_the_schedule(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        smtpd.reply("RCPT", "454 4.7.1 relay access denied", times=None)
        id = office.send().row["id"]
        for _ in range(3):
            found = office.again(id)
        assert found.row["state"] == "failed"

    def test_an_access_token_that_cannot_be_had_never_fails_a_mail(
        self, database: Database, smtpd: ScriptedSMTP
    ) -> None:
        office = Office(database, smtpd, user="alice", oauth2_file="/nowhere", security="ssl")
        id = office.send().row["id"]
        for _ in range(5):
            found = office.again(id)
        assert found.row["state"] == "deferred"
        assert "no access token" in found.row["reason"]
        office.delivery.close()


class TestFence:
    def test_a_row_that_was_taken_from_us_is_not_sent(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        hold = smtpd.hold("DATA")
        id = office.accept()
        thread = threading.Thread(target=office.delivery.deliver, args=([id],))
        thread.start()
        wait_until(hold.reached.is_set)
        office.sql("UPDATE messages SET owner = 'another', attempt = 2 WHERE id = :id", id=id)
        hold.release()
        thread.join()
        assert smtpd.payloads == []
        assert (office.details(id).row["state"], office.details(id).row["owner"]) == (
            "sending",
            "another",
        )

    @pytest.mark.parametrize(
        "loss",
        [
            "DELETE FROM workers",
            "UPDATE workers SET seen_at = seen_at - 601000",
            "UPDATE workers SET stopped_at = 1",
        ],
    )
    def test_without_a_lease_nothing_is_sent_and_the_row_goes_back(
        self, office: Office, smtpd: ScriptedSMTP, loss: str
    ) -> None:
        id = office.accept()
        office.sql(loss)
        assert not office.delivery.deliver([id])
        found = office.details(id)
        assert (found.row["state"], attempts(found.row), found.row["owner"]) == ("queued", 0, None)
        assert smtpd.payloads == []
        office.heartbeat.beat()
        office.sql("UPDATE workers SET stopped_at = NULL")
        assert office.delivery.deliver([id])
        assert office.details(id).row["state"] == "sent"

    def test_what_a_sweeper_gave_back_meanwhile_is_not_released_again(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        hold = smtpd.hold("DATA")
        id = office.accept()
        thread = threading.Thread(target=office.delivery.deliver, args=([id],))
        thread.start()
        wait_until(hold.reached.is_set)
        office.sql("UPDATE workers SET seen_at = seen_at - 601000")
        assert office.sweeps.orphans() == 1
        hold.release()
        thread.join()
        found = office.details(id)
        assert (found.row["state"], found.row["attempt"], found.row["crashes"]) == ("queued", 1, 1)
        assert smtpd.payloads == []

    def test_a_reply_that_comes_after_the_lease_was_lost_still_counts(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        hold = smtpd.hold("DOT")
        id = office.accept()
        thread = threading.Thread(target=office.delivery.deliver, args=([id],))
        thread.start()
        wait_until(hold.reached.is_set)
        office.sql("UPDATE workers SET seen_at = seen_at - 601000")
        assert office.sweeps.orphans() == 1
        hold.release()
        thread.join()
        assert office.details(id).row["state"] == "sent"
        assert not office.claims.claim([id])
        assert smtpd.copies(id + "@example.org") == 1

    def test_a_nudge_that_comes_twice_sends_once(self, office: Office, smtpd: ScriptedSMTP) -> None:
        id = office.accept()
        assert office.delivery.deliver([id, id]) and office.delivery.deliver([id])
        assert len(smtpd.messages) == 1

    def test_two_workers_that_get_the_same_nudges_send_each_mail_once(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        other = Office(office.database, smtpd)
        ids = [office.accept() for _ in range(30)]
        threads = [
            threading.Thread(target=worker.delivery.deliver, args=(ids,))
            for worker in (office, other) * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        other.delivery.close()
        assert sorted(delivery.message_id for delivery in smtpd.messages) == sorted(
            f"<{id}@example.org>" for id in ids
        )


class TestStop:
    def test_before_the_fence_gives_the_mail_back(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        hold = smtpd.hold("DATA")
        id = office.accept()
        settled: list[bool] = []
        thread = threading.Thread(target=lambda: settled.append(office.delivery.deliver([id])))
        thread.start()
        wait_until(hold.reached.is_set)
        office.delivery.stop()
        hold.release()
        thread.join()
        found = office.details(id)
        assert (settled, found.row["state"], attempts(found.row), told(found)) == (
            [False],
            "queued",
            0,
            [],
        )
        assert smtpd.payloads == []

    def test_after_the_fence_lets_the_mail_be_finished(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        hold = smtpd.hold("DOT")
        id = office.accept()
        settled: list[bool] = []
        thread = threading.Thread(target=lambda: settled.append(office.delivery.deliver([id])))
        thread.start()
        wait_until(hold.reached.is_set)
        office.delivery.stop()
        hold.release()
        thread.join()
        assert (settled, office.details(id).row["state"]) == ([True], "sent")

    def test_gives_back_what_has_not_begun(self, office: Office, smtpd: ScriptedSMTP) -> None:
        hold = smtpd.hang("DOT")
        ids = [office.accept() for _ in range(12)]
        settled: list[bool] = []
        thread = threading.Thread(target=lambda: settled.append(office.delivery.deliver(ids)))
        thread.start()
        wait_until(lambda: len(smtpd.payloads) == 4)
        office.delivery.stop()
        hold.release()
        thread.join()
        states = [office.details(id).row["state"] for id in ids]
        assert (settled, states.count("sent"), states.count("queued")) == ([False], 4, 8)

    def test_begins_nothing_any_more(self, office: Office, smtpd: ScriptedSMTP) -> None:
        office.delivery.stop()
        id = office.accept()
        assert not office.delivery.deliver([id])
        assert (office.details(id).row["state"], smtpd.connections) == ("queued", 0)


class TestDatabaseAway:
    @pytest.mark.usefixtures("impatient")
    def test_a_reply_that_was_read_is_recorded_when_it_is_back(
        self, tmp_path: Path, smtpd: ScriptedSMTP, caplog: pytest.LogCaptureFixture
    ) -> None:
        office = self.office(tmp_path, smtpd)
        hold = smtpd.hold("DOT")
        id = office.accept()
        thread = threading.Thread(target=office.delivery.deliver, args=([id],))
        thread.start()
        wait_until(hold.reached.is_set)
        with locked(tmp_path):
            hold.release()
            wait_until(lambda: caplog.text.count("waits for the database") >= 3)
            assert thread.is_alive()
        thread.join()
        assert (office.details(id).row["state"], smtpd.copies(f"{id}@example.org")) == ("sent", 1)
        self.close(office)

    @pytest.mark.usefixtures("impatient")
    def test_at_the_fence_nothing_is_sent_and_the_mail_goes_back(
        self, tmp_path: Path, smtpd: ScriptedSMTP
    ) -> None:
        office = self.office(tmp_path, smtpd)
        hold = smtpd.hold("DATA")
        id = office.accept()
        settled: list[bool] = []
        thread = threading.Thread(target=lambda: settled.append(office.delivery.deliver([id])))
        thread.start()
        wait_until(hold.reached.is_set)
        with locked(tmp_path):
            hold.release()
            wait_until(lambda: smtpd.open_connections == 0)
        thread.join()
        assert (settled, office.details(id).row["state"], smtpd.payloads) == ([False], "queued", [])
        self.close(office)

    @pytest.mark.usefixtures("impatient")
    def test_at_the_claim_nothing_has_happened(self, tmp_path: Path, smtpd: ScriptedSMTP) -> None:
        office = self.office(tmp_path, smtpd)
        id = office.accept()
        with locked(tmp_path), pytest.raises(StoreUnavailable):
            office.delivery.deliver([id])
        assert office.delivery.deliver([id])
        assert office.details(id).row["state"] == "sent"
        self.close(office)

    @staticmethod
    def office(directory: Path, smtpd: ScriptedSMTP) -> Office:
        return Office(ready(f"sqlite:///{directory}/mailasync.sqlite3"), smtpd)

    @staticmethod
    def close(office: Office) -> None:
        office.delivery.close()
        office.database.close()


class TestMany:
    def test_at_once_never_open_more_sessions_than_allowed(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        smtpd.delay_seconds = 0.002
        chunks = [
            [office.accept() for _ in range(20)],
            [office.accept() for _ in range(20)],
            *([office.accept()] for _ in range(20)),
        ]
        threads = [threading.Thread(target=office.delivery.deliver, args=(ids,)) for ids in chunks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(smtpd.messages) == 60
        assert smtpd.max_open_connections <= 4
        assert smtpd.connections <= 4

    def test_of_one_worker_a_bad_one_keeps_nobody_from_being_sent(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        smtpd.reply("RCPT", "550 5.1.1 no", match="carol@", times=None)
        good, bad = (
            [office.accept(BOB) for _ in range(10)],
            [office.accept(CAROL) for _ in range(10)],
        )
        assert office.delivery.deliver([id for pair in zip(good, bad, strict=True) for id in pair])
        assert {office.details(id).row["state"] for id in good} == {"sent"}
        assert {office.details(id).row["state"] for id in bad} == {"failed"}

    def test_of_one_nudge_go_side_by_side_in_one_thread(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        office.open_sessions(4)
        hold = smtpd.hold("RCPT", times=4)
        before = threading.active_count()
        ids = [office.accept() for _ in range(8)]
        thread = threading.Thread(target=office.delivery.deliver, args=(ids,))
        thread.start()
        wait_until(lambda: len(set(hold.connections)) == 4, what="four are under way")
        assert threading.active_count() == before + 1
        hold.release()
        thread.join(60)
        assert office.has_sent(ids)
        assert smtpd.connections == 4

    def test_one_that_hangs_holds_up_none_of_its_nudge(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        office.open_sessions(4)
        for phase in ("RCPT", "DOT"):
            hold = smtpd.hang(phase, match="carol@" if phase == "RCPT" else "To: carol@")
            stuck, others = office.accept(CAROL), [office.accept() for _ in range(9)]
            thread = threading.Thread(target=office.delivery.deliver, args=([stuck, *others],))
            thread.start()
            wait_until(partial(office.has_sent, others), what="the others are sent")
            assert office.details(stuck).row["state"] in ("sending", "in_data")
            hold.release()
            thread.join(60)
            assert office.details(stuck).row["state"] == "sent"
        assert all(smtpd.copies(message.message_id) == 1 for message in smtpd.messages)

    def test_one_that_hangs_holds_up_no_rest_of_its_nudge_whose_turns_went_to_others(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        office.open_sessions(4)
        hold = smtpd.hang("DOT", match="To: carol@")
        stuck, rest, others = (
            office.accept(CAROL),
            [office.accept() for _ in range(11)],
            [office.accept() for _ in range(12)],
        )
        smtpd.delay_seconds = 0.02
        threads = [
            threading.Thread(target=office.delivery.deliver, args=(ids,))
            for ids in ([stuck, *rest], others[:6], others[6:])
        ]
        for thread in threads:
            thread.start()
        wait_until(partial(office.has_sent, rest + others), what="all others are sent")
        hold.release()
        for thread in threads:
            thread.join(60)
        assert office.has_sent([stuck])

    def test_one_without_a_reply_in_time_is_told_and_the_others_are_sent(
        self, database: Database, smtpd: ScriptedSMTP
    ) -> None:
        office = Office(database, smtpd, timeout_seconds=0.3)
        office.open_sessions(4)
        hold = smtpd.hang("RCPT", match="carol@")
        stuck, others = office.accept(CAROL), [office.accept() for _ in range(3)]
        assert office.delivery.deliver([stuck, *others])
        assert office.has_sent(others)
        assert (office.details(stuck).row["state"], office.details(stuck).row["reason"]) == (
            "deferred",
            "connection lost: timed out",
        )
        hold.release()
        office.delivery.close()

    def test_sessions_that_were_closed_meanwhile_are_made_anew_at_once(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        office.open_sessions(4)
        smtpd.drop("MAIL", times=4)
        ids = [office.accept() for _ in range(10)]
        assert office.delivery.deliver(ids)
        assert office.has_sent(ids)
        assert [smtpd.copies(f"{id}@example.org") for id in ids] == [1] * 10

    def test_worn_sessions_are_closed_and_mails_go_on_by_new_ones(
        self, database: Database, smtpd: ScriptedSMTP
    ) -> None:
        office = Office(database, smtpd, mails_per_connection=3)
        ids = [office.accept() for _ in range(40)]
        assert office.delivery.deliver(ids)
        assert office.has_sent(ids)
        assert smtpd.connections >= 40 / 3
        office.delivery.close()
        assert smtpd.max_open_connections <= 4

    def test_whose_fence_is_not_passed_go_back_and_the_others_are_sent(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        office.open_sessions(4)
        hold = smtpd.hold("DATA", match="", times=4)
        ids = [office.accept() for _ in range(4)]
        settled: list[bool] = []
        thread = threading.Thread(target=lambda: settled.append(office.delivery.deliver(ids)))
        thread.start()
        wait_until(hold.reached.is_set)
        office.sql("UPDATE messages SET owner = 'other', attempt = 2 WHERE id = :id", id=ids[1])
        hold.release()
        thread.join(60)
        assert [office.details(id).row["state"] for id in ids] == [
            "sent",
            "sending",
            "sent",
            "sent",
        ]
        assert smtpd.copies(f"{ids[1]}@example.org") == 0

    def test_one_that_cannot_be_recorded_harms_no_other_and_is_told(
        self, office: Office, smtpd: ScriptedSMTP, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        office.open_sessions(4)
        ids = [office.accept(), office.accept(CAROL), office.accept()]
        real = outcomes._write_outcomes

        def broken(
            connection: Connection, ended: list[tuple[Claim, Outcome]], until: dict[str, int]
        ) -> list[Any]:
            if any(claim.id == ids[1] for claim, _ in ended):
                raise ValueError("no such outcome")
            return real(connection, ended, until)

        monkeypatch.setattr(outcomes, "_write_outcomes", broken)
        with pytest.raises(ValueError, match="no such outcome"):
            office.delivery.deliver(ids)
        assert [office.details(id).row["state"] for id in ids] == ["sent", "in_data", "sent"]
        assert office.claims.not_in_hand() == [(ids[1], 1)]

    def test_attachments_are_read_when_a_mail_goes_and_no_sooner(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        office.open_sessions(4)
        file = Attachment("data.bin", "application/octet-stream", bytes(range(256)) * 4)
        ids = [new_id() for _ in range(3)]
        for id, files in zip(ids, ((file,), (), (file, file)), strict=True):
            message = Message(to=(BOB,), subject="Hello", text="the body", attachments=files)
            office.outbox.accept(NewMessage(id=id, message=message, message_id=f"{id}@example.org"))
        claims = office.claims.claim(ids)
        assert [(claim.message.attachments, claim.has_attachments) for claim in claims] == [
            ((), True),
            ((), False),
            ((), True),
        ]
        for claim in claims:
            office.claims.release(claim)
        assert office.delivery.deliver(ids)
        assert office.has_sent(ids)
        found = [
            email.message_from_bytes(
                next(mail.data for mail in smtpd.messages if id in mail.message_id)
            )
            for id in ids
        ]
        assert [
            [part.get_payload(decode=True) for part in mail.walk() if part.get_filename()]
            for mail in found
        ] == [[file.content], [], [file.content] * 2]

    def test_one_whose_attachments_cannot_be_read_goes_back(
        self, office: Office, smtpd: ScriptedSMTP, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        id = new_id()
        message = Message(
            to=(BOB,), text="the body", attachments=(Attachment("a.txt", "text/plain", b"a"),)
        )
        office.outbox.accept(NewMessage(id=id, message=message, message_id=f"{id}@example.org"))
        others = [office.accept() for _ in range(3)]
        with monkeypatch.context() as patch:
            patch.setattr(claims_module, "load_attachments", unavailable)
            assert not office.delivery.deliver([id, *others])
        assert (office.details(id).row["state"], office.has_sent(others)) == ("queued", True)
        assert office.delivery.deliver([id])
        assert office.has_sent([id])

    def test_after_a_fault_of_ours_those_in_hand_are_told_and_others_go_on(
        self, office: Office, smtpd: ScriptedSMTP, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        office.open_sessions(4)
        with monkeypatch.context() as patch:
            patch.setattr(Claims, "fence_and_finish", None)
            with pytest.raises(TypeError):
                office.delivery.deliver([office.accept() for _ in range(10)])
        ids = [office.accept() for _ in range(10)]
        assert office.delivery.deliver(ids)
        assert office.has_sent(ids)
        alone = office.accept()
        office.sql("UPDATE messages SET crashes = 1 WHERE id = :id", id=alone)
        assert office.delivery.deliver([alone])
        assert office.has_sent([alone])
        assert len(smtpd.payloads) == len({payload.message_id for payload in smtpd.payloads})

    def test_after_their_thread_has_ended_those_in_hand_are_told_and_others_go_on(
        self, office: Office, smtpd: ScriptedSMTP, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        office.open_sessions(4)
        with monkeypatch.context() as patch:
            patch.setattr(Claims, "fence_and_finish", None)
            with (
                broken_log(),
                pytest.raises(RuntimeError, match="the thread that delivers has ended"),
            ):
                office.delivery.deliver([office.accept() for _ in range(10)])
        assert [words for words in supervisor.troubles() if words.startswith("deliveries: ")]
        ids = [office.accept() for _ in range(10)]
        assert office.delivery.deliver(ids)
        assert office.has_sent(ids)

    @pytest.mark.usefixtures("impatient")
    def test_at_the_fence_without_a_database_they_all_go_back(
        self, office: Office, smtpd: ScriptedSMTP, tmp_path: Path
    ) -> None:
        office.open_sessions(4)
        hold = smtpd.hang("DATA")
        ids = [office.accept() for _ in range(4)]
        settled: list[bool] = []
        thread = threading.Thread(target=lambda: settled.append(office.delivery.deliver(ids)))
        thread.start()
        wait_until(hold.reached.is_set)
        with locked(tmp_path):
            hold.release()
            wait_until(lambda: smtpd.open_connections == 0)
        thread.join(60)
        assert (settled, smtpd.payloads[4:]) == ([False], [])
        assert {office.details(id).row["state"] for id in ids} == {"queued"}
        assert office.claims.not_in_hand() == []

    @pytest.mark.usefixtures("impatient")
    def test_one_whose_outcome_waits_for_the_database_holds_up_no_other(
        self, office: Office, smtpd: ScriptedSMTP, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        office.open_sessions(4)
        dot, envelopes = smtpd.hang("DOT", match="To: carol@"), smtpd.hang("RCPT", match="bob@")
        carols, others = office.accept(CAROL), [office.accept() for _ in range(3)]
        thread = threading.Thread(target=office.delivery.deliver, args=([carols, *others],))
        thread.start()
        wait_until(dot.reached.is_set)
        wait_until(lambda: len(envelopes.connections) == 3)
        with locked(tmp_path):
            dot.release()
            wait_until(lambda: "its outcome waits for the database" in caplog.text)
            envelopes.release()
            wait_until(
                lambda: caplog.text.count("not sent: database") == 3,
                what="the others are told at their fences",
            )
        thread.join(60)
        assert office.details(carols).row["state"] == "sent"
        assert {office.details(id).row["state"] for id in others} == {"queued"}
        assert office.claims.not_in_hand() == []

    def test_when_it_stops_give_back_what_has_not_passed_the_fence(
        self, office: Office, smtpd: ScriptedSMTP
    ) -> None:
        office.open_sessions(4)
        hold = smtpd.hang("DATA")
        ids = [office.accept() for _ in range(12)]
        settled: list[bool] = []
        thread = threading.Thread(target=lambda: settled.append(office.delivery.deliver(ids)))
        thread.start()
        wait_until(hold.reached.is_set)
        office.delivery.stop()
        hold.release()
        thread.join(60)
        assert settled == [False]
        assert {office.details(id).row["state"] for id in ids} == {"queued"}
        assert (office.claims.not_in_hand(), len(smtpd.payloads)) == ([], 4)


class TestLog:
    def test_holds_no_address_subject_body_or_secret(
        self, database: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        with ScriptedSMTP(auth={"alice": "secret"}) as smtpd:
            office = Office(database, smtpd, user="alice", password="secret")
            smtpd.reply("RCPT", "550 5.2.1 <bob@example.org> is not here")
            smtpd.reply("DOT", "451 4.3.0 <bob@example.org> not now")
            smtpd.drop("DOT")
            found = [office.send() for _ in range(4)]
            office.delivery.close()
        assert [each.row["state"] for each in found] == ["failed", "deferred", "deferred", "sent"]
        assert f"message {found[0].row['id']} attempt 1: failed (550) in " in caplog.text
        for secret in ("bob", "Hello", "the body", "secret", "c2VjcmV0", "YWxpY2U"):
            assert secret not in caplog.text

    def test_says_what_is_no_longer_ours(
        self, office: Office, smtpd: ScriptedSMTP, caplog: pytest.LogCaptureFixture
    ) -> None:
        hold = smtpd.hold("DOT")
        id = office.accept()
        thread = threading.Thread(target=office.delivery.deliver, args=([id],))
        thread.start()
        wait_until(hold.reached.is_set)
        office.sql("UPDATE messages SET attempt = 2, owner = 'another' WHERE id = :id", id=id)
        hold.release()
        thread.join()
        assert "sent, but the row is no longer this attempt's" in caplog.text


def test_a_mail_that_waits_for_its_job_is_told_of_and_not_delivered(office: Office) -> None:
    job = NewJob(
        id=new_id(), name="simulate", args={"seconds": 1}, queue="jobs", timeout_seconds=10
    )
    ready, waiting = office.accept(), new_id()
    message = Message(to=(BOB,), subject="Hello", text="the body")
    office.outbox.accept(
        NewMessage(id=waiting, message=message, message_id=f"{waiting}@example.org", job=job)
    )
    told: list[Sequence[str]] = []
    office.delivery.on_unclaimed = told.append
    assert office.delivery.deliver([ready])
    assert told == []
    assert office.delivery.deliver([waiting])
    assert (told, office.details(waiting).row["state"]) == ([[waiting]], "waiting")
    assert len(office.smtpd.messages) == 1


def test_the_outcome_is_tried_again_less_and_less_often(
    office: Office, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(
        "mailroom.delivery.recorder.time.sleep",
        lambda seconds: waits.append(seconds) if seconds else None,
    )

    class Away(Claims):
        def finish(self, claim: Claim, outcome: Outcome) -> bool:
            if len(waits) < 8:
                raise StoreUnavailable("database: away")
            return super().finish(claim, outcome)

    office.delivery.recorder.claims = Away(office.database, office.heartbeat.id, 20)
    assert office.send().row["state"] == "sent"
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
