"""Mailboxes of accounts over HTTP: GET /v1/accounts, /readyz, /metrics and the dashboard."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

import app as web
from mailroom.config.environment import load
from mailroom.store.db.database import Database
from mailroom.store.mailboxes import Mailboxes
from mailroom.store.workers import Heartbeat
from mailroom.worker import runtime
from tests.services.schema import ready

LEASE_SECONDS = 20.0
TROUBLE = "imap.gmail.com:993 refused the login: no"


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Flask]:
    """The application with an account at Gmail, on a broker that nobody listens on."""
    settings = load(
        {
            "MAILASYNC_ENV_FILE": "",
            "MAILASYNC_BROKER_URL": "pyamqp://guest@127.0.0.1:9//",
            "MAILASYNC_MAIL_USERNAME": "ops@example.org",
            "MAILASYNC_MAIL_PASSWORD": "secret",
        }
    )
    made = web.create_app(settings, database=ready(sqlite_url))
    yield made
    made.extensions["mailasync"].api_keys.close()
    runtime.stop_publisher()
    database_of(made).close()


def database_of(app: Flask) -> Database:
    database: Database = app.extensions["mailasync"].outbox.database
    return database


@pytest.fixture
def mailboxes(app: Flask) -> Mailboxes:
    """The mailboxes of a worker that is alive."""
    database = database_of(app)
    Heartbeat(database, "worker-1", "worker-1@host", ["mail"]).beat()
    return Mailboxes(database, "worker-1", LEASE_SECONDS)


def mailbox(client: FlaskClient) -> Any:
    [account] = (client.get("/v1/accounts").json or {})["data"]
    return account["mailbox"]


def check(client: FlaskClient) -> str:
    return str((client.get("/readyz").json or {})["checks"]["mailboxes"])


def test_a_mailbox_that_nobody_has_read_is_known_by_its_server(client: FlaskClient) -> None:
    assert mailbox(client) == {
        "host": "imap.gmail.com:993",
        "has_reader": False,
        "read_at": None,
        "sent_folder": None,
        "trouble": None,
    }
    assert check(client) == "ok"
    assert "mailasync_mailbox_read_seconds{" not in client.get("/metrics").text
    assert "Mailbox imap.gmail.com:993 not read yet" in client.get("/dashboard").text


def test_a_mailbox_that_is_read_has_a_reader_a_time_and_a_sent_folder(
    client: FlaskClient, mailboxes: Mailboxes
) -> None:
    assert mailboxes.claim("default")
    mailboxes.note_sent_folder("default", "Gesendet")
    mailboxes.note_read("default", uid_validity=1, uid=5)
    found = mailbox(client)
    assert (found["has_reader"], found["sent_folder"], found["trouble"]) == (True, "Gesendet", None)
    assert found["read_at"].startswith("20")
    metrics = client.get("/metrics").text
    assert 'mailasync_mailbox_read_seconds{account="default"} ' in metrics
    assert "\nmailasync_found_in_sent_total 0.0\n" in metrics
    assert "\nmailasync_not_found_in_sent_total 0.0\n" in metrics
    assert "\nmailasync_reports_ignored_total 0.0\n" in metrics
    assert "Mailbox imap.gmail.com:993 read " in client.get("/dashboard").text
    mailboxes.release("default")
    assert mailbox(client)["has_reader"] is False


def test_a_mailbox_that_cannot_be_read_is_reported_and_makes_nothing_unready(
    client: FlaskClient, mailboxes: Mailboxes
) -> None:
    assert mailboxes.claim("default")
    mailboxes.note_trouble("default", TROUBLE)
    assert mailbox(client)["trouble"] == TROUBLE
    assert check(client) == f"default: {TROUBLE}"
    assert client.get("/readyz").status_code == 200
    assert f"cannot be read, so bounces are not seen: {TROUBLE}" in client.get("/dashboard").text
    mailboxes.note_read("default", uid_validity=1, uid=5)
    assert (mailbox(client)["trouble"], check(client)) == (None, "ok")


def test_a_mailbox_of_an_account_that_is_gone_is_not_told_of(
    client: FlaskClient, mailboxes: Mailboxes
) -> None:
    assert mailboxes.claim("former")
    mailboxes.note_trouble("former", TROUBLE)
    assert (mailbox(client)["trouble"], check(client)) == (None, "ok")


@pytest.mark.parametrize("word", ["bounced", "complained"])
def test_what_came_back_can_be_asked_for(client: FlaskClient, word: str) -> None:
    assert client.get(f"/v1/messages?status={word}").json == {
        "data": [],
        "has_more": False,
        "next": None,
    }
    assert client.get(f"/v1/suppressions?reason={word}").status_code == 200
    event = {"url": "https://hooks.example.org/x", "events": [f"message.{word}"]}
    assert client.post("/v1/webhooks", json=event).status_code == 201


def test_the_description_has_the_words_of_what_comes_back(client: FlaskClient) -> None:
    document = client.get("/openapi.json").text
    for word in ("message.delayed", "message.bounced", "message.complained"):
        assert f'"{word}"' in document
    assert '"complained"' in document and '"bounced"' in document
