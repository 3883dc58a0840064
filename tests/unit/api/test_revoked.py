"""Who is no longer served: a revoked key, and a browser that signed out, also while their requests wait."""

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import EnvironBuilder, TestResponse

from mailroom.api.auth import guard, sessions
from mailroom.api.http import prefer_wait
from mailroom.api.services import Services
from mailroom.inbox import Chaos, InboxStorage
from mailroom.server import serve
from mailroom.store.keys.api_keys import ApiKeys, Scope
from mailroom.store.keys.sign_outs import SignOuts
from tests.services import wait_until
from tests.services.application import made

HTML = {"Accept": "text/html"}
MAIL = {"to": "bob@example.org", "subject": "Hello", "text": "Hi", "delay": 3600}
FIELDS = {"/v1/messages": "message", "/v1/jobs": "job"}
BODIES = {"/v1/messages": MAIL, "/v1/jobs": {"name": "simulate", "args": {"seconds": 1}}}
INBOX_WAIT = "/inbox/api/messages?wait=86400"
ENDED_SECONDS = 60
COOKIE = "mailasync_session"


@pytest.fixture
def storage() -> Iterator[InboxStorage]:
    made = InboxStorage()
    yield made
    made.stop()


@pytest.fixture
def app(sqlite_url: str, storage: InboxStorage) -> Iterator[Flask]:
    for served in made(sqlite_url):
        served.register_blueprint(serve.inbox_blueprint(storage, Chaos()))
        yield served


