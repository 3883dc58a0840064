"""Opens the database, and makes many writes share one commit."""

import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from itertools import chain
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url, select
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from mailroom.model.errors import CommitUnanswered, StoreUnavailable, WrongDatabaseURL
from mailroom.model.text import one_line
from mailroom.process.lazy_import import Lazy
from mailroom.store.db.locking import in_order
from mailroom.store.db.schema import identity
from mailroom.store.db.sqlite import SQLiteFile, spilling

postgresql = Lazy("mailroom.store.db.postgresql")

#: The most writes that share one commit: enough to fill a disk flush, and few enough to be done soon.
BATCH_MAX = 500
BUSY_TIMEOUT_SECONDS = 5.0
BUSY_LOOK_SECONDS = 0.001
#: How often a transaction is tried that the server undoes because of another one.
CONFLICT_TRIES = 4
#: PostgreSQL's deadlock_detected and serialization_failure.
CONFLICTS = frozenset({"40P01", "40001"})

#: How many writes of this thread are on disk; after an error it shows whether anything was done before.
written: ContextVar[int] = ContextVar("written", default=0)

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Connection, list[T]], list[R]]


class Database:
    """A database, for one process.

    It opens no connection before it is used, and must not be used after a fork.
    """

    def __init__(self, url: str) -> None:
        """Raises WrongDatabaseURL."""
        try:
            self.url = make_url(url)
            self.engine = _engine(self.url)
        except (ArgumentError, ValueError):  # Their words may hold a part of the password.
            raise WrongDatabaseURL(
                "expected a URL like postgresql://user:password@host:5432/name, with %40 for @, "
                "%2F for / and %3A for : in user and password; several hosts are ?host=one:5432&host=two:5432"
            ) from None
        self._file = SQLiteFile(self.engine) if self.engine.dialect.name == "sqlite" else None
        #: For reading: each statement sees what is committed when it starts.
        self.reading = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._waiting: deque[_Write] = deque()
        #: Whether a thread is committing writes; it then chooses the thread that leads next.
        self._is_led = False
        self._lock = threading.Lock()
        self._outbox_id = ""

    def __str__(self) -> str:
        """Return the URL for people and logs; its password is masked."""
        return self.url.render_as_string(hide_password=True)

    def __repr__(self) -> str:
        return f"Database({str(self)!r})"

    @property
    def outbox_id(self) -> str:
        """The identity of this database, which every nudge carries."""
        if not self._outbox_id:
            id = select(identity.c.outbox_id)
            self._outbox_id = self.read(lambda connection: connection.scalars(id).one())
        return self._outbox_id

    def read(self, look: Callable[[Connection], R]) -> R:
        with _translated(self._file), self.reading.connect() as connection:
            return look(connection)

    def transaction(self, work: Callable[[Connection], None]) -> None:
        """Do something rare, such as a migration, in a transaction of its own without a time limit."""
        unlimited = nullcontext if self.engine.dialect.name == "sqlite" else postgresql.unlimited
        with self._committed() as connection, unlimited(connection):
            work(connection)

    def rehearse(self, work: Callable[[Connection], None]) -> None:
        """Do `work` in a transaction that is not committed. Raises StoreUnavailable where that would fail."""
        disk = spilling if self.engine.dialect.name == "sqlite" else nullcontext
        with _translated(self._file), self.engine.connect() as connection, disk(connection):
            work(connection)

    def write(self, work: Work[T, R], item: T, *, alone: bool = False) -> R:
        """Do `work` with `item` in a transaction, together with other writes that wait; return its result.

        `work` gets every item that waits for the same work, and returns as many results. `alone`: in a
        transaction of its own, for a write that is large, or that locks rows which others have locked.

        Raises:
          CommitUnanswered: the transaction may have been committed.
          StoreUnavailable: it was not.
          Exception: whatever `work` raises for this item, and for no other.
        """
        write = _Write(work, item)
        if alone:
            self._commit([write])
        else:
            self._do([write])
        outcome: R = write.outcome()
        written.set(written.get() + 1)
        return outcome

    def write_all(
        self, *requests: tuple[Work[Any, Any], Sequence[Any]]
    ) -> list[list[Callable[[], Any]]]:
        """Do each work with each of its items, at once, as `write` does one.

        Each result is a function to call: it returns or raises what `write` would.
        """
        groups = [[_Write(work, item) for item in items] for work, items in requests]
        self._do([*chain.from_iterable(groups)])
        return [[write.outcome for write in group] for group in groups]

    def _do(self, writes: "Sequence[_Write]") -> None:
        """Wait until these writes are done, by this thread or by another one that leads already."""
        if not writes:
            return
        with self._lock:
            self._waiting += writes
            writes[0].leads, self._is_led = not self._is_led, True
        # What a signal's handler raises is raised after the writes: other threads may need this one to lead.
        interruption: BaseException | None = None
        for write in writes:
            while not write.is_done:
                try:
                    if write.leads:
                        self._lead()
                    else:
                        write.woken.acquire()
                except BaseException as e:
                    interruption = e
        if interruption is not None:
            raise interruption

    def close(self) -> None:
        self.engine.dispose()

    def _lead(self) -> None:
        """Commit the writes that wait, wake their threads, and let the first that came meanwhile lead."""
        self._gather()
        together: list[_Write] = []
        try:
            with self._lock:
                while self._waiting and len(together) < BATCH_MAX:
                    together.append(self._waiting.popleft())
            self._commit(together)
        finally:
            with self._lock:
                next = self._waiting[0] if self._waiting else None
                self._is_led = next is not None
                if next:
                    next.leads = True
            if next:
                next.wake()
            for write in together:
                if not write.is_done:
                    write.fail(CommitUnanswered("database: the commit was interrupted"))
                write.wake()

    def _gather(self) -> None:
        """Let threads that are about to write join, by yielding to them; with none, this takes 1 µs."""
        seen = 0
        while seen < len(self._waiting) < BATCH_MAX:
            seen = len(self._waiting)
            time.sleep(0)

    def _commit(self, writes: "list[_Write]", *, tries: int = CONFLICT_TRIES) -> None:
        """Commit all in one transaction; if one write fails, each in its own, so that the others succeed."""
        results: dict[_Write, Any] = {}
        try:
            with self._committed() as connection:
                for work, group in _grouped(writes).items():
                    results |= zip(
                        group, work(connection, [write.item for write in group]), strict=True
                    )
        except _Conflict as e:  # Alone, each has fewer locks, and for a shorter time.
            for write in writes:
                self._commit([write], tries=tries - 1) if tries > 1 else write.fail(e)
        except StoreUnavailable as e:
            for write in writes:
                write.fail(e)
        except BaseException as e:
            if len(writes) == 1:
                return writes[0].fail(e)
            for write in writes:
                self._commit([write])
        else:
            for write in writes:
                write.succeed(results[write])

    @contextmanager
    def _committed(self) -> Iterator[Connection]:
        """Open a transaction, which is committed at the end of the block."""
        with _translated(self._file), self.engine.begin() as connection:
            yield connection
            try:
                connection.commit()
            except BaseException as e:
                with suppress(Exception):
                    # Else SQLAlchemy would return the connection to the pool as it is.
                    connection.rollback()
                if _is_undone(e):
                    raise
                words = getattr(e, "orig", None) or type(e).__name__
                raise CommitUnanswered(
                    f"database: no answer to COMMIT: {one_line(words)}"
                ) from None


