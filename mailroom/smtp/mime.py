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
from mailroom.model.media_types import OCTET_STREAM, MediaType, parse_media_type
from mailroom.model.message import STRUCTURED, Address, Attachment, Message, file_name
from mailroom.smtp.plaintext import plain_text

#: The longest line that has an encoded word in it (RFC 2047, 2).
_LINE_MAX = 76
#: Of a References field, so that a long thread's answers stay far below what servers take as a header.
_REFERENCES_MAX_CHARACTERS = 4000
#: Fields whose value is written for people: encoded words are decoded there (RFC 2047, 5).
_FOR_PEOPLE = frozenset({"comments", "keywords", "organization"})
#: Folds headers; the rest is written by hand, as `EmailMessage` takes ten times as long for the same bytes.
_WIRE = policy.compat32.clone(linesep="\r\n", max_line_length=_LINE_MAX)


def compose(claim: Claim, *, sender: Address) -> bytes:
    """Return the mail with CRLF line ends, every line at most 998 bytes; an attempt that is repeated gives the same bytes.

    What the mail tells of its job is filled in already.
    """
    job = claim.job
    message = claim.message
    text, html = both_forms(message)
    files = [*message.attachments, *([job.file] if job and job.file and job.status == "succeeded" else [])]
    shown = [file for file in files if file.content_id]
    attached = [file for file in files if not file.content_id]
    boundary = _boundary(claim.message_id)
    head, body = (
        _multipart("alternative", boundary),
        _joined([_part("plain", text), _part("html", html)], boundary),
    )
    for kind, inside in (("related", shown), ("mixed", attached)):
        if inside:
            boundary = _boundary(claim.message_id, kind)
            head, body = (
                _multipart(kind, boundary),
                _joined([head + b"\r\n" + body, *map(_file, inside)], boundary),
            )
    return head + b"".join(_headers(claim, message, sender)) + b"\r\n" + body


