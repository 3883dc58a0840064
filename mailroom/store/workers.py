"""The workers' heartbeats. A worker that is seen holds its lease; one that is not loses every row it owns."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, and_, literal, select

from mailroom.store.db.database import Database
from mailroom.store.db.schema import now_ms, workers
from mailroom.store.db.statements import in_order

#: Rows of workers gone longer than this are deleted; nothing refers to them any more.
FORGET_AFTER_MS = 24 * 3600 * 1000


def is_alive(lease_seconds: float) -> ColumnElement[bool]:
    """The rows of workers whose lease runs."""
    return is_seen_within(literal(int(lease_seconds * 1000)))


def is_seen_within(milliseconds: ColumnElement[int]) -> ColumnElement[bool]:
    return and_(workers.c.stopped_at.is_(None), workers.c.seen_at > now_ms() - milliseconds)


def dead_owners(connection: Connection, owner: Column[Any], lease_seconds: float) -> set[str]:
    """The values of this column, of which there is a small index, that are no living worker's."""
    owners = set(connection.scalars(select(owner).where(owner.is_not(None)).distinct()))
    return owners and owners - set(connection.scalars(select(workers.c.id).where(is_alive(lease_seconds))))


def alive(database: Database, lease_seconds: float) -> list[dict[str, Any]]:
    """The workers whose lease runs, with their names, queues and times."""
    found = select(workers).where(is_alive(lease_seconds)).order_by(workers.c.started_at, workers.c.id)
    return database.read(lambda connection: [dict(row) for row in connection.execute(found).mappings()])


def hanging_accounts(database: Database, lease_seconds: float) -> dict[str, str]:
    """Return the accounts whose server hangs, as some worker says, and what is to be said of each."""
    found = select(workers.c.hanging).where(is_alive(lease_seconds), workers.c.hanging.is_not(None))
    rows = database.read(lambda connection: connection.scalars(found).all())
    return {account: words for row in rows for account, words in json.loads(row).items()}


def thread_troubles(database: Database, lease_seconds: float) -> list[str]:
    """Words about threads that ended in workers whose lease runs."""
    found = (
        select(workers.c.name, workers.c.thread_trouble)
        .where(is_alive(lease_seconds), workers.c.thread_trouble.is_not(None))
        .order_by(workers.c.name)
    )
    rows = database.read(lambda connection: connection.execute(found).all())
    return [f"{row.name}: {row.thread_trouble}" for row in rows]


def broker_trouble(database: Database, lease_seconds: float) -> str:
    """Name what keeps the living workers that serve mail from their queues; "" where one is not kept."""
    serving = [row for row in alive(database, lease_seconds) if "mail" in row["queues"].split(",")]
    troubles = [row["broker_trouble"] for row in serving]
    return troubles[0] if troubles and all(troubles) else ""


@dataclass
class Heartbeat:
    """The row of one worker process, which a beat keeps alive; it is the lease on all that the worker owns."""

    database: Database
    id: str
    name: str
    queues: Sequence[str]
    broker_trouble: Callable[[], str] = str  #: what keeps it from its queues just now
    celery_queue_left: str | None = None
    hanging: Callable[[], Mapping[str, str]] = dict  #: as `hanging_accounts`, of this worker
    threads: Callable[[], Sequence[str]] = tuple  #: words about those that are down, or were a moment ago

    def beat(self) -> None:
        """Say that we are alive; the first time makes the row, and a row that somebody deleted is made again."""
        accounts = self.hanging()
        self.database.write(self._beat, json.dumps(accounts) if accounts else None)

    def leave_celery_queue(self, reason: str) -> None:
        """Say, with the next beat, that we take nothing more from the queue `celery`; writes nothing itself."""
        self.queues = [name for name in self.queues if name != "celery"]
        self.celery_queue_left = reason

    def stop(self) -> None:
        """Say that we end by ourselves, so that nobody waits for the lease of what we may still own."""
        self.database.write(self._stop, None)

    def stop_others(self) -> None:
        """Say that every other worker has ended: for a process that knows it is the only one."""
        self.database.write(self._stop_others, None)

    def _stop(self, connection: Connection, asked: list[None]) -> list[None]:
        connection.execute(workers.update().values(stopped_at=now_ms()).where(workers.c.id == self.id))
        return asked

    def _stop_others(self, connection: Connection, asked: list[None]) -> list[None]:
        others = (
            workers.update()
            .values(stopped_at=now_ms())
            .where(workers.c.id != self.id, workers.c.stopped_at.is_(None))
        )
        connection.execute(in_order(connection, others))
        return asked

    def _beat(self, connection: Connection, hanging: list[str | None]) -> list[None]:
        now = {
            "seen_at": now_ms(),
            "queues": ",".join(self.queues),
            "broker_trouble": self.broker_trouble() or None,
            "celery_queue_left": self.celery_queue_left,
            "hanging": hanging[-1],
            "thread_trouble": "; ".join(self.threads()) or None,
        }
        beaten = connection.execute(workers.update().values(now).where(workers.c.id == self.id))
        if not beaten.rowcount:
            connection.execute(
                workers.insert().values(id=self.id, name=self.name, started_at=now_ms(), **now)
            )
            gone = workers.delete().where(workers.c.seen_at < now_ms() - FORGET_AFTER_MS)
            connection.execute(in_order(connection, gone))
        return [None] * len(hanging)
