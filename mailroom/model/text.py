"""Makes text fit for every reader: one line, without control characters, of letters that UTF-8 can hold."""

import json
import re

from mailroom.model.errors import refuse

#: For a set of a regular expression: the C0 and C1 controls, and the separators of lines and paragraphs.
CONTROL_CHARACTERS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_CONTROL = re.compile(f"[{CONTROL_CHARACTERS}]")
_CONTROLS = re.compile(f"[{CONTROL_CHARACTERS}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")

#: A header line is at most 998 characters (RFC 5322, 2.1.1).
SUBJECT_MAX_CHARACTERS = 998
_REPR_MAX_CHARACTERS = 80


def one_line(text: object, *, most: int | None = None) -> str:
    """Return the words of `text` on one line, at most `most` characters, fit for a log and every database.

    PostgreSQL takes no NUL, and a terminal obeys escapes.
    """
    return " ".join(_CONTROL.sub(" ", unicode_text(str(text))).split())[:most]


def without_control(text: str) -> str:
    """Return the text with one space for each run of control characters; other spaces stay as they are."""
    return _CONTROLS.sub(" ", text)


def has_control(text: str) -> bool:
    """Tell whether a control character, or a break of the line, is in the text."""
    return _CONTROL.search(text) is not None


def refuse_control(text: str, *, expected: str = "one line") -> None:
    """Refuse text with a control character or a break of the line; the error says which and where.

    Raises:
      PydanticCustomError: there is one.
    """
    if match := _CONTROL.search(text):
        refuse(f"expected {expected} without control characters, got {match[0]!r} at {match.start()}")


def check_subject(value: str) -> str:
    """Return `value`, which is one line that a header can hold.

    Raises:
      PydanticCustomError: it is not.
    """
    refuse_control(value)
    if len(value) > SUBJECT_MAX_CHARACTERS:
        refuse(f"expected at most {SUBJECT_MAX_CHARACTERS} characters, got {len(value)}")
    return encodable(value)


def is_unicode(value: str) -> bool:
    """Tell whether UTF-8 can hold `value`."""
    return _SURROGATE.search(value) is None


def unicode_text(text: str) -> str:
    """Return text that UTF-8 can hold: with U+FFFD for each lone surrogate, such as os.fsdecode() makes."""
    if is_unicode(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encodable(value: str) -> str:
    """Return `value`, which UTF-8 can hold.

    Raises:
      PydanticCustomError: it cannot.
    """
    try:
        value.encode()
    except UnicodeEncodeError as e:
        code = f"U+{ord(value[e.start]):04X}"
        refuse(f"expected Unicode text, got half of a surrogate pair ({code}) at {e.start}")
    return value


def storable(value: str) -> str:
    """Return `value`, which UTF-8 and a database can hold.

    Raises:
      PydanticCustomError: they cannot.
    """
    if "\0" in value:
        refuse(f"expected text without NUL, got one at {value.index(chr(0))}")
    return encodable(value)


def short_repr(value: object) -> str:
    """Return what came as JSON, cut to a length that a person reads."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (RecursionError, TypeError, ValueError):
        # A queue's client may send what JSON cannot hold, or int() not print.
        text = f"a {type(value).__name__} that cannot be shown"
    return short(text)


def short(text: str) -> str:
    """Return the text, cut to a length that a person reads."""
    return text if len(text) <= _REPR_MAX_CHARACTERS else text[: _REPR_MAX_CHARACTERS - 3] + "..."
