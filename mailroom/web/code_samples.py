"""Writes a request in other words: for a shell, for Python, and for Postman."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mailroom.model.message import Address, Message

#: Longer texts make a command that nobody copies.
JSON_MAX_CHARACTERS = 5_000


@dataclass(frozen=True)
class Code:
    curl: str
    python: str
    postman: str


def code_of(base: str, body: Mapping[str, Any], *, files: Sequence[str] = (), needs_key: bool) -> Code:
    """A POST of this mail to the service at `base`; `files` are the names of those that go with it, which have to be there."""
    return Code(
        _curl(base, body, files, needs_key),
        _python(base, body, files, needs_key),
        _postman(base, body, files, needs_key),
    )


def body_of(message: Message) -> dict[str, Any]:
    """The JSON by which a client would ask for this message; without its attachments, which have names only."""
    body: dict[str, Any] = {"to": _people(message.to)}
    body |= {
        name: _people(people) for name in ("cc", "bcc", "reply_to") if (people := getattr(message, name))
    }
    body |= {"from": _person(message.sender)} if message.sender else {}
    body |= {"subject": message.subject} if message.subject else {}
    body |= {name: value for name in ("text", "html") if (value := getattr(message, name)) is not None}
    body |= {"headers": dict(message.headers)} if message.headers else {}
    body |= {"tags": [*message.tags]} if message.tags else {}
    body |= {"metadata": dict(message.metadata)} if message.metadata else {}
    return body | ({"unsubscribe": True} if message.unsubscribe else {})


def is_short(body: Mapping[str, Any]) -> bool:
    return len(json.dumps(body)) <= JSON_MAX_CHARACTERS


def _people(people: Sequence[Address]) -> Any:
    return _person(people[0]) if len(people) == 1 else [_person(one) for one in people]


def _person(person: Address) -> Any:
    return {"email": person.address, "name": person.name} if person.name else person.address


def _curl(base: str, body: Mapping[str, Any], files: Sequence[str], needs_key: bool) -> str:
    key = ' \\\n  -H "Authorization: Bearer $API_KEY"' if needs_key else ""
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    if not files:
        return f"curl {base}/v1/messages{key} \\\n  -H 'Content-Type: application/json' \\\n  -d {data}"
    parts = "".join(f" \\\n  -F {shlex.quote(f'attachments=@{name}')}" for name in files)
    quoted = shlex.quote(f"message={json.dumps(body, ensure_ascii=False)}")
    return f"curl {base}/v1/messages{key} \\\n  --form-string {quoted}{parts}"


def _python(base: str, body: Mapping[str, Any], files: Sequence[str], needs_key: bool) -> str:
    key = f',\n    headers={{"Authorization": f"Bearer {{os.environ[{"API_KEY"!r}]}}"}}' if needs_key else ""
    imports = ("import os\n\n" if needs_key else "") + "import requests\n\n"
    if not files:
        return f"{imports}answer = requests.post(\n    {base + '/v1/messages'!r},\n    json={_literal(body)}{key},\n)\nprint(answer.json())"
    opened = ", ".join(f'("attachments", open({name!r}, "rb"))' for name in files)
    return (
        f"import json\n{imports}answer = requests.post(\n    {base + '/v1/messages'!r},\n"
        f'    data={{"message": json.dumps({_literal(body)})}},\n    files=[{opened}]{key},\n)\nprint(answer.json())'
    )


def _literal(value: Any) -> str:
    """Write a value as Python does; JSON's true and null are no names there."""
    return repr(json.loads(json.dumps(value)))


def _postman(base: str, body: Mapping[str, Any], files: Sequence[str], needs_key: bool) -> str:
    """A collection of this one request (format 2.1), to be pasted into Import."""
    header = [{"key": "Authorization", "value": "Bearer {{apiKey}}"}] if needs_key else []
    text = json.dumps(body, indent=2, ensure_ascii=False)
    if files:
        sent: dict[str, Any] = {
            "mode": "formdata",
            "formdata": [
                {"key": "message", "type": "text", "value": text},
                *({"key": "attachments", "type": "file", "src": name} for name in files),
            ],
        }
    else:
        header.insert(0, {"key": "Content-Type", "value": "application/json"})
        sent = {"mode": "raw", "raw": text, "options": {"raw": {"language": "json"}}}
    return json.dumps(
        {
            "info": {
                "name": "mailasync: one mail",
                "schema": "https://schema.getpostman.com/json/collection/v2.1.0/collection.json",
            },
            "item": [
                {
                    "name": "Send",
                    "request": {
                        "method": "POST",
                        "header": header,
                        "url": f"{base}/v1/messages",
                        "body": sent,
                    },
                }
            ],
        },
        indent=2,
        ensure_ascii=False,
    )
