"""PostgreSQL's connections: a restart costs none of them an error, and every wait on them ends, whatever the server does."""

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

#: What has no answer by now gets none any more: the server is frozen, or its host is gone.
ANSWER_SECONDS = 10.0
#: For each host that the URL names.
CONNECT_SECONDS = 3
#: Shorter than ANSWER_SECONDS: a server that lives says itself what was too slow. The second takes the locks from a process of
#: ours that was stopped in the middle of a transaction, before those who wait for them have to give up.
SERVER_LIMITS = "SET statement_timeout = '8s'; SET idle_in_transaction_session_timeout = '5s'"
NO_LIMITS = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0"

R = TypeVar("R")


class BoundedConnection(psycopg.Connection[Any]):
    """Gives up a server that does not answer. libpq itself waits for ever, and no timeout of the server's helps when it is frozen."""

    answer_seconds: float | None = ANSWER_SECONDS

    def wait(self, gen: PQGen[R], interval: float = 0.1, timeout: float | None = None) -> R:
        try:
            return super().wait(gen, interval, self.answer_seconds if timeout is None else timeout)
        except _WaitTimeout:
            if timeout is not None:
                raise
            self.pgconn.finish()  # What it would still say belongs to a statement that is given up.
            raise psycopg.OperationalError(f"no answer within {self.answer_seconds:g} s") from None


def postgresql_engine(url: URL) -> Engine:
    """An engine for many threads, on a server that may be restarted, frozen, or replaced by its stand-by.

    Raises:
      WrongDatabaseURL: it names an option that libpq does not know.
    """
    # No prepared statements: they save 40 µs of a statement, and an older PgBouncer that pools by transaction loses them.
    # tcp_user_timeout is in milliseconds: a host that is gone is noticed, where TCP alone would wait for a quarter of an hour.
    # client_encoding: else PGCLIENTENCODING, or a database in SQL_ASCII, would have a say in what texts are.
    engine = create_engine(
        url,
        pool_size=10,
        max_overflow=30,
        pool_timeout=5,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "prepare_threshold": None,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 10_000,
            "client_encoding": "utf8",
        },
    )
    try:
        options = engine.dialect.create_connect_args(url)[1]
        make_conninfo(**{name: value for name, value in options.items() if name != "context"})
    except psycopg.ProgrammingError as e:
        raise WrongDatabaseURL(f"expected options that libpq knows, got one that it does not: {e}") from None
    event.listen(engine, "do_connect", _connect)
    event.listen(engine, "checkout", _refuse_closed)
    event.listen(engine, "handle_error", _drop_useless)
    return engine


@contextmanager
def unlimited(connection: Connection) -> Iterator[None]:
    """For a transaction that may take its time, such as a migration."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, BoundedConnection):
        yield
        return
    connection.exec_driver_sql(NO_LIMITS)
    driver.answer_seconds = None
    try:
        yield
    finally:
        del driver.answer_seconds  # The class's holds again.


def _connect(
    dialect: object, record: object, arguments: list[Any], parameters: dict[str, Any]
) -> BoundedConnection:
    connection = BoundedConnection.connect(*arguments, **parameters, autocommit=True)
    connection.execute(SERVER_LIMITS)
    connection.autocommit = False
    return connection


def _refuse_closed(connection: BoundedConnection, record: object, fairy: object) -> None:
    """Look whether the server closed it while it was idle: nothing is to be read from a connection that is well.

    This costs 2 µs, where a ping costs a round trip. SQLAlchemy then makes a new one, and looks at no other of that age.
    """
    look = select.poll()
    look.register(connection.pgconn.socket, select.POLLIN)
    if look.poll(0):
        raise InvalidatePoolError("the server closed it")


def _drop_useless(context: Any) -> None:
    """Drop all connections to a server that takes no writes any more (the URL may name another one), and those that were ended."""
    if isinstance(context.original_exception, (ReadOnlySqlTransaction, IdleInTransactionSessionTimeout)):
        context.is_disconnect = True
