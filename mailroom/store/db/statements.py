"""Statements that are compiled once, and hand many rows over as one parameter in JSON.

A driver that gets many rows runs the statement once for each, and releases Python's interpreter lock each
time. With many threads another one takes the lock, and thirty mails in three tables cost ninety changes of
threads. And SQLAlchemy takes up to 700 µs to build, compile, check and bind a statement each time it is
executed.
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
    Dialect,
    Executable,
    Integer,
    Table,
    Text,
    Update,
    bindparam,
    cast,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.types import TypeEngine

from mailroom.store.db.locking import locking

#: The most characters of JSON that one statement gets; a longer row gets a statement of its own.
CHARACTERS_MAX = 1_000_000

_NO_VALUE: Any = object()
R = TypeVar("R")
#: A row's values as SQL, by their names.
RowValues = Mapping[str, ColumnElement[Any]]


def parameter(name: str, type_: type[TypeEngine[R]]) -> BindParameter[R]:
    """Name a parameter of a prepared statement."""
    return bindparam(name, _NO_VALUE, type_=type_)  # Compiling wants a value for each.


class Prepared:
    """A statement that is built once for each dialect; its parameters are made by `parameter`."""

    def __init__(self, build: Callable[[Dialect], Executable]) -> None:
        self._compiled = cache(lambda dialect: _compiled(build(dialect), dialect))

    def __call__(self, connection: Connection, **values: Any) -> list[Any]:
        """Run it, and return its rows."""
        statement, order, constants = self._compiled(connection.dialect)
        named = constants | values
        if order is None:
            result = connection.exec_driver_sql(statement, named)
        else:
            result = connection.exec_driver_sql(statement, tuple([named[name] for name in order]))
        return list(result.all()) if result.returns_rows else []


class Rows:
    """A statement for many rows, which `build` writes for the values of one.

    `names` are those of the values; one that is no column of the table is a number.
    An UPDATE locks its rows in the order of their keys, unless they are `guarded`: the transaction has locked
    another row before, which everybody locks first.
    """

    def __init__(
        self,
        table: Table,
        names: Sequence[str],
        build: Callable[[RowValues], Executable],
        *,
        guarded: bool = False,
    ) -> None:
        self._names = names
        # Three times as fast as a look for each name; of one name it would return no tuple.
        self._pick = itemgetter(*names) if len(names) > 1 else None
        self._types = [_json_type(table, name) for name in names]

        def statement(dialect: Dialect) -> Executable:
            values = self._values(dialect)
            plain = build(values)
            if guarded or dialect.name == "sqlite" or not isinstance(plain, Update):
                return plain
            return build(_locked_in_order(plain, values))

        self._prepared = Prepared(statement)

    def __call__(
        self, connection: Connection, rows: Sequence[Mapping[str, Any]], **values: Any
    ) -> list[Any]:
        """Run it for these rows, in their order, and return its rows; a value that a row lacks is NULL."""
        returned: list[Any] = []
        if rows:
            for text in _as_json(self._picked(rows)):
                returned += self._prepared(connection, rows=text, **values)
        return returned

    def of(self, connection: Connection, ids: Iterable[str], **values: Any) -> list[Any]:
        """Run it for rows that have no value but their id."""
        return self(connection, [{"id": id} for id in ids], **values)

    def _picked(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[Any]]:
        if self._pick is not None:
            with suppress(KeyError):
                return [self._pick(row) for row in rows]
        return [[row.get(name) for name in self._names] for row in rows]

    def _values(self, dialect: Dialect) -> RowValues:
        if dialect.name == "sqlite":
            source = func.json_each(parameter("rows", Text)).table_valued("value", name="given")
            values: list[ColumnElement[Any]] = [
                func.json_extract(source.c.value, literal_column(f"'$[{n}]'"))
                for n in range(len(self._names))
            ]
        else:
            source = func.json_array_elements(cast(parameter("rows", Text), JSON)).table_valued(
                "value", name="given"
            )
            # Not as the column's VARCHAR(n): a cast cuts off in silence what an assignment refuses.
            values = [
                cast(source.c.value.op("->>")(literal_column(str(n))), type_)
                for n, type_ in enumerate(self._types)
            ]
        return dict(zip(self._names, values, strict=True))


def _json_type(table: Table, name: str) -> type[BigInteger | Text]:
    is_number = name not in table.c or isinstance(table.c[name].type, Integer)
    return BigInteger if is_number else Text


def _locked_in_order(statement: Update, values: RowValues) -> RowValues:
    """Return the values of a CTE that locks the rows of `statement`, in order, before they are changed."""
    selected = select(*(value.label(name) for name, value in values.items()))
    return dict(locking(selected, statement).cte("found").c)


def _compiled(statement: Any, dialect: Dialect) -> tuple[str, list[str] | None, dict[str, Any]]:
    """Return the text, the order of its parameters if they have no names, and constant values."""
    compiled: Any = statement.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
    constants = {name: value for name, value in compiled.params.items() if value is not _NO_VALUE}
    for name, value in constants.items():
        if isinstance(value, Enum):
            constants[name] = str(value)
    return str(compiled), compiled.positiontup, constants


def inserted(table: Table, names: Sequence[str], **also: ColumnElement[Any]) -> Rows:
    """Return an INSERT of rows with these columns, and with the same `also` for each."""
    return Rows(
        table,
        names,
        lambda row: table.insert().from_select(
            [*row, *also], select(*row.values(), *also.values())
        ),
    )


def _as_json(rows: list[Sequence[Any]]) -> Iterator[str]:
    """Yield the rows as JSON lists of CHARACTERS_MAX at most."""
    text = _encode(rows)
    if len(text) <= CHARACTERS_MAX or len(rows) == 1:
        yield text
        return
    half = len(rows) // 2
    yield from _as_json(rows[:half])
    yield from _as_json(rows[half:])


_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
