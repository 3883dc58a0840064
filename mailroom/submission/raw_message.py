"""Reads a mail that comes in RFC 5322 bytes, from a program that wrote it itself.

The bytes are kept as they came, so that signatures, calendar methods and nested mails survive. Only these
fields of the header change: a Received line is put before them, and Bcc and those that steer us are left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.utils import format_datetime, getaddresses

from pydantic_core import PydanticCustomError

from mailroom.model.addresses import parse_address
from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.header import HeaderField, HeaderTooLong, breaks_off, split_header
from mailroom.model.message import Address, Attachment, Message, SendOptions
from mailroom.model.text import SUBJECT_MAX_CHARACTERS, one_line
from mailroom.submission.addresses import RECIPIENTS_MAX, parse_each
from mailroom.submission.message import MailSubmission
from mailroom.submission.steering import Steering, is_steering, read_steering

#: RFC 5322, 2.1.1; without the line end.
LINE_MAX_BYTES = 998
#: A mail that passed so many servers goes in circles (RFC 5321, 6.3).
HOPS_MAX = 50
#: Of a field with addresses: what is read of it to learn their names.
_NAMES_MAX_CHARACTERS = 65_536

#: Of a subject or a name: what is decoded, as the standard library takes quadratic time.
_DECODED_MAX_CHARACTERS = 2000
#: What the column of the database and a search in a Sent folder can hold.
_MESSAGE_ID = re.compile(r"<([!-;=?-~]{1,290})>")
#: Left out, as all recipients would see them.
_HIDDEN = frozenset({"bcc", "resent-bcc"})


@dataclass(frozen=True, kw_only=True)
class RawEnvelope:
    """The envelope with which a mail was handed in (RFC 5321, 2.3.1)."""

    #: none: those in To, Cc and Bcc
    recipients: Sequence[str] = ()
    #: "": none, so that nobody gets a bounce; None: the address in From
    sender: str | None = None
    #: whether the client said SMTPUTF8; None: the header shows whether it is needed
    smtputf8: bool | None = None
    received: str = ""  #: a Received line, as `received` makes it; "": none is added


@dataclass(frozen=True, kw_only=True)
class RawSubmission:
    """A mail that was read, and what its header said."""

    submission: MailSubmission
    authors: tuple[Address, ...]  #: the addresses in From
    message_id: str  #: without angle brackets; "" if it has none that can be stored
    idempotency_key: str  #: "" if the header has none

    @property
    def senders(self) -> tuple[Address, ...]:
        """Return the addresses that it says it is from: in From, and in its envelope."""
        sender = self.submission.message.sender
        has_sender = sender is not None and sender.address
        return (*self.authors, sender) if sender and has_sender else self.authors


def read_raw(mail: bytes, envelope: RawEnvelope) -> RawSubmission:
    """Read a mail whose lines end with CRLF.

    Raises:
      InvalidMessage: the mail or its envelope is wrong.
    """
    fields, rest = _split(mail)
    _refuse_circle(fields)
    steering = read_steering([field for field in fields if is_steering(field.name)])
    authors = _authors(fields)
    sender, people = _read_envelope(envelope, fields)
    if sender is None and authors:
        sender = authors[0]
    kept = [field for field in fields if not is_steering(field.name) and field.name not in _HIDDEN]
    content = _content(envelope.received, kept, rest)
    message = _message(content, kept, people, sender, steering, envelope.smtputf8)
    return RawSubmission(
        submission=MailSubmission(
            message=message, options=SendOptions(scheduled_at=steering.scheduled_at)
        ),
        authors=authors,
        message_id=_message_id(kept),
        idempotency_key=steering.idempotency_key,
    )


def received(*, by: str, protocol: str, id: str, source: str = "") -> str:
    """Return the line that says how the mail came here (RFC 5321, 4.4); `protocol` is as in RFC 3848.

    `source` names the client, as in "mx.example.org ([192.0.2.1])".
    """
    date = format_datetime(datetime.now(UTC))
    start = f"from {source}\r\n\tby" if source else "by"
    return f"Received: {start} {by} with {protocol} id {id};\r\n\t{date}\r\n"


def header_recipients(mail: bytes) -> list[str]:
    """Return the addresses in To, Cc and Bcc, as they stand there."""
    try:
        return _recipients_in(split_header(mail)[0])
    except HeaderTooLong:
        return []


def names_and_addresses(values: Sequence[str]) -> list[tuple[str, str]]:
    """Return the display names and addresses in fields of a header; [] if their comments nest too deep."""
    try:
        return getaddresses(list(values))
    except RecursionError:
        return []


def with_crlf(mail: bytes) -> bytes:
    """Return a file's mail with CRLF line ends, if all of its lines end with LF; else unchanged."""
    return mail if b"\r" in mail else mail.replace(b"\n", b"\r\n")


