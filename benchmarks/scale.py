"""Draws what changes with size: the queue, the run, the workers, the connections: `python -m benchmarks.scale --help`."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from benchmarks import report
from benchmarks.compare import made
from benchmarks.contender import BODY, CONNECTIONS, Ours
from benchmarks.report import POSTGRESQL, SQLITE
from benchmarks.rig import Bench, Process, ask, bench, post
from benchmarks.sinks import Sink, gmail_like, immediate
from tests.faults import backlog
from tests.faults.rig import end_on_sigterm
from tests.services import wait_until

QUEUED = (1_000, 100_000, 1_000_000)
WORKERS = (1, 2, 4)
OPEN = (1, 32, 100, 300, 1_000)
DELAY_MS = 25


@dataclass
class Queue:
    """Mails that wait for workers; `hold` keeps as many there as there should be."""

    one: Ours
    sink: Sink
    template: str
    made: int = 0

    def single_seconds(self) -> float:
        """Measure how long a mail of its own takes from its POST until it is sent."""
        began = time.perf_counter()
        id = ask(self.one.port, "/v1/messages", BODY)["id"]
        wait_until(
            lambda: self.one.count(f"id = '{id}' AND state = 'sent'"),
            60,
            what="a single mail is sent",
        )
        return time.perf_counter() - began

    def hold(self, count: int) -> None:
        """Add so many that `count` wait, once half of them are gone."""
        missing = count - (self.made - self.sink.count().mails)
        if missing > count // 2:
            backlog.copy(self.one.engine, self.template, first=self.made, count=missing)
            self.made += missing


@contextmanager
def working(
    bench: Bench, name: str, sink: Sink, *, workers: int
) -> Iterator[tuple[Queue, list[Process]]]:
    """An empty queue, and workers that wait for it."""
    with made(bench, name) as one, ExitStack() as stack:
        assert isinstance(one, Ours)
        stack.enter_context(one.web())
        processes = [
            stack.enter_context(one.worker(sink, connections=CONNECTIONS)) for _ in range(workers)
        ]
        template = ask(one.port, "/v1/messages", BODY | {"priority": "low"})["id"]
        wait_until(lambda: one.count("state = 'sent'"), 60, what="a first mail is sent")
        yield Queue(one, sink, template), processes


def worked(
    queue: Queue, processes: Sequence[Process], *, queued: int, seconds: float
) -> report.Point:
    """Mails a second, and microseconds of the workers' processors for one, while so many wait; and the longest wait of a single mail."""
    queue.hold(queued)
    before = queue.sink.count().mails
    wait_until(lambda: queue.sink.count().mails > before + 200, 60, what="workers have begun")
    began, sent, cpu = (
        time.perf_counter(),
        queue.sink.count().mails,
        sum(process.cpu_seconds for process in processes),
    )
    singles: list[float] = []
    while (took := time.perf_counter() - began) < seconds:
        queue.hold(queued)
        if len(singles) < took:
            singles.append(queue.single_seconds())
        time.sleep(0.05)
    mails, took = queue.sink.count().mails - sent, time.perf_counter() - began
    cpu_us = (sum(process.cpu_seconds for process in processes) - cpu) / mails * 1e6
    return report.Point(
        queued, {"per_second": mails / took, "cpu_us": cpu_us, "single_seconds": max(singles)}
    )


def costs(bench: Bench, name: str, seconds: float) -> Iterator[report.Point]:
    """Yield what a mail costs, by how many wait."""
    for queued in QUEUED:
        with immediate(bench) as sink, working(bench, name, sink, workers=1) as (queue, processes):
            yield worked(queue, processes, queued=queued, seconds=seconds)


def workers(bench: Bench, name: str, seconds: float) -> Iterator[report.Point]:
    """Yield what more workers bring where the mail server takes its time."""
    for count in WORKERS:
        with (
            gmail_like(bench, delay_ms=DELAY_MS) as sink,
            working(bench, name, sink, workers=count) as (queue, processes),
        ):
            yield replace(worked(queue, processes, queued=20_000, seconds=seconds), at=count)


def connections(bench: Bench, name: str, seconds: float) -> Iterator[report.Point]:
    """Single POSTs from so many clients who keep their connections open."""
    with made(bench, name) as one, one.web() as web:
        for clients in OPEN:
            load = post(one.port, one.path, BODY, clients=clients, seconds=seconds)
            yield report.Point(clients, {**vars(load), "pss_mb": web.pss_mb})


def run(bench: Bench, name: str, mails: int) -> Iterator[report.Point]:
    """A worker's memory, by how many mails it has sent."""
    with immediate(bench) as sink, working(bench, name, sink, workers=1) as (queue, processes):
        next_at = 0
        while (sent := sink.count().mails) < mails:
            queue.hold(min(20_000, mails - sent + 1))
            if sent >= next_at:
                yield report.Point(sent, {"pss_mb": processes[0].pss_mb})
                next_at = sent + mails // 100
            time.sleep(0.2)
            assert processes[0].process.poll() is None, processes[0].text()[-2000:]
        yield report.Point(sent, {"pss_mb": processes[0].pss_mb})


def main() -> None:
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument(
        "--mails", type=int, default=1_000_000, help="in the long run, on each database"
    )
    parser.add_argument("--seconds", type=float, default=20, help="of each other measure")
    parser.add_argument(
        "--only",
        choices=list(report.CURVES),
        action="append",
        help="as often as you like; the others' curves stay",
    )
    options = parser.parse_args()
    measures = {
        "costs": (costs, options.seconds),
        "workers": (workers, options.seconds),
        "connections": (connections, options.seconds),
        "run": (run, options.mails),
    }
    with bench() as rig:
        for key, (measure, size) in measures.items():
            if options.only and key not in options.only:
                continue
            lines: dict[str, list[report.Point]] = {}
            for name in (SQLITE, POSTGRESQL):
                for point in measure(rig, name, size):
                    print(
                        f"{key}, {name}, {point.at:,}: "
                        + ", ".join(
                            f"{what} {value:,.5g}" for what, value in point.figures.items()
                        ),
                        flush=True,
                    )
                    lines.setdefault(name, []).append(point)
            report.keep_curve(key, lines, report.versions(rig, others=False))


if __name__ == "__main__":
    main()
