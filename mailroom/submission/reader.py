"""Reads what a client orders: a mail, a job, or a job and the mail that tells of it."""

import difflib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from mailroom.jobs import registry
from mailroom.jobs.registry import JobType, UnknownJob
from mailroom.model.errors import ERRORS_MAX, FieldError, InvalidMessage, MalformedJSON
from mailroom.model.ids import new_id
from mailroom.model.message import ANYTIME, Message
from mailroom.model.retry import Schedule
from mailroom.store.jobs.jobs import NewJob, NotifyOn
from mailroom.store.messages.outbox import NewMessage
from mailroom.submission.batch import BatchReader
from mailroom.submission.fields import read_fields
from mailroom.submission.message import MailSubmission, TemplateRequest, mail_from
from mailroom.submission.times import ATTEMPTS_MAX
from mailroom.templating.job import check
from mailroom.templating.stored import Sources, merge

#: Messages in one request, and one commit.
BATCH_MAX = 1000
BATCH_MAX_BYTES = 100_000_000
#: Of a processor, for reading them; a thousand letters of an ordinary template take one.
BATCH_MAX_SECONDS = 20.0
TIMEOUT_MAX_SECONDS = 30 * 86400
RETRY_MAX_CHARACTERS = 1000


class JobRequest(BaseModel):
    """The job in a message; only `name` is required."""

    model_config = ConfigDict(extra="forbid")

    name: StrictStr = Field(max_length=100, description="A job type; GET /v1/job-types lists them.")
    args: dict[str, Any] = Field(default_factory=dict, description="Its arguments.")
    notify_on: NotifyOn = Field(NotifyOn.BOTH, description="When the mail goes.")
    timeout_seconds: float | None = Field(
        None, ge=0.001, le=TIMEOUT_MAX_SECONDS, description="When an attempt is killed."
    )
    max_attempts: StrictInt | None = Field(
        None, ge=1, le=ATTEMPTS_MAX, description="More than 1 only where running it twice does no harm."
    )
    retry: StrictStr | None = Field(
        None, max_length=RETRY_MAX_CHARACTERS, description="The waits after attempt 1, 2, …, like 30s, 2m."
    )


class BatchRequest(BaseModel):
    """The body of POST /v1/messages/batch."""

    model_config = ConfigDict(extra="forbid")

    common: dict[str, Any] = Field(
        default_factory=dict, description="What all of them share, like subject, template and from."
    )
    messages: list[Any] = Field(
        description="What each has for itself; its `variables` are added to those of the template."
    )


class JobWithMailRequest(JobRequest):
    """The body of POST /v1/jobs."""

    notify: Any = Field(None, description="The mail: to, subject, contents.")


@dataclass(frozen=True)
class JobSubmission:
    """A job to be accepted, alone or with a message."""

    job: NewJob
    mail: NewMessage | None  #: the mail that is sent when the job has ended


