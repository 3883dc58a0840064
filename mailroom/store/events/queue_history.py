"""Notes how much waited, minute by minute: what no count of events can tell afterwards."""

from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection, select

from mailroom.store.db.database import Database
from mailroom.store.db.schema import insertion, now_ms, samples
from mailroom.store.events.counters import MINUTE_MS, Depths, Tallies

#: Of these states is what waits to be sent: it moves by itself. `sending` is all that workers have.
WAITING = ("queued", "sending", "deferred")


class Sample(NamedTuple):
    minute: int  #: since 1970
    waiting: int
    oldest_ms: int


@dataclass
class Samples:
    """Samples of one row a minute, by whichever process comes first. While none runs there is none."""

    database: Database
    lease_seconds: float

    def take(self) -> None:
        """Write this minute's, unless it is there. Raises StoreUnavailable."""
        this_minute = now_ms() // MINUTE_MS
        there = select(samples.c.minute).where(samples.c.minute == this_minute)
        if self.database.read(lambda connection: connection.scalar(there)) is None:
            self.database.write(_write, Tallies(self.database).depths(self.lease_seconds), alone=True)

    def since(self, minute: int) -> list[Sample]:
        """In the order of time."""
        found = select(samples).where(samples.c.minute >= minute).order_by(samples.c.minute)
        return self.database.read(lambda connection: [Sample(*row) for row in connection.execute(found)])


def _write(connection: Connection, seen: list[Depths]) -> list[None]:
    for depths in seen:
        connection.execute(
            insertion(connection, samples)
            .values(
                minute=now_ms() // MINUTE_MS,
                waiting=sum(depths.messages[state] for state in WAITING),
                oldest_ms=int(depths.oldest_seconds * 1000),
            )
            .on_conflict_do_nothing()
        )
    return [None] * len(seen)
