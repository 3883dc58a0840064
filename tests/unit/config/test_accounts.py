"""Sender accounts: limits of 24 hours, and what happens when a server wants no more from one of them."""

import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from mailroom.config.accounts import accounts
from mailroom.config.environment import load
from mailroom.config.settings import Settings, SettingsError
from mailroom.delivery.admission import Admission
from mailroom.delivery.attempt import AttemptRunner, Sender
from mailroom.delivery.delivery import Delivery
from mailroom.model.account import AccountState, NextHop, SendingLimit
from mailroom.model.attempt import Outcome
from mailroom.model.ids import new_id
from mailroom.model.message import Address, Message, State
from mailroom.model.retry import Schedule
from mailroom.smtp.pool import Sessions
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import MessageDetails, NewMessage, Outbox
from mailroom.store.workers import Heartbeat
from tests.services import LEASE_SECONDS, wait_until
from tests.services.certificates import Certificates, make_certificates
from tests.services.smtpd import ScriptedSMTP

UNREACHED = "127.0.0.1:… could not be reached: "
SENT = Outcome(state=State.SENT, reason="250 ok", recipients={0: (State.SENT, "250 ok")})


def next_hop(server: ScriptedSMTP, **more: Any) -> NextHop:
    known = {"host": server.host, "port": server.port, "security": "none", "timeout_seconds": 5}
    return NextHop(**known | more)  # type: ignore[arg-type]  # of which mypy sees only objects


class Office:
    """A worker without a broker, with accounts "one" and "two" at a server each."""

    def __init__(
        self,
        database: Database,
        *servers: ScriptedSMTP,
        limits: list[SendingLimit] | None = None,
        schedule: str = "10s*5",
        **hop: Any,
    ) -> None:
        self.database, self.outbox = database, Outbox(database)
        names = ("one", "two")[: len(servers)]
        self.limits = tuple(limits or (SendingLimit(account=name) for name in names))
        self.accounts = Accounts(database, self.limits)
        self.accounts.register()
        heartbeat = Heartbeat(database, new_id(), "worker@here", ["mail"])
        heartbeat.beat()
        self.sweeps = Sweeps(
            database,
            LEASE_SECONDS,
            "resend",
            frozenset(limit.account for limit in self.limits if limit.is_limited),
        )
        turns = Admission(
            4,
            {
                name: f"{server.host}:{server.port}"
                for name, server in zip(names, servers, strict=True)
            },
        )
        self.claims = Claims(database, heartbeat.id, LEASE_SECONDS, self.limits, turns.free)
        senders = {
            name: Sender(Address(f"{name}@example.org"), Sessions(next_hop(server, **hop)))
            for name, server in zip(names, servers, strict=True)
        }
        self.delivery = Delivery(
            self.claims, AttemptRunner(senders, Schedule.parse(schedule), "resend"), turns
        )

    def accept(self, count: int = 1, *, people: int = 1, sender: str | None = None) -> list[str]:
        ids = [new_id() for _ in range(count)]
        for id in ids:
            to = tuple(Address(f"bob{n}@example.org") for n in range(people))
            self.outbox.accept(
                NewMessage(
                    id=id,
                    message=Message(to=to, subject=id, text="x"),
                    message_id=f"{id}@example.org",
                    sender=sender,
                )
            )
        return ids

    def deliver(self, ids: list[str]) -> None:
        """Deliver them, and wait until that has ended, as nobody else does where there are several accounts."""
        assert self.delivery.deliver(ids)
        wait_until(lambda: not self.claims._in_hand, 60, what="all have ended")

    def sweep(self) -> list[str]:
        """What comes due for an account now, delivered; return the ids."""
        ids = [
            nudge.id
            for nudge in self.sweeps.due() + self.sweeps.unparked(1000, self.accounts.capacity())
        ]
        for id in ids:
            self.deliver([id])
        return ids

    def hours_pass(self, hours: float) -> None:
        ms = int(hours * 3600_000)
        for statement in (
            f"UPDATE accounts SET until = until - {ms}",
            f"UPDATE usage SET bucket = bucket - {ms // 600_000}",
        ):
            self.sql(statement)

    def sql(self, statement: str) -> None:
        def run(connection: Connection) -> None:
            connection.execute(text(statement))

        self.database.transaction(run)

    def states(self, ids: list[str]) -> list[str]:
        return [str(self.row(id).row["state"]) for id in ids]

    def row(self, id: str) -> MessageDetails:
        found = self.outbox.details(id)
        assert found
        return found

    def account(self, name: str = "one") -> dict[str, Any]:
        return next(one for one in self.accounts.details() if one["name"] == name)

    def close(self) -> None:
        self.delivery.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def other() -> Iterator[ScriptedSMTP]:
    with ScriptedSMTP() as server:
        yield server


