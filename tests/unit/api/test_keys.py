"""API keys: what each may do, from which address and how fast; and that nothing of them is told or kept that should not be."""

import base64
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, jsonify, request
from flask.testing import FlaskClient
from sqlalchemy import Connection, event, select, text

import app as web
from mailroom.api.auth import guard
from mailroom.api.auth.scopes import SCOPES
from mailroom.api.services import services
from mailroom.cli import database as database_module
from mailroom.config.environment import load
from mailroom.inbox import InboxStorage, create_blueprint
from mailroom.model.errors import StoreUnavailable
from mailroom.store.db.access_schema import keys, rates
from mailroom.store.db.database import Database
from mailroom.store.db.schema import idempotency, messages
from mailroom.store.keys import api_keys as keys_module
from mailroom.store.keys.api_keys import ApiKey, ApiKeys, Scope, UnknownKey
from mailroom.store.keys.rate_limits import Charge, RateLimited, debit
from mailroom.store.messages.idempotency import Kept, Key, StoredAnswer, give_back, take
from mailroom.worker import runtime
from tests.services import free_port, wait_until
from tests.services.processes import Service, service

MAIL = {"to": "bob@example.org", "subject": "Hello", "contents": "Hi"}


@pytest.fixture
def database(database: Database) -> Iterator[Database]:
    yield database
    wait_until(no_use_is_being_written, what="what was used is written")


def no_use_is_being_written() -> bool:
    return not [one for one in threading.enumerate() if one.name.startswith("key-")]


# --- the keys ------------------------------------------------------------------------------------------------------


def test_a_key_is_found_and_kept_only_as_a_hash(database: Database) -> None:
    secret, key = ApiKeys(database).create(
        "ci", scopes=[Scope.SEND, Scope.READ], senders=["@Example.org"], per_minute=100
    )
    assert (secret[:12], len(secret)) == (f"ma_{key.id}_", 55)
    found = ApiKeys(database).find(secret)
    assert found == key
    assert key == ApiKey(
        id=key.id,
        name="ci",
        scopes=frozenset({Scope.SEND, Scope.READ}),
        senders=("@example.org",),
        per_minute=100,
    )
    assert secret[12:] not in str(
        database.read(lambda connection: connection.execute(select(keys)).all())
    )


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        lambda secret: secret[:-1],
        lambda secret: secret + "a",
        lambda secret: secret[:-2] + "\0é",
        lambda secret: "ma_00000000" + secret[11:],
        lambda secret: "",
        lambda secret: f" {secret}",
    ],
)
def test_what_is_no_key_is_not_found(database: Database, change: Any) -> None:
    secret, _ = ApiKeys(database).create("ci", scopes=[Scope.SEND])
    assert ApiKeys(database).find(change(secret)) is None


@pytest.mark.slow
def test_a_new_key_works_at_once_and_a_revoked_one_ends_within_seconds(database: Database) -> None:
    here, elsewhere = ApiKeys(database), ApiKeys(database)
    assert not here.are_there()
    secret, key = elsewhere.create("ci", scopes=[Scope.SEND])
    wait_until(lambda: here.find(secret) == key, what="it is found before the cache is old")
    revoked = elsewhere.revoke(key.id)
    assert revoked.revoked_at is not None
    assert here.find(secret) == key
    wait_until(lambda: here.find(secret) is None, what="it is no longer served")
    assert not here.are_there()
    assert elsewhere.revoke(key.id).revoked_at == revoked.revoked_at
    assert [row.key.id for row in here.every()] == [key.id]
    with pytest.raises(UnknownKey, match="no key with the id 'nothing'"):
        here.revoke("nothing")


def test_looking_keys_up_costs_no_read_each(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ApiKeys(database)
    secret, key = known.create("ci", scopes=[Scope.SEND])
    wrong = secret[:-4] + "abcd"
    reads: list[str] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda *given: reads.append(given[2]) if given[2].startswith("SELECT keys.") else None,
    )
    monkeypatch.setattr(keys_module, "CACHE_SECONDS", 1e9)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(known.find, [secret, wrong] * 1000))
    assert found == [key, None] * 1000
    assert len(reads) == 1


