"""Jobs in the outbox, on both databases: accept, claim, progress, finish, try again, cancel; and what becomes of their mail."""

import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text

from mailroom.model.ids import new_id
from mailroom.model.message import Address, Attachment, Message, State
from mailroom.store.db.database import Database
from mailroom.store.jobs.claims import JobClaim, JobClaims
from mailroom.store.jobs.jobs import FINAL, JobEnd, Jobs, JobState, NewJob, NotifyOn
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.store.workers import Heartbeat

LEASE_SECONDS = 600.0  # None runs out by itself, however busy the machine is.
SUCCEEDED = JobEnd(state=JobState.SUCCEEDED, result='{"n": 1}')
FAILED = JobEnd(state=JobState.FAILED, error="ValueError: no")


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database, LEASE_SECONDS)


@pytest.fixture
def runs(database: Database) -> JobClaims:
    return worker(database, "worker-1")


def worker(database: Database, id: str) -> JobClaims:
    Heartbeat(database, id, f"{id}@host", ["jobs", "coffee"]).beat()
    return JobClaims(database, id, LEASE_SECONDS)


def new(name: str = "simulate", **more: Any) -> NewJob:
    return NewJob(
        **{
            "id": new_id(),
            "name": name,
            "args": {"seconds": 1},
            "queue": "jobs",
            "timeout_seconds": 10,
            **more,
        }
    )


def waiting(database: Database, job: NewJob, *, template: bool = False) -> str:
    """Accept a mail that waits for this job, and return its id."""
    id = new_id()
    message = Message(
        to=(Address("bob@example.org"),), subject="Hello", text="Hi", template=template
    )
    assert Outbox(database).accept(
        NewMessage(id=id, message=message, message_id=f"{id}@example.org", job=job)
    )
    return id


def claim(runs: JobClaims, *names: str, queue: str = "jobs") -> JobClaim:
    [one] = runs.claim(queue, names or ("simulate",), limit=1)
    return one


def details(jobs: Jobs, id: str) -> Any:
    found = jobs.details(id)
    assert found
    return found


def mail(database: Database, id: str) -> Any:
    found = Outbox(database).details(id)
    assert found
    return found.row


def run(database: Database, statement: str) -> None:
    def work(connection: Connection) -> None:
        connection.execute(text(statement))

    database.transaction(work)


def lose(database: Database, id: str) -> None:
    run(database, f"UPDATE workers SET seen_at = seen_at - 601000 WHERE id = '{id}'")


# --- claim ---------------------------------------------------------------------------------------------------------


