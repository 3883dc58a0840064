"""The jobs of one worker: slots and their sharing, timeouts, attempts, cancel, stop."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mailroom.jobs import builtin, registry
from mailroom.jobs import runner as runner_module
from mailroom.jobs.process_pool import Children
from mailroom.jobs.registry import File, Interrupted, Progress, job
from mailroom.jobs.runner import Runner
from mailroom.jobs.slots import Slots
from mailroom.model.ids import new_id
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import FINAL, Jobs, JobState, NewJob
from mailroom.store.workers import Heartbeat
from tests import jobs_for_tests
from tests.services import is_alive, wait_until
from tests.services.schema import ready

MODULES = registry.modules(jobs_for_tests.__name__)
assert builtin.__name__ in MODULES
QUEUES = ["jobs", "coffee"]


@job("pour", queue="coffee", isolated=False)
def pour(seconds: float, progress: Progress) -> str:
    progress.wait(seconds)
    return "poured"


@job("looks at nothing", isolated=False)
def deaf(progress: Progress) -> None:
    """Look at nothing until the test lets it go."""
    deaf_goes.wait(60)


deaf_goes = threading.Event()


class Bench:
    """A runner on a database of its own."""

    def __init__(self, url: str, *, slots: int = 4, processes: int = 4, watch: bool = True) -> None:
        self.database = ready(url)
        self.jobs = Jobs(self.database, 20)
        self.heartbeat = Heartbeat(self.database, "worker-1", "worker-1@host", QUEUES)
        self.heartbeat.beat()
        self.runs = JobClaims(self.database, "worker-1", 20)
        self.children = Children(MODULES)
        self.runner = Runner(
            self.runs,
            QUEUES,
            slots=slots,
            processes=processes,
            children=self.children,
            on_queued=lambda id: None,
        )
        self.runner.start()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._watching, daemon=True)
        if watch:
            self._watch.start()

    def _watching(self) -> None:
        while not self._ended.wait(0.1):  # As the sweeper does, more often.
            self.runner.watch()

    def add(
        self, name: str, *, wake: bool = True, args: dict[str, Any] | None = None, **more: Any
    ) -> str:
        kind = registry.job_type(name)
        one = NewJob(
            **{
                "id": new_id(),
                "name": name,
                "args": args or {},
                "queue": kind.queue,
                "timeout_seconds": 60,
                **more,
            }
        )
        self.jobs.accept(one)
        if wake:
            self.runner.wake()
        return one.id

    def row(self, id: str) -> dict[str, Any]:
        found = self.jobs.details(id)
        assert found
        return found.row

    def running(self) -> list[str]:
        return [row["name"] for row in self.jobs.page(limit=100, state="running")]

    def ended(self, id: str) -> tuple[str, Any]:
        """State of the job when it is final, and its result or error."""
        wait_until(lambda: self.row(id)["state"] in FINAL, what="the job has ended")
        row = self.row(id)
        return row["state"], row["error"] or json.loads(row["result"] or "null")

    def close(self) -> None:
        self._ended.set()
        self.runner.close()
        self.database.close()


@pytest.fixture
def bench(sqlite_url: str) -> Iterator[Bench]:
    made = Bench(sqlite_url)
    yield made
    made.close()


@pytest.fixture
def a_bench(sqlite_url: str) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(**how: Any) -> Bench:
        made.append(Bench(sqlite_url, **how))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_job_runs_and_its_result_is_kept(bench: Bench) -> None:
    id = bench.add("add", args={"a": 2, "b": 3})
    assert bench.ended(id) == ("succeeded", 5)
    assert bench.row(id)["progress"] == 1000


@pytest.mark.parametrize("name", ["file names", "file names in a thread"])
def test_a_result_is_text_that_every_reader_takes(bench: Bench, name: str) -> None:
    id = bench.add(name)
    result = {"caf\ufffd": ["caf\ufffd", "whole \U0001f600", "in halves \U0001f600"]}
    assert bench.ended(id) == ("succeeded", result)
    json.dumps(result, ensure_ascii=False).encode()  # raises where half a pair is left


@pytest.mark.parametrize(
    ("name", "args", "state", "words"),
    [
        ("raise", {}, "failed", "ValueError: no such file"),
        ("sleep", {}, "timed_out", "killed after 0.5 s"),
        ("die", {}, "failed", "its process ended"),
        ("add", {"a": "two"}, "failed", "#/args/a"),
        ("patient", {"seconds": "soon"}, "failed", "#/args/seconds"),
        ("odd words", {"kind": "nul"}, "failed", "ValueError: bad"),
        ("odd words", {"kind": "surrogate"}, "failed", "ValueError: bad"),
        ("odd result", {}, "failed", "not JSON serializable"),
        ("huge", {}, "failed", "the most"),
    ],
)
def test_a_job_that_fails_tells_why(
    bench: Bench, name: str, args: dict[str, Any], state: str, words: str
) -> None:
    ended, error = bench.ended(
        bench.add(name, args=args, timeout_seconds=0.5 if name == "sleep" else 60)
    )
    assert ended == state
    assert words in error


def test_simulated_work_takes_its_time_and_reports(bench: Bench) -> None:
    id = bench.add("simulate", args={"seconds": 0.5})
    wait_until(lambda: bench.row(id)["step"], what="it reports")
    assert bench.ended(id)[0] == "succeeded"
    assert bench.row(id)["finished_at"] - bench.row(id)["started_at"] >= 500


def test_a_file_with_a_hostile_name_is_kept_under_a_harmless_one(bench: Bench) -> None:
    id = bench.add("hostile file")
    assert bench.ended(id)[0] == "succeeded"
    made = bench.jobs.file(id)
    assert made and (made.name, made.content_type, made.content) == (
        "evil.html",
        "text/html X: y",
        b"<script>",
    )
    assert json.loads(bench.row(id)["result"])["name"] == "../../e\0v\ufffdil\r\n.html"


@job("hostile file", isolated=False)
def hostile_file() -> File:
    return File("../../e\0v\ud800il\r\n.html", b"<script>", "text/html\r\nX: y")


def test_progress_in_a_tight_loop_costs_little_and_the_last_of_it_is_told(bench: Bench) -> None:
    id = bench.add("eager", args={"times": 20_000})
    wait_until(lambda: bench.row(id)["step"] == "20000 of 20000", what="the last step is told")
    assert bench.row(id)["progress"] == 500
    bench.jobs.cancel(id)


@job("eager", isolated=False)
def eager(times: int, progress: Progress) -> None:
    for n in range(times):
        progress((n + 1) / times / 2, f"{n + 1} of {times}")
    progress.wait(60)


# --- slots --------------------------------------------------------------------------------------------------


def test_a_slot_is_kept_for_each_queue_that_has_nothing_running() -> None:
    slots = Slots(6, ["jobs", "beer", "coffee"])
    assert slots.free("beer") == 4
    for _ in range(4):
        slots.acquire("beer")
    assert (slots.free("beer"), slots.free("coffee"), slots.free("jobs")) == (0, 1, 1)
    slots.acquire("coffee")
    assert (slots.free("beer"), slots.free("coffee"), slots.free("jobs")) == (0, 0, 1)
    slots.release("beer")
    assert (slots.free("beer"), slots.free("coffee"), slots.free("jobs")) == (1, 1, 2)


def test_where_slots_are_few_none_is_kept_and_all_can_be_used() -> None:
    slots = Slots(2, ["jobs", "beer", "coffee"])
    slots.acquire("beer")
    slots.acquire("beer")
    assert (slots.free("beer"), slots.free("coffee")) == (0, 0)


def test_no_more_jobs_run_than_there_are_slots_and_none_is_forgotten(bench: Bench) -> None:
    ids = [bench.add("patient", args={"seconds": 0.3}) for _ in range(12)]
    most = 0
    while any(bench.row(id)["state"] not in FINAL for id in ids):
        most = max(most, len(bench.running()))
    assert most == 3  # of four slots; one is kept for coffee
    assert {bench.ended(id)[0] for id in ids} == {"succeeded"}


def test_a_long_queue_leaves_room_for_the_others(bench: Bench) -> None:
    for _ in range(20):
        bench.add("patient", args={"seconds": 30})
    wait_until(lambda: len(bench.running()) == 3, what="the slots are taken")
    assert bench.ended(bench.add("pour", args={"seconds": 0})) == ("succeeded", "poured")


def test_one_wake_starts_all_jobs_that_wait(a_bench: Callable[..., Bench]) -> None:
    bench = a_bench(slots=20, watch=False)
    ids = [
        bench.add("patient", wake=False, args={"seconds": 600}, max_attempts=2) for _ in range(15)
    ]
    bench.runner.wake()
    wait_until(lambda: len(bench.running()) == len(ids), what="all run")


def test_child_processes_are_bounded_and_do_not_keep_threads_from_jobs_that_wait(
    a_bench: Callable[..., Bench],
) -> None:
    bench = a_bench(slots=8, processes=1)
    ids = [bench.add("nap", args={"seconds": 0.5}) for _ in range(3)]
    wait_until(lambda: bench.running() == ["nap"], what="one runs")
    assert bench.ended(bench.add("patient", args={"seconds": 0}))[0] == "succeeded"
    assert bench.running().count("nap") <= 1
    assert {bench.ended(id)[0] for id in ids} == {"succeeded"}


# --- tries and timeouts -------------------------------------------------------------------------------------


def test_a_job_is_tried_again_as_its_schedule_says_and_no_more_often(bench: Bench) -> None:
    id = bench.add("raise", max_attempts=3, retry="1s*2")
    wait_until(
        lambda: bench.row(id)["attempt"] == 1 and bench.row(id)["next_attempt_at"], what="it waits"
    )
    assert bench.row(id)["state"] == JobState.QUEUED
    assert bench.ended(id) == ("failed", "ValueError: no such file")
    assert bench.row(id)["attempt"] == 3


def test_a_job_in_a_thread_ends_at_its_timeout(bench: Bench) -> None:
    assert bench.ended(bench.add("patient", args={"seconds": 30}, timeout_seconds=0.5)) == (
        "timed_out",
        "ended after 0.5 s",
    )


def test_a_job_in_a_thread_that_does_not_look_ends_without_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a constant of ours, so that the test need not take five seconds
    monkeypatch.setattr(runner_module, "NOTICE_SECONDS", 0.2)
    id = bench.add("looks at nothing", timeout_seconds=0.2)
    assert bench.ended(id) == ("timed_out", "ended after 0.2 s")
    deaf_goes.set()
    wait_until(lambda: not bench.runner._running, what="its slot is free again")
    assert bench.ended(id) == ("timed_out", "ended after 0.2 s")


# --- cancel -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["patient", "nap"])
def test_a_canceled_job_ends_soon_and_frees_its_slot(bench: Bench, name: str) -> None:
    id = bench.add(name, args={"seconds": 60}, timeout_seconds=100)
    wait_until(lambda: bench.row(id)["state"] == JobState.RUNNING, what="it runs")
    assert bench.jobs.cancel(id) is JobState.RUNNING
    wait_until(lambda: not bench.runner._running, what="its slot is free again")
    assert bench.ended(id)[0] == "canceled"
    assert bench.ended(bench.add("add", args={"a": 1}))[0] == "succeeded"


def test_a_job_that_says_interrupted_by_itself_fails_and_does_not_run_for_ever(
    bench: Bench,
) -> None:
    assert bench.ended(bench.add("quitter"))[0] == "failed"


@job("quitter", isolated=False)
def quitter() -> None:
    raise Interrupted


# --- stop ---------------------------------------------------------------------------------------------------


def test_a_runner_that_stops_gives_back_at_once_what_may_run_again(
    a_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "STOP_SECONDS", 600)
    bench = a_bench()
    id = bench.add("patient", args={"seconds": 600}, timeout_seconds=1000, max_attempts=2)
    wait_until(lambda: bench.row(id)["state"] == "running", what="it runs")
    bench.runner.close()
    assert (bench.row(id)["state"], bench.row(id)["attempt"]) == ("queued", 1)


@pytest.mark.parametrize(
    ("name", "short_name", "args"), [("patient", "simulate", {"seconds": 1}), ("nap", "steps", {})]
)
def test_stopping_waits_a_moment_for_a_job_that_may_not_run_twice_and_then_ends_it(
    a_bench: Callable[..., Bench],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    short_name: str,
    args: dict[str, Any],
) -> None:
    # a constant of ours, so that the test need not take ten seconds
    monkeypatch.setattr(runner_module, "STOP_SECONDS", 4)
    bench = a_bench()
    long = bench.add(name, args={"seconds": 60}, timeout_seconds=100)
    wait_until(lambda: bench.row(long)["state"] == "running", what="it runs")
    short = bench.add(short_name, args=args)
    # One that has not is given back.
    wait_until(lambda: bench.row(short)["step"], what="the other has begun")
    bench.runner.close()
    assert bench.row(short)["state"] == "succeeded"
    assert bench.ended(long) == ("failed", "ended, as its worker was stopped")


def test_no_child_outlives_its_runner(bench: Bench) -> None:
    pids = [bench.ended(bench.add("whoami"))[1]]
    bench.add("nap", args={"seconds": 60}, timeout_seconds=100, max_attempts=2)
    wait_until(lambda: "nap" in bench.running(), what="it runs")
    bench.runner.close()
    assert not any(is_alive(pid) for pid in pids)


def test_jobs_that_no_thread_could_begin_are_begun_when_one_can(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [bench.add("pour", wake=False, args={"seconds": 0}) for _ in range(3)]
    start, left = threading.Thread.start, [RuntimeError("can't start new thread")] * 3

    def start_or_not(thread: threading.Thread) -> None:
        if thread.name == "job" and left:
            raise left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)

    def all_have_ended() -> bool:
        bench.runs.give_back_abandoned()  # As the sweeper does.
        bench.runner.wake()
        return all(bench.row(id)["state"] == "succeeded" for id in ids)

    wait_until(all_have_ended, 60, what="all were begun")
    assert not left
