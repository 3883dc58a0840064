"""Reads what the database says of itself, and whether it takes mail."""

import logging
import threading
import time
from dataclasses import dataclass

from sqlalchemy import Connection, text

from mailroom.model.errors import StoreUnavailable
from mailroom.store.db.database import Database
from mailroom.store.messages.outbox import Outbox

log = logging.getLogger("mailasync.outbox")

#: How old what was found may be: whoever asks often gets no write for each time.
TRIED_SECONDS = 1.0

_SQLITE = "SELECT 'SQLite ' || sqlite_version(), (SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size)"
_POSTGRESQL = (
    "SELECT 'PostgreSQL ' || current_setting('server_version'), pg_database_size(current_database())"
)

_DURABILITY = "SELECT " + ", ".join(
    f"current_setting('{name}') AS {name}"
    for name in ("fsync", "synchronous_commit", "synchronous_standby_names")
)


@dataclass(frozen=True)
class Vitals:
    version: str
    size_bytes: int


def vitals(database: Database) -> Vitals:
    def look(connection: Connection) -> Vitals:
        row = connection.execute(text(_SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL)).one()
        return Vitals(row[0], int(row[1]))

    return database.read(look)


@dataclass(frozen=True, kw_only=True)
class Durability:
    """The settings that decide whether a commit outlives its server."""

    fsync: str
    synchronous_commit: str
    synchronous_standby_names: str
    hosts: int  #: that the URL names

    def dangers(self) -> list[str]:
        """Tell what can be lost though it was committed, and what to do."""
        found = []
        if self.fsync == "off":
            found.append("fsync is off, so that accepted mail is lost in a power cut: set it to on")
        if self.synchronous_commit == "off":
            found.append(
                "synchronous_commit is off, so that accepted mail is lost if the server crashes: "
                "set it to on, as by `ALTER ROLE name SET synchronous_commit = 'on'`"
            )
        if self.hosts > 1 and not self._waits_for_standby:
            found.append(
                "the URL names several hosts, and no commit waits for the stand-by, so that accepted mail "
                "is lost and other mail sent twice when it takes over: set synchronous_standby_names, or "
                "stop all and run `flask db restored` then"
            )
        return found

    @property
    def _waits_for_standby(self) -> bool:
        return bool(self.synchronous_standby_names) and self.synchronous_commit not in ("off", "local")


def durability(database: Database) -> Durability | None:
    """Of a PostgreSQL; an SQLite file has none of these choices."""
    if database.engine.dialect.name == "sqlite":
        return None
    row = database.read(lambda connection: connection.execute(text(_DURABILITY)).one())
    named = database.url.normalized_query.get("host", ())
    return Durability(**row._mapping, hosts=sum(len(one.split(",")) for one in named))


class Readiness:
    """Tells whether mail would be accepted just now. It is tried for whoever asks, by one thread at a time."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._turn = threading.Lock()
        self._tried_at = float("-inf")
        self._trouble = ""

    def trouble(self) -> str:
        """Say why mail would not be accepted; "" if it would."""
        with self._turn:
            if time.monotonic() - self._tried_at > TRIED_SECONDS:
                self._trouble = self._try()
                self._tried_at = time.monotonic()
            return self._trouble

    def _try(self) -> str:
        try:
            self._outbox.rehearse()
        except StoreUnavailable as e:
            return str(e)
        except Exception as e:  # Such as a right that is lacking. Its words end in the statement.
            log.exception("a mail cannot be written")
            return f"a mail cannot be written: {type(e).__name__}, see the log"
        return ""
