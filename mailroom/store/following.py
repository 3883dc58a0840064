"""Tells what happens to messages, to whoever looks again and again."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select

from mailroom.store.database import Database
from mailroom.store.schema import events, messages, recipients

#: Lines of timelines are looked at again for so long: one with a lower number may be committed after one with a higher.
OVERLAP = 500
#: That are told at once; whoever has fallen behind gets the rest with the next look.
LOOK_MAX = 1000


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
        self._last = self.database.read(lambda connection: connection.scalar(select(func.max(events.c.number)))) or 0
        recent = select(events.c.number).where(events.c.number > self._last - OVERLAP)
        self._seen = set(self.database.read(lambda connection: connection.scalars(recent).all()))

    def look(self) -> list[dict[str, Any]]:
        """What has happened since, in order: id, at (milliseconds since 1970), event, attempt, detail, and the message's state now."""
        found = [row for row in self.database.read(lambda connection: self._rows(connection)) if row["number"] not in self._seen]
        self._seen |= {row["number"] for row in found}
        self._last = max(self._last, *(row["number"] for row in found)) if found else self._last
        self._seen = {number for number in self._seen if number > self._last - OVERLAP}
        return [row for row in found if (not self.status or row["state"] == self.status) and (not self.to or row["is_theirs"])]

    def _rows(self, connection: Any) -> Sequence[dict[str, Any]]:
        theirs = select(recipients.c.id).where(recipients.c.id == messages.c.id, recipients.c.address == self.to).exists()
        lines = select(events, messages.c.state, theirs.label("is_theirs")).join(messages, messages.c.id == events.c.id) \
            .where(events.c.number > self._last - OVERLAP).order_by(events.c.number).limit(OVERLAP + LOOK_MAX)
        return [dict(row) for row in connection.execute(lines).mappings()]