def _headers(claim: Claim, message: Message, sender: Address) -> Iterator[bytes]:
    yield _people("From", [message.sender or sender])
    for name, people in (("To", message.to), ("Cc", message.cc), ("Reply-To", message.reply_to)):
        if people:
            yield _people(name, people)
    yield _header("Subject", _text(message.subject, "Subject"))
    yield _header("Date", _date((claim.first_attempt_at_ms or claim.created_at_ms) // 1000))
    yield _unfolded("Message-ID", f"<{claim.message_id}>", spaces=False)
    if message.unsubscribe:
        yield _unfolded("List-Unsubscribe", f"<{message.unsubscribe}>")
        yield _unfolded("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")
    for name, value in message.headers:
        yield _custom(name, value)


def _custom(name: str, value: str) -> bytes:
    """Write a field that the client set: as it is where that can be read, else in encoded words."""
    if name.lower() == "references":
        return _folded(name, _shortened(value))
    if STRUCTURED.fullmatch(name):
        return _unfolded(name, value)
    is_plain = value.isascii() and value.isprintable() and "=?" not in value
    if is_plain and name.lower() not in _FOR_PEOPLE:
        return _folded(name, value)
    return _header(name, _text(value, name))


def _folded(name: str, value: str) -> bytes:
    """Fold printable ASCII before its spaces and nowhere else, so that programs read back what was set.

    Raises:
      ValueError: it holds another character.
    """
    if not value.isascii() or not value.isprintable():
        raise ValueError("expected a header of printable ASCII")
    lines = [f"{name}:"]
    for word in re.findall(r" +[^ ]+", f" {value}"):
        if len(lines[-1]) + len(word) > _LINE_MAX and lines[-1] != f"{name}:":
            lines.append("")
        lines[-1] += word
    return "\r\n".join(lines).encode("ascii") + b"\r\n"


def _shortened(references: str) -> str:
    """Return the ids of a thread, without some of the middle where they are too many (RFC 5322, 3.6.4).

    The first says which thread it is; the last are those that a reader still has.
    """
    first, *ids = references.split(" ")
    room = _REFERENCES_MAX_CHARACTERS - len(first)
    kept: list[str] = []
    for id in reversed(ids):
        room -= len(id) + 1
        if room < 0:
            break
        kept.append(id)
    return " ".join([first, *reversed(kept)])


@lru_cache(maxsize=128)
def _date(seconds: int) -> str:
    """Mails that were accepted together have it in common."""
    return format_datetime(datetime.fromtimestamp(seconds, UTC))


def _header(name: str, value: str | Header) -> bytes:
    """Folded where it does not fit on one line."""
    if (
        isinstance(value, str)
        and value.isascii()
        and value.isprintable()
        and len(name) + 2 + len(value) <= _LINE_MAX
    ):
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
    return text, _as_html(text)


def _as_html(text: str) -> str:
    """Return HTML that shows the text as it stands, also in Outlook, which knows no `white-space: pre-wrap`.

    `dir="auto"` lets a text in Hebrew or Arabic begin at the right.
    """
    lines = (
        escape(text, quote=False).replace("\r\n", "\n").replace("\r", "\n").replace("\t", " " * 8).split("\n")
    )
    shown = "<br>\n".join(map(_keep_spaces, lines))
    return f'<div dir="auto">{shown}</div>'


def _keep_spaces(line: str) -> str:
    """Make those spaces non-breaking that HTML would take away: at the ends, and all but the last of several."""
    return re.sub(r"^ +| +$| +(?= )", lambda spaces: "&nbsp;" * len(spaces[0]), line)


def _multipart(kind: str, boundary: str) -> bytes:
    """The header of a mail with these parts (RFC 2046, 5.1)."""
    return f'Content-Type: multipart/{kind};\r\n boundary="{boundary}"\r\nMIME-Version: 1.0\r\n'.encode()


def _joined(parts: Sequence[bytes], boundary: str) -> bytes:
    between = f"--{boundary}\r\n".encode()
    return (
        b"".join(found for part in parts for found in (between, part, b"\r\n"))
        + f"--{boundary}--\r\n".encode()
    )


def _part(subtype: str, content: str) -> bytes:
    lines = content.replace("\r\n", "\n").replace("\r", "\n").encode()
    # Base64 where most of it is not ASCII; quoted-printable stays readable, and keeps lines under RFC 5322's 998.
    is_readable = len(content.encode()) < 1.2 * len(content)
    body = (
        _quoted_printable(lines).replace(b"\n", b"\r\n")
        if is_readable
        else _base64(lines.replace(b"\n", b"\r\n"))
    )
    return (
        f'Content-Type: text/{subtype}; charset="utf-8"\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: '
        f"{'quoted-printable' if is_readable else 'base64'}\r\n\r\n"
    ).encode() + body


def _quoted_printable(text: bytes) -> bytes:
    """Encode text whose lines end with LF; no line of it begins with "From ", before which mailboxes put a ">"."""
    encoded = b2a_qp(text, istext=True)
    if b"From " not in encoded:
        return encoded
    return b"\n".join(map(_without_from, encoded.split(b"\n")))


def _without_from(line: bytes) -> bytes:
    """Encode the F of "From " at its beginning, in lines of at most 76 bytes (RFC 2045, 6.7; RFC 2049, 3)."""
    if not line.startswith(b"From "):
        return line
    if len(line) <= _LINE_MAX - 2:
        return b"=46" + line[1:]
    return b"=46rom=20=\n" + _without_from(line[5:])


def _text(value: str, name: str) -> str | Header:
    # A first word that does not fit beside the name would go to the next line, and readers would see a space before it.
    fits = len(name) + 2 + len(value.partition(" ")[0]) <= _LINE_MAX
    if fits and _survives(value):
        return value
    return Header(value, "utf-8", header_name=name)


def _people(name: str, people: Sequence[Address]) -> bytes:
    if all(person.is_ascii and " " not in person.address for person in people):
        return _header(name, ", ".join(_written(person) for person in people))
    # Bytes that are no ASCII go out as they are (RFC 6532), and a quoted address is not folded at its spaces.
    listed = ",\r\n ".join(_written(person, linesep="\r\n") for person in people)
    return f"{name}: {listed}\r\n".encode("ascii", "surrogateescape")


def _survives(text: str) -> bool:
    """Tell whether a reader gets back every character of it as it stands, folded and unfolded on the way."""
    return (
        text.isascii()
        and "=?" not in text
        and "  " not in text
        and text == text.strip()
        and all(len(word) < 70 for word in text.split(" "))
    )


def _written(person: Address, *, linesep: str = "") -> str:
    address = person.address.encode().decode("ascii", "surrogateescape")
    if not person.name or (_survives(person.name) and person.is_ascii):
        return formataddr((person.name, address)) if person.is_ascii else address
    # In words of at most 75 characters (RFC 2047, 2), which formataddr does not do.
    words = Header(person.name, "utf-8", header_name="Reply-To" if linesep else None)
    return f"{words.encode(linesep=linesep, maxlinelen=_LINE_MAX - 1)} <{address}>"


def _boundary(message_id: str, kind: str = "") -> str:
    """Return a boundary that is the same in each attempt.

    No part can hold it: both encodings write "=_" in another way (RFC 2045, 6.7). None begins another.
    """
    return f"=_{f'{kind}_' if kind else ''}{sha256(message_id.encode()).hexdigest()[:32]}"


def _file(file: Attachment) -> bytes:
    name = file_name(file.name)
    kind = parse_media_type(file.content_type) or MediaType(OCTET_STREAM)
    identity = f"Content-ID: <{file.content_id}>\r\n" if file.content_id else ""
    disposition = "inline" if identity else "attachment"
    full_type = ";\r\n ".join([kind.name, *kind.parameters, *_encoded_name(name)])
    head = (
        f"Content-Type: {full_type}\r\n"
        f"MIME-Version: 1.0\r\nContent-Transfer-Encoding: base64\r\n{identity}"
        f"Content-Disposition: {disposition};\r\n {_filename(name)}\r\n\r\n"
    )
    return head.encode("ascii") + _base64(file.content)


def _encoded_name(name: str) -> list[str]:
    """The name once more for readers that know no `filename*` (Outlook, QQ, many webmails), as a parameter of Content-Type.

    RFC 2047, 5 forbids encoded words there; all the same it is what these programs write and read.
    """
    if _is_plain_name(name):
        return []
    words = Header(name, "utf-8").encode(linesep="\r\n", maxlinelen=_LINE_MAX - len(' name=""'))
    return [f'name="{words}"']


def _base64(content: bytes) -> bytes:
    """In lines of 76 (RFC 2045, 6.8), without the end of the last."""
    encoded = b2a_base64(content, newline=False)
    return b"\r\n".join(encoded[at : at + _LINE_MAX] for at in range(0, max(1, len(encoded)), _LINE_MAX))


def _filename(name: str) -> str:
    """The parameter, on one line; not folded, as some readers then lose spaces."""
    return f'filename="{name}"' if _is_plain_name(name) else f"filename*=utf-8''{quote(name, safe='')}"


def _is_plain_name(name: str) -> bool:
    """Tell whether every reader takes it between quotes: many decode an encoded word there, too, and stumble over \\"."""
    return name.isascii() and "=?" not in name and '"' not in name
