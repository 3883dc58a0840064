"""Text as every reader takes it."""

import json
import re

from mailroom.model.errors import refuse

_SURROGATE = re.compile("[\ud800-\udfff]")

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

#: A header line is at most 998 characters (RFC 5322, 2.1.1).
SUBJECT_MAX_CHARACTERS = 998


def unicode_text(text: str) -> str:
    """Return text that UTF-8 can hold: with U+FFFD for each lone surrogate, such as os.fsdecode() makes."""
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def encodable(value: str) -> str:
    """Refuse what UTF-8 cannot hold."""
    try:
        value.encode()
    except UnicodeEncodeError as e:
        refuse(
            f"expected Unicode text, got half of a surrogate pair (U+{ord(value[e.start]):04X}) at {e.start}"
        )
    return value


def storable(value: str) -> str:
    """Refuse what UTF-8, or a database, cannot hold."""
    if "\0" in value:
        refuse(f"expected text without NUL, got one at {value.index(chr(0))}")
    return encodable(value)


def is_unicode(value: str) -> bool:
    """Tell whether UTF-8 can hold `value`."""
    return _SURROGATE.search(value) is None


def shown(value: object) -> str:
    """Return what came, cut to a length that a person reads."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except (
        RecursionError,
        TypeError,
        ValueError,
    ):  # A queue's client may send what JSON cannot hold, or int() not print.
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else text[:77] + "..."


def one_line(value: str) -> str:
    """Refuse what is no subject."""
    if found := CONTROL.search(value):
        refuse(f"expected one line without control characters, got {found[0]!r} at {found.start()}")
    if len(value) > SUBJECT_MAX_CHARACTERS:
        refuse(f"expected at most {SUBJECT_MAX_CHARACTERS} characters, got {len(value)}")
    return encodable(value)
