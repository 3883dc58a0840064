"""A mail: the message that a client submitted, and its state."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from mailroom.model.text import CONTROL_CHARACTERS


class State(StrEnum):
    """The state of a message; SENT and those after it are final.

    A recipient is QUEUED, DEFERRED, SENT, FAILED, UNCERTAIN, BOUNCED or COMPLAINED.
    """

    WAITING = "waiting"  #: for its job to end
    SCHEDULED = "scheduled"  #: for `next_attempt_at`, which the client chose
    QUEUED = "queued"  #: for a worker
    SENDING = "sending"  #: a worker has claimed it; the next hop cannot have all of it yet
    IN_DATA = "in_data"  #: past the fence: the payload may be on the wire
    DEFERRED = "deferred"  #: the next hop said 4xx, or could not be reached; tried again at `next_attempt_at`
    HELD = "held"  #: until a person releases it
    SENT = "sent"  #: the next hop took it for at least one recipient, and answered for all
    FAILED = "failed"  #: the next hop refused it for good, or its job failed, or it could not be accepted
    #: The payload was sent without a reply, and not again: ON_UNCERTAIN=hold, or no attempt is left.
    UNCERTAIN = "uncertain"
    CANCELED = "canceled"  #: the client canceled it in time
    EXPIRED = "expired"  #: its `expires_at` came before it could be sent
    SUPPRESSED = "suppressed"  #: its recipients want no more mail
    BOUNCED = "bounced"  #: it was sent, and came back from all whom the next hop took it for
    COMPLAINED = "complained"  #: it was sent, and called spam by all who have it


FINAL = frozenset(
    {
        State.SENT,
        State.FAILED,
        State.UNCERTAIN,
        State.CANCELED,
        State.EXPIRED,
        State.SUPPRESSED,
        State.BOUNCED,
        State.COMPLAINED,
    }
)


#: The limit of file systems (NAME_MAX).
_FILE_NAME_MAX_BYTES = 255
#: Control characters, lone surrogates, and direction marks, which make "gpj.exe" look like "exe.jpg".
_NOT_IN_NAMES = re.compile(
    f"[{CONTROL_CHARACTERS}\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


#: Header fields with a grammar in which no word may be encoded (RFC 2047, 5).
STRUCTURED = re.compile(
    r"list-.*|in-reply-to|references|auto-submitted|precedence|priority|importance|sensitivity",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Address:
    """A mail address with a display name; the domain of `address` is in ASCII (IDNA), as in the envelope."""

    address: str
    name: str = ""

    @property
    def is_ascii(self) -> bool:
        """True if every server can take the address; others need SMTPUTF8 (RFC 6531)."""
        return self.address.isascii()


@dataclass(frozen=True)
class Attachment:
    """A file attached to a mail."""

    name: str  #: the file name that a reader sees; never a path
    content_type: str  #: RFC 2045, like image/png or text/csv; charset=utf-8
    content: bytes
    content_id: str = ""  #: without angle brackets; set if the HTML shows the file as `cid:…`


@dataclass(frozen=True)
class Message:
    """A mail to send, and its recipients.

    `text`, `html` or both are as the client wrote them; composing adds the missing one.
    """

    to: tuple[Address, ...]
    subject: str = ""
    text: str | None = None
    html: str | None = None
    #: `{{ job.… }}` in it is filled in when its job ends; see templating/job.py
    template: bool = False
    cc: tuple[Address, ...] = ()
    bcc: tuple[Address, ...] = ()
    sender: Address | None = None  #: the address in From; None: the account's
    reply_to: tuple[Address, ...] = ()
    #: further header fields, checked when the mail was accepted
    headers: tuple[tuple[str, str], ...] = ()
    attachments: tuple[Attachment, ...] = ()
    tags: tuple[str, ...] = ()  #: the client's, to find the mail by
    metadata: Mapping[str, str] = field(default_factory=dict)  #: the client's, repeated in webhooks
    unsubscribe: str = ""  #: the URL for unsubscribing with one click (RFC 8058)
    #: It came as a whole mail in RFC 5322 bytes, its only attachment, which go out as they are. `subject` and
    #: the recipients' names are copies for people; `sender` is the envelope's, with "" for none.
    is_raw: bool = False
    smtputf8: bool = False  #: its header is in UTF-8 (RFC 6532); set only if `is_raw`

    @property
    def everyone(self) -> tuple[Address, ...]:
        """Return all recipients; a recipient's position is its index here."""
        return self.to + self.cc + self.bcc

    @property
    def needs_smtputf8(self) -> bool:
        """True if an address in it, or its header, is not ASCII (RFC 6531)."""
        if self.smtputf8:
            return True
        addresses = [*self.everyone, *self.reply_to]
        if self.sender:
            addresses.append(self.sender)
        return not all(address.is_ascii for address in addresses)

    @property
    def raw(self) -> bytes:
        """Return the mail as it came, which is there if `is_raw` and the attachments are loaded."""
        (mail,) = self.attachments
        return mail.content

    @property
    def size(self) -> int:
        """Return the number of characters in text and HTML, plus the bytes of the attachments."""
        attached = sum(len(file.content) for file in self.attachments)
        return len(self.text or "") + len(self.html or "") + attached

    def kinds(self) -> tuple[str, ...]:
        """Return "to", "cc" or "bcc" for each recipient in `everyone`."""
        return ("to",) * len(self.to) + ("cc",) * len(self.cc) + ("bcc",) * len(self.bcc)

    def to_row(self) -> str:
        """Return the content as JSON for the outbox; recipients and attachments have rows of their own."""
        content: dict[str, Any] = {"subject": self.subject, "text": self.text, "html": self.html}
        for name in (
            "template",
            "headers",
            "tags",
            "metadata",
            "unsubscribe",
            "is_raw",
            "smtputf8",
        ):
            if value := getattr(self, name):
                content[name] = value
        if self.sender:
            content["sender"] = [self.sender.address, self.sender.name]
        if self.reply_to:
            content["reply_to"] = [[to.address, to.name] for to in self.reply_to]
        if self.attachments:
            content["attachments"] = len(self.attachments)
        return _encode(content)

    @classmethod
    def from_row(
        cls,
        content: Mapping[str, Any],
        people: Iterable[tuple[str, Address]],
        attachments: tuple[Attachment, ...] = (),
    ) -> Self:
        """Make a message from the parsed JSON of `to_row`; `people` has each recipient's kind and address."""
        values = {name: value for name, value in content.items() if name != "attachments"}
        if "sender" in values:
            values["sender"] = Address(*values["sender"])
        values["reply_to"] = tuple(Address(*to) for to in values.get("reply_to", ()))
        values["headers"] = tuple((name, value) for name, value in values.get("headers", ()))
        values["tags"] = tuple(values.get("tags", ()))
        recipients: dict[str, list[Address]] = {"to": [], "cc": [], "bcc": []}
        for kind, address in people:
            recipients[kind].append(address)
        values |= {kind: tuple(addresses) for kind, addresses in recipients.items()}
        return cls(attachments=attachments, **values)


