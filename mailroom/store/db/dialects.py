"""SQL that SQLite and PostgreSQL write differently: the clock, and INSERT … ON CONFLICT."""

from typing import Any

from sqlalchemy import BigInteger, Connection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction


def insertion(connection: Connection, table: Table) -> Any:
    """Return an INSERT of this database's dialect, as only those have ON CONFLICT."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)


class now_ms(GenericFunction[int]):
    """The database's clock, in whole milliseconds since 1970."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _now_sqlite(element: now_ms, compiler: Any, **kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(now_ms, "postgresql")
def _now_postgresql(element: now_ms, compiler: Any, **kw: Any) -> str:
    # statement_timestamp() is one value for the whole statement, so that an index can be searched for it.
    # clock_timestamp() changes all the time, and would be compared with every row.
    return "CAST(floor(extract(epoch FROM statement_timestamp()) * 1000) AS BIGINT)"
