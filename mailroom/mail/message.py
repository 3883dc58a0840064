"""What a mail is: the message a client gave us, the state it is in, a worker's claim on it and how an attempt ended."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self


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


@dataclass(frozen=True)
class Address:
    """Somebody to write to. `address` is what goes into the envelope, its domain in ASCII (IDNA)."""

    address: str
    name: str = ""


@dataclass(frozen=True)
class Message:
    """What to send to whom. `text` or `html`, or both, as the client gave them; composing adds the other form."""

    to: tuple[Address, ...]
    subject: str = ""
    text: str | None = None
    html: str | None = None

    @property
    def size(self) -> int:
        """Characters in text and HTML."""
        return len(self.text or "") + len(self.html or "")

    def to_row(self) -> str:
        """The content as the outbox keeps it, in JSON; the recipients have rows of their own."""
        return json.dumps({"subject": self.subject, "text": self.text, "html": self.html}, ensure_ascii=False)

    @classmethod
    def from_row(cls, content: str, to: tuple[Address, ...]) -> Self:
        return cls(to=to, **json.loads(content))


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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an attempt ended, for the message and for each recipient that it was about."""

    state: State
    reason: str = ""  #: the server's words, or ours
    recipients: Mapping[int, tuple[State, str]] = field(default_factory=dict)  #: position: state, reply
    wait_seconds: float | None = None  #: until the next attempt, where there is to be one
    uncertain: bool = False  #: whether the payload went out and no reply came