def test_unknown_ids_cost_few_reads(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    known = ApiKeys(database)
    reads: list[str] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda *given: reads.append(given[2]) if "FROM keys" in given[2] else None,
    )
    monkeypatch.setattr(keys_module, "CACHE_SECONDS", 1e9)
    monkeypatch.setattr(keys_module, "MISS_SECONDS", 1e6)
    assert {known.find(f"ma_{n:08}_{'a' * 43}") for n in range(1000)} == {None}
    assert len(reads) == 1


def test_keys_go_on_while_the_database_is_away_if_they_were_ever_read(database: Database) -> None:
    known = ApiKeys(database)
    secret, key = known.create("ci", scopes=[Scope.SEND])
    assert known.find(secret) == key
    known._last = type(known._last)(float("-inf"), known._last.usable)  # as if long ago
    away = known.database = Database(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/nothing")
    assert known.find(secret) == key
    for never in (ApiKeys(away), ApiKeys(away)):
        with pytest.raises(StoreUnavailable):
            never.find(secret)
        with pytest.raises(StoreUnavailable):
            never.are_there()


def test_when_a_key_was_used_is_written_once_a_minute(database: Database) -> None:
    known = ApiKeys(database)
    secret, _ = known.create("ci", scopes=[Scope.SEND])
    writes: list[str] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda *given: writes.append(given[2]) if "UPDATE keys" in given[2] else None,
    )
    for _ in range(100):
        assert known.find(secret)
    wait_until(lambda: known.every()[0].used_at, what="it is written")
    known.close()
    assert len(writes) == 1


@pytest.mark.parametrize(
    ("sender", "allowed"),
    [
        ("shop@example.org", True),
        ("Shop@EXAMPLE.org", True),
        ("any@shop.example", True),
        ("other@example.org", False),
        ("any@sub.shop.example", False),
        ("any@notshop.example", False),
        ("shop@example.org.evil.example", False),
        ("", False),
    ],
)
def test_a_key_may_send_from_its_addresses_and_domains(sender: str, allowed: bool) -> None:
    key = ApiKey(
        id="x", name="x", scopes=frozenset(), senders=("shop@example.org", "@shop.example")
    )
    assert key.may_send_from(sender) is allowed
    assert ApiKey(id="x", name="x", scopes=frozenset()).may_send_from(sender)


# --- the rate ------------------------------------------------------------------------------------------------------


def charges(connection: Connection, asked: list[Sequence[Charge | None]]) -> list[list[bool]]:
    return [debit(connection, one) for one in asked]


def one_by_one(connection: Connection, asked: Sequence[Charge | None]) -> list[bool]:
    return debit(connection, asked)


def of(key: str, count: int = 1, per_minute: int = 10) -> Charge:
    return Charge(key_id=key, per_minute=per_minute, count=count)


def test_exactly_the_limit_passes_from_many_threads_of_several_processes(
    database: Database,
) -> None:
    other = Database(database.url.render_as_string(hide_password=False))
    with ThreadPoolExecutor(40) as threads:
        passed = list(
            threads.map(
                lambda n: (database, other)[n % 2].write(one_by_one, of("a", per_minute=20)),
                range(200),
            )
        )
        # In the time that this takes some of the room comes back, 3 s each.
    other.close()
    assert 20 <= sum(passed) <= 22 and passed.count(True) + passed.count(False) == 200


@pytest.mark.parametrize("limit", [1, 7, 10, 100, 999_999, 1_000_000])
def test_a_limit_lets_exactly_its_number_pass_at_once(database: Database, limit: int) -> None:
    for key, counts in (("a", [limit, 1]), ("b", [limit - 1, 1, 1] if limit > 1 else [1, 1])):
        asked: Sequence[Charge | None] = [of(key, count, limit) for count in counts]
        assert database.write(charges, asked) == [*[True] * (len(counts) - 1), False]


