"""Checks the database: its version, size and settings, and whether mail can be accepted."""

import logging
import threading
import time
from dataclasses import dataclass

from sqlalchemy import text

from mailroom.model.errors import StoreUnavailable
from mailroom.process.installation import PROGRAM
from mailroom.store.db.database import Database
from mailroom.store.messages.outbox import Outbox

log = logging.getLogger("mailasync.outbox")

#: How long a result of `Readiness` stays valid, so that frequent requests do not cause a write each.
TRIED_SECONDS = 1.0

_SQLITE = (
    "SELECT 'SQLite ' || sqlite_version(), "
    "(SELECT page_count FROM pragma_page_count) * (SELECT page_size FROM pragma_page_size)"
)
_POSTGRESQL = (
    "SELECT 'PostgreSQL ' || current_setting('server_version'), "
    "pg_database_size(current_database())"
)

_DURABILITY = "SELECT " + ", ".join(
    f"current_setting('{name}') AS {name}"
    for name in ("fsync", "synchronous_commit", "synchronous_standby_names")
)


@dataclass(frozen=True)
class DatabaseInfo:
    version: str
    size_bytes: int


def database_info(database: Database) -> DatabaseInfo:
    statement = _SQLITE if database.engine.dialect.name == "sqlite" else _POSTGRESQL
    row = database.read(lambda connection: connection.execute(text(statement)).one())
    return DatabaseInfo(row[0], int(row[1]))


@dataclass(frozen=True, kw_only=True)
class Durability:
    """The settings that decide whether a commit outlives its server."""

    fsync: str
    synchronous_commit: str
    synchronous_standby_names: str
    hosts: int  #: the number of hosts in the URL

    def dangers(self) -> list[str]:
        """Describe what can be lost though it was committed, and what to do."""
        dangers = []
        if self.fsync == "off":
            dangers.append(
                "fsync is off, so that accepted mail is lost in a power cut: set it to on"
            )
        if self.synchronous_commit == "off":
            dangers.append(
                "synchronous_commit is off, so that accepted mail is lost if the server crashes: "
                "set it to on, as by `ALTER ROLE name SET synchronous_commit = 'on'`"
            )
        if self.hosts > 1 and not self._waits_for_standby:
            dangers.append(
                "the URL names several hosts, and no commit waits for the stand-by, so that accepted mail "
                "is lost and other mail sent twice when it takes over: set synchronous_standby_names, or "
                f"stop all and run `{PROGRAM} db restored` then"
            )
        return dangers

    @property
    def _waits_for_standby(self) -> bool:
        return bool(self.synchronous_standby_names) and self.synchronous_commit not in (
            "off",
            "local",
        )


def durability(database: Database) -> Durability | None:
    """Read them from PostgreSQL; None for SQLite, which has no such settings."""
    if database.engine.dialect.name == "sqlite":
        return None
    row = database.read(lambda connection: connection.execute(text(_DURABILITY)).one())
    hosts = ",".join(database.url.normalized_query.get("host", ()))
    return Durability(**row._mapping, hosts=len(hosts.split(",")) if hosts else 0)


class Readiness:
    """Tells whether mail can be accepted now. One thread at a time tries it."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()
        self._tried_at = float("-inf")
        self._trouble = ""

    def trouble(self) -> str:
        """Return why mail cannot be accepted; "" if it can."""
        with self._lock:
            if time.monotonic() - self._tried_at > TRIED_SECONDS:
                self._trouble = self._try()
                self._tried_at = time.monotonic()
            return self._trouble

    def _try(self) -> str:
        try:
            self._outbox.rehearse()
        except StoreUnavailable as e:
            return str(e)
        except Exception as e:  # Such as a missing permission. Its text ends in the statement.
            log.exception("a mail cannot be written")
            return f"a mail cannot be written: {type(e).__name__}, see the log"
        return ""
