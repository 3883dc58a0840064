"""Reads JSON objects into pydantic models, and words errors as: field, what was expected, what came."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mailroom.model.errors import (
    ERRORS_MAX,
    NAME_MAX_CHARACTERS,
    FieldError,
    InvalidMessage,
    MalformedJSON,
    pointer,
)
from mailroom.model.text import is_unicode, short_repr

M = TypeVar("M", bound=BaseModel)
#: How errors of pydantic begin: "Input should be a valid list", "List should have at most 20 items".
_SHOULD = re.compile(r"\A\w+ should (?:be|have) ")


def read_fields(model: type[M], value: object, *, at: str = "#") -> M:
    """Read an object into a model; `at` is the JSON pointer to the object in its request.

    Raises:
      MalformedJSON: the request is not an object.
      InvalidMessage: fields are wrong, unknown or missing.
    """
    if not isinstance(value, dict):
        if at == "#":
            raise MalformedJSON(f"expected a JSON object, got {short_repr(value)}")
        raise InvalidMessage([FieldError(at, f"expected an object, got {short_repr(value)}")])
    # pydantic cannot handle such names. They come only over the queue, as JSON has none.
    unusable = [name for name in value if not isinstance(name, str) or not is_unicode(name)]
    if unusable:
        raise InvalidMessage(
            [
                FieldError(at + pointer([name]), _unknown(name, model))
                for name in unusable[:ERRORS_MAX]
            ]
        )
    try:
        return model.model_validate(value)
    except ValidationError as e:
        errors: list[FieldError] = []
        for error in e.errors(include_url=False)[:ERRORS_MAX]:
            errors.extend(_field_errors(error, at, model))
        raise InvalidMessage(errors[:ERRORS_MAX]) from None


def _field_errors(error: Any, at: str, model: type[BaseModel]) -> Iterator[FieldError]:
    """Turn an error of pydantic into ours: one, or one for each item that `refuse_items` lists."""
    match error["type"]:
        case "missing":
            detail = "expected this field, got none"
        case "extra_forbidden":
            detail = _unknown(error["loc"][-1], model)
        case "string_type":
            detail = f"expected a string, got {short_repr(error['input'])}"
        case "refused":
            detail = error["msg"]
        case _:
            detail = f"{_SHOULD.sub('expected ', error['msg'])}, got {short_repr(error['input'])}"
    for path, item_detail in error.get("ctx", {}).get("items") or [([], detail)]:
        yield FieldError(at + pointer([*error["loc"], *path]), _printable(item_detail))


def _unknown(name: object, model: type[BaseModel]) -> str:
    known = [field.alias or name for name, field in model.model_fields.items()]
    return unknown(str(name), known, "field")


def unknown(name: str, known: Sequence[str], what: str) -> str:
    """Word the error for an unknown name: suggest the nearest known one, or list them all."""
    if nearest := difflib.get_close_matches(name[:NAME_MAX_CHARACTERS], known, n=1):
        return f"expected a {what} that is known, got another; did you mean {nearest[0]}?"
    if not known:
        return f"expected no {what}, got one"
    return f"expected one of {', '.join(known)}, got a {what} that is none of them"


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
