"""A request of the Postman collection: what it sends, and what it expects."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from mailroom.api.auth.scopes import needed
from mailroom.api.openapi.operation import PROBLEM
from mailroom.api.openapi.operations import OPERATIONS
from mailroom.store.keys.api_keys import Scope
from tools.postman.examples import Example

#: An address that no mail went to before, so that a run finds its own mail only.
FRESH_ADDRESS = "'bob+' + Date.now() + '@example.org'"
_JSON_HEADERS = {"Content-Type": "application/json"}
_FILE_FIELD = {
    "key": "attachments",
    "type": "file",
    "src": [],
    "disabled": True,
    "description": "Choose files, and switch it on.",
}
_READ_ANSWER = "const answer = pm.response.json();"


@dataclass(frozen=True, kw_only=True)
class PostmanRequest:
    """A request to a route of this service. What stands in JavaScript may use `answer`, the answer's JSON."""

    name: str
    route: str  #: as in OPERATIONS
    description: str
    status: int | tuple[int, ...] = 200
    body: Any = None  #: JSON; a string is sent as it is
    form: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    #: What stands in the path; a name that is not here is taken from the variable of that name.
    path_values: Mapping[str, str] = field(default_factory=dict)
    #: Variables that are set before the request, each a JavaScript expression.
    set_before: Mapping[str, str] = field(default_factory=dict)
    #: Variables that are set from the answer, likewise.
    set_after: Mapping[str, str] = field(default_factory=dict)
    #: Names of tests, and their JavaScript.
    expects: Mapping[str, str] = field(default_factory=dict)
    sends_key: bool = True  #: where there is one

    @property
    def statuses(self) -> tuple[int, ...]:
        return self.status if isinstance(self.status, tuple) else (self.status,)


def item(request: PostmanRequest, example: Example | None) -> dict[str, Any]:
    """Return the request as Postman reads it, with its saved answer."""
    method, _, rule = request.route.partition(" ")
    sent: dict[str, Any] = {
        "method": method,
        "header": [{"key": name, "value": value} for name, value in _headers(request).items()],
        "url": _url(request, rule),
        "description": f"{request.description} {_needed_key(method, rule)}",
    }
    if request.body is not None:
        sent["body"] = _json_body(request.body)
    elif request.form:
        sent["body"] = _form_body(request.form)
    if not request.sends_key:
        sent["auth"] = {"type": "noauth"}
    saved = [_response(sent, example)] if example else []
    return {"name": request.name, "event": _events(request), "request": sent, "response": saved}


def _response(sent: dict[str, Any], example: Example) -> dict[str, Any]:
    """Return a saved answer; mock servers find it by the request in it."""
    phrase = HTTPStatus(example.status).phrase
    is_json = "json" in example.headers.get("Content-Type", "")
    return {
        "name": f"{example.status} {phrase}",
        "originalRequest": sent,
        "status": phrase,
        "code": example.status,
        "_postman_previewlanguage": "json" if is_json else "text",
        "header": [{"key": name, "value": value} for name, value in example.headers.items()],
        "cookie": [],
        "body": example.body,
    }


def _json_body(body: object) -> dict[str, Any]:
    raw = body if isinstance(body, str) else json.dumps(body, indent=2, ensure_ascii=False)
    return {"mode": "raw", "raw": raw, "options": {"raw": {"language": "json"}}}


def _form_body(form: Mapping[str, Any]) -> dict[str, Any]:
    fields = [
        {"key": name, "type": "text", "value": json.dumps(value, ensure_ascii=False)}
        for name, value in form.items()
    ]
    return {"mode": "formdata", "formdata": [*fields, _FILE_FIELD]}


def _events(request: PostmanRequest) -> list[dict[str, Any]]:
    """Return what runs before the request, and what tests its answer."""
    tests = _event("test", [*_tests(request), *_kept(request)])
    if not request.set_before:
        return [tests]
    return [_event("prerequest", _assignments(request.set_before)), tests]


def _tests(request: PostmanRequest) -> list[str]:
    """Return the tests of the status, and of what is expected of the answer."""
    phrases = " or ".join(HTTPStatus(status).phrase for status in request.statuses)
    codes = ", ".join(str(status) for status in request.statuses)
    lines = [f"pm.test('{phrases}', () => pm.expect(pm.response.code).to.be.oneOf([{codes}]));"]
    if min(request.statuses) >= 400:
        is_problem = f"pm.expect(pm.response.headers.get('Content-Type')).to.include('{PROBLEM}');"
        lines += _test("refused as problem+json", is_problem)
    for name, script in request.expects.items():
        lines += _test(name, script)
    return lines


def _test(name: str, script: str) -> list[str]:
    body = script.strip("\n").splitlines()
    if re.search(r"\banswer\b", script):
        body.insert(0, _READ_ANSWER)
    return [f"pm.test('{name}', () => {{", *(f"  {line}" for line in body), "});"]


def _kept(request: PostmanRequest) -> list[str]:
    """Return what sets variables from the answer."""
    return [_READ_ANSWER, *_assignments(request.set_after)] if request.set_after else []


def _assignments(variables: Mapping[str, str]) -> list[str]:
    return [f"pm.collectionVariables.set('{name}', {value});" for name, value in variables.items()]


def _headers(request: PostmanRequest) -> dict[str, str]:
    return ({} if request.body is None else _JSON_HEADERS) | dict(request.headers)


def _url(request: PostmanRequest, rule: str) -> dict[str, Any]:
    def value(match: re.Match[str]) -> str:
        return request.path_values.get(match[1], f"{{{{{match[1]}}}}}")

    base = "{{inboxUrl}}" if rule.startswith("/inbox") else "{{baseUrl}}"
    path = re.sub(r"<(?:\w+:)?(\w+)>", value, rule)
    url: dict[str, Any] = {"raw": f"{base}{path}", "host": [base], "path": path[1:].split("/")}
    if request.query:
        url["raw"] += "?" + "&".join(f"{name}={value}" for name, value in request.query.items())
        url["query"] = [{"key": name, "value": value} for name, value in request.query.items()]
    return url


def _needed_key(method: str, rule: str) -> str:
    if OPERATIONS[f"{method} {rule}"].is_open:
        return "Needs no key."
    scopes = dict.fromkeys([*needed(method, rule), Scope.ADMIN])
    return f"Needs a key with the scope {' or '.join(f'`{scope}`' for scope in scopes)}, where there are keys."


def _event(listen: str, lines: Sequence[str]) -> dict[str, Any]:
    return {"listen": listen, "script": {"type": "text/javascript", "exec": [*lines]}}
