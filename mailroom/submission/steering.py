"""Reads the header fields with which a program that only writes mails tells us what to do with one."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from pydantic_core import PydanticCustomError

from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.header import HeaderField, HeaderTooLong, split_header
from mailroom.submission.fields import unknown
from mailroom.submission.headers import TAGS_MAX, check_tags
from mailroom.submission.times import parse_moment

PREFIX = "X-Mailasync-"
_KEY, _TAG, _AT = f"{PREFIX}Idempotency-Key", f"{PREFIX}Tag", f"{PREFIX}Scheduled-At"
_KNOWN = (_KEY, _TAG, _AT)
#: As of the header field of HTTP.
_KEY_TEXT = re.compile(r"[!-~][ -~]{0,255}")


@dataclass(frozen=True)
class Steering:
    """The values of those fields."""

    idempotency_key: str = ""
    tags: tuple[str, ...] = ()
    scheduled_at: int | None = None  #: milliseconds since 1970


def is_steering(name: str) -> bool:
    """Tell whether a field of this name, in lower case, is for us; it is never sent on."""
    return name.startswith(PREFIX.lower())


def read_steering(fields: Sequence[HeaderField]) -> Steering:
    """Read the fields that steer.

    Raises:
      InvalidMessage: one is unknown, repeated or wrong.
    """
    if not fields:
        return Steering()
    names = {name.lower(): name for name in _KNOWN}
    values: dict[str, list[str]] = {name: [] for name in _KNOWN}
    for field in fields:
        if field.name not in names:
            detail = unknown(field.name, list(_KNOWN), "header field")
            raise InvalidMessage([FieldError("#", detail)])
        values[names[field.name]].append(field.value)
    tags = [tag.strip() for value in values[_TAG] for tag in value.split(",")]
    return Steering(
        idempotency_key=_read_key(values[_KEY]),
        tags=_read_tags([tag for tag in tags if tag]),
        scheduled_at=_read_time(values[_AT]),
    )


def read_idempotency_key(mail: bytes) -> str:
    """Return the Idempotency-Key of a mail; "" if it has none. Raises InvalidMessage if it is wrong."""
    try:
        fields, _ = split_header(mail)
    except HeaderTooLong:
        return ""
    return _read_key([field.value for field in fields if field.name == _KEY.lower()])


def _read_key(values: Sequence[str]) -> str:
    key = _only(_KEY, values)
    if key and not _KEY_TEXT.fullmatch(key):
        _refuse(_KEY, f"expected 1 to 256 printable ASCII characters, got {len(key)} or others")
    return key


def _read_tags(tags: Sequence[str]) -> tuple[str, ...]:
    if len(tags) > TAGS_MAX:
        _refuse(_TAG, f"expected at most {TAGS_MAX} tags, got {len(tags)}")
    try:
        check_tags(list(tags))
    except PydanticCustomError as e:
        _refuse(_TAG, e.message())
    return tuple(dict.fromkeys(tags))


def _read_time(values: Sequence[str]) -> int | None:
    value = _only(_AT, values)
    try:
        return parse_moment(value) if value else None
    except PydanticCustomError as e:
        _refuse(_AT, e.message())


def _only(name: str, values: Sequence[str]) -> str:
    if len(values) > 1:
        _refuse(name, f"expected it once, got it {len(values)} times")
    return values[0] if values else ""


def _refuse(name: str, detail: str) -> NoReturn:
    raise InvalidMessage([FieldError(f"#/{name}", detail)])
