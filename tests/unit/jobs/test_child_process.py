"""Child processes: whatever a job does in one, its end is told in words, and the next job runs."""

import itertools
import logging
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mailroom.jobs import builtin, pooled_job, process_pool
from mailroom.jobs.pooled_job import ChildTimeout
from mailroom.jobs.pooled_process import ChildError
from mailroom.jobs.process_pool import Children
from mailroom.jobs.registry import FILE_MAX_BYTES, File, Interrupted, Result
from tests import jobs_for_tests
from tests.services import freeze, is_alive, send_signal, wait_until
from tests.services.processes import PROJECT

MODULES = [builtin.__name__, jobs_for_tests.__name__]
ids = map(str, itertools.count(1))


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children(MODULES)
    yield made
    made.close()


@pytest.fixture(scope="module")
def used() -> Iterator[Children]:
    """Children that have gone through the tests before."""
    made = Children(MODULES)
    yield made
    made.close()


@pytest.fixture
def printed(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the worker's log has of jobs."""
    caplog.set_level(logging.INFO, "mailasync.jobs")
    return lambda: [
        record.getMessage() for record in caplog.records if record.name == "mailasync.jobs"
    ]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def nothing(fraction: float, step: str) -> None: ...


def run(
    children: Children,
    name: str,
    id: str = "",
    *,
    timeout: float = 60,
    progress: Callable[[float, str], None] = nothing,
    **args: Any,
) -> Any:
    return children.run(
        id or next(ids), name, args, timeout_seconds=timeout, progress=progress
    ).value


def group(leader: int) -> list[int]:
    """The processes that live in a process group."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        try:
            if name.isdigit() and os.getpgid(int(name)) == leader and is_alive(int(name)):
                found.append(int(name))
        except ProcessLookupError:
            continue
    return found


def is_gone(leader: int) -> bool:
    """Whether a process group has nobody left; the dead whom nobody collects count as gone."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return True
    return not group(leader)


# --- lending ------------------------------------------------------------------------------------------------


def test_a_child_is_used_again(children: Children) -> None:
    first = run(children, "whoami")
    assert run(children, "whoami") == first != os.getpid()
    assert run(children, "add", a=2, b=3) == 5


def test_several_threads_have_a_child_each_and_leave_them_warm(
    children: Children, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    jobs = [threads.submit(run, children, "meet", directory=str(tmp_path), n=4) for _ in range(4)]
    pids = {job.result(60) for job in jobs}
    assert len(pids) == 4
    assert run(children, "whoami") in pids


def test_a_child_is_replaced_after_so_many_jobs(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "JOBS_PER_CHILD", 2)
    first, second, third = (run(children, "whoami") for _ in range(3))
    assert first == second != third
    assert is_gone(first)


def test_an_idle_child_that_was_killed_fails_no_job(children: Children) -> None:
    first = run(children, "whoami")
    os.kill(first, signal.SIGKILL)
    assert run(children, "whoami") != first


def test_a_child_that_is_killed_before_it_begins_gives_its_job_to_another(
    children: Children, threads: ThreadPoolExecutor
) -> None:
    first = run(children, "whoami")
    freeze(first)
    job = threads.submit(run, children, "whoami")
    wait_until(lambda: children._busy, what="the request is on its way")
    send_signal(first, signal.SIGKILL)
    assert job.result(60) != first


def test_a_child_that_never_begins_is_replaced(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(children, "whoami")
    freeze(first)
    monkeypatch.setattr(pooled_job, "START_SECONDS", 10)
    with pytest.raises(ChildError, match="#/args/a"):
        run(children, "add", a="x" * 1_000_000)  # more than a pipe holds
    assert is_gone(first)
    assert run(children, "whoami") != first


def test_a_job_that_began_and_died_is_not_run_again(children: Children, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    run(children, "whoami")
    with pytest.raises(ChildError, match="its process ended: exit status 9"):
        run(children, "count and die", mark=str(mark))
    assert mark.read_text() == "x"


def test_job_modules_that_cannot_be_imported_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "exits.py").write_text("import os; os._exit(3)")
    for module, words in (
        ("no_such_module", "no_such_module cannot be imported: ModuleNotFoundError"),
        ("exits", "its process ended: exit status 3 before the job began"),
    ):
        broken = Children([*MODULES, module])
        with pytest.raises(ChildError, match=words):
            run(broken, "whoami")
        broken.close()


def test_closing_kills_idle_and_busy_children_and_runs_no_more(
    children: Children, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    idle = run(children, "whoami")
    jobs = [threads.submit(run, children, "deaf", mark=str(tmp_path / name)) for name in "ab"]
    wait_until(lambda: len(os.listdir(tmp_path)) == 2, what="both run")
    children.close()
    for job in jobs:
        assert str(job.exception(60)) == "its process ended"
    assert is_gone(idle)
    with pytest.raises(ChildError):
        run(children, "whoami")


def test_children_end_with_their_parent() -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        own = Children(MODULES)
        first, second = own, Children(MODULES)
        os.write(write, f"{run(first, 'whoami')} {run(second, 'whoami')}".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        pids = [int(pid) for pid in pipe.read().split()]
    os.waitpid(parent, 0)
    wait_until(lambda: not any(is_alive(pid) for pid in pids), what="both children ended")


def test_a_child_holds_no_pipe_of_another(children: Children) -> None:
    first = run(children, "whoami")
    child = children._idle.pop()  # so that the next one is new
    assert run(children, "whoami") != first
    child._requests.close()  # as the end of the worker would
    wait_until(lambda: not is_alive(first), what="the first child sees the end of its requests")
    child.finish_job()
    children._idle.insert(0, child)


# --- what a job may do --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("raise", {}, "ValueError: no such file"),
        ("exit", {}, "SystemExit: tired"),
        ("die", {}, "its process ended: exit status 9"),
        ("huge", {}, "2000002 bytes as JSON; 1000000 are the most"),
        ("unserializable", {}, "not JSON serializable"),
        ("nothing", {}, "UnknownJob"),
        ("add", {"a": "two"}, "#/args/a"),
        ("made", {"size": FILE_MAX_BYTES + 256}, "10000128 bytes; 10000000 are the most"),
        *(
            ("end", {"how": how}, words)
            for how, words in {
                "segfault": "its process ended: SIGSEGV",
                "recursion": "RecursionError",
                "nested": "RecursionError",
                "100 MB": "100000002 bytes as JSON",
                "NaN": "not JSON compliant",
                "no type": "a file's name and type are text",
                "long name": "longer than",
                "close all": "its process ended",
                "mute": "its process ended",
                "leave a copy and die": "its process ended: exit status 9",
                "broken words": "^Odd$",
                "keyboard": "KeyboardInterrupt",
                "generator": "GeneratorExit",
            }.items()
        ),
    ],
)
def test_whatever_a_job_does_ends_in_words_and_the_next_one_runs(
    used: Children, name: str, args: dict[str, Any], words: str
) -> None:
    with pytest.raises(ChildError, match=words):
        run(used, name, **args)
    assert run(used, "add", a=1) == 2


@pytest.mark.parametrize("name", ["sleep", "fork"])
def test_a_job_is_killed_at_its_timeout_with_all_it_started(children: Children, name: str) -> None:
    leader = run(children, "whoami")
    with pytest.raises(ChildTimeout, match=r"killed after 0\.5 s"):
        run(children, name, timeout=0.5)
    wait_until(lambda: is_gone(leader), what="the process group is gone")
    assert run(children, "whoami") != leader


def test_a_timeout_does_not_wait_for_progress_that_is_slow_to_record(
    children: Children, tmp_path: Path
) -> None:
    def slow_progress(fraction: float, step: str) -> None:
        threading.Event().wait(0.1)

    with pytest.raises(ChildTimeout):
        run(
            children,
            "cleans up",
            timeout=0.5,
            progress=slow_progress,
            mark=str(tmp_path / "mark"),
            waits=False,
        )


def test_the_start_of_a_child_is_not_taken_from_the_time_of_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "slow_start.py").write_text("import threading; threading.Event().wait(4)")
    slow = Children([*MODULES, "slow_start"])
    assert run(slow, "add", a=1, timeout=3) == 2
    slow.close()


def test_progress_is_told(children: Children) -> None:
    seen: list[tuple[float, str]] = []
    assert (
        run(children, "steps", progress=lambda fraction, step: seen.append((fraction, step)))
        == "done"
    )
    assert [step for _, step in seen] == ["step 0", "step 1", "step 2"]


def test_a_progress_that_is_no_number_stays_where_it_was(children: Children) -> None:
    seen: list[tuple[float, str]] = []
    with pytest.raises(ChildError, match="TypeError"):
        run(children, "fractions", progress=lambda fraction, step: seen.append((fraction, step)))
    assert seen == [(0.25, "x" * 200)] * 4
    assert all(math.isfinite(fraction) for fraction, _ in seen)


def test_a_file_comes_back_with_its_bytes(children: Children) -> None:
    size = FILE_MAX_BYTES // 256 * 256
    result = children.run("1", "made", {"size": size}, timeout_seconds=20, progress=nothing)
    about = {"name": "bytes.bin", "content_type": "application/x-bytes", "size": size}
    assert result == Result(
        value=about,
        file=File("bytes.bin", bytes(range(256)) * (size // 256), "application/x-bytes"),
    )


def test_large_arguments_reach_the_job(children: Children) -> None:
    with pytest.raises(ChildError, match="'xxx"):
        run(children, "x" * 20_000_000)


def test_a_job_cannot_take_the_next_ones_streams_away(
    children: Children, printed: Callable[[], list[str]]
) -> None:
    run(children, "close streams")
    assert run(children, "streams", "42") == ["", str(PROJECT)]
    assert printed() == ["job 42: here again"]


def test_a_job_gives_way_to_mail_and_web(children: Children) -> None:
    place = run(children, "place")
    assert place["nice"] == os.nice(0) + 5
    assert place["autogroup"].strip().endswith("nice 5")


# --- interrupts ---------------------------------------------------------------------------------------------


def start(
    threads: ThreadPoolExecutor, children: Children, id: str, name: str, mark: Path, **args: Any
) -> "Future[Any]":
    """Run a job in a thread, and return when it has begun."""
    job = threads.submit(run, children, name, id, mark=str(mark), **args)
    wait_until(mark.exists, what="it runs")
    return job


@pytest.mark.parametrize("waits", [True, False])
def test_an_interrupted_job_can_clean_up_and_what_it_returns_does_not_count(
    children: Children, threads: ThreadPoolExecutor, tmp_path: Path, waits: bool
) -> None:
    job = start(threads, children, "1", "cleans up", tmp_path / "mark", waits=waits)
    children.interrupt("1")
    assert isinstance(job.exception(60), Interrupted)
    assert (tmp_path / "mark").read_text() == "cleaned up"
    assert run(children, "add", a=1) == 2


def test_an_interrupted_job_that_does_not_look_is_killed_after_a_moment(
    children: Children, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    leader = run(children, "whoami")
    job = start(threads, children, "1", "deaf", tmp_path / "mark")
    children.interrupt("1")
    assert not job.done()
    assert isinstance(job.exception(60), Interrupted)
    wait_until(lambda: is_gone(leader), what="the process group is gone")


def test_only_the_job_that_is_named_is_interrupted(
    children: Children, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    first = start(threads, children, "1", "cleans up", tmp_path / "1")
    second = start(threads, children, "2", "cleans up", tmp_path / "2")
    children.interrupt("no such job")
    children.interrupt("1")
    assert isinstance(first.exception(60), Interrupted)
    assert not second.done()
    children.interrupt("2")
    assert isinstance(second.exception(60), Interrupted)
    children.interrupt("2")
    # The same job, given back and taken again, is wanted again.
    assert run(children, "add", "2", a=1) == 2


def test_a_job_interrupted_before_it_began_does_not_begin(
    children: Children, threads: ThreadPoolExecutor, tmp_path: Path
) -> None:
    first = run(children, "whoami")
    freeze(first)
    job = threads.submit(run, children, "count and die", "1", mark=str(tmp_path / "mark"))
    wait_until(lambda: "1" in children._busy, what="the request is on its way")
    children.interrupt("1")
    wait_until(lambda: children._busy["1"]._interrupted, what="the interrupt is on its way")
    send_signal(first, signal.SIGCONT)
    assert isinstance(job.exception(60), Interrupted)
    assert not (tmp_path / "mark").exists()


def test_progress_that_raises_in_the_worker_stops_the_job(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwanted(fraction: float, step: str) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        run(children, "cleans up", progress=unwanted, mark=str(tmp_path / "mark"), waits=False)
    assert (tmp_path / "mark").read_text() == "cleaned up"
    leader = run(children, "whoami")
    monkeypatch.setattr(pooled_job, "INTERRUPT_SECONDS", 0.3)
    with pytest.raises(Interrupted):
        run(children, "deaf", progress=unwanted, mark=str(tmp_path / "deaf"))
    assert is_gone(leader)


# --- copies and leftovers -----------------------------------------------------------------------------------


def test_a_forked_copy_neither_answers_nor_goes_on_as_the_child(children: Children) -> None:
    seen: list[str] = []
    assert run(children, "copy", progress=lambda _, step: seen.append(step)) == [0, 3]
    assert seen == []
    leader = run(children, "whoami")
    assert not os.path.isdir("/proc") or group(leader) == [leader]


def test_the_answer_of_another_job_is_not_taken_for_this_ones(children: Children) -> None:
    assert run(children, "forge") == "own"


def test_a_thread_that_a_job_leaves_behind_is_stopped_at_its_next_progress(
    children: Children, tmp_path: Path
) -> None:
    run(children, "leave a thread", mark=str(tmp_path / "mark"))
    wait_until((tmp_path / "mark").exists, what="its progress raised")
    assert run(children, "add", a=1) == 2


# --- what jobs print ----------------------------------------------------------------------------------------


def test_what_a_job_prints_is_in_the_log_by_lines(
    children: Children, printed: Callable[[], list[str]]
) -> None:
    assert (
        run(
            children,
            "print",
            "7",
            lines=['{"id": "7", "result": 1}', "y" * 600, "", "red \x1b[31m"],
        )
        == "printed"
    )
    assert printed() == [
        'job 7: {"id": "7", "result": 1}',
        f"job 7: {'y' * 500}",
        "job 7: red  [31m",
        "job 7: to stderr",
        "job 7: by a child of its own: \N{REPLACEMENT CHARACTER}",
    ]


@pytest.mark.parametrize(("lines", "megabytes"), [([], 100), (["z" * 99] * 1000, 0)])
def test_a_job_that_prints_without_end_ends_and_spares_the_log(
    children: Children, printed: Callable[[], list[str]], lines: list[str], megabytes: int
) -> None:
    assert run(children, "print", "7", lines=lines, megabytes=megabytes) == "printed"
    assert sum(map(len, printed())) < 64_000 * 1.2
    if lines:
        assert printed()[-1] == "job 7: (the rest of what it prints is not shown)"
        assert len(printed()) == 641
    assert run(children, "print", "8", lines=["shown"]) == "printed"
    assert "job 8: shown" in printed()


def test_what_is_printed_after_a_job_is_not_the_next_ones(
    children: Children, printed: Callable[[], list[str]], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    run(children, "print later", "1", go=str(go))
    go.touch()
    wait_until(Path(f"{go}.done").exists, what="it printed")
    run(children, "streams", "2")
    assert printed() == ["job 1: later", "job 2: here again"]


def test_a_crash_says_where_it_was(children: Children, printed: Callable[[], list[str]]) -> None:
    with pytest.raises(ChildError):
        run(children, "end", "7", how="segfault")
    assert any("Segmentation fault" in line for line in printed())
    assert any("jobs_for_tests.py" in line for line in printed())


# --- the application ----------------------------------------------------------------------------------------


def test_a_job_runs_in_the_context_of_the_application_where_it_asks_for_it(
    children: Children,
) -> None:
    assert run(children, "place")["flask"] is False
    seen: list[str] = []
    name, made = run(children, "application", progress=lambda _, step: seen.append(step))
    assert (name, seen) == ("app", ["within"])
    assert run(children, "application") == [name, made]


def test_the_application_is_the_one_that_flask_would_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop.py").write_text(
        "from flask import Flask\ndef create_app():\n    return Flask('shop')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("FLASK_APP", "shop")
    children = Children(MODULES)
    assert run(children, "application")[0] == "shop"
    children.close()
