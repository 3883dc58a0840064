"""Finds for a sweeper the rows of the outbox that nobody would come back to by himself.

Any number of sweepers may run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select, update

from mailroom.model.message import State
from mailroom.store.accounts import note_sent
from mailroom.store.db.database import Database, Work, run
from mailroom.store.db.schema import locked, messages, now_ms, recipients
from mailroom.store.db.statements import in_order
from mailroom.store.events.counters import count
from mailroom.store.events.timeline import record
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.ownership import mine
from mailroom.store.workers import dead_owners

#: Rows that one sweep takes of each kind; what is left over comes with the next.
BATCH_MAX = 1000
#: A row is given this long to be published by the process that accepted it.
UNPUBLISHED_AFTER_MS = 5_000
#: A published row that is still queued was lost on the way, if the queue is empty …
LOST_IF_EMPTY_AFTER_MS = 10_000
#: … or if nothing came of it for this long.
LOST_AFTER_MS = 15 * 60_000
#: A row fails that was alone with this many workers when they died. The death before those made it suspect, and does not count.
CRASHES_MAX = 5


@dataclass(frozen=True)
class QueuedId:
    """A row to be published: its id, and the queue that its nudge belongs on."""

    id: str
    queue: str
    alone: bool  #: its owner died before, so it must not share a nudge


@dataclass(frozen=True)
class Sweeps:
    """Every method marks its rows before it returns them, so that two sweepers do not publish the same ones."""

    database: Database
    lease_seconds: float
    on_uncertain: str
    limited: frozenset[str] = frozenset()  #: accounts that may send only so much in 24 hours

    def due(self, limit: int = BATCH_MAX) -> list[QueuedId]:
        """Deferred and scheduled rows whose time has come; they are queued now. Not those that wait for an account."""
        return self._mark(
            limit,
            messages.c.next_attempt_at <= now_ms(),
            messages.c.parked.is_(None),
            state=State.QUEUED,
            next_attempt_at=None,
            order=messages.c.next_attempt_at,
        )

    def unparked(self, limit: int, capacity: Mapping[str, int]) -> list[QueuedId]:
        """Rows that waited for an account, as many as each of those has room for; they are queued now.

        Those with the fewest attempts first, so that a mail at which the server always hangs up lets the others go before it.
        """
        found: list[QueuedId] = []
        for account, most in capacity.items():
            if (left := min(limit - len(found), most)) > 0:
                found += self._mark(
                    left,
                    messages.c.parked.is_not(None),
                    or_(messages.c.sender.is_(None), messages.c.sender == account),
                    state=State.QUEUED,
                    next_attempt_at=None,
                    parked=None,
                    order=(messages.c.attempt, messages.c.created_at, messages.c.id),
                )
        return found

    def unpublished(self, limit: int = BATCH_MAX) -> list[QueuedId]:
        """Queued rows whose nudge was never confirmed: the broker was away, or the process that accepted them died."""
        return self._mark(
            limit,
            messages.c.state == State.QUEUED,
            messages.c.published_at.is_(None),
            messages.c.created_at < now_ms() - UNPUBLISHED_AFTER_MS,
            order=messages.c.id,
            work=_recover,
        )

    def under_way(self, limit: int) -> int:
        """Count the rows that are published and not done, `limit` at most.

        These are those that a worker has, and those on their way to one.
        """

        def count(connection: Connection) -> int:
            kinds = (
                messages.c.owner.is_not(None),
                and_(messages.c.state == State.QUEUED, messages.c.published_at.is_not(None)),
            )
            found = (select(messages.c.id).where(which).limit(limit).subquery() for which in kinds)
            return min(
                limit, sum(connection.scalar(select(func.count()).select_from(rows)) or 0 for rows in found)
            )

        return self.database.read(count)

    def lost(self, limit: int = BATCH_MAX, *, empty_queues: Sequence[str] = ()) -> list[QueuedId]:
        """Queued rows whose nudge was confirmed long ago and has come to nothing; sooner where their queue is known to be empty."""
        long_ago = messages.c.published_at < now_ms() - LOST_AFTER_MS
        a_while_ago = and_(
            messages.c.published_at < now_ms() - LOST_IF_EMPTY_AFTER_MS, messages.c.queue.in_(empty_queues)
        )
        return self._mark(
            limit,
            messages.c.state == State.QUEUED,
            messages.c.published_at.is_not(None),
            or_(long_ago, a_while_ago) if empty_queues else long_ago,
            order=messages.c.published_at,
            work=_recover,
        )

    def unpublish(self, ids: Sequence[str]) -> None:
        """Take the mark back from rows that could not be published after all."""
        self.database.write(_unpublish, list(ids), alone=True)

    def forget_nudges(self) -> None:
        """All queued rows need a nudge again: the broker was in the memory of a process that has ended."""
        self.database.write(_forget_nudges, None, alone=True)

    def orphans(self) -> int:
        """Give back what dead workers own; return how many rows that were. Each death counts against a row that was claimed alone.

        Before the fence nothing was sent: queued. Past it nobody knows: uncertain, and then as ON_UNCERTAIN says.
        """
        return self.database.write(self._orphans, None, alone=True) if self.database.read(self._dead) else 0

    def abandoned(self, claims: Claims) -> int:
        """Give back rows of a living worker that none of its threads works on; return how many."""
        rows = claims.not_in_hand()
        return self.database.write(self._abandoned, (claims.owner, rows), alone=True) if rows else 0

    def _mark(
        self,
        limit: int,
        *conditions: ColumnElement[bool],
        order: Any,
        work: Work[Any, Any] | None = None,
        **values: Any,
    ) -> list[QueuedId]:
        found = (
            select(messages.c.id)
            .where(*conditions)
            .order_by(*(order if isinstance(order, tuple) else (order,)))
            .limit(limit)
        )
        mark = (
            update(messages)
            .values(published_at=now_ms(), **values)
            .where(messages.c.id.in_(locked(found)))
            .returning(messages.c.id, messages.c.queue, messages.c.crashes)
        )
        if not self.database.read(lambda connection: connection.scalars(found.limit(1)).first()):
            return []  # Looking takes no write lock, and most of the time there is nothing.
        rows = self.database.write(work or run, mark, alone=True)
        return sorted(
            (QueuedId(row.id, row.queue, row.crashes > 0) for row in rows), key=lambda nudge: nudge.id
        )

    def _dead(self, connection: Connection) -> set[str]:
        return dead_owners(connection, messages.c.owner, self.lease_seconds)

    def _orphans(self, connection: Connection, asked: list[None]) -> list[int]:
        dead = self._dead(connection)
        if not dead:
            return [0] * len(asked)
        given_back = self._give_back(
            connection, messages.c.owner.in_(dead), crashes=1, what="the worker died"
        )
        _fail_poison(connection, given_back)
        return [len(given_back)] * len(asked)

    def _abandoned(self, connection: Connection, asked: list[tuple[str, list[Any]]]) -> list[int]:
        return [
            len(self._give_back(connection, *mine(owner, rows), crashes=0, what="the attempt was broken off"))
            for owner, rows in asked
        ]

    def _give_back(
        self, connection: Connection, *whose: ColumnElement[bool], crashes: int, what: str
    ) -> list[str]:
        """Queue rows of which nothing was sent; settle those of which nobody knows. Return the ids of all of them."""
        free = {"owner": None, "published_at": None, "crashes": messages.c.crashes + crashes}
        unsent = connection.execute(
            update(messages)
            .values(state=State.QUEUED, **free)
            .where(messages.c.id.in_(_not_in_use(*whose, messages.c.state == State.SENDING)))
            .returning(messages.c.id, messages.c.attempt)
        ).all()
        then = State.QUEUED if self.on_uncertain == "resend" else State.UNCERTAIN
        reason = f"{what} after the payload went out"
        unknown = connection.execute(
            update(messages)
            .values(state=then, uncertain_attempts=messages.c.uncertain_attempts + 1, reason=reason, **free)
            .where(messages.c.id.in_(_not_in_use(*whose, messages.c.state == State.IN_DATA)))
            .returning(messages.c.id, messages.c.attempt, messages.c.account)
        ).all()
        self._count(connection, unknown)
        told = [
            {
                "id": row.id,
                "attempt": row.attempt,
                "event": "worker lost",
                "detail": f"{what} before the payload",
            }
            for row in unsent
        ]
        told += [
            {"id": row.id, "attempt": row.attempt, "event": "uncertain", "detail": reason} for row in unknown
        ]
        record(connection, told)
        if then is State.UNCERTAIN:
            _end_recipients(connection, [row.id for row in unknown], State.UNCERTAIN)
        return [row.id for row in (*unsent, *unknown)]

    def _count(self, connection: Connection, unknown: Sequence[Any]) -> None:
        """Count as sent what may have been sent."""
        sizes = Counter(
            connection.scalars(
                select(recipients.c.id).where(
                    recipients.c.id.in_([row.id for row in unknown]),
                    recipients.c.state.in_([State.QUEUED, State.DEFERRED]),
                )
            )
        )
        note_sent(
            connection, [(row.account, sizes[row.id]) for row in unknown if row.account in self.limited]
        )


def _not_in_use(*whose: ColumnElement[bool]) -> Select[Any]:
    """Find these rows, but not those that somebody is changing just now: their owner lives, and is looked at again."""
    return locked(select(messages.c.id).where(*whose).order_by(messages.c.id))


def _fail_poison(connection: Connection, ids: list[str]) -> None:
    failed = list(
        connection.scalars(
            update(messages)
            .values(state=State.FAILED, reason=f"crashed: {CRASHES_MAX} workers died with it alone")
            .where(messages.c.id.in_(ids), messages.c.crashes > CRASHES_MAX, messages.c.state == State.QUEUED)
            .returning(messages.c.id)
        )
    )
    if failed:
        _end_recipients(connection, failed, State.FAILED)
        record(connection, [{"id": id, "event": "failed", "detail": "crashed"} for id in failed])


def _end_recipients(connection: Connection, ids: list[str], state: State) -> None:
    """Give the recipients without an outcome this one."""
    connection.execute(
        update(recipients)
        .values(state=state)
        .where(recipients.c.id.in_(ids), recipients.c.state.in_([State.QUEUED, State.DEFERRED]))
    )


def _recover(connection: Connection, statements: list[Any]) -> list[Any]:
    """Mark rows whose nudge came to nothing, and count them."""
    found = run(connection, statements)
    count(connection, {"recovered": sum(map(len, found))})
    return found


def _unpublish(connection: Connection, chunks: list[list[str]]) -> list[None]:
    for ids in chunks:
        mark_gone = (
            update(messages)
            .values(published_at=None)
            .where(messages.c.id.in_(ids), messages.c.state == State.QUEUED)
        )
        connection.execute(in_order(connection, mark_gone))
    return [None] * len(chunks)


def _forget_nudges(connection: Connection, asked: list[None]) -> list[None]:
    marks_gone = (
        update(messages)
        .values(published_at=None)
        .where(messages.c.state == State.QUEUED, messages.c.published_at.is_not(None))
    )
    connection.execute(in_order(connection, marks_gone))
    return [None] * len(asked)