@pytest.fixture
def offices() -> Iterator[list[Office]]:
    made: list[Office] = []
    yield made
    for office in made:
        office.close()


# --- sending limits ------------------------------------------------------------------------------------------------


def test_no_more_is_sent_in_24_hours_than_the_account_may(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd, limits=[SendingLimit(account="one", messages=3)])
    offices.append(office)
    ids = office.accept(5)
    office.deliver(ids)
    assert office.states(ids) == ["sent"] * 3 + ["deferred"] * 2
    waits = office.row(ids[4])
    assert waits.row["reason"] == "waits for account one, what it may send in 24 hours is used up"
    assert waits.row["attempt"] == 0
    assert 23.5 * 3600_000 < waits.row["next_attempt_at"] - waits.now < 24.5 * 3600_000
    assert office.sweep() == []
    office.hours_pass(12)
    assert office.sweep() == []
    assert (office.account()["messages"], office.account()["recipients"]) == (3, 3)
    office.hours_pass(12.5)
    assert sorted(office.sweep()) == ids[3:]
    assert office.states(ids) == ["sent"] * 5
    assert len(smtpd.payloads) == 5


def test_recipients_have_a_budget_too_and_small_mails_go_where_a_large_one_does_not_fit(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd, limits=[SendingLimit(account="one", recipients=5)])
    offices.append(office)
    ids = [*office.accept(people=3), *office.accept(people=3), *office.accept(people=2)]
    office.deliver(ids)
    assert office.states(ids) == ["sent", "deferred", "sent"]
    assert (office.account()["messages"], office.account()["recipients"]) == (2, 5)


def test_a_mail_that_was_refused_uses_no_budget(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd, limits=[SendingLimit(account="one", messages=2)])
    offices.append(office)
    smtpd.reply("RCPT", "550 5.7.1 not wanted")
    for id in office.accept(3):
        office.deliver([id])
    assert office.account()["messages"] == 2
    assert len(smtpd.payloads) == 2


def test_what_may_have_been_sent_uses_budget(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd, limits=[SendingLimit(account="one", messages=5)])
    offices.append(office)
    smtpd.drop("DOT")
    office.deliver(office.accept())
    assert office.account()["messages"] == 1
    [claim] = office.claims.claim(office.accept())
    assert office.claims.fence(claim)
    office.sql("UPDATE workers SET seen_at = 1")
    assert office.sweeps.orphans() == 1
    assert office.account()["messages"] == 2


