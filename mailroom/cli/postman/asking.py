"""A request of the Postman collection: what it sends, and what it expects."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from mailroom.api.auth.scopes import needed
from mailroom.api.openapi.operations import OPERATIONS, PROBLEM
from mailroom.store.keys.api_keys import Scope

#: An address that no mail went to before, so that a run finds its own mail only.
FRESH_ADDRESS = "'bob+' + Date.now() + '@example.org'"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A request to a route of this service. What stands in JavaScript may use `answer`, the answer's JSON."""

    name: str
    route: str  #: as in OPERATIONS
    told: str
    status: int | tuple[int, ...] = 200
    body: Any = None  #: JSON; a string is sent as it is
    form: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    at: Mapping[str, str] = field(
        default_factory=dict
    )  #: what stands in the path; without it the variable of that name
    fresh: Mapping[str, str] = field(
        default_factory=dict
    )  #: variables that are set before, each a JavaScript expression
    kept: Mapping[str, str] = field(default_factory=dict)  #: variables that are set after
    expects: Mapping[str, str] = field(default_factory=dict)  #: the name of a test, and its JavaScript

    @property
    def statuses(self) -> tuple[int, ...]:
        return self.status if isinstance(self.status, tuple) else (self.status,)


def item(ask: Ask) -> dict[str, Any]:
    """The request as Postman reads it."""
    method, _, rule = ask.route.partition(" ")
    request: dict[str, Any] = {
        "method": method,
        "header": [{"key": name, "value": value} for name, value in _headers(ask).items()],
        "url": _url(ask, rule),
        "description": f"{ask.told} {_who(method, rule)}",
    }
    if ask.body is not None:
        raw = ask.body if isinstance(ask.body, str) else json.dumps(ask.body, indent=2, ensure_ascii=False)
        request["body"] = {"mode": "raw", "raw": raw, "options": {"raw": {"language": "json"}}}
    elif ask.form:
        request["body"] = {
            "mode": "formdata",
            "formdata": [
                *(
                    {"key": name, "type": "text", "value": json.dumps(value, ensure_ascii=False)}
                    for name, value in ask.form.items()
                ),
                {
                    "key": "attachments",
                    "type": "file",
                    "src": [],
                    "disabled": True,
                    "description": "Choose files, and switch it on.",
                },
            ],
        }
    before = [f"pm.collectionVariables.set('{name}', {value});" for name, value in ask.fresh.items()]
    events = [_event("prerequest", before)] if before else []
    return {"name": ask.name, "event": [*events, _event("test", _tests(ask))], "request": request}


def _tests(ask: Ask) -> list[str]:
    """The status, what is expected of the answer, and what is kept of it."""
    said = " or ".join(HTTPStatus(status).phrase for status in ask.statuses)
    lines = [
        f"pm.test('{said}', () => pm.expect(pm.response.code).to.be.oneOf([{', '.join(map(str, ask.statuses))}]));"
    ]
    expects = dict(ask.expects)
    if min(ask.statuses) >= 400:
        expects = {
            "refused as problem+json": f"pm.expect(pm.response.headers.get('Content-Type')).to.include('{PROBLEM}');"
        } | expects
    for name, script in expects.items():
        body = script.strip("\n").splitlines()
        uses = [] if not re.search(r"\banswer\b", script) else ["const answer = pm.response.json();"]
        lines += [f"pm.test('{name}', () => {{", *(f"  {line}" for line in (*uses, *body)), "});"]
    if ask.kept:
        lines += [
            "const answer = pm.response.json();",
            *(f"pm.collectionVariables.set('{name}', {value});" for name, value in ask.kept.items()),
        ]
    return lines


def _headers(ask: Ask) -> dict[str, str]:
    return ({} if ask.body is None else JSON) | dict(ask.headers)


def _url(ask: Ask, rule: str) -> dict[str, Any]:
    base = "{{inboxUrl}}" if rule.startswith("/inbox") else "{{baseUrl}}"
    path = re.sub(r"<(?:\w+:)?(\w+)>", lambda found: ask.at.get(found[1], f"{{{{{found[1]}}}}}"), rule)
    query = "&".join(f"{name}={value}" for name, value in ask.query.items())
    url: dict[str, Any] = {
        "raw": f"{base}{path}" + (f"?{query}" if query else ""),
        "host": [base],
        "path": path[1:].split("/"),
    }
    return url | (
        {"query": [{"key": name, "value": value} for name, value in ask.query.items()]} if query else {}
    )


def _who(method: str, rule: str) -> str:
    if OPERATIONS[f"{method} {rule}"].is_open:
        return "Needs no key."
    wanted = " or ".join(f"`{scope}`" for scope in dict.fromkeys([*needed(method, rule), Scope.ADMIN]))
    return f"Needs a key with the scope {wanted}, where there are keys."


def _event(listen: str, lines: list[str]) -> dict[str, Any]:
    return {"listen": listen, "script": {"type": "text/javascript", "exec": lines}}
