"""Pages of a list: `?limit=` rows, those after the cursor that an earlier page gave as `next`."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from flask import Response, jsonify

from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.ids import is_id

PAGE_DEFAULT = 20
PAGE_MAX = 100
#: As people write it. int() takes leading zeros, underscores and every script's digits, and at most 4,300.
_LIMIT = re.compile("[1-9][0-9]{0,2}")

T = TypeVar("T")

#: A place in a list, newest first: when the row was made, in milliseconds since 1970, and its id.
Place = tuple[int, str]


def asked_page(
    place: Callable[[str], T | None],
    asked: Mapping[str, str],
    *,
    expected: str = "`next` of an earlier page",
    also: Sequence[FieldError] = (),
) -> tuple[int, T | None]:
    """Return how many rows a query asks for, and after which one.

    `place` reads the cursor, and gives None for what is none.

    Raises:
      InvalidMessage: the one or the other cannot be read, or `also` has what else is wrong with the query.
    """
    limit, cursor = asked.get("limit", str(PAGE_DEFAULT)), asked.get("after", "")
    after = place(cursor) if cursor else None
    wrong = []
    if not (_LIMIT.fullmatch(limit) and int(limit) <= PAGE_MAX):
        wrong.append(FieldError("?limit", f"expected a number from 1 to {PAGE_MAX}, got {limit[:80]!r}"))
    if cursor and after is None:
        wrong.append(FieldError("?after", f"expected {expected}, got {cursor[:80]!r}"))
    if wrong or also:
        raise InvalidMessage([*wrong, *also])
    return int(limit), after


def number(cursor: str) -> int | None:
    """Read a number that a database can count to; None if it is none."""
    return int(cursor) if cursor.isascii() and cursor.isdigit() and len(cursor) <= 18 else None


def one_of(name: str, words: Iterable[str], asked: Mapping[str, str]) -> list[FieldError]:
    """Return what is wrong with a filter that takes only these words, if it is there."""
    given, known = asked.get(name), [*words]
    return (
        []
        if given is None or given in known
        else [FieldError(f"?{name}", f"expected one of {', '.join(known)}, got {given[:80]!r}")]
    )


def place(cursor: str) -> Place | None:
    """Read what `next_place` wrote; None if it is no such thing."""
    at, _, id = cursor.partition(".")
    created_at = number(at)
    return (created_at, id) if created_at is not None and is_id(id) else None


def next_place(row: Any) -> str:
    return written(row["created_at"], row["id"])


def written(created_at: int, id: str) -> str:
    """A place as a cursor."""
    return f"{created_at}.{id}"


def page(
    rows: Sequence[Any], limit: int, shown: Callable[[Any], Any], cursor: Callable[[Any], str] = next_place
) -> Response:
    """Answer with `limit` of the rows; one more shows that there are others, after the `cursor` of the last."""
    return page_of(rows[:limit], cursor(rows[limit - 1]) if len(rows) > limit else None, shown)


def page_of(rows: Sequence[Any], next: str | None, shown: Callable[[Any], Any]) -> Response:
    """Answer with these rows; `next` is the cursor of the page after them, None at the end."""
    return jsonify({"data": [shown(row) for row in rows], "has_more": next is not None, "next": next})


def word(name: str, asked: Mapping[str, str]) -> str:
    """Return what the query says of a column.

    No column holds a NUL, and PostgreSQL would not even look for one.
    """
    found = asked.get(name, "")
    if "\0" in found:
        raise InvalidMessage([FieldError(f"?{name}", f"expected a {name}, got {found[:80]!r}")])
    return found
