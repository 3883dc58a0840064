"""A backlog of a million mails: what it costs to claim, to keep and to pass by: `python -m tests.faults.scale --help`."""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import text

from mailroom.store.db.database import Database
from mailroom.store.messages.claims import Claims
from mailroom.store.workers import Heartbeat
from tests.faults import backlog
from tests.faults.rig import Rig, end_on_sigterm, private_servers, running
from tests.services import wait_until
from tests.services.processes import pss_mb

SMALL = 1_000
CHUNK = 100
PUBLISHES_MAX, CLAIM_MAX, SINGLE_MAX_SECONDS, MEMORY_MAX = 1.05, 1.2, 2.0, 1.25


def claim_ms(rig: Rig, *, chunks: int = 60) -> float:
    """The time to claim and load one mail of a nudge of 100, in milliseconds; what was claimed is given back.

    It is the fastest tenth's: what else runs on the machine only adds to it.
    """
    database = Database(rig.database_url)
    try:
        claims = Claims(database, f"scale-{time.monotonic_ns()}", 60.0)
        Heartbeat(database, claims.owner, "scale", []).beat()
        took = []
        for chunk in range(chunks):
            ids = backlog.copied((chunk % (SMALL // CHUNK)) * CHUNK, CHUNK)
            started = time.perf_counter()
            claimed = claims.claim(ids)
            took.append(time.perf_counter() - started)
            assert len(claimed) == CHUNK
            for claim in claimed:
                claims.release(claim)
        Heartbeat(database, claims.owner, "scale", []).stop()
        return sorted(took)[chunks // 10] / CHUNK * 1000
    finally:
        database.close()


def count_publishes(rig: Rig) -> None:
    """Have the database note each time a row is marked as published, and each time that is taken back."""
    kinds = {
        "marked": (
            "NEW.published_at IS NOT NULL AND (OLD.published_at IS NULL OR NEW.published_at <> OLD.published_at)",
            1,
        ),
        "unmarked": (
            "NEW.published_at IS NULL AND OLD.published_at IS NOT NULL AND OLD.state = 'queued'",
            -1,
        ),
    }
    statements = ["CREATE TABLE faults_publishes (message VARCHAR(200), many INTEGER)"]
    for kind, (condition, many) in kinds.items():
        insert = f"INSERT INTO faults_publishes VALUES (NEW.id, {many})"
        if rig.is_sqlite:
            statements.append(
                f"CREATE TRIGGER scale_{kind} AFTER UPDATE OF published_at ON messages WHEN {condition} BEGIN {insert}; END"
            )
        else:
            statements += [
                f"CREATE FUNCTION scale_{kind}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {insert}; RETURN NULL; END $$",
                f"CREATE TRIGGER scale_{kind} AFTER UPDATE OF published_at ON messages FOR EACH ROW WHEN ({condition}) "
                f"EXECUTE FUNCTION scale_{kind}()",
            ]
    with rig.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def memory_mb(rig: Rig) -> tuple[float, float]:
    """Of web and of workers."""
    return pss_mb(rig.pids(*rig.webs)), pss_mb(rig.pids(*rig.workers))


def single_seconds(rig: Rig, timeout: float) -> float:
    """How long a new mail takes from its POST to the mail server; `timeout` if it did not come by then."""
    started = time.monotonic()
    subject = rig.load.post("new@example.org", label="new").subject.encode()
    try:
        wait_until(
            lambda: any(subject in payload.data for payload in rig.smtpd.payloads[-2000:]),
            timeout=timeout,
            what="the new mail is there",
        )
    except AssertionError:
        return timeout
    return time.monotonic() - started


def measure(rig: Rig, options: argparse.Namespace) -> dict[str, tuple[float, float | None]]:
    """Figure and bound of each thing that was measured."""
    template = rig.load.post("bob@example.org", label="template").id
    backlog.copy(rig.engine, template, first=0, count=SMALL)
    small = claim_ms(rig)
    started = time.monotonic()
    backlog.copy(rig.engine, template, first=SMALL, count=options.rows - SMALL)
    say(f"{options.rows} rows in {time.monotonic() - started:.0f} s")
    large = claim_ms(rig)
    count_publishes(rig)
    rig.add_workers(rig.worker_count)
    wait_until(lambda: rig.smtpd.messages, what="the first is sent")
    began, sent, memory, singles = time.monotonic(), len(rig.smtpd.messages), [memory_mb(rig)], []
    while time.monotonic() - began < options.seconds:
        singles.append(single_seconds(rig, 10.0))
        memory.append(memory_mb(rig))
        say(
            f"{time.monotonic() - began:4.0f} s: {len(rig.smtpd.messages) - sent} sent, a new one took {singles[-1]:.2f} s, "
            f"web {memory[-1][0]:.0f} MB, workers {memory[-1][1]:.0f} MB"
        )
    rate = (len(rig.smtpd.messages) - sent) / (time.monotonic() - began)
    for worker in list(rig.workers):
        rig.stop_worker(worker)
    rows = int(rig.scalar("SELECT count(DISTINCT message) FROM faults_publishes"))
    publishes = int(
        rig.scalar("SELECT coalesce(sum(many), 0) FROM faults_publishes WHERE many > 0")
    )
    taken_back = int(
        rig.scalar("SELECT coalesce(-sum(many), 0) FROM faults_publishes WHERE many < 0")
    )
    middle = max(1, len(memory) // 3)
    return {
        "claim ms per mail, 1,000 rows": (small, None),
        f"claim ms per mail, {options.rows:,} rows": (large, small * CLAIM_MAX),
        "rows published": (rows, None),
        "publishes per row": ((publishes - taken_back) / max(1, rows), PUBLISHES_MAX),
        "mails sent per second": (rate, None),
        "new mail, seconds, median": (statistics.median(singles), None),
        "new mail, seconds, longest": (max(singles), SINGLE_MAX_SECONDS),
        "web PSS MB at the end": (memory[-1][0], memory[middle][0] * MEMORY_MAX),
        "worker PSS MB at the end": (memory[-1][1], memory[middle][1] * MEMORY_MAX),
    }


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    end_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m tests.faults.scale", description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long the backlog is worked off and watched"
    )
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    missed = 0
    for database in ["sqlite", "postgresql"] if options.database == "both" else [options.database]:
        with tempfile.TemporaryDirectory(
            prefix="mailasync-scale-", ignore_cleanup_errors=True
        ) as name:
            # PostgreSQL, which refuses to run as root, has to reach its own.
            Path(name).chmod(0o755)
            say(
                f"python -m tests.faults.scale --database {database} --rows {options.rows} --seconds {options.seconds:g}"
            )
            settings = {"LEASE_SECONDS": "20"}
            with (
                private_servers(Path(name) / "servers", database=database) as servers,
                running(Rig(**servers, settings=settings, worker_count=0)) as rig,
            ):
                rig.worker_count = options.workers
                for what, (figure, bound) in measure(rig, options).items():
                    good = bound is None or figure <= bound
                    missed += not good
                    say(
                        f"{what:<34} {figure:>12.3f}"
                        + (
                            ""
                            if bound is None
                            else f"  at most {bound:.3f}  {'ok' if good else 'MISSED'}"
                        )
                    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