def _split(mail: bytes) -> tuple[list[HeaderField], bytes]:
    """Return the header fields and the rest. Raises InvalidMessage."""
    if problem := _line_problem(mail):
        raise InvalidMessage([FieldError("#", problem)])
    try:
        fields, rest = split_header(mail)
    except HeaderTooLong as e:
        raise InvalidMessage([FieldError("#", str(e))]) from None
    if breaks_off(mail, fields):
        # A Bcc after it would be a part of the text, and all recipients would see it.
        detail = "expected header fields up to an empty line, got a line that is none"
        raise InvalidMessage([FieldError("#", detail)])
    return fields, rest


def _line_problem(mail: bytes) -> str:
    """Say what is wrong with the lines; "" if nothing is.

    A bare CR or LF is taken for a line end by some servers and not by others, so that a dot after it could
    end the mail at one of them, and what follows be taken for commands (SMTP smuggling, CVE-2023-51764).
    """
    ends = mail.count(b"\r\n")
    if mail.count(b"\n") != ends or mail.count(b"\r") != ends:
        return "expected lines that end with CRLF, got a bare CR or LF"
    if b"\0" in mail:
        return "expected a mail without NUL, got one"
    if _has_long_line(mail):
        return (
            f"expected lines of at most {LINE_MAX_BYTES} bytes (RFC 5322, 2.1.1), got a longer one"
        )
    return ""


def _has_long_line(mail: bytes) -> bool:
    start = 0
    while start + LINE_MAX_BYTES < len(mail):
        end = mail.rfind(b"\r\n", start, start + LINE_MAX_BYTES + 2)
        if end < 0:
            return True
        start = end + 2
    return False


def _refuse_circle(fields: Sequence[HeaderField]) -> None:
    hops = sum(field.name == "received" for field in fields)
    if hops > HOPS_MAX:
        detail = (
            f"expected at most {HOPS_MAX} of these fields, got {hops}: the mail goes in circles"
        )
        raise InvalidMessage([FieldError("#/Received", detail)], code="mail_loop")


def _authors(fields: Sequence[HeaderField]) -> tuple[Address, ...]:
    """Return the addresses in From; () if it has none, and gets one of ours."""
    found = [field for field in fields if field.name == "from"]
    if not found:
        return ()
    if len(found) > 1:
        raise InvalidMessage([FieldError("#/From", f"expected it once, got it {len(found)} times")])
    value = found[0].value
    if len(value) > _NAMES_MAX_CHARACTERS:
        detail = f"expected at most {_NAMES_MAX_CHARACTERS} characters, got {len(value)}"
        raise InvalidMessage([FieldError("#/From", detail)])
    texts = [address for _, address in names_and_addresses([value])]
    try:
        authors = parse_each(texts)
    except PydanticCustomError:
        authors = []
    if not authors:
        detail = "expected an address as in `Bob <bob@example.org>`, got something else"
        raise InvalidMessage([FieldError("#/From", detail)])
    return tuple(authors)


