"""The Postman collection: it is what `make postman` writes, asks what there is, and names every operation. `newman run` sends it."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from openapi_schema_validator import OAS31Validator, oas31_format_checker

import app
import default_settings
from mailroom.api.openapi.document import document
from mailroom.api.openapi.operations import OPERATIONS
from mailroom.inbox import InboxStorage, create_blueprint
from mailroom.model.errors import InvalidMessage
from mailroom.submission.fields import read_fields
from mailroom.submission.strict_json import parse_json
from mailroom.submission.template import StoreTemplateRequest
from tests.unit.test_docs import BODIES, ORDERS
from tools.postman.__main__ import FILE, files
from tools.postman.collection import FOLDERS, REQUESTS
from tools.postman.environments import ENVIRONMENTS
from tools.postman.examples import Example, examples_in, read_examples

COLLECTION = json.loads(FILE.read_text())
BASE = f"http://127.0.0.1:{default_settings.PORT}"
TEMPLATE = StoreTemplateRequest(subject="Order {{ order }}", text=None, html="{{ name }}")
READ = replace(ORDERS, template=lambda name: TEMPLATE if name == "postman-receipt" else None)
READERS: dict[str, Callable[[Any], object]] = {
    "POST /": READ.mail,
    "POST /v1/messages": READ.mail,
    "POST /v1/jobs": READ.job,
    "POST /v1/messages/batch": READ.batch,
    "PUT /v1/templates/<name>": lambda body: read_fields(StoreTemplateRequest, body),
}


@pytest.fixture
def served() -> Flask:
    """The application as `flask up` serves it, with the inbox."""
    made = app.create_app()
    made.register_blueprint(create_blueprint(InboxStorage()))
    return made


def filled(text: str) -> str:
    """With the collection's variables; what is known in a run only stands for itself."""
    values = {one["key"]: one["value"] for one in COLLECTION["variable"]}
    values |= {
        name: "bob@example.org" if name == "recipient" else f"some-{name}"
        for name, value in values.items()
        if value == ""
    }
    for _ in values:  # One variable may hold another.
        text = re.sub(r"\{\{(\w+)\}\}", lambda found: values.get(found[1], found[0]), text)
    return text


def requests() -> list[tuple[dict[str, Any], str]]:
    """Each item, filled in, with the statuses that it expects."""
    items = [
        item
        for folder in json.loads(filled(json.dumps(COLLECTION["item"])))
        for item in folder["item"]
    ]
    return list(zip(items, [request.route for request in REQUESTS], strict=True))


def test_the_files_are_up_to_date() -> None:
    for file, text in files().items():
        assert text == file.read_text(), "make postman"


def test_it_is_of_the_format_that_postman_reads() -> None:
    assert (
        COLLECTION["info"]["schema"]
        == "https://schema.getpostman.com/json/collection/v2.1.0/collection.json"
    )
    defaults = {one["key"]: one["value"] for one in COLLECTION["variable"]}
    assert defaults["baseUrl"] == BASE and defaults["apiKey"] == ""
    for item, _ in requests():
        assert any(
            "pm.test(" in line for event in item["event"] for line in event["script"]["exec"]
        ), item["name"]


def test_each_operation_is_asked_for() -> None:
    assert {route for _, route in requests()} == OPERATIONS.keys()


def test_each_request_has_a_name_of_its_own() -> None:
    names = [item["name"] for item, _ in requests()]
    assert len(names) == len(set(names))


def test_requests_ask_routes_that_exist_with_statuses_that_are_described(served: Flask) -> None:
    routes = served.url_map.bind("127.0.0.1")
    for asked in REQUESTS:
        known = {*OPERATIONS[asked.route].answers, *OPERATIONS[asked.route].refusals, 401}
        assert set(asked.statuses) <= known, asked.name
    for item, route in requests():
        request = item["request"]
        path, _, query = request["url"]["raw"].removeprefix(BASE).partition("?")
        rule, _ = routes.match(path, request["method"], return_rule=True)
        assert f"{request['method']} {rule.rule}" == route, item["name"]
        assert query == "&".join(
            f"{one['key']}={one['value']}" for one in request["url"].get("query", [])
        ), item["name"]


