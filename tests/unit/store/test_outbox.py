"""The outbox on both databases: accept, claim, fence, finish, release, sweep; and the plans by which SQLite finds the rows."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from sqlalchemy import Connection, event, text

from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import StoreUnavailable
from mailroom.model.ids import new_id
from mailroom.model.message import Address, Message, State
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import upgrade
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import JobEnd, Jobs, JobState, NewJob
from mailroom.store.maintenance.rescue import CRASHES_MAX, Sweeps
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.store.workers import Heartbeat
from tests.services.locked_file import kept_waiting
from tests.services.schema import on_sqlite

LEASE_SECONDS = 600.0  # None runs out by itself, however busy the machine is.
SENT = Outcome(state=State.SENT, reason="250 ok", recipients={0: (State.SENT, "250 ok")})
DEFERRED = Outcome(
    state=State.DEFERRED,
    reason="450 later",
    recipients={0: (State.DEFERRED, "450 later")},
    wait_seconds=60,
)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


@pytest.fixture
def claims(database: Database) -> Claims:
    return worker(database, "worker-1")


@pytest.fixture
def sweeps(database: Database) -> Sweeps:
    return Sweeps(database, LEASE_SECONDS, "resend")


def worker(database: Database, id: str) -> Claims:
    Heartbeat(database, id, f"{id}@host", ["mail"]).beat()
    return Claims(database, id, LEASE_SECONDS)


def accept(outbox: Outbox, *to: str, id: str = "", job: NewJob | None = None) -> str:
    id = id or new_id()
    message = Message(
        to=tuple(Address(address) for address in to or ("bob@example.org",)),
        subject="Hello",
        text="Hi",
    )
    assert outbox.accept(
        NewMessage(id=id, message=message, message_id=f"{id}@example.org", job=job)
    )
    return id


def state(outbox: Outbox, id: str) -> str:
    details = outbox.details(id)
    assert details
    return str(details.row["state"])


def row(outbox: Outbox, id: str) -> dict[str, Any]:
    details = outbox.details(id)
    assert details
    return details.row


def age(database: Database, **seconds: float) -> None:
    """Make rows older: `messages_published_at=60` moves that column a minute into the past."""
    for column, by in seconds.items():
        table, _, name = column.partition("_")
        run(database, f"/* test */ UPDATE {table} SET {name} = {name} - :by", by=int(by * 1000))


def lose(database: Database, owner: str) -> None:
    """Let the lease of a worker run out."""
    run(
        database,
        "/* test */ UPDATE workers SET seen_at = seen_at - 601000 WHERE id = :id",
        id=owner,
    )


def run(database: Database, statement: str, **values: object) -> None:
    def execute(connection: Connection) -> None:
        connection.execute(text(statement), values)

    database.transaction(execute)


def claim_one(claims: Claims, id: str) -> Claim:
    [claim] = claims.claim([id])
    return claim


# --- accept --------------------------------------------------------------------------------------------------------


def test_an_accepted_message_is_there_whole(outbox: Outbox) -> None:
    id = accept(outbox, "bob@example.org", "carol@example.org")
    details = outbox.details(id)
    assert details
    assert details.row["state"] == State.QUEUED
    assert [person["address"] for person in details.recipients] == [
        "bob@example.org",
        "carol@example.org",
    ]
    assert details.now - 600_000 < details.row["created_at"] <= details.now
    assert outbox.details("other") is None


def test_an_id_is_accepted_once_also_when_two_come_at_the_same_time(outbox: Outbox) -> None:
    acceptances = [
        NewMessage(
            id="task-1",
            message=Message(to=(Address("bob@example.org"),)),
            message_id="1@example.org",
        )
    ] * 8
    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(outbox.accept, acceptances)) == [False] * 7 + [True]


def test_ids_are_uuids_that_sort_by_time() -> None:
    ids = [new_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert {(UUID(id).version, UUID(id).variant) for id in ids} == {(7, RFC_4122)}
    assert ids == sorted(ids)


# --- claim ---------------------------------------------------------------------------------------------------------


def test_a_claim_gives_all_that_an_attempt_needs_in_the_order_asked(
    outbox: Outbox, claims: Claims
) -> None:
    ids = [accept(outbox) for _ in range(5)]
    claimed = claims.claim([*reversed(ids), "unknown", ids[0]])
    assert [claim.id for claim in claimed] == ids[::-1]
    assert claimed[0].attempt == 1
    assert claimed[0].message.to == (Address("bob@example.org"),)
    assert claimed[0].message.text == "Hi"
    assert claimed[0].message_id == f"{ids[4]}@example.org"
    assert claimed[0].pending == (0,)
    assert state(outbox, ids[0]) == State.SENDING
    assert claims.claim(ids) == []


def test_a_mail_is_dated_when_it_is_first_tried_and_keeps_that_date(
    outbox: Outbox, claims: Claims, database: Database
) -> None:
    id = accept(outbox)
    run(database, "UPDATE messages SET created_at = created_at - 86400000 WHERE id = :id", id=id)
    first = claim_one(claims, id)
    assert first.first_attempt_at_ms is not None
    assert first.first_attempt_at_ms >= first.created_at_ms + 86_400_000
    run(
        database,
        "UPDATE messages SET first_attempt_at = first_attempt_at - 5000 WHERE id = :id",
        id=id,
    )
    assert claims.release(first)
    assert claim_one(claims, id).first_attempt_at_ms == first.first_attempt_at_ms - 5000


def test_of_twenty_workers_one_gets_the_row(outbox: Outbox, database: Database) -> None:
    everybody = [worker(database, f"worker-{n}") for n in range(20)]
    for _ in range(5):
        ids = [accept(outbox) for _ in range(10)]
        with ThreadPoolExecutor(20) as threads:
            won = list(
                threads.map(
                    lambda claims, ids=ids: [claim.id for claim in claims.claim(ids)], everybody
                )
            )
        assert sorted(id for some in won for id in some) == sorted(ids)


def test_only_queued_rows_are_claimed(outbox: Outbox, claims: Claims, database: Database) -> None:
    job = NewJob(id="job-1", name="simulate", args={}, queue="jobs", timeout_seconds=10)
    assert claims.claim([accept(outbox, job=job)]) == []


# --- fence, finish, release ----------------------------------------------------------------------------------------


def test_the_fence_holds_for_the_owner_alone(
    outbox: Outbox, claims: Claims, database: Database
) -> None:
    claim = claim_one(claims, accept(outbox))
    assert not worker(database, "worker-2").fence(claim)
    assert claims.fence(claim)
    assert state(outbox, claim.id) == State.IN_DATA
    assert not claims.fence(claim)  # once


def test_the_fence_refuses_a_worker_whose_lease_has_run_out(
    outbox: Outbox, claims: Claims, database: Database
) -> None:
    claim = claim_one(claims, accept(outbox))
    lose(database, "worker-1")
    assert not claims.fence(claim)
    assert state(outbox, claim.id) == State.SENDING


def test_the_fence_refuses_an_attempt_that_was_taken_back_and_begun_again_by_the_same_worker(
    outbox: Outbox, claims: Claims, sweeps: Sweeps, database: Database
) -> None:
    stale = claim_one(claims, accept(outbox))
    lose(database, "worker-1")
    assert sweeps.orphans() == 1
    Heartbeat(database, "worker-1", "worker-1@host", ["mail"]).beat()
    fresh = claims.claim_alone(stale.id)
    assert fresh
    assert (stale.attempt, fresh.attempt) == (1, 2)
    assert not claims.fence(stale)
    assert claims.fence(fresh)


def test_finishing_writes_the_message_the_recipients_and_the_timeline(
    outbox: Outbox, claims: Claims
) -> None:
    id = accept(outbox, "bob@example.org", "carol@example.org", "dave@example.org")
    claim = claim_one(claims, id)
    assert claims.fence(claim)
    assert claims.finish(
        claim,
        Outcome(
            state=State.DEFERRED,
            reason="450 later",
            wait_seconds=60,
            recipients={
                0: (State.SENT, "250 ok"),
                1: (State.DEFERRED, "450 later"),
                2: (State.FAILED, "550 no"),
            },
        ),
    )
    details = outbox.details(id)
    assert details
    assert (details.row["state"], details.row["owner"], details.row["reason"]) == (
        State.DEFERRED,
        None,
        "450 later",
    )
    assert 55_000 < details.row["next_attempt_at"] - details.events[0].at < 65_000
    assert [(p["state"], p["reply"]) for p in details.recipients] == [
        ("sent", "250 ok"),
        ("deferred", "450 later"),
        ("failed", "550 no"),
    ]
    assert [(e.event, e.attempt, e.detail) for e in details.events] == [
        ("deferred", 1, "450 later")
    ]
    assert claims.finish(claim, SENT)  # Its end is on record, and stays as it is.
    assert state(outbox, id) == State.DEFERRED


def test_the_next_attempt_is_only_about_those_without_an_outcome(
    outbox: Outbox, claims: Claims, sweeps: Sweeps
) -> None:
    claim = claim_one(claims, accept(outbox, "bob@example.org", "carol@example.org"))
    claims.finish(
        claim,
        Outcome(
            state=State.DEFERRED,
            wait_seconds=0,
            recipients={0: (State.SENT, ""), 1: (State.DEFERRED, "")},
        ),
    )
    assert [nudge.id for nudge in sweeps.due()] == [claim.id]
    again = claim_one(claims, claim.id)
    assert (again.attempt, again.pending, again.sent_before) == (2, (1,), True)


def test_a_reply_that_was_read_counts_even_after_a_sweeper_gave_the_row_back(
    outbox: Outbox, claims: Claims, sweeps: Sweeps, database: Database
) -> None:
    claim = claim_one(claims, accept(outbox))
    assert claims.fence(claim)
    lose(database, "worker-1")
    assert sweeps.orphans() == 1
    assert state(outbox, claim.id) == State.QUEUED
    assert claims.finish(claim, SENT)
    assert state(outbox, claim.id) == State.SENT
    assert worker(database, "worker-2").claim_alone(claim.id) is None


def test_a_reply_does_not_count_when_somebody_else_has_begun(
    outbox: Outbox, claims: Claims, sweeps: Sweeps, database: Database
) -> None:
    claim = claim_one(claims, accept(outbox))
    lose(database, "worker-1")
    sweeps.orphans()
    assert worker(database, "worker-2").claim_alone(claim.id)
    assert not claims.finish(claim, SENT)
    assert state(outbox, claim.id) == State.SENDING


def test_a_released_row_is_queued_again_and_the_attempt_does_not_count(
    outbox: Outbox, claims: Claims
) -> None:
    claim = claim_one(claims, accept(outbox))
    assert claims.release(claim)
    assert claims.release(claim)  # as after a commit that got no answer
    assert (row(outbox, claim.id)["state"], row(outbox, claim.id)["given_back"]) == (
        State.QUEUED,
        1,
    )
    fenced = claim_one(claims, claim.id)
    assert (fenced.attempt, fenced.counted) == (2, 1)
    assert claims.fence(fenced)
    # as after a fence whose commit got no answer: the payload was not sent
    assert claims.release(fenced)
    assert state(outbox, claim.id) == State.QUEUED


def test_many_fences_and_outcomes_in_one_commit_each_get_their_own_answer(
    outbox: Outbox, claims: Claims, database: Database
) -> None:
    mine = claims.claim([accept(outbox) for _ in range(40)])
    stranger = worker(database, "worker-2")
    theirs = stranger.claim([accept(outbox) for _ in range(10)])
    with ThreadPoolExecutor(50) as threads:
        passed = list(threads.map(claims.fence, [*mine, *theirs]))
        assert passed == [True] * 40 + [False] * 10
        outcomes = [SENT if n % 2 else DEFERRED for n in range(40)]
        assert list(threads.map(claims.finish, mine, outcomes)) == [True] * 40
    assert [state(outbox, claim.id) for claim in mine] == [outcome.state for outcome in outcomes]


def test_a_row_that_is_ours_and_in_nobodys_hand_is_given_back(
    outbox: Outbox, claims: Claims, sweeps: Sweeps, database: Database
) -> None:
    kept = claim_one(claims, accept(outbox))
    lost = accept(outbox)
    # As after a commit whose answer did not come through: the row is ours, and no thread knows.
    run(
        database,
        "/* test */ UPDATE messages SET state = 'sending', owner = 'worker-1', attempt = 1 WHERE id = :id",
        id=lost,
    )
    assert sweeps.abandoned(claims) == 1
    assert (
        row(outbox, lost)["state"],
        row(outbox, lost)["attempt"],
        row(outbox, lost)["published_at"],
    ) == (
        State.QUEUED,
        1,
        None,
    )
    assert state(outbox, kept.id) == State.SENDING
    assert claims.fence(kept)
    assert claims.finish(kept, SENT)
    assert sweeps.abandoned(claims) == 0


def test_nothing_is_abandoned_while_threads_claim_and_finish(
    outbox: Outbox, claims: Claims, sweeps: Sweeps
) -> None:
    ids = [accept(outbox) for _ in range(60)]

    def work(id: str) -> bool:
        claim = claim_one(claims, id)
        return claims.fence(claim) and claims.finish(claim, SENT)

    with ThreadPoolExecutor(9) as threads:
        given_back = [threads.submit(sweeps.abandoned, claims) for _ in range(40)]
        assert all(threads.map(work, ids))
        assert sum(count.result() for count in given_back) == 0
    assert not claims._in_hand


# --- sweep ---------------------------------------------------------------------------------------------------------


def test_a_deferred_row_comes_due_once(
    outbox: Outbox, claims: Claims, sweeps: Sweeps, database: Database
) -> None:
    claim = claim_one(claims, accept(outbox))
    claims.finish(claim, DEFERRED)
    assert sweeps.due() == []
    age(database, messages_next_attempt_at=61)
    with ThreadPoolExecutor(4) as threads:
        found = [
            nudge.id for nudges in threads.map(lambda _: sweeps.due(), range(4)) for nudge in nudges
        ]
    assert found == [claim.id]
    assert (row(outbox, claim.id)["state"], row(outbox, claim.id)["next_attempt_at"]) == (
        State.QUEUED,
        None,
    )


def test_a_row_that_was_never_published_is_found_after_a_while(
    outbox: Outbox, sweeps: Sweeps, database: Database
) -> None:
    id = accept(outbox)
    assert sweeps.unpublished() == []
    age(database, messages_created_at=6)
    assert [nudge.id for nudge in sweeps.unpublished()] == [id]
    assert sweeps.unpublished() == []
    sweeps.unpublish([id])
    assert [nudge.id for nudge in sweeps.unpublished()] == [id]


def test_what_is_under_way_is_published_or_owned_and_not_done(
    outbox: Outbox, claims: Claims, sweeps: Sweeps
) -> None:
    _, published, claimed, sent = (accept(outbox) for _ in range(4))
    outbox.mark_published([published, claimed, sent])
    assert sweeps.under_way(100) == 3
    *_, last = claims.claim([claimed, sent])
    assert sweeps.under_way(100) == 3
    claims.fence(last)
    claims.finish(last, Outcome(state=State.SENT))
    assert sweeps.under_way(100) == 2
    assert sweeps.under_way(1) == 1


def test_a_published_row_is_published_again_when_its_nudge_is_lost(
    outbox: Outbox, sweeps: Sweeps, database: Database
) -> None:
    id = accept(outbox)
    outbox.mark_published([id])
    age(database, messages_published_at=11)
    assert sweeps.lost() == sweeps.lost(empty_queues=["mail.bulk"]) == []
    assert [nudge.id for nudge in sweeps.lost(empty_queues=["mail.bulk", "mail"])] == [id]
    assert sweeps.lost(empty_queues=["mail.bulk", "mail"]) == []
    age(database, messages_published_at=16 * 60)
    assert [nudge.id for nudge in sweeps.lost()] == [id]


def test_nothing_is_taken_from_a_worker_that_is_seen(
    outbox: Outbox, claims: Claims, sweeps: Sweeps
) -> None:
    claim = claim_one(claims, accept(outbox))
    assert sweeps.orphans() == 0
    assert claims.fence(claim)
    assert sweeps.orphans() == 0


@pytest.mark.parametrize(("policy", "then"), [("resend", State.QUEUED), ("hold", State.UNCERTAIN)])
def test_past_the_fence_a_dead_workers_row_is_uncertain(
    outbox: Outbox, claims: Claims, database: Database, policy: str, then: State
) -> None:
    claim = claim_one(claims, accept(outbox))
    assert claims.fence(claim)
    lose(database, "worker-1")
    assert Sweeps(database, LEASE_SECONDS, policy).orphans() == 1
    details = outbox.details(claim.id)
    assert details
    assert (details.row["state"], details.row["uncertain_attempts"], details.row["owner"]) == (
        then,
        1,
        None,
    )
    assert [e.event for e in details.events] == ["uncertain"]
    assert details.recipients[0]["state"] == then


def test_a_worker_that_stopped_loses_its_rows_at_once(
    outbox: Outbox, claims: Claims, sweeps: Sweeps, database: Database
) -> None:
    claim = claim_one(claims, accept(outbox))
    Heartbeat(database, "worker-1", "", []).stop()
    assert sweeps.orphans() == 1
    assert state(outbox, claim.id) == State.QUEUED


def test_a_mail_that_kills_its_workers_is_claimed_alone_and_fails_in_the_end(
    outbox: Outbox, sweeps: Sweeps, database: Database
) -> None:
    id, neighbour = accept(outbox), accept(outbox)
    assert len(worker(database, "first").claim([id, neighbour])) == 2
    lose(database, "first")
    sweeps.orphans()
    for death in range(CRASHES_MAX):
        assert state(outbox, id) == State.QUEUED
        victim = worker(database, f"victim-{death}")
        assert victim.claim([id, neighbour]) == victim.claim([id]) == []
        assert victim.suspect(id)
        assert victim.claim_alone(id)
        lose(database, f"victim-{death}")
        sweeps.orphans()
    details = outbox.details(id)
    assert details
    assert (details.row["state"], details.row["reason"]) == (
        State.FAILED,
        "crashed: 5 workers died with it alone",
    )
    assert details.recipients[0]["state"] == State.FAILED
    survivor = worker(database, "survivor")
    rescued = survivor.claim_alone(neighbour)
    assert rescued
    assert survivor.fence(rescued)
    assert survivor.finish(rescued, SENT)
    assert not survivor.suspect(accept(outbox))


def test_a_row_of_our_own_whose_fate_nobody_knows_is_uncertain(
    outbox: Outbox, claims: Claims, sweeps: Sweeps, database: Database
) -> None:
    lost = accept(outbox)
    run(
        database,
        "/* test */ UPDATE messages SET state = 'in_data', owner = 'worker-1', attempt = 1 WHERE id = :id",
        id=lost,
    )
    assert sweeps.abandoned(claims) == 1
    assert (
        row(outbox, lost)["state"],
        row(outbox, lost)["uncertain_attempts"],
        row(outbox, lost)["crashes"],
    ) == (State.QUEUED, 1, 0)


def test_a_process_that_is_alone_takes_over_at_once(
    outbox: Outbox, claims: Claims, sweeps: Sweeps, database: Database
) -> None:
    claim = claim_one(claims, accept(outbox))
    Heartbeat(database, "worker-2", "", []).stop_others()
    assert sweeps.orphans() == 1
    assert state(outbox, claim.id) == State.QUEUED


def test_a_broker_in_memory_forgets_its_nudges(
    outbox: Outbox, sweeps: Sweeps, database: Database
) -> None:
    id = accept(outbox)
    outbox.mark_published([id])
    sweeps.forget_nudges()
    age(database, messages_created_at=6)
    assert [nudge.id for nudge in sweeps.unpublished()] == [id]


@pytest.mark.parametrize("touched", [State.HELD, State.CANCELED, State.EXPIRED, State.SCHEDULED])
def test_a_reply_that_takes_the_mail_counts_whatever_a_person_did_to_the_row_since(
    outbox: Outbox, claims: Claims, sweeps: Sweeps, database: Database, touched: State
) -> None:
    claim = claim_one(claims, accept(outbox))
    assert claims.fence(claim)
    lose(database, "worker-1")
    assert sweeps.orphans() == 1
    run(database, f"/* test */ UPDATE messages SET state = '{touched}' WHERE id = '{claim.id}'")
    assert not claims.finish(claim, DEFERRED)
    assert claims.finish(claim, SENT)
    assert state(outbox, claim.id) == State.SENT


def test_a_message_that_has_expired_is_not_claimed(
    outbox: Outbox, claims: Claims, database: Database
) -> None:
    late, soon = accept(outbox), accept(outbox)
    run(database, f"/* test */ UPDATE messages SET expires_at = 1 WHERE id = '{late}'")
    assert [claim.id for claim in claims.claim([late, soon])] == [soon]


# --- plans ---------------------------------------------------------------------------------------------------------


def test_every_statement_finds_its_rows_by_an_index(sqlite_url: str) -> None:
    """A wrong index costs 600 µs a mail and more at 300,000 rows, where the right one costs 8."""
    database = Database(sqlite_url)
    upgrade(database)
    seen: list[tuple[str, Any]] = []

    def note(
        connection: object,
        cursor: object,
        statement: str,
        parameters: Any,
        context: object,
        many: bool,
    ) -> None:
        seen.append((statement, parameters[0] if many else parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    outbox, claims, sweeps = (
        Outbox(database),
        worker(database, "worker-1"),
        Sweeps(database, LEASE_SECONDS, "resend"),
    )
    one, two = accept(outbox), accept(outbox)
    job = NewJob(id="job-1", name="simulate", args={}, queue="jobs", timeout_seconds=1)
    accept(outbox, job=job)
    outbox.mark_published([one, two])
    first, second = claims.claim([one, two])
    assert claims.fence(first)
    claims.finish(first, DEFERRED)
    claims.release(second)
    outbox.mark_published([two])
    age(database, messages_next_attempt_at=61, messages_created_at=60, messages_published_at=3600)
    assert len(sweeps.due()) == 1
    assert sweeps.unparked(10, {"default": 10}) == []
    assert len(sweeps.lost(empty_queues=["mail"])) == 1
    sweeps.unpublish([one, two])
    assert len(sweeps.unpublished()) == 2
    outbox.details(one)
    jobs, runs = Jobs(database, LEASE_SECONDS), JobClaims(database, "worker-1", LEASE_SECONDS)
    [claim] = runs.claim("jobs", ["simulate"], limit=5)
    runs.progress(claim, 0.5, "half")
    assert runs.taken_away() == set()
    runs.finish(claim, JobEnd(state=JobState.SUCCEEDED))
    assert (
        jobs.details("job-1")
        and jobs.page(limit=5, before=(9**15, "x"))
        and jobs.cancel("job-1")
        and not jobs.file("job-1")
    )
    assert outbox.message_of("job-1")
    claim_one(claims, one)
    lose(database, "worker-1")
    assert sweeps.orphans() == 1
    looked_up = 0
    for statement, parameters in seen:
        if statement.split()[0] not in ("SELECT", "UPDATE") or "identity" in statement:
            continue
        with database.engine.connect() as connection:
            plan = [
                step[3]
                for step in connection.exec_driver_sql(
                    f"EXPLAIN QUERY PLAN {statement}", parameters
                )
            ]
        # Workers, accounts and webhooks are few; the owners of rows are read from an index that holds only owned ones.
        few = (
            "workers",
            "accounts",
            "webhooks",
            "messages_parked",
            "CONSTANT",
            "found",
            "(subquery",
            "json_each",
            "given",
        )
        whole = [
            step for step in plan if step.startswith("SCAN") and not any(one in step for one in few)
        ]
        assert whole == [], (statement, plan)
        if "messages.id IN (?" in statement or "messages.id = json_extract" in statement:
            assert "SEARCH messages USING PRIMARY KEY (id=?)" in plan, (statement, plan)
            looked_up += 1
    assert looked_up > 10
    assert len(seen) > 40
    database.close()


@on_sqlite
def test_no_worker_is_taken_for_dead_as_the_database_comes_back(
    database: Database, outbox: Outbox
) -> None:
    # Given a worker with a mail, and a lease of which half is over soon
    id, lease_seconds = accept(outbox), 0.2
    claim_one(worker(database, "worker-1"), id)
    age(database, workers_seen_at=60)
    # When a sweeper has to wait for the database, as all heartbeats do
    judge = Sweeps(database, lease_seconds, "resend").orphans
    # Then nobody is judged by what was written before
    with pytest.raises(StoreUnavailable, match="was away"):
        kept_waiting(database, judge, seconds=lease_seconds)
    assert state(outbox, id) == State.SENDING


def test_a_worker_does_not_take_itself_for_dead(
    database: Database, outbox: Outbox, claims: Claims, sweeps: Sweeps
) -> None:
    # Its sweep can be the first to write after a pause, before its own heartbeat.
    id = accept(outbox)
    claim_one(claims, id)
    lose(database, "worker-1")
    assert sweeps.orphans(besides="worker-1") == 0
    assert state(outbox, id) == State.SENDING
    assert sweeps.orphans(besides="worker-2") == 1
