"""What the database says of itself, and whether it takes mail."""

import logging
import threading
import time
from dataclasses import dataclass

from sqlalchemy import Connection, text

from mailroom.mail.errors import StoreUnavailable
from mailroom.store.database import Database
from mailroom.store.outbox import Outbox

log = logging.getLogger("mailasync.outbox")

#: How old what was found may be: whoever asks often gets no write for each time.
TRIED_SECONDS = 1.0

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


class Readiness:
    """Whether mail would be accepted just now. It is tried for whoever asks, by one thread at a time."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._turn = threading.Lock()
        self._tried_at = float("-inf")
        self._trouble = ""

    def trouble(self) -> str:
        """Why it would not be; "" if it would."""
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
