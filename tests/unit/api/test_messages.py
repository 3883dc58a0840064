"""HTTP in: what is accepted, what each refusal says, who may ask, and what is told about a message."""

import gzip
import io
import json
import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mailroom.api.openapi.operations import OPERATIONS
from mailroom.inbox import InboxStorage, create_blueprint
from mailroom.model.attempt import Outcome
from mailroom.model.message import State
from mailroom.store.db.schema import contents as contents_table
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import Outbox
from mailroom.store.workers import Heartbeat
from tests.services import LEASE_SECONDS, wait_until
from tests.services.application import made

MAIL = {"to": "bob@example.org", "subject": "Hello", "contents": "Hi"}
HOSTILE = {
    "malformed": (b'{"to": ', 400, "expected JSON"),
    "empty": (b"", 400, "expected JSON"),
    "no object": (b'["bob@example.org"]', 400, "expected a JSON object, got"),
    "deep": (b"[" * 100_000, 400, "expected at most 16 levels"),
    "deep object": (b'{"to":' * 50_000, 400, "expected at most 16 levels"),
    "NaN": (b'{"to": NaN}', 400, "got NaN"),
    "duplicate": (b'{"to": "a@example.org", "to": "b@example.org"}', 400, 'got "to" 2 times'),
    "not UTF-8": (b'{"to": "\xff"}', 400, "expected UTF-8, got byte 0xff"),
    "surrogate": (
        b'{"to": "bob@example.org", "subject": "\\ud800"}',
        422,
        "half of a surrogate pair",
    ),
    "NUL": (
        b'{"to": "bob@example.org", "contents": "a\\u0000b"}',
        422,
        "expected text without NUL",
    ),
    "CRLF in subject": (
        b'{"to": "bob@example.org", "subject": "a\\r\\nBcc: c@example.org"}',
        422,
        "expected one line",
    ),
    "CRLF in address": (
        b'{"to": "bob@example.org\\r\\nRCPT TO:<c@example.org>"}',
        422,
        "without control characters",
    ),
    "unknown field": (b'{"to": "bob@example.org", "subjekt": "x"}', 422, "did you mean subject?"),
    "wrong type": (b'{"to": "bob@example.org", "contents": 17}', 422, "expected a string, got 17"),
    "missing": (b"{}", 422, "expected this field, got none"),
    "no address": (b'{"to": ["bob@example.org", "nobody"]}', 422, 'got "nobody"'),
}


def outbox(app: Flask) -> Outbox:
    found: Outbox = app.extensions["mailasync"].outbox
    return found


# --- accepting -----------------------------------------------------------------------------------------------------


def test_the_tutorials_post_answers_200_with_the_id_and_waits_for_the_work(
    client: FlaskClient, app: Flask
) -> None:
    answer = client.post("/", json=MAIL)
    assert answer.status_code == 200
    assert answer.json is not None
    assert set(answer.json) == {"id", "status"}
    assert answer.json["status"] == "waiting"
    standing = outbox(app).details(answer.json["id"])
    assert standing
    assert standing.job
    assert standing.job["name"] == "simulate"
    job = client.get(f"/v1/jobs/{standing.job['id']}").json
    assert job and job["args"] == {"seconds": 5.0}


def test_a_message_of_v1_is_queued_at_once(client: FlaskClient) -> None:
    answer = client.post("/v1/messages", json=MAIL)
    assert (answer.status_code, answer.json["status"]) == (202, "queued")  # type: ignore[index]
    told = client.get(answer.headers["Location"]).json
    assert told is not None
    assert told["recipients"] == [
        {"email": "bob@example.org", "name": "", "kind": "to", "status": "queued", "reply": None}
    ]
    assert told["why"].endswith(
        "no worker was ever seen; start one with `celery -A mailasync worker --loglevel=INFO`"
    )
    assert [step["event"] for step in told["timeline"]] == ["accepted"]