@dataclass(frozen=True)
class SubmissionReader:
    """Reads orders for one service."""

    domain: str  #: of Message-IDs
    account_of: Callable[[str], str | None]  #: the name of the account that may send from an address
    template: Callable[[str], Sources | None]  #: a stored template by its name
    unsubscribe_url: Callable[[str], str]  #: where a message's recipient unsubscribes; "" without PUBLIC_URL
    webhook_problem: Callable[[str], str]  #: why a URL cannot be told of a message; "" if it can

    def mail(self, value: object, *, work_seconds: float = 0, id: str = "") -> NewMessage:
        """Read the object of `POST /` or `POST /v1/messages`; where it names no job, this many seconds of simulated work come first.

        Raises:
          MalformedJSON, InvalidMessage: it is none.
        """
        order = mail_from(value, with_job=True)
        if isinstance(value, dict) and value.get("job") is not None:
            job = _job(read_fields(JobRequest, value["job"], at="#/job"), at="#/job")
            return self._after_job(order, job, at="#", id=id)
        simulates = work_seconds and not order.terms.is_scheduled
        return self._acceptance(order, simulated(work_seconds) if simulates else None, at="#", id=id)

    def job(self, value: object, *, id: str = "") -> JobSubmission:
        """Read the object of `POST /v1/jobs`; raises what `mail` raises."""
        asked = read_fields(JobWithMailRequest, value)
        wrong: list[FieldError] = []
        job, notify = None, None
        try:
            job = _job(asked, at="#", id=id)
        except InvalidMessage as e:
            wrong += e.errors
        try:
            notify = mail_from(asked.notify, at="#/notify") if asked.notify is not None else None
            acceptance = self._after_job(notify, job or simulated(0), at="#/notify") if notify else None
        except InvalidMessage as e:
            wrong += e.errors
        if wrong or job is None:
            raise InvalidMessage(wrong)
        return JobSubmission(job, acceptance)

    def batch(self, value: object) -> list[NewMessage]:
        """Read the list, or the object, of `POST /v1/messages/batch`; what is wrong with any of them is told of each."""
        common, listed, at = _batch(value)
        reader = BatchReader(common, at=at, common_at="#/common")
        orders = replace(self, template=cache(self.template))  # Looked up once for all of them.
        accepted: list[NewMessage] = []
        size, started = 0, time.thread_time()
        for index, item in enumerate(listed):
            if order := reader.read(index, item):
                try:
                    accepted.append(orders._acceptance(order, None, at=f"{at}/{index}"))
                    size += accepted[-1].message.size
                except InvalidMessage as e:
                    reader.wrong += e.errors
            # Few bytes can ask for much a thousand times over: what is too much, or wrong, is not read to its end.
            if problem := _too_much(size, time.thread_time() - started):
                reader.wrong.append(FieldError(at, problem))
            if problem or index + 1 - len(accepted) >= ERRORS_MAX:
                break
        if reader.wrong:
            raise InvalidMessage(reader.wrong[:ERRORS_MAX])
        return accepted

    def mail_of_rerun(self, message: Message, job: NewJob) -> NewMessage:
        """Return a new mail like that of an earlier run, for a job that is run once more."""
        return self._acceptance(MailSubmission(message=message, terms=ANYTIME), job, at="#")

    def message_id(self, id: str) -> str:
        """The header field of the message of this id, without angle brackets."""
        # A client chose the id of a task, so it may hold anything; what goes into a header may not.
        local = id if re.fullmatch(r"[A-Za-z0-9-]{1,64}", id) else new_id()
        return f"{local}@{self.domain}"

    def _after_job(self, order: MailSubmission, job: NewJob, *, at: str, id: str = "") -> NewMessage:
        if order.terms.is_scheduled:
            raise InvalidMessage(
                [
                    FieldError(
                        f"{at}/scheduled_at",
                        "expected a mail without a job, which goes when that ends, got both",
                    )
                ]
            )
        acceptance = self._acceptance(order, job, at=at, id=id)
        check(acceptance.message, at=at)
        return replace(acceptance, message=replace(acceptance.message, template=True))

    def _acceptance(self, order: MailSubmission, job: NewJob | None, *, at: str, id: str = "") -> NewMessage:
        """Return what accepting this mail writes: its Message-ID is fixed here."""
        id = id or new_id()
        message, account = order.message, None
        if message.sender and not (account := self.account_of(message.sender.address)):
            raise InvalidMessage(
                [
                    FieldError(
                        f"{at}/from",
                        "expected an address that an account here may send from, got another; "
                        "MAIL_ALIASES names further ones",
                    )
                ],
                code="invalid_from_address",
            )
        if order.template:
            message = self._filled(message, order.template, f"{at}/template")
        if order.webhook_url and (problem := self.webhook_problem(order.webhook_url)):
            raise InvalidMessage([FieldError(f"{at}/webhook_url", problem)])
        if order.unsubscribe:
            message = replace(message, unsubscribe=self._unsubscribe(message, id, at))
        return NewMessage(
            id=id,
            message=message,
            message_id=self.message_id(id),
            job=job,
            terms=order.terms,
            sender=account,
            webhook=order.webhook_url,
            queue="mail.bulk" if order.priority == "low" else "mail",
            dry_run=order.dry_run,
        )

    def _filled(self, message: Message, asked: TemplateRequest, at: str) -> Message:
        template = self.template(asked.name)
        if template is None:
            detail = f"expected the name of a stored template, as GET /v1/templates lists them, got {asked.name[:80]!a}"
            raise InvalidMessage([FieldError(f"{at}/name", detail)])
        letter = merge(template, asked.variables, at=f"{at}/variables")
        return replace(message, subject=message.subject or letter.subject, text=letter.text, html=letter.html)

    def _unsubscribe(self, message: Message, id: str, at: str) -> str:
        if len(message.everyone) > 1:
            detail = f"expected one recipient, as the link in it is for one, got {len(message.everyone)}"
            raise InvalidMessage([FieldError(f"{at}/unsubscribe", detail)])
        if not (url := self.unsubscribe_url(id)):
            raise InvalidMessage(
                [
                    FieldError(
                        f"{at}/unsubscribe", "expected a service with PUBLIC_URL set, where the link can lead"
                    )
                ]
            )
        return url


