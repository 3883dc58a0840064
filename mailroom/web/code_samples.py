"""Writes a mail as a program would send it: for a shell, for Python, and for Postman."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mailroom.model.message import Address, Message

#: Nobody copies a command with a longer text.
JSON_MAX_CHARACTERS = 5_000

_COLLECTION_SCHEMA = "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"


@dataclass(frozen=True)
class Code:
    curl: str
    python: str
    postman: str


def code_of(
    base: str, body: Mapping[str, Any], *, files: Sequence[str] = (), needs_key: bool
) -> Code:
    """Return programs that send this mail to the service at `base`; `files` are names of attachments."""
    return Code(
        _curl(base, body, files, needs_key),
        _python(base, body, files, needs_key),
        _postman(base, body, files, needs_key),
    )


def body_of(message: Message) -> dict[str, Any]:
    """Return the JSON that submits this message, without its attachments."""
    body: dict[str, Any] = {"to": _people(message.to)}
    for field in ("cc", "bcc", "reply_to"):
        if people := getattr(message, field):
            body[field] = _people(people)
    if message.sender:
        body["from"] = _person(message.sender)
    if message.subject:
        body["subject"] = message.subject
    for field in ("text", "html"):
        if (text := getattr(message, field)) is not None:
            body[field] = text
    if message.headers:
        body["headers"] = dict(message.headers)
    if message.tags:
        body["tags"] = list(message.tags)
    if message.metadata:
        body["metadata"] = dict(message.metadata)
    if message.unsubscribe:
        body["unsubscribe"] = True
    return body


def is_short(body: Mapping[str, Any]) -> bool:
    return len(json.dumps(body)) <= JSON_MAX_CHARACTERS


def _people(people: Sequence[Address]) -> Any:
    if len(people) == 1:
        return _person(people[0])
    return [_person(person) for person in people]


def _person(person: Address) -> Any:
    return {"email": person.address, "name": person.name} if person.name else person.address


def _curl(base: str, body: Mapping[str, Any], files: Sequence[str], needs_key: bool) -> str:
    lines = [f"curl {base}/v1/messages"]
    if needs_key:
        lines.append('-H "Authorization: Bearer $API_KEY"')
    data = json.dumps(body, ensure_ascii=False)
    if files:
        lines.append(f"--form-string {shlex.quote(f'message={data}')}")
        lines += [f"-F {shlex.quote(f'attachments=@{name}')}" for name in files]
    else:
        lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(data)}"]
    return " \\\n  ".join(lines)


def _python(base: str, body: Mapping[str, Any], files: Sequence[str], needs_key: bool) -> str:
    imports = []
    arguments = [repr(f"{base}/v1/messages")]
    if files:
        imports.append("import json")
        opened = ", ".join(f'("attachments", open({name!r}, "rb"))' for name in files)
        arguments.append(f'data={{"message": json.dumps({_literal(body)})}}')
        arguments.append(f"files=[{opened}]")
    else:
        arguments.append(f"json={_literal(body)}")
    if needs_key:
        imports.append("import os")
        arguments.append("""headers={"Authorization": f"Bearer {os.environ['API_KEY']}"}""")
    if imports:
        imports.append("")
    lines = [*imports, "import requests", "", "answer = requests.post("]
    lines += [f"    {argument}," for argument in arguments]
    return "\n".join([*lines, ")", "print(answer.json())"])


def _literal(value: Any) -> str:
    """Write a JSON value as Python does, where true is True and null is None."""
    return repr(json.loads(json.dumps(value)))


def _postman(base: str, body: Mapping[str, Any], files: Sequence[str], needs_key: bool) -> str:
    """Return a Postman collection (format 2.1) of this one request, to be pasted into Import."""
    header = []
    if not files:
        header.append({"key": "Content-Type", "value": "application/json"})
    if needs_key:
        header.append({"key": "Authorization", "value": "Bearer {{apiKey}}"})
    request = {
        "method": "POST",
        "header": header,
        "url": f"{base}/v1/messages",
        "body": _postman_body(body, files),
    }
    collection = {
        "info": {"name": "mailasync: one mail", "schema": _COLLECTION_SCHEMA},
        "item": [{"name": "Send", "request": request}],
    }
    return json.dumps(collection, indent=2, ensure_ascii=False)


def _postman_body(body: Mapping[str, Any], files: Sequence[str]) -> dict[str, Any]:
    text = json.dumps(body, indent=2, ensure_ascii=False)
    if not files:
        return {"mode": "raw", "raw": text, "options": {"raw": {"language": "json"}}}
    form = [{"key": "message", "type": "text", "value": text}]
    form += [{"key": "attachments", "type": "file", "src": name} for name in files]
    return {"mode": "formdata", "formdata": form}
