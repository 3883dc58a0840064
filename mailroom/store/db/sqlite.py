"""SQLite's file: says why it cannot be opened, and notices when it was moved, deleted or replaced."""

import os
import pwd
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from mailroom.model.errors import StoreUnavailable

#: A file's device and inode, which identify it whatever its name.
_Identity = tuple[int, int]


class SQLiteFile:
    """The file of an engine, and its write-ahead log (-wal), which has the last commits.

    An open file stays usable after it was moved or deleted, and whatever is committed to it then is lost.
    """

    def __init__(self, engine: Engine) -> None:
        database = engine.url.database or ""
        # Of a URI, SQLite itself says which file it names, once that is open.
        self._path = "" if database.startswith("file:") else os.path.abspath(database)
        self._file: _Identity | None = None
        self._log: _Identity | None = None
        self._connections = 0
        self._lock = threading.Lock()
        event.listen(engine, "do_connect", self._connect)
        event.listen(engine, "connect", self._note_opened)
        event.listen(engine, "close", self._note_closed)

    def check(self) -> None:
        """Raises StoreUnavailable if the file or its log is no longer where it was opened."""
        present = None if self._file is None else _identity(self._path)
        if present != self._file:
            what = "was moved or deleted" if present is None else "was replaced by another file"
            raise StoreUnavailable(
                f"database: {self._path} {what} while it was open: put it back, or stop web and workers "
                "and start them again"
            )
        if self._log is not None and _identity(f"{self._path}-wal") != self._log:
            raise StoreUnavailable(
                f"database: {self._path}-wal was moved or deleted while it was open: stop web and workers, "
                "which saves what it held, and start them again"
            )

    def _connect(
        self, dialect: Any, record: object, arguments: list[Any], parameters: dict[str, Any]
    ) -> sqlite3.Connection:
        self.check()  # SQLite would make a new file.
        if self._path and self._file is None:
            _prepare(Path(self._path))
        opened: sqlite3.Connection | None = None
        try:
            opened = dialect.connect(*arguments, **parameters)
            opened.execute("PRAGMA schema_version")  # Opening alone does not read the file.
        except sqlite3.DatabaseError as e:
            if opened is not None:
                opened.close()
            raise StoreUnavailable(f"database: {self._path or arguments[0]}: {e}") from None
        return opened

    def _note_opened(self, connection: sqlite3.Connection, record: object) -> None:
        with self._lock:
            self._connections += 1
            self._path = self._path or connection.execute("PRAGMA database_list").fetchone()[2]
            self._file = self._file or _identity(self._path)
            self._log = self._log or _identity(f"{self._path}-wal")

    def _note_closed(self, connection: sqlite3.Connection, record: object) -> None:
        """Forget the log with the last connection: SQLite removes it, and makes another for the next one."""
        with self._lock:
            self._connections -= 1
            self._log = self._log if self._connections else None


@contextmanager
def spilling(connection: Connection) -> Iterator[None]:
    """Write each change to the log at once, to find a full disk without a commit."""
    driver: Any = connection.connection.dbapi_connection
    [pages] = driver.execute("PRAGMA cache_size").fetchone()
    driver.execute("PRAGMA cache_size=1")
    try:
        yield
    finally:
        driver.execute(f"PRAGMA cache_size={pages}")


def _identity(path: str) -> _Identity | None:
    with suppress(FileNotFoundError, NotADirectoryError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return None


def _prepare(file: Path) -> None:
    """Make the directory. Raises StoreUnavailable, with the owner's name, where we may not write."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = file if file.exists() else file.parent
    except OSError as e:
        raise StoreUnavailable(
            f"database: {file} cannot be opened: {e.filename}: {e.strerror}"
        ) from None
    if not os.access(path, os.R_OK | os.W_OK):
        raise StoreUnavailable(
            f"database: {file} cannot be opened: {_user(os.getuid())} may not read and write {path}, "
            f"which belongs to {_user(path.stat().st_uid)}"
        )


def _user(number: int) -> str:
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
