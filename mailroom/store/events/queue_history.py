"""Records how many messages wait, minute by minute, which no count of events can tell afterwards."""

from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, select

from mailroom.store.db.database import Database
from mailroom.store.db.dialects import insertion, now_ms
from mailroom.store.db.schema import samples
from mailroom.store.events.counters import MINUTE_MS, Counters, Depths

#: The states of messages that wait to be sent, and need nobody for that. `sending` is all that workers own.
WAITING = ("queued", "sending", "deferred")


class QueueMinute(NamedTuple):
    """The queue in one minute."""

    minute: int  #: since 1970
    waiting: int  #: messages
    oldest_ms: int  #: how long the one that was queued first had waited for a worker


@dataclass
class QueueHistory:
    """Rows of one minute each, written by the first process to look; none while no process runs."""

    database: Database
    lease_seconds: float

    def record(self) -> None:
        """Write the row of this minute, unless it exists. Raises StoreUnavailable."""
        this_minute = now_ms() // MINUTE_MS
        existing = select(samples.c.minute).where(samples.c.minute == this_minute)
        if self.database.read(lambda connection: connection.scalar(existing)) is None:
            self.database.write(
                _write, Counters(self.database).depths(self.lease_seconds), alone=True
            )

    def since(self, minute: int) -> list[QueueMinute]:
        """Return the rows from this minute on, in the order of time."""
        rows = select(samples).where(samples.c.minute >= minute).order_by(samples.c.minute)
        return self.database.read(
            lambda connection: [QueueMinute(*row) for row in connection.execute(rows)]
        )


def _write(connection: Connection, items: list[Depths]) -> list[None]:
    for depths in items:
        connection.execute(
            insertion(connection, samples)
            .values(
                minute=now_ms() // MINUTE_MS,
                waiting=sum(depths.messages[state] for state in WAITING),
                oldest_ms=int(depths.oldest_seconds * 1000),
            )
            .on_conflict_do_nothing()
        )
    return [None] * len(items)
