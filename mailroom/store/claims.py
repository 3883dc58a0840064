"""What one worker does with messages: claim, fence, finish, release. Each is one conditional UPDATE over many rows.

A worker may lose a row at any moment, because it was paused and a sweeper took it for dead. So no step trusts an earlier
one: each names the owner and the attempt that it believes in, and goes on only with the rows where both are still true.
"""

import json
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, exists, func, select, tuple_

from mailroom.mail.errors import StoreUnavailable
from mailroom.mail.message import Address, Claim, JobFacts, Message, Outcome, State
from mailroom.store.database import Database, Work
from mailroom.store.jobs import SUMMARY, load_files
from mailroom.store.schema import contents, events, jobs, messages, now_ms, recipients, workers
from mailroom.store.workers import is_alive


@dataclass(frozen=True, eq=False)
class Claims:
    """The rows of one worker, whose heartbeat is its lease on all of them."""

    database: Database
    owner: str
    lease_seconds: float
    _in_hand: Counter[str] = field(default_factory=Counter, repr=False)  #: ids that some thread asks for or works on
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def claim(self, ids: Sequence[str]) -> list[Claim]:
        """Become the owner of those of `ids` that are queued, in the order given; each begins a new attempt.

        A row whose owner died before is left for `claim_alone`.
        """
        return self._become_owner(list(dict.fromkeys(ids)), suspects=False)

    def suspect(self, id: str) -> bool:
        """Whether this row waits for a worker that does nothing else meanwhile: its last owner died with it."""
        return self.database.read(lambda connection: connection.scalar(
            select(messages.c.crashes).where(messages.c.id == id, messages.c.state == State.QUEUED))) not in (None, 0)

    def claim_alone(self, id: str) -> Claim | None:
        """Become the owner of a suspect row. The caller sees to it that this worker delivers nothing else until it is done."""
        return next(iter(self._become_owner([id], suspects=True)), None)

    def fence(self, claim: Claim) -> bool:
        """Whether the payload may be sent: the row is still ours and our lease still runs. Committed when it returns True."""
        return self.database.write(self._fence, claim)

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """Commit how the attempt ended; False if the row is no longer ours, and nothing was changed."""
        return self._let_go(claim, _finish, (claim, outcome))

    def release(self, claim: Claim) -> bool:
        """Give back a row of which nothing was sent, whether its fence was passed or not; the attempt does not count."""
        return self._let_go(claim, self._release, claim)

    def not_in_hand(self) -> list[Any]:
        """Rows (id, attempt) that are ours and that no thread of ours works on: a commit went through, and the word of it got lost."""
        owned = self.database.read(lambda connection: connection.execute(
            select(messages.c.id, messages.c.attempt).where(messages.c.owner == self.owner)).all())
        with self._turn:
            return [row for row in owned if not self._in_hand[row.id]]

    def _become_owner(self, ids: list[str], *, suspects: bool) -> list[Claim]:
        self._take(ids, +1)
        claims: list[Claim] = []
        try:
            claims = self.database.write(self._claim, (ids, suspects))
        finally:
            self._take({*ids} - {claim.id for claim in claims}, -1)
        return claims

    def _let_go(self, claim: Claim, work: Work[Any, bool], item: Any) -> bool:
        try:
            done = self.database.write(work, item)
        except StoreUnavailable:
            raise  # The caller tries again, and keeps the row in hand.
        except BaseException:
            self._take([claim.id], -1)
            raise
        self._take([claim.id], -1)
        return done

    def _take(self, ids: Iterable[str], hands: int) -> None:
        with self._turn:
            for id in ids:
                self._in_hand[id] += hands
                if not self._in_hand[id]:
                    del self._in_hand[id]

    def _claim(self, connection: Connection, asked: list[tuple[list[str], bool]]) -> list[list[Claim]]:
        """For each list of ids, the claims on those that were free, loaded in the same transaction."""
        claimed: dict[str, int] = {}
        for suspects in (False, True):
            if ids := [id for listed, alone in asked if alone is suspects for id in listed]:
                rows = connection.execute(
                    messages.update().values(state=State.SENDING, owner=self.owner, attempt=messages.c.attempt + 1)
                    .where(messages.c.id.in_(ids), messages.c.state == State.QUEUED,
                           messages.c.crashes > 0 if suspects else messages.c.crashes == 0)
                    .returning(messages.c.id, messages.c.attempt))
                claimed.update((row.id, row.attempt) for row in rows)
        loaded = _load(connection, claimed) if claimed else {}
        # An id that two asked for goes to the first.
        return [[loaded.pop(id) for id in listed if id in loaded] for listed, _ in asked]

    def _fence(self, connection: Connection, asked: list[Claim]) -> list[bool]:
        alive = exists().where(workers.c.id == self.owner, is_alive(self.lease_seconds))
        passed = set(connection.scalars(
            messages.update().values(state=State.IN_DATA)
            .where(*mine(self.owner, asked), messages.c.state == State.SENDING, alive).returning(messages.c.id)))
        return [claim.id in passed for claim in asked]

    def _release(self, connection: Connection, claims: list[Claim]) -> list[bool]:
        released = set(connection.scalars(
            messages.update().values(state=State.QUEUED, owner=None, attempt=messages.c.attempt - 1, published_at=None)
            .where(*mine(self.owner, claims), messages.c.state.in_([State.SENDING, State.IN_DATA])).returning(messages.c.id)))
        return [claim.id in released for claim in claims]