def test_a_mail_goes_to_an_account_that_has_room(
    database: Database, smtpd: ScriptedSMTP, other: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(
        database,
        smtpd,
        other,
        limits=[SendingLimit(account="one", messages=2), SendingLimit(account="two", messages=3)],
    )
    offices.append(office)
    ids = office.accept(6)
    office.deliver(ids)
    assert sorted(office.states(ids)) == ["deferred"] + ["sent"] * 5
    assert {mail.mail_from for mail in smtpd.payloads} == {"one@example.org"}
    assert {mail.mail_from for mail in other.payloads} == {"two@example.org"}
    assert (len(smtpd.payloads), len(other.payloads)) == (2, 3)


def test_a_mail_that_names_its_sender_goes_by_that_account_or_waits_for_it(
    database: Database, smtpd: ScriptedSMTP, other: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(
        database,
        smtpd,
        other,
        limits=[SendingLimit(account="one", messages=1), SendingLimit(account="two", messages=5)],
    )
    offices.append(office)
    bound, free = office.accept(3, sender="one"), office.accept(2)
    office.deliver(bound)
    assert sorted(office.states(bound)) == ["deferred", "deferred", "sent"]
    assert office.sweep() == []  # The other account has room, but not for these.
    office.deliver(free)
    assert office.states(free) == ["sent"] * 2
    assert (len(smtpd.payloads), len(other.payloads)) == (1, 2)
    office.hours_pass(25)
    assert len(office.sweep()) == 1
    assert len(smtpd.payloads) == 2


def test_many_workers_at_once_do_not_overdraw(database: Database) -> None:
    limits = (SendingLimit(account="one", messages=20),)
    Accounts(database, limits).register()
    outbox = Outbox(database)
    ids = [new_id() for _ in range(60)]
    for id in ids:
        outbox.accept(
            NewMessage(id=id, message=Message(to=(Address("bob@example.org"),)), message_id=id)
        )

    def work(number: int) -> int:
        Heartbeat(database, f"worker-{number}", "w@h", ["mail"]).beat()
        claims = Claims(database, f"worker-{number}", LEASE_SECONDS, limits)
        sent = 0
        for at in range(number * 10, number * 10 + 10):
            for claim in claims.claim([ids[at]]):
                assert claims.fence(claim)
                sent += claims.finish(claim, SENT)
        return sent

    with ThreadPoolExecutor(6) as threads:
        assert sum(threads.map(work, range(6))) == 20


def test_when_room_comes_back_only_so_many_come_due(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd, limits=[SendingLimit(account="one", messages=2)])
    offices.append(office)
    ids = office.accept(7)
    office.deliver(ids)
    for n in range(2):
        office.hours_pass(25)
        assert len(office.sweep()) == 2
        assert office.states(ids).count("sent") == 4 + 2 * n


# --- trouble -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "reply", "state", "hours"),
    [
        ("MAIL", "530 5.7.0 Authentication required", AccountState.HALTED, 0.26),
        ("MAIL", "550 5.4.5 Daily user sending limit exceeded", AccountState.PARKED, 1.01),
        ("DOT", "550-5.4.5 Daily user\n550 5.4.5 sending limit", AccountState.PARKED, 1.01),
        ("MAIL", "421 4.7.28 too fast", AccountState.PAUSED, 0.09),
        ("MAIL", "421 4.3.2 restarting", AccountState.PAUSED, 0.004),
    ],
)
def test_an_account_in_trouble_is_tried_again_with_one_mail_and_then_all_go(
    database: Database,
    smtpd: ScriptedSMTP,
    offices: list[Office],
    phase: str,
    reply: str,
    state: AccountState,
    hours: float,
) -> None:
    office = Office(database, smtpd)
    offices.append(office)
    smtpd.reply(phase, reply)
    first, *others = office.accept(5)
    office.deliver([first])
    office.deliver(others)
    words = " ".join(line[4:] for line in reply.splitlines())
    assert office.states([first, *others]) == ["deferred"] * 5
    assert (office.account()["state"], office.account()["reason"]) == (
        state,
        f"{reply[:3]} {words}",
    )
    assert {office.row(id).row["attempt"] for id in others} == {0}
    assert (
        office.row(others[0]).row["reason"]
        == f"waits for account one, {state}: {reply[:3]} {words}"
    )
    assert office.sweep() == []
    office.hours_pass(hours)
    assert len(office.sweep()) == 1
    assert office.account()["state"] == "ok"
    assert len(office.sweep()) == 4
    assert office.states([first, *others]) == ["sent"] * 5


def assert_that_probes_cost_no_attempt(office: Office, ids: list[str]) -> None:
    """Meanwhile nothing counts against a mail, however often one of them tries the account."""
    for _ in range(3):
        office.hours_pass(24)
        assert len(office.sweep()) == 1
        assert office.states(ids) == ["deferred"] * len(ids)
    assert sum(office.row(id).row["attempt"] for id in ids) == len(ids) + 3
    assert all(office.row(id).row["attempt"] == office.row(id).row["excused"] for id in ids)


@pytest.mark.parametrize(
    ("phase", "reply", "state", "words"),
    [
        (
            "GREETING",
            "554 5.7.1 we do not know you",
            AccountState.HALTED,
            "554 5.7.1 we do not know you",
        ),
        ("GREETING", "450 4.3.2 not now", AccountState.PAUSED, "450 4.3.2 not now"),
        ("GREETING", "421 4.3.2 not now", AccountState.PAUSED, "421 4.3.2 not now"),
        ("GREETING", "what?", AccountState.PAUSED, "what?"),
        ("GREETING", "999 what?", AccountState.PAUSED, "999 what?"),
        ("GREETING", "600 what?", AccountState.PAUSED, "600 what?"),
        (
            "GREETING",
            "",
            AccountState.PAUSED,
            f"{UNREACHED}connection lost: connection closed by the server",
        ),
        ("EHLO", "554 5.7.1 blocked", AccountState.HALTED, "554 5.7.1 blocked"),
        ("EHLO", "501 5.5.4 no such name", AccountState.HALTED, "501 5.5.4 no such name"),
        ("EHLO", "450 4.3.2 not now", AccountState.PAUSED, "450 4.3.2 not now"),
        ("EHLO", "999 what?", AccountState.PAUSED, "999 what?"),
        ("EHLO", "421 4.7.0 try again later", AccountState.PAUSED, "421 4.7.0 try again later"),
        (
            "EHLO",
            "",
            AccountState.PAUSED,
            f"{UNREACHED}connection lost: connection closed by the server",
        ),
    ],
)
def test_what_fails_before_mail_is_the_accounts_and_no_mail_loses_an_attempt(
    database: Database,
    smtpd: ScriptedSMTP,
    offices: list[Office],
    phase: str,
    reply: str,
    state: AccountState,
    words: str,
) -> None:
    office = Office(database, smtpd, schedule="1s, 1s")
    offices.append(office)
    if reply:
        smtpd.reply(phase, reply, times=None, close=True)
    else:
        smtpd.drop(phase, times=None)
    ids = office.accept(3)
    office.deliver(ids)
    account = office.account()
    assert (account["state"], account["reason"].replace(str(smtpd.port), "…")) == (state, words)
    assert_that_probes_cost_no_attempt(office, ids)


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        ("550 User has no permission", AccountState.HALTED),
        (
            "550 5.7.30 Basic authentication is not supported for Client Submission",
            AccountState.HALTED,
        ),
        ("553 5.3.0 no", AccountState.HALTED),
        ("525 5.7.13 account is disabled", AccountState.HALTED),
        ("538 5.7.11 encryption required", AccountState.HALTED),
        ("554 5.7.1 suspended", AccountState.HALTED),
        ("501 5.7.0 no", AccountState.HALTED),
        ("451 Authentication failed: Maximum credits exceeded", AccountState.PAUSED),
        ("432 4.7.12 a password transition is needed", AccountState.PAUSED),
        ("999 what?", AccountState.PAUSED),
    ],
)
def test_a_login_that_is_refused_in_whatever_way_is_the_accounts(
    database: Database, offices: list[Office], reply: str, state: AccountState
) -> None:
    with ScriptedSMTP(auth={"alice": "secret"}) as smtpd:
        office = Office(database, smtpd, schedule="1s, 1s", user="alice", password="secret")
        offices.append(office)
        smtpd.reply("AUTH", reply, times=None)
        ids = office.accept(3)
        office.deliver(ids)
        assert (office.account()["state"], office.account()["reason"]) == (state, reply)
        reasons = {office.row(id).row["reason"] for id in ids}
        assert reasons <= {reply, f"waits for account one, {state}: {reply}"}
        assert_that_probes_cost_no_attempt(office, ids)