def test_what_does_not_pass_leaves_the_room_to_others_and_knows_when_it_would(
    database: Database,
) -> None:
    first, large, small, other = of("a", 4), of("a", 7), of("a", 6), of("b", 10)
    asked: Sequence[Charge | None] = [first, None, large, small, other]
    assert database.write(charges, asked) == [True, True, False, True, True]
    assert first.rate and (
        first.rate.remaining,
        first.rate.full_seconds,
        first.rate.retry_seconds,
    ) == (
        6,
        24,
        0,
    )
    assert large.rate and (large.rate.passed, large.rate.remaining, large.rate.retry_seconds) == (
        False,
        6,
        6,
    )
    assert small.rate and (small.rate.remaining, small.rate.full_seconds) == (0, 60)
    assert (
        str(RateLimited(large.rate))
        == "expected at most 10 messages a minute, got 7 more; there is room for them in 6 s"
    )


def test_a_group_is_debited_by_one_update(database: Database) -> None:
    both: Sequence[Charge | None] = [of("a"), of("b")]
    assert database.write(charges, both) == [True, True]
    writes: list[Any] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda *given: writes.append(given) if not given[2].lstrip().startswith("SELECT") else None,
    )
    asked: Sequence[Charge | None] = [of("a", 1, 1000) for _ in range(500)]
    assert database.write(charges, asked) == [True] * 500
    assert len([given for given in writes if "rates" in given[2]]) == 1


def test_room_comes_back_evenly(database: Database) -> None:
    assert database.write(one_by_one, of("a", 600, 600))
    assert not database.write(one_by_one, of("a", 50, 600))
    wait_until(lambda: database.write(one_by_one, of("a", 5, 600)), what="there is room for five")


def test_what_is_undone_is_not_debited_and_a_clock_put_back_shuts_nobody_out(
    database: Database,
) -> None:
    def fail(connection: Connection, asked: list[Charge]) -> list[bool]:
        debit(connection, asked)
        raise ValueError("undone")

    with pytest.raises(ValueError, match="undone"):
        database.write(fail, of("a", 10))
    assert database.write(one_by_one, of("a", 10))
    with database.engine.begin() as connection:
        connection.execute(rates.update().values(full_at=rates.c.full_at + 3600 * 10**9))
    late = of("a")
    assert not database.write(one_by_one, late)
    assert late.rate and late.rate.retry_seconds == 6


def test_an_idempotency_key_is_free_again_where_the_rate_refuses(database: Database) -> None:
    def accept(connection: Connection, asked: list[tuple[Kept, Charge]]) -> list[tuple[bool, bool]]:
        ours = take(connection, [kept for kept, _ in asked])
        passed = debit(
            connection,
            [charge if is_ours else None for (_, charge), is_ours in zip(asked, ours, strict=True)],
        )
        give_back(
            connection, [kept for (kept, _), does in zip(asked, passed, strict=True) if not does]
        )
        return list(zip(ours, passed, strict=True))

    def kept(name: str) -> Kept:
        return Kept(
            key=Key(owner="a", key=name, request_hash=""),
            answer=StoredAnswer(status=202, location="/"),
        )

    assert database.write(accept, (kept("one"), of("a", 10))) == (True, True)
    assert database.write(accept, (kept("two"), of("a"))) == (True, False)
    replayed = of("a", 10)
    assert database.write(accept, (kept("one"), replayed)) == (
        False,
        True,
    )  # A replay is not debited.
    assert replayed.rate is None
    assert database.read(
        lambda connection: connection.scalars(select(idempotency.c.key)).all()
    ) == ["one"]


# --- over HTTP -----------------------------------------------------------------------------------------------------

lead = Blueprint("accepting", __name__)


@lead.post("/charged")
def charged() -> Response:
    """What every accepting route does with the key of its request."""
    asked = request.get_json()
    guard.check_sender(asked.get("from", "alice@example.org"))
    charge = guard.charge(asked.get("count", 1))
    if not services().outbox.database.write(one_by_one, charge):
        assert charge and charge.rate
        raise RateLimited(charge.rate)
    return jsonify({"key": guard.current_key().id})


