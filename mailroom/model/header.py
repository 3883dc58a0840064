"""Splits a mail in RFC 5322 bytes into its header fields and the rest, and changes no byte of either."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

#: The header of a mail that we take; servers refuse longer ones.
HEADER_MAX_BYTES = 500_000

#: The start of a field. Spaces before the colon are obsolete (RFC 5322, 4.5), and programs read them.
_START = re.compile(rb"([!-9;-~]+)[ \t]*:")


#: The first line of a mail in a mailbox file, and fields that must not be taken for a part of the text.
_BROKEN_START = re.compile(rb"\A>?From |(?mi:^(?:resent-)?bcc[ \t]*:)")


class HeaderTooLong(ValueError):
    """The header is longer than HEADER_MAX_BYTES."""


@dataclass(frozen=True)
class HeaderField:
    """A field of a header: its name in lower case, and all of its lines as they came."""

    name: str
    lines: bytes

    @property
    def value(self) -> str:
        """The value on one line, with encoded words as they are; what is not UTF-8 is replaced."""
        _, _, value = self.lines.partition(b":")
        text = value.decode("utf-8", "replace")
        return " ".join(text.replace("\r\n", "").split())


def split_header(mail: bytes, *, most: int = HEADER_MAX_BYTES) -> tuple[list[HeaderField], bytes]:
    """Return the fields and the rest, which begins with the empty line; one is added if it is missing.

    Lines end with CRLF. `most` is the length limit of the header; 0: none, for a mail that was accepted.

    Raises:
      HeaderTooLong: says so.
    """
    starts: list[tuple[str, int]] = []
    position = 0
    while position < len(mail):
        if most and position > most:
            raise HeaderTooLong(f"expected a header of at most {most} bytes, got more")
        is_continuation = bool(starts) and mail[position] in b" \t"
        if not is_continuation:
            start = _START.match(mail, position)
            if start is None:
                break
            starts.append((start[1].decode("ascii").lower(), position))
        end = mail.find(b"\r\n", position)
        position = len(mail) if end < 0 else end + 2
    ends = [start for _, start in starts[1:]] + [position]
    fields = [
        HeaderField(name, mail[start:end]) for (name, start), end in zip(starts, ends, strict=False)
    ]
    rest = mail[position:]
    return fields, rest if rest.startswith(b"\r\n") else b"\r\n" + rest


def breaks_off(mail: bytes, fields: Sequence[HeaderField]) -> bool:
    """Tell whether the header ends before the empty line, so that fields would go out in the text.

    `fields` are those that split_header found. A mail without any is all text, unless it begins as one whose
    header is broken.
    """
    if not fields:
        start, _, _ = mail.partition(b"\r\n\r\n")
        return bool(_BROKEN_START.search(start))
    end = sum(len(field.lines) for field in fields)
    return end < len(mail) and not mail.startswith(b"\r\n", end)
