"""Takes a mail apart, whatever it is made of: a hostile one gives poorer words, never an error."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from email.parser import BytesParser
from email.policy import Compat32, EmailPolicy

HEAD_MAX_BYTES = 262_144
#: The parser of structured headers takes time that grows faster than the header does.
HEADER_MAX_CHARS = 16_384
#: Each level of nesting makes every line of the mail dearer to parse; real mails have about three.
CONTAINERS_MAX = 100
PARTS_MAX = 1_000

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_CONTAINER = re.compile(rb"(?:multipart|message)\s*/", re.IGNORECASE)
_SURROGATES = re.compile("[\ud800-\udfff]")
#: Codecs that the standard library decodes in quadratic time.
_SLOW_CODECS = {"idna", "punycode"}


@dataclass(frozen=True)
class Head:
    """The headers that a list shows, decoded; "" where the mail has none."""

    author: str = ""
    subject: str = ""
    to: str = ""
    date: str = ""
    message_id: str = ""


@dataclass(frozen=True)
class Attachment:
    """A part that is not the text: its name as the mail tells it, its type, its decoded bytes."""

    filename: str | None
    content_type: str
    size: int


@dataclass(frozen=True)
class Image:
    """A picture that the HTML can show by its Content-ID."""

    content_type: str
    data: bytes


@dataclass(frozen=True)
class Body:
    """What a mail says, and what hangs on it; `trouble` says why it is shown undivided."""

    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = field(default_factory=list)
    images: dict[str, Image] = field(default_factory=dict)
    trouble: str | None = None


class _Strict(EmailPolicy):
    """policy.default, which reads every header by its grammar, and raises on some."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:HEADER_MAX_CHARS]


class _Lenient(Compat32):
    """policy.compat32, which looks for no more than a semicolon."""

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:HEADER_MAX_CHARS]


_STRICT = _Strict()
_LENIENT = _Lenient()


def scrub(text: str) -> str:
    """Return `text` without surrogates, so that it can be written as UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)


def read_headers(raw: bytes) -> list[tuple[str, str]]:
    """Return all headers in the order of the mail, decoded."""
    end = _END_OF_HEAD.search(raw, 0, HEAD_MAX_BYTES)
    head = raw[: end.end() if end else HEAD_MAX_BYTES]
    message = BytesParser(policy=_LENIENT).parsebytes(head, headersonly=True)
    return [(scrub(name), _decoded(name, value)) for name, value in message.raw_items()]


def read_head(raw: bytes) -> Head:
    """Return the headers that a list shows."""
    found: dict[str, str] = {}
    for name, value in read_headers(raw):
        found.setdefault(name.lower(), value.strip())
    return Head(
        author=found.get("from", ""),
        subject=found.get("subject", ""),
        to=found.get("to", ""),
        date=found.get("date", ""),
        message_id=found.get("message-id", ""),
    )


def read_body(raw: bytes) -> Body:
    """Return text, HTML and attachments; the whole mail as text where it cannot be taken apart."""
    containers = sum(1 for _ in _CONTAINER.finditer(raw))
    if containers > CONTAINERS_MAX:
        trouble = f"it names {containers:,} multipart or message parts, one inside another maybe"
        return Body(text=_decode(raw, "utf-8"), trouble=trouble)
    trouble = ""
    for policy in (_STRICT, _LENIENT):
        try:
            return _sort(BytesParser(policy=policy).parsebytes(raw))
        except Exception as error:  # The email package has raised nearly every type there is.
            trouble = f"the parser gave up ({type(error).__name__})"
    return Body(text=_decode(raw, "utf-8"), trouble=trouble)


def _decoded(name: str, value: str) -> str:
    try:
        return scrub(str(_STRICT.header_fetch_parse(name, value)))
    except Exception:  # As in read_body; the undecoded header is better than none.
        return scrub(value)


def _sort(message: Message) -> Body:
    text: str | None = None
    html: str | None = None
    attachments: list[Attachment] = []
    images: dict[str, Image] = {}
    for part in _leaves(message):
        content_type, filename, attached = _label(part)
        data = _payload(part)
        charset = part.get_param("charset") if content_type.startswith("text/") else None
        if content_type == "text/plain" and text is None and not attached:
            text = _decode(data, str(charset or "utf-8"))
        elif content_type == "text/html" and html is None and not attached:
            html = _decode(data, str(charset or "utf-8"))
        else:
            attachments.append(Attachment(filename, content_type, len(data)))
            content_id = scrub(str(part.get("content-id", ""))).strip(" <>\t\r\n")
            if content_id and content_type.startswith("image/"):
                images[content_id] = Image(content_type, data)
    return Body(text, html, attachments, images)


def _leaves(message: Message) -> Iterator[Message]:
    # A loop and not message.walk(), which calls itself once per level. A mail inside a mail is
    # one attachment and is not opened.
    stack = [message]
    for _ in range(PARTS_MAX):
        if not stack:
            return
        part = stack.pop()
        if part.get_content_maintype() == "multipart" and part.is_multipart():
            stack.extend(reversed(part.get_payload()))  # type: ignore[arg-type]  # a list here
        else:
            yield part


def _label(part: Message) -> tuple[str, str | None, bool]:
    """Return type, file name, and whether the part asks not to be shown as the mail's own text."""
    filename = part.get_filename()
    attached = part.get_content_disposition() == "attachment" or filename is not None
    return scrub(part.get_content_type()), filename and scrub(filename), attached


def _payload(part: Message) -> bytes:
    if part.is_multipart():
        return b"".join(bytes(inner) for inner in part.get_payload())  # type: ignore[arg-type]
    data = part.get_payload(decode=True)
    return data if isinstance(data, bytes) else b""


def _decode(data: bytes, charset: str) -> str:
    """Return the text with LF line ends, whatever the charset is or claims to be."""
    try:
        codec = codecs.lookup(charset)
        text = data.decode("utf-8" if codec.name in _SLOW_CODECS else codec.name, "replace")
    except Exception:  # Unknown, not a text encoding, NUL in its name, or a codec that gives up.
        text = data.decode("utf-8", "replace")
    return scrub(text).replace("\r\n", "\n")
