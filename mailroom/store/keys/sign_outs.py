"""Keeps the sessions that were signed out, as their cookies stay valid until they expire."""

from sqlalchemy import Connection, select

from mailroom.store.db.access_schema import signed_out
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import insertion, now_ms

#: How long a cookie is valid at most.
LIFETIME_SECONDS = 12 * 3600
#: Longer than any cookie of a session is valid, even if the clocks of web process and database differ.
KEPT_MS = 2 * LIFETIME_SECONDS * 1000


class SignOuts:
    """The sessions that were signed out; they are in the database, so that every web process knows them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, id: str) -> None:
        """End a session for good; a second call changes nothing. Raises StoreUnavailable."""
        self._database.write(_insert, id)

    def has(self, id: str) -> bool:
        """Tell whether this session has ended. Raises StoreUnavailable."""
        session = select(signed_out.c.id).where(signed_out.c.id == id)
        found = self._database.read(lambda connection: connection.scalar(session))
        return found is not None


def _insert(connection: Connection, ids: list[str]) -> list[None]:
    insert = insertion(connection, signed_out).values(at=now_ms()).on_conflict_do_nothing()
    connection.execute(insert, [{"id": id} for id in sorted(ids)])
    return [None] * len(ids)
