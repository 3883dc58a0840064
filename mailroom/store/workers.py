"""Heartbeats of workers. A worker without one for longer than its lease loses every row that it owns."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, and_, literal, select

from mailroom.model.errors import StoreUnavailable
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.locking import in_order
from mailroom.store.db.schema import workers

R = TypeVar("R")

#: Rows of workers that were not seen for so long are deleted; nothing refers to them any more.
FORGET_AFTER_MS = 24 * 3600 * 1000


def is_alive(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition of workers within their lease."""
    lease_ms = int(lease_seconds * 1000)
    return is_seen_within(literal(lease_ms))


def is_seen_within(milliseconds: ColumnElement[int]) -> ColumnElement[bool]:
    return and_(
        workers.c.stopped_at.is_(None),
        workers.c.seen_at > now_ms() - milliseconds,
    )


def dead_owners(connection: Connection, owner: Column[Any], lease_seconds: float) -> set[str]:
    """Return the owners in this column, which has a small index, that are not alive."""
    in_column = select(owner).where(owner.is_not(None)).distinct()
    owners = set(connection.scalars(in_column))
    if not owners:
        return owners
    living = select(workers.c.id).where(is_alive(lease_seconds))
    return owners - set(connection.scalars(living))


def write_in_time(database: Database, change: Callable[[Connection], R], lease_seconds: float) -> R:
    """Write what takes workers for dead, in its own transaction, unless that has to wait for the database.

    The heartbeats of the workers wait for it as well then.

    Raises:
      StoreUnavailable: the wait took half a lease or longer.
    """
    asked_at = time.monotonic()

    def change_in_time(connection: Connection, items: list[None]) -> list[R]:
        waited_seconds = time.monotonic() - asked_at
        if waited_seconds >= lease_seconds / 2:
            raise StoreUnavailable(f"the database was away for {waited_seconds:.0f} s")
        return [change(connection)]

    return database.write(change_in_time, None, alone=True)


def alive(database: Database, lease_seconds: float) -> list[dict[str, Any]]:
    """Return the rows of the workers within their lease, the oldest first."""
    by_age = (
        select(workers).where(is_alive(lease_seconds)).order_by(workers.c.started_at, workers.c.id)
    )
    return database.read(
        lambda connection: [dict(row) for row in connection.execute(by_age).mappings()]
    )


def hanging_accounts(database: Database, lease_seconds: float) -> dict[str, str]:
    """Return the accounts whose server hangs for some worker, each with a description."""
    hanging = select(workers.c.hanging).where(
        is_alive(lease_seconds), workers.c.hanging.is_not(None)
    )
    rows = database.read(lambda connection: connection.scalars(hanging).all())
    accounts: dict[str, str] = {}
    for row in rows:
        accounts |= json.loads(row)
    return accounts


def thread_troubles(database: Database, lease_seconds: float) -> list[str]:
    """Describe the threads that ended in living workers."""
    troubles = (
        select(workers.c.name, workers.c.thread_trouble)
        .where(is_alive(lease_seconds), workers.c.thread_trouble.is_not(None))
        .order_by(workers.c.name)
    )
    rows = database.read(lambda connection: connection.execute(troubles).all())
    return [f"{row.name}: {row.thread_trouble}" for row in rows]


def broker_trouble(database: Database, lease_seconds: float) -> str:
    """Describe why no living worker reaches the queue for mail; "" if one does, or there is none."""
    serving = [row for row in alive(database, lease_seconds) if "mail" in row["queues"].split(",")]
    troubles = [row["broker_trouble"] for row in serving]
    return troubles[0] if troubles and all(troubles) else ""


@dataclass
class Heartbeat:
    """The heartbeat of one worker process, which is its lease on every row that it owns."""

    database: Database
    id: str
    name: str
    queues: Sequence[str]
    broker_error: Callable[[], str] = str  #: why it does not reach its queues now; "" if it does
    celery_queue_left: str | None = None
    hanging: Callable[[], Mapping[str, str]] = dict  #: this worker's share of `hanging_accounts`
    #: Descriptions of threads that ended, a moment ago or for good.
    threads: Callable[[], Sequence[str]] = tuple

    def beat(self) -> None:
        """Write the heartbeat; the row is made the first time, or if it was deleted."""
        accounts = self.hanging()
        self.database.write(self._beat, json.dumps(accounts) if accounts else None)

    def leave_celery_queue(self, reason: str) -> None:
        """Let the next heartbeat say that this worker has left the queue `celery`."""
        self.queues = [name for name in self.queues if name != "celery"]
        self.celery_queue_left = reason

    def stop(self) -> None:
        """Note that this worker ends, so that nobody waits for the lease of what it may still own."""
        self.database.write(self._stop, None)

    def stop_others(self) -> None:
        """Note that every other worker has ended, in a process that knows it is the only one."""
        self.database.write(self._stop_others, None)

    def _stop(self, connection: Connection, items: list[None]) -> list[None]:
        connection.execute(
            workers.update().values(stopped_at=now_ms()).where(workers.c.id == self.id)
        )
        return items

    def _stop_others(self, connection: Connection, items: list[None]) -> list[None]:
        others = (
            workers.update()
            .values(stopped_at=now_ms())
            .where(workers.c.id != self.id, workers.c.stopped_at.is_(None))
        )
        connection.execute(in_order(connection, others))
        return items

    def _beat(self, connection: Connection, hanging: list[str | None]) -> list[None]:
        values = {
            "seen_at": now_ms(),
            "queues": ",".join(self.queues),
            "broker_trouble": self.broker_error() or None,
            "celery_queue_left": self.celery_queue_left,
            "hanging": hanging[-1],
            "thread_trouble": "; ".join(self.threads()) or None,
        }
        updated = connection.execute(workers.update().values(values).where(workers.c.id == self.id))
        if not updated.rowcount:
            connection.execute(
                workers.insert().values(id=self.id, name=self.name, started_at=now_ms(), **values)
            )
            gone = workers.delete().where(workers.c.seen_at < now_ms() - FORGET_AFTER_MS)
            connection.execute(in_order(connection, gone))
        return [None] * len(hanging)
