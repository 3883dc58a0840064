"""A worker's steps with messages: claim, fence, finish, release.

Each is one conditional UPDATE over many rows.
A worker may lose a row at any moment, because it was paused and a sweeper took it for dead. So no step trusts an earlier
one: each names the owner and the attempt that it believes in, and goes on only with the rows where both are still true.
The number of an attempt is never used again, so a step may be done again where its commit got no answer.
"""

import json
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Connection, String, and_, exists, func, or_, select, tuple_
from sqlalchemy.sql.dml import ReturningUpdate

from mailroom.model.account import DEFAULT_ACCOUNT, Budget, Free
from mailroom.model.attempt import Claim, JobFacts, Outcome
from mailroom.model.errors import StoreUnavailable
from mailroom.model.message import State
from mailroom.store.accounts import Accounts, Allowance, begin_probe, lock, note_ends, note_sent
from mailroom.store.content import load, load_attachments
from mailroom.store.db.database import Database, Work, run_in_order
from mailroom.store.db.schema import events, jobs, messages, now_ms, recipients, workers
from mailroom.store.db.statements import Rows, asked, in_order
from mailroom.store.events.counters import count_latencies
from mailroom.store.events.deliveries import storable, tell
from mailroom.store.events.timeline import record
from mailroom.store.jobs.jobs import SUMMARY
from mailroom.store.messages.ownership import mine
from mailroom.store.messages.suppressions import drop_suppressed, note_bounces
from mailroom.store.workers import is_seen_within

log = logging.getLogger("mailasync.outbox")

#: Where a row can be when its attempt ends: still ours, or given back by a sweeper that took us for dead.
_OURS = [State.SENDING, State.IN_DATA, State.QUEUED, State.UNCERTAIN]
#: Where a person may have brought it from there.
_TOUCHED = [State.HELD, State.SCHEDULED, State.CANCELED, State.EXPIRED]


