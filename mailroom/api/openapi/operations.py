"""All operations of this service, for /openapi.json and the Postman collection."""

from mailroom.api.json_schemas import ID, Schema
from mailroom.api.openapi.inbox import INBOX
from mailroom.api.openapi.jobs import JOBS
from mailroom.api.openapi.messages import MESSAGES
from mailroom.api.openapi.operation import Operation
from mailroom.api.openapi.service import SERVICE
from mailroom.api.openapi.suppressions import SUPPRESSIONS
from mailroom.api.openapi.templates import TEMPLATES
from mailroom.api.openapi.webhooks import WEBHOOKS

#: By method and rule, as Flask writes them; the document keeps this order.
OPERATIONS: dict[str, Operation] = {
    **MESSAGES,
    **JOBS,
    **TEMPLATES,
    **SUPPRESSIONS,
    **WEBHOOKS,
    **SERVICE,
    **INBOX,
}

#: The schemas of the parameters in paths, by name.
PATH_SCHEMAS: dict[str, Schema] = {
    "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9._-]{0,99}$"},
    "address": {"type": "string", "minLength": 3},
    "account": {"type": "string", "minLength": 1},
    "number": {"type": "integer", "minimum": 1},
    "id": ID,
}

#: Examples of bodies, by the name of their schema.
EXAMPLES: dict[str, dict[str, object]] = {
    "MailAfterJobRequest": {
        "to": "you@example.org",
        "subject": "Hello",
        "contents": "The work is done.",
    },
    "BatchRequest": {
        "common": {"subject": "News", "text": "All is well."},
        "messages": [{"to": "bob@example.org"}, {"to": "carol@example.org"}],
    },
    "RescheduleRequest": {"delay": 60},
    "JobWithMailRequest": {
        "name": "simulate",
        "args": {"seconds": 2},
        "notify": {
            "to": "you@example.org",
            "subject": "{{ job.name }}: {{ job.status }}",
            "contents": "It took {{ job.seconds }} seconds.",
        },
    },
    "StoreTemplateRequest": {
        "subject": "Order {{ order }}",
        "html": "<p>Thank you, <b>{{ name }}</b>.</p>",
    },
    "PreviewRequest": {"variables": {"order": 42, "name": "Bob"}},
    "SuppressionsRequest": {"address": "bob@example.org", "detail": "asked by phone"},
    "WebhookRequest": {
        "url": "https://hooks.example.org/mail",
        "events": ["message.sent", "message.failed"],
    },
    "WebhookChange": {"enabled": False},
    "FailureRequest": {"failure": "defer", "count": 1},
}

#: A whole mail.
RAW_EXAMPLE = (
    "From: alice@example.org\r\nTo: bob@example.org\r\nSubject: Hello\r\n\r\nThe work is done.\r\n"
)

#: The paths of web pages, and of their scripts and styles, begin with one of these; they are not described.
PAGES = (
    "/docs",
    "/inbox",
    "/unsubscribe",
    "/sign-",
    "/live",
    "/dashboard",
    "/accounts",
    "/messages",
    "/compose",
    "/jobs",
    "/templates",
    "/suppressions",
    "/webhooks",
    "/keys",
)


def is_strict(route: str) -> bool:
    """Tell whether a route refuses unknown query parameters; routes for people and monitors ignore them."""
    return route == "POST /" or route.partition(" ")[2].startswith(("/v1/", "/inbox/api/"))
