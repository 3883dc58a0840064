"""Writes a mail down as RFC 5322 bytes. Nothing in a message is read as a path, a URL or a header."""

import re
from datetime import UTC, datetime
from email import policy
from email.charset import BASE64, QP, Charset
from email.header import Header
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from email.utils import format_datetime, formataddr
from html import escape
from html.parser import HTMLParser
from typing import Any

from mailroom.mail.message import Address, Claim, Message

#: The classic generator with CRLF: `EmailMessage` takes 3.5 times as long for the same bytes.
_WIRE = policy.compat32.clone(linesep="\r\n")


def compose(claim: Claim, *, sender: Address) -> bytes:
    """Return the mail with CRLF line ends, every line at most 998 bytes; an attempt that is repeated gives the same bytes."""
    text, html = both_forms(claim.message)
    mail = MIMEMultipart("alternative", boundary=_boundary(claim.id, text + html))
    mail["From"] = _written(sender)
    mail["To"] = ", ".join(_written(to) for to in claim.message.to)
    mail["Subject"] = _subject(claim.message.subject)
    mail["Date"] = format_datetime(datetime.fromtimestamp(claim.created_at_ms / 1000, UTC))
    mail["Message-ID"] = f"<{claim.message_id}>"
    mail.attach(_part("plain", text))
    mail.attach(_part("html", html))
    return mail.as_bytes(policy=_WIRE)


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


def _subject(subject: str) -> Any:  # a Header, which the stubs forget may be assigned
    """The subject so that a reader gets back every character: encoded where folding it as it stands could change it."""
    as_it_stands = subject.isascii() and "=?" not in subject and "  " not in subject and subject == subject.strip() \
        and all(len(word) < 70 for word in subject.split(" "))
    return Header(subject, "us-ascii" if as_it_stands else "utf-8", header_name="Subject")


def _written(address: Address) -> str:
    return formataddr((address.name, address.address))


def _boundary(id: str, content: str) -> str:
    """A line that the content does not hold; made from the id, so that each attempt writes the same bytes."""
    boundary = f"=_{id}"
    while boundary in content:
        boundary += "_"
    return boundary


class _TextOf(HTMLParser):
    """Collects what a person would read: no tags, scripts or styles; links keep their address."""

    _BREAKS = frozenset({"p", "div", "br", "tr", "li", "ul", "ol", "table", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "section",
                         "article", "header", "footer", "hr"})
    _HIDDEN = frozenset({"script", "style", "head", "title", "template"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._hidden = 0
        self._links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in self._HIDDEN
        if tag in self._BREAKS:
            self.found.append("\n- " if tag == "li" else "\n")
        if tag == "a":
            self._links.append(dict(attrs).get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in self._HIDDEN))
        if tag in self._BREAKS:
            self.found.append("\n")
        if tag == "a" and self._links and (link := self._links.pop()).startswith(("http:", "https:", "mailto:")):
            self.found.append(f" ({link})")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.found.append(re.sub(r"\s+", " ", data))


def plain_text(html: str) -> str:
    """Return what a reader without HTML should see of it."""
    parser = _TextOf()
    parser.feed(html)
    parser.close()
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in "".join(parser.found).split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
