"""POST /v1/messages/raw: a whole mail in bytes is accepted like any other, shown, and sent as it came."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update

from mailroom.store.db.schema import messages
from mailroom.store.keys.api_keys import ApiKeys, Scope
from tests.services import free_port
from tests.services.application import made
from tests.services.processes import Service, service
from tests.services.smtpd import ScriptedSMTP
from tests.unit.submission.test_raw_message import COMPLETE

URL = "/v1/messages/raw"
TYPE = {"Content-Type": "message/rfc822"}
#: A signed mail with a picture, a nested mail and a calendar, none of which may change.
MULTIPART = (
    b"DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=x; h=from; bh=abc;\r\n\tb=def\r\n"
    b"From: =?utf-8?q?J=C3=B6rg?= <joerg@example.org>\r\nTo: Bob <bob@example.org>\r\n"
    b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nDate: Mon, 30 Nov 2026 12:00:00 +0000\r\n"
    b"Message-ID: <signed@example.org>\r\nMIME-Version: 1.0\r\n"
    b'Content-Type: multipart/mixed; boundary="b"\r\n\r\nPreamble \r\n--b\r\n'
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    b"Gr\xc3\xbc\xc3\x9fe \t \r\n.\r\n..\r\nFrom here\r\n--b\r\n"
    b"Content-Type: text/calendar; method=REQUEST\r\n\r\nBEGIN:VCALENDAR\r\nEND:VCALENDAR\r\n--b\r\n"
    b"Content-Type: message/rfc822\r\n\r\nBcc: inner@example.org\r\nSubject: inner\r\n\r\nHi.\r\n--b\r\n"
    b'Content-Type: image/png; name="a.png"\r\nContent-Transfer-Encoding: base64\r\n\r\niVBORw0KGgo=\r\n'
    b"--b--\r\nEpilogue\r\n"
)


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    yield from made(database_url)


def post(client: FlaskClient, mail: bytes = COMPLETE, query: str = "", **headers: str) -> Any:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"{URL}{query}", data=mail, headers=TYPE | named)


def get(client: FlaskClient, path: str) -> Any:
    return client.get(path).json


def resent(client: FlaskClient, id: str) -> str:
    answer: Any = client.post(f"/v1/messages/{id}/resend").json
    return str(answer["id"])


def raw(client: FlaskClient, id: str) -> bytes:
    """The mail as it goes out, without the Received line."""
    data: bytes = client.get(f"/v1/messages/{id}/raw").data
    assert data.startswith(b"Received: by localhost with HTTP id ")
    _, _, rest = data.partition(b"\r\n\t")
    _, _, mail = rest.partition(b"\r\n")
    return mail


def test_a_mail_is_accepted_and_kept_byte_for_byte(client: FlaskClient) -> None:
    answer = post(
        client, MULTIPART, "?from=alice@example.org&to=bob@example.org&to=eve@example.org"
    )
    assert (answer.status_code, answer.json["status"]) == (202, "queued")
    assert answer.headers["Location"] == f"/v1/messages/{answer.json['id']}"
    assert raw(client, answer.json["id"]) == MULTIPART


def test_it_is_listed_found_and_shown_like_any_other(client: FlaskClient) -> None:
    id = post(client, b"X-Mailasync-Tag: eu\r\n" + MULTIPART).json["id"]
    message = get(client, f"/v1/messages/{id}")
    assert (message["subject"], message["tags"]) == ("Grüße", ["eu"])
    assert [person["email"] for person in message["recipients"]] == ["bob@example.org"]
    for query in ("q=grüße", "tag=eu", "to=bob@example.org"):
        assert [one["id"] for one in get(client, f"/v1/messages?{query}")["data"]] == [id]
    page = client.get(f"/messages/{id}").get_data(as_text=True)
    assert "Grüße" in page
    assert "a.png" in page
    assert "BEGIN:VCALENDAR" in client.get(f"/messages/{id}?view=source").get_data(as_text=True)
    assert "Grüße" in client.get(f"/messages/{id}/html").get_data(as_text=True)
    assert "Grüße" in client.get(f"/compose?again={id}").get_data(as_text=True)
    assert client.get(f"/messages/{id}?view=code").status_code == 200


def test_without_an_envelope_the_header_says_who_gets_it(client: FlaskClient) -> None:
    id = post(client, b"Bcc: eve@example.org\r\n" + COMPLETE).json["id"]
    people = get(client, f"/v1/messages/{id}")["recipients"]
    assert [(one["email"], one["kind"]) for one in people] == [
        ("bob@example.org", "to"),
        ("eve@example.org", "bcc"),
    ]
    assert raw(client, id) == COMPLETE


def test_lf_of_a_file_becomes_crlf(client: FlaskClient) -> None:
    id = post(client, COMPLETE.replace(b"\r\n", b"\n")).json["id"]
    assert raw(client, id) == COMPLETE


@pytest.mark.parametrize(
    ("mail", "query", "pointer"),
    [
        (COMPLETE + b"a\nb\r\n", "", "#"),
        (COMPLETE, "?to=bob", "?to"),
        (COMPLETE, "?from=bob", "?from"),
        (b"Subject: x\r\n\r\n", "", "?to"),
        (COMPLETE, "?cc=bob@example.org", "?cc"),
        (COMPLETE, "?from=a@example.org&from=b@example.org", "?from"),
        (b"From: root\r\nTo: bob@example.org\r\n\r\n", "", "#/From"),
    ],
)
def test_what_is_wrong_is_told(client: FlaskClient, mail: bytes, query: str, pointer: str) -> None:
    answer = post(client, mail, query)
    assert answer.status_code == 422
    assert [error["pointer"] for error in json.loads(answer.data)["errors"]] == [pointer]


def test_only_mails_are_taken(client: FlaskClient) -> None:
    assert client.post(URL, json={"to": "bob@example.org"}).status_code == 415


def test_an_idempotency_key_counts_with_the_envelope(client: FlaskClient) -> None:
    first = post(client, COMPLETE, "?to=bob@example.org", Idempotency_Key="k")
    again = post(client, COMPLETE, "?to=bob@example.org", Idempotency_Key="k")
    assert again.json == first.json
    assert again.headers["Idempotency-Replayed"] == "true"
    other = post(client, COMPLETE, "?to=eve@example.org", Idempotency_Key="k")
    assert other.status_code == 409


def test_and_so_does_one_in_the_mail(client: FlaskClient) -> None:
    mail = b"X-Mailasync-Idempotency-Key: k\r\n" + COMPLETE
    first, again = post(client, mail), post(client, mail)
    assert again.json == first.json
    assert post(client, mail + b"more\r\n").status_code == 409
    assert raw(client, first.json["id"]) == COMPLETE


def test_a_key_sends_only_from_its_addresses(app: Flask, client: FlaskClient) -> None:
    keys: ApiKeys = app.extensions["mailasync"].api_keys
    secret, key = keys.create("shop", scopes=[Scope.SEND], senders=["alice@example.org"])
    allowed = {"Authorization": f"Bearer {secret}"}
    answer = post(client, COMPLETE, **allowed)
    assert answer.status_code == 202
    row = app.extensions["mailasync"].outbox.details(answer.json["id"]).row
    assert row["key_id"] == key.id
    for query, mail in (
        ("?from=eve@example.org", COMPLETE),
        ("", COMPLETE.replace(b"alice@", b"eve@")),
        ("", COMPLETE.replace(b"From: ", b"From: Eve <eve@example.org>, ")),
        ("?from=alice@example.org&to=bob@example.org", COMPLETE.replace(b"alice@", b"eve@")),
    ):
        refused = post(client, mail, query, **allowed)
        assert (refused.status_code, json.loads(refused.data)["code"]) == (
            403,
            "invalid_from_address",
        )


def test_a_key_that_may_not_send_is_refused(app: Flask, client: FlaskClient) -> None:
    secret, _ = app.extensions["mailasync"].api_keys.create("viewer", scopes=[Scope.READ])
    assert post(client, COMPLETE, Authorization=f"Bearer {secret}").status_code == 403


def test_an_account_sends_only_from_its_addresses(sqlite_url: str) -> None:
    account = {"MAIL_USERNAME": "ops@example.org", "MAIL_PASSWORD": "s3cret"}
    for app in made(sqlite_url, **account, SMTP_HOST="smtp.example.org"):
        client = app.test_client()
        refused = json.loads(post(client).data)
        assert (refused["code"], refused["errors"][0]["pointer"]) == (
            "invalid_from_address",
            "#/From",
        )
        own = COMPLETE.replace(b"alice@example.org", b"ops@example.org")
        assert post(client, own).status_code == 202
        assert post(client, own, "?from=alice@example.org").status_code == 422


def test_sent_once_more_it_is_still_the_same_mail(app: Flask, client: FlaskClient) -> None:
    ids = [
        post(client, mail).json["id"] for mail in (COMPLETE, b"To: bob@example.org\r\n\r\nHi.\r\n")
    ]
    database = app.extensions["mailasync"].outbox.database
    database.write(
        lambda connection, _: [connection.execute(update(messages).values(state="sent"))], None
    )
    copies = [resent(client, id) for id in ids]
    rows = database.read(
        lambda connection: {row.id: row for row in connection.execute(select(messages)).all()}
    )
    assert raw(client, copies[0]) == COMPLETE
    assert rows[copies[0]].message_id == rows[ids[0]].message_id == "own@example.org"
    assert rows[copies[1]].message_id.startswith(copies[1])
    # A copy in the Sent folder says nothing of a mail that others may have as well.
    assert [rows[id].taken for id in (*ids, *copies)] == [1, None, 1, None]


@pytest.fixture
def up(tmp_path: Path, sqlite_url: str, to_smtpd: dict[str, str]) -> Iterator[Service]:
    settings = to_smtpd | {"DATABASE_URL": sqlite_url, "INBOX_SMTP_PORT": str(free_port())}
    with service(tmp_path, **settings) as one:
        one.up("--deliver")
        yield one


def test_it_arrives_as_it_came(up: Service, smtpd: ScriptedSMTP) -> None:
    query = "?from=bounces@example.org&to=bob@example.org&to=j%C3%B6rg@example.org"
    mail = MULTIPART.replace(b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", "Grüße".encode())
    status, answer = up.request("POST", URL + query, mail, headers=TYPE)
    assert status == 202
    assert up.final(answer["id"])["status"] == "sent"
    [delivery] = smtpd.messages
    assert delivery.mail_from == "bounces@example.org"
    assert delivery.rcpt_tos == ("bob@example.org", "jörg@example.org")
    assert delivery.data.endswith(b"\r\n" + mail)
    assert delivery.data.startswith(b"Received: by example.org with HTTP id ")
    assert smtpd.violations == []


def test_eight_bit_text_is_announced_and_needs_no_smtputf8(
    tmp_path: Path, sqlite_url: str, to_smtpd: dict[str, str]
) -> None:
    with ScriptedSMTP(smtputf8=False) as smtpd:
        ports = {"SMTP_PORT": str(smtpd.port), "INBOX_SMTP_PORT": str(free_port())}
        settings = to_smtpd | ports | {"DATABASE_URL": sqlite_url}
        with service(tmp_path, **settings) as one:
            one.up("--deliver")
            status, answer = one.request("POST", URL + "?from=", MULTIPART, headers=TYPE)
            assert status == 202
            assert one.final(answer["id"])["status"] == "sent"
        [delivery] = smtpd.messages
        assert delivery.mail_from == ""
        assert delivery.data.endswith(MULTIPART)
        assert smtpd.violations == []