def _is_undone(error: BaseException) -> bool:
    """Tell whether a COMMIT that raised this error is known to be undone."""
    if not isinstance(error, DBAPIError):
        return False  # A signal's handler raised, and the commit may have gone through before.
    if error.statement is not None:
        return True  # The error is about the counts, which are written before COMMIT is sent.
    if isinstance(error.orig, sqlite3.Error):
        # SQLite has rolled back. But what was written and could not be synced may be there again after a
        # crash.
        return error.orig.sqlite_errorcode != sqlite3.SQLITE_IOERR_FSYNC
    return not error.connection_invalidated  # A server that answers with an error has rolled back.


def run(connection: Connection, statements: list[Any]) -> list[Any]:
    """Run statements, and return the rows of each: a work for `write`."""
    return [connection.execute(statement).all() for statement in statements]


def run_in_order(connection: Connection, statements: list[Any]) -> list[Any]:
    """Do what `run` does, for UPDATEs and DELETEs of many rows."""
    return [connection.execute(in_order(connection, statement)).all() for statement in statements]


class _Write:
    """An item on its way into the database. Its thread sleeps on `woken` until it is done or has to lead."""

    def __init__(self, work: Work[Any, Any], item: object) -> None:
        self.work = work
        self.item = item
        self.is_done = False
        self.leads = False  #: whether its thread has to lead, as the last leader decided
        # A Future's condition takes ten times as long to make and to wake.
        self.woken = threading.Lock()
        self.woken.acquire()
        self._result: Any = None
        self._error: BaseException | None = None

    def wake(self) -> None:
        with suppress(RuntimeError):  # It was not locked any more: its thread led, and never slept.
            self.woken.release()

    def succeed(self, result: Any) -> None:
        self._result, self.is_done = result, True

    def fail(self, error: BaseException) -> None:
        self._error, self.is_done = error, True

    def outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


