"""JSON Schema of what the answers hold: each is exactly this, and a test holds real answers against it."""

from collections.abc import Iterable
from typing import Any

from mailroom.model.account import AccountState
from mailroom.model.message import State
from mailroom.store.events.deliveries import DELIVERED, FAILED, OWN, PENDING, TEST, TYPES
from mailroom.store.jobs.jobs import JobState, NotifyOn
from mailroom.store.messages.suppressions import Reason

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
#: A client chose it where it is the id of a task.
ID: Schema = {
    "type": "string",
    "pattern": r"^[\x20-\x7e]{1,200}$",
    "examples": ["01936f0e-8a6d-7c5e-9b51-3f6f0d6f2a11"],
}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def one_of(words: Iterable[str]) -> Schema:
    return {"type": "string", "enum": [*words]}


def array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def exactly(
    fields: dict[str, Schema], *, sometimes: dict[str, Schema] | None = None, told: str = ""
) -> Schema:
    """An object with all of these fields and no others but those of `sometimes`."""
    return ({"description": told} if told else {}) | {
        "type": "object",
        "properties": fields | (sometimes or {}),
        "required": [*fields],
        "additionalProperties": False,
    }


def page_of(name: str, *, has_next: bool = True) -> Schema:
    fields = {"data": array(ref(name)), "has_more": FLAG}
    return exactly(fields | ({"next": or_null(TEXT)} if has_next else {}))


def _with(fields: dict[str, Schema], **described: str) -> dict[str, Schema]:
    return {
        name: schema | ({"description": described[name]} if name in described else {})
        for name, schema in fields.items()
    }


_PERSON = {"email": TEXT, "name": TEXT, "kind": one_of(("to", "cc", "bcc"))}
_RECIPIENT = {**_PERSON, "status": one_of(State)}
_JOB = _with(
    {
        "id": ID,
        "name": TEXT,
        "status": one_of(JobState),
        "progress": {"type": "number", "minimum": 0, "maximum": 1},
        "step": or_null(TEXT),
        "error": or_null(TEXT),
        "queue": TEXT,
        "attempts": COUNT,
        "max_attempts": COUNT,
        "timeout_seconds": {"type": "number"},
        "notify_on": or_null(one_of(NotifyOn)),
        "retry_of": or_null(ID),
        "created_at": TIME,
        "started_at": or_null(TIME),
        "finished_at": or_null(TIME),
        "next_attempt_at": or_null(TIME),
    },
    step="What it is at, in its own words.",
    retry_of="The job that this one runs once more.",
)
_BUDGET = or_null(
    exactly(
        {"limit": COUNT, "sent": COUNT, "left": COUNT}, told="Of any 24 hours; null where there is no limit."
    )
)
_DATED = {"created_at": TIME, "updated_at": TIME}
_WEBHOOK = _with(
    {
        "id": TEXT,
        "url": or_null(TEXT),
        "events": array(one_of(TYPES)),
        "enabled": FLAG,
        "reason": or_null(TEXT),
        "created_at": TIME,
    },
    id=f"`{OWN}` stands for the URLs that messages name themselves.",
    events="None: all.",
    reason="Why it is told nothing.",
)

_UNCONFIRMED = _with(
    {"id": ID, "ids": array(ID)},
    id="What may have been accepted.",
    ids="All of a batch, which may have been accepted.",
)

