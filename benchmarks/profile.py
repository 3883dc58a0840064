"""Shows where the time of ours goes, by thread and by function: `python -m benchmarks.profile --help`. Linux only, for /proc."""

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.compare import CLIENTS, GMAIL_25, made
from benchmarks.contender import BODY, CONNECTIONS, Ours
from benchmarks.report import POSTGRESQL, SQLITE
from benchmarks.rig import TICKS_PER_SECOND, Bench, bench, post
from benchmarks.sinks import immediate
from tests.faults.rig import end_on_sigterm
from tests.services import wait_until

MAILS = 10_000  #: what a publisher takes at once, without a worker that sweeps
SHOWN = 25

_PY_SPY = str(Path(sys.executable).with_name("py-spy"))

#: The process, and how much it has done.
Running = tuple[int, Callable[[], float]]


@contextmanager
def posting(rig: Bench, name: str, seconds: float) -> Iterator[Running]:
    with made(rig, name) as one, one.web() as web:
        assert isinstance(one, Ours)
        post(one.port, one.path, BODY, clients=CLIENTS, seconds=1)
        load = threading.Thread(
            target=post,
            args=(one.port, one.path, BODY),
            kwargs={"clients": CLIENTS, "seconds": seconds + 2},
        )
        load.start()
        # The first process of granian only watches the other.
        yield web.tree[-1], lambda: float(one.count("id IS NOT NULL"))
        load.join()


@contextmanager
def delivering(rig: Bench, name: str, seconds: float, *, delayed: bool) -> Iterator[Running]:
    with (GMAIL_25 if delayed else immediate)(rig) as sink, made(rig, name) as one:
        one.fill(MAILS)
        with one.worker(sink, connections=CONNECTIONS) as worker:
            wait_until(lambda: sink.count().mails > 200, 60, what="it delivers")
            yield worker.process.pid, lambda: float(sink.count().mails)


def by_thread(pid: int) -> dict[int, tuple[float, float, int]]:
    """Seconds of the processor in Python and in the system, and changes of threads."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        changes = sum(
            map(int, re.findall(r"ctxt_switches:\s+(\d+)", (task / "status").read_text()))
        )
        found[int(task.name)] = (
            int(fields[11]) / TICKS_PER_SECOND,
            int(fields[12]) / TICKS_PER_SECOND,
            changes,
        )
    return found


def names(pid: int) -> dict[int, str]:
    """Of threads, without their numbers."""
    told = subprocess.run(
        [_PY_SPY, "dump", "--json", "--pid", str(pid)], capture_output=True, text=True, check=True
    ).stdout
    return {
        thread["os_thread_id"]: re.sub(r"[-_0-9]+$", "", thread["thread_name"] or "?")
        for thread in json.loads(told)
    }


def by_function(pid: int, seconds: float, file: Path) -> Counter[str]:
    """Count how often a function had the interpreter, or one that it called."""
    subprocess.run(
        [
            _PY_SPY,
            "record",
            "--gil",
            "--nonblocking",
            "--rate",
            "200",
            "--duration",
            str(int(seconds)),
            "--format",
            "raw",
            "--output",
            str(file),
            "--pid",
            str(pid),
        ],
        capture_output=True,
        check=True,
    )
    found: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        for function in {re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")}:
            found[function] += int(count)
        found["all"] += int(count)
    return found


def told(pid: int, done: Callable[[], float], seconds: float, file: Path) -> Iterator[str]:
    known, before, started, first = names(pid), by_thread(pid), time.monotonic(), done()
    time.sleep(seconds)
    after, took, count = by_thread(pid), time.monotonic() - started, done() - first
    yield f"{count / took:,.0f} a second; for each, by thread:"
    sums: Mapping[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0.0])
    for id, spent in after.items():
        for place, (now, then) in enumerate(zip(spent, before.get(id, (0, 0, 0)), strict=True)):
            sums[known.get(id, "other")][place] += now - then
        sums[known.get(id, "other")][3] += 1
    for name, (user, system, changes, threads) in sorted(
        sums.items(), key=lambda item: -item[1][0]
    ):
        if changes > count / 100:
            yield (
                f"  {name:<24}{threads:>4.0f} threads{user / count * 1e6:>7.0f} us in Python{system / count * 1e6:>6.0f} in the system"
                f"{changes / count:>6.1f} changes of threads"
            )
    functions = by_function(pid, seconds, file)
    yield f"who has the interpreter, of {functions.pop('all', 0)} looks:"
    yield from (
        f"  {looks:>6}  {name}"
        for name, looks in functions.most_common()
        if "mailroom" in name or "celery" in name
    )


def main() -> None:
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("what", choices=["posts", "gmail25", "immediate"])
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--seconds", type=float, default=5)
    options = parser.parse_args()
    name = SQLITE if options.database == "sqlite" else POSTGRESQL
    with bench(postgres=name == POSTGRESQL) as rig:
        running = (
            posting(rig, name, 2 * options.seconds)
            if options.what == "posts"
            else delivering(rig, name, options.seconds, delayed=options.what == "gmail25")
        )
        with running as (pid, done):
            for number, line in enumerate(told(pid, done, options.seconds, rig.path("profile"))):
                if number < SHOWN + 10:
                    print(line, flush=True)


if __name__ == "__main__":
    main()