@pytest.mark.parametrize(
    ("offered", "words"), [("XOAUTH2", "XOAUTH2"), ("NTLM", "NTLM"), ("", "none")]
)
def test_a_login_that_cannot_be_tried_halts_the_account(
    database: Database, offices: list[Office], offered: str, words: str
) -> None:
    with ScriptedSMTP(auth={"alice": "secret"}, mechanisms=offered) as smtpd:
        office = Office(database, smtpd, schedule="1s, 1s", user="alice", password="secret")
        offices.append(office)
        ids = office.accept(3)
        office.deliver(ids)
        assert office.account()["state"] == AccountState.HALTED
        assert office.account()["reason"] == (
            f"127.0.0.1:{smtpd.port} offers no way to log in that we know (it offers {words})"
        )
        assert_that_probes_cost_no_attempt(office, ids)


def test_of_many_mails_one_tries_a_login_that_is_refused(
    database: Database, offices: list[Office]
) -> None:
    with ScriptedSMTP(auth={"alice": "secret"}) as smtpd:
        office = Office(database, smtpd, user="alice", password="wrong")
        offices.append(office)
        ids = office.accept(20)
        office.deliver(ids)
        reasons = {office.row(id).row["reason"] for id in ids}
        assert reasons == {"535 5.7.8 user name and password not accepted"}
        # PLAIN and LOGIN
        assert sum(line.upper().startswith("AUTH") for _, line in smtpd.commands) == 2
        smtpd.auth = {"alice": "wrong"}
        office.hours_pass(0.3)
        assert len(office.sweep()) == 1
        assert len(office.sweep()) == 19
        assert office.states(ids) == ["sent"] * 20