def _read_envelope(
    envelope: RawEnvelope, fields: Sequence[HeaderField]
) -> tuple[Address | None, list[Address]]:
    """Return the sender and the recipients, each once."""
    errors: list[FieldError] = []
    people: dict[str, Address] = {}
    sender = None
    recipients = envelope.recipients or _recipients_in(fields)
    if not 1 <= len(recipients) <= RECIPIENTS_MAX:
        count = len(recipients)
        errors.append(FieldError("?to", f"expected 1 to {RECIPIENTS_MAX} addresses, got {count}"))
    for recipient in recipients[:RECIPIENTS_MAX]:
        try:
            address = parse_address(recipient).address
            people.setdefault(address, Address(address))
        except PydanticCustomError as e:
            errors.append(FieldError("?to", e.message()))
    try:
        sender = Address("") if envelope.sender == "" else _optional(envelope.sender)
    except PydanticCustomError as e:
        errors.append(FieldError("?from", e.message()))
    if errors:
        raise InvalidMessage(errors)
    return sender, list(people.values())


def _recipients_in(fields: Sequence[HeaderField]) -> list[str]:
    """Return the recipients that a header names."""
    values = [field.value for field in fields if field.name in ("to", "cc", "bcc")]
    short = [value for value in values if len(value) <= _NAMES_MAX_CHARACTERS]
    return [address for _, address in names_and_addresses(short) if address]


def _optional(text: str | None) -> Address | None:
    return None if text is None else Address(parse_address(text).address)


def _content(received: str, fields: Sequence[HeaderField], rest: bytes) -> bytes:
    """Return the mail as it goes out, but for the fields that it lacks."""
    lines = [field.lines for field in fields]
    if received:
        lines.insert(0, received.encode())
    if lines and not lines[-1].endswith(b"\r\n"):
        lines.append(b"\r\n")
    content = b"".join(lines) + rest
    return content if content.endswith(b"\r\n") else content + b"\r\n"


def _message(
    content: bytes,
    fields: Sequence[HeaderField],
    people: Sequence[Address],
    sender: Address | None,
    steering: Steering,
    says_smtputf8: bool | None,
) -> Message:
    to, cc = _named(fields, "to"), _named(fields, "cc")
    header = b"".join(field.lines for field in fields)
    is_utf8 = not header.isascii() and _is_utf8(header)
    visible = {"to": to, "cc": {address: name for address, name in cc.items() if address not in to}}
    groups = {
        kind: tuple(
            Address(one.address, names[one.address]) for one in people if one.address in names
        )
        for kind, names in visible.items()
    }
    return Message(
        to=groups["to"],
        cc=groups["cc"],
        bcc=tuple(one for one in people if one.address not in {*to, *cc}),
        sender=sender,
        subject=_subject(fields),
        tags=steering.tags,
        attachments=(Attachment("message.eml", "message/rfc822", content),),
        is_raw=True,
        smtputf8=is_utf8 and says_smtputf8 is not False,
    )


def _named(fields: Sequence[HeaderField], name: str) -> dict[str, str]:
    """Return the display names in the fields of this name, by address; what cannot be read is left out."""
    values = [field.value[:_NAMES_MAX_CHARACTERS] for field in fields if field.name == name]
    names: dict[str, str] = {}
    for display_name, text in names_and_addresses(values):
        try:
            names.setdefault(parse_address(text).address, _decoded(display_name)[:200])
        except PydanticCustomError:
            continue
    return names


def _subject(fields: Sequence[HeaderField]) -> str:
    """Return the first subject on one line, for lists and search."""
    values = [field.value for field in fields if field.name == "subject"]
    return _decoded(values[0])[:SUBJECT_MAX_CHARACTERS] if values else ""


def _decoded(value: str) -> str:
    """Return a value with its encoded words decoded (RFC 2047), as far as they can be."""
    if len(value) > _DECODED_MAX_CHARACTERS:
        # Ends before a space, as a part of an encoded word cannot be decoded.
        cut = value[:_DECODED_MAX_CHARACTERS]
        value = cut.rpartition(" ")[0] or cut
    try:
        decoded = str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, ValueError):
        decoded = value
    return one_line(decoded)


def _message_id(fields: Sequence[HeaderField]) -> str:
    values = [field.value for field in fields if field.name == "message-id"]
    match = _MESSAGE_ID.fullmatch(values[0]) if values else None
    return match[1] if match else ""


def _is_utf8(header: bytes) -> bool:
    try:
        header.decode()
    except UnicodeDecodeError:
        return False
    return True