def made(url: str, **settings: str) -> Iterator[Flask]:
    given = {
        "ENV_FILE": "",
        "BROKER_URL": "pyamqp://guest@127.0.0.1:9//",
        "DATABASE_URL": url,
    } | settings
    read = load({f"MAILASYNC_{name}": value for name, value in given.items()})
    database_module.db_upgrade(read)
    database = Database(url)
    served = web.create_app(read, lead, database=database)
    served.register_blueprint(create_blueprint(InboxStorage()))
    yield served
    served.extensions["mailasync"].api_keys.close()
    runtime.stop_publisher()
    database.close()


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Flask]:
    yield from made(sqlite_url)


def new_key(app: Flask, *scopes: Scope, **more: Any) -> tuple[dict[str, str], ApiKey]:
    """A header with a new key."""
    secret, key = app.extensions["mailasync"].api_keys.create("test", scopes=scopes, **more)
    return {"Authorization": f"Bearer {secret}"}, key


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def told(answer: Any) -> Any:
    return json.loads(answer.data)


def test_every_route_has_a_scope_and_every_scope_a_route(app: Flask) -> None:
    routes = {
        f"{method} {rule.rule}"
        for rule in app.url_map.iter_rules()
        if rule.endpoint not in ("static", "accepting.charged")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    assert routes == SCOPES.keys()


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (
            "send",
            {
                "POST /v1/messages",
                "GET /v1/messages/x",
                "POST /v1/jobs",
                "GET /v1/jobs/x",
                "GET /",
                "OPTIONS /v1/messages",
            },
        ),
        (
            "read",
            {
                "GET /v1/messages/x",
                "GET /v1/jobs",
                "GET /v1/jobs/x",
                "GET /v1/accounts",
                "GET /inbox/",
                "GET /",
                "HEAD /v1/jobs",
                "OPTIONS /v1/messages",
            },
        ),
        ("admin", {"*"}),
    ],
)
def test_a_scope_allows_what_it_says_and_no_more(
    app: Flask, client: FlaskClient, scopes: str, allowed: set[str]
) -> None:
    header, key = new_key(app, Scope(scopes))
    for asked in (
        "POST /v1/messages",
        "GET /v1/messages/x",
        "POST /v1/messages/x/cancel",
        "POST /v1/jobs",
        "GET /v1/jobs",
        "HEAD /v1/jobs",
        "GET /v1/jobs/x",
        "POST /v1/jobs/x/retry",
        "GET /v1/accounts",
        "GET /inbox/",
        "DELETE /inbox/api/messages",
        "GET /",
        "OPTIONS /v1/messages",
        "POST /charged",
    ):
        method, path = asked.split()
        answer = client.open(path, method=method, headers=header)
        assert (answer.status_code != 403) is (asked in allowed or allowed == {"*"}), asked
        if answer.status_code == 403 and method != "HEAD":
            assert told(answer)["code"] == "restricted_api_key"
            assert f"got {key.id} (test) with {scopes}" in told(answer)["detail"]
            assert "admin" in told(answer)["detail"]
        assert client.open(path, method=method).status_code == 401, asked
    assert client.get("/nothing", headers=header).status_code == 404


def test_the_scope_that_is_needed_is_named(app: Flask, client: FlaskClient) -> None:
    header, key = new_key(app, Scope.READ)
    answer = told(client.post("/v1/messages", json=MAIL, headers=header))
    assert (
        answer["detail"]
        == f"expected a key with the scope send or admin, got {key.id} (test) with read"
    )
    assert answer["scopes"] == ["send"]


def test_a_key_may_come_in_three_ways(app: Flask, client: FlaskClient) -> None:
    secret, key = app.extensions["mailasync"].api_keys.create("test", scopes=[Scope.ADMIN])
    for header in (
        {"Authorization": f"Bearer {secret}"},
        {"Authorization": f"bearer  {secret}"},
        {"X-API-Key": secret},
        {"Authorization": basic("any", secret)},
        {"Authorization": basic("", secret)},
        {"X-API-Key": secret, "Authorization": "Bearer other"},
    ):
        answer = client.post(
            "/charged",
            json={},
            headers={"Host": "mail.example.org", "X-Forwarded-For": "10.0.0.1"} | header,
        )
        assert (answer.status_code, answer.json) == (200, {"key": key.id}), header
    assert app.extensions["mailasync"].api_keys.every()[0].key == key


