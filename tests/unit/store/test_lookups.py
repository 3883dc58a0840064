"""Messages whose last attempt got no reply, while they are looked for in a Sent folder; on both databases."""

from dataclasses import replace

import pytest
from sqlalchemy import Connection, text

from mailroom.delivery.groups import Groups
from mailroom.delivery.outcomes import Judge, of_group
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.ids import new_id
from mailroom.model.message import Address, Message, State
from mailroom.model.retry import LOOK_WAITS_SECONDS, Schedule
from mailroom.smtp.connection import Reply
from mailroom.store.db.database import Database
from mailroom.store.maintenance.expiry import Expiry
from mailroom.store.maintenance.rescue import CRASHES_MAX, Sweeps
from mailroom.store.messages.actions import Actions
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.lookups import LookUp, LookUps, give_up_looks
from mailroom.store.messages.outbox import MessageDetails, NewMessage, Outbox
from mailroom.store.workers import Heartbeat

LEASE_SECONDS = 600.0
MAILBOXES = frozenset({"default"})
NO_REPLY = "no reply after the final dot: connection lost"
SENT = Outcome(state=State.SENT, reason="250 ok", recipients={0: (State.SENT, "250 ok")})


@pytest.fixture
def claims(database: Database) -> Claims:
    Heartbeat(database, "worker-1", "worker-1@host", ["mail"]).beat()
    return Claims(database, "worker-1", LEASE_SECONDS)


@pytest.fixture
def look_ups(database: Database) -> LookUps:
    return LookUps(database, "default")


def judge(policy: str = "resend", waits: str = "1m, 1m") -> Judge:
    return Judge(Schedule.parse(waits), policy, Groups(), MAILBOXES)


def accept(database: Database, *to: str) -> str:
    id = new_id()
    everyone = tuple(Address(address) for address in to or ("bob@example.org",))
    message = Message(to=everyone, subject="Hello", text="Hi")
    Outbox(database).accept(
        NewMessage(id=id, message=message, message_id=f"{id}@example.org", queue="mail")
    )
    return id


def claim(claims: Claims, id: str) -> Claim:
    [claimed] = claims.claim([id])
    return claimed


def lose_reply(
    database: Database,
    claims: Claims,
    *to: str,
    judge: Judge,
    refused: dict[int, Reply] | None = None,
) -> str:
    """Make an attempt whose payload went out and got no reply."""
    id = accept(database, *to)
    attempt = claim(claims, id)
    assert claims.fence(attempt)
    assert claims.finish(attempt, judge.unanswered(attempt, NO_REPLY, refused or {}))
    return id


def details(database: Database, id: str) -> MessageDetails:
    found = Outbox(database).details(id)
    assert found
    return found


def states(database: Database, id: str) -> tuple[str, list[str]]:
    found = details(database, id)
    return found.row["state"], [person["state"] for person in found.recipients]


def events(database: Database, id: str) -> list[str]:
    return [event.event for event in details(database, id).events]


def make_due(database: Database, *, minutes: int = 10) -> None:
    def earlier(connection: Connection) -> None:
        connection.execute(
            text(
                "/* test */ UPDATE messages SET next_attempt_at = next_attempt_at - :by "
                "WHERE looks IS NOT NULL"
            ),
            {"by": minutes * 60_000},
        )

    database.transaction(earlier)


def next_due(database: Database, look_ups: LookUps) -> LookUp:
    make_due(database)
    [due] = look_ups.due()
    return due


def test_a_mail_that_is_in_sent_was_sent(
    database: Database, claims: Claims, look_ups: LookUps
) -> None:
    id = lose_reply(database, claims, judge=judge())
    assert states(database, id) == ("deferred", ["uncertain"])
    assert look_ups.due() == []
    due = next_due(database, look_ups)
    assert (due.id, due.message_id, due.looks) == (id, f"{id}@example.org", 0)
    assert look_ups.found(due)
    assert states(database, id) == ("sent", ["sent"])
    assert events(database, id) == ["uncertain", "sent"]
    assert details(database, id).row["reason"] == "found in the Sent folder of default"
    assert not look_ups.found(due)
    assert not look_ups.not_found(due)


