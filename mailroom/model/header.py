"""Splits a mail in RFC 5322 bytes into its header fields and the rest, and changes no byte of either."""

import re
from dataclasses import dataclass

#: The header of a mail that we take; servers refuse longer ones.
HEADER_MAX_BYTES = 500_000

#: The start of a field. Spaces before the colon are obsolete (RFC 5322, 4.5), and programs read them.
_START = re.compile(rb"([!-9;-~]+)[ \t]*:")


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


def split_header(mail: bytes) -> tuple[list[HeaderField], bytes]:
    """Return the fields and the rest, which begins with the empty line; one is added if it is missing.

    Lines end with CRLF.

    Raises:
      HeaderTooLong: says so.
    """
    starts: list[tuple[str, int]] = []
    position = 0
    while position < len(mail):
        if position > HEADER_MAX_BYTES:
            raise HeaderTooLong(f"expected a header of at most {HEADER_MAX_BYTES} bytes, got more")
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
