"""A soak against a stand that is like Gmail: `python -m tests.faults.soak --gmail-like`.

Postfix takes the mails, files a copy of each in the Sent folder of a Dovecot, and says only by bounces who is unknown. Between it and
us replies to final dots get lost, and some dots too. Ends with exit code 1 if a mail was lost or doubled, or a bounce missed.
"""

import argparse
import contextlib
import random
import re
import shutil
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import text

from mailroom.store.db.database import Database
from mailroom.store.events.counters import Counters
from mailroom.store.messages.bounces import IGNORED
from mailroom.store.messages.lookups import FOUND, NOT_FOUND
from tests.faults.judge import standings
from tests.faults.load import p99
from tests.faults.rig import Rig, private_servers, running
from tests.services import wait_until
from tests.services.dovecot import Dovecot
from tests.services.postfix import Postfix
from tests.services.processes import FINAL
from tests.services.smtp_link import LOST, PASSED, UNANSWERED, SmtpLink

_MESSAGE_ID = re.compile(rb"^Message-ID:\s*<([^>]+)>", re.MULTILINE | re.IGNORECASE)
UNKNOWN = "nobody-"
SETTLE_SECONDS = 300.0


@dataclass
class Verdict:
    """The outcome of the mails that were accepted."""

    accepted: int = 0
    lost: int = 0  #: no copy is in Sent
    doubled: int = 0  #: more than one is
    not_sent: int = 0  #: taken, and not told as such
    bounced: int = 0  #: recipients that came back
    bounces_missed: int = 0
    uncertain_attempts: int = 0
    #: from the reply to a mail until its bounce was applied, in seconds
    rounds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def people(number: int) -> tuple[str, ...]:
    """Some are unknown to the server, which takes mail to them all the same."""
    bob, nobody = f"bob-{number}@example.net", f"{UNKNOWN}{number}@example.org"
    if number % 20 == 7:
        return (bob, nobody, f"carol-{number}@example.net")
    return (nobody,) if number % 10 == 3 else (bob,)


def run(options: argparse.Namespace) -> int:
    directory = Path(tempfile.mkdtemp(prefix="mailasync-soak-", dir=options.directory))
    directory.chmod(0o755)
    rng = random.Random(options.seed)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        dovecot = stack.enter_context(Dovecot(directory / "dovecot"))
        postfix = stack.enter_context(Postfix(directory / "postfix", dovecot))
        link = SmtpLink(postfix.port, lambda: fate(rng, options))
        stack.callback(link.close)
        servers = stack.enter_context(
            private_servers(directory / "servers", database=options.database)
        )
        made = Rig(
            **servers,
            settings=settings(dovecot, link, options.lease),
            worker_count=options.workers,
            rate=options.rate,
        )
        made.load.people = people
        rig = stack.enter_context(running(made))
        rig.load.begin(options.mails, "gmail")
        posts = rig.load.end(timeout=60 + 10 * options.mails / options.rate)
        settle(rig, postfix)
        verdict = judge(rig, dovecot)
        print(figures(rig, verdict, link, p99(posts), time.monotonic() - started), flush=True)
    if verdict.problems:
        print("\n".join(verdict.problems[:20]), f"logs are in {directory}", sep="\n")
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    print("nothing lost, nothing doubled, no bounce missed", flush=True)
    return 0


def settings(dovecot: Dovecot, link: SmtpLink, lease: int) -> dict[str, str]:
    return {
        "SMTP_HOST": link.host,
        "SMTP_PORT": str(link.port),
        "SMTP_AUTH": "on",
        "SMTP_CA_FILE": str(dovecot.certificates.ca_file),
        "MAIL_USERNAME": dovecot.user,
        "MAIL_PASSWORD": dovecot.password,
        "MAIL_FROM": dovecot.user,
        "IMAP_HOST": dovecot.host,
        "IMAP_PORT": str(dovecot.port),
        "LEASE_SECONDS": str(lease),
    }


