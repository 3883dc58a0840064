"""Reads what a client asks for: what is accepted, and what is refused with a reason."""

import difflib
import json
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, NoReturn, Self, TypeVar
from urllib.parse import quote

import email_validator
from email_validator import EmailNotValidError, validate_email
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, StrictStr, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mailroom.mail.errors import FieldError, InvalidMessage, MalformedJSON
from mailroom.mail.message import Address, Message

#: Gmail takes no more over SMTP (support.google.com/a/answer/166852).
RECIPIENTS_MAX = 100
#: A header line is at most 998 characters (RFC 5322, 2.1.1).
SUBJECT_MAX_CHARACTERS = 998
#: Name and address together, as they come; a header line again.
ADDRESS_MAX_CHARACTERS = 998
#: No message needs more than an object in a list in an object.
JSON_DEPTH_MAX = 16
#: A moment farther away than this is a slip of the pen.
AHEAD_MAX_SECONDS = 366 * 86400
ATTEMPTS_MAX = 100
#: Wrong fields that are told; a body of a million unknown ones gets an answer that a person can read.
ERRORS_MAX = 20

#: Names that reach no mail server in the world, but may reach one's own: an intranet's, a test's, the inbox's.
for _name in ("local", "localhost", "test", "invalid"):
    if _name in email_validator.SPECIAL_USE_DOMAIN_NAMES:
        email_validator.SPECIAL_USE_DOMAIN_NAMES.remove(_name)

M = TypeVar("M", bound=BaseModel)

