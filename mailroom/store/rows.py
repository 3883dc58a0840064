"""Hands many rows to one statement, as one parameter in JSON.

Else a driver runs the statement once for each row, and lets go of the interpreter each time: where many threads work another one takes it,
and thirty mails in three tables cost ninety changes of threads. And SQLAlchemy takes 70 µs for each execution that it compiles, checks and
binds; here it compiles once.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Dialect,
    Executable,
    Integer,
    Table,
    Text,
    bindparam,
    cast,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSON

#: What the rows of one statement hold at most, in characters; a row that is longer goes by itself.
CHARACTERS_MAX = 1_000_000

#: The values of a row, by their names.
Given = Mapping[str, ColumnElement[Any]]


class Rows:
    """A statement over rows with these values: columns of the table, or else numbers. `build` makes it of one row's values."""

    def __init__(self, table: Table, names: Sequence[str], build: Callable[[Given], Executable]) -> None:
        self._names = names
        self._numbers = [name not in table.c or isinstance(table.c[name].type, Integer) for name in names]
        self._compiled = cache(lambda dialect: self._compile(build, dialect))

    def __call__(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Run it over all of them, in their order; a value that a row does not have is NULL."""
        statement, order, fixed = self._compiled(connection.dialect)
        for written in _written([[row.get(name) for name in self._names] for row in rows]) if rows else ():
            values = fixed | {"rows": written}
            connection.exec_driver_sql(statement, tuple(values[name] for name in order) if order else values)

    def _compile(self, build: Callable[[Given], Executable], dialect: Dialect) -> tuple[str, list[str] | None, dict[str, Any]]:
        """The statement, the order of its parameters if they have no names, and the values of all but `rows`."""
        if dialect.name == "sqlite":
            source = func.json_each(bindparam("rows")).table_valued("value", name="given")
            values: list[ColumnElement[Any]] = [
                func.json_extract(source.c.value, literal_column(f"'$[{n}]'")) for n in range(len(self._names))]
        else:
            source = func.json_array_elements(cast(bindparam("rows"), JSON)).table_valued("value", name="given")
            # Not as the column's VARCHAR(n): a cast cuts off in silence what an assignment refuses.
            values = [cast(source.c.value.op("->>")(literal_column(str(n))), BigInteger if is_number else Text)
                      for n, is_number in enumerate(self._numbers)]
        compiled: Any = build(dict(zip(self._names, values, strict=True))).compile(dialect=dialect)  # type: ignore[attr-defined]
        return str(compiled), compiled.positiontup, compiled.params


def inserted(table: Table, names: Sequence[str], **also: ColumnElement[Any]) -> Rows:
    """An INSERT of rows with these columns, and with the same `also` for each."""
    return Rows(table, names, lambda given: table.insert().from_select([*given, *also], select(*given.values(), *also.values())))


def _written(rows: list[list[Any]]) -> Iterator[str]:
    """These rows as JSON lists of a bearable length."""
    written = _encode(rows)
    if len(written) <= CHARACTERS_MAX or len(rows) == 1:
        yield written
        return
    half = len(rows) // 2
    yield from _written(rows[:half])
    yield from _written(rows[half:])


_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
