"""Reads bounces that are written for people only, as by qmail and older Exim, with flufl.bounce."""

import logging
import re
from email.message import Message
from typing import NamedTuple

from mailroom.mailbox.parts import MailPart
from mailroom.process.lazy_import import Lazy

flufl_bounce = Lazy("flufl.bounce")
# It logs each detector, and the traceback of each failure, which may have the words of the mail.
logging.getLogger("flufl.bounce").disabled = True

#: Its expressions take time that grows with the square of a line; and some sixty are tried on each line.
TEXT_MAX_CHARACTERS = 16_000
LINE_MAX_CHARACTERS = 200
#: One expression takes the third power of the number of "<".
_ANGLES_MAX = 4
TEXTS_MAX = 3
PARAGRAPH_MAX_LINES = 20
_FIELD_MAX_CHARACTERS = 1_000

_STILL_TRYING = re.compile(
    r"not yet been delivered|has been delayed|still being (?:tried|retried)|will (?:be re-?tried|keep trying)"
    r"|no action is required on your part|do not need to resend",
    re.IGNORECASE,
)


class BouncedAddress(NamedTuple):
    """An address that a bounce names, and what it says about it."""

    address: str
    is_delayed: bool
    words: str


def read_text(mail: MailPart, texts: list[str]) -> list[BouncedAddress]:
    """Return the addresses that a bounce without machine-readable parts speaks of; `texts` are its texts."""
    cut = [_bounded(text) for text in texts[:TEXTS_MAX]]
    delayed, failed = flufl_bounce.all_failures(_message(mail, cut))
    text = "\n".join(cut)
    is_warning = "x-failed-recipients" not in mail.fields and bool(_STILL_TRYING.search(text))
    found = [(address, True) for address in delayed]
    found += [(address, is_warning) for address in failed]
    return [
        BouncedAddress(address=name, is_delayed=is_delayed, words=words_about(name, text))
        for name, is_delayed in sorted(
            (raw.decode("ascii", "replace"), late) for raw, late in found
        )
    ]


def _bounded(text: str) -> str:
    """Return the beginning of a text in a form that costs no expression much time."""
    beginning = text[:TEXT_MAX_CHARACTERS]
    lines = [line[:LINE_MAX_CHARACTERS] for line in beginning.splitlines()]
    return "\n".join("" if line.count("<") > _ANGLES_MAX else line for line in lines)


def _message(mail: MailPart, texts: list[str]) -> Message:
    """Return the mail anew with its texts alone, as flufl.bounce walks through all parts of all depths."""
    message = Message()
    for name in ("From", "X-Mailer", "X-Failed-Recipients"):
        for value in mail.fields.all(name.lower())[:3]:
            message[name] = value[:_FIELD_MAX_CHARACTERS]
    if not mail.content_type.startswith("multipart/"):
        message["Content-Type"] = "text/plain"
        message.set_payload("\n".join(texts))
        return message
    message["Content-Type"] = mail.content_type
    for text in texts:
        part = Message()
        part["Content-Type"] = "text/plain"
        part.set_payload(text)
        message.attach(part)
    return message


def words_about(address: str, text: str) -> str:
    """Return the rest of the paragraph that names the address, or else the next one."""
    start = text.lower().find(address.lower())
    if start < 0:
        return ""
    rest = text[start + len(address) :].lstrip(">:;,)\"' \t")
    lines: list[str] = []
    for line in rest.split("\n")[:PARAGRAPH_MAX_LINES]:
        if not line.strip() and lines:
            break
        lines += [line] if line.strip() else []
    return "\n".join(lines)
