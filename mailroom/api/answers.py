"""Types of the JSON that the API answers: dictionaries at run time, and the source of the OpenAPI schemas.

The class `MessageJson` becomes the schema `Message`; its docstring and descriptions are for users of the API.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, WithJsonSchema
from typing_extensions import TypedDict  # pydantic reads these of Python from 3.12 on

from mailroom.api.json_schemas import (
    AccountStateWord,
    AnyObject,
    Count,
    DeliveryEventWord,
    DeliveryState,
    EventWord,
    FailureWord,
    Id,
    JobStateWord,
    JobStep,
    NotifyOnWord,
    Progress,
    ReasonWord,
    RecipientKind,
    StateWord,
    Time,
    one_of,
)
from mailroom.store.events.webhook_events import OWN


class FieldProblemJson(TypedDict):
    """A wrong field: its JSON pointer, or the name of a parameter, and what is wrong."""

    detail: str
    pointer: NotRequired[str]
    parameter: NotRequired[str]


class ProblemJson(TypedDict):
    """Problem details (RFC 9457); `detail` says what was expected and what came."""

    type: str
    title: str
    status: int
    detail: str
    code: NotRequired[str]
    request_id: NotRequired[str]
    scopes: NotRequired[list[str]]
    id: NotRequired[Annotated[Id, Field(description="The id that may have been accepted.")]]
    ids: NotRequired[
        Annotated[list[Id], Field(description="The ids of a batch that may have been accepted.")]
    ]
    errors: NotRequired[list[FieldProblemJson]]


class AcceptedJson(TypedDict):
    id: Id
    status: StateWord


class AcceptedBatchJson(TypedDict):
    data: list[AcceptedJson]


class EventJson(TypedDict):
    at: Time
    event: str
    attempt: NotRequired[Count]
    detail: NotRequired[str]


class EventsJson(TypedDict):
    data: list[EventJson]


class PersonJson(TypedDict):
    email: str
    name: str
    kind: RecipientKind


class RecipientJson(PersonJson):
    status: StateWord


class RecipientWithReplyJson(RecipientJson):
    reply: str | None


class JobOfMessageJson(TypedDict):
    id: Id
    name: str
    status: JobStateWord
    progress: Progress
    step: JobStep


class MessageJson(TypedDict):
    id: Id
    status: StateWord
    why: Annotated[str, Field(description="What the message waits for, or how it ended.")]
    subject: str
    tags: list[str]
    metadata: dict[str, str]
    created_at: Time
    next_attempt_at: Time | None
    expires_at: Time | None
    max_attempts: Count | None
    resent_of: Id | None
    message_id: Annotated[str, Field(description="The header field Message-ID.")]
    attempts: Count
    uncertain_attempts: Count
    recipients: list[RecipientWithReplyJson]
    job: Annotated[
        JobOfMessageJson | None, Field(description="The job that the message waits for.")
    ]
    timeline: list[EventJson]


class MessageSummaryJson(TypedDict):
    id: Id
    status: StateWord
    subject: str
    tags: list[str]
    queue: str
    created_at: Time
    next_attempt_at: Time | None
    attempts: Count
    reason: str | None
    recipients: list[RecipientJson]


class MessagePageJson(TypedDict):
    data: list[MessageSummaryJson]
    has_more: bool
    next: str | None


class SenderJson(TypedDict):
    email: str
    name: str


class FileJson(TypedDict):
    filename: str
    content_type: str
    size: Count


#: A class cannot have a field `from`, which is a keyword.
_DryRunFromJson = TypedDict("_DryRunFromJson", {"from": SenderJson})


class DryRunJson(_DryRunFromJson):
    """The mail that would be sent."""

    dry_run: Literal[True]
    status: StateWord
    subject: str
    recipients: list[PersonJson]
    text: str | None
    html: str | None
    attachments: list[FileJson]
    size: Count


class JobSummaryJson(TypedDict):
    id: Id
    name: str
    status: JobStateWord
    progress: Progress
    step: JobStep
    error: str | None
    queue: str
    attempts: Count
    max_attempts: Count
    timeout_seconds: float
    notify_on: NotifyOnWord | None
    retry_of: Annotated[Id | None, Field(description="The job that this one runs again.")]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    next_attempt_at: Time | None


class JobFileJson(TypedDict):
    name: str
    content_type: str
    size: Count
    url: str


class JobJson(JobSummaryJson):
    why: str
    args: AnyObject
    result: Annotated[Any, Field(description="The return value of the job.")]
    file: JobFileJson | None
    message: AcceptedJson | None
    timeline: list[EventJson]


class JobPageJson(TypedDict):
    data: list[JobSummaryJson]
    has_more: bool
    next: str | None


class JobTypeJson(TypedDict):
    name: str
    description: str
    queue: str
    isolated: bool
    timeout_seconds: float
    max_attempts: Count
    arguments: Annotated[AnyObject, Field(description="A JSON Schema.")]


class JobTypesJson(TypedDict):
    data: list[JobTypeJson]


class BudgetJson(TypedDict):
    """The use of a limit in the last 24 hours; null if there is no limit."""

    limit: Count
    sent: Count
    left: Count


class MailboxJson(TypedDict):
    """The mailbox where bounces come. `sent_folder` is empty if there is none, null if not known yet."""

    host: str
    has_reader: Annotated[bool, Field(description="True: a living worker reads it, or tries to.")]
    read_at: Annotated[Time | None, Field(description="The time when all mails had been read.")]
    sent_folder: str | None
    trouble: Annotated[str | None, Field(description="The reason why it cannot be read.")]


_AccountFromJson = TypedDict("_AccountFromJson", {"from": str})


class AccountJson(_AccountFromJson):
    name: str
    next_hop: str
    status: AccountStateWord
    why: str
    since: Time | None
    tried_again_at: Time | None
    messages: BudgetJson | None
    recipients: BudgetJson | None
    mailbox: MailboxJson | None


class AccountsJson(TypedDict):
    data: list[AccountJson]


class TemplateSummaryJson(TypedDict):
    name: str
    subject: str
    created_at: Time
    updated_at: Time


class TemplateJson(TemplateSummaryJson):
    text: str | None
    html: str | None


class TemplatePageJson(TypedDict):
    data: list[TemplateSummaryJson]
    has_more: bool


class PreviewJson(TypedDict):
    subject: str
    text: str | None
    html: str | None


class SuppressionJson(TypedDict):
    address: str
    reason: ReasonWord
    detail: str | None
    message: Id | None
    created_at: Time


class SuppressionPageJson(TypedDict):
    data: list[SuppressionJson]
    has_more: bool
    next: str | None


class SuppressionsAddedJson(TypedDict):
    added: Count
    known: Count


class WebhookSummaryJson(TypedDict):
    id: Annotated[
        str, Field(description=f"`{OWN}` stands for the URLs that messages name themselves.")
    ]
    url: str | None
    events: Annotated[list[EventWord], Field(description="An empty list: all.")]
    enabled: bool
    reason: Annotated[str | None, Field(description="Why the webhook is disabled.")]
    created_at: Time


class WebhookJson(WebhookSummaryJson):
    secret: NotRequired[
        Annotated[str, Field(description="The key that signs each POST (Standard Webhooks).")]
    ]


class WebhooksJson(TypedDict):
    data: list[WebhookSummaryJson]


class DeliveryJson(TypedDict):
    number: Count
    type: DeliveryEventWord
    message_id: Id | None
    created_at: Time
    status: DeliveryState
    attempts: Count
    code: int | None
    reply: str | None
    next_attempt_at: Time | None


class DeliveryPageJson(TypedDict):
    data: list[DeliveryJson]
    has_more: bool
    next: str | None


class PongJson(TypedDict):
    status: Literal["success"]
    message: Literal["pong"]


class AliveJson(TypedDict):
    status: Literal["ok"]


class ChecksJson(TypedDict):
    database: str
    clock: str
    broker: str
    worker: str
    threads: str
    mailboxes: str


class ReadinessJson(TypedDict):
    status: Annotated[str, WithJsonSchema(one_of(("ok", "unready")))]
    checks: ChecksJson


class MailFileJson(TypedDict):
    filename: str | None
    content_type: str
    size: Count


_MailFromJson = TypedDict("_MailFromJson", {"from": str})


class MailJson(_MailFromJson):
    """A mail in the disposable inbox."""

    id: str
    received_at: Time
    envelope_from: str
    to: list[str]
    subject: str
    message_id: str
    text: str | None
    html: str | None
    size: Count
    headers: dict[str, list[str]]
    attachments: list[MailFileJson]


class MailsJson(TypedDict):
    data: list[MailJson]


class NextFailureJson(TypedDict):
    failure: FailureWord | None
    count: Count
