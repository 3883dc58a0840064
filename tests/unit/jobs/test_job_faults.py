"""Faults of jobs that once left a job without an end, ran it at the wrong time, or gave no reason."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from celery import Celery
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event

from mailroom.jobs import builtin, registry
from mailroom.jobs import runner as runner_module
from mailroom.jobs.job_attempt import JobAttempt
from mailroom.jobs.registry import File, Progress, job
from mailroom.model.errors import InvalidMessage
from mailroom.store.db.database import Database
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import JobEnd, Jobs, JobState, NewJob
from tests.services import wait_until
from tests.services.application import made
from tests.services.processes import Service
from tests.services.schema import on_sqlite
from tests.unit.jobs.test_runner import Bench
from tests.unit.store.test_job_claims import LEASE_SECONDS, claim, details, lose, new, worker

assert builtin.__name__
TIMED_OUT = JobEnd(state=JobState.TIMED_OUT, error="killed after 1 s", wait_seconds=0)


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database, LEASE_SECONDS)


@pytest.fixture
def runs(database: Database) -> JobClaims:
    return worker(database, "worker-1")


@pytest.fixture
def a_bench(sqlite_url: str) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**how: Any) -> Bench:
        made.append(Bench(sqlite_url, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def client(database_url: str) -> Iterator[FlaskClient]:
    app: Flask
    for app in made(database_url):
        yield app.test_client()


def test_a_timeout_that_is_not_the_last_attempts_is_kept(jobs: Jobs, runs: JobClaims) -> None:
    jobs.accept(new(max_attempts=2))
    one = claim(runs)
    assert runs.finish(one, TIMED_OUT) == []
    assert details(jobs, one.id).row["state"] == JobState.QUEUED


def test_a_worker_that_was_paused_does_not_take_itself_for_dead(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    jobs.accept(new())
    one = claim(runs)
    lose(database, "worker-1")
    assert runs.orphans() == []
    assert runs.taken_away() == set()
    assert details(jobs, one.id).row["state"] == JobState.RUNNING
    assert worker(database, "worker-2").orphans() == []
    assert details(jobs, one.id).row["state"] == JobState.FAILED


def test_a_worker_does_not_claim_again_what_one_of_its_threads_still_runs(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    jobs.accept(new(max_attempts=2))
    one = claim(runs)
    lose(database, "worker-1")
    other = worker(database, "worker-2")
    other.orphans()
    assert details(jobs, one.id).row["state"] == JobState.QUEUED
    assert runs.claim("jobs", ["simulate"], limit=5) == []
    assert runs.finish(one, JobEnd(state=JobState.SUCCEEDED, result="1")) is None
    assert claim(runs).attempt == 2


@pytest.mark.parametrize(
    "path",
    [
        "/v1/jobs?name=%00",
        "/v1/jobs?queue=%00",
        "/v1/jobs?name=%ed%a0%80",
        "/v1/jobs/%00",
        "/v1/jobs/%00/file",
    ],
)
def test_what_no_database_can_compare_finds_nothing(client: FlaskClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (200, 404, 422), answer.json


@pytest.mark.parametrize("act", ["cancel", "retry"])
def test_an_id_that_no_database_can_hold_is_unknown(client: FlaskClient, act: str) -> None:
    assert client.post(f"/v1/jobs/%00/{act}").status_code == 404


def test_a_job_that_was_never_accepted_is_not_run_once_more(client: FlaskClient) -> None:
    store: Jobs = client.application.extensions["mailasync"].jobs
    for lost in (
        new("", failed="#/name: expected one of simulate, got 'brew'"),
        new("gone", failed="x"),
    ):
        store.accept(lost)
        answer = client.post(f"/v1/jobs/{lost.id}/retry")
        assert answer.status_code in (409, 422), answer.json
    assert client.get("/v1/jobs?status=queued").json["data"] == []  # type: ignore[index]


def test_a_job_of_a_type_that_is_gone_says_so(client: FlaskClient) -> None:
    store: Jobs = client.application.extensions["mailasync"].jobs
    worker(store.database, "worker-1")
    gone = new("gone")
    store.accept(gone)
    assert "gone" in client.get(f"/v1/jobs/{gone.id}").json["why"]  # type: ignore[index]


def test_a_job_whose_next_attempt_is_overdue_says_what_it_waits_for(client: FlaskClient) -> None:
    store: Jobs = client.application.extensions["mailasync"].jobs
    runs = worker(store.database, "worker-1")
    store.accept(new(max_attempts=2))
    one = claim(runs)
    runs.finish(one, JobEnd(state=JobState.FAILED, error="no", wait_seconds=0))
    lose(store.database, "worker-1")
    answer: Any = client.get(f"/v1/jobs/{one.id}").json
    assert answer["why"].startswith("no worker serves the queue jobs")


# --- the runner ---------------------------------------------------------------------------------------------


def test_no_queue_and_no_kind_of_job_starves_behind_another(a_bench: Callable[..., Bench]) -> None:
    bench = a_bench(slots=1, processes=1)
    beers = [bench.add("patient", wake=False, args={"seconds": 0.1}) for _ in range(15)]
    coffee = bench.add("pour", wake=False, args={"seconds": 0})
    sum_ = bench.add("add", wake=False, args={"a": 1})
    bench.runner.wake()
    assert bench.ended(coffee)[0] == bench.ended(sum_)[0] == "succeeded"
    assert bench.row(beers[-1])["state"] == "queued"


@job("text file", isolated=False)
def text_file() -> File:
    return File("a.txt", "text")  # type: ignore[arg-type]  # as an untyped job might


@job("odd progress", isolated=False)
def odd_progress(progress: Progress) -> None:
    while True:
        progress("half", 3)  # type: ignore[arg-type]  # as an untyped job might


@job("odd step", isolated=False)
def odd_step(progress: Progress) -> None:
    for _ in range(3):
        progress(0.5, 3)  # type: ignore[arg-type]  # as an untyped job might
    progress.wait(0.5)


def test_a_file_that_is_no_bytes_fails_its_job(a_bench: Callable[..., Bench]) -> None:
    bench = a_bench()
    state, error = bench.ended(bench.add("text file"))
    assert (state, "bytes" in error) == ("failed", True)


def test_progress_that_is_no_number_fails_its_job_and_hurts_no_other(
    a_bench: Callable[..., Bench],
) -> None:
    bench = a_bench()
    late = bench.add("patient", args={"seconds": 60}, timeout_seconds=0.5)
    assert bench.ended(bench.add("odd progress", timeout_seconds=5))[0] == "failed"
    assert bench.ended(bench.add("odd step"))[0] == "succeeded"
    assert bench.ended(late)[0] == "timed_out"


goes_on = threading.Event()
attempts: list[None] = []


@job("deaf once", isolated=False)
def deaf_job(progress: Progress) -> None:
    attempts.append(None)
    if len(attempts) == 1:
        goes_on.wait(60)
    else:
        progress.wait(60)


def test_a_second_attempt_is_watched_when_the_deaf_thread_of_the_first_ends(
    a_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "NOTICE_SECONDS", 0.2)
    bench = a_bench()
    goes_on.clear()
    id = bench.add("deaf once", timeout_seconds=1.0, max_attempts=2, retry="0s")
    wait_until(lambda: bench.row(id)["attempt"] == 2, what="attempt 2")
    goes_on.set()
    assert bench.ended(id) == ("timed_out", "ended after 1 s")


@job("sleeps in a thread", isolated=False)
def sleeps_in_a_thread() -> None:
    sleeps.set()
    may_wake.wait(60)


sleeps, may_wake = threading.Event(), threading.Event()


@pytest.mark.parametrize(("max_attempts", "state"), [(1, "failed"), (2, "queued")])
def test_stopping_does_not_wait_for_a_thread_that_looks_at_nothing(
    a_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, max_attempts: int, state: str
) -> None:
    monkeypatch.setattr(runner_module, "STOP_SECONDS", 0.2)
    monkeypatch.setattr(runner_module, "NOTICE_SECONDS", 0.2)
    sleeps.clear()
    may_wake.clear()
    bench = a_bench()
    id = bench.add("sleeps in a thread", max_attempts=max_attempts)
    assert sleeps.wait(60)
    bench.runner.close()
    may_wake.set()
    assert bench.row(id)["state"] == state
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("job"))


def test_a_job_that_was_claimed_and_not_begun_when_its_worker_stops_is_given_back(
    a_bench: Callable[..., Bench],
) -> None:
    bench = a_bench()
    bench.runner._stopping.set()
    bench.runner.wake()
    bench.runner._dispatcher.join(60)
    id = bench.add("patient", wake=False, args={"seconds": 0})
    [one] = bench.runs.claim("jobs", ["patient"], limit=1)
    bench.runner._begin(JobAttempt(one, isolated=False))
    wait_until(lambda: bench.row(id)["state"] == "queued", what="it is given back")
    assert (bench.row(id)["attempt"], bench.row(id)["excused"]) == (1, 1)


@job("deep", isolated=False)
def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = (value,) if levels % 2 else {"in": value}
    return value


@pytest.mark.parametrize(
    ("levels", "state"), [(99, "succeeded"), (100, "succeeded"), (101, "failed"), (800, "failed")]
)
def test_a_result_that_is_nested_deeper_than_a_mail_can_tell_fails_its_job(
    a_bench: Callable[..., Bench], levels: int, state: str
) -> None:
    bench = a_bench()
    ended, error = bench.ended(bench.add("deep", args={"levels": levels}))
    assert ended == state
    assert state == "succeeded" or "nested too deeply" in error


def test_a_client_that_does_not_wait_gets_202_even_where_the_job_has_ended_by_then(
    client: FlaskClient,
) -> None:
    services = client.application.extensions["mailasync"]
    runs = worker(services.jobs.database, "worker-1")

    def run(job: NewJob) -> None:
        runs.finish(claim(runs), JobEnd(state=JobState.SUCCEEDED, result="1"))

    client.application.extensions["mailasync"] = replace(services, run=run)
    wanted = {"name": "simulate", "args": {"seconds": 1}}
    assert client.post("/v1/jobs", json=wanted).status_code == 202
    assert client.post("/v1/jobs", json=wanted, headers={"Prefer": "wait=1"}).status_code == 200


def test_a_number_that_json_does_not_have_is_no_argument(client: FlaskClient) -> None:
    answer = client.post(
        "/v1/jobs",
        data='{"name": "simulate", "args": {"seconds": 1e400}}',
        content_type="application/json",
    )
    assert (answer.status_code, answer.json["errors"][0]["pointer"]) == (422, "#/args")  # type: ignore[index]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"a\0b": 1, "seconds": 1}, "#/args/a%00b"),
        ({"seconds": float("nan")}, "expected JSON"),
        ({"\ud800": 1}, "#/args: "),
    ],
)
def test_why_arguments_are_none_can_be_kept_by_every_database(
    jobs: Jobs, args: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidMessage) as refused:
        registry.job_type("simulate").check(args)
    assert words in str(refused.value)
    jobs.accept(new("", failed=str(refused.value)))


def test_of_very_many_wrong_arguments_a_few_are_told() -> None:
    with pytest.raises(InvalidMessage) as refused:
        registry.job_type("simulate").check({"x" * 1000 + str(n): 1 for n in range(1000)})
    assert len(str(refused.value)) < 5000


def test_a_schedule_of_retries_without_end_is_refused(client: FlaskClient) -> None:
    answer = client.post(
        "/v1/jobs",
        json={"name": "simulate", "args": {"seconds": 1}, "retry": "1s*999," * 1000 + "1s"},
    )
    assert (answer.status_code, answer.json["errors"][0]["pointer"]) == (422, "#/retry")  # type: ignore[index]


def test_a_large_job_in_a_form_is_taken(client: FlaskClient) -> None:
    large = '{"name": "simulate", "args": {"seconds": 1}' + " " * 2_000_000 + "}"
    body = f'--b\r\nContent-Disposition: form-data; name="job"\r\n\r\n{large}\r\n--b--\r\n'
    answer = client.post(
        "/v1/jobs",
        input_stream=BytesIO(body.encode()),
        content_length=len(body),
        content_type="multipart/form-data; boundary=b",
    )
    assert answer.status_code == 202, answer.json


def test_claiming_looks_at_no_more_of_those_that_wait_than_it_takes(
    database: Database, jobs: Jobs, runs: JobClaims
) -> None:
    jobs.accept(new())
    asked: list[tuple[str, Any]] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda *told: asked.append((told[2], told[3]))
    )
    claim(runs)
    statement, values = next(one for one in asked if one[0].startswith(("UPDATE", "WITH")))
    explain = "EXPLAIN QUERY PLAN " if database.url.get_backend_name() == "sqlite" else "EXPLAIN "
    with database.engine.begin() as connection:
        told = "\n".join(
            str(row) for row in connection.exec_driver_sql(explain + statement, values)
        )
    assert told.count("jobs_queued") == 1
    assert "Sort" not in told and "B-TREE" not in told


@on_sqlite
def test_the_id_of_a_clients_task_is_never_taken_for_the_name_of_a_job(pair: Service) -> None:
    """A worker that does not serve the job's queue nudges one that does, by an id."""
    pair.settings["JOBS"] = "tests.jobs_for_tests"
    pair.web()
    pair.worker("--loglevel=INFO", "-Q", "celery")
    worker = pair.worker("--loglevel=INFO", "-Q", "jobs")
    with Celery(broker=pair.settings["BROKER_URL"]) as stock:
        stock.send_task("mailasync.runJob", ["add", {"a": 1}], task_id="whoami")
    worker.says("received")
    wait_until(
        lambda: pair.get("/v1/jobs/whoami").get("status") == "succeeded", what="the job ended"
    )
    assert [one["id"] for one in pair.get("/v1/jobs")["data"]] == ["whoami"]
