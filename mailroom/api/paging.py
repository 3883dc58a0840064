"""Pages of a list: `?limit=` rows, those after the cursor that an earlier page gave as `next`."""

from collections.abc import Callable, Sequence
from typing import Any

from flask import Response, jsonify, request

from mailroom.mail.errors import FieldError, InvalidMessage
from mailroom.store.outbox import is_id

PAGE_DEFAULT = 20
PAGE_MAX = 100

#: A place in a list, newest first: when the row was made, in milliseconds since 1970, and its id.
Place = tuple[int, str]


def asked_page() -> tuple[int, Place | None]:
    """How many rows, and after which one."""
    limit, cursor = request.args.get("limit", str(PAGE_DEFAULT)), request.args.get("after", "")
    at, _, id = cursor.partition(".")
    wrong = []
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= PAGE_MAX):
        wrong.append(FieldError("?limit", f"expected a number from 1 to {PAGE_MAX}, got {limit[:80]!r}"))
    if cursor and not (at.isascii() and at.isdigit() and len(at) <= 18 and is_id(id)):
        wrong.append(FieldError("?after", f"expected `next` of an earlier page, got {cursor[:80]!r}"))
    if wrong:
        raise InvalidMessage(wrong)
    return int(limit), (int(at), id) if cursor else None


def page(rows: Sequence[Any], limit: int, shown: Callable[[Any], Any]) -> Response:
    """Answer with `limit` of the rows; one more shows that there are others."""
    more = len(rows) > limit
    next = f"{rows[limit - 1]['created_at']}.{rows[limit - 1]['id']}" if more else None
    return jsonify({"data": [shown(row) for row in rows[:limit]], "has_more": more, "next": next})


def word(name: str) -> str:
    """What the query says of a column; no column holds a NUL, and PostgreSQL would not even look for one."""
    found = request.args.get(name, "")
    if "\0" in found:
        raise InvalidMessage([FieldError(f"?{name}", f"expected a {name}, got {found[:80]!r}")])
    return found
