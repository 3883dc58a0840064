"""What a mail is: the message a client gave us, the state it is in, a worker's claim on it and how an attempt ended."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self


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


@dataclass(frozen=True)
class Address:
    """Somebody to write to. `address` is what goes into the envelope, its domain in ASCII (IDNA)."""

    address: str
    name: str = ""


@dataclass(frozen=True)
class Attachment:
    """A file that goes with a mail."""

    name: str  #: what a reader sees; never a path
    content_type: str  #: RFC 2045, like image/png
    content: bytes


@dataclass(frozen=True)
class Message:
    """What to send to whom. `text` or `html`, or both, as the client gave them; composing adds the other form."""

    to: tuple[Address, ...]
    subject: str = ""
    text: str | None = None
    html: str | None = None
    template: bool = False  #: whether `{{ job.… }}` in it stands for how its job ended; see template.py

    @property
    def size(self) -> int:
        """Characters in text and HTML."""
        return len(self.text or "") + len(self.html or "")

    def to_row(self) -> str:
        """The content as the outbox keeps it, in JSON; the recipients have rows of their own."""
        content = {"subject": self.subject, "text": self.text, "html": self.html}
        return json.dumps(content | ({"template": True} if self.template else {}), ensure_ascii=False)

    @classmethod
    def from_row(cls, content: str, to: tuple[Address, ...]) -> Self:
        return cls(to=to, **json.loads(content))


class AccountState(StrEnum):
    """Whether an account can send. All but OK end with one mail that goes through."""

    OK = "ok"
    PAUSED = "paused"  #: the server asked us to come back later
    HALTED = "halted"  #: the server refused our login
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
    created_at_ms: int  #: milliseconds since 1970; the Date of the mail, the same in every attempt
    message: Message
    pending: tuple[int, ...]  #: positions in `message.to` of those who have no final outcome yet
    sent_before: bool = False  #: whether an earlier attempt reached one of the others
    job: JobFacts | None = None  #: set where the message is a template
    account: str = DEFAULT_ACCOUNT  #: who sends it
    is_probe: bool = False  #: whether it tries an account that had trouble
    excused: int = 0  #: earlier attempts that ended with an account's trouble, and do not count
    max_attempts: int | None = None  #: of those that count; None: as many as the schedule has

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
    uncertain: bool = False  #: whether the payload went out and no reply came
    trouble: Trouble | None = None  #: set where the account cannot send; the message waits until one can


def file_name(name: str) -> str:
    """Return a name for a file that a reader may save: no path, nothing that hides or turns its letters, at most 255 bytes."""
    base = _NOT_IN_NAMES.sub("", re.split(r"[/\\]", name)[-1]).strip()
    stem, dot, suffix = base.rpartition(".")
    if not stem or len(suffix.encode()) > 20:
        stem, dot, suffix = base, "", ""
    most = _FILE_NAME_MAX_BYTES - len((dot + suffix).encode())
    return stem.encode()[:most].decode(errors="ignore") + dot + suffix if base.strip(". ") else "file"
