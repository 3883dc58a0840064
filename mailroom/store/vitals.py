"""What the database says of itself."""

from dataclasses import dataclass

from sqlalchemy import Connection, text

from mailroom.store.database import Database

_SQLITE = "SELECT 'SQLite ' || sqlite_version(), (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size)"
_POSTGRESQL = "SELECT 'PostgreSQL ' || current_setting('server_version'), pg_database_size(current_database())"


@dataclass(frozen=True)
class Vitals:
    version: str
    size_bytes: int


def vitals(database: Database) -> Vitals:
    def look(connection: Connection) -> Vitals:
        row = connection.execute(text(_SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL)).one()
        return Vitals(row[0], int(row[1]))
    return database.read(look)