@pytest.fixture(autouse=True)
def nobody_waits_for_less_than_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a wait that ends has been ended."""
    monkeypatch.setattr(prefer_wait, "WAIT_MAX_SECONDS", 86400)
    monkeypatch.setattr("mailroom.inbox.api.WAIT_MAX_SECONDS", 86400)


def services(app: Flask) -> Services:
    found: Services = app.extensions["mailasync"]
    return found


def stranger(app: Flask) -> FlaskClient:
    """A client that keeps no cookie of its own."""
    return app.test_client(use_cookies=False)


class Asking:
    """A request in a thread of its own, which waits for a day."""

    def __init__(
        self, app: Flask, method: str, path: str, headers: dict[str, str], body: Any = None
    ) -> None:
        self.answer: Any = None
        asked = {"method": method, "headers": headers | {"Prefer": "wait=86400"}, "json": body}
        self._thread = threading.Thread(
            target=self._ask, args=(stranger(app), path, asked), daemon=True
        )
        self._thread.start()

    def _ask(self, client: FlaskClient, path: str, asked: dict[str, Any]) -> None:
        self.answer = client.open(path, **asked)

    def ended(self) -> Any:
        self._thread.join(ENDED_SECONDS)
        assert self.answer is not None, "it still waits"
        return self.answer


def key(app: Flask) -> tuple[dict[str, str], str]:
    """A header with a new key, and how it is known."""
    secret, made = services(app).api_keys.create("test", scopes=[Scope.ADMIN])
    return {"Authorization": f"Bearer {secret}"}, made.id


def revoke_elsewhere(app: Flask, id: str) -> None:
    """As another process does."""
    ApiKeys(services(app).outbox.database).revoke(id)


def sign_in(client: FlaskClient, secret: str) -> str:
    """The cookie of a browser that has signed in."""
    data = {"token": token_in(client.get("/sign-in", headers=HTML)), "key": secret}
    assert client.post("/sign-in", data=data, headers=HTML).status_code == 303
    found = client.get_cookie(COOKIE)
    assert found
    return found.value


def token_in(answer: TestResponse) -> str:
    found = re.search(r'name="token" value="([^"]+)"', answer.text)
    assert found, answer.text
    return found[1]


def sign_out(client: FlaskClient) -> None:
    token = token_in(client.get("/dashboard", headers=HTML))
    answer = client.post("/sign-out", data={"token": token}, headers=HTML)
    assert answer.headers["Location"] == "/sign-in?done=signed-out"


@contextmanager
def waiting_request(one: Asking, is_waiting: Callable[[], bool]) -> Iterator[Asking]:
    wait_until(is_waiting, ENDED_SECONDS, what="it waits")
    assert one.answer is None
    yield one


def somebody_waits() -> bool:
    return prefer_wait._waiters._value < prefer_wait.WAITERS_MAX


# --- keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/jobs"])
def test_a_wait_ends_with_its_key_and_tells_nothing(
    app: Flask, client: FlaskClient, path: str
) -> None:
    (header, id), _ = key(app), key(app)
    what: Any = client.post(path, json=BODIES[path], headers=header).json
    with waiting_request(Asking(app, "GET", f"{path}/{what['id']}", header), somebody_waits) as one:
        revoke_elsewhere(app, id)
    assert (one.ended().status_code, json.loads(one.answer.data)["code"]) == (
        401,
        "invalid_api_key",
    )


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/jobs"])
def test_what_was_accepted_before_its_key_ended_is_told(
    app: Flask, client: FlaskClient, path: str
) -> None:
    (header, id), (other, _) = key(app), key(app)
    with waiting_request(Asking(app, "POST", path, header, BODIES[path]), somebody_waits) as one:
        accepted: Any = client.get(path, headers=other).json
        revoke_elsewhere(app, id)
        answer = one.ended()
    assert (answer.status_code, "Preference-Applied" in answer.headers) == (202, False)
    id = accepted["data"][0]["id"]
    assert answer.json["id"] == id and answer.headers["Location"] == f"{path}/{id}"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/jobs"])
def test_what_was_accepted_before_the_database_went_away_is_told(app: Flask, path: str) -> None:
    header, _ = key(app)
    asking, engine = (
        Asking(app, "POST", path, header, BODIES[path]),
        services(app).outbox.database.engine,
    )
    with waiting_request(asking, somebody_waits) as one, engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {path.rpartition('/')[2]} RENAME TO gone"))
    assert (one.ended().status_code, "Preference-Applied" in one.answer.headers) == (202, False)


def test_a_wait_in_the_inbox_ends_with_its_key(app: Flask, storage: InboxStorage) -> None:
    (header, id), _ = key(app), key(app)
    with waiting_request(
        Asking(app, "GET", INBOX_WAIT, header), lambda: storage.waiters > 0
    ) as one:
        revoke_elsewhere(app, id)
    assert one.ended().status_code == 401


def test_a_mail_that_comes_after_the_key_ended_is_not_told(
    app: Flask, storage: InboxStorage
) -> None:
    (header, id), _ = key(app), key(app)
    with waiting_request(
        Asking(app, "GET", INBOX_WAIT, header), lambda: storage.waiters > 0
    ) as one:
        services(app).api_keys.revoke(id)  # In this process, which knows it at once.
        storage.add("alice@example.org", ("bob@example.org",), b"Subject: Secret\r\n\r\nHi\r\n")
    assert one.ended().status_code == 401 and b"Secret" not in one.answer.data


@pytest.mark.parametrize("path", ["/live", "/inbox/live"])
def test_a_stream_ends_with_its_key_and_tells_nothing_more(
    app: Flask, storage: InboxStorage, path: str
) -> None:
    (header, id), (other, _) = key(app), key(app)
    client = app.test_client()
    with client.get(path, headers=header, buffered=False) as answer:
        parts = answer.iter_encoded()
        wait_until(lambda: next(parts).startswith(b"data: "), ENDED_SECONDS, what="it has begun")
        services(app).api_keys.revoke(id)
        app.test_client().post("/v1/messages", json=MAIL, headers=other)
        storage.add("alice@example.org", ("bob@example.org",), b"Subject: Hello\r\n\r\nHi\r\n")
        assert list(parts) == []
    assert client.get(path, headers=header).status_code == 401


def test_who_was_served_without_a_key_is_not_when_there_is_one(
    app: Flask, client: FlaskClient
) -> None:
    sent: Any = client.post("/v1/messages", json=MAIL).json
    with waiting_request(
        Asking(app, "GET", f"/v1/messages/{sent['id']}", {}), somebody_waits
    ) as one:
        key(app)
    assert (one.ended().status_code, json.loads(one.answer.data)["code"]) == (
        401,
        "missing_api_key",
    )


class SlowBody(io.BytesIO):
    """A body during whose coming something happens."""

    def __init__(self, data: bytes, happens: Callable[[], object]) -> None:
        super().__init__(data)
        self._happens = happens

    def readinto(self, buffer: Any) -> int:
        self._happens()
        return super().readinto(buffer)


def form_of(**fields: str) -> tuple[bytes, str]:
    """A form with these fields and a file, and its media type."""
    data = {**fields, "attachments": (io.BytesIO(b"x"), "a.txt")}
    made = EnvironBuilder(method="POST", data=data).get_environ()
    return made["wsgi.input"].read(), made["CONTENT_TYPE"]


def send_slowly(
    client: FlaskClient,
    path: str,
    data: bytes,
    content_type: str,
    happens: Callable[[], object],
    **headers: str,
) -> TestResponse:
    body: Any = SlowBody(data, happens)
    return client.post(path, input_stream=body, content_type=content_type, headers=headers)


@pytest.mark.parametrize("is_form", [False, True])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/jobs"])
def test_what_came_when_its_key_had_ended_is_not_accepted(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str, is_form: bool
) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.0)
    (header, id), (other, _) = key(app), key(app)
    said = json.dumps(BODIES[path])
    data, content_type = (
        form_of(**{FIELDS[path]: said}) if is_form else (said.encode(), "application/json")
    )
    keys = services(app).api_keys
    answer = send_slowly(client, path, data, content_type, lambda: keys.revoke(id), **header)
    assert answer.status_code == 401
    listed: Any = client.get(path, headers=other).json
    assert listed["data"] == []


# --- browsers -----------------------------------------------------------------------------------------


def test_a_cookie_is_worth_nothing_after_signing_out(database_url: str) -> None:
    for here in made(database_url):
        secret, _ = services(here).api_keys.create("test", scopes=[Scope.ADMIN])
        for there in made(database_url):  # another web process
            browser, other = here.test_client(), here.test_client()
            cookies = [sign_in(browser, secret), sign_in(other, secret)]
            token = token_in(browser.get("/compose", headers=HTML))

            def asked(app: Flask, cookie: str) -> int:
                return (
                    stranger(app)
                    .get("/v1/messages", headers={"Cookie": f"{COOKIE}={cookie}"})
                    .status_code
                )

            assert [asked(app, cookie) for app in (here, there) for cookie in cookies] == [200] * 4
            sign_out(browser)
            assert [asked(app, cookie) for app in (here, there) for cookie in cookies] == [
                401,
                200,
            ] * 2
            kept = {"Cookie": f"{COOKIE}={cookies[0]}", **HTML}
            assert (
                stranger(there).post("/compose", data={"token": token}, headers=kept).status_code
                == 401
            )
            # It asks for the key.
            assert stranger(there).get("/sign-in", headers=kept).status_code == 200


def test_a_wait_and_a_stream_end_when_their_browser_signs_out(
    app: Flask, storage: InboxStorage
) -> None:
    secret, _ = services(app).api_keys.create("test", scopes=[Scope.ADMIN])
    browser = app.test_client()
    cookie = {"Cookie": f"{COOKIE}={sign_in(browser, secret)}"}
    with stranger(app).get("/live", headers=cookie, buffered=False) as answer:
        parts = answer.iter_encoded()
        wait_until(lambda: next(parts).startswith(b"data: "), ENDED_SECONDS, what="it has begun")
        with waiting_request(
            Asking(app, "GET", INBOX_WAIT, cookie), lambda: storage.waiters > 0
        ) as one:
            sign_out(browser)
        assert list(parts) == []
    assert one.ended().status_code == 401


def test_a_form_that_came_when_its_browser_had_signed_out_does_nothing(
    app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.0)
    secret, _ = services(app).api_keys.create("test", scopes=[Scope.ADMIN])
    cookie = sign_in(client, secret)
    token = token_in(client.get("/compose", headers=HTML))
    with app.test_request_context():
        found = sessions.sessions().read(cookie)
    assert found
    data, content_type = form_of(token=token, to="bob@example.org", contents="Hi")
    ended = SignOuts(services(app).outbox.database)
    answer = send_slowly(
        client, "/compose", data, content_type, lambda: ended.add(found.nonce), **HTML
    )
    assert answer.status_code == 401
    sign_in(client, secret)
    assert client.get("/v1/messages").json == {"data": [], "has_more": False, "next": None}


def test_signing_out_twice_or_without_having_signed_in_is_no_mistake(
    app: Flask, client: FlaskClient
) -> None:
    token = token_in(client.get("/compose", headers=HTML))
    answer = client.post("/sign-out", data={"token": token}, headers=HTML)
    assert answer.headers["Location"] == "/dashboard?done=signed-out"
    secret, _ = services(app).api_keys.create("test", scopes=[Scope.ADMIN])
    cookie = sign_in(client, secret)
    sign_out(client)
    client.set_cookie(COOKIE, cookie)
    assert client.post("/sign-out", data={"token": ""}, headers=HTML).status_code == 401
    assert sign_in(client, secret) != cookie  # And the browser may sign in again.


def test_nobody_is_signed_out_while_the_database_cannot_keep_it(
    app: Flask, client: FlaskClient
) -> None:
    secret, _ = services(app).api_keys.create("test", scopes=[Scope.ADMIN])
    sign_in(client, secret)
    token = token_in(client.get("/compose", headers=HTML))
    with services(app).outbox.database.engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER full BEFORE INSERT ON signed_out BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
        )
    answer = client.post("/sign-out", data={"token": token}, headers=HTML)
    assert answer.status_code >= 500 and client.get_cookie(COOKIE)
