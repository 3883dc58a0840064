"""Measures contenders side by side, in interleaved rounds: `python -m benchmarks.compare --help`."""

import argparse
import functools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace

from benchmarks import report
from benchmarks.contender import (
    BATCH,
    BODY,
    CONNECTIONS,
    Contender,
    FastAPICelery,
    Node,
    Ours,
    Tutorial,
    TutorialOnGunicorn,
)
from benchmarks.report import COMMIT, GUNICORN, NODE, POSTGRESQL, SQLITE, TUTORIAL
from benchmarks.rig import Bench, Process, ask, bench, post, told_by
from benchmarks.sinks import Sink, gmail_like, immediate
from tests.faults.rig import end_on_sigterm
from tests.services import free_port, wait_until

CLIENTS = 32
TWO_WORKERS, FASTAPI = f"{POSTGRESQL}, 2 workers", "FastAPI + Celery"
RAW, PUBLISH = "raw SMTP", "confirmed publish alone"
_OTHERS: dict[str, type[Contender]] = {
    TUTORIAL: Tutorial,
    GUNICORN: TutorialOnGunicorn,
    FASTAPI: FastAPICelery,
    NODE: Node,
}

#: What one run found, by the name of the figure.
Figures = Mapping[str, float]


@contextmanager
def made(bench: Bench, name: str) -> Iterator[Contender]:
    """The contender of this name, with a broker, and a database, of its own."""
    with bench.vhost() as broker_url:
        if name in _OTHERS:
            yield _OTHERS[name](bench, broker_url)
            return
        with bench.database("sqlite" if name == SQLITE else "postgresql") as database_url:
            yield Ours(bench, broker_url, database_url=database_url)


def posts(bench: Bench, name: str, *, clients: int, seconds: float) -> Figures:
    """Single mails POSTed by so many clients, workers stopped."""
    if name == COMMIT:
        return told_by(bench, ["commit", "--seconds", str(seconds)])
    if name == PUBLISH:
        with bench.vhost() as broker_url:
            return told_by(
                bench, ["publish", "--broker-url", broker_url, "--seconds", str(seconds)]
            )
    with made(bench, name) as one, one.web():
        post(one.port, one.path, BODY, clients=clients, seconds=1)
        return vars(post(one.port, one.path, BODY, clients=clients, seconds=seconds))


def batches(bench: Bench, name: str, *, seconds: float) -> Figures:
    """Mails POSTed a thousand at a time by one client, workers stopped."""
    body = {
        "common": {"subject": BODY["subject"], "text": BODY["contents"]},
        "messages": [{"to": f"bob{number}@example.org"} for number in range(BATCH)],
    }
    with made(bench, name) as one, one.web():
        ask(one.port, "/v1/messages/batch", body)
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            ask(one.port, "/v1/messages/batch", body)
            count += BATCH
        return {"per_second": count / (time.perf_counter() - started)}


def delivered(
    bench: Bench,
    name: str,
    *,
    sink_of: Callable[[Bench], AbstractContextManager[Sink]],
    mails: int,
    connections: int = CONNECTIONS,
) -> Figures:
    """Mails that wait in the queue, delivered by a worker that is started then."""
    with sink_of(bench) as sink:
        if name == RAW:
            ca = ["--ca-file", str(bench.certificates.ca_file)] if sink.tls else []
            command = [
                "python",
                "-m",
                "benchmarks.limits",
                "deliver",
                "--port",
                str(sink.port),
                "--mails",
                str(mails),
                "--connections",
                str(connections),
                *ca,
            ]
            with bench.process(command, name="raw") as process:
                return watched([process], sink, mails)
        with made(bench, name) as one:
            one.fill(mails)
            with (
                one.worker(sink, connections=connections) as process,
                one.worker(sink, connections=connections)
                if name == TWO_WORKERS
                else nullcontext() as second,
            ):
                return watched([process, *([second] if second else [])], sink, mails)


def watched(processes: Sequence[Process], sink: Sink, mails: int) -> Figures:
    """Wait until all are there. What the processor did is read from the first mail to the last look before the end."""
    seen: list[tuple[int, float]] = []
    memory = [0.0]

    def all_there() -> bool:
        if (found := sink.count().mails) and found < mails:
            seen.append((found, sum(process.cpu_seconds for process in processes)))
            memory[0] = max(memory[0], sum(process.pss_mb for process in processes))
        time.sleep(0.1)
        return found >= mails

    wait_until(all_there, 180, what=f"{mails} mails are there:\n{processes[0].text()[-1000:]}")
    (first, before), (last, after) = seen[0], seen[-1]
    cpu = {"cpu_us": (after - before) / (last - first) * 1e6} if last > first else {}
    return {"per_second": sink.count().per_second, "pss_mb": memory[0], **cpu}


