"""Reads what clients submit: a mail, a batch of mails, or a job with the mail that reports its result."""

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
from mailroom.submission.raw_message import RawSubmission
from mailroom.submission.times import ATTEMPTS_MAX
from mailroom.templating.job import check
from mailroom.templating.stored import Sources, merge

#: The most messages in one request, which are stored in one commit.
BATCH_MAX = 1000
BATCH_MAX_BYTES = 100_000_000
#: The CPU time for reading a batch; a thousand mails of an ordinary template take one second.
BATCH_MAX_SECONDS = 20.0
TIMEOUT_MAX_SECONDS = 30 * 86400
RETRY_MAX_CHARACTERS = 1000


class JobRequest(BaseModel):
    """The job in a message; only `name` is required."""

    model_config = ConfigDict(extra="forbid")

    name: StrictStr = Field(max_length=100, description="A job type; GET /v1/job-types lists them.")
    args: dict[str, Any] = Field(default_factory=dict, description="Its arguments.")
    notify_on: NotifyOn = Field(NotifyOn.BOTH, description="After which result the mail is sent.")
    timeout_seconds: float | None = Field(
        None, ge=0.001, le=TIMEOUT_MAX_SECONDS, description="After how long an attempt is killed."
    )
    max_attempts: StrictInt | None = Field(
        None,
        ge=1,
        le=ATTEMPTS_MAX,
        description="More than 1 only if running it twice does no harm.",
    )
    retry: StrictStr | None = Field(
        None,
        max_length=RETRY_MAX_CHARACTERS,
        description="The waits after attempt 1, 2, …, like 30s, 2m.",
    )


class BatchRequest(BaseModel):
    """The body of POST /v1/messages/batch."""

    model_config = ConfigDict(extra="forbid")

    common: dict[str, Any] = Field(
        default_factory=dict,
        description="The fields that all messages share, like subject, template and from.",
    )
    messages: list[Any] = Field(
        description="The fields of each message; its `variables` are added to those of the template."
    )


class JobWithMailRequest(JobRequest):
    """The body of POST /v1/jobs."""

    notify: Any = Field(None, description="The mail: to, subject, contents.")


@dataclass(frozen=True)
class JobSubmission:
    """A job that a client submitted, alone or with a mail."""

    job: NewJob
    mail: NewMessage | None  #: sent when the job has ended


