"""Secrets to sign with, one for each purpose.

The database keeps them, so that every process has the same.
"""

from secrets import token_hex

from sqlalchemy import Connection, select

from mailroom.store.db.database import Database
from mailroom.store.db.schema import insertion, secrets


def secret(database: Database, purpose: str) -> bytes:
    """32 random bytes, made by whoever asks for them first. Raises StoreUnavailable."""
    read = select(secrets.c.value).where(secrets.c.name == purpose)
    found = database.read(lambda connection: connection.scalar(read)) or database.write(
        _make, purpose, alone=True
    )
    return bytes.fromhex(found)


def _make(connection: Connection, purposes: list[str]) -> list[str]:
    for purpose in purposes:  # Who comes second waits for the first's commit, and reads what that wrote.
        connection.execute(
            insertion(connection, secrets).values(name=purpose, value=token_hex(32)).on_conflict_do_nothing()
        )
    return [
        connection.scalars(select(secrets.c.value).where(secrets.c.name == purpose)).one()
        for purpose in purposes
    ]
