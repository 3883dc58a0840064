"""Idempotency-Key: the same request again makes nothing new, whatever became of the first one's answer."""

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, event, select, text

from mailroom.api.http import idempotency as idempotent
from mailroom.api.http.idempotency import _request_hash
from mailroom.store.db.database import Database
from mailroom.store.db.schema import idempotency, jobs, messages
from mailroom.store.keys.api_keys import ApiKeys, Scope
from mailroom.store.messages.idempotency import Kept, Key, Keys, StoredAnswer, take
from mailroom.store.messages.outbox import Outbox
from tests.services import free_port, wait_until
from tests.services.application import made
from tests.services.lossy_link import HELD, LOST, UNANSWERED, LossyLink
from tests.services.processes import Service, service
from tests.services.schema import on_postgresql, on_sqlite
from tests.services.smtpd import ScriptedSMTP
from tests.unit.api.test_messages import MAIL

JOB = {"name": "simulate", "args": {"seconds": 1}}
PROBLEM = "application/problem+json"
KEYED = b"INSERT INTO idempotency"


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    yield from made(database_url)


@pytest.fixture
def database(app: Flask) -> Database:
    found: Database = app.extensions["mailasync"].outbox.database
    return found


def post(
    client: FlaskClient,
    path: str = "/v1/messages",
    body: Any = MAIL,
    key: str = "key-1",
    **headers: str,
) -> Any:
    return client.post(path, json=body, headers={"Idempotency-Key": key, **headers})


def count(database: Database, table: Any = messages) -> int:
    return len(database.read(lambda connection: connection.execute(select(table)).all()))


def is_count(database: Database, table: Any, number: int) -> bool:
    return count(database, table) == number


def key(name: str, request_hash: str = "hash") -> Key:
    return Key(owner="", key=name, request_hash=request_hash)


def kept(name: str) -> Kept:
    return Kept(
        key=key(name), answer=StoredAnswer(status=202, location="/v1/messages/1", body={"id": "1"})
    )


# --- again ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/v1/messages"])
def test_the_same_request_gets_the_first_answer_and_makes_nothing(
    client: FlaskClient, database: Database, path: str
) -> None:
    first, again = post(client, path), post(client, path)
    assert again.status_code == first.status_code
    assert again.headers["Location"] == first.headers["Location"]
    assert again.data == first.data
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert count(database) == 1


@pytest.mark.parametrize("body", [JOB, JOB | {"notify": MAIL}])
def test_a_job_is_started_once_and_told_as_it_stands(
    client: FlaskClient, database: Database, body: Any
) -> None:
    first, again = post(client, "/v1/jobs", body), post(client, "/v1/jobs", body)
    assert (again.status_code, again.headers["Location"]) == (202, first.headers["Location"])
    # That the broker is away may be known by now.
    assert again.json | {"why": ""} == first.json | {"why": ""}
    assert again.headers["Idempotency-Replayed"] == "true"
    assert count(database, jobs) == 1
    assert client.post(f"{first.headers['Location']}/cancel").status_code == 200
    assert post(client, "/v1/jobs", body).json["status"] == "canceled"


def test_a_form_is_the_same_with_another_boundary(client: FlaskClient, database: Database) -> None:
    def form(boundary: str) -> Any:
        body = f'--{boundary}\r\nContent-Disposition: form-data; name="job"\r\n\r\n{json.dumps(JOB)}\r\n--{boundary}--\r\n'
        return client.post(
            "/v1/jobs",
            data=body,
            headers={
                "Content-Type": f"multipart/form-data; boundary={boundary}",
                "Idempotency-Key": "form",
            },
        )

    assert [form("aaaa1").status_code, form("bbbbbb2").headers.get("Idempotency-Replayed")] == [
        202,
        "true",
    ]
    assert count(database, jobs) == 1


