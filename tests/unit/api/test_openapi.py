"""The description of the API, and the page that shows it: what they say is so."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from openapi_schema_validator import OAS31Validator, oas31_format_checker
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from mailroom.api.auth.scopes import SCOPES
from mailroom.api.openapi.document import document, routes
from mailroom.api.openapi.operations import OPERATIONS, PAGES
from mailroom.inbox import InboxStorage, create_blueprint
from tests.services.application import made
from tests.services.processes import PROJECT
from tests.tools import contract
from tests.tools.contract import served
from tests.unit.submission.test_raw_message import COMPLETE

SWAGGER = PROJECT / "mailroom" / "web" / "static" / "swagger-ui"
MAIL = {"to": "bob@example.org", "subject": "Hello", "text": "Hi"}


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Flask]:
    for app in made(sqlite_url, PUBLIC_URL="https://mail.example.org"):
        storage = InboxStorage()
        storage.add("alice@example.org", ("bob@example.org",), b"Subject: Hello\r\n\r\nHi\r\n")
        app.register_blueprint(create_blueprint(storage))
        yield app


@pytest.fixture
def described(client: FlaskClient) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(client.get("/openapi.json").data)
    return found


def test_the_document_is_openapi(described: dict[str, Any]) -> None:
    validate(described, cls=OpenAPIV31SpecValidator)
    assert described["openapi"] == "3.1.0"


def test_every_route_is_described_and_no_other(app: Flask) -> None:
    others = {route for route in routes(app) if route not in OPERATIONS}
    assert {
        rule
        for rule in (route.partition(" ")[2] for route in others)
        if not rule.startswith(PAGES) and "static" not in rule
    } == set()
    assert OPERATIONS.keys() <= routes(app).keys() and OPERATIONS.keys() <= SCOPES.keys()


def test_every_operation_has_its_sentence_and_a_name_of_its_own(described: dict[str, Any]) -> None:
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    assert all(operation["summary"].endswith(".") for operation in operations)
    assert (
        len({operation["operationId"] for operation in operations})
        == len(operations)
        == len(OPERATIONS)
    )


def test_every_schema_is_used(described: dict[str, Any]) -> None:
    used = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(described)))
    assert used == described["components"]["schemas"].keys()


def test_it_is_made_once(app: Flask, client: FlaskClient) -> None:
    first = client.get("/openapi.json")
    assert first.content_type == "application/json"
    with app.app_context():
        assert json.loads(first.data) == json.loads(json.dumps(document(app)))
    del app.view_functions["health.ping"].__doc__
    assert client.get("/openapi.json").data == first.data


def test_the_examples_are_accepted(client: FlaskClient, described: dict[str, Any]) -> None:
    message, hook = (
        client.post(path, json=body).json["id"]  # type: ignore[index]  # they are objects
        for path, body in (
            ("/v1/messages", MAIL | {"delay": 60}),
            ("/v1/webhooks", {"url": "https://hooks.example.org/"}),
        )
    )
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if "requestBody" in operation:
                at = path.format(id=hook if "webhooks" in path else message, name="order")
                [media, *_], [body, *_] = zip(
                    *operation["requestBody"]["content"].items(), strict=True
                )
                example = body["example"]
                answer = client.open(
                    at,
                    method=method.upper(),
                    data=example if isinstance(example, str) else json.dumps(example),
                    content_type=media,
                )
                assert answer.status_code < 300, (path, answer.data)


class Asked:
    """A client each of whose answers is held against the description."""

    def __init__(self, client: FlaskClient, described: dict[str, Any]) -> None:
        self._client, self._described = client, described
        self.seen: set[str] = set()

    def __call__(
        self, route: str, *, status: int, body: Any = None, query: str = "", **at: str
    ) -> Any:
        method, _, rule = route.partition(" ")
        path = re.sub(r"<(?:\w+:)?(\w+)>", lambda found: at[found[1]], rule)
        given = {} if body is None else {"json": body}
        if isinstance(body, bytes):
            given = {"data": body, "content_type": "message/rfc822"}
        answer = self._client.open(path + query, method=method, **given)
        assert answer.status_code == status, answer.data
        self.seen.add(route)
        operation = self._described["paths"][re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)][
            method.lower()
        ]
        told = operation["responses"][str(status)]
        for name, header in told["headers"].items():
            assert name in answer.headers or not header["required"], f"{route}: {name}"
        if "content" not in told:
            assert answer.data == b""
            return None
        media = str(answer.mimetype)
        schema = told["content"][media]["schema"]
        if "json" not in media:
            return answer.data
        value = json.loads(answer.data)
        OAS31Validator(
            {**schema, "components": self._described["components"]},
            format_checker=oas31_format_checker,
        ).validate(value)
        return value


def test_real_answers_are_as_described(client: FlaskClient, described: dict[str, Any]) -> None:
    ask = Asked(client, described)
    of_messages(ask)
    of_jobs(ask)
    of_the_rest(ask)
    assert ask.seen == OPERATIONS.keys() - {
        "POST /v1/webhooks/<id>/deliveries/<number>/replay",
        "GET /v1/jobs/<id>/file",
    }


def of_messages(ask: Asked) -> None:
    ask("POST /", status=200, body=MAIL)
    ask(
        "POST /v1/messages",
        status=200,
        body=MAIL | {"dry_run": True, "attachments": [{"filename": "a", "content": ""}]},
    )
    id = ask("POST /v1/messages", status=202, body=MAIL | {"delay": 60})["id"]
    ask("POST /v1/messages/batch", status=202, body=[MAIL, MAIL])
    ask("POST /v1/messages", status=422, body={"to": "bob"})
    ask(
        "POST /v1/messages/raw",
        status=202,
        body=COMPLETE,
        query="?to=a@example.org&to=b@example.org",
    )
    ask("POST /v1/messages/raw", status=422, body=COMPLETE, query="?to=a")
    ask("GET /v1/messages", status=200, query="?limit=2")
    ask("GET /v1/messages", status=422, query="?limit=no")
    ask("POST /v1/messages/<id>/reschedule", status=200, id=id, body={"delay": 50})
    for action in ("retry", "hold", "release"):
        ask(f"POST /v1/messages/<id>/{action}", status=200, id=id)
    ask("POST /v1/messages/<id>/cancel", status=200, id=id)
    ask("POST /v1/messages/<id>/cancel", status=409, id=id)
    ask("POST /v1/messages/<id>/resend", status=202, id=id)
    for part in ("", "/events", "/raw"):
        ask(f"GET /v1/messages/<id>{part}", status=200, id=id)
    ask("GET /v1/messages/<id>", status=404, id="none")


def of_jobs(ask: Asked) -> None:
    job = ask(
        "POST /v1/jobs",
        status=202,
        body={"name": "simulate", "args": {"seconds": 1}, "notify": MAIL},
    )["id"]
    ask("GET /v1/jobs/<id>", status=200, id=job)
    ask("GET /v1/jobs", status=200)
    ask("GET /v1/job-types", status=200)
    ask("POST /v1/jobs/<id>/cancel", status=200, id=job)
    ask("POST /v1/jobs/<id>/retry", status=202, id=job)


def of_the_rest(ask: Asked) -> None:
    ask("PUT /v1/templates/<name>", status=201, name="a", body={"subject": "S", "text": "T"})
    ask("PUT /v1/templates/<name>", status=200, name="a", body={"subject": "S", "html": "<b>H</b>"})
    ask("GET /v1/templates/<name>", status=200, name="a")
    ask("GET /v1/templates", status=200)
    ask("POST /v1/templates/<name>/preview", status=200, name="a", body={})
    ask("DELETE /v1/templates/<name>", status=204, name="a")
    ask("POST /v1/suppressions", status=201, body={"address": "carol@example.org"})
    ask("POST /v1/suppressions", status=201, body={"addresses": ["dave@example.org"]})
    ask("GET /v1/suppressions", status=200, query="?limit=1")
    ask("GET /v1/suppressions/<path:address>", status=200, address="carol@example.org")
    ask("DELETE /v1/suppressions/<path:address>", status=204, address="carol@example.org")
    hook = ask(
        "POST /v1/webhooks",
        status=201,
        body={"url": "https://hooks.example.org/", "events": ["message.sent"]},
    )["id"]
    ask("GET /v1/webhooks", status=200)
    ask("GET /v1/webhooks/<id>", status=200, id=hook)
    ask("POST /v1/webhooks/<id>/test", status=202, id=hook)
    ask("GET /v1/webhooks/<id>/deliveries", status=200, id=hook)
    ask("PATCH /v1/webhooks/<id>", status=200, id=hook, body={"enabled": False})
    ask("DELETE /v1/webhooks/<id>", status=204, id=hook)
    mail = ask("GET /inbox/api/messages", status=200)["data"][0]["id"]
    ask("GET /inbox/api/messages/<id>", status=200, id=mail)
    ask("PUT /inbox/api/failure", status=200, body={"failure": "drop", "count": 2})
    ask("PUT /inbox/api/failure", status=422, body={"failure": "explode"})
    ask("GET /inbox/api/failure", status=200)
    ask("DELETE /inbox/api/messages/<id>", status=204, id=mail)
    ask("DELETE /inbox/api/messages/<id>", status=404, id=mail)
    ask("DELETE /inbox/api/messages", status=204)
    ask("POST /v1/accounts/<path:account>/retry", status=409, account="default")
    ask("POST /v1/accounts/<path:account>/retry", status=404, account="no/such")
    for route in ("/", "/ping", "/livez", "/readyz", "/metrics", "/v1/accounts", "/openapi.json"):
        ask(f"GET {route}", status=200)


def test_a_part_of_a_form_without_a_name_is_refused(client: FlaskClient) -> None:
    part = b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n"
    named = b'--b\r\nContent-Disposition: form-data; name="message"\r\n\r\n{"to": "bob@example.org"}\r\n'
    for body in (
        part,
        part + named,
        named + b'--b\r\nContent-Disposition: form-data; filename="a"\r\n\r\nx\r\n',
    ):
        answer = client.post(
            "/v1/messages", data=body + b"--b--\r\n", content_type="multipart/form-data; boundary=b"
        )
        assert answer.status_code in (202, 400, 422), answer.data


def test_the_page_asks_nobody_else_for_anything(client: FlaskClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and page.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(
        rule.split(" ", 1) for rule in page.headers["Content-Security-Policy"].split("; ")
    )
    assert (
        policy["script-src"] == "'self'"
        and policy["default-src"] == "'none'"
        and policy["connect-src"] == "'self'"
    )
    # Programs to read, in which there are addresses.
    text = re.sub(r"<pre>.*?</pre>", "", page.get_data(as_text=True), flags=re.DOTALL)
    assert (
        "<script>" not in text
        and " style=" not in text
        and "//" not in text.replace("<!doctype html>", "")
    )
    for path in re.findall(r'(?:src|href|data-url)="(/[^"]+)"', text):
        with client.get(path) as answer:
            assert answer.status_code == 200, path


def test_swagger_ui_is_as_it_was_published() -> None:
    listed = dict(
        re.findall(
            r"^\| (\S+) \| ([0-9a-f]{64}) \|$", (SWAGGER / "README.md").read_text(), re.MULTILINE
        )
    )
    assert {file.name for file in SWAGGER.iterdir()} == {*listed, "README.md"}
    assert {
        name: hashlib.sha256((SWAGGER / name).read_bytes()).hexdigest() for name in listed
    } == listed


@pytest.mark.slow
def test_the_api_keeps_to_its_description(tmp_path: Path) -> None:
    with served(tmp_path) as app:
        found = contract.run(app, examples=8, phases=("fuzzing",))
    assert not found.failures, "\n".join(f"{what}: {how}" for what, how in found.failures.items())
    assert found.errors == []
    assert sum(found.cases.values()) > 300