@dataclass(frozen=True, kw_only=True)
class SendOptions:
    """The time from which, the time until which, and the number of times a mail may be tried."""

    scheduled_at: int | None = None  #: milliseconds since 1970 …
    delay: int | None = None  #: … or seconds after its acceptance
    expires_at: int | None = None  #: milliseconds since 1970 …
    expires_in: int | None = None  #: … or seconds after its acceptance
    max_attempts: int | None = None

    @property
    def is_scheduled(self) -> bool:
        return self.scheduled_at is not None or bool(self.delay)


ANYTIME = SendOptions()


def file_name(name: str) -> str:
    """Return a safe file name: without a path, at most 255 bytes, and with no characters that disguise it."""
    base = _NOT_IN_NAMES.sub("", re.split(r"[/\\]", name)[-1]).strip()
    stem, dot, suffix = base.rpartition(".")
    if not stem or len(suffix.encode()) > 20:
        stem, dot, suffix = base, "", ""
    if not base.strip(". "):
        return "file"
    stem_max_bytes = _FILE_NAME_MAX_BYTES - len((dot + suffix).encode())
    return stem.encode()[:stem_max_bytes].decode(errors="ignore") + dot + suffix


_encode = json.JSONEncoder(ensure_ascii=False).encode


#: States of recipients without a final outcome.
OPEN = (State.QUEUED, State.DEFERRED)
#: States of recipients for whom the next hop took the mail.
TAKEN = (State.SENT, State.BOUNCED, State.COMPLAINED)
