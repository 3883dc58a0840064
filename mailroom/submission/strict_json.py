"""Reads JSON, strictly: UTF-8, no name twice, no NaN, no depth that exhausts a stack."""

import json
from collections import Counter
from typing import Any, NoReturn

from mailroom.model.errors import MalformedJSON
from mailroom.model.text import short_repr

#: No message needs more than an object in a list in an object.
JSON_DEPTH_MAX = 16


def parse_json(data: bytes) -> object:
    """Read one JSON value, strictly: UTF-8, no duplicate keys, no NaN, no depth that exhausts a stack (RFC 8259).

    Raises:
      MalformedJSON: with the reason, and the place where there is one.
    """
    try:
        value = _DECODER.decode(_without_mark(data.decode("utf-8")))
    except UnicodeDecodeError as e:
        raise MalformedJSON(f"expected UTF-8, got byte 0x{data[e.start]:02x} at {e.start}") from None
    except json.JSONDecodeError as e:
        raise MalformedJSON(f"expected JSON: {e.msg} at line {e.lineno}, column {e.colno}") from None
    except RecursionError:
        raise MalformedJSON(f"expected at most {JSON_DEPTH_MAX} levels, got far more") from None
    except ValueError as e:  # A number of more digits than int() takes.
        raise MalformedJSON(f"expected JSON: {e}") from None
    if _depth(value) > JSON_DEPTH_MAX:
        raise MalformedJSON(f"expected at most {JSON_DEPTH_MAX} levels, got more")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((doubled, times),) = Counter(name for name, _ in pairs).most_common(1)
        raise MalformedJSON(f"expected each name once, got {short_repr(doubled)} {times} times")
    return found


def _no_constant(name: str) -> NoReturn:
    raise MalformedJSON(f"expected JSON, got {name}, which JSON does not have")


def _without_mark(text: str) -> str:
    if text.startswith("\ufeff"):  # RFC 8259, 8.1
        raise json.JSONDecodeError("unexpected byte order mark (BOM)", text, 0)
    return text


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level and depth <= JSON_DEPTH_MAX:
        depth += 1
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return depth
