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
from mailroom.store.db.schema import identity
from mailroom.store.db.sqlite import SQLiteFile, spilling
from mailroom.store.db.statements import in_order

postgresql = Lazy("mailroom.store.db.postgresql")

#: Writes that share one commit at most: enough to fill a disk flush, too few for one to wait long for the others.
BATCH_MAX = 500
BUSY_TIMEOUT_SECONDS = 5.0
BUSY_LOOK_SECONDS = 0.001
#: How often a transaction that got into another's way is done again.
CONFLICT_TRIES = 4
#: deadlock_detected, serialization_failure
CONFLICTS = frozenset({"40P01", "40001"})

#: How many writes of this thread are on disk: whoever has to tell of an error can see whether something was done before it.
written: ContextVar[int] = ContextVar("written", default=0)

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[Connection, list[T]], list[R]]


class Database:
    """A database, for one process.

    It opens no connection before it is used, and must not be carried over a fork.
    """

    def __init__(self, url: str) -> None:
        """Raises WrongDatabaseURL."""
        try:
            self.url = make_url(url)
            self.engine = _engine(self.url)
        except (ArgumentError, ValueError):  # Their words may hold a part of the password.
            raise WrongDatabaseURL(
                "expected a URL like postgresql://user:password@host:5432/name, with %40 for @, %2F for / and %3A "
                "for : in user and password; several hosts are ?host=one:5432&host=two:5432"
            ) from None
        self._file = SQLiteFile(self.engine) if self.engine.dialect.name == "sqlite" else None
        #: For reading: each statement sees what is committed when it starts.
        self.reading = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._waiting: deque[_Write] = deque()
        self._is_led = (
            False  #: whether some thread is committing what waited, and will name who leads after it
        )
        self._turn = threading.Lock()
        self._outbox_id = ""

    def __repr__(self) -> str:
        return f"Database({self.url.render_as_string(hide_password=True)!r})"

    @property
    def outbox_id(self) -> str:
        """The identity of this database, which every nudge carries."""
        if not self._outbox_id:
            self._outbox_id = self.read(
                lambda connection: connection.scalars(select(identity.c.outbox_id)).one()
            )
        return self._outbox_id

    def read(self, look: Callable[[Connection], R]) -> R:
        with _translated(self._file), self.reading.connect() as connection:
            return look(connection)

    def transaction(self, work: Callable[[Connection], None]) -> None:
        """Do something rare, such as a migration, in a transaction of its own that keeps all other writers out."""
        is_sqlite = self.engine.dialect.name == "sqlite"
        with (
            self._committed() as connection,
            nullcontext() if is_sqlite else postgresql.unlimited(connection),
        ):
            work(connection)

    def rehearse(self, work: Callable[[Connection], None]) -> None:
        """Do `work` in a transaction that is not committed. Raises StoreUnavailable where that would fail."""
        disk = spilling if self.engine.dialect.name == "sqlite" else nullcontext
        with _translated(self._file), self.engine.connect() as connection, disk(connection):
            work(connection)

    def write(self, work: Work[T, R], item: T, *, alone: bool = False) -> R:
        """Do `work` with `item` in a committed transaction, together with whatever else waits; return its result.

        `work` gets every item that waits for the same work, and returns as many results. `alone`: in a transaction of its own,
        for what is large, or what locks rows that others hold.

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

    def write_all(self, *asked: tuple[Work[Any, Any], Sequence[Any]]) -> list[list[Callable[[], Any]]]:
        """Do several works with several items each, at once, as `write` does one.

        Each result, or error, is had by a call.
        """
        writes = [[_Write(work, item) for item in items] for work, items in asked]
        self._do([*chain.from_iterable(writes)])
        return [[write.outcome for write in alike] for alike in writes]

    def _do(self, writes: "Sequence[_Write]") -> None:
        """Have them done, by this thread or by one that leads already."""
        if not writes:
            return
        with self._turn:
            self._waiting += writes
            writes[0].leads, self._is_led = not self._is_led, True
        interruption: BaseException | None = (
            None  # A signal's handler raised. Others may count on this thread to lead: it ends after that.
        )
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
        """Commit all that waits, and let the first of those that came meanwhile lead; each thread is woken once."""
        self._gather()
        together: list[_Write] = []
        try:
            with self._turn:
                while self._waiting and len(together) < BATCH_MAX:
                    together.append(self._waiting.popleft())
            self._commit(together)
        finally:
            with self._turn:
                after = self._waiting[0] if self._waiting else None
                self._is_led = after is not None
                if after:
                    after.leads = True
            for write in together:
                if not write.is_done:
                    write.fail(CommitUnanswered("database: the commit was interrupted"))
            for write in [*([after] if after else []), *together]:
                write.wake()

    def _gather(self) -> None:
        """Let those who are nearly here come: whoever runs gets the interpreter, and has joined when he waits. Alone this takes 1 µs."""
        found = 0
        while found < len(self._waiting) < BATCH_MAX:
            found = len(self._waiting)
            time.sleep(0)

    def _commit(self, writes: "list[_Write]", *, tries: int = CONFLICT_TRIES) -> None:
        """Commit all in one transaction; if one of them cannot be done, each in its own, so that the others do not suffer."""
        results: dict[_Write, Any] = {}
        try:
            with self._committed() as connection:
                for work, alike in _grouped(writes).items():
                    results |= zip(alike, work(connection, [write.item for write in alike]), strict=True)
        except _Conflict as e:  # Alone each holds fewer locks, and holds them for a shorter time.
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
        """A transaction, committed at the end of the block."""
        with _translated(self._file), self.engine.begin() as connection:
            yield connection
            try:
                connection.commit()
            except BaseException as e:
                with suppress(Exception):  # SQLAlchemy would give the connection back in its transaction.
                    connection.rollback()
                if _is_undone(e):
                    raise
                words = getattr(e, "orig", None) or type(e).__name__
                raise CommitUnanswered(f"database: no answer to COMMIT: {one_line(words)}") from None


def _is_undone(error: BaseException) -> bool:
    """Tell whether the transaction of a commit that raised this is known to have been undone."""
    if not isinstance(error, DBAPIError):
        return False  # A signal's handler raised, and the commit may have gone through before.
    if error.statement is not None:
        return True  # Of the counts that go with it, before COMMIT was sent.
    if isinstance(error.orig, sqlite3.Error):
        # SQLite has rolled back. But what was written and could not be synced may be there again after a crash.
        return error.orig.sqlite_errorcode != sqlite3.SQLITE_IOERR_FSYNC
    return not error.connection_invalidated  # A server that answers with an error has rolled back.


def run(connection: Connection, statements: list[Any]) -> list[Any]:
    """A work for `write`: the rows that each statement gives."""
    return [connection.execute(statement).all() for statement in statements]


def run_in_order(connection: Connection, statements: list[Any]) -> list[Any]:
    """`run` for an UPDATE or DELETE of many rows."""
    return [connection.execute(in_order(connection, statement)).all() for statement in statements]


class _Write:
    """An item on its way into the database. Its thread sleeps on `woken`, until it is done or shall lead."""

    def __init__(self, work: Work[Any, Any], item: object) -> None:
        self.work = work
        self.item = item
        self.is_done = False
        self.leads = False  #: whether it is told to, by the one before
        self.woken = threading.Lock()  # A Future's condition takes ten times as long to make and to wake.
        self.woken.acquire()
        self._result: Any = None
        self._error: BaseException | None = None

    def wake(self) -> None:
        with suppress(RuntimeError):  # It never slept, as its thread led already.
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
    """By their work, each once, in the order they came in: a work that came again would lock its rows out of their order."""
    groups: dict[Work[Any, Any], list[_Write]] = {}
    for write in writes:
        groups.setdefault(write.work, []).append(write)
    return groups


class _Conflict(StoreUnavailable):
    """Two transactions wanted the same rows, and this one was undone for the other's sake."""


