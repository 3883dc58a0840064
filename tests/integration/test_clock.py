"""The database's clock is set: nothing that waits is stuck, nothing goes early, and it is told."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection as Broker
from sqlalchemy import select

from mailroom.broker.publisher import Publisher
from mailroom.model.account import AccountError, AccountState, SendingLimit
from mailroom.model.attempt import Outcome
from mailroom.model.ids import new_id
from mailroom.model.message import Address, Message, SendOptions, State
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.events.counters import Counters
from mailroom.store.events.deliveries import DeliveryResult, WebhookDeliveries
from mailroom.store.events.queue_history import QueueHistory
from mailroom.store.events.webhooks import Webhooks
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import JobEnd, Jobs, JobState, NewJob
from mailroom.store.maintenance.clock import Clock
from mailroom.store.maintenance.expiry import Expiry
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.maintenance.retention import Retention
from mailroom.store.messages.actions import Actions
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.store.workers import Heartbeat
from mailroom.worker.sweeper import Sweeper
from tests.services import wait_until
from tests.services.clocks import MovableClock
from tests.services.processes import service
from tests.services.smtpd import ScriptedSMTP
from tests.unit.store.test_lookups import judge, lose_reply, states

HOUR = 3600
LEASE_SECONDS = 20.0
#: Longer than each wait of these tests.
PAST = 70
IsOver = Callable[[], object]


@pytest.fixture
def clock(database_url: str) -> Iterator[MovableClock]:
    """A clock that goes on only as the test says."""
    made = MovableClock(database_url)
    yield made
    made.close()


@pytest.fixture
def moved(clock: MovableClock) -> Database:
    database = clock.open()
    Clock(database).watch()
    return database


def accept(database: Database, **terms: int) -> str:
    id = new_id()
    message = Message(to=(Address("bob@example.org"),), subject="Hello", text="Hi")
    assert Outbox(database).accept(
        NewMessage(
            id=id, message=message, message_id=f"{id}@example.org", terms=SendOptions(**terms)
        )
    )
    return id


def claims_of(database: Database, worker: str) -> Claims:
    Heartbeat(database, worker, f"{worker}@host", ["mail"]).beat()
    return Claims(database, worker, LEASE_SECONDS)


def sweeps(database: Database) -> Sweeps:
    return Sweeps(database, LEASE_SECONDS, "resend")


def now(database: Database) -> int:
    return database.read(lambda connection: connection.scalar(select(now_ms())) or 0)


def row(database: Database, id: str) -> dict[str, Any]:
    standing = Outbox(database).details(id)
    assert standing
    return standing.row


# --- what waits ---------------------------------------------------------------------------------------------


def deferred(database: Database) -> IsOver:
    claims = claims_of(database, "worker-1")
    [claim] = claims.claim([accept(database)])
    assert claims.finish(
        claim,
        Outcome(
            state=State.DEFERRED,
            reason="450 later",
            recipients={0: (State.DEFERRED, "450 later")},
            wait_seconds=60,
        ),
    )
    return sweeps(database).due


def delayed(database: Database) -> IsOver:
    accept(database, delay=60_000)
    return sweeps(database).due


def rescheduled(database: Database) -> IsOver:
    Actions(database).reschedule(
        accept(database, scheduled_at=now(database) + 10 * HOUR * 1000), delay_seconds=60
    )
    return sweeps(database).due


def unpublished(database: Database) -> IsOver:
    accept(database)
    return sweeps(database).unpublished


def lost(database: Database) -> IsOver:
    Outbox(database).mark_published([accept(database)])
    return lambda: sweeps(database).lost(empty_queues=["mail"])


def dead(database: Database) -> IsOver:
    """A row of a worker that is seen no more."""
    claims_of(database, "dead").claim([accept(database)])
    return sweeps(database).orphans


def job(database: Database) -> IsOver:
    Heartbeat(database, "worker-1", "worker-1@host", ["jobs"]).beat()
    runs = JobClaims(database, "worker-1", LEASE_SECONDS)
    Jobs(database, LEASE_SECONDS).accept(
        NewJob(
            id=new_id(), name="simulate", args={}, queue="jobs", timeout_seconds=10, max_attempts=9
        )
    )
    [claim] = runs.claim("jobs", ["simulate"], limit=1)
    runs.finish(claim, JobEnd(state=JobState.FAILED, error="ValueError", wait_seconds=60))
    return lambda: runs.claim("jobs", ["simulate"], limit=1)


def delivery(database: Database) -> IsOver:
    hooks, told = Webhooks(database), WebhookDeliveries(database, "worker-1", LEASE_SECONDS)
    hooks.test(hooks.create("https://hook.example.org/"))
    due = told.claim()
    assert due and told.finish(due, DeliveryResult(code=500, wait_seconds=60))
    return told.is_due


def account(database: Database) -> IsOver:
    """One that a server has turned away for a minute, with a mail that waits for it."""
    accounts = Accounts(database, [SendingLimit(account="default")])
    accounts.register()
    claims = claims_of(database, "worker-1")
    [claim] = claims.claim([accept(database)])
    account_error = AccountError(state=AccountState.PAUSED, reason="421 later", waits=(60.0,))
    assert claims.finish(
        claim,
        Outcome(
            state=State.DEFERRED,
            reason="421 later",
            recipients={0: (State.DEFERRED, "421 later")},
            account_error=account_error,
        ),
    )
    return lambda: sweeps(database).unparked(9, accounts.capacity())


@pytest.mark.parametrize(
    "wait", [deferred, delayed, rescheduled, unpublished, lost, dead, job, delivery, account]
)
def test_what_waits_waits_no_longer_as_the_clock_is_set_back(
    clock: MovableClock, moved: Database, wait: Callable[[Database], IsOver]
) -> None:
    is_over = wait(moved)
    assert not is_over()
    clock.move(-HOUR)
    Clock(moved).watch()
    assert not is_over()
    clock.move(PAST)
    assert is_over()


@pytest.mark.parametrize("seconds", [-HOUR, -1])
def test_a_moment_that_a_client_named_stays_what_it_is(
    clock: MovableClock, moved: Database, seconds: int
) -> None:
    id = accept(moved, scheduled_at=now(moved) + 60_000, expires_at=now(moved) + 2 * HOUR * 1000)
    before = row(moved, id)
    clock.move(seconds)
    Clock(moved).watch()
    after = row(moved, id)
    assert {name: before[name] for name in ("next_attempt_at", "expires_at")} == {
        name: after[name] for name in ("next_attempt_at", "expires_at")
    }
    clock.move(PAST)
    assert bool(sweeps(moved).due()) is (seconds == -1)


def test_a_step_while_nothing_ran_is_noticed_at_the_next_start(
    clock: MovableClock, moved: Database
) -> None:
    is_over = deferred(moved)
    clock.move(-HOUR + 30)  # Half a minute after the last look.
    Clock(clock.open()).watch()
    clock.move(PAST)
    assert is_over()


def test_processes_that_notice_it_together_move_what_waits_once(
    clock: MovableClock, moved: Database
) -> None:
    id = accept(moved, delay=60_000)
    before = row(moved, id)["next_attempt_at"]
    clock.move(-HOUR)
    clocks = [Clock(clock.open()) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(Clock.watch, clocks))
    assert abs(row(moved, id)["next_attempt_at"] - (before - HOUR * 1000)) <= 1
    assert Clock(moved).watch() == now(moved)


def test_what_ended_keeps_its_times_and_what_waits_its_age(
    clock: MovableClock, moved: Database
) -> None:
    claims = claims_of(moved, "worker-1")
    ended, waits = accept(moved), accept(moved)
    [claim] = claims.claim([ended])
    assert claims.finish(
        claim, Outcome(state=State.SENT, reason="250 ok", recipients={0: (State.SENT, "250 ok")})
    )
    before = row(moved, ended)
    clock.move(30)
    Clock(moved).watch()
    QueueHistory(moved, LEASE_SECONDS).record()
    clock.move(-HOUR)
    Clock(moved).watch()
    assert row(moved, ended) == before
    assert round(Counters(moved).depths(LEASE_SECONDS).oldest_seconds) == 30
    assert abs(now(moved) - row(moved, waits)["created_at"] - 30_000) <= 1
    # Else there would be none of this hour.
    assert QueueHistory(moved, LEASE_SECONDS).since(now(moved) // 60_000) == []


def test_a_worker_that_lives_keeps_what_it_has(clock: MovableClock, moved: Database) -> None:
    claims = claims_of(moved, "worker-1")
    [claim] = claims.claim([accept(moved)])
    clock.move(-HOUR)
    Clock(moved).watch()
    assert sweeps(moved).orphans() == 0
    assert claims.fence(claim)


def test_a_leap_ahead_makes_no_worker_dead(clock: MovableClock, moved: Database) -> None:
    # Given a worker with a mail, and the sweeper of another
    other = claims_of(moved, "other")
    [claim] = other.claim([accept(moved)])
    sweeper = a_sweeper(moved)
    sweeper.sweep()
    # When the clock leaps, so that nobody was seen for an hour
    clock.move(HOUR)
    sweeper.sweep()
    # Then nobody is judged before he could say that he lives
    assert row(moved, claim.id)["owner"] == "other"

    # And who does not say so then is dead all the same
    def is_given_back() -> bool:
        sweeper.sweep()
        return row(moved, claim.id)["owner"] is None

    wait_until(is_given_back, 60, what="its rows are given back")


def test_a_machine_that_slept_looks_before_it_gives_a_look_up(
    clock: MovableClock, moved: Database
) -> None:
    # Given a mail that is looked for in the Sent folder, when the machine goes to sleep
    claims = claims_of(moved, "worker-1")
    id = lose_reply(moved, claims, judge=judge())
    sweeper = a_sweeper(moved)
    sweeper.sweep()
    # When it wakes, then the mailbox gets the time to be read
    clock.move(HOUR)
    sweeper.sweep()
    assert states(moved, id)[0] == "deferred"
    # And if it cannot be read, the look is given up.
    sweeper._gives_up_from = 0
    sweeper.sweep()
    assert states(moved, id)[0] == "queued"


def test_a_step_in_the_first_second_of_the_first_worker_is_noticed(clock: MovableClock) -> None:
    database = clock.open()
    sweeper = a_sweeper(database)
    sweeper.start()
    clock.move(-HOUR)
    wait_until(
        lambda: Clock(database).trouble().startswith("set back by 3,"), 60, what="it is told"
    )
    sweeper.stop()


def a_sweeper(database: Database) -> Sweeper:
    """One that a test has do its rounds; its lease is short, so that it judges soon again."""
    publisher = Publisher(
        Broker,
        lambda producer, queue, ids: None,
        on_confirmed=lambda queue, ids, ago: None,
        on_unpublished=lambda ids: None,
        polled_queues=["mail"],
    )
    heartbeat = Heartbeat(database, "sweeping", "sweeping@host", ["mail"])
    heartbeat.beat()
    return Sweeper(
        Clock(database),
        Sweeps(database, 1.0, "resend"),
        Claims(database, "sweeping", 1.0),
        heartbeat,
        JobClaims(database, "sweeping", 1.0),
        Accounts(database, [SendingLimit(account="default")]),
        Expiry(database),
        Retention(database, 0),
        publisher,
        lambda: None,
        lambda: None,
        1.0,
        10,
    )


# --- what is told -------------------------------------------------------------------------------------------


def test_a_step_is_told_for_a_day(clock: MovableClock, moved: Database) -> None:
    told = Clock(moved)
    assert told.trouble() == ""
    clock.move(-HOUR)
    assert told.trouble() == "set back by 3,600 s; what waits is moved by that in a moment"
    told.watch()
    assert told.trouble().startswith("set back by 3,600 s at 20") and told.trouble().endswith(
        "Z; what waited was moved by that"
    )
    clock.move(23 * HOUR)
    assert told.trouble()
    clock.move(2 * HOUR)
    assert told.trouble() == ""


def test_a_mail_that_waits_goes_as_the_clock_of_postgresql_is_set_back(
    tmp_path: Path,
    postgres_url: str,
    broker_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    clock = MovableClock(postgres_url, is_stopped=False)
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=postgres_url, **to_smtpd) as made:
        made.web()
        made.worker()
        smtpd.reply("RCPT", "450 4.2.1 later", times=1)
        delayed, refused = made.post("/v1/messages", delay=2), made.post("/v1/messages")
        wait_until(lambda: made.message(refused)["status"] == "deferred", 60, what="it is deferred")
        clock.move(-HOUR)
        assert [made.final(id, timeout=60)["status"] for id in (delayed, refused)] == [
            "sent",
            "sent",
        ]
        wait_until(
            lambda: made.get("/readyz")["checks"]["clock"].startswith("set back by 3,"),
            60,
            what="it is told",
        )
        assert made.get("/readyz")["status"] == "ok"
    clock.close()