@pytest.mark.parametrize(
    "header",
    [
        {"Authorization": "Bearer other"},
        {"X-API-Key": "other"},
        {"Authorization": basic("ma_", "other")},
        {"X-API-Key": "é"},
        {"Authorization": f"Bearer ma_00000000_{'a' * 43}"},
        {"Authorization": "Bearer SECRET"},
        {"X-API-Key": "REVOKED"},
    ],
)
def test_each_wrong_key_gets_the_same_answer_and_reaches_no_log(
    app: Flask, client: FlaskClient, header: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    known: ApiKeys = app.extensions["mailasync"].api_keys
    (secret, _), (revoked, key) = (
        known.create("one", scopes=[Scope.ADMIN]),
        known.create("two", scopes=[Scope.ADMIN]),
    )
    known.revoke(key.id)
    [(name, value)] = header.items()
    given = value.replace("SECRET", secret[:-1] + ("A" if secret[-1] != "A" else "B")).replace(
        "REVOKED", revoked
    )
    answer, plain = (
        client.get("/v1/jobs", headers={name: given}),
        client.get("/v1/jobs", headers={"Authorization": "Bearer x"}),
    )
    assert (answer.status_code, told(answer)["code"]) == (401, "invalid_api_key")
    assert told(answer) | {"request_id": ""} == told(plain) | {"request_id": ""}
    assert answer.headers.getlist("WWW-Authenticate") == [
        'Bearer realm="mailasync"',
        'Basic realm="mailasync", charset="UTF-8"',
    ]
    assert given.split()[-1] not in caplog.text or given == "é"
    assert told(client.get("/v1/jobs"))["code"] == "missing_api_key"


def test_a_key_in_the_database_is_needed_on_this_machine_too(
    app: Flask, client: FlaskClient
) -> None:
    assert client.get("/v1/jobs").status_code == 200
    header, key = new_key(app, Scope.READ)
    wait_until(lambda: client.get("/v1/jobs").status_code == 401, what="it is needed")
    assert "Bearer" in client.get("/", headers=header).text
    app.extensions["mailasync"].api_keys.revoke(key.id)
    wait_until(lambda: client.get("/v1/jobs").status_code == 200, what="it is not")


def test_the_setting_is_a_key_for_everything_beside_the_others(sqlite_url: str) -> None:
    for app in made(sqlite_url, API_KEY="s3cret=1"):
        client = app.test_client()
        header, _ = new_key(app, Scope.SEND)
        for given in (
            {"Authorization": "Bearer s3cret=1"},
            {"X-API-Key": "s3cret=1"},
            {"Authorization": basic("me", "s3cret=1")},
        ):
            assert client.post("/charged", json={}, headers=given).json == {"key": "default"}
        assert client.post("/v1/messages", json=MAIL, headers=header).status_code == 202


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_without_any_key_nobody_is_served_on_another_host_than_loopback(
    sqlite_url: str, host: str
) -> None:
    for app in made(sqlite_url, HOST=host):
        client = app.test_client()
        assert client.get("/v1/jobs", headers={"Host": "localhost"}).status_code == 401
        assert client.get("/livez").status_code == 200
        header, _ = new_key(app, Scope.READ)
        wait_until(
            lambda header=header, client=client: (
                client.get("/v1/jobs", headers=header).status_code == 200
            ),  # type: ignore[misc]
            what="the new key is served",
        )


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"}, 403),
        ({"Origin": "http://localhost"}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://in.front.example"}, 200),
        ({}, 200),
    ],
)
def test_another_sites_page_cannot_use_the_password_that_a_browser_knows(
    app: Flask, client: FlaskClient, headers: dict[str, str], status: int
) -> None:
    secret, _ = app.extensions["mailasync"].api_keys.create("test", scopes=[Scope.ADMIN])
    assert (
        client.post(
            "/charged", json={}, headers={"Authorization": basic("me", secret), **headers}
        ).status_code
        == status
    )
    assert (
        client.get(
            "/v1/jobs", headers={"Authorization": basic("me", secret), **headers}
        ).status_code
        == 200
    )
    assert (
        client.post(
            "/charged", json={}, headers={"Authorization": f"Bearer {secret}", **headers}
        ).status_code
        == 200
    )