def test_without_simulated_work_the_tutorials_mail_is_queued_at_once(sqlite_url: str) -> None:
    for app in made(sqlite_url, SIMULATED_WORK_SECONDS="0"):
        assert app.test_client().post("/", json=MAIL).json["status"] == "queued"  # type: ignore[index]


def test_two_identical_posts_make_two_mails_with_different_message_ids(client: FlaskClient) -> None:
    ids = [client.post("/", json=MAIL).json["id"] for _ in range(2)]  # type: ignore[index]
    assert len({client.get(f"/v1/messages/{id}").json["message_id"] for id in ids}) == 2  # type: ignore[index]


@pytest.mark.parametrize(
    ("contents", "text", "html"),
    [
        ("Hi", "Hi", None),
        ("<p>Hi</p>", None, "<p>Hi</p>"),
        ("1 < 2 > 0", "1 < 2 > 0", None),
        ("/etc/passwd", "/etc/passwd", None),
    ],
)
def test_contents_are_text_unless_they_look_like_html(
    client: FlaskClient, app: Flask, contents: str, text: str, html: str
) -> None:
    answer = client.post("/", json=MAIL | {"contents": contents})
    query = contents_table.select().where(contents_table.c.id == answer.json["id"])  # type: ignore[index]
    kept = json.loads(
        outbox(app).database.read(lambda connection: connection.execute(query).one().content)
    )
    assert (kept["text"], kept["html"]) == (text, html)


# --- refusing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/v1/messages"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_body_that_cannot_be_accepted_is_told_why(
    client: FlaskClient, path: str, name: str
) -> None:
    body, status, reason = HOSTILE[name]
    answer = client.post(path, data=body, content_type="application/json")
    assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
    told = json.loads(answer.data)
    assert reason in told["detail"]
    assert told["status"] == status
    assert (status == 422) == ("errors" in told)


def test_each_wrong_field_is_told_with_a_pointer(client: FlaskClient) -> None:
    answer = client.post(
        "/",
        json={
            "to": ["bob@example.org", "nobody"],
            "subject": "a\nb",
            "contents": 1,
            "cc": ["x", 2],
        },
    )
    assert {error["pointer"] for error in json.loads(answer.data)["errors"]} == {
        "#/to/1",
        "#/subject",
        "#/contents",
        "#/cc/0",
        "#/cc/1",
    }


@pytest.mark.parametrize("coding", ["gzip", "br, deflate", "x-" + "y" * 500])
def test_an_encoded_body_is_415_and_told_what_is_taken(
    app: Flask, client: FlaskClient, coding: str
) -> None:
    app.register_blueprint(create_blueprint(InboxStorage()))
    body, headers = gzip.compress(json.dumps(MAIL).encode()), {"Content-Encoding": coding}
    with_body = [route.split(" ") for route, operation in OPERATIONS.items() if operation.body]
    assert len(with_body) > 10
    for method, rule in with_body:
        path = re.sub("<[^>]+>", "own" if "webhooks" in rule else "x", rule)
        answer = client.open(
            path, method=method, data=body, headers=headers, content_type="application/json"
        )
        assert (answer.status_code, answer.headers["Accept-Encoding"]) == (415, "identity"), rule
        assert "expected a body without Content-Encoding, got" in json.loads(answer.data)["detail"]
    form: Any = {"data": {"message": json.dumps(MAIL)}, "content_type": "multipart/form-data"}
    assert client.post("/v1/messages", headers=headers, **form).status_code == 415


@pytest.mark.parametrize("coding", ["identity", "Identity", " "])
def test_a_body_that_says_it_is_not_encoded_is_taken(client: FlaskClient, coding: str) -> None:
    assert (
        client.post("/v1/messages", json=MAIL, headers={"Content-Encoding": coding}).status_code
        == 202
    )


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_another_media_type_is_415(client: FlaskClient, content_type: str) -> None:
    answer = client.post("/", data=json.dumps(MAIL), content_type=content_type)
    assert answer.status_code == 415
    assert "expected Content-Type application/json" in json.loads(answer.data)["detail"]


