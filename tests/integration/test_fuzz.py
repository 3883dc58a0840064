"""The fuzz in its short form (`make fuzz` is the long one), and once by itself each hostile thing that once went through."""

import email
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from email import policy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mailroom.model.attempt import Claim
from mailroom.model.message import Address, Message
from mailroom.smtp.mime import compose
from mailroom.smtp.plaintext import plain_text
from mailroom.submission.headers import HEADERS_ALLOWED
from mailroom.submission.message import message_from
from tests.measure import hold_to
from tests.services.application import made
from tests.services.smtpd import Delivery
from tests.tools.fuzz import NO_BROKER_PORT, fuzzing, watch
from tests.tools.hostile import Request
from tests.tools.oracle import Asked, differences

ALICE, BOB = Address("alice@example.org"), "bob@example.org"


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Flask]:
    yield from made(sqlite_url, PUBLIC_URL="https://mail.example.org")


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def composed(message: Message) -> bytes:
    claim = Claim(
        id="1",
        attempt=1,
        message_id="1@example.org",
        created_at_ms=1_790_000_000_123,
        message=message,
        pending=(0,),
    )
    return compose(claim, sender=ALICE)


def errors(answer: Any) -> dict[str, str]:
    return {error["pointer"]: error["detail"] for error in json.loads(answer.data)["errors"]}


@pytest.mark.timeout(300)
def test_hostile_requests_do_no_harm_and_each_mail_is_what_was_asked_for(tmp_path: Path) -> None:
    with fuzzing(tmp_path, seed=2026) as fuzz:
        fuzz.run(600)
    assert fuzz.problems == []
    assert fuzz.mails > 80, "it would else prove little"
    assert {status[0] for status in fuzz.statuses} == {"2", "4"}


class TestTheWatch:
    """What finds nothing has to be able to find something."""

    @staticmethod
    def seen(act: Callable[[], object]) -> list[str]:
        watch().seen.clear()
        watch().on = True
        try:
            act()
        finally:
            watch().on = False
        return [seen.split()[0] for seen in watch().seen]

    def test_sees_a_file_that_is_opened(self, tmp_path: Path) -> None:
        assert self.seen((tmp_path / "secret").touch) == ["open"]

    def test_sees_a_connection(self) -> None:
        watch().ports = set()

        def call() -> None:
            with pytest.raises(OSError, match="refused"):
                socket.create_connection(("127.0.0.1", NO_BROKER_PORT))

        assert self.seen(call) == ["socket.getaddrinfo", "socket.connect"]

    def test_sees_a_process(self) -> None:
        assert "subprocess.Popen" in self.seen(
            lambda: subprocess.run([sys.executable, "-c", ""], check=True)
        )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"To: bob", b"Bcc: eve@example.net\r\nTo: bob", "the header fields are"),
        (b"To: bob", b"To: eve", "To is"),
        (b"X-A: 1", b"X-A: 2", "X-A is"),
        (b"Subject: Hi", b"Subject: Ha", "the subject is"),
        (b"\r\nhello", b"\r\nhallo", "the plain text is"),
        (b"aGVsbG8=", b"aGFsbG8=", "the files are"),
        (b'filename="a.txt"', b'filename="../a.txt"', "a file is named"),
        (b"--=_", b"--=x", "the parser found"),
        (b"hello", b"#c0ffee", "canary"),
    ],
)
def test_the_oracle_sees_what_is_not_as_it_was_asked_for(old: bytes, new: bytes, told: str) -> None:
    asked = {
        "to": BOB,
        "subject": "Hi",
        "text": "hello",
        "headers": {"X-A": "1"},
        "attachments": [{"filename": "a.txt", "content": "aGVsbG8="}],
    }
    data, wanted = composed(message_from(asked)), Asked(Request(1, "/", b""), asked)
    arrived = Delivery("<1@example.org>", ALICE.address, (BOB,), data, 1, None, 0.0)
    assert [*differences(arrived, wanted, "#c0ffee")] == []
    assert old in data
    arrived.data = data.replace(old, new)
    assert any(told in difference for difference in differences(arrived, wanted, "#c0ffee"))
    arrived.data, arrived.rcpt_tos = data, (BOB, "eve@example.net")
    assert [difference[:15] for difference in differences(arrived, wanted, "#c0ffee")] == [
        "the envelope is"
    ]


def test_a_body_that_ended_too_soon_is_no_mail(client: FlaskClient) -> None:
    answer = client.post(
        "/v1/messages",
        data=b'{"to": "bob@example.org"}',
        content_type="application/json",
        environ_overrides={"CONTENT_LENGTH": "1000", "wsgi.input_terminated": True},
    )
    assert answer.status_code == 400 and "expected 1000 bytes" in answer.text


@pytest.mark.parametrize(
    "html",
    [
        "<" + "a" * 200_000,
        "</" + "a" * 200_000,
        "<a " + "b" * 200_000,
        "<a/" + " " * 200_000,
        "<!" + "a" * 200_000,
        "<a" * 2 + "b" * 200_000 + "<",
        "<a href=" + "x" * 200_000,
    ],
)
def test_a_tag_that_is_never_closed_does_not_keep_a_worker_for_minutes(html: str) -> None:
    hold_to(400, partial(plain_text, html))


@pytest.mark.parametrize("name", ["List-Id", "References", "Auto-Submitted"])
def test_a_header_with_a_grammar_is_not_empty(client: FlaskClient, name: str) -> None:
    answer = client.post("/v1/messages", json={"to": BOB, "headers": {name: ""}, "dry_run": True})
    assert answer.status_code == 422 and [*errors(answer)] == [f"#/headers/{name}"]