def test_a_key_sends_only_from_its_addresses(app: Flask, client: FlaskClient) -> None:
    header, key = new_key(app, Scope.ADMIN, senders=["@shop.example"])
    answer = client.post("/charged", json={"from": "ceo@bank.example"}, headers=header)
    assert (answer.status_code, told(answer)["code"]) == (403, "invalid_from_address")
    assert told(answer)["errors"] == [
        {
            "pointer": "#/from",
            "detail": f"expected a sender that the key {key.id} (test) may use, "
            "@shop.example, got 'ceo@bank.example'",
        }
    ]
    assert (
        client.post("/charged", json={"from": "a@shop.example"}, headers=header).status_code == 200
    )


def test_a_limited_key_is_told_what_is_left_and_when_to_come_again(
    app: Flask, client: FlaskClient
) -> None:
    header, _ = new_key(app, Scope.ADMIN, per_minute=10)
    answer = client.post("/charged", json={"count": 4}, headers=header)
    assert {
        name: answer.headers[name] for name, _ in answer.headers if name.startswith("RateLimit")
    } == {
        "RateLimit-Policy": '"default";q=10;w=60',
        "RateLimit": '"default";r=6;t=24',
        "RateLimit-Limit": "10",
        "RateLimit-Remaining": "6",
        "RateLimit-Reset": "24",
    }
    refused = client.post("/charged", json={"count": 9}, headers=header)
    assert (refused.status_code, told(refused)["code"]) == (429, "rate_limit_exceeded")
    # It is 18 seconds, less what the machine took; there is one more message every six.
    assert 0 < int(refused.headers["Retry-After"]) <= 18
    assert 6 <= int(refused.headers["RateLimit-Remaining"]) < 9
    large = client.post("/charged", json={"count": 11}, headers=header)
    assert large.status_code == 422
    assert "expected at most 10 messages, which is what the key" in told(large)["detail"] and told(
        large
    )["detail"].endswith("got 11")
    assert "RateLimit" not in client.get("/v1/jobs", headers=header).headers
    unlimited, _ = new_key(app, Scope.ADMIN)
    assert "RateLimit" not in client.post("/charged", json={}, headers=unlimited).headers


def keyed(app: Flask, header: dict[str, str], number: int) -> Any:
    return app.test_client().post(
        "/v1/messages", json=MAIL, headers=header | {"Idempotency-Key": f"key-{number}"}
    )


def test_a_limited_key_sends_exactly_its_number_and_what_is_refused_is_not_written(
    database_url: str,
) -> None:
    for app in made(database_url):
        header, key = new_key(app, Scope.SEND, per_minute=12)
        database: Database = app.extensions["mailasync"].outbox.database
        batch = {"messages": [MAIL] * 4}
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(partial(keyed, app, header), range(12)))
        assert {answer.status_code for answer in answers} == {202}
        assert sorted(int(answer.headers["RateLimit-Remaining"]) for answer in answers)[0] <= 1
        client = app.test_client()
        # A repetition is not charged, and what is refused leaves neither a message nor an idempotency key
        again = keyed(app, header, 0)
        assert (
            again.status_code,
            again.headers["Idempotency-Replayed"],
            "RateLimit" in again.headers,
        ) == (
            202,
            "true",
            False,
        )
        refused = client.post(
            "/v1/messages/batch", json=batch, headers=header | {"Idempotency-Key": "late"}
        )
        assert (refused.status_code, told(refused)["code"]) == (429, "rate_limit_exceeded")
        rows = database.read(lambda connection: connection.scalars(select(messages.c.key_id)).all())
        assert rows == [key.id] * 12
        assert "late" not in database.read(
            lambda connection: connection.scalars(select(idempotency.c.key)).all()
        )