def test_a_body_that_is_too_large_is_413_and_says_the_limit(client: FlaskClient) -> None:
    answer = client.post("/", json=MAIL | {"contents": "x" * 36_000_001})
    assert answer.status_code == 413
    assert "36000000 bytes" in json.loads(answer.data)["detail"]


def test_a_body_without_a_length_has_the_same_limit(client: FlaskClient) -> None:
    body = io.BytesIO(json.dumps(MAIL | {"contents": "x" * 37_000_000}).encode())
    answer = client.post(
        "/",
        input_stream=body,
        content_type="application/json",
        environ_overrides={"wsgi.input_terminated": True},
    )
    assert answer.status_code == 413


def test_a_wrong_method_is_405_with_allow(client: FlaskClient) -> None:
    answer = client.delete("/v1/messages")
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]


def test_an_unknown_message_and_an_unknown_path_are_404(client: FlaskClient) -> None:
    assert client.get("/v1/messages/nothing").status_code == 404
    assert "got 'nothing'" in json.loads(client.get("/v1/messages/nothing").data)["detail"]
    assert client.get("/nothing").content_type == "application/problem+json"


@pytest.mark.parametrize("id", ["a%00b", "x" * 10_000, "%ff", "a%0ab"])
def test_what_can_be_no_id_is_404(client: FlaskClient, id: str) -> None:
    assert client.get(f"/v1/messages/{id}").status_code == 404


def test_a_database_that_is_away_is_503_and_nothing_was_accepted(
    app: Flask, client: FlaskClient, sqlite_url: str
) -> None:
    database = outbox(app).database
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE messages RENAME TO gone")
    answer = client.post("/", json=MAIL)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert "bob" not in answer.text
    assert client.get("/readyz").status_code == 503


# --- who may ask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"Host": "mail.example.org"}, "mail.example.org"),
        ({"Host": "localhost.example.org:5000"}, "localhost.example.org"),
        ({"X-Forwarded-For": "10.0.0.1"}, "X-Forwarded-For"),
        ({"Forwarded": "for=10.0.0.1"}, "Forwarded"),
        ({"Via": "1.1 proxy.example.org"}, "Via"),
        ({"Origin": "https://evil.example.org"}, "evil.example.org"),
        ({"Origin": "null"}, "null"),
        ({"Origin": "http://["}, "http://["),
    ],
)
def test_without_a_key_only_this_machine_is_served(
    client: FlaskClient, headers: dict[str, str], named: str
) -> None:
    answer = client.post("/", json=MAIL, headers=headers)
    assert answer.status_code == 401
    assert named in json.loads(answer.data)["detail"]
    assert client.get("/ping", headers=headers).status_code == 200


@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1"])  # Servers write it so or so.
def test_without_a_key_no_http_1_0_is_served(client: FlaskClient, protocol: str) -> None:
    old = {"SERVER_PROTOCOL": protocol}
    assert client.get("/v1/messages").status_code == 200
    answer = client.get("/v1/messages", environ_overrides=old)
    assert answer.status_code == 401 and "HTTP/1.0" in answer.get_json(force=True)["detail"]
    assert client.get("/livez", environ_overrides=old).status_code == 200


@pytest.mark.parametrize("host", ["localhost:5000", "127.0.0.1:5000", "[::1]:5000", "LOCALHOST"])
def test_without_a_key_this_machine_is_served(client: FlaskClient, host: str) -> None:
    assert client.post("/", json=MAIL, headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("Bearer other", 401),
        ("Basic s3cret", 401),
        ("", 401),
        ("Bearer s3crét", 401),
    ],
)
def test_with_a_key_it_has_to_be_given(sqlite_url: str, header: str, status: int) -> None:
    for app in made(sqlite_url, API_KEY="s3cret"):
        client = app.test_client()
        headers = (
            {"Authorization": header, "X-Forwarded-For": "10.0.0.1", "Host": "mail.example.org"}
            if header
            else {}
        )
        assert client.post("/", json=MAIL, headers=headers).status_code == status
        assert client.get("/livez").status_code == 200
        assert client.get("/v1/messages/x").status_code == 401