@dataclass(frozen=True)
class SubmissionReader:
    """Reads submissions, with what it needs to know of this service."""

    domain: str  #: of Message-IDs
    #: the name of the account that may send from an address
    account_of: Callable[[str], str | None]
    template: Callable[[str], Sources | None]  #: a stored template by its name
    #: the link to unsubscribe for a message's id; "" without PUBLIC_URL
    unsubscribe_url: Callable[[str], str]
    webhook_problem: Callable[[str], str]  #: why a URL may not be called; "" if it may

    def mail(self, value: object, *, work_seconds: float = 0, id: str = "") -> NewMessage:
        """Read the object of `POST /` or `POST /v1/messages`.

        If it names no job, `work_seconds` of simulated work come first.

        Raises:
          MalformedJSON: it is no object.
          InvalidMessage: fields are wrong, unknown or missing.
        """
        submission = mail_from(value, with_job=True)
        if isinstance(value, dict) and value.get("job") is not None:
            job = _read_job(read_fields(JobRequest, value["job"], at="#/job"), at="#/job")
            return self._after_job(submission, job, at="#", id=id)
        simulates = work_seconds and not submission.options.is_scheduled
        return self._accept(
            submission, simulated(work_seconds) if simulates else None, at="#", id=id
        )

    def job(self, value: object, *, id: str = "") -> JobSubmission:
        """Read the object of `POST /v1/jobs`; raises what `mail` raises."""
        request = read_fields(JobWithMailRequest, value)
        errors: list[FieldError] = []
        job, mail = None, None
        try:
            job = _read_job(request, at="#", id=id)
        except InvalidMessage as e:
            errors += e.errors
        try:
            if request.notify is not None:
                submission = mail_from(request.notify, at="#/notify")
                mail = self._after_job(submission, job or simulated(0), at="#/notify")
        except InvalidMessage as e:
            errors += e.errors
        if errors or job is None:
            raise InvalidMessage(errors)
        return JobSubmission(job, mail)

    def batch(self, value: object) -> list[NewMessage]:
        """Read the body of `POST /v1/messages/batch`; InvalidMessage has the errors of all messages."""
        common, items, at = _read_batch(value)
        batch = BatchReader(common, at=at, common_at="#/common")
        # Each template is looked up once for all messages.
        reader = replace(self, template=cache(self.template))
        accepted: list[NewMessage] = []
        size, started = 0, time.thread_time()
        for index, item in enumerate(items):
            if submission := batch.read(index, item):
                try:
                    accepted.append(reader._accept(submission, None, at=f"{at}/{index}"))
                    size += accepted[-1].message.size
                except InvalidMessage as e:
                    batch.errors += e.errors
            # A few bytes can ask for a thousand times as much work, so a batch that asks for too much is
            # not read to its end; nor is one with ERRORS_MAX errors.
            if problem := _too_much(size, time.thread_time() - started):
                batch.errors.append(FieldError(at, problem))
            if problem or index + 1 - len(accepted) >= ERRORS_MAX:
                break
        if batch.errors:
            raise InvalidMessage(batch.errors[:ERRORS_MAX])
        return accepted

    def mail_of_rerun(self, message: Message, job: NewJob) -> NewMessage:
        """Return a new mail like that of an earlier run, for a job that is run once more."""
        return self._accept(MailSubmission(message=message, options=ANYTIME), job, at="#")

    def raw(self, mail: RawSubmission, *, id: str) -> NewMessage:
        """Return a mail that came in bytes as a message to be stored under this id.

        Raises:
          InvalidMessage: no account here may send from its From, or from the sender of its envelope.
        """
        message = mail.submission.message
        accounts = [self._account_of(author.address, "#/From") for author in mail.authors]
        if message.sender and message.sender.address:
            accounts.append(self._account_of(message.sender.address, "?from"))
        return NewMessage(
            id=id,
            message=message,
            message_id=mail.message_id or self.message_id(id),
            terms=mail.submission.options,
            sender=accounts[0] if accounts else None,
        )

    def message_id(self, id: str) -> str:
        """Return the Message-ID for a message, without angle brackets."""
        # The id of a Celery task is the client's choice and may contain anything; a header field may not.
        local = id if re.fullmatch(r"[A-Za-z0-9-]{1,64}", id) else new_id()
        return f"{local}@{self.domain}"

    def _after_job(
        self, submission: MailSubmission, job: NewJob, *, at: str, id: str = ""
    ) -> NewMessage:
        """Return a mail that is sent when the job has ended, and may contain its result: {{ job.result }}."""
        if submission.options.is_scheduled:
            detail = "expected a mail without a job, which goes when that ends, got both"
            raise InvalidMessage([FieldError(f"{at}/scheduled_at", detail)])
        mail = self._accept(submission, job, at=at, id=id)
        check(mail.message, at=at)
        return replace(mail, message=replace(mail.message, template=True))

    def _accept(
        self, submission: MailSubmission, job: NewJob | None, *, at: str, id: str = ""
    ) -> NewMessage:
        """Check what depends on this service, and return the message to be stored, with its Message-ID."""
        id = id or new_id()
        message = submission.message
        account = self._account(message, at)
        if submission.template:
            message = self._rendered(message, submission.template, f"{at}/template")
        url = submission.webhook_url
        if url and (problem := self.webhook_problem(url)):
            raise InvalidMessage([FieldError(f"{at}/webhook_url", problem)])
        if submission.unsubscribe:
            message = replace(
                message, unsubscribe=self._unsubscribe_link(message, id, f"{at}/unsubscribe")
            )
        return NewMessage(
            id=id,
            message=message,
            message_id=self.message_id(id),
            job=job,
            terms=submission.options,
            sender=account,
            webhook=url,
            queue="mail.bulk" if submission.priority == "low" else "mail",
            dry_run=submission.dry_run,
        )

    def _account(self, message: Message, at: str) -> str | None:
        """Return the account for the message's From; None if it has none, so that any account may send it."""
        return self._account_of(message.sender.address, f"{at}/from") if message.sender else None

    def _account_of(self, address: str, pointer: str) -> str:
        """Return the account that may send from an address; if none may, InvalidMessage names `pointer`."""
        if account := self.account_of(address):
            return account
        detail = (
            "expected an address that an account here may send from, got another; "
            "MAIL_ALIASES names further ones"
        )
        raise InvalidMessage([FieldError(pointer, detail)], code="invalid_from_address")

    def _rendered(self, message: Message, request: TemplateRequest, at: str) -> Message:
        template = self.template(request.name)
        if template is None:
            name = f"{request.name[:80]!a}"
            detail = f"expected the name of a stored template, as GET /v1/templates lists them, got {name}"
            raise InvalidMessage([FieldError(f"{at}/name", detail)])
        rendered = merge(template, request.variables, at=f"{at}/variables")
        subject = message.subject or rendered.subject
        return replace(message, subject=subject, text=rendered.text, html=rendered.html)

    def _unsubscribe_link(self, message: Message, id: str, at: str) -> str:
        if len(message.everyone) > 1:
            detail = (
                f"expected one recipient, as the link in it is for one, got {len(message.everyone)}"
            )
            raise InvalidMessage([FieldError(at, detail)])
        url = self.unsubscribe_url(id)
        if not url:
            detail = "expected a service with PUBLIC_URL set, where the link can lead"
            raise InvalidMessage([FieldError(at, detail)])
        return url


