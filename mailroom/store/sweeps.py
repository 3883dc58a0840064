"""What a sweeper asks of the outbox: rows that nobody would come back to by himself. Any number of sweepers may run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select, update

from mailroom.mail.message import State
from mailroom.store.claims import CRASHES_MAX
from mailroom.store.database import Database
from mailroom.store.schema import events, locked, messages, now_ms, recipients, workers

#: Rows that one sweep takes of each kind; what is left over comes with the next.
BATCH_MAX = 1000
#: A row is given this long to be published by the process that accepted it.
UNPUBLISHED_AFTER_MS = 5_000
#: A published row that is still queued was lost on the way, if the queue is empty …
LOST_IF_EMPTY_AFTER_MS = 10_000
#: … or if nothing came of it for this long.
LOST_AFTER_MS = 15 * 60_000
#: What a server says to a wrong or missing login (RFC 4954, 6).
LOGIN_REFUSED_CODES = (530, 534, 535)


@dataclass(frozen=True)
class Nudge:
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

    def due(self, limit: int = BATCH_MAX) -> list[Nudge]:
        """Deferred and scheduled rows whose time has come; they are queued now."""
        return self._mark(limit, messages.c.next_attempt_at <= now_ms(), state=State.QUEUED, next_attempt_at=None,
                          order=messages.c.next_attempt_at)

    def unpublished(self, limit: int = BATCH_MAX) -> list[Nudge]:
        """Queued rows whose nudge was never confirmed: the broker was away, or the process that accepted them died."""
        return self._mark(limit, messages.c.state == State.QUEUED, messages.c.published_at.is_(None),
                          messages.c.created_at < now_ms() - UNPUBLISHED_AFTER_MS, order=messages.c.id)

    def lost(self, limit: int = BATCH_MAX, *, queue_is_empty: bool) -> list[Nudge]:
        """Queued rows whose nudge was confirmed long ago and has come to nothing."""
        age_ms = LOST_IF_EMPTY_AFTER_MS if queue_is_empty else LOST_AFTER_MS
        return self._mark(limit, messages.c.state == State.QUEUED, messages.c.published_at < now_ms() - age_ms,
                          order=messages.c.published_at)

    def unpublish(self, ids: Sequence[str]) -> None:
        """Take the mark back from rows that could not be published after all."""
        self.database.write(_unpublish, list(ids))

    def forget_nudges(self) -> None:
        """All queued rows need a nudge again: the broker was in the memory of a process that has ended."""
        self.database.write(_forget_nudges, None)

    def log_in_again(self) -> None:
        """Make due what waits because the next hop refused our login: a worker that starts may have the right one."""
        self.database.write(_log_in_again, None)

    def orphans(self) -> int:
        """Give back what dead workers own; return how many rows that were.

        Before the fence nothing was sent: queued. Past it nobody knows: uncertain, and then as ON_UNCERTAIN says.
        """
        return self.database.write(self._orphans, None)

    def _mark(self, limit: int, *conditions: ColumnElement[bool], order: Any, **values: Any) -> list[Nudge]:
        found = select(messages.c.id).where(*conditions).order_by(order).limit(limit)
        mark = update(messages).values(published_at=now_ms(), **values).where(messages.c.id.in_(locked(found)), *conditions) \
            .returning(messages.c.id, messages.c.queue, messages.c.crashes)
        if not self.database.read(lambda connection: connection.scalars(found.limit(1)).first()):
            return []  # Looking takes no write lock, and most of the time there is nothing.
        rows = self.database.write(_run, mark)
        return sorted((Nudge(row.id, row.queue, row.crashes > 0) for row in rows), key=lambda nudge: nudge.id)

    def _orphans(self, connection: Connection, asked: list[None]) -> list[int]:
        alive = select(workers.c.id).where(workers.c.stopped_at.is_(None), workers.c.seen_at > now_ms() - int(self.lease_seconds * 1000))
        owners = set(connection.scalars(select(messages.c.owner).where(messages.c.owner.is_not(None)).distinct()))
        dead = owners - set(connection.scalars(alive))
        if not dead:
            return [0] * len(asked)
        unsent = connection.execute(
            update(messages).values(state=State.QUEUED, owner=None, published_at=None, crashes=messages.c.crashes + 1)
            .where(messages.c.owner.in_(dead), messages.c.state == State.SENDING).returning(messages.c.id, messages.c.attempt))
        unsent_rows = list(unsent)
        then = {"state": State.QUEUED} if self.on_uncertain == "resend" else {"state": State.UNCERTAIN}
        unknown = list(connection.execute(
            update(messages).values(**then, owner=None, published_at=None, crashes=messages.c.crashes + 1,
                                    uncertain_attempts=messages.c.uncertain_attempts + 1, reason="the worker died after the payload")
            .where(messages.c.owner.in_(dead), messages.c.state == State.IN_DATA).returning(messages.c.id, messages.c.attempt)))
        told = [{"id": row.id, "attempt": row.attempt, "event": "worker lost", "detail": "the worker died before the payload"}
                for row in unsent_rows]
        told += [{"id": row.id, "attempt": row.attempt, "event": "uncertain", "detail": "the worker died after the payload"}
                 for row in unknown]
        if told:
            connection.execute(events.insert().values(at=now_ms()), told)
        self._fail_poison(connection, [row.id for row in (*unsent_rows, *unknown)])
        return [len(told)] * len(asked)

    def _fail_poison(self, connection: Connection, ids: list[str]) -> None:
        failed = list(connection.scalars(
            update(messages).values(state=State.FAILED, reason="crashed: five workers died with it")
            .where(messages.c.id.in_(ids), messages.c.crashes > CRASHES_MAX, messages.c.state == State.QUEUED).returning(messages.c.id)))
        if failed:
            connection.execute(update(recipients).values(state=State.FAILED).where(
                recipients.c.id.in_(failed), recipients.c.state.in_([State.QUEUED, State.DEFERRED])))
            connection.execute(events.insert().values(at=now_ms()), [{"id": id, "event": "failed", "detail": "crashed"} for id in failed])


def _run(connection: Connection, statements: list[Any]) -> list[Any]:
    return [connection.execute(statement).all() for statement in statements]


def _unpublish(connection: Connection, chunks: list[list[str]]) -> list[None]:
    for ids in chunks:
        connection.execute(update(messages).values(published_at=None).where(messages.c.id.in_(ids), messages.c.state == State.QUEUED))
    return [None] * len(chunks)


def _log_in_again(connection: Connection, asked: list[None]) -> list[None]:
    refused = or_(*(messages.c.reason.like(f"{code} %") for code in LOGIN_REFUSED_CODES))
    connection.execute(update(messages).values(next_attempt_at=now_ms()).where(
        messages.c.next_attempt_at > now_ms(), messages.c.state == State.DEFERRED, refused))
    return asked


def _forget_nudges(connection: Connection, asked: list[None]) -> list[None]:
    connection.execute(update(messages).values(published_at=None).where(
        messages.c.state == State.QUEUED, messages.c.published_at.is_not(None)))
    return [None] * len(asked)