SCHEMAS: dict[str, Schema] = {
    "Problem": exactly(
        {"type": TEXT, "title": TEXT, "status": {"type": "integer"}, "detail": TEXT},
        sometimes={
            "code": TEXT,
            "request_id": TEXT,
            "scopes": array(TEXT),
            **_UNCONFIRMED,
            "errors": array(
                exactly(
                    {"detail": TEXT},
                    sometimes={"pointer": TEXT, "parameter": TEXT},
                    told="What is wrong, and where: a JSON pointer.",
                )
            ),
        },
        told="What was expected, and what came (RFC 9457).",
    ),
    "Accepted": exactly({"id": ID, "status": one_of(State)}),
    "AcceptedBatch": exactly({"data": array(ref("Accepted"))}),
    "Event": exactly({"at": TIME, "event": TEXT}, sometimes={"attempt": COUNT, "detail": TEXT}),
    "Events": exactly({"data": array(ref("Event"))}),
    "Message": exactly(
        _with(
            {
                "id": ID,
                "status": one_of(State),
                "why": TEXT,
                "subject": TEXT,
                "tags": array(TEXT),
                "metadata": {"type": "object", "additionalProperties": TEXT},
                "created_at": TIME,
                "next_attempt_at": or_null(TIME),
                "expires_at": or_null(TIME),
                "max_attempts": or_null(COUNT),
                "resent_of": or_null(ID),
                "message_id": TEXT,
                "attempts": COUNT,
                "uncertain_attempts": COUNT,
                "recipients": array(exactly({**_RECIPIENT, "reply": or_null(TEXT)})),
                "job": or_null(
                    exactly({name: _JOB[name] for name in ("id", "name", "status", "progress", "step")})
                ),
                "timeline": array(ref("Event")),
            },
            why="What it waits for, or how it ended.",
            message_id="The header field.",
            job="The work that it waits for.",
        )
    ),
    "MessageSummary": exactly(
        {
            "id": ID,
            "status": one_of(State),
            "subject": TEXT,
            "tags": array(TEXT),
            "queue": TEXT,
            "created_at": TIME,
            "next_attempt_at": or_null(TIME),
            "attempts": COUNT,
            "reason": or_null(TEXT),
            "recipients": array(exactly(_RECIPIENT)),
        }
    ),
    "MessagePage": page_of("MessageSummary"),
    "DryRun": exactly(
        {
            "dry_run": {"const": True},
            "status": one_of(State),
            "from": exactly({"email": TEXT, "name": TEXT}),
            "subject": TEXT,
            "recipients": array(exactly(_PERSON)),
            "text": or_null(TEXT),
            "html": or_null(TEXT),
            "attachments": array(exactly({"filename": TEXT, "content_type": TEXT, "size": COUNT})),
            "size": COUNT,
        },
        told="What would be sent.",
    ),
    "JobSummary": exactly(_JOB),
    "Job": exactly(
        {
            **_JOB,
            "why": TEXT,
            "args": {"type": "object"},
            "result": {"description": "What it returned."},
            "file": or_null(exactly({"name": TEXT, "content_type": TEXT, "size": COUNT, "url": TEXT})),
            "message": or_null(exactly({"id": ID, "status": one_of(State)})),
            "timeline": array(ref("Event")),
        }
    ),
    "JobPage": page_of("JobSummary"),
    "JobTypes": exactly(
        {
            "data": array(
                exactly(
                    {
                        "name": TEXT,
                        "description": TEXT,
                        "queue": TEXT,
                        "isolated": FLAG,
                        "timeout_seconds": {"type": "number"},
                        "max_attempts": COUNT,
                        "arguments": {"type": "object", "description": "JSON Schema."},
                    }
                )
            )
        }
    ),
    "Account": exactly(
        {
            "name": TEXT,
            "from": TEXT,
            "next_hop": TEXT,
            "status": one_of(AccountState),
            "why": TEXT,
            "since": or_null(TIME),
            "tried_again_at": or_null(TIME),
            "messages": _BUDGET,
            "recipients": _BUDGET,
        }
    ),
    "Accounts": exactly({"data": array(ref("Account"))}),
    "Template": exactly(
        {"name": TEXT, "subject": TEXT, "text": or_null(TEXT), "html": or_null(TEXT), **_DATED}
    ),
    "TemplateSummary": exactly({"name": TEXT, "subject": TEXT, **_DATED}),
    "TemplatePage": page_of("TemplateSummary", has_next=False),
    "Preview": exactly({"subject": TEXT, "text": or_null(TEXT), "html": or_null(TEXT)}),
    "Suppression": exactly(
        {
            "address": TEXT,
            "reason": one_of(Reason),
            "detail": or_null(TEXT),
            "message": or_null(ID),
            "created_at": TIME,
        }
    ),
    "SuppressionPage": page_of("Suppression"),
    "SuppressionsAdded": exactly({"added": COUNT, "known": COUNT}),
    "Webhook": exactly(
        _WEBHOOK,
        sometimes={"secret": {"type": "string", "description": "Signs each POST to it (Standard Webhooks)."}},
    ),
    "Webhooks": exactly({"data": array(exactly(_WEBHOOK))}),
    "Delivery": exactly(
        {
            "number": COUNT,
            "type": one_of((*TYPES, TEST)),
            "message_id": or_null(ID),
            "created_at": TIME,
            "status": one_of((PENDING, DELIVERED, FAILED)),
            "attempts": COUNT,
            "code": or_null({"type": "integer"}),
            "reply": or_null(TEXT),
            "next_attempt_at": or_null(TIME),
        }
    ),
    "DeliveryPage": page_of("Delivery"),
    "Pong": exactly({"status": {"const": "success"}, "message": {"const": "pong"}}),
    "Alive": exactly({"status": {"const": "ok"}}),
    "Readiness": exactly(
        {
            "status": one_of(("ok", "unready")),
            "checks": exactly(dict.fromkeys(("database", "clock", "broker", "worker", "threads"), TEXT)),
        }
    ),
    "Mail": exactly(
        {
            "id": TEXT,
            "received_at": TIME,
            "envelope_from": TEXT,
            "from": TEXT,
            "to": array(TEXT),
            "subject": TEXT,
            "message_id": TEXT,
            "text": or_null(TEXT),
            "html": or_null(TEXT),
            "size": COUNT,
            "headers": {"type": "object", "additionalProperties": array(TEXT)},
            "attachments": array(exactly({"filename": or_null(TEXT), "content_type": TEXT, "size": COUNT})),
        },
        told="A mail in the disposable inbox.",
    ),
    "AskedFailure": exactly(
        {},
        sometimes={
            "failure": or_null(one_of(("defer", "refuse", "drop"))),
            "count": {"type": "integer", "minimum": 1, "maximum": 1000},
        },
        told="null: all is well.",
    ),
    "NextFailure": exactly({"failure": or_null(one_of(("defer", "refuse", "drop"))), "count": COUNT}),
    "Mails": exactly({"data": array(ref("Mail"))}),
    "OpenAPI": {"type": "object", "required": ["openapi", "info", "paths"]},
}
