"""Watches what the store changes in PostgreSQL: two transactions that lock the same rows in other orders wait for each other.

The server then undoes one of them, after a second. So an UPDATE or DELETE of many rows finds them first, `ORDER BY` their key
`FOR UPDATE`, or passes over those that are locked (`SKIP LOCKED`), or has locked them before, in the same transaction.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, event

from mailroom.store.db.schema import metadata
from tests.services.processes import PROJECT

#: What else keeps two transactions from the same rows.
SAFE = {
    "clock": "has one row",
    "identity": "has one row",
    "contents": "goes with its message",
    "events": "is changed by nobody, and deleted by one process at a time",
    "files": "is changed by nobody, and deleted by one process at a time",
}
#: Rows of these are changed only by who has locked the row of the other.
GUARDS = {"recipients": "messages"}
#: Commands for which every worker has to be stopped.
ALONE = ("restore.py",)

_CHANGE = re.compile(r"(?<!FOR )(?<!KEY )(?<!DO )\b(?:UPDATE|DELETE FROM|INSERT INTO) (\w+)")
_LOCK = re.compile(r"FROM (\w+)\b.*FOR (?:NO KEY )?UPDATE", re.DOTALL)
_ORDER = re.compile(r"ORDER BY [^()]* FOR (?:NO KEY )?UPDATE|SKIP LOCKED")


def is_unordered(statement: str, held: set[str], *, many: bool = False) -> bool:
    """Whether it locks several rows in any order; adds to `held` what the transaction has locked from then on."""
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
    """The statement without its subqueries."""
    outer = ""
    while outer != statement:
        outer, statement = statement, re.sub(r"\([^()]*\)", "", statement)
    return statement


def _is_about_one(statement: str, table: str) -> bool:
    """Whether its condition names a whole key."""
    key = metadata.tables[table].primary_key.columns if table in metadata.tables else ()
    return all(f"{table}.{column.name} = %" in statement for column in key)


class Locks:
    """What was found since one last asked."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._held: WeakKeyDictionary[Connection, set[str]] = (
            WeakKeyDictionary()
        )  #: each transaction has its own

    def faults(self) -> list[str]:
        found, self._found = self._found, []
        return found

    @contextmanager
    def watching(self) -> Iterator[None]:
        event.listen(Engine, "before_cursor_execute", self._look)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", self._look)

    def _look(
        self, connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if connection.dialect.name != "postgresql" or not _is_ours():
            return
        if is_unordered(statement, self._held.setdefault(connection, set()), many=many):
            self._found.append(f"locks its rows in no order: {' '.join(statement.split())}")


def _is_ours() -> bool:
    """Whether the store itself has it executed, and not a test or a migration."""
    frame: Any = sys._getframe(2)
    while frame and "sqlalchemy" in frame.f_code.co_filename:
        frame = frame.f_back
    file = frame.f_code.co_filename if frame else ""
    return file.startswith(f"{PROJECT}/mailroom/store/") and not file.endswith(ALONE)