@pytest.mark.parametrize(
    ("reply", "state", "words"),
    [
        ("454 4.7.0 TLS not available", AccountState.PAUSED, "454 4.7.0 TLS not available"),
        ("554 5.7.0 no TLS for you", AccountState.HALTED, "554 5.7.0 no TLS for you"),
        (
            "220 go ahead",
            AccountState.PAUSED,
            "the certificate of 127.0.0.1:… is not to be trusted: self-signed certificate",
        ),
    ],
)
def test_a_tls_that_fails_is_the_accounts_too(
    database: Database,
    offices: list[Office],
    certificates: Certificates,
    reply: str,
    state: AccountState,
    words: str,
) -> None:
    with ScriptedSMTP(tls="starttls", certificate=certificates.self_signed) as smtpd:
        office = Office(database, smtpd, schedule="1s, 1s", security="starttls")
        offices.append(office)
        smtpd.reply("STARTTLS", reply, times=None)
        ids = office.accept(3)
        office.deliver(ids)
        account = office.account()
        assert (account["state"], account["reason"].replace(str(smtpd.port), "…")) == (state, words)
        assert_that_probes_cost_no_attempt(office, ids)


@pytest.mark.parametrize(
    ("hop", "words"),
    [
        ({"security": "starttls"}, "127.0.0.1:… offers no STARTTLS"),
        ({"security": "ssl"}, UNREACHED),
        ({"host": "mx.invalid"}, "mx.invalid:… could not be reached: "),
        ({"port": 1}, "127.0.0.1:1 could not be reached: Connection refused"),
    ],
)
def test_a_server_that_is_not_where_it_should_be_is_the_accounts_too(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office], hop: dict[str, Any], words: str
) -> None:
    office = Office(database, smtpd, schedule="1s, 1s", **hop)
    offices.append(office)
    ids = office.accept(3)
    office.deliver(ids)
    account = office.account()
    assert account["state"] == AccountState.PAUSED
    assert account["reason"].replace(str(smtpd.port), "…").startswith(words)
    assert_that_probes_cost_no_attempt(office, ids)