def test_a_database_that_cannot_say_who_may_ask_serves_nobody(
    app: Flask, client: FlaskClient
) -> None:
    with app.extensions["mailasync"].outbox.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE keys RENAME TO gone"))
    assert client.get("/v1/jobs").status_code == 503
    assert client.get("/livez").status_code == 200
    assert client.get("/readyz").status_code == 200


# --- by command, with real processes -------------------------------------------------------------------------------


def test_keys_are_made_listed_and_revoked_by_command_and_open_another_host(
    tmp_path: Path, sqlite_url: str
) -> None:
    with service(
        tmp_path,
        DATABASE_URL=sqlite_url,
        HOST="0.0.0.0",
        BROKER_URL=f"pyamqp://guest@127.0.0.1:{free_port()}//",
    ) as one:
        one.upgrade()
        # Given a host that others can reach, and no key
        program = one.run("app.py", name="keyless")
        wait_until(lambda: program.process.poll() is not None, what="it ends")
        assert "MAILASYNC_HOST='0.0.0.0' can be reached from other machines" in program.text()
        assert "Traceback" not in program.text()
        # When one is made
        made = json.loads(
            flask(
                one,
                "create",
                "ci",
                "--from",
                "Shop@Example.org",
                "--from",
                "@bücher.example",
                "--per-minute",
                "60",
                "--json",
            )
        )
        assert made | {"key": "", "id": ""} == {
            "key": "",
            "id": "",
            "name": "ci",
            "scopes": ["send"],
            "per_minute": 60,
            "from": ["shop@example.org", "@xn--bcher-kva.example"],
        }
        plain = flask(one, "create", "reader", "--scope", "read", "--scope", "admin").splitlines()
        assert (
            len(plain) == 2
            and plain[0].startswith(f"key {plain[1][3:11]} is in sqlite:///")
            and len(plain[1]) == 55
        )
        # Then it is served
        program = one.web()
        header = {"Authorization": f"Bearer {made['key']}"}
        assert one.request("GET", "/v1/job-types", headers=header)[0] == 200
        assert one.request("GET", "/v1/job-types")[0] == 401
        wait_until(
            lambda: json.loads(flask(one, "list", "--json").splitlines()[0])["used_at"],
            what="its use is written",
        )
        # Until it is revoked
        assert "; revoked 20" in flask(one, "revoke", made["id"])
        wait_until(
            lambda: one.request("GET", "/v1/job-types", headers=header)[0] == 401,
            what="it is no longer served",
        )
        listed = flask(one, "list")
        assert [line[:8] for line in listed.splitlines()] == [made["id"], plain[1][3:11]]
        assert made["key"][12:] not in listed + program.text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("create", "ci", "--from", "nobody"), "expected an address"),
        (("create", "ci", "--from", "@"), "expected an address"),
        (("create", "ci", "--scope", "all"), "'all' is not one of"),
        (("create", "ci", "--per-minute", "0"), "0 is not in the range"),
        (("create", "a\nb"), "expected 1 to 100 printable characters"),
        (("revoke", "nothing"), "no key with the id 'nothing'"),
        (("revoke", "a\0b"), "no key with the id 'a\\x00b'"),
        (("revoke", os.fsdecode(b"caf\xe9")), "no key with the id 'caf\\udce9'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    app: Flask, arguments: tuple[str, ...], says: str
) -> None:
    result = app.test_cli_runner().invoke(args=["keys", *arguments])
    assert result.exit_code != 0
    assert says in result.output and "Traceback" not in result.output
    assert app.extensions["mailasync"].api_keys.every() == []


def flask(one: Service, *arguments: str) -> str:
    program = one.run("-m", "flask", "keys", *arguments, name="flask")
    assert program.process.wait(60) == 0, program.text()
    return program.text().strip()
