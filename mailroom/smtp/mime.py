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
from html import escape
from urllib.parse import quote

from mailroom.model.attempt import Claim
from mailroom.model.header import split_header
from mailroom.model.media_types import OCTET_STREAM, MediaType, parse_media_type
from mailroom.model.message import STRUCTURED, Address, Attachment, Message, file_name
from mailroom.smtp.plaintext import plain_text

#: Length limit of a line with an encoded word in it (RFC 2047, 2).
_LINE_MAX = 76
#: Length limit of References; without it, the header of a long thread gets longer than servers take.
_REFERENCES_MAX_CHARACTERS = 4000
#: Fields whose value people read, so that mail programs decode encoded words in them (RFC 2047, 5).
_FOR_PEOPLE = frozenset({"comments", "keywords", "organization"})
_ALL_BUT_THE_LAST = re.compile(r" +(?= )")
#: Folds headers; the rest is written by hand, as `EmailMessage` takes ten times as long for the same bytes.
_WIRE = policy.compat32.clone(linesep="\r\n", max_line_length=_LINE_MAX)


def compose(claim: Claim, *, sender: Address) -> bytes:
    """Return the mail with CRLF line ends, every line at most 998 bytes; a later attempt gets the same bytes.

    The text is ready to be sent: templates of the message have been filled in before.
    """
    message = claim.message
    if message.is_raw:
        return _completed(claim, message, sender)
    text, html = both_forms(message)
    files = _files(claim)
    boundary = _boundary(claim.message_id)
    head = _multipart("alternative", boundary)
    parts = [
        _text_part("plain", text),
        _text_part("html", html),
    ]
    body = _join(parts, boundary)
    inline = [file for file in files if file.content_id]
    attached = [file for file in files if not file.content_id]
    for kind, members in (("related", inline), ("mixed", attached)):
        if members:
            boundary = _boundary(claim.message_id, kind)
            first = head + b"\r\n" + body
            parts = [first, *map(_file_part, members)]
            body = _join(parts, boundary)
            head = _multipart(kind, boundary)
    headers = b"".join(_headers(claim, message, sender))
    return head + headers + b"\r\n" + body


def _completed(claim: Claim, message: Message, sender: Address) -> bytes:
    """Return a mail that came in bytes, with those fields added that it needs and lacks (RFC 6409, 8)."""
    fields, rest = split_header(message.raw, most=0)
    names = {field.name for field in fields}
    lines = [field.lines for field in fields]
    if "from" not in names:
        author = message.sender if message.sender and message.sender.address else sender
        lines.append(_people("From", [author]))
    if "date" not in names:
        lines.append(_date_field(claim))
    if "message-id" not in names:
        lines.append(_message_id_field(claim))
    return b"".join(lines) + rest


def _files(claim: Claim) -> list[Attachment]:
    """Return the files that the mail carries: those of the message, and the one that its job made."""
    job = claim.job
    files = [*claim.message.attachments]
    if job and job.file and job.status == "succeeded":
        files.append(job.file)
    return files


