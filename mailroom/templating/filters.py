"""The filters and tests of templates, with Jinja's names and arguments, and with bounds.

None of them reads an attribute or calls a function of a value. A wrong type is an error and is not converted.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol
from urllib.parse import quote

from jinja2 import Undefined, pass_context
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

#: The longest text that a filter or an operator may make; no mail takes a longer one.
TEXT_MAX_CHARACTERS = 1_000_000
#: The directives of the filter `format`: %s, %d, %05.2f; no width has three digits or comes from an argument.
_DIRECTIVE = re.compile(r"%(?:[-+ 0#]{0,3}[0-9]{0,2}(?:\.[0-9]{0,2})?[sdifxXeg]|%)")
_KINDS = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    tuple: "a list",
    dict: "an object",
    type(None): "null",
}


class Misfit(Exception):
    """A value has the wrong type or size; the sandbox adds the line of the template."""


class Spending(Protocol):
    """The budget of one rendering, in steps; `size` is the cost of an operation on all variables."""

    size: int

    def spend(self, steps: int) -> None: ...


def missing(value: Undefined) -> NoReturn:
    """Raise Jinja's error for a missing variable."""
    value._fail_with_undefined_error()
    raise AssertionError


def scalar(value: Any) -> str:
    """Return a text, number or boolean as a mail shows it; null is empty. Raises Misfit for other types."""
    if isinstance(value, str):
        return value
    if isinstance(value, Undefined):
        missing(value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise Misfit(f"expected a text or a number, got {_kind(value)}")


def checked(value: Any, kind: Any, expected: str) -> Any:
    """Return the value if it has this type. Raises Misfit with what was `expected`."""
    if isinstance(value, Undefined):
        missing(value)
    if not isinstance(value, kind):
        raise Misfit(f"expected {expected}, got {_kind(value)}")
    return value


def weight(value: Any) -> int:
    """Return the cost of a value in steps: one for ten characters."""
    return len(value) // 10 if isinstance(value, str) else 1


def joined(context: Spending, parts: Sequence[str], separator: str = "") -> str:
    """Join texts; the result is safe HTML if a part is, and other parts are escaped then."""
    length = sum(map(len, parts)) + len(separator) * len(parts)
    _allow(context, length)
    if any(isinstance(part, Markup) for part in parts):
        return Markup(separator).join(parts)
    return separator.join(parts)


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "something else")


