"""Puts the requests together, in Postman's format."""

from typing import Any

from tools.postman.batches import MANY
from tools.postman.jobs import JOBS
from tools.postman.messages import MESSAGES, START
from tools.postman.request import PostmanRequest, item
from tools.postman.resources import SUPPRESSIONS, TEMPLATES, WEBHOOKS
from tools.postman.service import ERRORS, INBOX, SERVICE

SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
FOLDERS: dict[str, tuple[PostmanRequest, ...]] = {
    "Start here": START,
    "One message": MESSAGES,
    "Many messages": MANY,
    "Templates": TEMPLATES,
    "Jobs": JOBS,
    "Suppressions": SUPPRESSIONS,
    "Webhooks": WEBHOOKS,
    "What is refused": ERRORS,
    "The service": SERVICE,
    "The inbox": INBOX,
}
REQUESTS = [request for folder in FOLDERS.values() for request in folder]
_DESCRIPTION = (
    "Run `make run`, then send these from top to bottom. Where the service has an API key, put it into the "
    "variable `apiKey`."
)
_SEND_KEY = [
    "const key = pm.variables.get('apiKey');",
    "if (key) {",
    "  pm.request.headers.upsert({key: 'Authorization', value: 'Bearer ' + key});",
    "}",
]
_VARIABLES = {"baseUrl": "http://127.0.0.1:5000", "apiKey": "", "inboxUrl": "{{baseUrl}}"}


def collection() -> dict[str, Any]:
    """Return the collection, in the format 2.1."""
    return {
        "info": {"name": "mailasync", "description": _DESCRIPTION, "schema": SCHEMA},
        "event": [
            {"listen": "prerequest", "script": {"type": "text/javascript", "exec": _SEND_KEY}}
        ],
        "variable": [{"key": name, "value": value} for name, value in _variables().items()],
        "item": [_folder(name, requests) for name, requests in FOLDERS.items()],
    }


def _variables() -> dict[str, str]:
    """Return the variables with their values at first; those that requests set are empty."""
    names = [name for request in REQUESTS for name in (*request.set_before, *request.set_after)]
    return _VARIABLES | dict.fromkeys(names, "")


def _folder(name: str, requests: tuple[PostmanRequest, ...]) -> dict[str, Any]:
    return {"name": name, "item": [item(request) for request in requests]}
