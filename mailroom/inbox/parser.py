"""Takes a mail apart, whatever it is made of: a hostile one gives poorer words, never an error."""

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
#: The parser calls itself once for each level of nesting; real mails have about three.
CONTAINERS_MAX = 100
#: It looks at each line once for each level; 35 MB of attachments are 2 million looks.
LINE_CHECKS_MAX = 5_000_000
PARTS_MAX = 10_000
#: Lines of headers that are taken apart.
HEAD_LINES_MAX = 5_000

#: Where links are looked for, and how many are told.
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
#: What the mail itself says, where it does not ask to be a file.
_SHOWN = ("text/plain", "text/html")


@dataclass(frozen=True)
class Head:
    """The headers that a list shows, decoded; "" where the mail has none."""

    author: str = ""
    subject: str = ""
    to: str = ""
    date: str = ""
    message_id: str = ""


@dataclass(frozen=True)
class AttachedPart:
    """A part that is not the text: its name as the mail tells it, its type, its decoded bytes."""

    filename: str | None
    content_type: str
    data: bytes = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Image:
    """A picture that the HTML can show by its Content-ID."""

    content_type: str
    data: bytes


@dataclass(frozen=True)
class MailContent:
    """The content of a mail, and what hangs on it; `trouble` says why it is shown undivided."""

    text: str | None = None
    html: str | None = None
    attachments: list[AttachedPart] = field(default_factory=list)
    images: dict[str, Image] = field(default_factory=dict)
    trouble: str | None = None


@dataclass(frozen=True)
class _Text:
    """A part of what a mail says; `in_alternative`: another part says it in another form."""

    text: str
    is_html: bool
    in_alternative: bool


class _BoundedHeaders(Compat32):
    """policy.compat32 that cuts a header at HEADER_MAX_CHARS.

    Not policy.default: it reads parameters by their grammar, raises on some, and takes seconds
    for one Content-Type of 16 kB that is made for it.
    """

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        name, value = super().header_source_parse(sourcelines)
        return name, value[:HEADER_MAX_CHARS]


_POLICY = _BoundedHeaders()
#: Decodes encoded words and asks for no grammar.
_WORDS = EmailPolicy(header_factory=HeaderRegistry(use_default_map=False))


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
    message = BytesParser(policy=_POLICY).parsebytes(head, headersonly=True)
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


def read_body(raw: bytes) -> MailContent:
    """Return text, HTML and attachments; the whole mail as text where it cannot be taken apart."""
    trouble = _too_much(raw)
    if trouble is None:
        try:
            return _sort(BytesParser(policy=_POLICY).parsebytes(raw))
        except Exception as error:  # The email package has raised nearly every type there is.
            trouble = f"the parser gave up ({type(error).__name__})"
    return MailContent(text=_decode(raw, "utf-8"), trouble=trouble)


def links_in(body: MailContent) -> list[str]:
    """The addresses that the mail asks a reader to open, each once, in order."""
    found = [
        unescape(match[1] or match[2] or match[3] or "").strip()
        for match in _HREF.finditer((body.html or "")[:LINKS_IN_CHARS])
    ]
    found += [match[0].rstrip(".,;:!?") for match in _URL.finditer((body.text or "")[:LINKS_IN_CHARS])]
    kept = [link for link in found if re.match(r"(?:https?|mailto):", link, re.IGNORECASE)]
    return list(dict.fromkeys(kept))[:LINKS_MAX]


def _too_much(raw: bytes) -> str | None:
    """Say why parsing would take too long, if it would."""
    containers = sum(1 for _ in _CONTAINER.finditer(raw))
    if containers > CONTAINERS_MAX:
        return f"it names {containers:,} multipart or message parts"
    lines = raw.count(b"\n")
    end = _END_OF_HEAD.search(raw)
    if (head := raw.count(b"\n", 0, end.start() if end else len(raw))) > HEAD_LINES_MAX:
        return f"it has {head:,} lines of headers"
    if lines * (containers + 1) > LINE_CHECKS_MAX:
        return f"it has {lines:,} lines inside {containers} multipart or message parts"
    if containers and (parts := raw.count(b"\n--")) > PARTS_MAX:
        return f"it has {parts:,} parts"
    return None


def _decoded(name: str, value: str) -> str:
    try:
        return scrub(str(_WORDS.header_fetch_parse(name, with_wider_words(value))))
    except Exception:  # As in read_body; the undecoded header is better than none.
        return scrub(value)


def _sort(message: Message) -> MailContent:
    shown: list[_Text] = []
    attachments: list[AttachedPart] = []
    images: dict[str, Image] = {}
    seen: set[tuple[int, str]] = set()  #: forms that an alternative has given
    for part, parent in _leaves(message):
        content_type, filename, attached = _label(part)
        data = _payload(part)
        in_alternative = parent is not None and parent.get_content_subtype() == "alternative"
        form = id(parent), content_type
        if content_type in _SHOWN and not attached and not (in_alternative and form in seen):
            seen.add(form)
            is_html = content_type == "text/html"
            text = _decode(data, str(part.get_param("charset") or ""), is_html=is_html)
            shown.append(_Text(text, is_html, in_alternative))
        else:
            attachments.append(AttachedPart(filename, content_type, data))
            content_id = scrub(str(part.get("content-id", ""))).strip(" <>\t\r\n")
            if content_id and content_type.startswith("image/"):
                images[content_id] = Image(content_type, data)
    return MailContent(*_both_forms(shown), attachments, images)


def _both_forms(shown: list[_Text]) -> tuple[str | None, str | None]:
    """Return text and HTML, all parts of each; text that stands alone is a part of the HTML too."""
    texts = [part.text for part in shown if not part.is_html]
    if len(shown) == len(texts):
        return (_joined(texts) if texts else None), None
    if len(texts) == 1 and len(shown) == 2:  # Two forms of one text, wherever they stand.
        html = [part.text for part in shown if part.is_html]
    else:
        html = [
            part.text if part.is_html else f'<pre style="white-space: pre-wrap">{escape(part.text)}</pre>'
            for part in shown
            if part.is_html or not part.in_alternative
        ]
    return (_joined(texts) if texts else None), _joined(html)


def _joined(texts: list[str]) -> str:
    """Each begins on a line of its own."""
    ended = [text if text.endswith("\n") else f"{text}\n" for text in texts[:-1]]
    return "".join([*ended, texts[-1]])


def _leaves(message: Message) -> Iterator[tuple[Message, Message | None]]:
    """Yield each part that holds no others, and what holds it."""
    # A loop and not message.walk(), which calls itself once per level. A mail inside a mail is
    # one attachment and is not opened.
    stack: list[tuple[Message, Message | None]] = [(message, None)]
    while stack:
        part, parent = stack.pop()
        if part.get_content_maintype() == "multipart" and part.is_multipart():
            inside: list[Message] = part.get_payload()  # type: ignore[assignment]  # a list here
            stack.extend((inner, part) for inner in reversed(inside))
        else:
            yield part, parent


def _label(part: Message) -> tuple[str, str | None, bool]:
    """Return type, file name, and whether the part asks not to be shown as the mail's own text."""
    filename = _filename(part)
    attached = part.get_content_disposition() == "attachment" or filename is not None
    return scrub(part.get_content_type()), filename and _decoded("filename", filename), attached


def _filename(part: Message) -> str | None:
    """Return the name as `get_filename` does, in the charset that was meant (RFC 2231, 4)."""
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
    """Return the text with LF line ends."""
    return scrub(decode(data, charset, is_html=is_html)).replace("\r\n", "\n")