def mine(owner: str, claims: Sequence[Any]) -> list[Any]:
    """The rows of `claims` (or of anything with an id and an attempt) that are still this owner's and this attempt's."""
    return [
        messages.c.id.in_([claim.id for claim in claims]),
        tuple_(messages.c.id, messages.c.attempt).in_([(claim.id, claim.attempt) for claim in claims]),
        # coalesce keeps SQLite from choosing the index on owner, which holds every row of the worker.
        func.coalesce(messages.c.owner, "") == owner,
    ]


def _load(connection: Connection, claimed: dict[str, int]) -> dict[str, Claim]:
    """The claims on these ids, of which the numbers of the attempts are known."""
    ids = list(claimed)
    rows = {row.id: row for row in connection.execute(
        messages.join(contents).select().with_only_columns(
            messages.c.id, messages.c.message_id, messages.c.created_at, messages.c.job_id, contents.c.content)
        .where(messages.c.id.in_(ids)))}
    people: dict[str, list[Any]] = defaultdict(list)
    for person in connection.execute(recipients.select().where(recipients.c.id.in_(ids)).order_by(recipients.c.position)):
        people[person.id].append(person)
    loaded = {id: Message.from_row(rows[id].content, tuple(Address(p.address, p.name) for p in people[id])) for id in ids}
    facts = _facts(connection, [rows[id].job_id for id in ids if loaded[id].template])
    return {
        id: Claim(id=id, attempt=claimed[id], message_id=rows[id].message_id, created_at_ms=rows[id].created_at, message=loaded[id],
              job=facts.get(rows[id].job_id) if loaded[id].template else None,
              pending=tuple(p.position for p in people[id] if p.state in (State.QUEUED, State.DEFERRED)),
              sent_before=any(p.state == State.SENT for p in people[id]))
        for id in ids}


def _facts(connection: Connection, job_ids: list[str]) -> dict[str, JobFacts]:
    """How these jobs ended, and what they made."""
    if not job_ids:
        return {}
    files = load_files(connection, job_ids)
    return {row.id: JobFacts(
        id=row.id, name=row.name, status=row.state, result=None if row.result is None else json.loads(row.result), error=row.error or "",
        seconds=(row.finished_at - row.started_at) / 1000 if row.finished_at and row.started_at else 0.0, file=files.get(row.id))
        for row in connection.execute(select(*SUMMARY, jobs.c.result).where(jobs.c.id.in_(job_ids)))}


def _finish(connection: Connection, ended: list[tuple[Claim, Outcome]]) -> list[bool]:
    """Write outcomes; those that change a row in the same way share an UPDATE.

    The attempt alone says whether it is still the same claim, as each claim makes a new one: so a reply that was read counts
    even where a sweeper has already given the row back, as long as nobody else has begun.
    """
    alike: dict[tuple[Any, ...], list[Claim]] = defaultdict(list)
    for claim, outcome in ended:
        alike[outcome.state, outcome.wait_seconds, outcome.reason, outcome.uncertain].append(claim)
    written: set[str] = set()
    for (state, wait_seconds, reason, uncertain), claims in alike.items():
        written.update(connection.scalars(
            messages.update()
            .values(state=state, owner=None, reason=reason, uncertain_attempts=messages.c.uncertain_attempts + int(uncertain),
                    next_attempt_at=None if wait_seconds is None else now_ms() + int(wait_seconds * 1000))
            .where(messages.c.id.in_([claim.id for claim in claims]),
                   tuple_(messages.c.id, messages.c.attempt).in_([(claim.id, claim.attempt) for claim in claims]),
                   messages.c.state.in_([State.SENDING, State.IN_DATA, State.QUEUED, State.UNCERTAIN]))
            .returning(messages.c.id)))
    kept = [(claim, outcome) for claim, outcome in ended if claim.id in written]
    replies = [{"of": claim.id, "at": position, "state": state, "reply": reply}
               for claim, outcome in kept for position, (state, reply) in outcome.recipients.items()]
    if replies:
        connection.execute(recipients.update().values(state=bindparam("state"), reply=bindparam("reply")).where(
            recipients.c.id == bindparam("of"), recipients.c.position == bindparam("at")), replies)
    if kept:
        connection.execute(events.insert().values(at=now_ms()), [
            {"id": claim.id, "event": "uncertain" if outcome.uncertain else outcome.state, "attempt": claim.attempt,
             "detail": outcome.reason} for claim, outcome in kept])
    return [claim.id in written for claim, _ in ended]
