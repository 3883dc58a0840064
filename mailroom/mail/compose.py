"""Writes a mail down as RFC 5322 bytes. Nothing in a message is read as a path, a URL or a header."""

import re
from binascii import b2a_base64, b2a_qp
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email import policy
from email.header import Header
from email.utils import format_datetime, formataddr
from functools import lru_cache
from hashlib import sha256
from html import escape, unescape
from urllib.parse import quote

from mailroom.mail.message import MEDIA_TYPE, STRUCTURED, Address, Attachment, Claim, Message, file_name
from mailroom.mail.template import fill

#: The longest line that has an encoded word in it (RFC 2047, 2).
_LINE_MAX = 76
#: Folds headers; the rest is written by hand, as `EmailMessage` takes ten times as long for the same bytes.
_WIRE = policy.compat32.clone(linesep="\r\n", max_line_length=_LINE_MAX)


def compose(claim: Claim, *, sender: Address) -> bytes:
    """Return the mail with CRLF line ends, every line at most 998 bytes; an attempt that is repeated gives the same bytes."""
    job = claim.job
    message = fill(claim.message, job) if job and claim.message.template else claim.message
    text, html = both_forms(message)
    files = [*message.attachments, *([job.file] if job and job.file and job.status == "succeeded" else [])]
    shown = [file for file in files if file.content_id]
    attached = [file for file in files if not file.content_id]
    boundary = _boundary(claim.message_id)
    head, body = _multipart("alternative", boundary), _joined([_part("plain", text), _part("html", html)], boundary)
    for kind, inside in (("related", shown), ("mixed", attached)):
        if inside:
            boundary = _boundary(claim.message_id, kind)
            head, body = _multipart(kind, boundary), _joined([head + b"\r\n" + body, *map(_file, inside)], boundary)
    return head + b"".join(_headers(claim, message, sender)) + b"\r\n" + body


