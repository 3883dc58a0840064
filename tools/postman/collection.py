"""Puts the requests together, in Postman's format."""

from dataclasses import dataclass
from typing import Any

from tools.postman.batches import MANY
from tools.postman.examples import read_examples
from tools.postman.jobs import JOBS
from tools.postman.messages import MESSAGES, START
from tools.postman.request import PostmanRequest, item
from tools.postman.resources import SUPPRESSIONS, TEMPLATES, WEBHOOKS
from tools.postman.service import ERRORS, INBOX, SERVICE

SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"


@dataclass(frozen=True)
class Folder:
    """A folder of the collection; its requests are sent from top to bottom."""

    name: str
    description: str
    requests: tuple[PostmanRequest, ...]


FOLDERS = (
    Folder(
        "Start here",
        "A mail from the request to the inbox: send it, ask where it is, wait for it, read it.",
        START,
    ),
    Folder(
        "One message",
        "Everything that a mail can have, sending it once only, and scheduling, holding and canceling it.",
        MESSAGES,
    ),
    Folder(
        "Many messages",
        "Up to 1,000 mails in one request, and lists of messages with filters, page by page.",
        MANY,
    ),
    Folder(
        "Templates",
        "Stored subjects and texts with `{{ variables }}`: save, preview, send, delete.",
        TEMPLATES,
    ),
    Folder(
        "Jobs",
        "Heavy work, its progress and its result, and the mail that goes out when it has ended.",
        JOBS,
    ),
    Folder(
        "Suppressions",
        "Addresses that get no mail, because they bounced, unsubscribed, or by your decision.",
        SUPPRESSIONS,
    ),
    Folder(
        "Webhooks",
        "URLs of yours that are called when something happens to a message or a job, signed.",
        WEBHOOKS,
    ),
    Folder(
        "What is refused",
        "Wrong requests. Each answer is problem details (RFC 9457) that say what was expected.",
        ERRORS,
    ),
    Folder(
        "The service",
        "Its health, its sender accounts, its numbers and its description.",
        SERVICE,
    ),
    Folder(
        "The inbox",
        "The disposable inbox of `make run`: read and delete what came, or make the next mail fail.",
        INBOX,
    ),
)
REQUESTS = [request for folder in FOLDERS for request in folder.requests]
_DESCRIPTION = (
    "Run `make run`, then send these from top to bottom. Every request has a saved answer as an example. "
    "Import the environment of how you run the service, too; it has the addresses, and takes the API key, "
    "which every request sends as `Authorization: Bearer` where there is one."
)
_BEARER = {
    "type": "bearer",
    "bearer": [{"key": "token", "value": "{{apiKey}}", "type": "string"}],
}
_VARIABLES = {"baseUrl": "http://127.0.0.1:5000", "apiKey": "", "inboxUrl": "{{baseUrl}}"}


def collection() -> dict[str, Any]:
    """Return the collection, in the format 2.1."""
    return {
        "info": {"name": "mailasync", "description": _DESCRIPTION, "schema": SCHEMA},
        "auth": _BEARER,
        "variable": [{"key": name, "value": value} for name, value in _variables().items()],
        "item": [_folder(folder) for folder in FOLDERS],
    }


def _variables() -> dict[str, str]:
    """Return the variables with their values at first; those that requests set are empty."""
    names = [name for request in REQUESTS for name in (*request.set_before, *request.set_after)]
    return _VARIABLES | dict.fromkeys(names, "")


def _folder(folder: Folder) -> dict[str, Any]:
    examples = read_examples()
    items = [item(request, examples.get(request.name)) for request in folder.requests]
    return {"name": folder.name, "description": folder.description, "item": items}