def test_a_server_that_is_away_for_long_is_looked_at_every_ten_minutes(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd, schedule="30s, 4h*5")
    offices.append(office)
    smtpd.stop()
    ids = office.accept(2)
    office.deliver(ids)
    for _ in range(4):
        office.hours_pass(0.17)
        assert len(office.sweep()) == 1
    smtpd.start()
    office.hours_pass(0.17)
    office.sweep()
    office.sweep()
    assert office.states(ids) == ["sent"] * 2


@pytest.mark.parametrize("phase", ["MAIL", "RCPT", "DATA"])
def test_a_mail_at_which_the_link_always_ends_counts_its_attempts_and_is_no_trouble_of_the_account(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office], phase: str
) -> None:
    office = Office(database, smtpd, schedule="0s, 0s")
    offices.append(office)
    smtpd.drop(phase, times=None)
    [id] = office.accept()
    office.deliver([id])
    for _ in range(2):
        assert office.account()["state"] == "ok"
        assert office.sweep() == [id]
    assert office.states([id]) == ["failed"]


def test_an_account_is_tried_at_once_when_a_person_says_so(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd)
    offices.append(office)
    assert not office.accounts.try_now("one") and not office.accounts.try_now("nobody")
    smtpd.reply("MAIL", "530 5.7.0 Authentication required")
    ids = office.accept(3)
    office.deliver(ids)
    assert office.account()["state"] == "halted" and office.sweep() == []
    assert office.accounts.try_now("one")
    assert len(office.sweep()) == 1 and office.account()["state"] == "ok"
    office.sweep()
    assert office.states(ids) == ["sent"] * 3


