"""Checks the statements that the store executes on PostgreSQL for deadlocks.

Two transactions that lock the same rows in different orders wait for each other, until the server undoes one of them,
after a second. So an UPDATE or DELETE of many rows selects them first, `ORDER BY` their key `FOR UPDATE`, or skips
those that are locked (`SKIP LOCKED`), or has locked them before, in the same transaction.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event

from mailroom.store.db.access_schema import metadata
from tests.services.processes import PROJECT

#: Tables of which no two transactions lock the same rows, each with the reason.
SAFE = {
    "clock": "has one row",
    "identity": "has one row",
    "contents": "goes with its message",
    "events": "is changed by nobody, and deleted by one process at a time",
    "files": "is changed by nobody, and deleted by one process at a time",
}
#: Tables whose rows are changed only by a transaction that has locked the row of another table.
GUARDS = {"recipients": "messages"}
#: Modules of commands that run only while every worker is stopped.
ALONE = ("restore.py",)

_CHANGE = re.compile(r"(?<!FOR )(?<!KEY )(?<!DO )\b(?:UPDATE|DELETE FROM|INSERT INTO) (\w+)")
_LOCK = re.compile(r"FROM (\w+)\b.*FOR (?:NO KEY )?UPDATE", re.DOTALL)
_ORDER = re.compile(r"ORDER BY [^()]* FOR (?:NO KEY )?UPDATE|SKIP LOCKED")


def is_unordered(statement: str, held: set[str], *, many: bool = False) -> bool:
    """Tell whether a statement locks several rows in no order; add to `held` what it locks."""
    outer = _without_parentheses(statement)
    change, lock = _CHANGE.search(outer), _LOCK.search(outer)
    table = change[1] if change else lock[1] if lock else ""
    if not table:
        return False
    guard = GUARDS.get(table, table + " itself")
    is_one = _is_about_one(outer, table)
    is_safe = (
        statement.startswith("INSERT")
        or bool({table, guard, f"one of {guard}"} & held)
        or table in SAFE
        or bool(_ORDER.search(statement))
        or (is_one and (not many or f"one of {table}" in held))
    )
    held |= {f"one of {table}"} if is_one else {table}
    return not is_safe


def _without_parentheses(statement: str) -> str:
    """Return the statement without its subqueries."""
    outer = ""
    while outer != statement:
        outer, statement = statement, re.sub(r"\([^()]*\)", "", statement)
    return statement


def _is_about_one(statement: str, table: str) -> bool:
    """Tell whether its condition names a whole key."""
    key = metadata.tables[table].primary_key.columns if table in metadata.tables else ()
    return all(f"{table}.{column.name} = %" in statement for column in key)


class Locks:
    """The faults in statements since `faults` was last called."""

    def __init__(self) -> None:
        self._faults: list[str] = []
        #: The locks of each transaction, which has a Connection of its own.
        self._held: WeakKeyDictionary[Connection, set[str]] = WeakKeyDictionary()

    def faults(self) -> list[str]:
        faults, self._faults = self._faults, []
        return faults

    @contextmanager
    def watching(self) -> Iterator[None]:
        event.listen(Engine, "before_cursor_execute", self._look)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", self._look)

    def _look(
        self,
        connection: Connection,
        cursor: Any,
        statement: str,
        parameters: Any,
        context: Any,
        many: bool,
    ) -> None:
        if connection.dialect.name != "postgresql" or not _is_ours():
            return
        if is_unordered(statement, self._held.setdefault(connection, set()), many=many):
            self._faults.append(f"locks its rows in no order: {' '.join(statement.split())}")


def _is_ours() -> bool:
    """Tell whether the store itself executes it, and not a test or a migration."""
    frame: Any = sys._getframe(2)
    while frame and "sqlalchemy" in frame.f_code.co_filename:
        frame = frame.f_back
    file = frame.f_code.co_filename if frame else ""
    return file.startswith(f"{PROJECT}/mailroom/store/") and not file.endswith(ALONE)
