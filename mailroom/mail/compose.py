"""Writes a mail down as RFC 5322 bytes. Nothing in a message is read as a path, a URL or a header."""

import re
from binascii import b2a_base64
from datetime import UTC, datetime
from email import policy
from email.charset import BASE64, QP, Charset
from email.header import Header
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from email.utils import format_datetime, formataddr
from hashlib import sha256
from html import escape, unescape
from typing import Any, NamedTuple
from urllib.parse import quote

from mailroom.mail.message import Address, Attachment, Claim, Message, file_name
from mailroom.mail.template import fill

#: The longest line that has an encoded word in it (RFC 2047, 2).
_LINE_MAX = 76
#: The classic generator with CRLF: `EmailMessage` takes 3.5 times as long for the same bytes.
_WIRE = policy.compat32.clone(linesep="\r\n", max_line_length=_LINE_MAX)

#: Type and subtype in the characters of RFC 6838, 4.2, no parameters. A message or a multipart may not be in base64 (RFC 2045, 6.4).
_MEDIA_TYPE = re.compile(r"(?!message/|multipart/)[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}", re.IGNORECASE)


def compose(claim: Claim, *, sender: Address) -> bytes:
    """Return the mail with CRLF line ends, every line at most 998 bytes; an attempt that is repeated gives the same bytes."""
    job = claim.job
    message = fill(claim.message, job) if job and claim.message.template else claim.message
    text, html = both_forms(message)
    body = mail = MIMEMultipart("alternative", boundary=_boundary(claim.message_id))
    file = job.file if job and job.status == "succeeded" else None
    if file:
        mail = MIMEMultipart("mixed", boundary=_outer(body), _subparts=[body])
    mail["From"] = _written(sender)
    mail["To"] = ", ".join(_written(to) for to in message.to)
    mail["Subject"] = _subject(message.subject)
    mail["Date"] = format_datetime(datetime.fromtimestamp(claim.created_at_ms / 1000, UTC))
    mail["Message-ID"] = _on_one_line(f"<{claim.message_id}>")
    body.attach(_part("plain", text))
    body.attach(_part("html", html))
    data = mail.as_bytes(policy=_WIRE)
    return _with_file(data, file, _outer(body)) if file else data


def both_forms(message: Message) -> tuple[str, str]:
    """Return (text, html), making the one that was not given: text is escaped into HTML, HTML loses its tags."""
    text = plain_text(message.html or "") if message.text is None else message.text
    if message.html is not None:
        return text, message.html
    return text, f'<div style="white-space: pre-wrap">{escape(text, quote=False)}</div>'


def _part(subtype: str, content: str) -> MIMENonMultipart:
    part = MIMENonMultipart("text", subtype)
    charset = Charset("utf-8")
    # Base64 where most of it is not ASCII; quoted-printable stays readable, and keeps lines under RFC 5322's 998.
    charset.body_encoding = QP if len(content.encode()) < 1.2 * len(content) else BASE64
    lines = content.replace("\r\n", "\n").replace("\r", "\n")
    part.set_payload(lines if charset.body_encoding == QP else lines.replace("\n", "\r\n"), charset)
    return part


def _on_one_line(value: str) -> Any:  # as _subject
    return _Unfolded(value)


class _Unfolded(NamedTuple):
    """A header that is not folded, as some readers then lose the Message-ID."""

    value: str

    def encode(self, **how: object) -> str:
        if not re.fullmatch(r"[!-~]+", self.value):
            raise ValueError("expected a header of printable ASCII without spaces")
        return self.value


def _subject(subject: str) -> Any:  # a Header, which the stubs forget may be assigned
    return Header(subject, "us-ascii" if _survives(subject) else "utf-8", header_name="Subject")


def _survives(text: str) -> bool:
    """Whether a reader gets back every character of it as it stands, folded and unfolded on the way."""
    return text.isascii() and "=?" not in text and "  " not in text and text == text.strip() \
        and all(len(word) < 70 for word in text.split(" "))


def _written(address: Address) -> str:
    if _survives(address.name):
        return formataddr((address.name, address.address))
    # In words of at most 75 characters (RFC 2047, 2), which formataddr does not do.
    return f"{Header(address.name, 'utf-8').encode(linesep='', maxlinelen=_LINE_MAX - 1)} <{address.address}>"


def _boundary(message_id: str) -> str:
    """The same in each attempt. No part can hold it: both encodings write "=_" in another way (RFC 2045, 6.7)."""
    return f"=_{sha256(message_id.encode()).hexdigest()[:32]}"


def _outer(body: MIMEMultipart) -> str:
    """The boundary around the one of the body, and no beginning of it."""
    return f"=_file_{str(body.get_boundary())[2:]}"


def _with_file(data: bytes, file: Attachment, boundary: str) -> bytes:
    """Put the file before the end of `data`; the generator takes four times as long."""
    kind = file.content_type if _MEDIA_TYPE.fullmatch(file.content_type) else "application/octet-stream"
    encoded = b2a_base64(file.content, newline=False)
    lines = [encoded[at:at + _LINE_MAX] for at in range(0, max(1, len(encoded)), _LINE_MAX)]
    end = f"--{boundary}--\r\n".encode()
    head = f"--{boundary}\r\nContent-Type: {kind}\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n" \
           f"Content-Disposition: attachment;\r\n {_filename(file.name)}\r\n"
    return b"\r\n".join([data.removesuffix(end) + head.encode("ascii"), *lines, end])


def _filename(name: str) -> str:
    """The parameter, on one line; not folded, as some readers then lose spaces."""
    name = file_name(name)
    # Many readers decode an encoded word here, too, which RFC 2047, 5 forbids, and stumble over \".
    if name.isascii() and "=?" not in name and '"' not in name:
        return f'filename="{name}"'
    return f"filename*=utf-8''{quote(name, safe='')}"


_TAG = re.compile(r"<(?:[!?][^<>]*|(/?)([a-zA-Z][^\s/<>]*)([^<>]*))>")
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
