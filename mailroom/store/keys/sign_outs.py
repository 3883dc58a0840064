"""Remembers which browsers signed out, as their cookies stay well signed until they are too old."""

from sqlalchemy import Connection, select

from mailroom.store.db.database import Database
from mailroom.store.db.schema import insertion, now_ms, signed_out

#: How long a cookie is good for at most.
LIFETIME_SECONDS = 12 * 3600
#: Longer than any cookie of that session, whatever the clocks of web process and database say.
KEPT_MS = 2 * LIFETIME_SECONDS * 1000


class SignOuts:
    """The sessions that ended before their time; every web process asks the database, so all agree."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, id: str) -> None:
        """End a session for good; once more does nothing. Raises StoreUnavailable."""
        self._database.write(_insert, id)

    def has(self, id: str) -> bool:
        """Tell whether this session has ended. Raises StoreUnavailable."""
        found = select(signed_out.c.id).where(signed_out.c.id == id)
        return self._database.read(lambda connection: connection.scalar(found)) is not None


def _insert(connection: Connection, ids: list[str]) -> list[None]:
    insert = insertion(connection, signed_out).values(at=now_ms()).on_conflict_do_nothing()
    connection.execute(insert, [{"id": id} for id in sorted(ids)])
    return [None] * len(ids)