def _grouped(writes: list[_Write]) -> dict[Work[Any, Any], list[_Write]]:
    """Group writes by their work, in the order of the first of each.

    A work that ran twice in a transaction would lock its rows in a wrong order.
    """
    groups: dict[Work[Any, Any], list[_Write]] = {}
    for write in writes:
        groups.setdefault(write.work, []).append(write)
    return groups


class _Conflict(StoreUnavailable):
    """The server undid this transaction, as it could not go on together with another one."""


_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout, sqlite3.OperationalError)


class _translated:
    """Checks SQLite's file, and translates the errors of drivers into StoreUnavailable.

    These are the errors of a database that is away, locked, full, read-only or broken.
    """

    def __init__(self, file: SQLiteFile | None) -> None:
        self._file = file

    def __enter__(self) -> None:
        if self._file is not None:
            self._file.check()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # SQLite raises DatabaseError itself for a broken file; its subclasses are about values.
        if isinstance(error, _AWAY) or kind in (DatabaseError, sqlite3.DatabaseError):
            # SQLAlchemy's text ends in the statement and its values; the driver's has neither.
            driver = getattr(error, "orig", error)
            kind_of = (
                _Conflict if getattr(driver, "sqlstate", None) in CONFLICTS else StoreUnavailable
            )
            raise kind_of(f"database: {one_line(driver)}") from None


def _engine(url: Any) -> Engine:
    if url.get_backend_name() != "sqlite":
        engine: Engine = postgresql.postgresql_engine(url)
        return engine
    engine = create_engine(
        url,
        pool_size=10,
        max_overflow=50,
        hide_parameters=True,
        connect_args={"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False},
    )
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    # We execute BEGIN ourselves: that of the driver is deferred, with which writers deadlock.
    connection.isolation_level = None
    _switch_to_wal(connection)
    # NORMAL may lose the last commits in a power cut.
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    if sys.platform == "darwin":
        connection.execute("PRAGMA fullfsync=ON")  # On a Mac, fsync alone does not reach the disk.


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to WAL, where it stays; only the first process has to.

    The switch itself does not wait for a lock, so it is tried again.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    """Wait for SQLite's one write lock, by trying every millisecond.

    SQLite's own waits grow to 100 ms. A busy process then took the lock again and again, and another one
    waited for seconds.
    """
    if connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT":
        return
    driver: Any = connection.connection.dbapi_connection
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as e:
                if e.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(BUSY_LOOK_SECONDS)
    finally:
        driver.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_SECONDS * 1000)}")