@pytest.mark.parametrize(
    ("policy", "then", "recipient"),
    [("resend", "queued", "deferred"), ("hold", "uncertain", "uncertain")],
)
def test_after_the_last_look_the_policy_decides(
    database: Database,
    claims: Claims,
    look_ups: LookUps,
    policy: str,
    then: str,
    recipient: str,
) -> None:
    id = lose_reply(database, claims, judge=judge(policy))
    for look in range(len(LOOK_WAITS_SECONDS)):
        assert states(database, id) == ("deferred", ["uncertain"])
        due = next_due(database, look_ups)
        assert due.looks == look
        assert look_ups.not_found(due)
        assert not look_ups.not_found(due)
    assert states(database, id) == (then, [recipient])
    assert look_ups.due() == []
    assert events(database, id)[-1] == "not in sent"
    assert details(database, id).row["uncertain_attempts"] == 1


def test_no_attempt_is_left_after_the_last_one(
    database: Database, claims: Claims, look_ups: LookUps
) -> None:
    id = lose_reply(database, claims, judge=Judge(Schedule(()), "resend", Groups(), MAILBOXES))
    for _ in LOOK_WAITS_SECONDS:
        assert look_ups.not_found(next_due(database, look_ups))
    assert states(database, id) == ("uncertain", ["uncertain"])


def test_whom_the_server_had_refused_does_not_become_sent(
    database: Database, claims: Claims, look_ups: LookUps
) -> None:
    refused = {1: Reply(550, "5.1.1 unknown"), 2: Reply(450, "4.2.1 later")}
    people = ("bob@example.org", "eve@example.org", "kim@example.org")
    id = lose_reply(database, claims, *people, judge=judge(), refused=refused)
    assert states(database, id) == ("deferred", ["uncertain", "failed", "deferred"])
    assert look_ups.found(next_due(database, look_ups))
    # The third is tried again.
    assert states(database, id) == ("queued", ["sent", "failed", "deferred"])
    assert claim(claims, id).pending == (2,)


def test_a_mail_of_which_there_is_a_copy_already_is_not_looked_for(
    database: Database, claims: Claims
) -> None:
    # Given a mail that one recipient has, so that a copy is in the Sent folder
    id = accept(database, "bob@example.org", "eve@example.org")
    first = claim(claims, id)
    both = {0: (State.SENT, "250 ok"), 1: (State.DEFERRED, "450 later")}
    deferred = Outcome(state=State.DEFERRED, reason="450 later", recipients=both, wait_seconds=0)
    assert claims.finish(first, deferred)
    Actions(database).retry(id)
    # When the reply to the second attempt is lost
    second = claim(claims, id)
    outcome = judge().unanswered(second, NO_REPLY)
    # Then that copy says nothing
    assert (second.taken_before, outcome.look_up, outcome.wait_seconds is None) == (
        True,
        None,
        False,
    )


def test_an_account_without_a_mailbox_sends_again_as_before(
    database: Database, claims: Claims
) -> None:
    attempt = claim(claims, accept(database))
    outcome = Judge(Schedule.parse("1m"), "resend", Groups()).unanswered(attempt, NO_REPLY)
    assert (outcome.state, outcome.look_up) == (State.DEFERRED, None)


@pytest.mark.parametrize(("policy", "then"), [("resend", "queued"), ("hold", "uncertain")])
def test_what_a_dead_worker_may_have_sent_is_looked_for(
    database: Database, claims: Claims, look_ups: LookUps, policy: str, then: str
) -> None:
    id = accept(database)
    late = claim(claims, id)
    assert claims.fence(late)
    lose_worker(database)
    sweeps = Sweeps(database, LEASE_SECONDS, policy, mailboxes=MAILBOXES)
    assert sweeps.orphans() == 1
    assert states(database, id) == ("deferred", ["uncertain"])
    assert sweeps.due() == []
    for _ in LOOK_WAITS_SECONDS:
        assert look_ups.not_found(next_due(database, look_ups))
    assert states(database, id)[0] == then


def test_a_reply_that_was_read_ends_the_looks(
    database: Database, claims: Claims, look_ups: LookUps
) -> None:
    # Given a worker that was taken for dead after its payload
    id = accept(database)
    late = claim(claims, id)
    assert claims.fence(late)
    lose_worker(database)
    assert Sweeps(database, LEASE_SECONDS, "resend", mailboxes=MAILBOXES).orphans() == 1
    # When it writes the reply that it had read
    assert claims.finish(late, SENT)
    # Then that counts
    assert states(database, id) == ("sent", ["sent"])
    make_due(database)
    assert look_ups.due() == []


