"""JSON schemas of single values, and the types of fields that have them."""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from mailroom.model.account import AccountState
from mailroom.model.message import State
from mailroom.store.events.webhook_events import DELIVERED, FAILED, PENDING, TEST, TYPES
from mailroom.store.jobs.jobs import JobState, NotifyOn
from mailroom.store.messages.suppressions import Reason

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "string", "format": "date-time"}
#: Longer than our own ids, as a Celery client's task id becomes the id of its mail.
ID: Schema = {
    "type": "string",
    "pattern": r"^[\x20-\x7e]{1,200}$",
    "examples": ["01936f0e-8a6d-7c5e-9b51-3f6f0d6f2a11"],
}


def one_of(values: Iterable[str]) -> Schema:
    return {"type": "string", "enum": [*values]}


STATE = one_of(State)
JOB_STATE = one_of(JobState)
NOTIFY_ON = one_of(NotifyOn)
ACCOUNT_STATE = one_of(AccountState)
SUPPRESSION_REASON = one_of(Reason)
EVENT = one_of(TYPES)
DELIVERY_EVENT = one_of((*TYPES, TEST))
DELIVERY_STATE = one_of((PENDING, DELIVERED, FAILED))
RECIPIENT_KIND = one_of(("to", "cc", "bcc"))
FAILURE = one_of(("defer", "refuse", "drop"))

Count = Annotated[int, Field(ge=0)]
Time = Annotated[str, WithJsonSchema(TIME)]
Id = Annotated[str, WithJsonSchema(ID)]
AnyObject = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
StateWord = Annotated[str, WithJsonSchema(STATE)]
JobStateWord = Annotated[str, WithJsonSchema(JOB_STATE)]
NotifyOnWord = Annotated[str, WithJsonSchema(NOTIFY_ON)]
AccountStateWord = Annotated[str, WithJsonSchema(ACCOUNT_STATE)]
ReasonWord = Annotated[str, WithJsonSchema(SUPPRESSION_REASON)]
EventWord = Annotated[str, WithJsonSchema(EVENT)]
DeliveryEventWord = Annotated[str, WithJsonSchema(DELIVERY_EVENT)]
DeliveryState = Annotated[str, WithJsonSchema(DELIVERY_STATE)]
RecipientKind = Annotated[str, WithJsonSchema(RECIPIENT_KIND)]
Progress = Annotated[float, Field(ge=0, le=1)]
JobStep = Annotated[str | None, Field(description="What the job is doing, in its own words.")]
FailureWord = Annotated[str, WithJsonSchema(FAILURE)]