def test_while_one_mail_tries_an_account_the_others_wait(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd)
    offices.append(office)
    smtpd.reply("MAIL", "530 5.7.0 Authentication required")
    ids = office.accept(3)
    for id in ids:
        office.deliver([id])
    office.hours_pass(0.3)
    assert sum(office.accounts.capacity().values()) == 1
    [probe] = office.claims.claim(
        [nudge.id for nudge in office.sweeps.unparked(3, office.accounts.capacity() | {"one": 3})]
    )
    assert probe.is_probe
    assert office.accounts.capacity() == {}
    assert office.sweep() == []
    assert office.claims.finish(probe, SENT)
    assert len(office.sweep()) == 2


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_claim_does_not_wait_for_an_account_that_another_transaction_has_locked(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    """With messages locked it would be a deadlock: an attempt that ends locks accounts first, and then messages."""
    office = Office(database, smtpd)
    offices.append(office)
    ids = office.accept()
    office.sql("UPDATE accounts SET state = 'paused', reason = '421 come back later', until = 0")
    with database.engine.begin() as ending:
        ending.execute(text("SELECT name FROM accounts FOR UPDATE"))
        assert office.claims.claim(ids) == []
        ending.execute(text("UPDATE messages SET crashes = 0"))
    assert office.states(ids) == ["deferred"]
    assert office.sweep() == ids
    assert office.states(ids) == ["sent"]


def test_trouble_that_goes_on_makes_the_waits_longer_and_does_not_count(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd, schedule="1s, 2s")
    offices.append(office)
    smtpd.reply("MAIL", "530 5.7.0 Authentication required", times=None)
    [id] = office.accept()
    office.deliver([id])
    for _ in range(6):
        office.hours_pass(0.3)
        assert office.sweep() == [id]
    row = office.row(id).row
    assert (row["state"], row["attempt"], row["excused"], office.account()["failures"]) == (
        "deferred",
        7,
        7,
        7,
    )


def test_a_mail_at_which_the_server_always_hangs_up_fails_and_lets_the_others_go_first(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd, schedule="10s*3")
    offices.append(office)
    smtpd.reply("RCPT", "421 4.3.0 cannot", match="poison", times=None)
    poison, *others = [new_id() for _ in range(4)]
    for id in (poison, *others):
        to = Address("poison@example.org" if id == poison else "bob@example.org")
        office.outbox.accept(NewMessage(id=id, message=Message(to=(to,)), message_id=id))
    office.deliver([poison])
    office.deliver(others)
    for _ in range(12):
        office.hours_pass(0.02)
        office.sweep()
    assert office.states([poison, *others]) == ["failed", "sent", "sent", "sent"]


def test_a_mail_whose_account_is_halted_goes_by_another(
    database: Database, smtpd: ScriptedSMTP, other: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd, other)
    offices.append(office)
    for server in (smtpd, other):
        server.reply("MAIL", "535 5.7.8 no", match="one@", times=None)
    ids = office.accept(10)
    office.deliver(ids)
    while office.sweep():
        pass
    assert office.states(ids) == ["sent"] * 10
    assert (office.account("one")["state"], office.account("two")["state"]) == ("halted", "ok")


def test_a_halted_account_is_tried_again_when_a_worker_starts_or_its_credentials_change(
    database: Database, smtpd: ScriptedSMTP, offices: list[Office]
) -> None:
    office = Office(database, smtpd)
    offices.append(office)
    for change, state, reply in (
        (False, "halted", "535 5.7.8 no"),
        (True, "parked", "550 5.4.5 Daily limit"),
    ):
        smtpd.reply("MAIL", reply)
        office.deliver(office.accept())
        assert office.account()["state"] == state
        assert office.accounts.capacity() == {}
        Accounts(
            database, [replace(office.limits[0], credentials=f"other{change}" if change else "")]
        ).register()
        assert sum(office.accounts.capacity().values()) == 1
        assert len(office.sweep()) == 1
        assert office.account()["state"] == "ok"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SMTP_PORT", "2525"),
        ("SMTP_SECURITY", "starttls"),
        ("SMTP_HOST", "mx2.example.org"),
        ("MAIL_PASSWORD", "y"),
        ("EHLO_NAME", "mail.example.org"),
    ],
)
def test_an_account_is_tried_again_when_how_it_is_reached_changes(
    tmp_path: Path, name: str, value: str
) -> None:
    known = {
        "MAIL_USERNAME": "me@example.org",
        "MAIL_PASSWORD": "x",
        "SMTP_HOST": "mx.example.org",
        "SMTP_PORT": "587",
    }
    changes: list[dict[str, str]] = [{}, {}, {name: value}]
    [before], [same], [after] = (
        accounts(settings(tmp_path, **known | change)) for change in changes
    )
    assert before.sending_limit == same.sending_limit != after.sending_limit


# --- the file ------------------------------------------------------------------------------------------------------


def settings(tmp_path: Path, toml: str = "", **more: str) -> Settings:
    if toml:
        (tmp_path / "accounts.toml").write_text(textwrap.dedent(toml))
        more["ACCOUNTS_FILE"] = str(tmp_path / "accounts.toml")
    return load(
        {"MAILASYNC_ENV_FILE": "", **{f"MAILASYNC_{name}": value for name, value in more.items()}}
    )


