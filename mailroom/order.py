"""Reads what a client orders: a mail, a job, or a job and the mail that tells of it."""

import difflib
import re
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from mailroom.jobs import registry
from mailroom.jobs.registry import JobType, UnknownJob
from mailroom.mail import template
from mailroom.mail.errors import FieldError, InvalidMessage
from mailroom.mail.intake import ATTEMPTS_MAX, Terms, mail_from, read_fields
from mailroom.mail.message import Message
from mailroom.mail.schedule import Schedule
from mailroom.store.jobs import NewJob, NotifyOn
from mailroom.store.outbox import Acceptance, new_id

TIMEOUT_MAX_SECONDS = 30 * 86400
RETRY_MAX_CHARACTERS = 1000


class AskedJob(BaseModel):
    """The job in a message; only `name` is required."""

    model_config = ConfigDict(extra="forbid")

    name: StrictStr = Field(max_length=100, description="A job type; GET /v1/job-types lists them.")
    args: dict[str, Any] = Field({}, description="Its arguments.")
    notify_on: NotifyOn = Field(NotifyOn.BOTH, description="When the mail goes.")
    timeout_seconds: float | None = Field(None, ge=0.001, le=TIMEOUT_MAX_SECONDS, description="When an attempt is killed.")
    max_attempts: StrictInt | None = Field(None, ge=1, le=ATTEMPTS_MAX, description="More than 1 only where running it twice does no harm.")
    retry: StrictStr | None = Field(None, max_length=RETRY_MAX_CHARACTERS, description="The waits after attempt 1, 2, …, like 30s, 2m.")


class AskedJobWithMail(AskedJob):
    """The body of POST /v1/jobs."""

    notify: Any = Field(None, description="The mail: to, subject, contents.")


@dataclass(frozen=True)
class Order:
    """A job to be accepted, alone or with a message."""

    job: NewJob
    acceptance: Acceptance | None  #: of the message that waits for it


@dataclass(frozen=True)
class Orders:
    """Reads orders for a service whose mails are from this domain."""

    domain: str

    def mail(self, value: object, *, work_seconds: float = 0, id: str = "") -> Acceptance:
        """Read the object of `POST /` or `POST /v1/messages`; where it names no job, this many seconds of simulated work come first.

        Raises:
          MalformedJSON, InvalidMessage: it is none.
        """
        message, terms = mail_from(value, with_job=True)
        if isinstance(value, dict) and value.get("job") is not None:
            job = _job(read_fields(AskedJob, value["job"], at="#/job"), at="#/job")
            return self.acceptance(_template(message, at="#"), job, terms, id=id)
        return self.acceptance(message, simulated(work_seconds) if work_seconds else None, terms, id=id)

    def job(self, value: object, *, id: str = "") -> Order:
        """Read the object of `POST /v1/jobs`; raises what `mail` raises."""
        asked = read_fields(AskedJobWithMail, value)
        wrong: list[FieldError] = []
        message, terms = None, Terms()
        try:
            if asked.notify is not None:
                message, terms = mail_from(asked.notify, at="#/notify")
                message = _template(message, at="#/notify")
        except InvalidMessage as e:
            wrong += e.errors
        try:
            job = _job(asked, at="#", id=id)
        except InvalidMessage as e:
            wrong = e.errors + wrong
        if wrong:
            raise InvalidMessage(wrong)
        return Order(job, self.acceptance(message, job, terms) if message else None)

    def acceptance(self, message: Message, job: NewJob | None, terms: Terms = Terms(), *, id: str = "") -> Acceptance:
        """What accepting this message writes: its Message-ID is fixed here."""
        id = id or new_id()
        return Acceptance(id=id, message=message, message_id=self.message_id(id), job=job, expires_at=terms.expires_at,
                          expires_in=terms.expires_in, max_attempts=terms.max_attempts)

    def message_id(self, id: str) -> str:
        """The header field of the message of this id, without angle brackets."""
        # A client chose the id of a task, so it may hold anything; what goes into a header may not.
        local = id if re.fullmatch(r"[A-Za-z0-9-]{1,64}", id) else new_id()
        return f"{local}@{self.domain}"


def simulated(seconds: float) -> NewJob:
    """The simulated heavy work before a mail; it goes only when that succeeded."""
    kind = registry.job_type("simulate")
    return NewJob(id=new_id(), name=kind.name, args={"seconds": seconds}, queue=kind.queue, timeout_seconds=kind.timeout_seconds + seconds,
                  max_attempts=kind.max_attempts)


def _template(message: Message, *, at: str) -> Message:
    template.check(message, at=at)
    return replace(message, template=True)


def _job(asked: AskedJob, *, at: str, id: str = "") -> NewJob:
    kind = _kind(asked.name, at)
    try:
        kind.check(asked.args)
    except InvalidMessage as e:
        raise InvalidMessage([FieldError(at + error.pointer.removeprefix("#"), error.detail) for error in e.errors]) from None
    if asked.retry:
        try:
            Schedule.parse(asked.retry)
        except ValueError as e:
            raise InvalidMessage([FieldError(f"{at}/retry", str(e))]) from None
    return NewJob(id=id or new_id(), name=kind.name, args=asked.args, queue=kind.queue, notify_on=asked.notify_on, retry=asked.retry or "",
                  timeout_seconds=asked.timeout_seconds or kind.timeout_seconds, max_attempts=asked.max_attempts or kind.max_attempts)


def _kind(name: str, at: str) -> JobType:
    try:
        return registry.job_type(name)
    except UnknownJob as e:
        nearest = difflib.get_close_matches(name, [kind.name for kind in registry.job_types()], n=1)
        raise InvalidMessage([FieldError(f"{at}/name", f"{e}" + (f"; did you mean {nearest[0]}?" if nearest else ""))]) from None