def test_another_body_or_path_with_the_same_key_is_409(
    client: FlaskClient, database: Database
) -> None:
    post(client)
    for answer in (
        post(client, body=MAIL | {"subject": "other"}),
        post(client, "/"),
        post(client, body={}),
    ):
        told = json.loads(answer.data)
        assert (answer.status_code, answer.content_type, told["code"]) == (
            409,
            PROBLEM,
            "invalid_idempotent_request",
        )
        assert "a new request needs a new key" in told["detail"]
    assert count(database) == 1


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("key", '"key"'),
        (r'"a \"b\" \\"', r'"a \"b\" \\"'),
        ("a b", '"a b"'),
        (256 * "~", 256 * "~"),
    ],
)
def test_a_key_may_be_bare_or_quoted(
    client: FlaskClient, database: Database, first: str, again: str
) -> None:
    assert post(client, key=first).status_code == 202
    assert post(client, key=again).headers["Idempotency-Replayed"] == "true"
    assert count(database) == 1


@on_sqlite
@pytest.mark.parametrize(
    "wrong", ["", '""', '"', '"a', '"a"b', '"a"; x=1', "ü", '"ü"', "~" * 257, "a\tb"]
)
def test_a_key_of_another_form_is_400_and_says_what_was_expected(
    client: FlaskClient, database: Database, wrong: str
) -> None:
    answer = post(client, key=wrong)
    told = json.loads(answer.data)
    assert (answer.status_code, answer.content_type, told["code"]) == (
        400,
        PROBLEM,
        "invalid_idempotency_key",
    )
    assert told["detail"].startswith(
        "expected 1 to 256 printable ASCII characters, bare or as a string in double quotes, got "
    )
    assert count(database) == 0


def test_a_refused_request_burns_no_key(
    client: FlaskClient, app: Flask, database: Database
) -> None:
    assert post(client, body={"to": "nobody"}).status_code == 422
    assert (
        client.post(
            "/v1/messages",
            data=b"{",
            content_type="application/json",
            headers={"Idempotency-Key": "key-1"},
        ).status_code
        == 400
    )
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE contents RENAME TO gone"))
    assert post(client).status_code in (500, 503)
    with database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO contents"))
    assert count(database, idempotency) == 0
    assert (post(client).status_code, count(database)) == (202, 1)


def test_a_repeated_request_is_answered_also_when_it_could_not_be_accepted_now(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(hours=1)

    body = MAIL | {
        "expires_at": (datetime.now(UTC) + timedelta(minutes=30)).isoformat(timespec="seconds")
    }
    first = post(client, body=body)
    assert first.status_code == 202
    monkeypatch.setattr("mailroom.submission.times.datetime", Later)
    assert client.post("/v1/messages", json=body).status_code == 422
    assert post(client, body=body).data == first.data


def test_each_api_key_has_keys_of_its_own(client: FlaskClient, database: Database) -> None:
    (one, first), (two, second) = (
        ApiKeys(database).create(name, scopes=[Scope.SEND]) for name in ("one", "two")
    )
    basic = base64.b64encode(f"any:{one}".encode()).decode()
    answers = [
        post(client, **{name: value})
        for name, value in (
            ("Authorization", f"Bearer {one}"),
            ("X-API-Key", two),
            ("X-API-Key", one),
            ("Authorization", f"Basic {basic}"),
        )
    ]
    assert [answer.headers.get("Idempotency-Replayed") for answer in answers] == [
        None,
        None,
        "true",
        "true",
    ]
    owners = database.read(lambda connection: connection.scalars(select(idempotency.c.owner)).all())
    assert sorted(owners) == sorted([first.id, second.id])


# --- at the same time ----------------------------------------------------------------------------------------------


def test_many_at_once_make_one_message_and_all_get_its_answer(
    app: Flask, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may not answer the first of them in 2 s.
    monkeypatch.setattr(idempotent, "WAIT_SECONDS", 60.0)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: post(app.test_client()), range(16)))
    assert {(answer.status_code, answer.data) for answer in answers} == {(202, answers[0].data)}
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
    assert (count(database), count(database, idempotency)) == (1, 1)