def _headers(claim: Claim, message: Message, sender: Address) -> Iterator[bytes]:
    yield _people("From", [message.sender or sender])
    recipients = {
        "To": message.to,
        "Cc": message.cc,
        "Reply-To": message.reply_to,
    }
    for name, people in recipients.items():
        if people:
            yield _people(name, people)
    subject = _text(message.subject, "Subject")
    yield _header("Subject", subject)
    yield _date_field(claim)
    yield _message_id_field(claim)
    if message.unsubscribe:
        yield _unfolded("List-Unsubscribe", f"<{message.unsubscribe}>")
        yield _unfolded("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
    for name, value in message.headers:
        yield _custom(name, value)


def _date_field(claim: Claim) -> bytes:
    date_ms = claim.first_attempt_at_ms or claim.created_at_ms
    return _header("Date", _date(date_ms // 1000))


def _message_id_field(claim: Claim) -> bytes:
    return _unfolded("Message-ID", f"<{claim.message_id}>", spaces=False)


def _custom(name: str, value: str) -> bytes:
    """Write a field that the client set, unchanged if every reader can read it, else in encoded words."""
    if name.lower() == "references":
        return _folded(name, _shortened(value))
    if STRUCTURED.fullmatch(name):
        return _unfolded(name, value)
    is_plain = value.isascii() and value.isprintable() and "=?" not in value
    if is_plain and name.lower() not in _FOR_PEOPLE:
        return _folded(name, value)
    return _header(name, _text(value, name))


def _folded(name: str, value: str) -> bytes:
    """Fold printable ASCII at its spaces and nowhere else, so that programs read back what was set.

    Raises:
      ValueError: the value has another character.
    """
    if not value.isascii() or not value.isprintable():
        raise ValueError("expected a header of printable ASCII")
    start = f"{name}:"
    lines = [start]
    for word in re.findall(r" +[^ ]+", f" {value}"):
        is_full = len(lines[-1]) + len(word) > _LINE_MAX
        if is_full and lines[-1] != start:
            lines.append("")
        lines[-1] += word
    folded = "\r\n".join(lines)
    return folded.encode("ascii") + b"\r\n"


def _shortened(references: str) -> str:
    """Return the ids of a thread, without some in the middle if they are too many (RFC 5322, 3.6.4).

    The first says which thread it is; the last ones are mails that the reader still has.
    """
    first, *ids = references.split(" ")
    characters_left = _REFERENCES_MAX_CHARACTERS - len(first)
    kept: list[str] = []
    for id in reversed(ids):
        characters_left -= len(id) + 1
        if characters_left < 0:
            break
        kept.append(id)
    return " ".join([first, *reversed(kept)])


@lru_cache(maxsize=128)
def _date(seconds: int) -> str:
    """Write a Date; cached, as mails that were accepted together have the same."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return format_datetime(moment)


def _header(name: str, value: str | Header) -> bytes:
    """Write a field, folded if it does not fit on one line."""
    if isinstance(value, str) and _fits_as_it_is(name, value):
        return f"{name}: {value}\r\n".encode("ascii")  # A Header would take 20 µs to find that out.
    return _WIRE.fold_binary(name, value)  # type: ignore[arg-type]  # which takes a Header, too


def _fits_as_it_is(name: str, value: str) -> bool:
    length = len(name) + len(": ") + len(value)
    return length <= _LINE_MAX and value.isascii() and value.isprintable()


def _unfolded(name: str, value: str, *, spaces: bool = True) -> bytes:
    """Write a field on one line, however long: some readers lose a folded Message-ID."""
    if spaces and not re.fullmatch(r"[!-~]+( +[!-~]+)*", value):
        raise ValueError("expected a header of printable ASCII")
    if not spaces and not re.fullmatch(r"[!-~]+", value):
        raise ValueError("expected a header of printable ASCII without spaces")
    return f"{name}: {value}\r\n".encode("ascii")


def both_forms(message: Message) -> tuple[str, str]:
    """Return (text, html); one that is missing is made from the other, by escaping or by removing tags."""
    text = message.text
    if text is None:
        text = plain_text(message.html or "")
    html = message.html
    if html is None:
        html = _as_html(text)
    return text, html


def _as_html(text: str) -> str:
    """Return HTML that keeps lines and spaces, without `white-space: pre-wrap`, which Outlook does not know.

    `dir="auto"` lets a text in Hebrew or Arabic begin at the right.
    """
    escaped = escape(text, quote=False)
    unix = escaped.replace("\r\n", "\n").replace("\r", "\n")
    expanded = unix.replace("\t", " " * 8)
    lines = map(_keep_spaces, expanded.split("\n"))
    body = "<br>\n".join(lines)
    return f'<div dir="auto">{body}</div>'


def _keep_spaces(line: str) -> str:
    """Make spaces non-breaking that HTML would drop: at both ends, and all but the last of several."""
    inner = line.strip(" ")
    start = len(line) - len(line.lstrip(" "))
    end = len(line) - start - len(inner)
    if "  " in inner:  # Asked first, as the search takes as long as the rest of a mail.
        inner = _ALL_BUT_THE_LAST.sub(lambda spaces: "&nbsp;" * len(spaces[0]), inner)
    return "&nbsp;" * start + inner + "&nbsp;" * end


def _multipart(kind: str, boundary: str) -> bytes:
    """Write the header of a mail or part that has parts itself (RFC 2046, 5.1)."""
    return f'Content-Type: multipart/{kind};\r\n boundary="{boundary}"\r\nMIME-Version: 1.0\r\n'.encode()


def _join(parts: Sequence[bytes], boundary: str) -> bytes:
    delimiter = f"--{boundary}\r\n".encode()
    end = f"--{boundary}--\r\n".encode()
    delimited = b"".join(delimiter + part + b"\r\n" for part in parts)
    return delimited + end


def _text_part(subtype: str, content: str) -> bytes:
    lines = content.replace("\r\n", "\n").replace("\r", "\n").encode()
    # Quoted-printable stays readable, and keeps lines under RFC 5322's 998; base64 is for text that is hardly
    # ASCII.
    if len(content.encode()) < 1.2 * len(content):
        encoding = "quoted-printable"
        body = _quoted_printable(lines)
        body = body.replace(b"\n", b"\r\n")
    else:
        encoding = "base64"
        body = _base64(lines.replace(b"\n", b"\r\n"))
    head = (
        f'Content-Type: text/{subtype}; charset="utf-8"\r\n'
        f"MIME-Version: 1.0\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    )
    return head.encode() + body


def _quoted_printable(text: bytes) -> bytes:
    """Encode text whose lines end with LF; none begins with "From ", before which mailboxes put a ">"."""
    encoded = b2a_qp(text, istext=True)
    if b"From " not in encoded:
        return encoded
    lines = encoded.split(b"\n")
    return b"\n".join(map(_without_from, lines))


def _without_from(line: bytes) -> bytes:
    """Encode the F of a leading "From ", in lines of at most 76 bytes (RFC 2045, 6.7; RFC 2049, 3)."""
    if not line.startswith(b"From "):
        return line
    if len(line) <= _LINE_MAX - 2:
        return b"=46" + line[1:]
    rest = line[5:]
    return b"=46rom=20=\n" + _without_from(rest)


def _text(value: str, name: str) -> str | Header:
    # A first word that does not fit beside the name would go to the next line, and get a space before it.
    first_word = value.partition(" ")[0]
    fits = len(name) + 2 + len(first_word) <= _LINE_MAX
    if fits and _survives(value):
        return value
    return Header(value, "utf-8", header_name=name)


def _people(name: str, people: Sequence[Address]) -> bytes:
    if all(map(_is_foldable, people)):
        mailboxes = ", ".join(map(_mailbox, people))
        return _header(name, mailboxes)
    # Bytes beyond ASCII go out unencoded (RFC 6532), and a quoted address is not folded at its spaces.
    mailboxes = ",\r\n ".join(_mailbox(person, linesep="\r\n") for person in people)
    return f"{name}: {mailboxes}\r\n".encode("ascii", "surrogateescape")


def _is_foldable(person: Address) -> bool:
    return person.is_ascii and " " not in person.address


def _survives(text: str) -> bool:
    """Tell whether readers get every character back after the text was folded and unfolded on the way."""
    return (
        text.isascii()
        and "=?" not in text
        and "  " not in text
        and text == text.strip()
        and all(len(word) < 70 for word in text.split(" "))
    )


def _mailbox(person: Address, *, linesep: str = "") -> str:
    """Write name and address (RFC 5322, 3.4)."""
    address = person.address.encode().decode("ascii", "surrogateescape")
    if not person.name and not person.is_ascii:
        return address
    if person.is_ascii and (not person.name or _survives(person.name)):
        return formataddr((person.name, address))
    header_name = "Reply-To" if linesep else None
    # Encoded words have at most 75 characters (RFC 2047, 2); formataddr makes longer ones.
    header = Header(person.name, "utf-8", header_name=header_name)
    words = header.encode(linesep=linesep, maxlinelen=_LINE_MAX - 1)
    return f"{words} <{address}>"


def _boundary(message_id: str, kind: str = "") -> str:
    """Return a boundary, the same in each attempt.

    No part can contain it: both encodings write "=_" in another way (RFC 2045, 6.7). No boundary begins with
    another one.
    """
    prefix = f"{kind}_" if kind else ""
    digest = sha256(message_id.encode()).hexdigest()
    return f"=_{prefix}{digest[:32]}"


def _file_part(file: Attachment) -> bytes:
    name = file_name(file.name)
    kind = parse_media_type(file.content_type) or MediaType(OCTET_STREAM)
    identity = ""
    disposition = "attachment"
    if file.content_id:
        identity = f"Content-ID: <{file.content_id}>\r\n"
        disposition = "inline"
    full_type = ";\r\n ".join([kind.name, *kind.parameters, *_encoded_name(name)])
    head = (
        f"Content-Type: {full_type}\r\n"
        f"MIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n{identity}"
        f"Content-Disposition: {disposition};\r\n {_filename(name)}\r\n\r\n"
    )
    return head.encode("ascii") + _base64(file.content)


def _encoded_name(name: str) -> list[str]:
    """Return the name as a parameter of Content-Type, for readers that know no `filename*`.

    Those are Outlook, QQ, and many webmails. RFC 2047, 5 forbids encoded words here, but these programs write
    and read them.
    """
    if _is_plain_name(name):
        return []
    header = Header(name, "utf-8")
    length = _LINE_MAX - len(' name=""')
    words = header.encode(linesep="\r\n", maxlinelen=length)
    return [f'name="{words}"']


def _base64(content: bytes) -> bytes:
    """Encode in lines of 76 characters (RFC 2045, 6.8), without a line end after the last."""
    encoded = b2a_base64(content, newline=False)
    starts = range(0, max(1, len(encoded)), _LINE_MAX)
    lines = [encoded[start : start + _LINE_MAX] for start in starts]
    return b"\r\n".join(lines)


def _filename(name: str) -> str:
    """Return the parameter on one line: some readers lose spaces when it is folded."""
    if _is_plain_name(name):
        return f'filename="{name}"'
    return f"filename*=utf-8''{quote(name, safe='')}"


def _is_plain_name(name: str) -> bool:
    """Tell whether all readers take the name in quotes: no encoded word, which many decode, no \\"."""
    return name.isascii() and "=?" not in name and '"' not in name