def test_a_dead_workers_mail_to_several_is_sent_again_as_before(
    database: Database, claims: Claims
) -> None:
    # Who of them had been refused is not known.
    id = accept(database, "bob@example.org", "eve@example.org")
    assert claims.fence(claim(claims, id))
    lose_worker(database)
    assert Sweeps(database, LEASE_SECONDS, "resend", mailboxes=MAILBOXES).orphans() == 1
    assert states(database, id) == ("queued", ["queued", "queued"])


def lose_worker(database: Database) -> None:
    def forget(connection: Connection) -> None:
        connection.execute(text("/* test */ UPDATE workers SET seen_at = seen_at - 601000"))

    database.transaction(forget)


def test_a_mailbox_that_cannot_be_read_holds_no_mail_back_for_ever(
    database: Database, claims: Claims
) -> None:
    id = lose_reply(database, claims, judge=judge())
    make_due(database, minutes=10)
    assert give_up_looks(database) == 0
    make_due(database, minutes=20)
    assert give_up_looks(database) == 1
    assert states(database, id) == ("queued", ["deferred"])


@pytest.mark.parametrize(
    ("action", "then", "recipient"),
    [("cancel", "canceled", "canceled"), ("hold", "held", "queued"), ("retry", "queued", "queued")],
)
def test_a_person_can_end_the_looks(
    database: Database,
    claims: Claims,
    look_ups: LookUps,
    action: str,
    then: str,
    recipient: str,
) -> None:
    id = lose_reply(database, claims, judge=judge())
    due = next_due(database, look_ups)
    getattr(Actions(database), action)(id)
    assert states(database, id) == (then, [recipient])
    assert look_ups.due() == []
    assert not look_ups.found(due)


def test_a_mail_does_not_expire_while_it_is_looked_for(
    database: Database, claims: Claims, look_ups: LookUps
) -> None:
    id = lose_reply(database, claims, judge=judge())

    def expire(connection: Connection) -> None:
        connection.execute(text("/* test */ UPDATE messages SET expires_at = 1"))

    database.transaction(expire)
    assert Expiry(database).expire() == 0
    assert look_ups.found(next_due(database, look_ups))
    assert states(database, id)[0] == "sent"


def test_only_mails_of_the_account_are_looked_for(database: Database, claims: Claims) -> None:
    lose_reply(database, claims, judge=judge())
    make_due(database)
    assert LookUps(database, "other").due() == []


def test_a_copy_of_an_attempt_that_reached_some_is_no_proof_for_the_others(
    database: Database, claims: Claims
) -> None:
    # Given a mail of which two recipients may have a copy, and one was asked to wait
    refused = {2: Reply(450, "4.2.1 later")}
    people = ("bob@example.org", "eve@example.org", "kim@example.org")
    id = lose_reply(database, claims, *people, judge=judge(), refused=refused)
    Actions(database).retry(id)
    # When the next attempt, which goes to all three, loses its reply as well
    second = claim(claims, id)
    # Then the copy of the first is not taken for one of the second
    assert second.pending == (0, 1, 2)
    assert judge().unanswered(second, NO_REPLY).look_up is None


@pytest.mark.parametrize("policy", ["resend", "hold"])
def test_those_who_were_not_tried_are_tried_after_the_looks(
    database: Database, claims: Claims, look_ups: LookUps, policy: str
) -> None:
    id = accept(database, "bob@example.org", "eve@example.org")
    attempt = claim(claims, id)
    assert claims.fence(attempt)
    group = replace(attempt, pending=(0,))
    outcome = judge(policy).unanswered(group, NO_REPLY)
    assert claims.finish(attempt, of_group(outcome, ends_round=False))
    for _ in LOOK_WAITS_SECONDS:
        assert look_ups.not_found(next_due(database, look_ups))
    assert states(database, id)[0] == "queued"
    assert 1 in claim(claims, id).pending


def test_a_mail_that_workers_die_of_is_not_looked_for_for_ever(
    database: Database, claims: Claims
) -> None:
    id = accept(database)
    sweeps = Sweeps(database, LEASE_SECONDS, "resend", mailboxes=MAILBOXES)

    def die() -> None:
        lose_worker(database)
        assert sweeps.orphans() == 1
        Heartbeat(database, "worker-1", "worker-1@host", ["mail"]).beat()

    def die_again(connection: Connection) -> None:
        connection.execute(text("/* test */ UPDATE messages SET crashes = :n"), {"n": CRASHES_MAX})

    assert claims.fence(claim(claims, id))
    database.transaction(die_again)
    die()
    assert states(database, id) == ("failed", ["failed"])