@dataclass(frozen=True, eq=False)
class Claims:
    """The rows of one worker, whose heartbeat is its lease on all of them."""

    database: Database
    owner: str
    lease_seconds: float
    budgets: tuple[Budget, ...] = (Budget(account=DEFAULT_ACCOUNT),)  #: the accounts that this worker can send by
    free: Callable[[str], Free] | None = None  #: how many more mails of an account it can take
    _in_hand: Counter[str] = field(default_factory=Counter, repr=False)  #: ids that some thread asks for or works on
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def claim(self, ids: Sequence[str]) -> list[Claim]:
        """Become the owner of those of `ids` that are queued, in the order given; each begins a new attempt.

        A row whose owner died before is left for `claim_alone`.
        """
        return self._become_owner(list(dict.fromkeys(ids)), suspects=False)

    def suspect(self, id: str) -> bool:
        """Tell whether this row waits for a worker that does nothing else: its last owner died with it."""
        return self.database.read(lambda connection: connection.scalar(
            select(messages.c.crashes).where(messages.c.id == id, messages.c.state == State.QUEUED))) not in (None, 0)

    def claim_alone(self, id: str) -> Claim | None:
        """Become the owner of a suspect row. The caller sees to it that this worker delivers nothing else until it is done."""
        return next(iter(self._become_owner([id], suspects=True)), None)

    def with_attachments(self, claim: Claim) -> Claim:
        """Return the claim with its attachments, which may be large.

        A worker has thousands of claims, and needs those of few at a time.
        """
        files = self.database.read(lambda connection: load_attachments(connection, [claim.id]))
        return replace(claim, message=replace(claim.message, attachments=files.get(claim.id, ())))

    def fence(self, claim: Claim) -> bool:
        """Tell whether the payload may be sent: row and lease are still ours. If True, that is committed."""
        return self.database.write(self._fence, claim)

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """Commit how the attempt ended; False if the row is no longer ours, and nothing was changed. Done again it changes nothing."""
        return self._let_go(claim, self._finish, (claim, outcome), otherwise=self._finish_bare)

    def fence_and_finish(self, claims: Sequence[Claim], ended: Sequence[tuple[Claim, Outcome]]
                         ) -> tuple[list[Callable[[], bool]], list[Callable[[], bool]]]:
        """`fence` for some and `finish` for others, in one commit; each answer is had by a call, which may try to finish again."""
        passed, told = self.database.write_all((self._fence, claims), (self._finish, ended))
        return passed, [partial(self._let_go, claim, self._finish, (claim, outcome), otherwise=self._finish_bare, first=first)
                        for (claim, outcome), first in zip(ended, told, strict=True)]

    def release(self, claim: Claim) -> bool:
        """Give back a row of which nothing was sent, whether its fence was passed or not; the attempt does not count.

        False if the row is no longer ours, and nothing was changed. Done again it changes nothing.
        """
        return self._let_go(claim, self._release, claim)

    def release_unsent(self) -> int:
        """Give back every row whose fence was not passed, as it cannot be any more; return how many."""
        unsent = (messages.c.owner == self.owner, messages.c.state == State.SENDING)
        return len(self.database.write(run_in_order, _giving_back().where(*unsent)))

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
            # Where budgets are divided, alone: beside a finish it would lock accounts and usage in the wrong order.
            claims = self.database.write(self._claim, (ids, suspects), alone=any(budget.is_limited for budget in self.budgets))
        finally:
            self._take({*ids} - {claim.id for claim in claims}, -1)
        return claims

    def _let_go(self, claim: Claim, work: Work[Any, bool], item: Any, *, otherwise: Work[Any, bool] | None = None,
                first: Callable[[], bool] | None = None) -> bool:
        """`otherwise` is done where `work` raises what would be raised again; `first` tells how that went, where it was done before."""
        try:
            done = first() if first else self.database.write(work, item)
        except StoreUnavailable:
            raise  # The caller tries again, and keeps the row in hand.
        except Exception as e:
            if otherwise:
                log.error("message %s attempt %d: its outcome cannot be written with all that goes with it: %s", claim.id, claim.attempt,
                          type(e).__name__, extra={"message_id": claim.id})
                return self._let_go(claim, otherwise, item)
            self._take([claim.id], -1)
            raise
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
        rooms = Accounts(self.database, self.budgets, self.free).rooms(connection, locking=True)
        drop_suppressed(connection, {id for listed, _ in asked for id in listed})
        claimed: dict[str, Claimed] = {}
        for suspects in (False, True):
            if ids := [id for listed, alone in asked if alone is suspects for id in listed]:
                if len(rooms) == 1 and rooms[0].unlimited:  # Nothing to divide: one statement.
                    claimed |= self._take_rows(connection, ids, suspects, rooms[0])
                else:
                    claimed |= self._divide(connection, ids, suspects, rooms)
        loaded = _load(connection, claimed) if claimed else {}
        # An id that two asked for goes to the first.
        return [[loaded.pop(id) for id in listed if id in loaded] for listed, _ in asked]

    def _take_rows(self, connection: Connection, ids: list[str], suspects: bool, room: Allowance) -> "dict[str, Claimed]":
        rows = _TAKE[suspects].of(connection, ids, worker=self.owner, by=room.account)
        return {row.id: Claimed(row.attempt, row.excused, row.max_attempts, room) for row in rows}

    def _divide(self, connection: Connection, ids: list[str], suspects: bool, rooms: list[Allowance]) -> "dict[str, Claimed]":
        """Give each row to an account that has room for it; those that find none wait for one."""
        people = select(func.count()).where(recipients.c.id == messages.c.id, recipients.c.state.in_([State.QUEUED, State.DEFERRED]))
        found = connection.execute(select(messages.c.id, messages.c.account, messages.c.sender, people.scalar_subquery().label("people"))
                                   .where(messages.c.id.in_(ids), *_free(suspects))
                                   .order_by(messages.c.created_at, messages.c.id).with_for_update(skip_locked=True)).all()
        given: dict[int, list[str]] = defaultdict(list)
        waiting: dict[str | None, list[str]] = defaultdict(list)
        for row in found:
            # The account that it had before, where that has room; else the one with the most.
            order = sorted((n for n, room in enumerate(rooms) if row.sender in (None, room.account)),
                           key=lambda n: (rooms[n].account != row.account, -rooms[n].messages))
            number = next((n for n in order if rooms[n].holds(row.people)), None)
            if number is None:
                waiting[row.sender].append(row.id)
                continue
            given[number].append(row.id)
            rooms[number].take(row.people)
        for sender, ids in waiting.items():
            _park(connection, ids, [room for room in rooms if sender in (None, room.account)])
        claimed: dict[str, Claimed] = {}
        for number, ids in given.items():
            claimed |= self._take_rows(connection, ids, suspects, rooms[number])
            if rooms[number].is_probe:
                begin_probe(connection, rooms[number].account)
        return claimed

    def _fence(self, connection: Connection, asked: list[Claim]) -> list[bool]:
        rows = [{"id": claim.id, "attempt": claim.attempt} for claim in asked]
        passed = _named(_FENCE(connection, rows, worker=self.owner, lease_ms=int(self.lease_seconds * 1000)))
        return [(claim.id, claim.attempt) in passed for claim in asked]

    def _release(self, connection: Connection, claims: list[Claim]) -> list[bool]:
        released = _named(connection.execute(in_order(connection, _giving_back().where(
            *mine(self.owner, claims), messages.c.state.in_([State.SENDING, State.IN_DATA])))))
        return _on_record(connection, claims, released)

    def _finish(self, connection: Connection, ended: list[tuple[Claim, Outcome]]) -> list[bool]:
        """Write outcomes, and what they say of the accounts."""
        until = note_ends(connection, ((claim.account, claim.is_probe, outcome.trouble) for claim, outcome in _new(connection, ended)))
        changed = _write_outcomes(connection, ended, until)
        written = _named(changed)
        count_latencies(connection, [row.now - row.created_at for row in changed if row.state == State.SENT])
        kept = [(claim, outcome) for claim, outcome in ended if (claim.id, claim.attempt) in written]
        _tell(connection, kept)
        limited = {budget.account for budget in self.budgets if budget.is_limited}
        if limited:
            note_sent(connection, ((claim.account, people) for claim, outcome in kept
                                   if claim.account in limited and (people := _reached(outcome))))
        return _on_record(connection, [claim for claim, _ in ended], written)

    def _finish_bare(self, connection: Connection, ended: list[tuple[Claim, Outcome]]) -> list[bool]:
        """Write outcomes alone, in words that any database takes: a mail that is not recorded as sent would be sent again."""
        plain = [(claim, replace(outcome, reason=storable(outcome.reason), recipients={
            at: (state, storable(reply)) for at, (state, reply) in outcome.recipients.items()})) for claim, outcome in ended]
        written = _named(_write_outcomes(connection, plain, {}))
        kept = [(claim, outcome) for claim, outcome in plain if (claim.id, claim.attempt) in written]
        _write_replies(connection, kept)
        if kept:
            connection.execute(events.insert().values(at=now_ms()), [_line(claim, outcome) for claim, outcome in kept])
        return _on_record(connection, [claim for claim, _ in ended], written)


