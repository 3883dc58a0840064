"""Queries: how many rows a list gives, and that what no route knows is refused and not passed over."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mailroom.api.openapi.operations import OPERATIONS, is_strict
from mailroom.inbox import Chaos, InboxStorage, create_blueprint
from mailroom.inbox.api import QUERIES
from mailroom.server import serve
from tests.services.application import made

LISTS = (
    "/v1/messages",
    "/v1/jobs",
    "/v1/templates",
    "/v1/suppressions",
    "/v1/webhooks/own/deliveries",
)
MAIL = {"to": "bob@example.org", "text": "Hi"}
HTML = {"Accept": "text/html"}
#: All that int() takes, and people do not write.
ODD_NUMBERS = (
    "00000001000000",
    "0" * 5000,
    "1" + "0" * 5000,
    "000000001" + "0" * 5000,
    "007",
    "1_0",
    "٣",
    "²",
    " 5",
    "5 ",
    "+5",
    "-5",
    "5.0",
    "5e0",
    "0x5",
    "",
    "0",
    "101",
    "100\n",
    "nan",
)


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Flask]:
    for served in made(sqlite_url):
        served.register_blueprint(serve.inbox_blueprint(InboxStorage(), Chaos()))
        yield served


@pytest.fixture
def inbox() -> FlaskClient:
    alone = Flask("inbox")
    alone.register_blueprint(create_blueprint(InboxStorage()))
    return alone.test_client()


def refused(answer: Any) -> list[dict[str, str]]:
    """What is wrong, of a 422."""
    assert answer.status_code == 422, answer.data[:200]
    assert answer.mimetype == "application/problem+json"
    errors: list[dict[str, str]] = json.loads(answer.data)["errors"]
    return errors


@pytest.mark.parametrize("path", LISTS)
def test_a_list_takes_1_to_100_as_people_write_it(client: FlaskClient, path: str) -> None:
    for number in ("1", "9", "10", "99", "100"):
        assert client.get(f"{path}?limit={number}").status_code == 200
    for number in ODD_NUMBERS:
        [wrong] = refused(client.get(f"{path}?limit={quote(number)}"))
        assert wrong["pointer"] == "?limit"
        assert wrong["detail"] == f"expected a number from 1 to 100, got {number[:80]!r}"


def test_no_list_gives_more_rows_than_it_says(client: FlaskClient) -> None:
    batch = {"common": {"text": "Hi"}, "messages": [{"to": "bob@example.org"}] * 101}
    assert client.post("/v1/messages/batch", json=batch).status_code == 202
    found: Any = client.get("/v1/messages?limit=100").json
    assert (len(found["data"]), found["has_more"]) == (100, True)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("limt=5", "expected a parameter that is known, got another; did you mean limit?"),
        ("Status=sent", "expected a parameter that is known, got another; did you mean status?"),
        ("statsu=sent", "expected a parameter that is known, got another; did you mean status?"),
        (
            "x=1",
            "expected one of limit, after, status, name, queue, got a parameter that is none of them",
        ),
        ("status=failed&status=queued", "expected it once, got it 2 times"),
        ("name=&name=", "expected it once, got it 2 times"),
    ],
)
def test_a_mistyped_filter_lists_nothing(client: FlaskClient, query: str, told: str) -> None:
    [wrong] = refused(client.get(f"/v1/jobs?{query}"))
    assert wrong == {"pointer": f"?{query.partition('=')[0]}", "detail": told}
    assert client.head(f"/v1/jobs?{query}").status_code == 422


def test_all_that_is_wrong_with_a_query_is_bounded(client: FlaskClient) -> None:
    assert (
        len(refused(client.get("/v1/jobs?" + "&".join(f"x{number}=1" for number in range(500)))))
        == 20
    )
    [wrong] = refused(client.get(f"/v1/jobs?{'x' * 5000}=1"))
    assert len(wrong["pointer"]) == 201
    assert refused(client.get("/v1/jobs?%ED%A0%80=1"))


def test_every_route_for_programs_refuses_what_it_does_not_know(client: FlaskClient) -> None:
    strict = [route for route in OPERATIONS if is_strict(route)]
    assert len(strict) > 40
    for route in strict:
        method, _, rule = route.partition(" ")
        [wrong] = refused(client.open(f"{re.sub('<[^>]+>', 'x', rule)}?nothing=1", method=method))
        assert wrong.get("pointer", wrong.get("parameter", "")).lstrip("?") == "nothing", route


def test_a_mail_is_not_sent_by_a_request_that_wanted_something_else(client: FlaskClient) -> None:
    for path in ("/v1/messages", "/"):
        [wrong] = refused(client.post(f"{path}?dry_run=true", json=MAIL))
        assert wrong["detail"] == "expected no parameter, got one"
    assert client.get("/v1/messages").json == {"data": [], "has_more": False, "next": None}


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/messages",
        "/dashboard",
        "/inbox/",
        "/sign-in",
        "/livez",
        "/readyz",
        "/metrics",
        "/openapi.json",
    ],
)
def test_pages_and_monitors_paths_ignore_what_others_add(client: FlaskClient, path: str) -> None:
    assert client.get(f"{path}?utm_source=mail&_=1", headers=HTML).status_code in (200, 303)


@pytest.mark.parametrize("path", ["/messages", "/jobs", "/suppressions", "/webhooks/own"])
def test_a_page_says_in_words_what_it_cannot_read(client: FlaskClient, path: str) -> None:
    answer = client.get(f"{path}?after={'9' * 5000}", headers=HTML)
    assert (answer.status_code, answer.mimetype) == (422, "text/html")
    assert "xpected `next` of an earlier page" in answer.text


def test_the_inbox_alone_refuses_what_it_does_not_know(inbox: FlaskClient) -> None:
    [wrong] = refused(inbox.get("/inbox/api/messages?wiat=5"))
    assert wrong["parameter"] == "wiat"
    assert wrong["detail"] == "expected a parameter that is known, got another; did you mean wait?"
    [wrong] = refused(inbox.get("/inbox/api/messages?to=a@example.org&to=b@example.org"))
    assert wrong == {"parameter": "to", "detail": "expected it once, got it 2 times"}
    [wrong] = refused(inbox.delete("/inbox/api/messages?to=a@example.org"))  # It would forget all.
    assert wrong == {"parameter": "to", "detail": "expected no parameter, got another"}
    assert inbox.get("/inbox/?utm_source=mail").status_code == 200


def test_the_inbox_knows_the_parameters_that_are_described(app: Flask) -> None:
    endpoints = {
        f"{method} {rule.rule}": rule.endpoint.removeprefix("inbox.")
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }
    described = {
        route: [parameter.name for parameter in operation.parameters]
        for route, operation in OPERATIONS.items()
        if " /inbox/api/" in route
    }
    assert {endpoints[route]: names for route, names in described.items()} == {
        endpoint: [*names] for endpoint, names in QUERIES.items()
    }


@pytest.mark.parametrize("page", ["0", "-1", "٣", "1_0", "9" * 5000, "x"])
def test_a_page_of_the_inbox_that_is_no_number_is_the_first(inbox: FlaskClient, page: str) -> None:
    assert inbox.get(f"/inbox/?page={quote(page)}").text == inbox.get("/inbox/?page=1").text


@pytest.mark.parametrize(
    "number", ["1_0", "٣", "1e1", "inf", "nan", "-1", "+1", "9" * 5000, "1.", ""]
)
def test_a_form_takes_numbers_as_people_write_them(client: FlaskClient, number: str) -> None:
    sent: Any = client.post("/v1/messages", json=MAIL | {"delay": 3600}).json
    found = re.search(r'name="token" value="([^"]+)"', client.get("/compose", headers=HTML).text)
    assert found
    form = {"token": found[1], "number": number, "unit": "minutes"}
    assert (
        client.post(f"/messages/{sent['id']}/reschedule", data=form, headers=HTML).status_code
        == 422
    )
    mail = {"token": found[1], "to": "bob@example.org", "contents": "Hi", "delay": number}
    assert client.post("/compose", data=mail, headers=HTML).status_code == (422 if number else 303)
