"""Wrong API keys: how fast they are tried, and that the right one is served among them."""

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mailroom.api.auth import guard
from mailroom.api.auth.wrong_keys import ADDRESSES_MAX, WRONG_MAX, WRONG_SECONDS, WrongKeys, network
from mailroom.inbox import InboxStorage, create_blueprint
from mailroom.store.keys.api_keys import Scope
from tests.services.application import made

KEY = "s3cret"
TRIED = 300
THERE = {"REMOTE_ADDR": "10.0.0.1"}
Naming = Callable[[str], dict[str, str]]


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Flask]:
    yield from made(sqlite_url, API_KEY=KEY)


@pytest.fixture
def inbox() -> Flask:
    """The inbox alone, as app.py makes it for HOSTs that others reach."""
    alone = Flask("inbox")
    alone.before_request(partial(guard.check_alone, KEY))
    alone.register_blueprint(create_blueprint(InboxStorage()))
    return alone


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def basic(key: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'any:{key}'.encode()).decode()}"}


def own_field(key: str) -> dict[str, str]:
    return {"X-API-Key": key}


def tried(client: FlaskClient, path: str, name: Naming = bearer) -> Counter[int]:
    """The answers to many wrong keys of one address."""
    return Counter(
        client.get(path, headers=name(f"wrong-{number}"), environ_base=THERE).status_code
        for number in range(TRIED)
    )


@pytest.mark.parametrize("name", [bearer, basic, own_field])
def test_wrong_keys_are_held_up_and_right_ones_served(
    app: Flask, client: FlaskClient, name: Naming
) -> None:
    secret, _ = app.extensions["mailasync"].api_keys.create("ci", scopes=[Scope.READ])
    assert tried(client, "/v1/jobs", name) == {401: WRONG_MAX, 429: TRIED - WRONG_MAX}
    for right in (KEY, secret):
        assert client.get("/v1/jobs", headers=name(right), environ_base=THERE).status_code == 200
    assert client.get("/v1/jobs", headers=name("wrong")).status_code == 401  # from another address
    assert client.get("/v1/jobs", environ_base=THERE).status_code == 401  # None is no guess.


def test_who_is_held_up_is_told_for_how_long(client: FlaskClient) -> None:
    tried(client, "/v1/jobs")
    answer: Any = client.get("/v1/jobs", headers=bearer("wrong"), environ_base=THERE)
    told = json.loads(answer.data)
    assert (answer.status_code, told["code"]) == (429, "too_many_wrong_keys")
    assert answer.mimetype == "application/problem+json"
    assert 1 <= int(answer.headers["Retry-After"]) <= WRONG_SECONDS
    assert told["detail"].endswith(
        f"got another key; correct it, or wait {answer.headers['Retry-After']} s"
    )
    page = client.get(
        "/jobs", headers=bearer("wrong") | {"Accept": "text/html"}, environ_base=THERE
    )
    assert page.status_code == 429 and page.mimetype == "text/html" and page.headers["Retry-After"]


def test_what_needs_no_key_counts_wrong_ones_too(client: FlaskClient) -> None:
    assert tried(client, "/readyz") == {200: TRIED}  # It tells more to whoever has a key.
    assert tried(client, "/v1/jobs")[401] == 0


@pytest.mark.parametrize("name", [bearer, basic, own_field])
def test_the_inbox_alone_holds_them_up_as_well(inbox: Flask, name: Naming) -> None:
    client = inbox.test_client()
    assert tried(client, "/inbox/api/messages", name) == {401: WRONG_MAX, 429: TRIED - WRONG_MAX}
    assert (
        client.get("/inbox/api/messages", headers=name(KEY), environ_base=THERE).status_code == 200
    )


def test_so_many_wrong_keys_pass_in_a_minute_and_no_more() -> None:
    now = [1000.0]
    wrong = WrongKeys(lambda: now[0])
    passed = 0
    for _ in range(480):  # eight a second, for a minute
        passed += wrong.note("10.0.0.1") == 0
        now[0] += 0.125
    assert passed == WRONG_MAX
    assert wrong.note("10.0.0.1") == 0  # The first is a minute old.
    assert wrong.note("10.0.0.1") == 1
    now[0] += 0.125
    assert wrong.note("10.0.0.1") == 0
    now[0] += 120
    assert [wrong.note("10.0.0.1") for _ in range(WRONG_MAX + 1)] == [*[0] * WRONG_MAX, 60]


def test_addresses_are_remembered_up_to_a_number() -> None:
    wrong = WrongKeys(count().__next__)
    for number in range(ADDRESSES_MAX + 5):
        wrong.note(f"10.0.{number // 256}.{number % 256}")
    assert len(wrong) == ADDRESSES_MAX


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::1", "::"),
        ("", ""),
        ("fe80::1%eth0", "fe80::"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::"),
        ("2001:db8:1:3::1", "2001:db8:1:3::"),
    ],
)
def test_the_addresses_of_one_host_are_counted_together(address: str, counted: str) -> None:
    assert network(address) == counted
