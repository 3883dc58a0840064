"""Splits a mail into header fields and parts, bounded in time and memory: anybody may write to us.

The parser of the standard library recurses for each level of a multipart, and reads the lines of all.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

#: The fields that matter come first; what is returned may be cut.
MAIL_MAX_BYTES = 256 * 1024
TEXT_MAX_BYTES = 64 * 1024
HEADER_MAX_BYTES = 64 * 1024
VALUE_MAX_BYTES = 4_000
#: A report has some eight, in three levels. Multiparts count as well, which bounds their depth.
PARTS_MAX = 50

_FOLD = re.compile(rb"\n[ \t]+")
_BLANK_LINE = re.compile(rb"\n[ \t]*\n")
_BOUNDARY = re.compile(r'\bboundary\s*=\s*(?:"([^"]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_CHARSET = re.compile(r'\bcharset\s*=\s*"?([\w.:-]{1,40})', re.IGNORECASE)
#: Others are unsafe to try: some of Python's codecs take time that grows with the square of the text.
_CODEC = re.compile(
    r"(?:utf-?8|us-ascii|iso-?8859|iso-2022|windows-|cp\d|koi8|gb|big5|euc|shift|ks_c)",
    re.IGNORECASE,
)
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]+")


class Fields:
    """The fields of a header by their names, without folding; a value that is too long is cut."""

    def __init__(self, block: bytes) -> None:
        self._values: dict[bytes, list[bytes]] = {}
        for line in _FOLD.sub(b" ", block[:HEADER_MAX_BYTES]).split(b"\n"):
            name, colon, value = line.partition(b":")
            if colon:
                values = self._values.setdefault(name.strip().lower(), [])
                values.append(value[:VALUE_MAX_BYTES].strip())

    def __contains__(self, name: str) -> bool:
        return name.encode() in self._values

    def all(self, *names: str) -> list[str]:
        """Return the values of all fields with one of these names, which are in lower case."""
        values = [value for name in names for value in self._values.get(name.encode(), [])]
        return [value.decode("utf-8", "replace") for value in values]

    def first(self, name: str) -> str:
        """Return the value of the first field with this name, or an empty text."""
        values = self._values.get(name.encode())
        return values[0].decode("utf-8", "replace") if values else ""


@dataclass(frozen=True)
class MailPart:
    """A part of a mail, or a whole mail: its header, and the bytes of its body as they came."""

    fields: Fields
    body: bytes

    @cached_property
    def content_type(self) -> str:
        """The media type in lower case, without parameters; RFC 2045, 5.2 has the default."""
        value = self.fields.first("content-type").partition(";")[0]
        return value.strip().lower() or "text/plain"

    def data(self) -> bytes:
        """Return the beginning of the body without its transfer encoding."""
        body = self.body[:TEXT_MAX_BYTES]
        encoding = self.fields.first("content-transfer-encoding").lower()
        if encoding == "base64":
            digits = _NOT_BASE64.sub(b"", body)
            return binascii.a2b_base64(digits[: len(digits) // 4 * 4])
        if encoding == "quoted-printable":
            return binascii.a2b_qp(body)
        return body

    def text(self) -> str:
        """Return the beginning of the body as text; what cannot be read becomes U+FFFD."""
        charset = _CHARSET.search(self.fields.first("content-type"))
        name = "utf-8"
        if charset and _CODEC.match(charset[1]):
            name = charset[1]
        try:
            return self.data().decode(name, "replace")
        except LookupError:
            return self.data().decode("latin-1")

    def children(self) -> list["MailPart"]:
        """Return the parts of a multipart, also where its end is missing."""
        boundary = _BOUNDARY.search(self.fields.first("content-type"))
        if not boundary or not self.content_type.startswith("multipart/"):
            return []
        delimiter = re.escape((boundary[1] or boundary[2]).rstrip().encode())
        pieces = re.split(
            rb"\n--" + delimiter + rb"(--)?[ \t]*(?=\n|\Z)", b"\n" + self.body, maxsplit=PARTS_MAX
        )
        found: list[MailPart] = []
        # The preamble comes first; then each delimiter is followed by what it begins.
        for closes, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            if closes:
                break
            found.append(read_part(piece.removeprefix(b"\n")))
        return found


def read_mail(raw: bytes) -> MailPart:
    """Return the beginning of a mail, with line ends as \\n."""
    return read_part(raw[:MAIL_MAX_BYTES].replace(b"\r\n", b"\n"))


def read_part(raw: bytes) -> MailPart:
    """Return a header and its body; where no blank line ends the header, all is header."""
    header, body = raw, b""
    if raw.startswith(b"\n"):
        header, body = b"", raw[1:]
    elif end := _BLANK_LINE.search(raw):
        header, body = raw[: end.start()], raw[end.end() :]
    return MailPart(fields=Fields(header), body=body)


def leaves(mail: MailPart) -> Iterator[MailPart]:
    """Yield the parts that have no parts themselves, in their order; a mail within the mail is one."""
    waiting = [mail]
    for _ in range(PARTS_MAX):
        if not waiting:
            return
        part = waiting.pop()
        children = part.children()
        if not children:
            yield part
        waiting += reversed(children)


def blocks(data: bytes) -> list[Fields]:
    """Return the groups of fields that blank lines separate (RFC 3464, 2.1)."""
    return [Fields(block) for block in _BLANK_LINE.split(data.replace(b"\r\n", b"\n")) if block]
