"""Locks rows so that no two transactions can wait for each other.

PostgreSQL undoes one of two such transactions, after a second. SQLite has one writer at a time, and needs
none of this.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Delete, Select, Table, Update, select, tuple_

T = TypeVar("T")
R = TypeVar("R")
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


def not_in_use(table: Table, *conditions: ColumnElement[bool]) -> Select[Any]:
    """Select the keys of these rows, locked in order, without those that another transaction changes.

    To wait for it could be a deadlock, as it may lock any other of them next.
    """
    (key,) = table.primary_key.columns
    ids = select(key.label("id")).where(*conditions)
    return skip_locked(ids.order_by(key))


def each_in_order(
    items: Sequence[T], change: Callable[[T], R], *, key: Callable[[T], Any]
) -> list[R]:
    """Change a row for each item, in the order of the rows' keys; return the results in that of the items."""
    numbers = range(len(items))
    results: dict[int, R] = {}
    for number in sorted(numbers, key=lambda number: key(items[number])):
        results[number] = change(items[number])
    return [results[number] for number in numbers]
