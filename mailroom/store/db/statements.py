"""Statements that are compiled once, and hand many rows over as one parameter in JSON.

Else a driver runs the statement once for each row, and lets go of the interpreter each time: where many threads work another one takes it,
and thirty mails in three tables cost ninety changes of threads. And SQLAlchemy takes up to 700 µs for each execution in which it builds a
statement, compiles, checks and binds.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from functools import cache
from operator import itemgetter
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Delete,
    Dialect,
    Executable,
    Integer,
    Select,
    Table,
    Text,
    Update,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.types import TypeEngine

#: What the rows of one statement hold at most, in characters; a row that is longer goes by itself.
CHARACTERS_MAX = 1_000_000

_ASKED: Any = object()
R = TypeVar("R")
Change = TypeVar("Change", Update, Delete)
#: The values of a row, by their names.
Given = Mapping[str, ColumnElement[Any]]


def asked(name: str, type_: type[TypeEngine[R]]) -> BindParameter[R]:
    """A parameter of a prepared statement."""
    return bindparam(name, _ASKED, type_=type_)  # compiling wants a value for each


class Prepared:
    """A statement that `build` makes of a dialect, once; its parameters are made by `asked`."""

    def __init__(self, build: Callable[[Dialect], Executable]) -> None:
        self._compiled = cache(lambda dialect: _compiled(build(dialect), dialect))

    def __call__(self, connection: Connection, **values: Any) -> list[Any]:
        """The rows that it gives."""
        statement, order, fixed = self._compiled(connection.dialect)
        given = fixed | values
        result = connection.exec_driver_sql(
            statement, tuple(given[name] for name in order) if order is not None else given
        )
        return list(result.all()) if result.returns_rows else []


class Rows:
    """A statement over rows with these values: columns of the table, or else numbers. `build` makes it of one row's values.

    An UPDATE locks its rows in the order of their keys, unless they are `guarded` by a row that the transaction locked before.
    """

    def __init__(
        self,
        table: Table,
        names: Sequence[str],
        build: Callable[[Given], Executable],
        *,
        guarded: bool = False,
    ) -> None:
        self._names = names
        self._pick = (
            itemgetter(*names) if len(names) > 1 else None
        )  # which is three times as fast as a look for each name
        self._numbers = [name not in table.c or isinstance(table.c[name].type, Integer) for name in names]

        def statement(dialect: Dialect) -> Executable:
            given = self._given(dialect)
            plain = build(given)
            if guarded or dialect.name == "sqlite" or not isinstance(plain, Update):
                return plain
            return build(_found_in_order(plain, given))

        self._prepared = Prepared(statement)

    def __call__(self, connection: Connection, rows: Sequence[Mapping[str, Any]], **values: Any) -> list[Any]:
        """Run it over all of them, in their order, and return the rows that it gives; a value that a row does not have is NULL."""
        written = _written(self._picked(rows)) if rows else ()
        return [found for one in written for found in self._prepared(connection, rows=one, **values)]

    def of(self, connection: Connection, ids: Iterable[str], **values: Any) -> list[Any]:
        """Run the statement where a row is its id."""
        return self(connection, [{"id": id} for id in ids], **values)

    def _picked(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[Any]]:
        if self._pick is not None:
            with suppress(KeyError):
                return [self._pick(row) for row in rows]
        return [[row.get(name) for name in self._names] for row in rows]

    def _given(self, dialect: Dialect) -> Given:
        if dialect.name == "sqlite":
            source = func.json_each(asked("rows", Text)).table_valued("value", name="given")
            values: list[ColumnElement[Any]] = [
                func.json_extract(source.c.value, literal_column(f"'$[{n}]'"))
                for n in range(len(self._names))
            ]
        else:
            source = func.json_array_elements(cast(asked("rows", Text), JSON)).table_valued(
                "value", name="given"
            )
            # Not as the column's VARCHAR(n): a cast cuts off in silence what an assignment refuses.
            values = [
                cast(source.c.value.op("->>")(literal_column(str(n))), BigInteger if is_number else Text)
                for n, is_number in enumerate(self._numbers)
            ]
        return dict(zip(self._names, values, strict=True))


def in_order(connection: Connection, statement: Change) -> Change:
    """Let an UPDATE or DELETE lock its rows in the order of their keys, so that no two of them can wait for each other.

    SQLite has one writer at a time, and needs none of this.
    """
    if connection.dialect.name == "sqlite":
        return statement
    key = [*statement.table.primary_key.columns]  # type: ignore[attr-defined]  # of a Table, as all of ours are
    found = _locking(select(*key), statement).cte("found")
    return statement.where((tuple_(*key) if len(key) > 1 else key[0]).in_(select(found)))


def _found_in_order(statement: Update, given: Given) -> Given:
    """The values that belong to the rows of `statement`, each row locked in its turn before it is changed."""
    values = select(*(value.label(name) for name, value in given.items()))
    return dict(_locking(values, statement).cte("found").c)


def _locking(found: Select[Any], statement: Update | Delete) -> Select[Any]:
    """Find what `statement` would, and lock it, no stronger than that does."""
    table: Any = statement.table
    return (
        found.where(*statement._where_criteria)
        .order_by(*table.primary_key.columns)
        .with_for_update(of=table, key_share=isinstance(statement, Update))
    )


def _compiled(statement: Any, dialect: Dialect) -> tuple[str, list[str] | None, dict[str, Any]]:
    """The statement, the order of its parameters if they have no names, and the values that it has already."""
    compiled: Any = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    return (
        str(compiled),
        compiled.positiontup,
        {
            name: str(value) if isinstance(value, Enum) else value
            for name, value in compiled.params.items()
            if value is not _ASKED
        },
    )


def inserted(table: Table, names: Sequence[str], **also: ColumnElement[Any]) -> Rows:
    """An INSERT of rows with these columns, and with the same `also` for each."""
    return Rows(
        table,
        names,
        lambda given: table.insert().from_select([*given, *also], select(*given.values(), *also.values())),
    )


def _written(rows: list[Sequence[Any]]) -> Iterator[str]:
    """These rows as JSON lists of a bearable length."""
    written = _encode(rows)
    if len(written) <= CHARACTERS_MAX or len(rows) == 1:
        yield written
        return
    half = len(rows) // 2
    yield from _written(rows[:half])
    yield from _written(rows[half:])


_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
