"""What a mail is: the message a client gave us, the state it is in, a worker's claim on it and how an attempt ended."""

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, Self


class State(StrEnum):
    """Where a message is; from SENT on it is final. A recipient is QUEUED, DEFERRED, SENT, FAILED or UNCERTAIN."""

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


FINAL = frozenset({State.SENT, State.FAILED, State.UNCERTAIN, State.CANCELED, State.EXPIRED, State.SUPPRESSED})


#: What a file system takes (NAME_MAX).
_FILE_NAME_MAX_BYTES = 255
#: Control characters, half surrogates, and what turns the direction of writing: "gpj.exe" shall not read as "exe.jpg".
_NOT_IN_NAMES = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


#: Header fields whose value has a grammar, in which no word may be encoded (RFC 2047, 5).
STRUCTURED = re.compile(r"list-.*|in-reply-to|references|auto-submitted|precedence|priority|importance|sensitivity", re.IGNORECASE)


@dataclass(frozen=True)
class Address:
    """Somebody to write to. `address` is what goes into the envelope, its domain in ASCII (IDNA)."""

    address: str
    name: str = ""

    @property
    def is_ascii(self) -> bool:
        """Whether any server can be given it; else it takes one with SMTPUTF8 (RFC 6531)."""
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
    """What to send to whom. `text` or `html`, or both, as the client gave them; composing adds the other form."""

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
        """Whether an address in it is not ASCII (RFC 6531)."""
        return not all(person.is_ascii for person in (*self.everyone, *self.reply_to, *([self.sender] if self.sender else [])))

    @property
    def size(self) -> int:
        """Characters in text and HTML, and bytes in attachments."""
        return len(self.text or "") + len(self.html or "") + sum(len(file.content) for file in self.attachments)

    def kinds(self) -> tuple[str, ...]:
        """"to", "cc" or "bcc" of each of everyone."""
        return ("to",) * len(self.to) + ("cc",) * len(self.cc) + ("bcc",) * len(self.bcc)

    def to_row(self) -> str:
        """The content as the outbox keeps it, in JSON; recipients and attachments have rows of their own."""
        content: dict[str, Any] = {"subject": self.subject, "text": self.text, "html": self.html}
        content |= {name: value for name in ("template", "headers", "tags", "metadata", "unsubscribe") if (value := getattr(self, name))}
        content |= {"sender": [self.sender.address, self.sender.name]} if self.sender else {}
        content |= {"reply_to": [[to.address, to.name] for to in self.reply_to]} if self.reply_to else {}
        content |= {"attachments": len(self.attachments)} if self.attachments else {}
        return _encode(content)

    @classmethod
    def from_row(cls, content: Mapping[str, Any], people: Iterable[tuple[str, Address]], attachments: tuple[Attachment, ...] = ()) -> Self:
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
class Terms:
    """From when on, until when, and how often, a client wants a mail to be tried."""

    scheduled_at: int | None = None  #: milliseconds since 1970 …
    delay: int | None = None  #: … or from its acceptance
    expires_at: int | None = None
    expires_in: int | None = None
    max_attempts: int | None = None

    @property
    def is_scheduled(self) -> bool:
        return self.scheduled_at is not None or bool(self.delay)


ANYTIME = Terms()


class AccountState(StrEnum):
    """Whether an account can send. All but OK end with one mail that goes through."""

    OK = "ok"
    PAUSED = "paused"  #: the server asked us to come back later, or could not be reached
    HALTED = "halted"  #: the server refused our login, or to speak with us at all
    PARKED = "parked"  #: the server's daily limit is reached


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What a reply says about the account, and not about the mail."""

    state: AccountState
    reason: str  #: the server's words
    waits: tuple[float, ...]  #: seconds until the account is tried again, after the first such reply in a row, the second, …
    excuses: bool = True  #: whether the attempt does not count against the mail


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one account may send in 24 hours, whenever they begin. 0: as much as it is given."""

    account: str
    messages: int = 0
    recipients: int = 0
    credentials: str = ""  #: a hash that changes with them

    @property
    def is_limited(self) -> bool:
        return bool(self.messages or self.recipients)


class Free(NamedTuple):
    """The room that a worker has for an account: how many mails, and what more of them wait for."""

    mails: int
    words: str


#: The account of the settings MAIL_…, where there is no ACCOUNTS_FILE.
DEFAULT_ACCOUNT = "default"


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """How the job before a mail ended, for the mail to tell; the names are those of `{{ job.… }}`."""

    id: str
    name: str
    status: str  #: succeeded, failed or timed_out
    result: Any = None  #: what it returned, as JSON has it
    error: str = ""  #: one line, where it did not succeed
    seconds: float = 0.0  #: how long its last attempt ran
    file: Attachment | None = None  #: what it made, for the mail to carry


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One attempt at one message, by the worker that claimed it."""

    id: str
    attempt: int  #: from 1
    message_id: str  #: for the header field, without angle brackets; the same in every attempt
    created_at_ms: int  #: milliseconds since 1970
    message: Message  #: its attachments are still in the outbox, if there are such
    pending: tuple[int, ...]  #: positions in `message.everyone` of those who have no final outcome yet
    sent_before: bool = False  #: whether an earlier attempt reached one of the others
    job: JobFacts | None = None  #: set where the message is a template
    account: str = DEFAULT_ACCOUNT  #: who sends it
    is_probe: bool = False  #: whether it tries an account that had trouble
    excused: int = 0  #: earlier attempts that do not count: an account's trouble, or given back before anything was sent
    max_attempts: int | None = None  #: of those that count; None: as many as the schedule has
    has_attachments: bool = False
    claimed_at: float = field(default_factory=time.monotonic, compare=False)  #: on time.monotonic
    #: Milliseconds since 1970; the Date of the mail, the same in every attempt. None: of a mail that is not tried, but shown.
    first_attempt_at_ms: int | None = None

    @property
    def counted(self) -> int:
        """Attempts that count, this one included."""
        return self.attempt - self.excused


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended, for the message and for each recipient that it was about."""

    state: State
    reason: str = ""  #: the server's words, or ours
    recipients: Mapping[int, tuple[State, str]] = field(default_factory=dict)  #: position: state, reply
    wait_seconds: float | None = None  #: until the next attempt, where there is to be one
    excused: bool = False  #: whether the attempt does not count, as it brought the mail further
    uncertain: bool = False  #: whether the payload went out and no reply came
    trouble: Trouble | None = None  #: set where the account cannot send; the message waits until one can
    bounced: frozenset[int] = frozenset()  #: positions of those whose server says that there is no such address


def file_name(name: str) -> str:
    """Return a name for a file that a reader may save: no path, nothing that hides or turns its letters, at most 255 bytes."""
    base = _NOT_IN_NAMES.sub("", re.split(r"[/\\]", name)[-1]).strip()
    stem, dot, suffix = base.rpartition(".")
    if not stem or len(suffix.encode()) > 20:
        stem, dot, suffix = base, "", ""
    most = _FILE_NAME_MAX_BYTES - len((dot + suffix).encode())
    return stem.encode()[:most].decode(errors="ignore") + dot + suffix if base.strip(". ") else "file"


_encode = json.JSONEncoder(ensure_ascii=False).encode