class Claimed(NamedTuple):
    """The columns that a claim's UPDATE gave back."""

    attempt: int
    excused: int
    max_attempts: int | None
    room: Allowance


def _giving_back() -> ReturningUpdate[tuple[str, int]]:
    """End attempts of which nothing was sent; they do not count."""
    return messages.update().values(
        state=State.QUEUED, owner=None, published_at=None, settled=messages.c.attempt,
        excused=messages.c.excused + 1, given_back=messages.c.given_back + 1,
    ).returning(messages.c.id, messages.c.attempt)


def _named(rows: Iterable[Any]) -> set[tuple[str, int]]:
    """The attempts that these rows are about: one transaction may have two of the same message."""
    return {(row.id, row.attempt) for row in rows}


def _on_record(connection: Connection, claims: Sequence[Claim], written: set[tuple[str, int]]) -> list[bool]:
    """For each, whether its end is on record: among those written now, or by a commit that got no answer."""
    others = [(claim.id, claim.attempt) for claim in claims if (claim.id, claim.attempt) not in written]
    known = written | (_settled(connection, others) if others else set())
    return [(claim.id, claim.attempt) in known for claim in claims]


def _new(connection: Connection, ended: list[tuple[Claim, Outcome]]) -> list[tuple[Claim, Outcome]]:
    """Pick those that may say something of an account, and whose end is not on record: no trouble counts twice."""
    telling = [(claim, outcome) for claim, outcome in ended if outcome.trouble or claim.is_probe]
    if not telling:
        return []
    lock(connection, {claim.account for claim, _ in telling})  # which a commit without an answer may still hold
    known = _settled(connection, [(claim.id, claim.attempt) for claim, _ in telling])
    return [(claim, outcome) for claim, outcome in telling if (claim.id, claim.attempt) not in known]