#: RFC 3339, 5.6, which asks for an offset; the letters may be small, and a space is as good as the T.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
#: A name as people write it, J. Müller <mueller@example.org>; RFC 5322 wants quotes for the dot and the ü.
_UNQUOTED = re.compile(r"\A([^\"<>@,;:\\()\[\]]+)(?=<[^<>]*>\Z)")


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Until when, and how often, a client wants a mail to be tried."""

    expires_at: int | None = None  #: milliseconds since 1970 …
    expires_in: int | None = None  #: … or from its acceptance
    max_attempts: int | None = None


def read_message(data: bytes) -> Message:
    """Read the body of a request.

    Raises:
      MalformedJSON: the bytes are not one JSON object.
      InvalidMessage: fields are wrong, unknown or missing.
    """
    return message_from(parse_json(data))


def message_from(value: object, *, at: str = "#", with_job: bool = False) -> Message:
    """Read an object that came over the queue, or from `parse_json`; raises what `read_message` raises."""
    return mail_from(value, at=at, with_job=with_job)[0]


def mail_from(value: object, *, at: str = "#", with_job: bool = False) -> tuple[Message, Terms]:
    """Read such an object, and on what terms it is to be sent.

    `at` is where in a request it stands, a JSON pointer. `with_job`: its field `job` is somebody else's to read.
    """
    asked = read_fields(_AskedWithJob if with_job else _Asked, value, at=at)
    text, html = asked.parts()
    return Message(to=tuple(asked.to), subject=asked.subject, text=text, html=html), asked.terms()


def read_fields(model: type[M], value: object, *, at: str = "#") -> M:
    """Read an object into a model; `at` is where in a request it stands, a JSON pointer.

    Raises:
      MalformedJSON: the request is not an object.
      InvalidMessage: fields are wrong, unknown or missing.
    """
    if not isinstance(value, dict):
        if at == "#":
            raise MalformedJSON(f"expected a JSON object, got {_shown(value)}")
        raise InvalidMessage([FieldError(at, f"expected an object, got {_shown(value)}")])
    if strange := [name for name in value if not isinstance(name, str) or not _is_unicode(name)]:
        raise InvalidMessage([FieldError(at + _pointer([name]), _unknown(name, model)) for name in strange[:ERRORS_MAX]])
    try:
        return model.model_validate(value)
    except ValidationError as e:
        raise InvalidMessage([_field_error(error, at, model) for error in e.errors(include_url=False)[:ERRORS_MAX]]) from None


def parse_moment(value: object) -> int:
    """Read "2026-01-31T12:00:00+01:00", a moment to come; return milliseconds since 1970.

    Raises:
      PydanticCustomError: it is none.
    """
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        _refuse(f"expected a time like 2026-01-31T12:00:00Z, with its offset, got {_shown(value)}")
    try:
        ahead = (datetime.fromisoformat(value.upper()) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        _refuse(f"expected a time that there is, got {_shown(value)}")
    if not 0 < ahead <= AHEAD_MAX_SECONDS:
        _refuse(f"expected a time to come, at most {AHEAD_MAX_SECONDS // 86400} days ahead, got {_shown(value)}")
    return int(datetime.fromisoformat(value.upper()).timestamp() * 1000)


Moment = Annotated[int, BeforeValidator(parse_moment)]


class AskedMoment(BaseModel):
    """When a message is to be sent: the one or the other."""

    model_config = ConfigDict(extra="forbid")

    at: Moment | None = Field(None, description="RFC 3339, with an offset.")
    delay: float | None = Field(None, ge=0, le=AHEAD_MAX_SECONDS, strict=True, description="Seconds from now.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.at is None) == (self.delay is None):
            _refuse("expected either `at` or `delay`, got " + ("none" if self.at is None else "both"))
        return self


class _Asked(BaseModel):
    """The endpoint's JSON object; only `to` is required."""

    model_config = ConfigDict(extra="forbid")

    to: list[Address] = Field(description="One address, or a list of up to 100.")
    subject: StrictStr = Field("", description="One line.")
    contents: StrictStr = Field("", description="Text; HTML if it begins with < and ends with >.")
    expires_at: Moment | None = Field(None, description="RFC 3339, with an offset: not sent from then on.")
    expires_in: float | None = Field(None, gt=0, le=AHEAD_MAX_SECONDS, strict=True, description="The same, in seconds from now.")
    max_attempts: StrictInt | None = Field(None, ge=1, le=ATTEMPTS_MAX, description="Instead of as many as RETRY_SCHEDULE has.")

    def parts(self) -> tuple[str | None, str | None]:
        """`contents` as (text, html): one of the two is None."""
        body = self.contents.strip()
        return (None, self.contents) if body.startswith("<") and body.endswith(">") else (self.contents, None)

    def terms(self) -> Terms:
        expires_in = None if self.expires_in is None else max(1, int(self.expires_in * 1000))
        return Terms(expires_at=self.expires_at, expires_in=expires_in, max_attempts=self.max_attempts)

    @model_validator(mode="after")
    def _one_expiry(self) -> Self:
        if self.expires_at is not None and self.expires_in is not None:
            _refuse("expected expires_at or expires_in, got both")
        return self

    @field_validator("to", mode="before")
    @classmethod
    def _addresses(cls, value: object) -> list[Address]:
        given = value if isinstance(value, list) else [value]
        if not 1 <= len(given) <= RECIPIENTS_MAX:
            _refuse(f"expected 1 to {RECIPIENTS_MAX} addresses, got {len(given)}")
        found: dict[str, Address] = {}  # One copy for one address, whatever name it came with.
        for index, item in enumerate(given):
            try:
                address = parse_address(item)
            except PydanticCustomError as e:
                raise PydanticCustomError("refused", "{detail}", {"detail": e.message(), "at": index if given is value else None}) from None
            found.setdefault(address.address, address)
        return list(found.values())

    @field_validator("subject")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if found := _CONTROL.search(value):
            _refuse(f"expected one line without control characters, got {found[0]!r} at {found.start()}")
        if len(value) > SUBJECT_MAX_CHARACTERS:
            _refuse(f"expected at most {SUBJECT_MAX_CHARACTERS} characters, got {len(value)}")
        return _encodable(value)

    @field_validator("contents")
    @classmethod
    def _storable(cls, value: str) -> str:
        if "\0" in value:
            _refuse(f"expected text without NUL, got one at {value.index(chr(0))}")
        return _encodable(value)


