"""Ends messages that were not sent before they expired."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from mailroom.model.message import OPEN, State
from mailroom.model.times import readable_time
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import messages, recipients
from mailroom.store.events.timeline import record

#: The states in which a message can expire. One that a worker has goes on, and expires if it is given back;
#: so does one that is looked for in the Sent folder.
EXPIRING = (State.WAITING, State.SCHEDULED, State.QUEUED, State.DEFERRED, State.HELD)
REASON = "it was not sent in time"

_due = (
    messages.c.expires_at <= now_ms(),
    messages.c.state.not_in([State.SENDING, State.IN_DATA]),
    messages.c.looks.is_(None),
)


@dataclass(frozen=True)
class Expiry:
    """The messages of an outbox that can expire; any number of sweepers may run."""

    database: Database

    def expire(self, limit: int = 1000) -> int:
        """End messages that have expired; return how many.

        `expires_at` is then deleted, of those that ended earlier too, so that its index stays small.
        """
        first = select(messages.c.id).where(*_due).limit(1)
        if not self.database.read(lambda connection: connection.scalars(first).first()):
            return 0  # Looking takes no write lock, and most of the time there is nothing.
        return self.database.write(_expire, limit, alone=True)


def _expire(connection: Connection, limits: list[int]) -> list[int]:
    return [_expire_some(connection, limit) for limit in limits]


def _expire_some(connection: Connection, limit: int) -> int:
    rows = connection.execute(
        select(messages.c.id, messages.c.state, messages.c.expires_at)
        .where(*_due)
        .order_by(messages.c.expires_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    ids = [row.id for row in rows]
    connection.execute(update(messages).values(expires_at=None).where(messages.c.id.in_(ids)))
    expired = [row for row in rows if row.state in EXPIRING]
    if expired:
        _end(connection, [row.id for row in expired])
        record(connection, [_line(row) for row in expired])
    return len(expired)


def _end(connection: Connection, ids: list[str]) -> None:
    connection.execute(
        update(messages)
        .values(state=State.EXPIRED, reason=REASON, next_attempt_at=None, parked=None)
        .where(messages.c.id.in_(ids), messages.c.state.in_(EXPIRING))
    )
    connection.execute(
        update(recipients)
        .values(state=State.EXPIRED)
        .where(recipients.c.id.in_(ids), recipients.c.state.in_(OPEN))
    )


def _line(row: Any) -> dict[str, Any]:
    return {
        "id": row.id,
        "event": "expired",
        "detail": f"expires_at was {readable_time(row.expires_at)}",
    }
