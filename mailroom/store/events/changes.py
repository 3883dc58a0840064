"""Tells those who look again and again what has happened since."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Select, func, literal_column, select

from mailroom.store.db.database import Database
from mailroom.store.db.schema import (
    accounts,
    deliveries,
    events,
    jobs,
    messages,
    recipients,
    workers,
)
from mailroom.store.workers import is_alive

#: The last lines of timelines are read again, as a lower number may be committed after a higher one.
OVERLAP = 500
#: The most lines that one look returns; the next look returns the rest.
LOOK_MAX = 1000


def pulse(database: Database, lease_seconds: float) -> str:
    """Return a text that changes whenever a message, job, worker, account or webhook does."""
    numbers = map(Select.scalar_subquery, _signs(lease_seconds))
    signs = select(*numbers)
    row = database.read(lambda connection: connection.execute(signs).one())
    return " ".join(str(value or 0) for value in row)


def _signs(lease_seconds: float) -> list[Select[Any]]:
    """Select numbers that change with what happens.

    Each is read from the end of an index, or from the few rows that workers own.
    """
    # The index's own condition, as it stands there.
    queued = messages.c.state == literal_column("'queued'")
    return [
        select(func.max(events.c.number)),
        select(func.max(messages.c.created_at)),
        select(func.max(messages.c.published_at)).where(queued),
        select(func.count() + func.coalesce(func.sum(messages.c.attempt), 0)).where(
            messages.c.owner.is_not(None)
        ),
        select(func.max(jobs.c.created_at)),
        select(func.count() + func.coalesce(func.sum(jobs.c.progress + jobs.c.attempt), 0)).where(
            jobs.c.owner.is_not(None)
        ),
        select(func.sum(accounts.c.since + func.coalesce(accounts.c.until, 0))),
        select(func.count()).select_from(workers).where(is_alive(lease_seconds)),
        select(func.max(deliveries.c.number)),
        select(func.count())
        .select_from(deliveries)
        .where(deliveries.c.next_attempt_at.is_not(None)),
    ]


@dataclass
class Changes:
    """The lines that timelines of messages get from now on, each returned once."""

    database: Database
    status: str = ""  #: the message's state at the time of the look; "": any
    to: str = ""  #: a recipient's address
    _last: int = 0
    _seen: set[int] = field(default_factory=set)

    def start(self) -> None:
        """Skip what has happened until now."""
        last = select(func.max(events.c.number))
        self._last = self.database.read(lambda connection: connection.scalar(last)) or 0
        recent = select(events.c.number).where(events.c.number > self._last - OVERLAP)
        numbers = self.database.read(lambda connection: connection.scalars(recent).all())
        self._seen = set(numbers)

    def look(self) -> list[dict[str, Any]]:
        """Return what has happened since, in order.

        Each has id, at (milliseconds since 1970), event, attempt, detail, and the message's state now.
        """
        rows = self.database.read(self._rows)
        new = [row for row in rows if row["number"] not in self._seen]
        self._seen |= {row["number"] for row in new}
        self._last = max(self._last, *self._seen) if new else self._last
        self._seen = {number for number in self._seen if number > self._last - OVERLAP}
        return [row for row in new if self._matches(row)]

    def _matches(self, row: dict[str, Any]) -> bool:
        if self.status and row["state"] != self.status:
            return False
        return not self.to or bool(row["is_theirs"])

    def _rows(self, connection: Connection) -> Sequence[dict[str, Any]]:
        theirs = (
            select(recipients.c.id)
            .where(
                recipients.c.id == messages.c.id,
                recipients.c.address == self.to,
            )
            .exists()
        )
        lines = (
            select(events, messages.c.state, theirs.label("is_theirs"))
            .join(messages, messages.c.id == events.c.id)
            .where(events.c.number > self._last - OVERLAP)
            .order_by(events.c.number)
            .limit(OVERLAP + LOOK_MAX)
        )
        rows = connection.execute(lines).mappings()
        return [dict(row) for row in rows]
