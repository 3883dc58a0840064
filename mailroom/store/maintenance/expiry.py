"""Ends messages that are no longer wanted."""

from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from mailroom.model.message import OPEN, State
from mailroom.model.times import readable_time
from mailroom.store.db.database import Database
from mailroom.store.db.schema import messages, now_ms, recipients
from mailroom.store.events.timeline import record

#: Where a message can expire. What a worker has goes on, and expires if it comes back.
EXPIRING = (State.WAITING, State.SCHEDULED, State.QUEUED, State.DEFERRED, State.HELD)
REASON = "it was not sent in time"

_due = (messages.c.expires_at <= now_ms(), messages.c.state.not_in([State.SENDING, State.IN_DATA]))


@dataclass(frozen=True)
class Expiry:
    """The messages of an outbox that have an end; any number of sweepers may ask."""

    database: Database

    def expire(self, limit: int = 1000) -> int:
        """End what was to be sent by now and is not; return how many that were.

        `expires_at` is then forgotten, of those that ended earlier too: the index of what can still expire stays small.
        """
        if not self.database.read(
            lambda connection: connection.scalars(select(messages.c.id).where(*_due).limit(1)).first()
        ):
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
    connection.execute(
        update(messages).values(expires_at=None).where(messages.c.id.in_([row.id for row in rows]))
    )
    expired = [row for row in rows if row.state in EXPIRING]
    if expired:
        ids = [row.id for row in expired]
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
        record(
            connection,
            [
                {
                    "id": row.id,
                    "event": "expired",
                    "detail": f"expires_at was {readable_time(row.expires_at)}",
                }
                for row in expired
            ],
        )
    return len(expired)