def test_bodies_are_accepted_or_refused_as_the_test_beside_says() -> None:
    for (item, route), request in zip(requests(), REQUESTS, strict=True):
        if (
            "raw" not in item["request"].get("body", {})
            or route not in READERS
            or 400 in request.statuses
        ):
            continue
        body = parse_json(item["request"]["body"]["raw"].encode())
        if request.status == 422:
            with pytest.raises(InvalidMessage):
                READERS[route](body)
        else:
            assert READERS[route](body), item["name"]


def test_the_first_request_is_the_tutorials() -> None:
    first, _ = requests()[0]
    assert (first["request"]["method"], first["request"]["url"]["raw"]) == ("POST", f"{BASE}/")
    assert json.loads(first["request"]["body"]["raw"]) == json.loads(BODIES[0])


def test_every_request_inherits_the_key_but_the_one_that_has_a_wrong_one() -> None:
    assert COLLECTION["auth"]["bearer"][0]["value"] == "{{apiKey}}"
    kept = [item["name"] for item, _ in requests() if "auth" in item["request"]]
    assert kept == ["Without the right key"]
    assert "event" not in COLLECTION


def test_every_folder_says_what_is_in_it() -> None:
    described = {folder["name"]: folder["description"] for folder in COLLECTION["item"]}
    assert list(described) == [folder.name for folder in FOLDERS]
    assert all(text.endswith(".") for text in described.values())


def test_every_environment_has_addresses_and_takes_the_key_as_a_secret() -> None:
    assert {*ENVIRONMENTS} == {"run", "pair", "compose"}
    for name in ENVIRONMENTS:
        found = json.loads((FILE.parent / f"{name}.postman_environment.json").read_text())
        values = {one["key"]: one for one in found["values"]}
        assert values["baseUrl"]["value"] == BASE
        assert values["inboxUrl"]["value"].startswith("http://127.0.0.1:")
        assert (values["apiKey"]["type"], values["apiKey"]["value"]) == ("secret", "")
        assert found["_postman_variable_scope"] == "environment"


def test_every_request_has_a_saved_answer_that_it_expects() -> None:
    for item, request in zip(COLLECTION["item"], FOLDERS, strict=True):
        for one, asked in zip(item["item"], request.requests, strict=True):
            [saved] = one["response"]
            assert saved["code"] in asked.statuses, asked.name
            assert saved["originalRequest"] == one["request"]


def test_saved_answers_are_as_the_api_describes_them(served: Flask) -> None:
    with served.app_context():
        described = json.loads(json.dumps(document(served)))
    examples = read_examples()
    for request in REQUESTS:
        example = examples[request.name]
        if request.route != "GET /openapi.json" and "json" in example.headers.get(
            "Content-Type", ""
        ):
            value = json.loads(example.body)
            schema = schema_of(described, request.route, example)
            validator = OAS31Validator(schema, format_checker=oas31_format_checker)
            told = [error.message for error in validator.iter_errors(value)]
            assert told == [], f"{request.name}: make postman-examples"


def schema_of(described: dict[str, Any], route: str, example: Example) -> dict[str, Any]:
    method, _, rule = route.partition(" ")
    path = described["paths"][re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)]
    answer = path[method.lower()]["responses"][str(example.status)]
    media = example.headers["Content-Type"].partition(";")[0]
    return {**answer["content"][media]["schema"], "components": described["components"]}


def report(body: str, *, media: str = "application/json") -> dict[str, Any]:
    """A report of newman about one request."""
    response = {
        "code": 200,
        "header": [{"key": "content-type", "value": media}, {"key": "Date", "value": "today"}],
        "stream": {"type": "Buffer", "data": [*body.encode()]},
    }
    return {"run": {"executions": [{"item": {"name": "It"}, "response": response}]}}


def test_a_recorded_answer_has_no_secret_and_nothing_of_the_machine() -> None:
    body = '{"secret": "whsec_bm90aGluZw==", "file": "/builds/mail/x"}'
    example = examples_in(report(body), {"/builds/mail": "/srv"})["It"]
    assert json.loads(example.body) == {"secret": "whsec_…", "file": "/srv/x"}
    assert example.headers == {"Content-Type": "application/json"}


def test_a_recorded_answer_is_short() -> None:
    page = "line\n" * 5_000
    text = examples_in(report(page, media="text/html"), {})["It"].body
    assert (len(text.splitlines()), text.splitlines()[-1]) == (26, "…")
    document = json.dumps({"openapi": "3.1.0", "paths": {str(n): {} for n in range(5_000)}})
    assert json.loads(examples_in(report(document), {})["It"].body) == {
        "openapi": "3.1.0",
        "paths": {},
    }