def _settled(connection: Connection, attempts: list[tuple[str, int]]) -> set[tuple[str, int]]:
    return _named(connection.execute(select(messages.c.id, messages.c.settled.label("attempt")).where(
        tuple_(messages.c.id, messages.c.settled).in_(attempts))))


def _load(connection: Connection, claimed: dict[str, Claimed]) -> dict[str, Claim]:
    """The claims on these ids."""
    rows = _LOAD.of(connection, claimed)
    held = load(connection, claimed, with_attachments=False)
    facts = _facts(connection, [row.job_id for row in rows if held[row.id].message.template])
    return {
        row.id: Claim(
            id=row.id, attempt=mark.attempt, excused=mark.excused, max_attempts=mark.max_attempts, account=mark.room.account,
            is_probe=mark.room.is_probe, message_id=row.message_id, created_at_ms=row.created_at,
            first_attempt_at_ms=row.first_attempt_at, message=content.message,
            job=facts.get(row.job_id) if content.message.template else None,
            pending=tuple(n for n, state in enumerate(content.states) if state in (State.QUEUED, State.DEFERRED)),
            sent_before=State.SENT in content.states, has_attachments=content.has_attachments)
        for row in rows for mark, content in [(claimed[row.id], held[row.id])]}


def _facts(connection: Connection, job_ids: list[str]) -> dict[str, JobFacts]:
    """Return how these jobs ended, and what they made."""
    if not job_ids:
        return {}
    files = {id: file for id, (file, *_) in load_attachments(connection, job_ids).items()}
    return {row.id: JobFacts(
        id=row.id, name=row.name, status=row.state, result=None if row.result is None else json.loads(row.result), error=row.error or "",
        seconds=(row.finished_at - row.started_at) / 1000 if row.finished_at and row.started_at else 0.0, file=files.get(row.id))
        for row in connection.execute(select(*SUMMARY, jobs.c.result).where(jobs.c.id.in_(job_ids)))}


def _park(connection: Connection, ids: list[str], rooms: list[Allowance]) -> None:
    """Let rows wait until an account has room; clients are told, unless all it takes is a free connection."""
    times = [room.until for room in rooms if room.until is not None]
    until = min(times) if len(times) == len(rooms) else None
    reason = "waits for " + "; ".join(room.words for room in rooms if room.words)
    parked = connection.scalars(
        messages.update().values(state=State.DEFERRED, parked=1, published_at=None, next_attempt_at=until, reason=reason)
        .where(messages.c.id.in_(ids), messages.c.state == State.QUEUED).returning(messages.c.id)).all()
    if until is not None:
        tell(connection, [{"id": id, "event": "deferred", "detail": reason} for id in parked])


def _write_outcomes(connection: Connection, ended: list[tuple[Claim, Outcome]], until: dict[str, int]) -> list[Any]:
    """Write outcomes; return the rows that were still theirs."""
    rows = []
    for claim, outcome in ended:
        trouble = outcome.trouble
        parked = claim.account if trouble and outcome.state is State.DEFERRED else None
        excused = outcome.excused or bool(parked and trouble and trouble.excuses)
        rows.append({
            "id": claim.id, "attempt": claim.attempt, "state": outcome.state, "reason": outcome.reason,
            "uncertain": int(outcome.uncertain), "parked": 1 if parked else None, "excused": int(excused),
            "next_at": until.get(parked) if parked else None,
            "wait_ms": None if parked or outcome.wait_seconds is None else int(outcome.wait_seconds * 1000)})
    return _FINISH(connection, rows)


_WORKER = asked("worker", String)


def _free(suspects: bool) -> list[ColumnElement[bool]]:
    """The rows that may be claimed: those whose last owner died, or all others."""
    return [messages.c.state == State.QUEUED, or_(messages.c.expires_at.is_(None), messages.c.expires_at > now_ms()),
            messages.c.crashes > 0 if suspects else messages.c.crashes == 0]