def test_a_message_awaits_the_queue_of_its_job_until_that_runs(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    coffee = new("coffee", queue="coffee")
    first, second = waiting(database, new()), waiting(database, coffee)
    assert (jobs.awaited([first]), jobs.awaited([first, second])) == ({"jobs"}, {"jobs", "coffee"})
    claim(runs)
    assert jobs.awaited([first, second]) == {"coffee"}
    jobs.cancel(coffee.id)
    assert (jobs.awaited([first, second]), jobs.awaited([new_id()]), jobs.awaited([])) == (
        set(),
        set(),
        set(),
    )


def test_a_claim_takes_the_oldest_of_its_queue_and_types(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    ids = [
        job.id
        for job in (new(), new("brew"), new(queue="coffee"), new(), new())
        if jobs.accept(job)
    ]
    assert runs.claim("jobs", [], limit=5) == []
    assert runs.claim("tea", ["simulate"], limit=5) == []
    assert [one.id for one in runs.claim("jobs", ["simulate"], limit=2)] == [ids[0], ids[3]]
    assert [one.id for one in runs.claim("jobs", ["simulate", "brew"], limit=5)] == [ids[1], ids[4]]
    assert claim(runs, queue="coffee").id == ids[2]
    assert details(jobs, ids[0]).row["state"] == JobState.RUNNING


def test_a_claim_has_all_that_running_it_needs(jobs: Jobs, runs: JobClaims) -> None:
    jobs.accept(new(args={"n": [1, "ü"]}, timeout_seconds=1.5, max_attempts=3, retry="1s, 2s"))
    one = claim(runs)
    assert (
        one.args,
        one.attempt,
        one.timeout_seconds,
        one.max_attempts,
        one.retry,
        one.is_last,
    ) == (
        {"n": [1, "ü"]},
        1,
        1.5,
        3,
        "1s, 2s",
        False,
    )


def test_a_job_is_run_by_one_of_many_workers(database: Database, jobs: Jobs) -> None:
    ids = [job.id for job in (new() for _ in range(20)) if jobs.accept(job)]
    everybody = [worker(database, f"worker-{n}") for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        claimed = [
            one.id
            for found in threads.map(
                lambda runs: [runs.claim("jobs", ["simulate"], limit=3) for _ in range(10)],
                everybody,
            )
            for ones in found
            for one in ones
        ]
    assert sorted(claimed) == sorted(ids)


def test_progress_is_told_until_the_end(jobs: Jobs, runs: JobClaims) -> None:
    jobs.accept(new())
    one = claim(runs)
    assert runs.progress(one, 0.25, "step 1")
    row = details(jobs, one.id).row
    assert (row["progress"], row["step"]) == (250, "step 1")
    assert runs.finish(one, SUCCEEDED) == []
    assert not runs.progress(one, 0.5, "late")
    assert (details(jobs, one.id).row["progress"], details(jobs, one.id).row["result"]) == (
        1000,
        '{"n": 1}',
    )


# --- what becomes of the mail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notify_on", "end", "state", "reason"),
    [
        (NotifyOn.SUCCESS, SUCCEEDED, State.QUEUED, None),
        (NotifyOn.BOTH, SUCCEEDED, State.QUEUED, None),
        (NotifyOn.FAILURE, SUCCEEDED, State.CANCELED, "its job succeeded, and it is for a failure"),
        (NotifyOn.SUCCESS, FAILED, State.FAILED, "its job failed: ValueError: no"),
        (NotifyOn.BOTH, FAILED, State.QUEUED, None),
        (NotifyOn.FAILURE, FAILED, State.QUEUED, None),
        (NotifyOn.FAILURE, JobEnd(state=JobState.TIMED_OUT, error="killed"), State.QUEUED, None),
        (
            NotifyOn.SUCCESS,
            JobEnd(state=JobState.TIMED_OUT, error="killed"),
            State.FAILED,
            "its job timed_out: killed",
        ),
    ],
)
def test_a_mail_goes_at_the_end_it_is_for(
    database: Database,
    runs: JobClaims,
    notify_on: NotifyOn,
    end: JobEnd,
    state: State,
    reason: str | None,
) -> None:
    id = waiting(database, new(notify_on=notify_on))
    one = claim(runs)
    assert runs.finish(one, end) == ([id] if state is State.QUEUED else [])
    assert (mail(database, id)["state"], mail(database, id)["reason"]) == (state, reason)
    assert runs.finish(one, end) is None


def test_a_claimed_mail_that_is_a_template_brings_what_its_job_made(
    database: Database, runs: JobClaims
) -> None:
    id = waiting(database, new(notify_on=NotifyOn.BOTH), template=True)
    plain = waiting(database, new())
    made = Attachment("cat.png", "image/png", b"\x89PNG")
    for one in runs.claim("jobs", ["simulate"], limit=2):
        runs.finish(one, JobEnd(state=JobState.SUCCEEDED, result='{"width": 7}', file=made))
    mails = {one.id: one for one in Claims(database, "worker-1", LEASE_SECONDS).claim([id, plain])}
    facts = mails[id].job
    assert facts
    assert (facts.name, facts.status, facts.result, facts.error, facts.file) == (
        "simulate",
        "succeeded",
        {"width": 7},
        "",
        made,
    )
    assert 0 <= facts.seconds < 600
    assert mails[plain].job is None


# --- attempts ------------------------------------------------------------------------------------------------------


def test_a_job_that_may_is_tried_again_when_its_time_comes(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    id = waiting(database, new(max_attempts=2))
    one = claim(runs)
    assert (
        runs.finish(one, JobEnd(state=JobState.FAILED, error="ValueError: no", wait_seconds=60))
        == []
    )
    row = details(jobs, one.id).row
    assert (row["state"], row["error"]) == (JobState.QUEUED, "ValueError: no")
    assert 50_000 < row["next_attempt_at"] - details(jobs, one.id).now <= 60_000
    assert runs.claim("jobs", ["simulate"], limit=1) == []
    run(database, "UPDATE jobs SET next_attempt_at = next_attempt_at - 60000")
    again = claim(runs)
    assert (again.id, again.attempt, again.is_last) == (one.id, 2, True)
    assert mail(database, id)["state"] == State.WAITING
    assert runs.finish(again, SUCCEEDED) == [id]
    timeline = [
        (event["event"], event["attempt"], event["detail"])
        for event in details(jobs, one.id).events
    ]
    assert timeline == [("job attempt failed", 1, "ValueError: no"), ("job succeeded", 2, None)]


@pytest.mark.parametrize(
    ("max_attempts", "notify_on", "job_state", "mail_state"),
    [
        (2, NotifyOn.BOTH, JobState.QUEUED, State.WAITING),
        (1, NotifyOn.SUCCESS, JobState.FAILED, State.FAILED),
        (1, NotifyOn.BOTH, JobState.FAILED, State.QUEUED),
    ],
)
def test_a_dead_workers_job_runs_again_if_it_may_and_else_ends_with_its_mail(
    database: Database,
    jobs: Jobs,
    runs: JobClaims,
    max_attempts: int,
    notify_on: NotifyOn,
    job_state: JobState,
    mail_state: State,
) -> None:
    id = waiting(database, new(max_attempts=max_attempts, notify_on=notify_on))
    one = claim(runs)
    assert runs.orphans() == []
    lose(database, "worker-1")
    assert worker(database, "worker-2").orphans() == ([id] if mail_state is State.QUEUED else [])
    row = details(jobs, one.id).row
    assert (row["state"], row["error"], mail(database, id)["state"]) == (
        job_state,
        "the worker that ran it died",
        mail_state,
    )
    assert runs.finish(one, SUCCEEDED) is None


def test_a_released_job_waits_for_another_worker(jobs: Jobs, runs: JobClaims) -> None:
    jobs.accept(new())
    assert runs.release(claim(runs))
    again = claim(runs)
    assert (again.attempt, again.counted, again.is_last) == (2, 1, True)


def test_a_job_of_ours_that_no_thread_runs_is_queued_again_at_the_second_look(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    lost, running = new(), new()
    jobs.accept(lost)
    jobs.accept(running)
    run(
        database,
        f"UPDATE jobs SET state = 'running', owner = 'worker-1', attempt = 1 WHERE id = '{lost.id}'",
    )
    assert claim(runs).id == running.id
    assert [runs.give_back_abandoned() for _ in range(3)] == [0, 1, 0]
    again = claim(runs)
    assert (again.id, again.attempt, again.counted) == (lost.id, 2, 1)


# --- cancel --------------------------------------------------------------------------------------------------------


def test_a_queued_job_is_canceled_with_its_mail(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    job = new(notify_on=NotifyOn.BOTH)
    id = waiting(database, job)
    assert jobs.cancel(job.id) is JobState.QUEUED
    assert jobs.cancel(job.id) is JobState.CANCELED
    assert jobs.cancel("no such job") is None
    assert runs.claim("jobs", ["simulate"], limit=1) == []
    assert (mail(database, id)["state"], mail(database, id)["reason"]) == (
        State.CANCELED,
        "its job was canceled",
    )
    details = Outbox(database).details(id)
    assert details and [person["state"] for person in details.recipients] == [State.CANCELED]


def test_a_running_job_that_is_canceled_is_taken_away_from_its_worker(
    jobs: Jobs, runs: JobClaims
) -> None:
    for job in (new(), new()):
        jobs.accept(job)
    first, second = runs.claim("jobs", ["simulate"], limit=2)
    assert runs.taken_away() == set()
    assert jobs.cancel(first.id) is JobState.RUNNING
    assert runs.taken_away() == {first.id}
    assert not runs.progress(first, 0.5, "")
    assert runs.finish(first, SUCCEEDED) is None
    assert runs.finish(second, SUCCEEDED) == []
    assert runs.taken_away() == set()
    assert details(jobs, first.id).row["state"] == JobState.CANCELED


@pytest.mark.slow
def test_cancel_and_finish_at_once_agree_on_one_end(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    with ThreadPoolExecutor(2) as threads:
        for _ in range(20):
            job = new(notify_on=NotifyOn.BOTH)
            id = waiting(database, job)
            one = claim(runs)
            canceled, finished = (
                threads.submit(jobs.cancel, job.id),
                threads.submit(runs.finish, one, SUCCEEDED),
            )
            won = canceled.result() is JobState.RUNNING
            assert finished.result() == (None if won else [id])
            assert (jobs.state(job.id), mail(database, id)["state"]) == (
                (JobState.CANCELED, State.CANCELED) if won else (JobState.SUCCEEDED, State.QUEUED)
            )
            run(database, f"UPDATE messages SET state = 'sent' WHERE id = '{id}'")


# --- accept, list, look ---------------------------------------------------------------------------------------------


def test_the_same_id_is_accepted_once_alone_and_with_a_mail(database: Database, jobs: Jobs) -> None:
    job = new()
    assert jobs.accept(job)
    assert not jobs.accept(job)
    id = new_id()
    acceptance = NewMessage(
        id=id, message=Message(to=(Address("bob@example.org"),)), message_id=id, job=job
    )
    assert not Outbox(database).accept(acceptance)
    assert Outbox(database).details(id) is None


def test_what_was_no_job_is_kept_as_failed_with_the_reason(jobs: Jobs, runs: JobClaims) -> None:
    job = new("", failed="#/name: expected one of simulate, got 'brew'")
    jobs.accept(job)
    assert details(jobs, job.id).row["state"] in FINAL
    assert details(jobs, job.id).row["error"] == job.failed
    assert runs.claim("jobs", ["simulate", ""], limit=1) == []


def test_large_arguments_come_through(jobs: Jobs, runs: JobClaims) -> None:
    jobs.accept(new(args={"image": "A" * 5_000_000}))
    assert len(claim(runs).args["image"]) == 5_000_000


def test_a_list_goes_through_all_jobs_once_newest_first(jobs: Jobs, runs: JobClaims) -> None:
    ids = [
        job.id
        for job in (new("brew" if number % 2 else "simulate") for number in range(11))
        if jobs.accept(job)
    ]
    runs.finish(claim(runs), SUCCEEDED)
    seen: list[tuple[int, str]] = []
    while page := jobs.page(limit=4, before=seen[-1] if seen else None):
        seen += [(row["created_at"], row["id"]) for row in page]
    assert seen == sorted(seen, reverse=True)
    assert sorted(id for _, id in seen) == sorted(ids)
    assert {row["id"] for row in jobs.page(limit=20, name="brew")} == set(ids[1::2])
    assert [row["name"] for row in jobs.page(limit=20, state="succeeded")] == ["simulate"]
    assert jobs.page(limit=20, queue="coffee") == []


def test_a_job_tells_its_mail_its_file_and_whether_anybody_serves_it(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    job = new()
    id = waiting(database, job)
    assert details(jobs, job.id).served
    content = secrets.token_bytes(1000)
    runs.finish(
        claim(runs),
        JobEnd(state=JobState.SUCCEEDED, result="null", file=Attachment("x.bin", "a/b", content)),
    )
    found = details(jobs, job.id)
    assert (found.message, found.file) == (
        {"id": id, "state": "queued"},
        {"name": "x.bin", "content_type": "a/b", "size": 1000},
    )
    made = jobs.file(job.id)
    assert made and made.content == content
    assert jobs.file("no such job") is None
    lose(database, "worker-1")
    assert not details(jobs, job.id).served
    elsewhere = new(queue="tea")
    jobs.accept(elsewhere)
    worker(database, "worker-2")
    assert not details(jobs, elsewhere.id).served
    assert jobs.details("no such job") is None


def test_the_same_once_more_is_a_job_of_its_own(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    job = new(notify_on=NotifyOn.FAILURE, max_attempts=2, retry="1s", timeout_seconds=3.0)
    waiting(database, job, template=True)
    again = jobs.again(job.id, "another")
    assert again == NewJob(
        id="another",
        name="simulate",
        args={"seconds": 1},
        queue="jobs",
        timeout_seconds=3.0,
        max_attempts=2,
        retry="1s",
        notify_on=NotifyOn.FAILURE,
        retry_of=job.id,
    )
    assert Outbox(database).message_of(job.id) == Message(
        to=(Address("bob@example.org"),), subject="Hello", text="Hi", template=True
    )
    assert Outbox(database).message_of("no such job") is None
