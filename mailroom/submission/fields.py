"""Reads what clients send: JSON, strictly, into models; what is wrong is told with field, expectation and what came."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from mailroom.model.errors import FieldError, InvalidMessage, MalformedJSON

#: No message needs more than an object in a list in an object.
JSON_DEPTH_MAX = 16
#: Wrong fields that are told; a body of a million unknown ones gets an answer that a person can read.
ERRORS_MAX = 20

#: Characters of a name that an answer repeats; a client's own may be as long as its request.
NAME_MAX_CHARACTERS = 200

M = TypeVar("M", bound=BaseModel)
#: How pydantic begins: "Input should be a valid list", "List should have at most 20 items after validation, not 21".
_SHOULD = re.compile(r"\A\w+ should (?:be|have) ")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_fields(model: type[M], value: object, *, at: str = "#") -> M:
    """Read an object into a model; `at` is where in a request it stands, a JSON pointer.

    Raises:
      MalformedJSON: the request is not an object.
      InvalidMessage: fields are wrong, unknown or missing.
    """
    if not isinstance(value, dict):
        if at == "#":
            raise MalformedJSON(f"expected a JSON object, got {shown(value)}")
        raise InvalidMessage([FieldError(at, f"expected an object, got {shown(value)}")])
    if strange := [name for name in value if not isinstance(name, str) or not is_unicode(name)]:
        raise InvalidMessage([FieldError(at + pointer([name]), _unknown(name, model)) for name in strange[:ERRORS_MAX]])
    try:
        return model.model_validate(value)
    except ValidationError as e:
        found = (wrong for error in e.errors(include_url=False)[:ERRORS_MAX] for wrong in _field_errors(error, at, model))
        raise InvalidMessage(list(islice(found, ERRORS_MAX))) from None


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
        (doubled, times), = Counter(name for name, _ in pairs).most_common(1)
        raise MalformedJSON(f"expected each name once, got {shown(doubled)} {times} times")
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
        level = [inner for outer in level if isinstance(outer, (dict, list))
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


def encodable(value: str) -> str:
    """Refuse what UTF-8 cannot hold."""
    try:
        value.encode()
    except UnicodeEncodeError as e:
        refuse(f"expected Unicode text, got half of a surrogate pair (U+{ord(value[e.start]):04X}) at {e.start}")
    return value


def storable(value: str) -> str:
    """Refuse what UTF-8, or a database, cannot hold."""
    if "\0" in value:
        refuse(f"expected text without NUL, got one at {value.index(chr(0))}")
    return encodable(value)


def refuse(detail: str) -> NoReturn:
    """Say in a validator what was expected, and what came."""
    raise PydanticCustomError("refused", "{detail}", {"detail": detail})


def refuse_items(wrong: Sequence[tuple[list[str | int], str]]) -> NoReturn:
    """The same of several places below the field: where each is, and what was expected there."""
    raise PydanticCustomError("refused", "{detail}", {"detail": wrong[0][1], "items": list(wrong[:ERRORS_MAX])})


def is_unicode(value: str) -> bool:
    """Whether UTF-8 can hold it."""
    return _SURROGATE.search(value) is None


def _field_errors(error: Any, at: str, model: type[BaseModel]) -> Iterator[FieldError]:
    """What is wrong, at each place of its own: a list says it of its items (`refuse_items`)."""
    match error["type"]:
        case "missing":
            detail = "expected this field, got none"
        case "extra_forbidden":
            detail = _unknown(error["loc"][-1], model)
        case "string_type":
            detail = f"expected a string, got {shown(error['input'])}"
        case "refused":
            detail = error["msg"]
        case _:
            detail = f"{_SHOULD.sub('expected ', error['msg'])}, got {shown(error['input'])}"
    for below, said in error.get("ctx", {}).get("items") or [([], detail)]:
        yield FieldError(at + pointer([*error["loc"], *below]), _printable(said))


def _unknown(name: object, model: type[BaseModel]) -> str:
    return unknown(str(name), [field.alias or name for name, field in model.model_fields.items()], "field")


def unknown(name: str, known: Sequence[str], what: str) -> str:
    """Say what was expected instead of a name that is not known: the nearest one, or any of them."""
    if nearest := difflib.get_close_matches(name[:NAME_MAX_CHARACTERS], known, n=1):
        return f"expected a {what} that is known, got another; did you mean {nearest[0]}?"
    if not known:
        return f"expected no {what}, got one"
    return f"expected one of {', '.join(known)}, got a {what} that is none of them"


def pointer(parts: list[Any]) -> str:
    """The end of a JSON pointer as URI fragment (RFC 6901, 6)."""
    path = "".join("/" + str(part)[:NAME_MAX_CHARACTERS].replace("~", "~0").replace("/", "~1") for part in parts)
    return quote(path, safe="/~!$&'()*+,;=:@?", errors="backslashreplace")


def shown(value: object) -> str:
    """What came, cut to a length that a person reads."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (RecursionError, TypeError, ValueError):  # A queue's client may send what JSON cannot hold, or int() not print.
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