def fate(rng: random.Random, options: argparse.Namespace) -> str:
    """Choose what becomes of a final dot."""
    drawn = rng.random()
    if drawn < options.replies_lost:
        return UNANSWERED
    return LOST if drawn < options.replies_lost + options.dots_lost else PASSED


def settle(rig: Rig, postfix: Postfix) -> None:
    """Wait until all is final, the looks in the Sent folder hastened, and until no bounce is on its way."""
    wait_until(lambda: is_settled(rig, postfix), timeout=SETTLE_SECONDS, what="all is final")
    postfix.flush()
    on_its_way = (
        f"SELECT count(*) FROM recipients WHERE address LIKE '{UNKNOWN}%' AND state = 'sent'"
    )
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not rig.scalar(on_its_way), what="all bounces are read")


def is_settled(rig: Rig, postfix: Postfix) -> bool:
    """Tell whether all is final; what is only looked for is looked for at once, if Postfix has delivered all."""
    unfinished = rig.unfinished()
    looked_for = rig.scalar("SELECT count(*) FROM messages WHERE looks IS NOT NULL")
    if unfinished == looked_for and not postfix.queued():
        hasten(rig)
    return not unfinished


def hasten(rig: Rig) -> None:
    with rig.engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE messages SET next_attempt_at = next_attempt_at - 600000 WHERE looks IS NOT NULL"
            )
        )


def judge(rig: Rig, dovecot: Dovecot) -> Verdict:
    """Compare what the service tells with the copies in Sent."""
    found = [_MESSAGE_ID.search(raw) for raw in dovecot.messages(dovecot.sent)]
    copies = Counter(match[1].decode() if match else "" for match in found)
    posts = [post for post in rig.load.posts if post.accepted]
    verdict = Verdict(accepted=len(posts))
    for told in standings(rig.service.port, [post.id for post in posts]):
        _judge_one(verdict, told, copies[told["message_id"].strip("<>")])
    return verdict


def _judge_one(verdict: Verdict, told: dict[str, Any], copies: int) -> None:
    verdict.uncertain_attempts += told["uncertain_attempts"]
    unknown = [one for one in told["recipients"] if one["email"].startswith(UNKNOWN)]
    came_back = sum(one["status"] == "bounced" for one in unknown)
    verdict.bounced += came_back
    at = {event["event"]: datetime.fromisoformat(event["at"]) for event in told["timeline"]}
    if came_back and not told["uncertain_attempts"]:
        verdict.rounds.append((at["bounced"] - at["sent"]).total_seconds())
    wanted = "bounced" if len(unknown) == len(told["recipients"]) else "sent"
    faults = {
        "lost": told["status"] in FINAL and copies == 0,
        "doubled": copies > 1,
        "bounces_missed": came_back < len(unknown),
        "not_sent": told["status"] != wanted,
    }
    for fault, is_so in faults.items():
        if is_so:
            setattr(verdict, fault, getattr(verdict, fault) + 1)
            verdict.problems.append(f"{fault}: {copies} copies of {told}"[:1000])


def figures(rig: Rig, verdict: Verdict, link: SmtpLink, accept_p99: float, seconds: float) -> str:
    database = Database(rig.database_url)
    totals = Counters(database).totals()
    database.close()
    rows = {
        "accepted": verdict.accepted,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "taken, told otherwise": verdict.not_sent,
        "final dots": link.dots,
        "replies lost": link.fates[UNANSWERED],
        "dots lost": link.fates[LOST],
        "uncertain attempts": verdict.uncertain_attempts,
        "settled by Sent": int(totals.get(FOUND, 0)),
        "sent again after looks": int(totals.get(NOT_FOUND, 0)),
        "recipients bounced": verdict.bounced,
        "round of a bounce, median, ms": round(1000 * statistics.median(verdict.rounds or [0])),
        "round of a bounce, longest, ms": round(1000 * max(verdict.rounds, default=0)),
        "bounces missed": verdict.bounces_missed,
        "reports ignored": int(totals.get(IGNORED, 0)),
        "accept p99, ms": round(1000 * accept_p99),
        "seconds": round(seconds),
    }
    return "\n".join(f"{name:<32} {value:>8}" for name, value in rows.items())
