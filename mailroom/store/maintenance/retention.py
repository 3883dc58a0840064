"""Deletes what ended long ago: messages with all that belongs to them, jobs, and old rows of small tables.

Batches are small, so that no POST has to wait for one. Each begins where the last one ended, so that rows
that stay, such as a mail that is held for a year, are looked at once in a round.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Table,
    and_,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
)

from mailroom.model.message import FINAL
from mailroom.store.db.access_schema import signed_out
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.locking import in_order
from mailroom.store.db.schema import (
    deliveries,
    events,
    files,
    idempotency,
    jobs,
    messages,
    samples,
    tallies,
    usage,
    workers,
)
from mailroom.store.events.counters import KEPT_MINUTES, MINUTE_MS, fold, is_old
from mailroom.store.jobs.jobs import FINAL as JOB_FINAL
from mailroom.store.keys.sign_outs import KEPT_MS as SIGNED_OUT_MS
from mailroom.store.workers import FORGET_AFTER_MS

DAY_MS = 24 * 3600_000
#: Rows of one batch: with four tables for each message, they take SQLite's write lock for some 20 ms.
BATCH = 200
#: How long an Idempotency-Key is kept, whatever RETENTION_DAYS is.
KEYS_MS = DAY_MS
#: Sending limits are about the last 24 hours; older usage matters to none.
USAGE_MS = 2 * DAY_MS
#: How long test deliveries of webhooks are kept, which belong to no message.
TESTS_MS = 7 * DAY_MS
#: The interval of usage: ten minutes.
USAGE_BUCKET_MS = 600_000
#: Rows that `old` reads at a time.
LOOK = 5_000

#: Any number that nobody else takes for a PostgreSQL advisory lock in this database.
_LOCK = 7_263_502

#: A position in the order of age: created_at and id.
Position = tuple[int, str]
START: Position = (0, "")


@dataclass(frozen=True)
class PurgeBatch:
    """Rows that were looked at."""

    end: Position  #: of the last row
    ids: list[str]  #: those that can be deleted
    is_last: bool  #: whether there are no rows after these


@dataclass(eq=False)
class Retention:
    """The purge of one process, and how far it has come.

    Any number of processes may purge; one at a time does.
    """

    database: Database
    days: float
    #: Where the next batch of each table begins, by its name.
    _positions: dict[str, Position] = field(default_factory=dict)

    def purge(self, limit: int = BATCH) -> int:
        """Delete what can go of the next `limit` rows of each table; return how many messages and jobs.

        `done` then tells whether a round is complete. While another process purges, nothing is done. With 0
        days, only small tables are purged.
        """
        self._purge_small(limit)
        if not self.days:
            return 0
        return sum(self._step(table, limit) for table in (messages, jobs))

    @property
    def done(self) -> bool:
        """Tell whether the next batch begins a new round."""
        return not self._positions

    def rounds(self, limit: int = BATCH) -> Iterator[tuple[int, int]]:
        """Purge for one whole round, at a person's request.

        Yields how many messages and how many jobs were deleted in each batch.
        """
        self._purge_small(None)
        self._positions.clear()
        for number, table in enumerate((messages, jobs)):
            more = True
            while more:
                started = time.monotonic()
                count = self._step(table, limit)
                more = table.name in self._positions
                yield (0, count) if number else (count, 0)
                # Half of the time is for others, who on SQLite wait for the same lock.
                time.sleep(time.monotonic() - started)

    def old(self) -> tuple[int, int]:
        """Count the messages, and the jobs without one, that can go now."""
        counts = {messages.name: 0, jobs.name: 0}
        for table in (messages, jobs):
            batch = PurgeBatch(START, [], False)
            while not batch.is_last:
                batch = self.database.read(partial(self._look, table, batch.end, LOOK))
                counts[table.name] += len(batch.ids)
        return counts[messages.name], counts[jobs.name]

    def _step(self, table: Table, limit: int) -> int:
        """Look without a lock, and take one only if there is something to delete."""
        position = self._positions.get(table.name, START)
        batch = self.database.read(partial(self._look, table, position, limit))
        work = self._delete_messages if table is messages else self._delete_jobs
        count = self.database.write(work, batch.ids, alone=True) if batch.ids else 0
        if count is None:
            return 0  # Another process purges; the next time we look at the same rows again.
        if batch.is_last:
            self._positions.pop(table.name, None)
        else:
            self._positions[table.name] = batch.end
        return count

    def _look(
        self, table: Table, after: Position, limit: int, connection: Connection
    ) -> PurgeBatch:
        cutoff_ms = self._cutoff_ms(connection)
        can_go = _message_can_go(cutoff_ms) if table is messages else _job_can_go(cutoff_ms)
        rows = connection.execute(
            select(table.c.id, table.c.created_at, can_go.label("gone"))
            .where(
                table.c.created_at < cutoff_ms,
                tuple_(table.c.created_at, table.c.id) > tuple_(*map(literal, after)),
            )
            .order_by(table.c.created_at, table.c.id)
            .limit(limit)
        ).all()
        end = (rows[-1].created_at, rows[-1].id) if rows else after
        return PurgeBatch(end, [row.id for row in rows if row.gone], len(rows) < limit)

    def _cutoff_ms(self, connection: Connection) -> int:
        return _now(connection) - int(self.days * DAY_MS)

    def _delete_messages(self, connection: Connection, chunks: list[list[str]]) -> list[int | None]:
        return [self._delete_messages_of(connection, ids) for ids in chunks]

    def _delete_messages_of(self, connection: Connection, ids: list[str]) -> int | None:
        """Delete those of these messages that can go; None while another process purges."""
        if not _alone(connection):
            return None
        # Jobs are locked first, as in every transaction.
        job_ids = select(messages.c.job_id).where(messages.c.id.in_(ids))
        its_jobs = select(jobs.c.id).where(jobs.c.id.in_(job_ids)).order_by(jobs.c.id)
        connection.execute(its_jobs.with_for_update())
        # Checked again: one may have been sent once more meanwhile.
        gone = (
            delete(messages)
            .where(messages.c.id.in_(ids), _message_can_go(self._cutoff_ms(connection)))
            .returning(messages.c.id, messages.c.job_id)
        )
        rows = connection.execute(in_order(connection, gone)).all()
        if rows:
            self._delete_belongings(connection, [row.id for row in rows])
            self._delete_jobs_of(connection, [row.job_id for row in rows if row.job_id])
        return len(rows)

    def _delete_jobs(self, connection: Connection, chunks: list[list[str]]) -> list[int | None]:
        results: list[int | None] = []
        for ids in chunks:
            results.append(self._delete_jobs_of(connection, ids) if _alone(connection) else None)
        return results

    def _delete_jobs_of(self, connection: Connection, ids: list[str]) -> int:
        if not ids:
            return 0
        # Checked again: one may have been run once more meanwhile, or its message may have to stay.
        old = (
            delete(jobs)
            .where(jobs.c.id.in_(ids), _job_can_go(self._cutoff_ms(connection)))
            .returning(jobs.c.id)
        )
        gone = list(connection.scalars(in_order(connection, old)))
        if gone:
            self._delete_belongings(connection, gone)
        return len(gone)

    def _delete_belongings(self, connection: Connection, ids: list[str]) -> None:
        """Delete what has no foreign key: timelines, files and deliveries.

        Contents and recipients were deleted with the row.
        """
        for table in (events, files):
            connection.execute(delete(table).where(table.c.id.in_(ids)))
        delivered = delete(deliveries).where(deliveries.c.message_id.in_(ids))
        connection.execute(in_order(connection, delivered))

    def _purge_small(self, limit: int | None) -> None:
        """Delete old rows of small tables, and add up old counts."""
        if self.database.read(_has_small):
            self.database.write(_delete_small, limit, alone=True)


def _message_can_go(cutoff_ms: int) -> ColumnElement[bool]:
    """Return the condition on which a message can be deleted.

    It is final and so is its job, as both stay together; and all that happened to either is older than
    `cutoff_ms`. A message has no column for its end: that is the time of its last event, or else of its
    acceptance.
    """
    return and_(
        messages.c.state.in_(FINAL),
        messages.c.created_at < cutoff_ms,
        ~exists().where(events.c.id == messages.c.id, events.c.at >= cutoff_ms),
        or_(
            messages.c.job_id.is_(None),
            ~exists().where(jobs.c.id == messages.c.job_id, ~_job_ended(cutoff_ms)),
        ),
    )


def _job_can_go(cutoff_ms: int) -> ColumnElement[bool]:
    """Return the condition on which a job can be deleted.

    It is final and old, and there is no message that shows it or may need its file.
    """
    return and_(_job_ended(cutoff_ms), ~exists().where(messages.c.job_id == jobs.c.id))


def _job_ended(cutoff_ms: int) -> ColumnElement[bool]:
    return and_(
        jobs.c.state.in_(JOB_FINAL),
        func.coalesce(jobs.c.finished_at, jobs.c.created_at) < cutoff_ms,
    )


def _small_tables(
    connection: Connection,
) -> list[tuple[Table, tuple[Column[Any], ...], ColumnElement[bool]]]:
    """Return the small tables, each with its key and the condition of its old rows."""
    now = _now(connection)
    return [
        (
            idempotency,
            (idempotency.c.owner, idempotency.c.key),
            idempotency.c.created_at < now - KEYS_MS,
        ),
        (
            usage,
            (usage.c.account, usage.c.bucket),
            usage.c.bucket < (now - USAGE_MS) // USAGE_BUCKET_MS,
        ),
        (workers, (workers.c.id,), workers.c.seen_at < now - FORGET_AFTER_MS),
        (
            deliveries,
            (deliveries.c.number,),
            and_(deliveries.c.message_id.is_(None), deliveries.c.at < now - TESTS_MS),
        ),
        (signed_out, (signed_out.c.id,), signed_out.c.at < now - SIGNED_OUT_MS),
        (samples, (samples.c.minute,), samples.c.minute < now // MINUTE_MS - KEPT_MINUTES),
        (tallies, (tallies.c.minute, tallies.c.event, tallies.c.source), is_old(now)),
    ]


def _has_small(connection: Connection) -> bool:
    return any(
        connection.execute(select(literal(1)).select_from(table).where(old).limit(1)).first()
        for table, _, old in _small_tables(connection)
    )


def _delete_small(connection: Connection, limits: list[int | None]) -> list[None]:
    if _alone(connection):
        for table, key, old in _small_tables(connection):
            # Every process adds counts each minute, and they are small: more of them at once.
            most = LOOK if table is tallies else limits[0]
            keys = select(*key).where(old).limit(limits[0] and most)
            row_key = tuple_(*key) if len(key) > 1 else key[0]
            gone = in_order(connection, delete(table).where(row_key.in_(keys), old))
            if table is tallies:
                fold(
                    connection, connection.execute(gone.returning(tallies.c.event, tallies.c.count))
                )
            else:
                connection.execute(gone)
    return [None] * len(limits)


def _now(connection: Connection) -> int:
    """Read the database's clock.

    PostgreSQL uses an index for a number, and not for an expression that changes.
    """
    return connection.scalar(select(now_ms())) or 0


def _alone(connection: Connection) -> bool:
    """Tell whether no other process purges now.

    The lock ends with the transaction. On SQLite the transaction itself is that lock.
    """
    if connection.dialect.name != "postgresql":
        return True
    return bool(connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}))