@pytest.mark.parametrize(
    "value", ["=?utf-8?q?=0d=0aBcc:_eve@example.net?=", "<a@example.org> =?utf-8?B?DQpCY2M6IGU=?="]
)
def test_no_word_is_encoded_where_none_may_be(client: FlaskClient, value: str) -> None:
    answer = client.post("/v1/messages", json={"to": BOB, "headers": {"References": value}})
    assert (
        answer.status_code == 422
        and "without encoded words" in errors(answer)["#/headers/References"]
    )
    assert (
        client.post(
            "/v1/messages", json={"to": BOB, "headers": {"List-Help": "<https://example.org/?=?a>"}}
        ).status_code
        == 202
    )


@pytest.mark.parametrize("name", ["List-Unsubscribe", "list-unsubscribe-post"])
def test_a_mail_has_one_link_to_unsubscribe(client: FlaskClient, name: str) -> None:
    answer = client.post(
        "/v1/messages",
        json={"to": BOB, "unsubscribe": True, "headers": {name: "<https://evil.example>"}},
    )
    assert (
        answer.status_code == 422
        and f"expected unsubscribe or the header {name}, got both" in answer.text
    )


@pytest.mark.parametrize(
    "value",
    [
        "b",
        "x" * 40 + " " + "y" * 40,
        "z" * 69,
        "ü",
        "日本" * 30,
        "a  b",
        "=?utf-8?q?no?=",
        "word " * 100 + "end",
    ],
)
def test_a_value_does_not_begin_on_the_line_after_its_name(value: str) -> None:
    names = ["X-" + "a" * length for length in range(1, 49)]
    assert all(HEADERS_ALLOWED.fullmatch(name) for name in names) and not HEADERS_ALLOWED.fullmatch(
        "X-" + "a" * 49
    )
    mail = email.message_from_bytes(
        composed(
            Message(to=(ALICE,), subject=value, headers=tuple((name, value) for name in names))
        ),
        policy=policy.default,
    )
    assert {str(mail[name]) for name in ("Subject", *names)} == {value}


class TestSmallRequestsThatAskForMuch:
    def test_a_long_name_is_not_told_at_length(self, client: FlaskClient) -> None:
        def post() -> None:
            body = {
                "to": BOB,
                "ü" * 500_000: 1,
                "headers": {"ü" * 500_000 + str(n): "" for n in range(2)},
            }
            answer = client.post("/v1/messages", json=body)
            assert answer.status_code == 422 and len(answer.data) < 10_000

        hold_to(400, post)

    def test_thirty_long_names_of_headers_are_compared_once(self) -> None:
        def read() -> None:
            with pytest.raises(Exception, match="expected X-"):
                message_from(
                    {"to": BOB, "headers": {f"{n}" + "Ü" * 200_000: "" for n in range(30)}}
                )

        hold_to(400, read)

    def test_a_batch_that_is_wrong_throughout_is_not_read_to_its_end(
        self, client: FlaskClient
    ) -> None:
        def post() -> None:
            answer = client.post(
                "/v1/messages/batch",
                json=[{f"f{n}_{m}": 1 for m in range(20)} for n in range(1000)],
            )
            common = client.post(
                "/v1/messages/batch",
                json={"common": {"subject": "x" * 1_000_000}, "messages": [{"to": BOB}] * 1000},
            )
            assert (len(errors(answer)), [*errors(common)]) == (20, ["#/common/subject"])

        hold_to(800, post)

    def test_a_batch_of_slow_letters_ends(
        self, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("mailroom.submission.reader.BATCH_MAX_SECONDS", 0.2)
        bomb = "{% for a in l %}{% for b in l %}{% if a < b %}{% endif %}{% endfor %}{% endfor %}"
        client.put("/v1/templates/bomb", json={"subject": "x", "text": bomb})
        answer = client.post(
            "/v1/messages/batch",
            json={
                "common": {"template": {"name": "bomb", "variables": {"l": [*range(150)]}}},
                "messages": [{"to": BOB, "variables": {}}] * 1000,
            },
        )
        assert answer.status_code == 422 and "within 0.2 s" in errors(answer)["#/messages"]
        assert client.get("/v1/messages").json["data"] == []  # type: ignore[index]

    def test_a_boundary_of_one_letter_makes_no_more_of_the_body(self, client: FlaskClient) -> None:
        body = b'--a\r\nContent-Disposition: form-data; name="message"\r\n\r\n{"to": "bob@example.org"}\r\n--a--\r\n'
        answers = [
            client.post(
                "/v1/messages",
                data=body.replace(b"--a", b"--" + boundary),
                headers={"Idempotency-Key": "k"},
                content_type=f"multipart/form-data; boundary={boundary.decode()}",
            )
            for boundary in (b"a", b"zz")
        ]
        assert [answer.status_code for answer in answers] == [
            202,
            409,
        ]  # "a" stands in the mail as well, so the bodies differ.


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"to": BOB, "attachments": [{"filename": "a", "content": ""}] * 21}, "#/attachments"),
        ({"to": BOB, "template": {"name": "nobody"}}, "#/template/name"),
        ({"to": BOB, "headers": {"X-A": "1", "x-a": "2"}}, "#/headers/X-A"),
        ({"to": BOB, "job": {"name": "simulate", "args": {"seconds": "\ud800"}}}, "#/job/args"),
    ],
)
def test_each_refusal_says_what_was_expected_and_what_came(
    client: FlaskClient, body: dict[str, Any], pointer: str
) -> None:
    answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 422
    assert errors(answer)[pointer].startswith("expected ") and ", got " in errors(answer)[pointer]
