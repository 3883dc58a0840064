"""A mail: the message a client gave us, and the state it is in."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from mailroom.model.text import CONTROL_CHARACTERS


class State(StrEnum):
    """The state of a message; from SENT on it is final.

    A recipient is QUEUED, DEFERRED, SENT, FAILED or UNCERTAIN.
    """

    WAITING = "waiting"  #: for its job to end
    SCHEDULED = "scheduled"  #: for `next_attempt_at`, which the client chose
    QUEUED = "queued"  #: for a worker
    SENDING = "sending"  #: a worker has it; the next hop cannot have all of it yet
    IN_DATA = "in_data"  #: past the fence: the payload may be on the wire
    DEFERRED = "deferred"  #: the next hop said 4xx, or could not be reached; tried again at `next_attempt_at`
    HELD = "held"  #: a person stopped it, and a person lets it go
    SENT = "sent"  #: the next hop took it for at least one recipient, and answered for all
    FAILED = "failed"  #: the next hop refused it for good, or its job failed, or it could not be accepted
    UNCERTAIN = "uncertain"  #: handed over without an answer, and not sent again: ON_UNCERTAIN=hold, or no attempt is left
    CANCELED = "canceled"  #: the client took it back in time
    EXPIRED = "expired"  #: it was no longer wanted before it could be sent
    SUPPRESSED = "suppressed"  #: its recipient wants no more mail


FINAL = frozenset(
    {State.SENT, State.FAILED, State.UNCERTAIN, State.CANCELED, State.EXPIRED, State.SUPPRESSED}
)


#: What a file system takes (NAME_MAX).
_FILE_NAME_MAX_BYTES = 255
#: Control characters, half surrogates, and what turns the direction of writing: "gpj.exe" shall not read as "exe.jpg".
_NOT_IN_NAMES = re.compile(f"[{CONTROL_CHARACTERS}\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


#: Header fields whose value has a grammar, in which no word may be encoded (RFC 2047, 5).
STRUCTURED = re.compile(
    r"list-.*|in-reply-to|references|auto-submitted|precedence|priority|importance|sensitivity", re.IGNORECASE
)


@dataclass(frozen=True)
class Address:
    """Somebody to write to. `address` is what goes into the envelope, its domain in ASCII (IDNA)."""

    address: str
    name: str = ""

    @property
    def is_ascii(self) -> bool:
        """Tell whether any server can be given the address; else it takes one with SMTPUTF8 (RFC 6531)."""
        return self.address.isascii()


@dataclass(frozen=True)
class Attachment:
    """A file that goes with a mail."""

    name: str  #: what a reader sees; never a path
    content_type: str  #: RFC 2045, like image/png or text/csv; charset=utf-8
    content: bytes
    content_id: str = ""  #: set where the HTML shows it as `cid:…`, without angle brackets


@dataclass(frozen=True)
class Message:
    """A mail to send, and those to send it to.

    `text` or `html`, or both, are as the client gave them; composing adds the other form.
    """

    to: tuple[Address, ...]
    subject: str = ""
    text: str | None = None
    html: str | None = None
    template: bool = False  #: whether `{{ job.… }}` in it stands for how its job ended; see templating/job.py
    cc: tuple[Address, ...] = ()
    bcc: tuple[Address, ...] = ()
    sender: Address | None = None  #: the From; None: the account's
    reply_to: tuple[Address, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()  #: further header fields, checked at intake
    attachments: tuple[Attachment, ...] = ()
    tags: tuple[str, ...] = ()  #: the client's words, to find it by
    metadata: Mapping[str, str] = field(default_factory=dict)  #: the client's own, told in webhooks
    unsubscribe: str = ""  #: the URL for one click (RFC 8058)

    @property
    def everyone(self) -> tuple[Address, ...]:
        """All recipients; a recipient's position is its place here."""
        return self.to + self.cc + self.bcc

    @property
    def needs_smtputf8(self) -> bool:
        """Tell whether an address in it is not ASCII (RFC 6531)."""
        return not all(
            person.is_ascii
            for person in (*self.everyone, *self.reply_to, *([self.sender] if self.sender else []))
        )

    @property
    def size(self) -> int:
        """Characters in text and HTML, and bytes in attachments."""
        return (
            len(self.text or "") + len(self.html or "") + sum(len(file.content) for file in self.attachments)
        )

    def kinds(self) -> tuple[str, ...]:
        """ "to", "cc" or "bcc" of each of everyone."""
        return ("to",) * len(self.to) + ("cc",) * len(self.cc) + ("bcc",) * len(self.bcc)

    def to_row(self) -> str:
        """The content as the outbox keeps it, in JSON; recipients and attachments have rows of their own."""
        content: dict[str, Any] = {"subject": self.subject, "text": self.text, "html": self.html}
        content |= {
            name: value
            for name in ("template", "headers", "tags", "metadata", "unsubscribe")
            if (value := getattr(self, name))
        }
        content |= {"sender": [self.sender.address, self.sender.name]} if self.sender else {}
        content |= {"reply_to": [[to.address, to.name] for to in self.reply_to]} if self.reply_to else {}
        content |= {"attachments": len(self.attachments)} if self.attachments else {}
        return _encode(content)

    @classmethod
    def from_row(
        cls,
        content: Mapping[str, Any],
        people: Iterable[tuple[str, Address]],
        attachments: tuple[Attachment, ...] = (),
    ) -> Self:
        """The reverse, of what JSON makes of it, with the kind and address of each recipient."""
        values = {name: value for name, value in content.items() if name != "attachments"}
        if "sender" in values:
            values["sender"] = Address(*values["sender"])
        values["reply_to"] = tuple(Address(*to) for to in values.get("reply_to", ()))
        values["headers"] = tuple((name, value) for name, value in values.get("headers", ()))
        values["tags"] = tuple(values.get("tags", ()))
        listed = list(people)
        to, cc, bcc = (tuple(person for of, person in listed if of == kind) for kind in ("to", "cc", "bcc"))
        return cls(to=to, cc=cc, bcc=bcc, attachments=attachments, **values)


@dataclass(frozen=True, kw_only=True)
class SendOptions:
    """From when on, until when, and how often, a client wants a mail to be tried."""

    scheduled_at: int | None = None  #: milliseconds since 1970 …
    delay: int | None = None  #: … or from its acceptance
    expires_at: int | None = None
    expires_in: int | None = None
    max_attempts: int | None = None

    @property
    def is_scheduled(self) -> bool:
        return self.scheduled_at is not None or bool(self.delay)


ANYTIME = SendOptions()


def file_name(name: str) -> str:
    """Return a name for a file that a reader may save: no path, nothing that hides or turns its letters, at most 255 bytes."""
    base = _NOT_IN_NAMES.sub("", re.split(r"[/\\]", name)[-1]).strip()
    stem, dot, suffix = base.rpartition(".")
    if not stem or len(suffix.encode()) > 20:
        stem, dot, suffix = base, "", ""
    most = _FILE_NAME_MAX_BYTES - len((dot + suffix).encode())
    return stem.encode()[:most].decode(errors="ignore") + dot + suffix if base.strip(". ") else "file"


_encode = json.JSONEncoder(ensure_ascii=False).encode


#: Recipients that have no outcome yet.
OPEN = (State.QUEUED, State.DEFERRED)
