"""Finds for a sweeper the messages that no worker would come back to otherwise.

Any number of sweepers may run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, or_, select, update

from mailroom.model.message import State
from mailroom.store.accounts import note_sent
from mailroom.store.db.database import Database, Work, run
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.locking import in_order, not_in_use, skip_locked
from mailroom.store.db.schema import messages, recipients
from mailroom.store.events.counters import count
from mailroom.store.events.timeline import record
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.lookups import begin_looks, give_up_looks
from mailroom.store.messages.ownership import mine
from mailroom.store.workers import dead_owners, write_in_time

#: The most rows of each kind that one sweep handles; the rest comes with the next sweep.
BATCH_MAX = 1000
#: The process that accepted a message has this long to publish its nudge.
UNPUBLISHED_AFTER_MS = 5_000
#: A nudge got lost if its message is still queued after so long, and the queue is empty.
LOST_IF_EMPTY_AFTER_MS = 10_000
#: A nudge got lost if its message is still queued after so long, whatever is in the queue.
LOST_AFTER_MS = 15 * 60_000
#: A message fails that was alone with this many workers when they died.
#: The death before those made it suspect, and does not count.
CRASHES_MAX = 5


@dataclass(frozen=True)
class QueuedId:
    """A message whose nudge is to be published on this queue."""

    id: str
    queue: str
    alone: bool  #: its owner died before, so it must not share a nudge


@dataclass(frozen=True)
class Sweeps:
    """The sweeps of one process.

    Each method marks its rows before it returns them, so that no two sweepers publish the same ones.
    """

    database: Database
    lease_seconds: float
    on_uncertain: str
    limited: frozenset[str] = frozenset()  #: accounts that may send only so much in 24 hours
    mailboxes: frozenset[str] = frozenset()  #: accounts whose Sent folder can be searched

    def due(self, limit: int = BATCH_MAX) -> list[QueuedId]:
        """Queue deferred and scheduled messages that are due.

        Those that wait for an account, or are looked for in a Sent folder, are left to others.
        """
        return self._mark(
            limit,
            messages.c.next_attempt_at <= now_ms(),
            messages.c.parked.is_(None),
            messages.c.looks.is_(None),
            state=State.QUEUED,
            next_attempt_at=None,
            order=messages.c.next_attempt_at,
        )

    def unparked(self, limit: int, capacity: Mapping[str, int]) -> list[QueuedId]:
        """Queue messages that waited for an account, as many as each account may send.

        Those with the fewest attempts come first, so that a mail at which the server always hangs up goes
        last.
        """
        queued: list[QueuedId] = []
        for account, most in capacity.items():
            remaining = min(limit - len(queued), most)
            if remaining > 0:
                queued += self._mark(
                    remaining,
                    messages.c.parked.is_not(None),
                    or_(messages.c.sender.is_(None), messages.c.sender == account),
                    state=State.QUEUED,
                    next_attempt_at=None,
                    parked=None,
                    order=(messages.c.attempt, messages.c.created_at, messages.c.id),
                )
        return queued

    def unpublished(self, limit: int = BATCH_MAX) -> list[QueuedId]:
        """Return queued messages whose nudge was never confirmed.

        The broker was away, or the process that accepted them died.
        """
        return self._mark(
            limit,
            messages.c.state == State.QUEUED,
            messages.c.published_at.is_(None),
            messages.c.created_at < now_ms() - UNPUBLISHED_AFTER_MS,
            order=messages.c.id,
            work=_recover,
        )

    def under_way(self, limit: int) -> int:
        """Count the messages that a worker has, or that are on their way to one, `limit` at most."""
        owned = messages.c.owner.is_not(None)
        published = and_(messages.c.state == State.QUEUED, messages.c.published_at.is_not(None))
        number = self.database.read(
            lambda connection: (
                _number(connection, owned, limit=limit)
                + _number(connection, published, limit=limit)
            )
        )
        return min(limit, number)

    def lost(self, limit: int = BATCH_MAX, *, empty_queues: Sequence[str] = ()) -> list[QueuedId]:
        """Return queued messages whose nudge was confirmed long ago and got lost.

        That is assumed sooner for a queue that is known to be empty.
        """
        long_ago = messages.c.published_at < now_ms() - LOST_AFTER_MS
        a_while_ago = and_(
            messages.c.published_at < now_ms() - LOST_IF_EMPTY_AFTER_MS,
            messages.c.queue.in_(empty_queues),
        )
        is_lost = or_(long_ago, a_while_ago) if empty_queues else long_ago
        return self._mark(
            limit,
            messages.c.state == State.QUEUED,
            messages.c.published_at.is_not(None),
            is_lost,
            order=messages.c.published_at,
            work=_recover,
        )

    def unpublish(self, ids: Sequence[str]) -> None:
        """Unmark rows that could not be published after all."""
        self.database.write(_unpublish, list(ids), alone=True)

    def forget_nudges(self) -> None:
        """Unmark all queued rows: the broker was in the memory of a process that has ended."""
        self.database.write(_forget_nudges, None, alone=True)

    def orphans(self, *, besides: str = "") -> int:
        """Give back the messages of dead workers; return how many. Each death counts against its messages.

        Before the fence nothing was sent: queued. After it nobody knows: uncertain, and settled by
        ON_UNCERTAIN. `besides`: the worker that asks, which lives, even if its heartbeat is late.
        """
        if not self.database.read(partial(self._dead, besides)):
            return 0
        return write_in_time(self.database, partial(self._orphans, besides), self.lease_seconds)

    def give_up_looks(self) -> int:
        """Settle messages that were to be looked for in a mailbox that cannot be read; return how many."""
        return give_up_looks(self.database)

    def abandoned(self, claims: Claims) -> int:
        """Give back messages of a living worker that none of its threads works on; return how many."""
        rows = claims.not_in_hand()
        if not rows:
            return 0
        return self.database.write(self._abandoned, (claims.owner, rows), alone=True)

    def _mark(
        self,
        limit: int,
        *conditions: ColumnElement[bool],
        order: Any,
        work: Work[Any, Any] | None = None,
        **values: Any,
    ) -> list[QueuedId]:
        """Mark the first of these rows as published, and return them.

        `work` runs that UPDATE; it is `run`, or counts the rows too.
        """
        by = order if isinstance(order, tuple) else (order,)
        ids = select(messages.c.id).where(*conditions).order_by(*by).limit(limit)
        mark = (
            update(messages)
            .values(published_at=now_ms(), **values)
            .where(messages.c.id.in_(skip_locked(ids)))
            .returning(messages.c.id, messages.c.queue, messages.c.crashes)
        )
        if not self.database.read(lambda connection: connection.scalars(ids.limit(1)).first()):
            return []  # Looking takes no write lock, and most of the time there is nothing.
        rows = self.database.write(work or run, mark, alone=True)
        queued = [QueuedId(row.id, row.queue, alone=row.crashes > 0) for row in rows]
        return sorted(queued, key=lambda message: message.id)

    def _dead(self, besides: str, connection: Connection) -> set[str]:
        dead = dead_owners(connection, messages.c.owner, self.lease_seconds)
        return dead - {besides}

    def _orphans(self, besides: str, connection: Connection) -> int:
        dead = self._dead(besides, connection)
        of_dead = messages.c.owner.in_(dead)
        ids = self._give_back(connection, of_dead, crashes=1, cause="the worker died")
        _fail_poison(connection, ids)
        return len(ids)

    def _abandoned(self, connection: Connection, items: list[tuple[str, list[Any]]]) -> list[int]:
        counts: list[int] = []
        for owner, rows in items:
            conditions = mine(owner, rows)
            cause = "the attempt was broken off"
            ids = self._give_back(connection, *conditions, crashes=0, cause=cause)
            counts.append(len(ids))
        return counts

    def _give_back(
        self, connection: Connection, *conditions: ColumnElement[bool], crashes: int, cause: str
    ) -> list[str]:
        """Queue messages of which nothing was sent, and settle uncertain ones; return the ids of all."""
        released = {"owner": None, "published_at": None, "crashes": messages.c.crashes + crashes}
        sending = not_in_use(messages, *conditions, messages.c.state == State.SENDING)
        unsent = connection.execute(
            update(messages)
            .values(state=State.QUEUED, **released)
            .where(messages.c.id.in_(sending))
            .returning(messages.c.id, messages.c.attempt)
        ).all()
        reason = f"{cause} after the payload went out"
        in_data = not_in_use(messages, *conditions, messages.c.state == State.IN_DATA)
        uncertain = connection.execute(
            update(messages)
            .values(uncertain_attempts=messages.c.uncertain_attempts + 1, reason=reason, **released)
            .values(state=self._state_of_uncertain)
            .where(messages.c.id.in_(in_data))
            .returning(messages.c.id, messages.c.attempt, messages.c.account, messages.c.crashes)
        ).all()
        self._count(connection, uncertain)
        self._look_up(connection, uncertain)
        lines = [_line(row, "worker lost", f"{cause} before the payload") for row in unsent]
        record(connection, lines + [_line(row, "uncertain", reason) for row in uncertain])
        if self._state_of_uncertain is State.UNCERTAIN:
            _end_recipients(connection, [row.id for row in uncertain], State.UNCERTAIN)
        return [row.id for row in (*unsent, *uncertain)]

    def _look_up(self, connection: Connection, uncertain: Sequence[Any]) -> None:
        """Have those of these messages looked for in the Sent folder first, where that can be done.

        One that workers die of is not: it is to fail, and not to be sent again.
        """
        ids = [
            row.id
            for row in uncertain
            if row.account in self.mailboxes and row.crashes <= CRASHES_MAX
        ]
        if ids:
            begin_looks(connection, ids, then=self._state_of_uncertain)

    @property
    def _state_of_uncertain(self) -> State:
        return State.QUEUED if self.on_uncertain == "resend" else State.UNCERTAIN

    def _count(self, connection: Connection, uncertain: Sequence[Any]) -> None:
        """Count as sent what may have been sent."""
        ids = [row.id for row in uncertain]
        unsent = recipients.c.state.in_([State.QUEUED, State.DEFERRED])
        people = Counter(
            connection.scalars(select(recipients.c.id).where(recipients.c.id.in_(ids), unsent))
        )
        limited = [row for row in uncertain if row.account in self.limited]
        sent = [(row.account, people[row.id]) for row in limited]
        note_sent(connection, sent)


def _line(row: Any, event: str, detail: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "attempt": row.attempt,
        "event": event,
        "detail": detail,
    }


def _number(connection: Connection, condition: ColumnElement[bool], *, limit: int) -> int:
    rows = select(messages.c.id).where(condition).limit(limit).subquery()
    return connection.scalar(select(func.count()).select_from(rows)) or 0


def _fail_poison(connection: Connection, ids: list[str]) -> None:
    """Fail those of these messages with which too many workers died."""
    is_poison = (
        messages.c.crashes > CRASHES_MAX,
        messages.c.state == State.QUEUED,
    )
    reason = f"crashed: {CRASHES_MAX} workers died with it alone"
    failing = (
        update(messages)
        .values(state=State.FAILED, reason=reason)
        .where(messages.c.id.in_(ids), *is_poison)
    )
    failed = list(connection.scalars(failing.returning(messages.c.id)))
    if failed:
        _end_recipients(connection, failed, State.FAILED)
        lines = [{"id": id, "event": "failed", "detail": "crashed"} for id in failed]
        record(connection, lines)


def _end_recipients(connection: Connection, ids: list[str], state: State) -> None:
    """Set the state of the recipients that have no outcome yet."""
    is_open = recipients.c.state.in_([State.QUEUED, State.DEFERRED])
    ended = update(recipients).values(state=state).where(recipients.c.id.in_(ids), is_open)
    connection.execute(ended)


def _recover(connection: Connection, statements: list[Any]) -> list[Any]:
    """Run the UPDATEs that mark rows whose nudge got lost, and count these rows."""
    results = run(connection, statements)
    recovered = sum(map(len, results))
    count(connection, {"recovered": recovered})
    return results


def _unpublish(connection: Connection, chunks: list[list[str]]) -> list[None]:
    for ids in chunks:
        queued = (
            messages.c.id.in_(ids),
            messages.c.state == State.QUEUED,
        )
        unmarked = update(messages).values(published_at=None).where(*queued)
        connection.execute(in_order(connection, unmarked))
    return [None] * len(chunks)


def _forget_nudges(connection: Connection, items: list[None]) -> list[None]:
    published = (
        messages.c.state == State.QUEUED,
        messages.c.published_at.is_not(None),
    )
    unmarked = update(messages).values(published_at=None).where(*published)
    connection.execute(in_order(connection, unmarked))
    return items