def test_the_file_names_accounts_each_with_the_settings_for_what_it_does_not_say(
    tmp_path: Path,
) -> None:
    (tmp_path / "secret").write_text("geheim\n")
    found = accounts(
        settings(
            tmp_path,
            """
        [[account]]
        name = "ops"
        username = "ops@gmail.com"
        password_file = "secret"

        [[account]]
        username = "news@example.org"
        password = "x"
        from = "News <news@example.org>"
        messages_per_day = 100

        [[account]]
        name = "relay"
        smtp_host = "relay.example.org"
        smtp_security = "starttls"
        smtp_auth = "off"
        from = "relay@example.org"

        [[account]]
        name = "here"
        smtp_host = "[::1]"
        smtp_port = 25
        from = "here@example.org"
        """,
        )
    )
    ops, news, relay, here = found
    assert (
        ops.name,
        ops.hop.host,
        ops.hop.password,
        ops.messages_per_day,
        ops.recipients_per_day,
    ) == (
        "ops",
        "smtp.gmail.com",
        "geheim",
        500,
        500,
    )
    assert (news.name, news.sender, news.messages_per_day, news.recipients_per_day) == (
        "news@example.org",
        Address("news@example.org", "News"),
        100,
        10_000,
    )
    assert (relay.hop.host, relay.hop.port, relay.hop.user, relay.messages_per_day) == (
        "relay.example.org",
        587,
        "",
        0,
    )
    assert (here.hop.host, str(here.hop)) == ("::1", "[::1]:25")
    assert here.may_send_from("anybody@example.org")
    assert len({account.sending_limit.credentials for account in found}) == 4
    assert "geheim" not in repr(found)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("x", "expected a readable TOML file"),
        ("name = 1", r"expected one \[\[account\]\] or more"),
        ("[account]\nname = 'x'", r"expected one \[\[account\]\] or more"),
        ("[[account]]\nnmae = 'x'", "account 1: expected .*name.*, got nmae"),
        ("[[account]]\nname = 5", "account 1: expected a name of 1 to 100 characters, got 5"),
        ("[[account]]\nname = ''", "account 1: expected a name"),
        (
            "[[account]]\nname = 'a'\nfrom = 'nobody'",
            "account 1: MAILASYNC_MAIL_FROM: expected an address",
        ),
        (
            "[[account]]\nname = 'a'\nsmtp_port = '25'",
            "account 1: expected smtp_port to be a number",
        ),
        (
            "[[account]]\nname = 'a'\nmessages_per_day = -1",
            "account 1: expected messages_per_day to be a whole number",
        ),
        (
            "[[account]]\nname = 'a'\nmessages_per_day = true",
            "account 1: expected messages_per_day to be a whole number",
        ),
        (
            "[[account]]\nname = 'a'\npassword_file = 'none'",
            "account 1: password_file: .*No such file",
        ),
        (
            "[[account]]\nname = 'a'\n[[account]]\nname = 'a'",
            "expected another name for each account",
        ),
        (
            "[[account]]\nname='a'\nusername='a@b.org'\npassword='geheim'\nsmtp_host='h.example.org'\nsmtp_security='none'",
            "unencrypted",
        ),
        (
            "[[account]]\nname='a'\nehlo_name='my_host'",
            "account 1: MAILASYNC_EHLO_NAME: expected a host name",
        ),
        (
            "[[account]]\nname='a'\nsmtp_security='tls'",
            "account 1: expected one of ssl, starttls, none, got 'tls'",
        ),
    ],
)
def test_a_wrong_file_stops_the_start_with_account_and_field(
    tmp_path: Path, toml: str, words: str
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        accounts(settings(tmp_path, toml))
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("username", "limits"), [("me@gmail.com", (500, 500)), ("me@company.example", (2000, 10_000))]
)
def test_gmails_published_limits_are_the_default(
    tmp_path: Path, username: str, limits: tuple[int, int]
) -> None:
    [account] = accounts(settings(tmp_path, MAIL_USERNAME=username, MAIL_PASSWORD="x"))
    assert (account.name, account.messages_per_day, account.recipients_per_day) == (
        "default",
        *limits,
    )
    [elsewhere] = accounts(
        settings(tmp_path, MAIL_USERNAME=username, MAIL_PASSWORD="x", SMTP_HOST="smtp.example.org")
    )
    assert (elsewhere.messages_per_day, elsewhere.recipients_per_day) == (0, 0)
