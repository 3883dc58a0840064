"""Secrets to sign with, one for each purpose.

They are in the database, so that every process has the same ones.
"""

from secrets import token_hex

from sqlalchemy import Connection, select

from mailroom.store.db.database import Database
from mailroom.store.db.dialects import insertion
from mailroom.store.db.schema import secrets


def secret(database: Database, purpose: str) -> bytes:
    """Return the 32 random bytes for a purpose, which are made when first needed. Raises StoreUnavailable."""
    stored = select(secrets.c.value).where(secrets.c.name == purpose)
    value = database.read(lambda connection: connection.scalar(stored))
    if not value:
        value = database.write(_make, purpose, alone=True)
    return bytes.fromhex(value)


def _make(connection: Connection, purposes: list[str]) -> list[str]:
    # A second process waits here for the commit of the first, and then reads its value.
    for purpose in purposes:
        connection.execute(
            insertion(connection, secrets)
            .values(name=purpose, value=token_hex(32))
            .on_conflict_do_nothing()
        )
    return [
        connection.scalars(select(secrets.c.value).where(secrets.c.name == purpose)).one()
        for purpose in purposes
    ]
