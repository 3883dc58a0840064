"""Tells what happens to messages, to whoever looks again and again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Select, func, literal_column, select

from mailroom.store.db.database import Database
from mailroom.store.db.schema import accounts, deliveries, events, jobs, messages, recipients, workers
from mailroom.store.workers import is_alive

#: Lines of timelines are looked at again for so long: one with a lower number may be committed after one with a higher.
OVERLAP = 500
#: That are told at once; whoever has fallen behind gets the rest with the next look.
LOOK_MAX = 1000


def pulse(database: Database, lease_seconds: float) -> str:
    """A word that is another one as soon as anything has happened: to a message, a job, a worker, an account or a webhook.

    Each number is the end of an index, or of the few rows that workers have in hand.
    """
    return database.read(
        lambda connection: " ".join(
            str(value or 0)
            for value in connection.execute(select(*map(Select.scalar_subquery, _signs(lease_seconds)))).one()
        )
    )


def _signs(lease_seconds: float) -> list[Select[Any]]:
    queued = messages.c.state == literal_column("'queued'")  # The index's own condition, as it stands there.
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
        select(func.count()).select_from(deliveries).where(deliveries.c.next_attempt_at.is_not(None)),
    ]


@dataclass
class Changes:
    """The lines that timelines of messages get from now on, each told once."""

    database: Database
    status: str = ""  #: of the message, when it is looked at; "": any
    to: str = ""  #: a recipient's address
    _last: int = 0
    _seen: set[int] = field(default_factory=set)

    def start(self) -> None:
        """Pass over what has happened until now."""
        self._last = (
            self.database.read(lambda connection: connection.scalar(select(func.max(events.c.number)))) or 0
        )
        recent = select(events.c.number).where(events.c.number > self._last - OVERLAP)
        self._seen = set(self.database.read(lambda connection: connection.scalars(recent).all()))

    def look(self) -> list[dict[str, Any]]:
        """Return what has happened since, in order.

        Each has id, at (milliseconds since 1970), event, attempt, detail, and the message's state now.
        """
        found = [
            row
            for row in self.database.read(lambda connection: self._rows(connection))
            if row["number"] not in self._seen
        ]
        self._seen |= {row["number"] for row in found}
        self._last = max(self._last, *(row["number"] for row in found)) if found else self._last
        self._seen = {number for number in self._seen if number > self._last - OVERLAP}
        return [
            row
            for row in found
            if (not self.status or row["state"] == self.status) and (not self.to or row["is_theirs"])
        ]

    def _rows(self, connection: Any) -> Sequence[dict[str, Any]]:
        theirs = (
            select(recipients.c.id)
            .where(recipients.c.id == messages.c.id, recipients.c.address == self.to)
            .exists()
        )
        lines = (
            select(events, messages.c.state, theirs.label("is_theirs"))
            .join(messages, messages.c.id == events.c.id)
            .where(events.c.number > self._last - OVERLAP)
            .order_by(events.c.number)
            .limit(OVERLAP + LOOK_MAX)
        )
        return [dict(row) for row in connection.execute(lines).mappings()]