def test_keyed_and_keyless_messages_share_one_commit(app: Flask, database: Database) -> None:
    commits: list[Connection] = []
    event.listen(database.engine, "commit", commits.append)
    begun, go_on = threading.Event(), threading.Event()

    def slow(connection: object, items: list[None]) -> list[None]:
        begun.set()
        assert go_on.wait(60)
        return items

    services = app.extensions["mailasync"]

    def one(number: int) -> bool:  # Not over HTTP, whose publisher commits, too.
        return bool(
            services.outbox.accept(
                services.reader.mail(MAIL), kept(f"key-{number}") if number % 2 else None
            )
        )

    with ThreadPoolExecutor(21) as threads:
        threads.submit(database.write, slow, None)
        assert begun.wait(60)
        answers = [threads.submit(one, number) for number in range(20)]
        wait_until(lambda: len(database._waiting) == 20, what="all wait")
        commits.clear()
        go_on.set()
        assert {answer.result(60) for answer in answers} == {True}
    assert len(commits) == 2
    assert (count(database), count(database, idempotency)) == (20, 10)


def test_a_batch_with_one_key_twice_accepts_it_once_and_holds_up_no_other(
    database: Database,
) -> None:
    batches: list[Sequence[Kept | None]] = [
        [kept("one"), None, kept("one"), kept("two"), None],
        [kept("two"), kept("three")],
    ]
    assert [database.write(take_all, batch) for batch in batches] == [
        [True, True, False, True, True],
        [False, True],
    ]


def take_all(connection: Connection, batches: list[Sequence[Kept | None]]) -> list[list[bool]]:
    return [take(connection, batch) for batch in batches]


def test_a_thread_waits_for_the_one_that_has_its_key(database: Database) -> None:
    keys = Keys(database)

    def take_one() -> bool:
        with keys.in_hand(key("one"), until=threading.TIMEOUT_MAX) as ours:
            return ours

    with ThreadPoolExecutor(1) as threads:
        with keys.in_hand(key("one"), until=0) as first:
            assert first
            with (
                keys.in_hand(key("one"), until=0) as second,
                keys.in_hand(key("two"), until=0) as other,
            ):
                assert not second and other
            third = threads.submit(take_one)
            assert not third.done()
        assert third.result(60)


# --- a commit without an answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fate", "committed"), [(LOST, 0), (UNANSWERED, 1)])
@pytest.mark.parametrize(("path", "table"), [("/v1/messages", messages), ("/v1/jobs", jobs)])
def test_a_post_whose_commit_got_no_answer_finds_out_by_its_key(
    link: LossyLink, postgres_url: str, fate: str, committed: int, path: str, table: Any
) -> None:
    for app in made(postgres_url):
        outbox: Outbox = app.extensions["mailasync"].outbox
        direct = outbox.database
        for other in made(link.url):
            client = other.test_client()
            body = MAIL if table is messages else JOB
            assert post(client, path, body, key="warm").status_code == 202
            # When the link is lost at COMMIT
            link.at_commit(fate, having=KEYED)
            lost = post(client, path, body)
            assert (lost.status_code, json.loads(lost.data)["code"]) == (503, "commit_unconfirmed")
            wait_until(
                partial(is_count, direct, table, 1 + committed), what="the server has settled it"
            )
            # Then the same request again is answered, and there is one message
            again = post(client, path, body)
            assert again.status_code == 202
            assert again.headers.get("Idempotency-Replayed") == ("true" if committed else None)
            assert post(client, path, body).headers["Location"] == again.headers["Location"]
            assert client.get(again.headers["Location"]).status_code == 200
            assert (count(direct, table), count(direct, idempotency)) == (2, 2)


