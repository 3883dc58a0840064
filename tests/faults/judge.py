"""Judges a run by the mail server's log, with the counters of RabbitMQ's Jepsen suite."""

import http.client
import json
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.faults.load import REFUSED, Post
from tests.services.processes import FINAL
from tests.services.smtpd import ScriptedSMTP

_SUBJECT = re.compile(rb"^Subject: (.*)\r$", re.MULTILINE)


@dataclass
class Verdict:
    """What became of every mail that was posted. `problems` says the first few in words."""

    accepted: int = 0
    ok: int = 0  #: accepted, and each recipient has what is due to it
    lost: int = 0  #: accepted, and a recipient that was not refused has nothing
    #: not accepted as far as the client knows, and it arrived: the answer got lost
    recovered: int = 0
    unexpected: int = 0  #: arrived, and nobody asked for it
    #: more than one copy for a recipient, each further one by a recorded uncertain attempt
    duplicated: int = 0
    unexplained: int = 0  #: more copies than recorded uncertain attempts allow
    unfinished: int = 0  #: not in a final state when the time was up
    uncertain_attempts: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.unexpected or self.unexplained or self.unfinished)

    def __str__(self) -> str:
        names = (
            "accepted",
            "ok",
            "lost",
            "recovered",
            "unexpected",
            "duplicated",
            "unexplained",
            "unfinished",
            "uncertain_attempts",
        )
        return ", ".join(f"{name} {getattr(self, name)}" for name in names)

    def tell(self, problem: str) -> None:
        if len(self.problems) < 20:
            self.problems.append(problem)


def judge(port: int, posts: Sequence[Post], smtpd: ScriptedSMTP) -> Verdict:
    """`port` is where the service tells where each mail is; the server's log says what arrived."""
    verdict = Verdict(accepted=sum(post.accepted for post in posts))
    arrived = copies_by_subject(smtpd)
    accepted = [post for post in posts if post.accepted]
    for post, told in zip(accepted, standings(port, [post.id for post in accepted]), strict=True):
        _judge_accepted(verdict, post, told, arrived.get(post.subject, Counter()))
    known = {post.subject for post in posts}
    verdict.recovered = sum(post.subject in arrived for post in posts if not post.accepted)
    for subject in arrived.keys() - known:
        verdict.unexpected += 1
        verdict.tell(f"unexpected: {subject!r}")
    return verdict


def _judge_accepted(
    verdict: Verdict, post: Post, told: dict[str, Any], copies: Counter[str]
) -> None:
    uncertain = told.get("uncertain_attempts", 0)
    verdict.uncertain_attempts += uncertain
    wanted = [address for address in post.to if not address.startswith(REFUSED)]
    most = max(copies.values(), default=0)
    faults = []
    if told.get("status") not in FINAL:
        faults.append("unfinished")
    if (missing := any(not copies[address] for address in wanted)) and told.get("status") in FINAL:
        faults.append("lost")
    if most > 1 + uncertain:
        faults.append("unexplained")
    elif most > 1:
        verdict.duplicated += 1
    if (
        told.get("status") != ("sent" if wanted else "failed")
        and not missing
        and "unfinished" not in faults
    ):
        faults.append("unexpected")  # Its sender is told something else than what happened.
    if not faults:
        verdict.ok += 1
    for fault in faults:
        setattr(verdict, fault, getattr(verdict, fault) + 1)
        verdict.tell(
            f"{fault}: {post.subject!r} of {post.label!r}, copies {dict(copies)}, told {json.dumps(told)[:1500]}"
        )


def copies_by_subject(smtpd: ScriptedSMTP) -> dict[str, Counter[str]]:
    """How often each recipient may have got each mail: what was refused in the end does not count."""
    found: dict[str, Counter[str]] = {}
    for payload in list(smtpd.payloads):
        if not payload.refused:
            subject = _SUBJECT.search(payload.data)
            found.setdefault(subject[1].decode() if subject else "", Counter()).update(
                payload.rcpt_tos
            )
    return found


def standings(port: int, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What GET /v1/messages/<id> says of each."""
    parts = [ids[n::4] for n in range(4)]
    with ThreadPoolExecutor(4) as clients:
        asked = list(clients.map(lambda part: _ask_all(port, part), parts))
    return [asked[n % 4][n // 4] for n in range(len(ids))]


def _ask_all(port: int, ids: Sequence[str]) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    told = []
    for id in ids:
        connection.request("GET", f"/v1/messages/{id}")
        told.append(dict(json.loads(connection.getresponse().read())))
    connection.close()
    return told