def started(bench: Bench, name: str) -> Figures:
    """`flask up`, from its start to the first plain mail in its inbox; and what memory it has then."""
    port, smtp_port = free_port(), free_port()
    environment = {
        "MAILASYNC_ENV_FILE": "",
        "MAILASYNC_PORT": str(port),
        "MAILASYNC_INBOX_SMTP_PORT": str(smtp_port),
        "MAILASYNC_DATABASE_URL": f"sqlite:///{bench.path('up')}.sqlite3",
    }
    with bench.process(
        ["python", "-m", "flask", "db", "upgrade"], name="upgrade", env=environment
    ) as process:
        assert process.process.wait(60) == 0, process.text()
    began = time.perf_counter()
    with bench.process(["python", "-m", "flask", "up"], name="up", env=environment) as process:
        process.serves(port)
        ask(port, "/v1/messages", BODY)
        assert ask(port, "/inbox/api/messages?to=bob@example.org&wait=15")["data"], process.text()
        return {"seconds": time.perf_counter() - began, "pss_mb": process.pss_mb}


@dataclass(frozen=True)
class Measure:
    """Something to measure of several, each once in a round; `run` may take other arguments for a slow one."""

    key: str
    run: Callable[..., Figures]
    names: Sequence[str]
    slow: Mapping[str, int] = field(default_factory=dict)


GMAIL_25, GMAIL_100 = (
    functools.partial(gmail_like, delay_ms=25),
    functools.partial(gmail_like, delay_ms=100),
)
MEASURES = (
    Measure(
        "posts",
        functools.partial(posts, clients=CLIENTS, seconds=4),
        (TUTORIAL, GUNICORN, FASTAPI, NODE, SQLITE, POSTGRESQL, PUBLISH),
    ),
    Measure(
        "latency",
        functools.partial(posts, clients=1, seconds=4),
        (TUTORIAL, GUNICORN, FASTAPI, NODE, SQLITE, POSTGRESQL, COMMIT),
    ),
    Measure("batches", functools.partial(batches, seconds=4), (SQLITE, POSTGRESQL)),
    Measure(
        "gmail25",
        functools.partial(delivered, sink_of=GMAIL_25, mails=8000),
        (TUTORIAL, NODE, SQLITE, POSTGRESQL, RAW),
        {TUTORIAL: 110, NODE: 4000},
    ),
    Measure(
        "gmail100",
        functools.partial(delivered, sink_of=GMAIL_100, mails=2000),
        (TUTORIAL, NODE, SQLITE, POSTGRESQL, RAW),
        {TUTORIAL: 30, NODE: 1000},
    ),
    Measure(
        "immediate",
        functools.partial(delivered, sink_of=immediate, mails=10_000),
        (TUTORIAL, NODE, SQLITE, POSTGRESQL, TWO_WORKERS, RAW),
        {TUTORIAL: 4000, NODE: 15_000, RAW: 20_000},
    ),
    Measure("start", started, (SQLITE,)),
)


def measured(bench: Bench, measures: Sequence[Measure], rounds: int) -> report.Results:
    """Medians of all rounds: of each measure, by contender and figure."""
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for number in range(rounds):
        for measure in measures:
            for name in measure.names:
                more = {"mails": measure.slow[name]} if name in measure.slow else {}
                figures = measure.run(bench, name, **more)
                print(
                    f"round {number + 1}, {measure.key}, {name}: "
                    + ", ".join(f"{what} {value:.5g}" for what, value in figures.items()),
                    flush=True,
                )
                for what, value in figures.items():
                    found[measure.key][name][what].append(value)
    return {
        key: {
            name: {what: statistics.median(values) for what, values in figures.items()}
            for name, figures in names.items()
        }
        for key, names in found.items()
    }


def main() -> None:
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--only",
        choices=[measure.key for measure in MEASURES],
        action="append",
        help="as often as you like; nothing is written then",
    )
    parser.add_argument(
        "--of", action="append", default=[], help="only of those whose name begins so"
    )
    options = parser.parse_args()
    chosen = [
        replace(
            measure,
            names=[
                name
                for name in measure.names
                if not options.of or name.startswith(tuple(options.of))
            ],
        )
        for measure in MEASURES
        if not options.only or measure.key in options.only
    ]
    began = time.monotonic()
    with bench(
        postgres=any("PostgreSQL" in name for measure in chosen for name in measure.names)
    ) as rig:
        results = measured(rig, chosen, options.rounds)
        all_of_it = not options.only and not options.of
        told = report.written(
            results, report.versions(rig) if all_of_it else "not written", rounds=options.rounds
        )
    print(told)
    print(f"took {time.monotonic() - began:.0f} s", file=sys.stderr)
    if all_of_it:
        report.keep(told, results)


if __name__ == "__main__":
    main()