def _read_batch(value: object) -> tuple[dict[str, Any], list[Any], str]:
    """Return the common part, the messages, and the JSON pointer to the list of messages."""
    common: dict[str, Any] = {}
    at = "#"
    if isinstance(value, dict):
        request = read_fields(BatchRequest, value)
        common, value, at = request.common, request.messages, "#/messages"
    if not isinstance(value, list):
        raise MalformedJSON(
            "expected a list of messages, or an object with `common` and `messages`"
        )
    if not 1 <= len(value) <= BATCH_MAX:
        raise InvalidMessage(
            [FieldError(at, f"expected 1 to {BATCH_MAX} messages, got {len(value)}")]
        )
    return common, value, at


def _too_much(size: int, seconds: float) -> str:
    """Say why a batch is read no further; "" if it is."""
    # Each message is stored whole: a common attachment of 20 MB would become 20 GB on disk.
    if size > BATCH_MAX_BYTES:
        return f"expected at most {BATCH_MAX_BYTES} bytes in all texts and attachments together, got more"
    if seconds > BATCH_MAX_SECONDS:
        return (
            f"expected messages that are read and filled in within {BATCH_MAX_SECONDS:g} s, "
            "got more or slower ones"
        )
    return ""


def simulated(seconds: float) -> NewJob:
    """Return the job that simulates heavy work before a mail, which is sent only if the job succeeds."""
    kind = registry.job_type("simulate")
    return NewJob(
        id=new_id(),
        name=kind.name,
        args={"seconds": seconds},
        queue=kind.queue,
        timeout_seconds=kind.timeout_seconds + seconds,
        max_attempts=kind.max_attempts,
    )


def _read_job(request: JobRequest, *, at: str, id: str = "") -> NewJob:
    kind = _job_type(request.name, at)
    try:
        kind.check(request.args)
    except InvalidMessage as e:
        errors = [
            FieldError(at + error.pointer.removeprefix("#"), error.detail) for error in e.errors
        ]
        raise InvalidMessage(errors) from None
    if request.retry:
        try:
            Schedule.parse(request.retry)
        except ValueError as e:
            raise InvalidMessage([FieldError(f"{at}/retry", str(e))]) from None
    return NewJob(
        id=id or new_id(),
        name=kind.name,
        args=request.args,
        queue=kind.queue,
        notify_on=request.notify_on,
        retry=request.retry or "",
        timeout_seconds=request.timeout_seconds or kind.timeout_seconds,
        max_attempts=request.max_attempts or kind.max_attempts,
    )


def _job_type(name: str, at: str) -> JobType:
    try:
        return registry.job_type(name)
    except UnknownJob as e:
        detail = str(e)
        nearest = difflib.get_close_matches(name, [kind.name for kind in registry.job_types()], n=1)
        if nearest:
            detail += f"; did you mean {nearest[0]}?"
        raise InvalidMessage([FieldError(f"{at}/name", detail)]) from None