_AWAY = (OperationalError, InterfaceError, InternalError, PoolTimeout, sqlite3.OperationalError)


class _translated:
    """Looks whether SQLite's file is there, and turns what drivers raise when a database is away, locked, full,
    read-only or broken into StoreUnavailable."""

    def __init__(self, file: SQLiteFile | None) -> None:
        self._file = file

    def __enter__(self) -> None:
        if self._file is not None:
            self._file.check()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # DatabaseError itself is SQLite's for a file that is none, or a broken one; its kinds are about values.
        if isinstance(error, _AWAY) or kind in (DatabaseError, sqlite3.DatabaseError):
            # SQLAlchemy's text ends in the statement and its values; the driver's own words hold neither.
            driver = getattr(error, "orig", error)
            kind_of = _Conflict if getattr(driver, "sqlstate", None) in CONFLICTS else StoreUnavailable
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
    connection.isolation_level = (
        None  # We say BEGIN ourselves: pysqlite's own is deferred and deadlocks writers.
    )
    _switch_to_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")  # NORMAL may lose the last commits in a power cut.
    connection.execute("PRAGMA foreign_keys=ON")
    if sys.platform == "darwin":
        connection.execute("PRAGMA fullfsync=ON")  # On a Mac, fsync alone does not reach the disk.


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """WAL stays in the file, so only the first process switches; the switch itself does not wait for a lock, so it is tried again."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    """Wait for SQLite's one write lock. Looked at every millisecond: SQLite's own waits grow to 100 ms, in which a busy process takes the
    lock again and again, and another waited for seconds."""
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
