"""An attempt at a message: a worker's claim on it, and how it ended."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mailroom.model.account import DEFAULT_ACCOUNT, AccountError
from mailroom.model.message import Attachment, Message, State


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """The end of the job before a mail, for the mail to tell; the names are those of `{{ job.… }}`."""

    id: str
    name: str
    status: str  #: succeeded, failed or timed_out
    result: Any = None  #: what it returned, as JSON has it
    error: str = ""  #: one line, where it did not succeed
    seconds: float = 0.0  #: how long its last attempt ran
    file: Attachment | None = None  #: what it made, for the mail to carry


@dataclass(frozen=True, kw_only=True)
class Claim:
    """An attempt at one message, by the worker that claimed it."""

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
    excused: int = (
        0  #: earlier attempts that do not count: an account's trouble, or given back before anything was sent
    )
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
    """The end of an attempt, for the message and for each recipient that it was about."""

    state: State
    reason: str = ""  #: the server's words, or ours
    recipients: Mapping[int, tuple[State, str]] = field(default_factory=dict)  #: position: state, reply
    wait_seconds: float | None = None  #: until the next attempt, where there is to be one
    excused: bool = False  #: whether the attempt does not count, as it brought the mail further
    uncertain: bool = False  #: whether the payload went out and no reply came
    account_error: AccountError | None = None  #: the account cannot send; the message waits until one can
    bounced: frozenset[int] = (
        frozenset()
    )  #: positions of those whose server says that there is no such address
