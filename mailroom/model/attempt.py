"""An attempt to send a message: a worker's claim on it, and its outcome."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mailroom.model.account import DEFAULT_ACCOUNT, AccountError
from mailroom.model.message import Attachment, Message, State


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """The result of the job before a mail; a mail names these fields as `{{ job.… }}`."""

    id: str
    name: str
    status: str  #: succeeded, failed or timed_out
    result: Any = None  #: the return value, as JSON
    error: str = ""  #: one line; "" if it succeeded
    seconds: float = 0.0  #: the duration of its last attempt
    file: Attachment | None = None  #: the file that it made, which the mail carries


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A message that a worker claimed in order to send it."""

    id: str
    attempt: int  #: from 1
    message_id: str  #: for the header field, without angle brackets; the same in every attempt
    created_at_ms: int  #: milliseconds since 1970
    message: Message  #: without its attachments, which are still in the outbox
    #: positions in `message.everyone` of recipients without a final outcome
    pending: tuple[int, ...]
    sent_before: bool = False  #: an earlier attempt reached a recipient who is not pending
    taken_before: bool = False  #: the next hop took it before, so a copy may be in the Sent folder
    job: JobFacts | None = None  #: set if the message is a template for it
    account: str = DEFAULT_ACCOUNT  #: the name of the account that sends it
    is_probe: bool = False  #: it tests an account that could not send before
    #: Earlier attempts that do not count: an account could not send, or a worker gave the message back.
    excused: int = 0
    max_attempts: int | None = None  #: of attempts that count; None: as many as the schedule has
    has_attachments: bool = False
    #: in seconds of time.monotonic
    claimed_at: float = field(default_factory=time.monotonic, compare=False)
    #: Milliseconds since 1970; the mail's Date, the same in every attempt. None: the mail is only shown.
    first_attempt_at_ms: int | None = None

    @property
    def counted(self) -> int:
        """Return the number of attempts that count, this one included."""
        return self.attempt - self.excused


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of an attempt, for the message and for each pending recipient."""

    state: State
    reason: str = ""  #: the server's reply, or our own sentence
    #: by position: state, reply
    recipients: Mapping[int, tuple[State, str]] = field(default_factory=dict)
    wait_seconds: float | None = None  #: until the next attempt; None if there is none
    excused: bool = False  #: the attempt does not count, as it reached some recipients
    uncertain: bool = False  #: the payload was sent and no reply came
    #: The state to come if the mail is not in the Sent folder; None: it is not looked for.
    look_up: State | None = None
    #: the account cannot send; the message waits until one can
    account_error: AccountError | None = None
    #: Positions of recipients whose server says that there is no such address.
    bounced: frozenset[int] = frozenset()
