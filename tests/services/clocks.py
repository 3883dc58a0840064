"""A database whose clock a test sets, by a function that stands before the database's own."""

import sqlite3
import time
from dataclasses import dataclass, field

from sqlalchemy import event, text

from mailroom.store.db.database import Database
from tests.services.schema import ready

#: julianday of 1970-01-01, and of a second.
EPOCH_DAYS, DAY_SECONDS = 2440587.5, 86_400
#: statement_timestamp() is stable as the server's own is, so that indexes are used as they are with that.
POSTGRESQL = """
CREATE SCHEMA moved;
CREATE TABLE moved.shift (stopped_at double precision, seconds double precision NOT NULL);
INSERT INTO moved.shift VALUES ({stopped_at}, 0);
CREATE FUNCTION moved.statement_timestamp() RETURNS timestamptz LANGUAGE sql STABLE AS
    'SELECT coalesce(to_timestamp(stopped_at), pg_catalog.statement_timestamp()) + make_interval(secs => seconds)
     FROM moved.shift';
ALTER DATABASE {name} SET search_path = moved, pg_catalog, public;
"""


@dataclass
class MovableClock:
    """The clock of a database: for every process on PostgreSQL, for those opened here on SQLite."""

    url: str
    is_stopped: bool = True  #: whether it goes on only as the test says
    seconds: float = 0  #: by how much it was moved
    _opened: list[Database] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopped_at = time.time() if self.is_stopped else None
        database = ready(self.url)
        if database.engine.dialect.name == "postgresql":
            with database.engine.begin() as connection:
                connection.exec_driver_sql(
                    POSTGRESQL.format(
                        name=database.url.database, stopped_at=self._stopped_at or "NULL"
                    )
                )
        database.close()

    def open(self) -> Database:
        database = Database(self.url)
        if database.engine.dialect.name == "sqlite":
            event.listen(database.engine, "connect", self._set)
        self._opened.append(database)
        return database

    def move(self, seconds: float) -> None:
        """Let time pass, or, by less than 0, set the clock back."""
        self.seconds += seconds
        database = self._opened[0] if self._opened else self.open()
        if database.engine.dialect.name == "postgresql":
            with database.engine.begin() as connection:
                connection.execute(
                    text("UPDATE moved.shift SET seconds = :seconds"), {"seconds": self.seconds}
                )

    def close(self) -> None:
        for database in self._opened:
            database.close()

    def _set(self, connection: sqlite3.Connection, record: object) -> None:
        connection.create_function(
            "julianday", 1, lambda now: EPOCH_DAYS + self._now() / DAY_SECONDS
        )

    def _now(self) -> float:
        return (self._stopped_at or time.time()) + self.seconds
