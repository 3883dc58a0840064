"""Readiness: it is what a POST would be answered, and docs/http-api.md says of each field what the service does."""

import json
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, make_url, text

import app as web
from mailroom.cli.doctor import Doctor
from mailroom.config.environment import load
from mailroom.store.db.database import Database
from mailroom.store.maintenance import health
from mailroom.worker import runtime
from tests.services import wait_until
from tests.services.processes import PROJECT
from tests.services.schema import ready
from tests.unit.api.test_messages import MAIL

PAGE = PROJECT / "docs/http-api.md"


def asked(client: FlaskClient, path: str = "/readyz") -> tuple[int, dict[str, Any]]:
    answer = client.get(path)
    return answer.status_code, json.loads(answer.data)


def is_up(client: FlaskClient) -> bool:
    return "\nmailasync_up 1.0\n" in client.get("/metrics").text


@contextmanager
def served(database: Database) -> Iterator[FlaskClient]:
    """The application on this database, with a broker that nobody listens on."""
    settings = load(
        {"MAILASYNC_ENV_FILE": "", "MAILASYNC_BROKER_URL": "pyamqp://guest@127.0.0.1:9//"}
    )
    app = web.create_app(settings, database=database)
    try:
        yield app.test_client()
    finally:
        app.extensions["mailasync"].api_keys.close()
        runtime.stop_publisher()


@contextmanager
def full_disk(url: str) -> Iterator[Database]:
    """No process may make a file longer than SQLite's log is, so that nothing is committed."""
    database = ready(url)
    database.write(lambda connection, items: items, None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (Path(f"{database.url.database}-wal").stat().st_size, before[1])
    )
    try:
        yield database
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        database.close()


@contextmanager
def read_only_file(url: str) -> Iterator[Database]:
    other = ready(url)
    other.outbox_id  # noqa: B018  # Its connection keeps the log there, which a reader could not make.
    database = Database(f"sqlite:///file:{make_url(url).database}?mode=ro&uri=true")
    yield database
    database.close()
    other.close()


@contextmanager
def read_only_server(url: str) -> Iterator[Database]:
    """As a server that became a stand-by, or whose operator protects it."""
    database = ready(url)
    with database.engine.begin() as connection:
        connection.execute(
            text(f"ALTER DATABASE {database.url.database} SET default_transaction_read_only = on")
        )
    database.engine.dispose()
    yield database
    database.close()


FAULTS = [
    (full_disk, "sqlite_url", r"disk I/O error|database or disk is full"),
    (read_only_file, "sqlite_url", "readonly database"),
    (read_only_server, "postgres_url", "read-only transaction"),
]


@pytest.mark.parametrize(("fault", "url", "words"), FAULTS)
def test_a_database_that_takes_no_writes_is_not_ready(
    fault: Callable[[str], AbstractContextManager[Database]],
    url: str,
    words: str,
    request: pytest.FixtureRequest,
) -> None:
    with fault(request.getfixturevalue(url)) as database, served(database) as client:
        assert client.post("/v1/messages", json=MAIL).status_code == 503
        code, told = asked(client)
        assert (code, told["status"]) == (503, "unready")
        assert re.search(words, told["checks"]["database"])
        assert not is_up(client)
        # What can be read is told all the same.
        assert "\nmailasync_workers 0.0\n" in client.get("/metrics").text
        settings = load(
            {
                "MAILASYNC_ENV_FILE": "",
                "MAILASYNC_DATABASE_URL": database.url.render_as_string(hide_password=False),
            }
        )
        [found] = [
            one for one in Doctor(settings, database, [], None).examine() if one.what == "database"
        ]
        assert not found.ok and re.search(words, found.words)


@pytest.mark.slow
def test_readiness_leaves_nothing_behind_and_comes_back(app: Flask, client: FlaskClient) -> None:
    database = app.extensions["mailasync"].outbox.database
    assert (asked(client)[0], is_up(client)) == (200, True)
    assert client.get("/v1/messages").json == {"data": [], "has_more": False, "next": None}
    for old, new, code in (("contents", "gone", 503), ("gone", "contents", 200)):
        with database.engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
        wait_until(lambda code=code: asked(client)[0] == code, 60, what=f"it is {code}")  # type: ignore[misc]
        assert is_up(client) is (code == 200)


def test_who_asks_often_gets_no_write_for_each_time(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "TRIED_SECONDS", 1e9)
    statements: list[str] = []
    engine = app.extensions["mailasync"].outbox.database.engine
    event.listen(
        engine,
        "before_cursor_execute",
        lambda link, cursor, statement, *_: statements.append(statement),
    )
    for _ in range(30):
        asked(client)
    assert sum(statement.startswith("INSERT INTO contents") for statement in statements) == 1


def fields() -> dict[str, str]:
    """When the docs say that a field of the answer makes it 503, by field."""
    rows = re.findall(
        r"^\| `(status|checks\.\w+)` \|.*\| ([^|]*) \|$", PAGE.read_text(), re.MULTILINE
    )
    return dict(rows)


def test_the_docs_name_each_field(client: FlaskClient) -> None:
    told = asked(client)[1]
    assert [*fields()] == ["status", *(f"checks.{name}" for name in told["checks"])]


def test_what_the_docs_say_makes_no_503_makes_none(client: FlaskClient) -> None:
    # Given neither broker nor worker
    wait_until(
        lambda: asked(client)[1]["checks"]["broker"].startswith("unreachable"),
        60,
        what="the broker was looked at",
    )
    code, told = asked(client)
    assert (code, told["status"], told["checks"]["database"], told["checks"]["worker"]) == (
        200,
        "ok",
        "ok",
        "none is running",
    )
    assert (fields()["checks.database"], fields()["checks.broker"]) == (
        "unless it is `ok`",
        "never",
    )
    assert fields()["checks.worker"].startswith(
        "only where workers consume the queue and this outbox has seen none of them"
    )
