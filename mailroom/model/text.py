"""Cleans and checks text: one line, no control characters, valid Unicode, a bounded length."""

import json
import re

from mailroom.model.errors import refuse

#: For a set in a regular expression: the C0 and C1 controls, and the line and paragraph separators.
CONTROL_CHARACTERS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_CONTROL = re.compile(f"[{CONTROL_CHARACTERS}]")
_CONTROLS = re.compile(f"[{CONTROL_CHARACTERS}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")

#: A header line is at most 998 characters (RFC 5322, 2.1.1).
SUBJECT_MAX_CHARACTERS = 998
_REPR_MAX_CHARACTERS = 80


def one_line(text: object, *, most: int | None = None) -> str:
    """Return `text` on one line, at most `most` characters, safe for a log and every database.

    PostgreSQL refuses NUL, and a terminal obeys escape sequences.
    """
    return " ".join(_CONTROL.sub(" ", unicode_text(str(text))).split())[:most]


def without_control(text: str) -> str:
    """Return the text with one space for each run of control characters; other spaces stay as they are."""
    return _CONTROLS.sub(" ", text)


def has_control(text: str) -> bool:
    """Tell whether the text has a control character, such as a line break."""
    return _CONTROL.search(text) is not None


def refuse_control(text: str, *, expected: str = "one line") -> None:
    """Refuse text with a control character, such as a line break; the error says which and where.

    Raises:
      PydanticCustomError: there is one.
    """
    if match := _CONTROL.search(text):
        refuse(
            f"expected {expected} without control characters, got {match[0]!r} at {match.start()}"
        )


def check_subject(value: str) -> str:
    """Return a subject, which must be one line that fits into a header field.

    Raises:
      PydanticCustomError: it does not.
    """
    refuse_control(value)
    if len(value) > SUBJECT_MAX_CHARACTERS:
        refuse(f"expected at most {SUBJECT_MAX_CHARACTERS} characters, got {len(value)}")
    return encodable(value)


def is_unicode(value: str) -> bool:
    """Tell whether `value` can be encoded in UTF-8."""
    return _SURROGATE.search(value) is None


def unicode_text(text: str) -> str:
    """Return the text with U+FFFD for each lone surrogate, such as os.fsdecode() makes."""
    if is_unicode(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encodable(value: str) -> str:
    """Return `value`, which must be possible in UTF-8.

    Raises:
      PydanticCustomError: it has half of a surrogate pair.
    """
    try:
        value.encode()
    except UnicodeEncodeError as e:
        code = f"U+{ord(value[e.start]):04X}"
        refuse(f"expected Unicode text, got half of a surrogate pair ({code}) at {e.start}")
    return value


def storable(value: str) -> str:
    """Return `value`, which must be possible in UTF-8 and in a database.

    Raises:
      PydanticCustomError: it has a NUL, or half of a surrogate pair.
    """
    if "\0" in value:
        refuse(f"expected text without NUL, got one at {value.index(chr(0))}")
    return encodable(value)


def short_repr(value: object) -> str:
    """Return a value as JSON, cut to a length that fits into a sentence."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (RecursionError, TypeError, ValueError):
        # A client of the queue may send values that JSON cannot hold, or numbers too long to print.
        text = f"a {type(value).__name__} that cannot be shown"
    return short(text)


def short(text: str) -> str:
    """Return the text, cut to a length that fits into a sentence."""
    if len(text) <= _REPR_MAX_CHARACTERS:
        return text
    return text[: _REPR_MAX_CHARACTERS - 3] + "..."