def _headers(claim: Claim, message: Message, sender: Address) -> Iterator[bytes]:
    yield _header("From", _written(message.sender or sender))
    for name, people in (("To", message.to), ("Cc", message.cc), ("Reply-To", message.reply_to)):
        if people:
            yield _header(name, _list(people))
    yield _header("Subject", _text(message.subject, "Subject"))
    yield _header("Date", _date(claim.created_at_ms // 1000))
    yield _unfolded("Message-ID", f"<{claim.message_id}>", spaces=False)
    if message.unsubscribe:
        yield _unfolded("List-Unsubscribe", f"<{message.unsubscribe}>")
        yield _unfolded("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
    for name, value in message.headers:
        yield _unfolded(name, value) if STRUCTURED.fullmatch(name) else _header(name, _text(value, name))


@lru_cache(maxsize=128)
def _date(seconds: int) -> str:
    """Mails that were accepted together have it in common."""
    return format_datetime(datetime.fromtimestamp(seconds, UTC))


def _header(name: str, value: str | Header) -> bytes:
    """Folded where it does not fit on one line."""
    if isinstance(value, str) and value.isascii() and value.isprintable() and len(name) + 2 + len(value) <= _LINE_MAX:
        return f"{name}: {value}\r\n".encode("ascii")  # A Header takes 20 µs to find that out.
    return _WIRE.fold_binary(name, value)  # type: ignore[arg-type]  # which takes a Header, too


def _unfolded(name: str, value: str, *, spaces: bool = True) -> bytes:
    """On one line, however long, as some readers lose a Message-ID that is folded."""
    if not re.fullmatch(r"[!-~]+( +[!-~]+)*" if spaces else r"[!-~]+", value):
        raise ValueError("expected a header of printable ASCII" + ("" if spaces else " without spaces"))
    return f"{name}: {value}\r\n".encode("ascii")


def both_forms(message: Message) -> tuple[str, str]:
    """Return (text, html), making the one that was not given: text is escaped into HTML, HTML loses its tags."""
    text = plain_text(message.html or "") if message.text is None else message.text
    if message.html is not None:
        return text, message.html
    return text, f'<div style="white-space: pre-wrap">{escape(text, quote=False)}</div>'


def _multipart(kind: str, boundary: str) -> bytes:
    """The header of a mail with these parts (RFC 2046, 5.1)."""
    return f'Content-Type: multipart/{kind};\r\n boundary="{boundary}"\r\nMIME-Version: 1.0\r\n'.encode()


def _joined(parts: Sequence[bytes], boundary: str) -> bytes:
    between = f"--{boundary}\r\n".encode()
    return b"".join(found for part in parts for found in (between, part, b"\r\n")) + f"--{boundary}--\r\n".encode()


def _part(subtype: str, content: str) -> bytes:
    lines = content.replace("\r\n", "\n").replace("\r", "\n").encode()
    # Base64 where most of it is not ASCII; quoted-printable stays readable, and keeps lines under RFC 5322's 998.
    is_readable = len(content.encode()) < 1.2 * len(content)
    body = b2a_qp(lines, istext=True).replace(b"\n", b"\r\n") if is_readable else _base64(lines.replace(b"\n", b"\r\n"))
    return (f'Content-Type: text/{subtype}; charset="utf-8"\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: '
            f"{'quoted-printable' if is_readable else 'base64'}\r\n\r\n").encode() + body


def _text(value: str, name: str) -> str | Header:
    # A first word that does not fit beside the name would go to the next line, and readers would see a space before it.
    fits = len(name) + 2 + len(value.partition(" ")[0]) <= _LINE_MAX
    if fits and _survives(value):
        return value
    return Header(value, "utf-8", header_name=name)


def _list(people: Sequence[Address]) -> str:
    if all(person.is_ascii for person in people):
        return ", ".join(_written(person) for person in people)
    # Bytes that are no ASCII go out as they are (RFC 6532), and nobody folds them for us.
    return ",\r\n ".join(_written(person) for person in people)


def _survives(text: str) -> bool:
    """Whether a reader gets back every character of it as it stands, folded and unfolded on the way."""
    return text.isascii() and "=?" not in text and "  " not in text and text == text.strip() \
        and all(len(word) < 70 for word in text.split(" "))


def _written(person: Address) -> str:
    address = person.address.encode().decode("ascii", "surrogateescape")
    if _survives(person.name) and person.is_ascii:
        return formataddr((person.name, address))
    # In words of at most 75 characters (RFC 2047, 2), which formataddr does not do.
    return f"{Header(person.name, 'utf-8').encode(linesep='', maxlinelen=_LINE_MAX - 1)} <{address}>" if person.name else address


def _boundary(message_id: str, kind: str = "") -> str:
    """The same in each attempt. No part can hold it: both encodings write "=_" in another way (RFC 2045, 6.7). None begins another."""
    return f"=_{f'{kind}_' if kind else ''}{sha256(message_id.encode()).hexdigest()[:32]}"


def _file(file: Attachment) -> bytes:
    kind = file.content_type if MEDIA_TYPE.fullmatch(file.content_type) else "application/octet-stream"
    identity = f"Content-ID: <{file.content_id}>\r\n" if file.content_id else ""
    return (f"Content-Type: {kind}\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n{identity}"
            f"Content-Disposition: {'inline' if identity else 'attachment'};\r\n {_filename(file.name)}\r\n\r\n"
            ).encode("ascii") + _base64(file.content)


def _base64(content: bytes) -> bytes:
    """In lines of 76 (RFC 2045, 6.8), without the end of the last."""
    encoded = b2a_base64(content, newline=False)
    return b"\r\n".join(encoded[at:at + _LINE_MAX] for at in range(0, max(1, len(encoded)), _LINE_MAX))


def _filename(name: str) -> str:
    """The parameter, on one line; not folded, as some readers then lose spaces."""
    name = file_name(name)
    # Many readers decode an encoded word here, too, which RFC 2047, 5 forbids, and stumble over \".
    if name.isascii() and "=?" not in name and '"' not in name:
        return f'filename="{name}"'
    return f"filename*=utf-8''{quote(name, safe='')}"


#: Possessive: a name that is never closed would else be tried at each of its lengths, which took minutes for 100 kB.
_TAG = re.compile(r"<(?:[!?][^<>]*+|(/?)([a-zA-Z][^\s/<>]*+)([^<>]*+))>")
_HREF = re.compile(r"""\bhref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
#: More digits than any character has, and than int() may take.
_NO_CHARACTER = re.compile(r"&#[0-9]{8,};?")


class _TextOf:
    """Collects what a person would read: no tags, scripts or styles; links keep their address."""

    _BREAKS = frozenset({"p", "div", "br", "tr", "li", "ul", "ol", "table", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "section",
                         "article", "header", "footer", "hr"})
    _HIDDEN = frozenset({"script", "style", "title", "template"})

    def __init__(self) -> None:
        self.found: list[str] = []
        self._hidden = ""  # the tag that has to be closed before there is text again
        self._links: list[str] = []

    def start(self, tag: str, attributes: str) -> None:
        if self._hidden or tag in self._HIDDEN:
            self._hidden = self._hidden or tag
            return
        if tag in self._BREAKS:
            self.found.append("\n- " if tag == "li" else "\n")
        if tag == "a":
            link = _HREF.search(attributes)
            self._links.append(unescape(next(filter(None, link.groups()), "")) if link else "")

    def end(self, tag: str) -> None:
        if self._hidden:
            self._hidden = "" if tag == self._hidden else self._hidden
            return
        if tag in self._BREAKS:
            self.found.append("\n")
        if tag == "a" and self._links and (link := self._links.pop()).startswith(("http:", "https:", "mailto:")):
            self.found.append(f" ({link})")

    def text(self, data: str) -> None:
        if data and not self._hidden:
            self.found.append(re.sub(r"\s+", " ", unescape(_NO_CHARACTER.sub("\ufffd", data))))


def plain_text(html: str) -> str:
    """Return what a reader without HTML should see of it.

    Whatever it holds, this takes time linear to its length and never raises. html.parser took over 20 s for a megabyte of "<a", and
    raises on "<![" and on "&#" before many digits.
    """
    first, *others = html.split("<!--")
    shown = first + "".join(other.partition("-->")[2] for other in others)
    reader, at = _TextOf(), 0
    for tag in _TAG.finditer(shown):
        reader.text(shown[at:tag.start()])
        at = tag.end()
        if tag[2]:
            name = tag[2].lower()
            reader.end(name) if tag[1] else reader.start(name, tag[3])
    reader.text(shown[at:])
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in "".join(reader.found).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