# --- telling -------------------------------------------------------------------------------------------------------


def worked(app: Flask, client: FlaskClient, outcome: Outcome) -> Any:
    """A message after one attempt that ended so, as the API shows it."""
    database = outbox(app).database
    Heartbeat(database, "worker-1", "worker-1@host", ["mail"]).beat()
    claims = Claims(database, "worker-1", LEASE_SECONDS)
    id = client.post("/v1/messages", json=MAIL).json["id"]  # type: ignore[index]
    [claim] = claims.claim([id])
    assert client.get(f"/v1/messages/{id}").json["status"] == "sending"  # type: ignore[index]
    assert claims.finish(claim, outcome)
    return client.get(f"/v1/messages/{id}").json


def test_a_deferred_mail_tells_the_servers_words_and_when_it_is_tried_again(
    app: Flask, client: FlaskClient
) -> None:
    told = worked(
        app,
        client,
        Outcome(
            state=State.DEFERRED,
            reason="450 4.2.1 later",
            wait_seconds=60,
            recipients={0: (State.DEFERRED, "450 4.2.1 later")},
        ),
    )
    assert told["why"].startswith("tried again at 20")
    assert told["why"].endswith("450 4.2.1 later")
    assert told["recipients"][0]["reply"] == "450 4.2.1 later"
    assert [step["event"] for step in told["timeline"]] == [
        "accepted",
        "queued",
        "deferred",
        "next attempt",
    ]
    assert told["timeline"][2] | {"at": ""} == {
        "at": "",
        "event": "deferred",
        "attempt": 1,
        "detail": "450 4.2.1 later",
    }
    assert told["timeline"][3]["at"] == told["next_attempt_at"]


def test_a_failed_mail_tells_why(app: Flask, client: FlaskClient) -> None:
    told = worked(
        app,
        client,
        Outcome(
            state=State.FAILED,
            reason="550 5.1.1 nobody",
            recipients={0: (State.FAILED, "550 5.1.1 nobody")},
        ),
    )
    assert (told["status"], told["why"], told["attempts"]) == (
        "failed",
        "failed: 550 5.1.1 nobody",
        1,
    )


def test_health_is_told(client: FlaskClient) -> None:
    assert client.get("/ping").json == {"status": "success", "message": "pong"}
    assert client.get("/livez").json == {"status": "ok"}
    ready = client.get("/readyz").json
    assert ready is not None
    assert (ready["status"], ready["checks"]["database"], ready["checks"]["worker"]) == (
        "ok",
        "ok",
        "none is running",
    )


def test_strangers_are_told_no_server_and_no_address(sqlite_url: str) -> None:
    for app in made(sqlite_url, API_KEY="s3cret"):
        client = app.test_client()

        def told(client: FlaskClient = client, **headers: str) -> Any:
            return json.loads(client.get("/readyz", headers=headers).data)["checks"]

        wait_until(
            lambda told=told: told(Authorization="Bearer s3cret")["broker"].startswith(
                "unreachable: "
            ),  # type: ignore[misc]
            what="the broker was looked at",
        )
        assert told() == {
            "database": "ok",
            "clock": "ok",
            "broker": "not ok",
            "worker": "not ok",
            "threads": "ok",
            "mailboxes": "ok",
        }


def test_the_first_page_shows_the_next_command(client: FlaskClient) -> None:
    page = client.get("/", headers={"Host": "localhost:5000"})
    assert page.status_code == 200
    assert "curl http://127.0.0.1:5000/" in page.text
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    with client.get("/static/web/pages.css") as style:
        assert style.status_code == 200
