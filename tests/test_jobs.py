"""Jobs: registered by name, run in child processes or threads, each with an end that a client can read."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mailroom.jobs import registry, runner, shipped
from mailroom.jobs.children import ChildError, Children, ChildTimeout
from mailroom.jobs.runner import Runner
from mailroom.mail.errors import InvalidMessage
from mailroom.mail.message import Address, Message, State
from mailroom.store.database import Database
from mailroom.store.jobs import Jobs
from mailroom.store.migrate import upgrade
from mailroom.store.outbox import Acceptance, NewJob, Outbox, new_id
from mailroom.store.workers import Worker
from tests import jobs_for_tests
from tests.services import is_alive, wait_until

MODULES = registry.modules(jobs_for_tests.__name__)
assert shipped.__name__ in MODULES


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children(MODULES)
    yield made
    made.close()


def nothing(fraction: float, step: str) -> None: ...


# --- the registry --------------------------------------------------------------------------------------------------

def test_arguments_are_checked_by_the_annotations() -> None:
    kind = registry.job_type("add")
    assert kind.check({"a": 2}) == {"a": 2, "b": 1}
    with pytest.raises(InvalidMessage, match="#/args/a"):
        kind.check({"a": "two"})
    with pytest.raises(InvalidMessage, match="#/args/c"):
        kind.check({"a": 1, "c": 2})
    assert registry.job_type("patient").check({"seconds": 1}) == {"seconds": 1.0}


def test_an_unknown_job_names_those_there_are() -> None:
    with pytest.raises(registry.UnknownJob, match=r"expected one of .*simulate.*, got 'brew'"):
        registry.job_type("brew")


# --- child processes -----------------------------------------------------------------------------------------------

def test_a_child_is_used_again(children: Children) -> None:
    first = children.run("whoami", {}, timeout_seconds=10, progress=nothing)
    assert children.run("whoami", {}, timeout_seconds=10, progress=nothing) == first
    assert first != os.getpid()
    assert children.run("add", {"a": 2, "b": 3}, timeout_seconds=10, progress=nothing) == 5


def test_progress_is_told_and_prints_do_not_disturb(children: Children) -> None:
    seen: list[tuple[float, str]] = []
    assert children.run("steps", {}, timeout_seconds=10, progress=lambda fraction, step: seen.append((fraction, step))) == "done"
    assert [step for _, step in seen] == ["step 0", "step 1", "step 2"]


@pytest.mark.parametrize(("name", "words"), [
    ("raise", "ValueError: no such file"), ("exit", "SystemExit: tired"), ("die", "its process ended"), ("huge", "longer than"),
    ("unserializable", "not JSON serializable"), ("nothing", "UnknownJob"),
])
def test_whatever_a_job_does_ends_in_words_and_the_next_one_runs(children: Children, name: str, words: str) -> None:
    with pytest.raises(ChildError, match=words):
        children.run(name, {}, timeout_seconds=10, progress=nothing)
    assert children.run("add", {"a": 1}, timeout_seconds=10, progress=nothing) == 2


@pytest.mark.parametrize("name", ["sleep", "fork"])
def test_a_job_is_killed_at_its_timeout_with_all_it_started(children: Children, name: str) -> None:
    group = children.run("whoami", {}, timeout_seconds=10, progress=nothing)
    with pytest.raises(ChildTimeout, match=r"killed after 0\.5 s"):
        children.run(name, {}, timeout_seconds=0.5, progress=nothing)

    def gone() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return all(not is_alive(pid) for pid in _group(group))
    wait_until(gone, 5, what="the process group is gone")
    assert children.run("whoami", {}, timeout_seconds=10, progress=nothing) != group


def _group(leader: int) -> list[int]:
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        try:
            if name.isdigit() and os.getpgid(int(name)) == leader:
                found.append(int(name))
        except ProcessLookupError:
            continue
    return found


def test_children_end_with_their_parent(children: Children) -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        own = Children(MODULES)
        os.write(write, str(own.run("whoami", {}, timeout_seconds=30, progress=nothing)).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        child = int(pipe.read())
    os.waitpid(parent, 0)
    wait_until(lambda: not is_alive(child), 10, what="the child ended")


# --- the runner ----------------------------------------------------------------------------------------------------

class Bench:
    """A runner on a database of its own."""

    def __init__(self, url: str, *, slots: int = 4) -> None:
        self.database = Database(url)
        upgrade(self.database)
        self.outbox = Outbox(self.database)
        Worker(self.database, "worker-1", "worker-1@host", ["jobs"]).beat()
        self.jobs = Jobs(self.database, "worker-1", 20)
        self.released: list[str] = []
        self.runner = Runner(self.jobs, ["jobs"], slots=slots, children=Children(MODULES), queued=self.released.append)

    def add(self, name: str, timeout_seconds: float = 10, *, wake: bool = True, **args: Any) -> str:
        """Accept a mail behind a job, wake the runner, and return the mail's id."""
        id = new_id()
        job = NewJob(id=new_id(), name=name, args=args, queue="jobs", timeout_seconds=timeout_seconds)
        self.outbox.accept(Acceptance(id=id, message=Message(to=(Address("bob@example.org"),)), message_id=f"{id}@example.org", job=job))
        if wake:
            self.runner.wake()
        return id

    def ended(self, id: str, timeout: float = 15) -> tuple[str, str | None, str]:
        """State of the job, its result or error, and state of the mail, when the mail waits no more."""
        def standing() -> object:
            found = self.outbox.standing(id)
            assert found
            return found if found.row["state"] != State.WAITING else None
        wait_until(standing, timeout, what="the job has ended")
        found = self.outbox.standing(id)
        assert found
        assert found.job
        return found.job["state"], found.job["result"] or found.job["error"], found.row["state"]

    def close(self) -> None:
        self.runner.close()
        self.database.close()