class _AskedWithJob(_Asked):
    job: Any = Field(None, description="Work to do first.")


def parse_address(value: object) -> Address:
    """Read "bob@example.org" or "Bob <bob@example.org>".

    Raises:
      PydanticCustomError: it is no address; the text says why and shows what came.
    """
    if not isinstance(value, str):
        _refuse(f"expected an address, got {_shown(value)}")
    if found := _CONTROL.search(value):
        _refuse(f"expected an address without control characters, got {found[0]!r} at {found.start()}")
    if len(value) > ADDRESS_MAX_CHARACTERS:
        _refuse(f"expected an address of at most {ADDRESS_MAX_CHARACTERS} characters, got {len(value)}")
    try:
        _encodable(value)
        seen = validate_email(_UNQUOTED.sub(r'"\1" ', value), check_deliverability=False, allow_display_name=True,
                              globally_deliverable=False)
    except (EmailNotValidError, RecursionError) as e:
        _refuse(f"expected an address, got {_shown(value)}: {e}")
    if "." not in seen.ascii_domain and seen.ascii_domain != "localhost":
        _refuse(f"expected an address, got {_shown(value)}: the part after the @-sign should have a period")
    if seen.ascii_domain.rpartition(".")[2].isdigit():
        _refuse(f"expected an address, got {_shown(value)}: the part after the @-sign should be a name, not an IP address")
    if seen.ascii_email is None:  # It would need SMTPUTF8 (RFC 6531) on every hop.
        _refuse(f"expected an address with ASCII letters before the @-sign, got {_shown(value)}")
    return Address(seen.ascii_email, (seen.display_name or "").strip())


def parse_json(data: bytes) -> object:
    """Read one JSON value, strictly: UTF-8, no duplicate keys, no NaN, no depth that exhausts a stack (RFC 8259).

    Raises:
      MalformedJSON: with the reason, and the place where there is one.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
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
        raise MalformedJSON(f"expected each name once, got {_shown(doubled)} {times} times")
    return found


def _no_constant(name: str) -> NoReturn:
    raise MalformedJSON(f"expected JSON, got {name}, which JSON does not have")


def _depth(value: object) -> int:
    level, depth = [value], 0
    while level and depth <= JSON_DEPTH_MAX:
        depth += 1
        level = [inner for outer in level if isinstance(outer, (dict, list))
                 for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as e:
        _refuse(f"expected Unicode text, got half of a surrogate pair (U+{ord(value[e.start]):04X}) at {e.start}")
    return value


def _refuse(detail: str) -> NoReturn:
    raise PydanticCustomError("refused", "{detail}", {"detail": detail})


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _field_error(error: Any, at: str, model: type[BaseModel]) -> FieldError:
    index = error.get("ctx", {}).get("at")
    match error["type"]:
        case "missing":
            detail = "expected this field, got none"
        case "extra_forbidden":
            detail = _unknown(error["loc"][-1], model)
        case "string_type":
            detail = f"expected a string, got {_shown(error['input'])}"
        case "refused":
            detail = error["msg"]
        case _:
            detail = f"{error['msg'].replace('Input should be', 'expected')}, got {_shown(error['input'])}"
    return FieldError(at + _pointer([*error["loc"], *([] if index is None else [index])]), _printable(detail))


def _unknown(name: object, model: type[BaseModel]) -> str:
    nearest = difflib.get_close_matches(str(name), model.model_fields, n=1)
    return f"expected one of {', '.join(model.model_fields)}, got a field that is none of them" \
        + (f"; did you mean {nearest[0]}?" if nearest else "")


def _pointer(parts: list[Any]) -> str:
    path = "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
    return quote(path, safe="/~!$&'()*+,;=:@?", errors="backslashreplace")


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (RecursionError, TypeError, ValueError):  # A queue's client may send what JSON cannot hold, or int() not print.
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
