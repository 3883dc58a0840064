"""Answers lists in pages of `?limit=` items; `?after=` is the cursor that an earlier page gave as `next`."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from flask import Response, jsonify

from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.ids import is_id

PAGE_DEFAULT = 20
PAGE_MAX = 100
#: As people write it; int() also takes leading zeros, underscores and the digits of every script.
_LIMIT = re.compile("[1-9][0-9]{0,2}")

T = TypeVar("T")

#: Names a row of a list that is sorted by age: milliseconds since 1970 when it was made, and its id.
RowPosition = tuple[int, str]


def read_page(
    read_cursor: Callable[[str], T | None],
    params: Mapping[str, str],
    *,
    expected: str = "`next` of an earlier page",
    other_errors: Sequence[FieldError] = (),
) -> tuple[int, T | None]:
    """Return how many rows a query wants, and the position after which they begin, None for the first page.

    `read_cursor` returns None if the text is not a cursor.

    Raises:
      InvalidMessage: `limit` or `after` cannot be read, or there are `other_errors` in the query.
    """
    limit, cursor = params.get("limit", str(PAGE_DEFAULT)), params.get("after", "")
    after = read_cursor(cursor) if cursor else None
    errors = []
    if not (_LIMIT.fullmatch(limit) and int(limit) <= PAGE_MAX):
        errors.append(
            FieldError("?limit", f"expected a number from 1 to {PAGE_MAX}, got {limit[:80]!r}")
        )
    if cursor and after is None:
        errors.append(FieldError("?after", f"expected {expected}, got {cursor[:80]!r}"))
    if errors or other_errors:
        raise InvalidMessage([*errors, *other_errors])
    return int(limit), after


def parse_number(text: str) -> int | None:
    """Read a number that fits into a database column (18 digits); None if it is not one."""
    is_number = text.isascii() and text.isdigit() and len(text) <= 18
    return int(text) if is_number else None


def choice_errors(name: str, choices: Iterable[str], params: Mapping[str, str]) -> list[FieldError]:
    """Return the error of a query parameter that is present and is none of the choices, if there is one."""
    value, allowed = params.get(name), [*choices]
    if value is None or value in allowed:
        return []
    return [FieldError(f"?{name}", f"expected one of {', '.join(allowed)}, got {value[:80]!r}")]


def text_param(name: str, params: Mapping[str, str]) -> str:
    """Return a query parameter that is compared with a column; "" if it is absent.

    Raises:
      InvalidMessage: it has a NUL, which no column holds, and which PostgreSQL refuses to look for.
    """
    value = params.get(name, "")
    if "\0" in value:
        raise InvalidMessage([FieldError(f"?{name}", f"expected a {name}, got {value[:80]!r}")])
    return value


def position_cursor(created_at: int, id: str) -> str:
    """Write the position of a row as a cursor."""
    return f"{created_at}.{id}"


def row_cursor(row: Mapping[str, Any]) -> str:
    """Return the cursor of the page that begins after this row."""
    return position_cursor(row["created_at"], row["id"])


def read_position(cursor: str) -> RowPosition | None:
    """Read the text that `position_cursor` writes; None if it is another text."""
    created_at, _, id = cursor.partition(".")
    created_at_ms = parse_number(created_at)
    if created_at_ms is None or not is_id(id):
        return None
    return created_at_ms, id


def page_response(
    rows: Sequence[Any],
    limit: int,
    row_json: Callable[[Any], Any],
    cursor: Callable[[Any], str] = row_cursor,
) -> Response:
    """Answer with the first `limit` rows; a further row means that there is a next page."""
    next_cursor = None
    if len(rows) > limit:
        next_cursor = cursor(rows[limit - 1])
    return list_response(rows[:limit], next_cursor, row_json)


def list_response(
    rows: Sequence[Any], next_cursor: str | None, row_json: Callable[[Any], Any]
) -> Response:
    """Answer with these rows; `next_cursor` begins the next page, None if there is none."""
    return jsonify(
        {
            "data": [row_json(row) for row in rows],
            "has_more": next_cursor is not None,
            "next": next_cursor,
        }
    )