@pytest.mark.parametrize("in_time", [True, False])
def test_a_request_waits_for_another_processs_commit_or_is_told_to_come_again(
    link: LossyLink, postgres_url: str, in_time: bool
) -> None:
    databases = [Database(url) for url in (link.url, postgres_url)]
    slow, fast = (Outbox(database) for database in databases)
    for app in made(postgres_url):
        client = app.test_client()
        acceptance = app.extensions["mailasync"].reader.mail(MAIL)
        with ThreadPoolExecutor(2) as threads:
            # Given a request whose COMMIT is on its way in another process
            link.at_commit(HELD, having=KEYED)
            raw = json.dumps(MAIL).encode()
            other = threads.submit(
                slow.accept,
                acceptance,
                Kept(
                    key=replace(key("key-1"), request_hash=request_hash(app, raw)),
                    answer=StoredAnswer(
                        status=202,
                        location=f"/v1/messages/{acceptance.id}",
                        body={"id": acceptance.id, "status": "queued"},
                    ),
                ),
            )
            assert link.reached.wait(60)
            # When the same one comes here
            here = threads.submit(
                client.post,
                "/v1/messages",
                data=raw,
                content_type="application/json",
                headers={"Idempotency-Key": "key-1"},
            )
            if in_time:
                threading.Timer(0.3, link.go_on.set).start()
            answer = here.result(60)
            link.go_on.set()
            assert other.result(60)
        if in_time:
            assert (answer.status_code, answer.headers["Idempotency-Replayed"]) == (202, "true")
        else:
            assert (answer.status_code, json.loads(answer.data)["code"]) == (
                409,
                "concurrent_idempotent_requests",
            )
            assert answer.headers["Retry-After"] == "1"
        again = client.post(
            "/v1/messages",
            data=raw,
            content_type="application/json",
            headers={"Idempotency-Key": "key-1"},
        )
        assert again.json == {"id": acceptance.id, "status": "queued"}
        assert count(fast.database) == 1
    for database in databases:
        database.close()


def request_hash(app: Flask, body: bytes) -> str:
    with app.test_request_context(
        "/v1/messages", method="POST", data=body, content_type="application/json"
    ):
        return _request_hash()


# --- real processes ------------------------------------------------------------------------------------------------


def test_two_web_processes_make_one_mail_of_one_key(
    tmp_path: Path,
    broker_url: str,
    postgres_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=postgres_url, **to_smtpd) as one:
        # Given two web processes on one database
        one.upgrade()
        two = replace(one, port=free_port(), _programs=one._programs)
        one.web()
        two.web()

        def ask(number: int) -> tuple[Service, tuple[int, Any]]:
            web = (one, two)[number % 2]
            return web, web.request(
                "POST", "/v1/messages", MAIL, headers={"Idempotency-Key": f"key-{number // 8}"}
            )

        # When each of five keys comes to both of them four times at once
        with ThreadPoolExecutor(40) as threads:
            answers = [answer for _, answer in threads.map(ask, range(40))]
        # Then each makes one mail, and all who ask are told of it
        assert {status for status, _ in answers} == {202}
        ids = {answer["id"] for _, answer in answers}
        assert len(ids) == 5
        one.worker()
        for id in ids:
            assert smtpd.copies(one.final(id)["message_id"]) == 1
        assert len(smtpd.payloads) == 5


@on_postgresql
def test_a_web_process_killed_while_it_answers_keeps_message_and_key_together(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    ids: dict[int, str] = {}
    for _ in range(3):
        web = pair.web()
        with ThreadPoolExecutor(20) as threads:

            def ask(number: int) -> None:
                try:
                    status, answer = pair.request(
                        "POST",
                        "/v1/messages",
                        MAIL | {"subject": str(number)},
                        headers={"Idempotency-Key": f"key-{number}"},
                    )
                except (OSError, HTTPException):
                    # Killed before its answer, or in the middle of it.
                    return
                if status == 202:
                    assert ids.setdefault(number, answer["id"]) == answer["id"]

            asked = [threads.submit(ask, number) for number in range(100)]
            wait_until(lambda: len(ids) > 5, what="some are answered")
            web.kill()
            for one in asked:
                one.result(60)
    pair.web()
    pair.worker()
    for number in range(100):
        status, answer = pair.request(
            "POST",
            "/v1/messages",
            MAIL | {"subject": str(number)},
            headers={"Idempotency-Key": f"key-{number}"},
        )
        assert status == 202 and ids.setdefault(number, answer["id"]) == answer["id"]
    for id in ids.values():
        assert smtpd.copies(pair.final(id)["message_id"]) == 1
    assert len(smtpd.payloads) == 100