def _taking(suspects: bool) -> Rows:
    return Rows(messages, ("id",), lambda given: messages.update().values(
        state=State.SENDING, owner=_WORKER, attempt=messages.c.attempt + 1, account=asked("by", String), parked=None,
        # Whoever claims it has its nudge: the broker had it, whether or not the publisher has come to say so.
        published_at=func.coalesce(messages.c.published_at, now_ms()),
        first_attempt_at=func.coalesce(messages.c.first_attempt_at, now_ms()))
        .where(messages.c.id == given["id"], *_free(suspects))
        .returning(messages.c.id, messages.c.attempt, messages.c.excused, messages.c.max_attempts))


_TAKE = {suspects: _taking(suspects) for suspects in (False, True)}
_FENCE = Rows(messages, ("id", "attempt"), lambda given: messages.update().values(state=State.IN_DATA).where(
    messages.c.id == given["id"], messages.c.attempt == given["attempt"], func.coalesce(messages.c.owner, "") == _WORKER,
    messages.c.state == State.SENDING, exists().where(workers.c.id == _WORKER, is_seen_within(asked("lease_ms", BigInteger))))
    .returning(messages.c.id, messages.c.attempt))
# The attempt alone says whether it is still the same claim, as each claim makes a new one: so a reply that was read counts even where a
# sweeper has already given the row back, as long as nobody else has begun; and if the mail was taken, whatever a person has done to it.
# `settled` keeps an end that is on record from being written again.
_FINISH = Rows(messages, ("id", "attempt", "state", "reason", "uncertain", "parked", "excused", "next_at", "wait_ms"), lambda given:
               messages.update().values(
                   state=given["state"], owner=None, reason=given["reason"], settled=given["attempt"],
                   excused=messages.c.excused + given["excused"],
                   uncertain_attempts=messages.c.uncertain_attempts + given["uncertain"], parked=given["parked"],
                   next_attempt_at=func.coalesce(given["next_at"], now_ms() + given["wait_ms"]))
               .where(messages.c.id == given["id"], messages.c.attempt == given["attempt"], messages.c.settled < given["attempt"],
                      or_(messages.c.state.in_(_OURS), and_(given["state"] == State.SENT, messages.c.state.in_(_TOUCHED))))
               .returning(messages.c.id, messages.c.attempt, messages.c.state, messages.c.created_at, now_ms().label("now")))
_LOAD = Rows(messages, ("id",), lambda given: select(
    messages.c.id, messages.c.message_id, messages.c.created_at, messages.c.first_attempt_at, messages.c.job_id)
    .where(messages.c.id == given["id"]))


def _tell(connection: Connection, kept: list[tuple[Claim, Outcome]]) -> None:
    """Write the outcome of each recipient, what it says of the address, and the line of the timeline."""
    _write_replies(connection, kept)
    note_bounces(connection, [(claim.id, at, outcome.recipients[at][1]) for claim, outcome in kept for at in outcome.bounced])
    record(connection, [_line(claim, outcome) for claim, outcome in kept])


def _write_replies(connection: Connection, kept: list[tuple[Claim, Outcome]]) -> None:
    _REPLIES(connection, [{"id": claim.id, "position": position, "state": state, "reply": reply}
                          for claim, outcome in kept for position, (state, reply) in outcome.recipients.items()])


_REPLIES = Rows(recipients, ("id", "position", "state", "reply"), lambda given: recipients.update().values(
    state=given["state"], reply=given["reply"]).where(recipients.c.id == given["id"], recipients.c.position == given["position"]),
    guarded=True)


def _line(claim: Claim, outcome: Outcome) -> dict[str, Any]:
    """Of the timeline."""
    return {"id": claim.id, "event": "uncertain" if outcome.uncertain else outcome.state, "attempt": claim.attempt,
            "detail": outcome.reason}


def _reached(outcome: Outcome) -> int:
    """Count the recipients that the server took it for, or may have."""
    return len(outcome.recipients) if outcome.uncertain else sum(state is State.SENT for state, _ in outcome.recipients.values())
