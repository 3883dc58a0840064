"""Locks rows so that no two transactions can wait for each other.

PostgreSQL undoes one of two such transactions, after a second. SQLite has one writer at a time, and needs
none of this.
"""

from typing import Any, TypeVar

from sqlalchemy import Connection, Delete, Select, Update, select, tuple_

Change = TypeVar("Change", Update, Delete)


def in_order(connection: Connection, statement: Change) -> Change:
    """Let an UPDATE or DELETE of many rows lock them in the order of their keys."""
    if connection.dialect.name == "sqlite":
        return statement
    table: Any = statement.table
    key = [*table.primary_key.columns]
    keys = locking(select(*key), statement).cte("found")
    changed = tuple_(*key) if len(key) > 1 else key[0]
    return statement.where(changed.in_(select(keys)))


def locking(values: Select[Any], statement: Update | Delete) -> Select[Any]:
    """Select from the rows that `statement` would change, and lock them in order, as it does."""
    table: Any = statement.table
    return (
        values.where(*statement._where_criteria)
        .order_by(*table.primary_key.columns)
        .with_for_update(of=table, key_share=isinstance(statement, Update))
    )


def skip_locked(ids: Select[Any]) -> Select[Any]:
    """Lock the rows of these ids for an UPDATE, without those that another transaction has locked.

    It is a CTE, which PostgreSQL runs once. A plain subquery with LIMIT may be run again for each row, and
    lock another one each time.
    """
    rows = ids.with_for_update(skip_locked=True).cte("found")
    return select(rows.c.id)