def _batch(value: object) -> tuple[dict[str, Any], list[Any], str]:
    """The common part, the messages, and where they stand."""
    common: dict[str, Any] = {}
    at = "#"
    if isinstance(value, dict):
        asked = read_fields(BatchRequest, value)
        common, value, at = asked.common, asked.messages, "#/messages"
    if not isinstance(value, list):
        raise MalformedJSON("expected a list of messages, or an object with `common` and `messages`")
    if not 1 <= len(value) <= BATCH_MAX:
        raise InvalidMessage([FieldError(at, f"expected 1 to {BATCH_MAX} messages, got {len(value)}")])
    return common, value, at


def _too_much(size: int, seconds: float) -> str:
    """Say why a batch is read no further; "" if it is."""
    if (
        size > BATCH_MAX_BYTES
    ):  # Each is stored by itself: a common attachment of 20 MB would be 20 GB on disk.
        return f"expected at most {BATCH_MAX_BYTES} bytes in all texts and attachments together, got more"
    if seconds > BATCH_MAX_SECONDS:
        return f"expected messages that are read and filled in within {BATCH_MAX_SECONDS:g} s, got more or slower ones"
    return ""


def simulated(seconds: float) -> NewJob:
    """The simulated heavy work before a mail; it goes only when that succeeded."""
    kind = registry.job_type("simulate")
    return NewJob(
        id=new_id(),
        name=kind.name,
        args={"seconds": seconds},
        queue=kind.queue,
        timeout_seconds=kind.timeout_seconds + seconds,
        max_attempts=kind.max_attempts,
    )


def _job(asked: JobRequest, *, at: str, id: str = "") -> NewJob:
    kind = _kind(asked.name, at)
    try:
        kind.check(asked.args)
    except InvalidMessage as e:
        raise InvalidMessage(
            [FieldError(at + error.pointer.removeprefix("#"), error.detail) for error in e.errors]
        ) from None
    if asked.retry:
        try:
            Schedule.parse(asked.retry)
        except ValueError as e:
            raise InvalidMessage([FieldError(f"{at}/retry", str(e))]) from None
    return NewJob(
        id=id or new_id(),
        name=kind.name,
        args=asked.args,
        queue=kind.queue,
        notify_on=asked.notify_on,
        retry=asked.retry or "",
        timeout_seconds=asked.timeout_seconds or kind.timeout_seconds,
        max_attempts=asked.max_attempts or kind.max_attempts,
    )


def _kind(name: str, at: str) -> JobType:
    try:
        return registry.job_type(name)
    except UnknownJob as e:
        nearest = difflib.get_close_matches(name, [kind.name for kind in registry.job_types()], n=1)
        raise InvalidMessage(
            [FieldError(f"{at}/name", f"{e}" + (f"; did you mean {nearest[0]}?" if nearest else ""))]
        ) from None
