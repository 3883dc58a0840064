"""Commits whose answer is lost, on a link to PostgreSQL that is cut: what is done again is done to the one attempt that it is about."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mailroom.delivery.admission import Admission
from mailroom.delivery.attempt import AttemptRunner, Sender
from mailroom.delivery.delivery import Delivery
from mailroom.model.account import DEFAULT_ACCOUNT, AccountError, AccountState, NextHop
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import StoreUnavailable
from mailroom.model.message import Address, State
from mailroom.model.retry import Schedule
from mailroom.smtp.pool import Sessions
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.messages.actions import Actions
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import Outbox
from mailroom.store.workers import Heartbeat
from tests.services import wait_until
from tests.services.lossy_link import LATE, LOST, UNANSWERED, LossyLink
from tests.services.schema import ready
from tests.services.smtpd import ScriptedSMTP
from tests.unit.store.test_outbox import SENT, accept, claim_one, row, state

#: What fences, ends and releases have in their statements; then fences alone, and releases.
CHANGED, FENCE, RELEASE = b"UPDATE messages", b"FROM workers", b"given_back="
UNCERTAIN = Outcome(
    state=State.UNCERTAIN,
    reason="no reply",
    recipients={0: (State.UNCERTAIN, "no reply")},
    uncertain=True,
)
TURNED_AWAY = Outcome(
    state=State.DEFERRED,
    reason="421 4.7.0 later",
    recipients={0: (State.DEFERRED, "421 4.7.0 later")},
    account_error=AccountError(state=AccountState.PAUSED, reason="421 4.7.0 later", waits=(60.0,)),
)


@pytest.fixture
def direct(postgres_url: str) -> Iterator[Database]:
    made = ready(postgres_url)
    yield made
    made.close()


@pytest.fixture
def lossy(direct: Database, link: LossyLink) -> Iterator[Database]:
    made = Database(link.url)
    yield made
    made.close()


@pytest.fixture
def outbox(direct: Database) -> Outbox:
    return Outbox(direct)


@pytest.fixture
def claims(lossy: Database, direct: Database) -> Claims:
    """Those of a worker whose link to the database may be cut."""
    Heartbeat(direct, "worker-1", "worker-1@host", ["mail"]).beat()
    return Claims(lossy, "worker-1", 60)


def events(outbox: Outbox, id: str) -> list[tuple[str, int | None]]:
    details = outbox.details(id)
    assert details
    return [(event.event, event.attempt) for event in details.events]


def test_a_release_that_is_done_again_leaves_the_next_attempt_alone(
    outbox: Outbox, claims: Claims, link: LossyLink
) -> None:
    claim = claim_one(claims, accept(outbox))
    link.at_commit(LOST, UNANSWERED, having=CHANGED)
    with pytest.raises(StoreUnavailable):
        claims.fence(claim)
    with pytest.raises(StoreUnavailable):
        claims.release(claim)
    assert state(outbox, claim.id) == State.QUEUED
    fresh = claim_one(claims, claim.id)
    assert claims.fence(fresh)
    claims.release(claim)
    assert (state(outbox, claim.id), fresh.attempt, fresh.counted) == (State.IN_DATA, 2, 1)
    assert claims.finish(fresh, SENT)


def test_the_mail_of_a_release_that_is_done_again_goes_once(
    outbox: Outbox, claims: Claims, direct: Database, link: LossyLink, smtpd: ScriptedSMTP
) -> None:
    # Given a worker whose fence failed as the link was cut, and the answer to its release was lost
    deliveries = [
        delivery(one, smtpd) for one in (claims, Claims(direct, claims.owner, claims.lease_seconds))
    ]
    id = accept(outbox)
    link.at_commit(LOST, having=FENCE)
    link.at_commit(UNANSWERED, LATE, having=RELEASE)
    threads = [threading.Thread(target=deliveries[0].deliver, args=([id],), daemon=True)]
    threads[0].start()
    assert link.reached.wait(60)
    assert state(outbox, id) == State.QUEUED
    # When it claims the mail again and is past the fence, and the release is done again
    hold = smtpd.hold("DOT")
    threads.append(threading.Thread(target=deliveries[1].deliver, args=([id],), daemon=True))
    threads[1].start()
    wait_until(hold.reached.is_set, what="the mail is at the dot")
    link.go_on.set()
    threads[0].join(60)
    # Then nobody else can have the mail
    assert deliveries[1].deliver([id])
    hold.release()
    threads[1].join(60)
    assert (row(outbox, id)["state"], row(outbox, id)["uncertain_attempts"]) == (State.SENT, 0)
    assert smtpd.copies(f"{id}@example.org") == 1
    for one in deliveries:
        one.close()


def delivery(claims: Claims, smtpd: ScriptedSMTP) -> Delivery:
    sessions = Sessions(
        NextHop(host=smtpd.host, port=smtpd.port, security="none", timeout_seconds=30)
    )
    senders = {DEFAULT_ACCOUNT: Sender(Address("alice@example.org"), sessions)}
    return Delivery(claims, AttemptRunner(senders, Schedule.parse("10s"), "resend"), Admission(2))


@pytest.mark.parametrize("outcome", [SENT, UNCERTAIN])
def test_an_end_that_is_written_again_is_on_record_once(
    outbox: Outbox, claims: Claims, link: LossyLink, outcome: Outcome
) -> None:
    claim = fenced(claims, accept(outbox))
    link.at_commit(UNANSWERED, having=CHANGED)
    with pytest.raises(StoreUnavailable):
        claims.finish(claim, outcome)
    assert claims.finish(claim, outcome)  # It is on record, which is what was wanted.
    assert events(outbox, claim.id) == [(str(outcome.state), 1)]
    assert row(outbox, claim.id)["uncertain_attempts"] == int(outcome.uncertain)
    assert claims.not_in_hand() == []


def test_what_a_person_did_since_is_not_undone_by_an_end_that_is_written_again(
    outbox: Outbox, claims: Claims, direct: Database, link: LossyLink
) -> None:
    claim = fenced(claims, accept(outbox))
    link.at_commit(UNANSWERED, having=CHANGED)
    with pytest.raises(StoreUnavailable):
        claims.finish(
            claim,
            Outcome(state=State.FAILED, reason="550 no", recipients={0: (State.FAILED, "550 no")}),
        )
    Actions(direct).retry(claim.id)
    assert claims.finish(
        claim,
        Outcome(state=State.FAILED, reason="550 no", recipients={0: (State.FAILED, "550 no")}),
    )
    assert state(outbox, claim.id) == State.QUEUED


def test_an_accounts_trouble_that_is_written_again_counts_once(
    outbox: Outbox, claims: Claims, direct: Database, link: LossyLink
) -> None:
    accounts = Accounts(direct, claims.limits)
    accounts.register()
    claim = fenced(claims, accept(outbox))
    link.at_commit(UNANSWERED, having=CHANGED)
    with pytest.raises(StoreUnavailable):
        claims.finish(replace(claim, is_probe=True), TURNED_AWAY)
    assert claims.finish(replace(claim, is_probe=True), TURNED_AWAY)
    assert [one["failures"] for one in accounts.details()] == [1]
    assert row(outbox, claim.id)["excused"] == 1


def fenced(claims: Claims, id: str) -> Claim:
    claim = claim_one(claims, id)
    assert claims.fence(claim)
    return claim
