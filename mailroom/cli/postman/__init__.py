"""The command flask postman: the Postman collection, in the order in which a newcomer sends its requests."""

import json
from typing import Any

import click

from mailroom.cli.postman.asking import Ask, item
from mailroom.cli.postman.jobs import JOBS
from mailroom.cli.postman.messages import MANY, MESSAGES, START
from mailroom.cli.postman.service import ERRORS, INBOX, SERVICE, SUPPRESSIONS, TEMPLATES, WEBHOOKS

FOLDERS: dict[str, tuple[Ask, ...]] = {
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
_ABOUT = "Run `make run`, then send these from top to bottom. Where the service has an API key, put it into the variable `apiKey`."
_KEY = (
    "const key = pm.variables.get('apiKey');",
    "if (key) {",
    "  pm.request.headers.upsert({key: 'Authorization', value: 'Bearer ' + key});",
    "}",
)
_VARIABLES = {"baseUrl": "http://127.0.0.1:5000", "apiKey": "", "inboxUrl": "{{baseUrl}}"}


@click.command("postman")
def postman_command() -> None:
    """Print the Postman collection, which is mailasync.postman_collection.json."""
    click.echo(json.dumps(collection(), indent=2, ensure_ascii=False))


def collection() -> dict[str, Any]:
    """The collection, in the format 2.1."""
    asked = [ask for folder in FOLDERS.values() for ask in folder]
    names = dict.fromkeys(name for ask in asked for name in (*ask.fresh, *ask.kept))
    return {
        "info": {
            "name": "mailasync",
            "description": _ABOUT,
            "schema": "https://schema.getpostman.com/json/collection/v2.1.0/collection.json",
        },
        "event": [{"listen": "prerequest", "script": {"type": "text/javascript", "exec": [*_KEY]}}],
        "variable": [
            {"key": name, "value": value} for name, value in (_VARIABLES | dict.fromkeys(names, "")).items()
        ],
        "item": [{"name": name, "item": [item(ask) for ask in folder]} for name, folder in FOLDERS.items()],
    }
