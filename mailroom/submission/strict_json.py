"""Reads JSON strictly (RFC 8259), as the standard library's parser accepts more."""

import json
from collections import Counter
from typing import Any, NoReturn

from mailroom.model.errors import MalformedJSON
from mailroom.model.text import short_repr

#: Far more than a message needs, and too few levels to exhaust the stack of whoever handles the value.
JSON_DEPTH_MAX = 16


def parse_json(data: bytes) -> object:
    """Read one JSON value: UTF-8 without a BOM, no duplicate names, no NaN, at most JSON_DEPTH_MAX levels.

    Raises:
      MalformedJSON: says why, and at which line and column if the syntax is wrong.
    """
    try:
        value = _DECODER.decode(_refuse_bom(data.decode("utf-8")))
    except UnicodeDecodeError as e:
        raise MalformedJSON(
            f"expected UTF-8, got byte 0x{data[e.start]:02x} at {e.start}"
        ) from None
    except json.JSONDecodeError as e:
        raise MalformedJSON(
            f"expected JSON: {e.msg} at line {e.lineno}, column {e.colno}"
        ) from None
    except RecursionError:
        raise MalformedJSON(f"expected at most {JSON_DEPTH_MAX} levels, got far more") from None
    except ValueError as e:  # A number with more digits than int() accepts.
        raise MalformedJSON(f"expected JSON: {e}") from None
    if _depth(value) > JSON_DEPTH_MAX:
        raise MalformedJSON(f"expected at most {JSON_DEPTH_MAX} levels, got more")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        ((repeated, times),) = Counter(name for name, _ in pairs).most_common(1)
        raise MalformedJSON(f"expected each name once, got {short_repr(repeated)} {times} times")
    return unique


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedJSON(f"expected JSON, got {name}, which JSON does not have")


def _refuse_bom(text: str) -> str:
    if text.startswith("\ufeff"):  # RFC 8259, 8.1
        raise json.JSONDecodeError("unexpected byte order mark (BOM)", text, 0)
    return text


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _depth(value: object) -> int:
    """Count the levels of nesting, up to one more than JSON_DEPTH_MAX."""
    level, depth = [value], 0
    while level and depth <= JSON_DEPTH_MAX:
        depth += 1
        below: list[object] = []
        for outer in level:
            if isinstance(outer, dict):
                below.extend(outer.values())
            elif isinstance(outer, list):
                below.extend(outer)
        level = below
    return depth
