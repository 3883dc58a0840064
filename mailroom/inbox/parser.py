"""Parses mails of any quality: a malformed or hostile one is shown less well, but never raises an error."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.headerregistry import HeaderRegistry
from email.message import Message
from email.parser import BytesParser
from email.policy import Compat32, EmailPolicy
from html import escape, unescape

from mailroom.inbox.charsets import decode, with_wider_words

HEAD_MAX_BYTES = 262_144
HEADER_MAX_CHARS = 16_384
#: The stdlib parser recurses once for each level of nesting; real mails have about three.
CONTAINERS_MAX = 100
#: The parser checks each line once for each level; 35 MB of attachments need 2 million checks.
LINE_CHECKS_MAX = 5_000_000
PARTS_MAX = 10_000
#: The most header lines that are parsed.
HEAD_LINES_MAX = 5_000

#: How much of each text is searched for links, and how many links are listed.
LINKS_IN_CHARS = 200_000
LINKS_MAX = 100

_HREF = re.compile(
    r"""<a\b[^<>]{0,2000}?\bhref\s{0,9}=\s{0,9}(?:"([^"]{1,2000})"|'([^']{1,2000})'|([^\s>"']{1,2000}))""",
    re.IGNORECASE,
)
_URL = re.compile(r"https?://[^\s<>\"')\]]{1,2000}", re.IGNORECASE)
_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_CONTAINER = re.compile(rb"(?:multipart|message)\s*/", re.IGNORECASE)
_SURROGATES = re.compile("[\ud800-\udfff]")
#: Types of the mail's own text, unless the part is marked as an attachment.
_TEXT_TYPES = ("text/plain", "text/html")


@dataclass(frozen=True)
class Head:
    """The headers that a list shows, decoded; "" for a header that the mail lacks."""

    author: str = ""
    subject: str = ""
    to: str = ""
    date: str = ""
    message_id: str = ""


@dataclass(frozen=True)
class AttachedPart:
    """An attachment: its file name and type as the mail states them, and the decoded bytes."""

    filename: str | None
    content_type: str
    data: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Image:
    """A picture that the HTML can refer to by its Content-ID."""

    content_type: str
    data: bytes


@dataclass(frozen=True)
class MailContent:
    """The content of a mail; if parsing failed, `parse_problem` says why, and `text` is the source."""

    text: str | None = None
    html: str | None = None
    attachments: list[AttachedPart] = field(default_factory=list)
    images: dict[str, Image] = field(default_factory=dict)
    parse_problem: str | None = None


@dataclass(frozen=True)
class _Text:
    """A text part; `in_alternative`: another part of a multipart/alternative has it in another form."""

    text: str
    is_html: bool
    in_alternative: bool


class _BoundedHeaders(Compat32):
    """policy.compat32, but headers are cut at HEADER_MAX_CHARS.

    policy.default is no alternative: it parses parameters by their grammar, raises on some of them, and
    a Content-Type of 16 kB can be built so that this takes seconds.
    """

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:HEADER_MAX_CHARS]


_POLICY = _BoundedHeaders()
#: Decodes encoded words (RFC 2047) without parsing any header by its grammar.
_WORDS = EmailPolicy(header_factory=HeaderRegistry(use_default_map=False))