def _allow(context: Spending, length: int) -> None:
    """Pay for a text of this length. Raises Misfit if it is too long or the budget is spent."""
    if length > TEXT_MAX_CHARACTERS:
        raise Misfit(
            f"expected a text of at most {TEXT_MAX_CHARACTERS:,} characters, got {length:,}"
        )
    context.spend(1 + length // 10)


def _text(context: Spending, value: Any) -> str:
    text = scalar(value)
    _allow(context, len(text))
    return text


def _text_filter(change: Callable[[str], str]) -> Callable[..., str]:
    """Make a filter without arguments that turns a text into a text."""

    @pass_context
    def apply(context: Any, value: Any) -> str:
        return change(_text(context, value))

    return apply


@pass_context
def _default(context: Any, value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if isinstance(value, Undefined) or (boolean and not value) else value


@pass_context
def _length(context: Any, value: Any) -> int:
    return len(checked(value, str | list | tuple | dict, "a text, a list or an object"))


@pass_context
def _join(context: Any, value: Any, d: Any = "") -> str:
    items = checked(value, list | tuple, "a list")
    context.spend(len(items))
    return joined(context, [scalar(item) for item in items], scalar(d))


@pass_context
def _first(context: Any, value: Any) -> Any:
    items = checked(value, str | list | tuple, "a list or a text")
    return items[0] if items else ""


@pass_context
def _last(context: Any, value: Any) -> Any:
    items = checked(value, str | list | tuple, "a list or a text")
    return items[-1] if items else ""


@pass_context
def _reverse(context: Any, value: Any) -> Any:
    items = checked(value, list | tuple, "a list")
    context.spend(len(items))
    return items[::-1]


@pass_context
def _items(context: Any, value: Any) -> list[tuple[str, Any]]:
    items = checked(value, dict, "an object")
    context.spend(len(items))
    return list(items.items())


@pass_context
def _replace(context: Any, value: Any, old: Any, new: Any) -> str:
    text, old, new = _text(context, value), scalar(old), scalar(new)
    if isinstance(text, Markup):
        old, new = escape(old), escape(new)
    if not old:
        raise Misfit("expected a text to replace, got an empty one")
    _allow(context, len(text) + max(0, text.count(old) * (len(new) - len(old))))
    return text.replace(old, new)


@pass_context
def _truncate(
    context: Any, value: Any, length: Any = 255, killwords: Any = False, end: Any = "..."
) -> str:
    text, ending = _text(context, value), scalar(end)
    if len(text) <= checked(length, int, "a number of characters"):
        return text
    cut = text[: max(0, length - len(ending))]
    return (cut if killwords else cut.rsplit(" ", 1)[0]) + ending


@pass_context
def _round(context: Any, value: Any, precision: Any = 0) -> int | float:
    number = checked(value, int | float, "a number")
    digits = checked(precision, int, "a number of digits")
    # No float has more digits, and round() divides an integer by 10 ** -digits.
    rounded = round(number, max(-400, min(digits, 400)))
    return int(rounded) if digits <= 0 else rounded


@pass_context
def _int(context: Any, value: Any, default: Any = 0) -> Any:
    try:
        return int(checked(value, str | int | float, "a text or a number"))
    except (ValueError, OverflowError):
        return default


@pass_context
def _float(context: Any, value: Any, default: Any = 0.0) -> Any:
    try:
        return float(checked(value, str | int | float, "a text or a number"))
    except (ValueError, OverflowError):
        return default


@pass_context
def _abs(context: Any, value: Any) -> Any:
    return abs(checked(value, int | float, "a number"))


@pass_context
def _format(context: Any, value: Any, *arguments: Any) -> str:
    pattern = checked(value, str, "a text")
    values: list[Any] = []
    text_length = 0
    for argument in arguments:
        value = argument if isinstance(argument, int | float) else scalar(argument)
        values.append(value)
        text_length += len(value) if isinstance(value, str) else 0
    if "%" in _DIRECTIVE.sub("", pattern):
        raise Misfit(
            "expected %s, %d, %.2f and the like in the text, with at most two digits, got another"
        )
    if any(isinstance(number, int) and number.bit_length() > 256 for number in values):
        raise Misfit("expected numbers of at most 77 digits, got a larger one")
    # The largest float has 309 digits, and after the point as many as the directive says, 99 at most.
    _allow(context, len(pattern) + 410 * pattern.count("%") + text_length)
    return str(pattern % tuple(values))


@pass_context
def _tojson(context: Any, value: Any) -> str:
    is_html = context.eval_ctx.autoescape
    return _json(context, value, htmlsafe_json_dumps if is_html else _readable_json)


@pass_context
def _tojson_for_readers(context: Any, value: Any) -> str:
    """JSON that a person reads: in HTML it is escaped as all other text is, and not as for a script."""
    return _json(context, value, _readable_json)


def _json(context: Any, value: Any, dump: Callable[[Any], str]) -> str:
    if isinstance(value, Undefined):
        missing(value)
    context.spend(1 + context.size)
    text = dump(value)
    # Each "\\" becomes two, so a chain of this filter doubles the text each time.
    _allow(context, len(text))
    return text


def _readable_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@pass_context
def _safe(context: Any, value: Any) -> Markup:
    return Markup(scalar(value))


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": _abs,
    "capitalize": _text_filter(str.capitalize),
    "count": _length,
    "d": _default,
    "default": _default,
    "e": _text_filter(escape),
    "escape": _text_filter(escape),
    "first": _first,
    "float": _float,
    "format": _format,
    "int": _int,
    "items": _items,
    "join": _join,
    "last": _last,
    "length": _length,
    "lower": _text_filter(str.lower),
    "replace": _replace,
    "reverse": _reverse,
    "round": _round,
    "safe": _safe,
    "title": _text_filter(str.title),
    "tojson": _tojson,
    "trim": _text_filter(str.strip),
    "truncate": _truncate,
    "upper": _text_filter(str.upper),
    "urlencode": _text_filter(lambda text: quote(text, safe="")),
}


def _is(kind: Any) -> Callable[[Any], bool]:
    def test(value: Any) -> bool:
        if isinstance(value, Undefined):
            missing(value)
        return isinstance(value, kind)

    return test


def _divisibleby(value: Any, num: Any) -> bool:
    # With a text on its left, % would format it, with any width.
    return bool(checked(value, int, "a whole number") % checked(num, int, "a whole number") == 0)


TESTS: dict[str, Callable[..., bool]] = {
    "boolean": _is(bool),
    "defined": lambda value: not isinstance(value, Undefined),
    "divisibleby": _divisibleby,
    "even": lambda value: _divisibleby(value, 2),
    "false": lambda value: value is False,
    "mapping": _is(dict),
    "none": lambda value: value is None,
    "number": _is(int | float),
    "odd": lambda value: not _divisibleby(value, 2),
    "sequence": _is(list | tuple),
    "string": _is(str),
    "true": lambda value: value is True,
    "undefined": lambda value: isinstance(value, Undefined),
}

#: In the mail of a job, whose values are a result that people read.
MAIL_FILTERS: dict[str, Callable[..., Any]] = {**FILTERS, "tojson": _tojson_for_readers}
