"""Random faults over a long load: `python -m tests.faults.soak --help`.

Posts `--mails` mails in as many rounds as there are faults: in each, one fault happens while mails are posted, and then all has to
become final before the next. Ends with exit code 1 if anything was lost, doubled without a recorded reason, or refused in a broker's fault.
"""

import argparse
import random
import secrets
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import gmail
from tests.faults.judge import Verdict
from tests.faults.load import p99
from tests.faults.rig import Rig, end_on_sigterm, private_servers, running
from tests.faults.trouble import Fault, draw

ACCEPT_MAX_SECONDS = 2.0
DELIVERED_MAX_SECONDS = 60.0


@dataclass
class Facts:
    """What was measured of one kind of fault, over all rounds."""

    rounds: int = 0
    posts: int = 0
    refused: int = 0  #: answers that were not 2xx, or none
    accept_p99: float = 0.0  #: the worst round's, in seconds
    #: the longest wait from a fault's end until all was final, in seconds
    delivered_after: float = 0.0


@dataclass
class Soak:
    rig: Rig
    mails: int
    settle_seconds: float
    facts: dict[str, Facts] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def round(self, fault: Fault, mails: int, rng: random.Random) -> None:
        """One fault in the middle of so many mails, and the time until all are final."""
        rig, facts = self.rig, self.facts.setdefault(fault.name, Facts())
        rig.load.begin(mails, fault.name)
        rig.load.wait_posted(rng.randrange(2, 10))
        try:
            fault.harm(rig, rng)
        except Exception as e:  # The run goes on, and is not good.
            self.problems.append(f"{fault.name}: {type(e).__name__} {e}")
        ended = time.monotonic()
        posts = rig.load.end()
        if not rig.settle(self.settle_seconds):
            self.problems.append(
                f"{fault.name}: {rig.unfinished()} not final {self.settle_seconds:g} s after its end"
            )
        refused = sum(not post.accepted for post in posts)
        if fault.kind == "broker" and (refused or p99(posts) > ACCEPT_MAX_SECONDS):
            self.problems.append(
                f"{fault.name}: {refused} of {len(posts)} not accepted, p99 {p99(posts):.2f} s"
            )
        facts.rounds += 1
        facts.posts += len(posts)
        facts.refused += refused
        facts.accept_p99 = max(facts.accept_p99, p99(posts))
        facts.delivered_after = max(facts.delivered_after, time.monotonic() - ended)

    def run(self, faults: list[Fault], rng: random.Random) -> None:
        started = time.monotonic()
        for number, fault in enumerate(faults):
            done = sum(post.accepted for post in self.rig.load.posts)
            progress(number, len(faults), done, self.mails, time.monotonic() - started, fault.name)
            self.round(fault, (self.mails - done) // (len(faults) - number), rng)
        progress(
            len(faults),
            len(faults),
            sum(post.accepted for post in self.rig.load.posts),
            self.mails,
            time.monotonic() - started,
            "",
        )
        print(flush=True)


def progress(number: int, of: int, accepted: int, mails: int, seconds: float, name: str) -> None:
    """A line that a terminal overwrites, and that a file gets once a round."""
    bar = "#" * (20 * number // of)
    end = "" if sys.stdout.isatty() else "\n"
    print(
        f"\r[{bar:<20}] {number}/{of} faults, {accepted}/{mails} mails, {seconds:4.0f} s  {name:<34}",
        end=end,
        flush=True,
    )


def table(facts: dict[str, Facts]) -> str:
    lines = [
        f"{'fault':<34} {'rounds':>6} {'posts':>6} {'not 2xx':>7} {'accept p99 s':>12} {'all final after s':>17}"
    ]
    lines += [
        f"{name:<34} {f.rounds:>6} {f.posts:>6} {f.refused:>7} {f.accept_p99:>12.3f} {f.delivered_after:>17.1f}"
        for name, f in sorted(facts.items())
    ]
    return "\n".join(lines)


def counters(verdict: Verdict, rig: Rig, faults: int, seconds: float) -> str:
    nudges = Counter(rig.nudges_recovered)
    rows = {
        "accepted": verdict.accepted,
        "faults": faults,
        "ok": verdict.ok,
        "lost": verdict.lost,
        "recovered": verdict.recovered,
        "unexpected": verdict.unexpected,
        "duplicated, explained": verdict.duplicated,
        "duplicated, unexplained": verdict.unexplained,
        "unfinished": verdict.unfinished,
        "uncertain attempts": verdict.uncertain_attempts,
        "nudges unpublished for 5 s": nudges["unpublished"],
        "nudges lost after a confirm": nudges["lost"],
        "seconds": round(seconds),
    }
    return "\n".join(f"{name:<28} {value:>8}" for name, value in rows.items())


def main() -> int:
    end_on_sigterm()
    options = read_options()
    if options.gmail_like:
        return gmail.run(options)
    rng = random.Random(options.seed)
    directory = Path(tempfile.mkdtemp(prefix="mailasync-soak-", dir=options.directory))
    directory.chmod(0o755)  # PostgreSQL, which refuses to run as root, has to reach its own.
    print(
        f"python -m tests.faults.soak --database {options.database} --mails {options.mails} --faults {options.faults} --workers "
        f"{options.workers} --webs {options.webs} --rabbitmq {options.rabbitmq} --rate {options.rate:g} --lease {options.lease} --seed "
        f"{options.seed}" + (f" --only '{options.only}'" if options.only else ""),
        flush=True,
    )
    settings = {"LEASE_SECONDS": str(options.lease)} | (
        {"QUEUE_TYPE": "quorum"} if options.rabbitmq > 1 else {}
    )
    started = time.monotonic()
    with (
        private_servers(
            directory / "servers", database=options.database, rabbitmq=options.rabbitmq
        ) as servers,
        running(
            Rig(
                **servers,
                settings=settings,
                worker_count=options.workers,
                web_count=options.webs,
                rate=options.rate,
            )
        ) as rig,
    ):
        soak = Soak(rig, options.mails, options.settle)
        faults = draw(rig, options.faults, rng, only=options.only)
        soak.run(faults, rng)
        verdict = rig.verdict(options.settle)
        print(
            table(soak.facts),
            "",
            counters(verdict, rig, len(faults), time.monotonic() - started),
            "",
            sep="\n",
        )
        bad = [*soak.problems, *verdict.problems]
    print("\n".join(bad) or "nothing lost, nothing doubled without a recorded reason", flush=True)
    if bad:
        print(f"logs are in {directory}")
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    return 0


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--mails", type=int, default=10_000, help="how many have to be accepted")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--webs", type=int, default=1, help="web processes; more than one needs postgresql"
    )
    parser.add_argument(
        "--rabbitmq", type=int, default=1, help="nodes; with 3 the queues are quorum queues"
    )
    parser.add_argument("--rate", type=float, default=60.0, help="posts per second at most")
    parser.add_argument(
        "--lease", type=int, default=3, help="LEASE_SECONDS; the product's default is 20"
    )
    parser.add_argument(
        "--settle",
        type=float,
        default=60.0,
        help="seconds after a fault in which all has to be final",
    )
    parser.add_argument("--only", default="", help="only faults with this in their name")
    parser.add_argument(
        "--gmail-like",
        action="store_true",
        help="no faults, but a next hop that keeps copies in Sent, and whose replies get lost",
    )
    parser.add_argument(
        "--replies-lost", type=float, default=0.05, help="of the final dots; with --gmail-like"
    )
    parser.add_argument(
        "--dots-lost", type=float, default=0.01, help="of the final dots; with --gmail-like"
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument(
        "--directory", default=None, help="where the run's files go; it stays if something is wrong"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