def scrub(text: str) -> str:
    """Replace surrogates, so that the text can be written as UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return _SURROGATES.sub("\ufffd", text)


def read_headers(raw: bytes) -> list[tuple[str, str]]:
    """Return all headers in the order of the mail, decoded."""
    end = _END_OF_HEAD.search(raw, 0, HEAD_MAX_BYTES)
    head = raw[: end.end() if end else HEAD_MAX_BYTES]
    message = BytesParser(policy=_POLICY).parsebytes(head, headersonly=True)
    return [(scrub(name), _decoded(name, value)) for name, value in message.raw_items()]


def read_head(raw: bytes) -> Head:
    """Return the headers that a list shows."""
    headers: dict[str, str] = {}
    for name, value in read_headers(raw):
        headers.setdefault(name.lower(), value.strip())
    return Head(
        author=headers.get("from", ""),
        subject=headers.get("subject", ""),
        to=headers.get("to", ""),
        date=headers.get("date", ""),
        message_id=headers.get("message-id", ""),
    )


def read_body(raw: bytes) -> MailContent:
    """Return text, HTML and attachments; if the mail cannot be parsed, its whole source as text."""
    parse_problem = _why_too_slow(raw)
    if parse_problem is None:
        try:
            return _contents(BytesParser(policy=_POLICY).parsebytes(raw))
        except Exception as error:  # The email package has raised almost every exception there is.
            parse_problem = f"the parser gave up ({type(error).__name__})"
    return MailContent(text=_decode(raw, "utf-8"), parse_problem=parse_problem)


def links_in(body: MailContent) -> list[str]:
    """Return the http, https and mailto links of HTML and text, in order, each once."""
    links: list[str] = []
    for match in _HREF.finditer((body.html or "")[:LINKS_IN_CHARS]):
        links.append(unescape(match[1] or match[2] or match[3] or "").strip())
    for match in _URL.finditer((body.text or "")[:LINKS_IN_CHARS]):
        links.append(match[0].rstrip(".,;:!?"))
    kept = [link for link in links if re.match(r"(?:https?|mailto):", link, re.IGNORECASE)]
    return list(dict.fromkeys(kept))[:LINKS_MAX]


def _why_too_slow(raw: bytes) -> str | None:
    """Say why parsing this mail would take too long; None if it would not."""
    containers = sum(1 for _ in _CONTAINER.finditer(raw))
    if containers > CONTAINERS_MAX:
        return f"it names {containers:,} multipart or message parts"
    lines = raw.count(b"\n")
    end = _END_OF_HEAD.search(raw)
    header_lines = raw.count(b"\n", 0, end.start() if end else len(raw))
    if header_lines > HEAD_LINES_MAX:
        return f"it has {header_lines:,} lines of headers"
    if lines * (containers + 1) > LINE_CHECKS_MAX:
        return f"it has {lines:,} lines inside {containers} multipart or message parts"
    if containers and (parts := raw.count(b"\n--")) > PARTS_MAX:
        return f"it has {parts:,} parts"
    return None


def _decoded(name: str, value: str) -> str:
    try:
        return scrub(str(_WORDS.header_fetch_parse(name, with_wider_words(value))))
    except Exception:  # As in read_body; an undecoded header is better than none.
        return scrub(value)


def _contents(message: Message) -> MailContent:
    """Sort the parts into texts and attachments."""
    texts: list[_Text] = []
    attachments: list[AttachedPart] = []
    images: dict[str, Image] = {}
    seen: set[tuple[int, str]] = set()  #: (id of an alternative, type) of the texts found in it
    for part, parent in _leaves(message):
        content_type, filename, attached = _label(part)
        data = _payload(part)
        in_alternative = parent is not None and parent.get_content_subtype() == "alternative"
        form = id(parent), content_type
        if content_type in _TEXT_TYPES and not attached and not (in_alternative and form in seen):
            seen.add(form)
            is_html = content_type == "text/html"
            text = _decode(data, str(part.get_param("charset") or ""), is_html=is_html)
            texts.append(_Text(text, is_html, in_alternative))
        else:
            attachments.append(AttachedPart(filename, content_type, data))
            content_id = scrub(str(part.get("content-id", ""))).strip(" <>\t\r\n")
            if content_id and content_type.startswith("image/"):
                images[content_id] = Image(content_type, data)
    return MailContent(*_text_and_html(texts), attachments, images)


def _text_and_html(parts: list[_Text]) -> tuple[str | None, str | None]:
    """Join the parts of each form; text outside an alternative belongs to the HTML as well."""
    texts = [part.text for part in parts if not part.is_html]
    text = _joined(texts) if texts else None
    if len(parts) == len(texts):
        return text, None
    if len(texts) == 1 and len(parts) == 2:
        # Two forms of one text, even without an alternative around them.
        return text, _joined([part.text for part in parts if part.is_html])
    return text, _joined(
        [_as_html(part) for part in parts if part.is_html or not part.in_alternative]
    )


def _as_html(part: _Text) -> str:
    return (
        part.text
        if part.is_html
        else f'<pre style="white-space: pre-wrap">{escape(part.text)}</pre>'
    )


def _joined(texts: list[str]) -> str:
    """Join texts so that each begins on a line of its own."""
    ended = [text.removesuffix("\n") for text in texts[:-1]]
    return "\n".join([*ended, texts[-1]])


def _leaves(message: Message) -> Iterator[tuple[Message, Message | None]]:
    """Yield each part that contains no others, with the multipart around it."""
    # A loop instead of message.walk(), which recurses once per level. A mail attached to the mail is
    # one attachment and is not parsed.
    stack: list[tuple[Message, Message | None]] = [(message, None)]
    while stack:
        part, parent = stack.pop()
        if part.get_content_maintype() == "multipart" and part.is_multipart():
            inside: list[Message] = part.get_payload()  # type: ignore[assignment]  # a list here
            stack.extend((inner, part) for inner in reversed(inside))
        else:
            yield part, parent


def _label(part: Message) -> tuple[str, str | None, bool]:
    """Return type, file name, and whether the part is marked as an attachment."""
    filename = _filename(part)
    attached = part.get_content_disposition() == "attachment" or filename is not None
    return scrub(part.get_content_type()), filename and _decoded("filename", filename), attached


def _filename(part: Message) -> str | None:
    """Return the file name, decoded by the charset stated with it (RFC 2231, 4), unlike `get_filename`."""
    for name, header in (("filename", "content-disposition"), ("name", "content-type")):
        value = part.get_param(name, header=header)
        if isinstance(value, tuple):
            return decode(value[2].encode("latin-1", "replace"), value[0] or "").strip()
        if value is not None:
            return value.strip()
    return None


def _payload(part: Message) -> bytes:
    if part.is_multipart():
        return b"".join(bytes(inner) for inner in part.get_payload())  # type: ignore[arg-type]
    data = part.get_payload(decode=True)
    return data if isinstance(data, bytes) else b""


def _decode(data: bytes, charset: str, *, is_html: bool = False) -> str:
    """Decode a text, with LF as line ends."""
    return scrub(decode(data, charset, is_html=is_html)).replace("\r\n", "\n")