@pytest.fixture
def bench(sqlite_url: str) -> Iterator[Bench]:
    made = Bench(sqlite_url)
    yield made
    made.close()


def test_a_job_runs_and_lets_its_mail_go(bench: Bench) -> None:
    id = bench.add("add", a=2, b=3)
    assert bench.ended(id) == ("succeeded", "5", "queued")
    wait_until(lambda: bench.released == [id], 5, what="the nudge is asked for")


@pytest.mark.parametrize(("name", "args", "state", "words"), [
    ("raise", {}, "failed", "ValueError: no such file"),
    ("sleep", {}, "timed_out", "killed after 0.5 s"),
    ("die", {}, "failed", "its process ended"),
    ("brew", {}, "failed", "got 'brew'"),
    ("add", {"a": "two"}, "failed", "#/args/a"),
    ("patient", {"seconds": "soon"}, "failed", "#/args/seconds"),
])
def test_a_job_that_fails_tells_why_and_fails_its_mail(bench: Bench, name: str, args: dict[str, Any], state: str, words: str) -> None:
    job_state, error, mail_state = bench.ended(bench.add(name, 0.5 if name == "sleep" else 10, **args))
    assert (job_state, mail_state) == (state, "failed")
    assert words in (error or "")


def test_no_more_jobs_run_than_there_are_slots_and_none_is_forgotten(bench: Bench) -> None:
    started = time.monotonic()
    ids = [bench.add("patient", seconds=0.3) for _ in range(12)]
    assert {bench.ended(id)[0] for id in ids} == {"succeeded"}
    assert time.monotonic() - started >= 3 * 0.3


def test_one_nudge_starts_all_jobs_that_wait(sqlite_url: str) -> None:
    bench = Bench(sqlite_url, slots=20)
    ids = [bench.add("patient", wake=False, seconds=1.0) for _ in range(15)]
    started = time.monotonic()
    bench.runner.wake()
    assert {bench.ended(id)[0] for id in ids} == {"succeeded"}
    assert time.monotonic() - started < 5  # and not fifteen, one after the other
    bench.close()


def test_a_runner_that_stops_gives_back_what_only_waits(sqlite_url: str) -> None:
    bench = Bench(sqlite_url)
    id = bench.add("patient", seconds=60)

    def state() -> str:
        standing = bench.outbox.standing(id)
        assert standing
        assert standing.job
        return str(standing.job["state"])
    wait_until(lambda: state() == "running", 5, what="it runs")
    stopping = threading.Thread(target=bench.runner.close)
    stopping.start()
    stopping.join(5)
    assert not stopping.is_alive()
    assert state() == "queued"
    bench.database.close()


def test_stopping_waits_a_moment_for_a_job_in_a_child_and_then_kills_it(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.3)  # a constant of ours, so that the test need not take ten seconds
    bench = Bench(sqlite_url)
    id = bench.add("sleep", 60)
    wait_until(lambda: bench.runner._children._busy, 10, what="it runs")
    started = time.monotonic()
    bench.runner.close()
    assert time.monotonic() - started < 5
    assert bench.ended(id) == ("failed", "its process ended", "failed")  # max_attempts is 1: it may not run twice
    bench.database.close()


def test_a_job_whose_words_no_database_takes_ends_all_the_same(database: Database) -> None:
    bench = Bench(database.url.render_as_string(hide_password=False))
    for name in ("nul", "surrogate"):
        job_state, error, mail_state = bench.ended(bench.add("odd words", kind=name))
        assert (job_state, mail_state) == ("failed", "failed")
        assert "ValueError: bad" in (error or "")
    assert bench.ended(bench.add("odd result"))[0] == "failed"
    bench.close()


def test_simulated_work_takes_its_time_and_reports(bench: Bench) -> None:
    started = time.monotonic()
    assert bench.ended(bench.add("simulate", seconds=0.5))[0] == "succeeded"
    assert time.monotonic() - started >= 0.5
