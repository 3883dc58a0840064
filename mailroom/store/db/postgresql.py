"""Connections to PostgreSQL: they survive its restart, and no wait for it lasts for ever."""

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.errors import IdleInTransactionSessionTimeout, ReadOnlySqlTransaction, _WaitTimeout
from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import InvalidatePoolError

from mailroom.model.errors import WrongDatabaseURL

#: A statement without an answer by now gets none: the server is frozen, or its host is gone.
ANSWER_SECONDS = 10.0
#: For each host in the URL.
CONNECT_SECONDS = 3
#: Shorter than ANSWER_SECONDS, so that a server that lives says itself what was too slow. The second one
#: frees the locks of a process that was stopped in a transaction, before those who wait give up.
SERVER_LIMITS = "SET statement_timeout = '8s'; SET idle_in_transaction_session_timeout = '5s'"
NO_LIMITS = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"

R = TypeVar("R")

_LIBPQ_OPTIONS = {
    "connect_timeout": CONNECT_SECONDS,
    # No prepared statements: they save 40 µs each, and an older PgBouncer that pools by transaction loses
    # them.
    "prepare_threshold": None,
    # By these a host that is gone is noticed soon; TCP alone would wait for a quarter of an hour.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # Milliseconds.
    # Else texts could depend on PGCLIENTENCODING, or on the database being in SQL_ASCII.
    "client_encoding": "utf8",
}


class BoundedConnection(psycopg.Connection[Any]):
    """Gives up a server that does not answer.

    libpq itself waits for ever, and the server's own timeouts do not help when it is frozen.
    """

    answer_seconds: float | None = ANSWER_SECONDS

    def wait(self, gen: PQGen[R], interval: float = 0.1, timeout: float | None = None) -> R:
        try:
            return super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)
        except _WaitTimeout:
            if timeout is not None:
                raise
            self.pgconn.finish()  # A late answer would be to a statement that was given up.
            raise psycopg.OperationalError(f"no answer within {self.answer_seconds:g} s") from None


def postgresql_engine(url: URL) -> Engine:
    """Make an engine for many threads, on a server that may be restarted, frozen or replaced.

    Raises:
      WrongDatabaseURL: it has an option that libpq does not know.
    """
    engine = create_engine(
        url,
        pool_size=10,
        max_overflow=30,
        pool_timeout=5,
        hide_parameters=True,
        connect_args=_LIBPQ_OPTIONS,
    )
    try:
        options = engine.dialect.create_connect_args(url)[1]
        make_conninfo(**{name: value for name, value in options.items() if name != "context"})
    except psycopg.ProgrammingError as e:
        raise WrongDatabaseURL(
            f"expected options that libpq knows, got one that it does not: {e}"
        ) from None
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "checkout", _refuse_closed)
    event.listen(engine, "handle_error", _drop_useless)
    return engine


@contextmanager
def unlimited(connection: Connection) -> Iterator[None]:
    """Lift the time limits of one transaction, such as a migration."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, BoundedConnection):
        yield
        return
    connection.exec_driver_sql(NO_LIMITS)
    driver.answer_seconds = None
    try:
        yield
    finally:
        del driver.answer_seconds  # Uncovers that of the class.


def _connect(
    dialect: object, record: object, arguments: list[Any], parameters: dict[str, Any]
) -> BoundedConnection:
    connection = BoundedConnection.connect(*arguments, **parameters, autocommit=True)
    connection.execute(SERVER_LIMITS)
    connection.autocommit = False
    return connection


def _refuse_closed(connection: BoundedConnection, record: object, fairy: object) -> None:
    """Refuse a connection that the server closed while it was idle: only such a one has something to read.

    This costs 2 µs, where a ping costs a round trip. SQLAlchemy then opens a new connection, and drops all
    others of that age.
    """
    poller = select.poll()
    poller.register(connection.pgconn.socket, select.POLLIN)
    if poller.poll(0):
        raise InvalidatePoolError("the server closed it")


def _drop_useless(context: Any) -> None:
    """Drop connections that the server ended, and all to a server that takes no writes any more.

    The URL may name another server, which does.
    """
    if isinstance(
        context.original_exception, (ReadOnlySqlTransaction, IdleInTransactionSessionTimeout)
    ):
        context.is_disconnect = True
