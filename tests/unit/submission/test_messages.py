"""What a message may hold besides text: who else gets it, files, headers, tags, a time; many in one request; lists; what arrives."""

import base64
import email
import io
import json
import random
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email import policy
from email.message import EmailMessage
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, text

from mailroom.model.account import NextHop
from mailroom.model.attempt import Claim
from mailroom.model.message import Attachment, Message
from mailroom.smtp.mime import compose
from mailroom.smtp.poller import run
from mailroom.smtp.pool import Sessions
from mailroom.submission.message import message_from
from tests.services import wait_until
from tests.services.application import made
from tests.services.processes import Service
from tests.services.schema import on_postgresql, on_sqlite
from tests.services.smtpd import ScriptedSMTP
from tests.unit.smtp.test_mime import ALICE, PIECES, body, lines, names

BOB = "bob@example.org"
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256))).decode()


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    yield from made(database_url)


def claim(message: Message) -> Claim:
    return Claim(
        id="1",
        attempt=1,
        message_id="1@example.org",
        created_at_ms=1_790_000_000_123,
        message=message,
        pending=tuple(range(len(message.everyone))),
    )


def read(data: bytes) -> EmailMessage:
    return email.message_from_bytes(data, policy=policy.default)


def errors(answer: Any) -> dict[str, str]:
    return {error["pointer"]: error["detail"] for error in json.loads(answer.data)["errors"]}


FILE_NAMES = (
    "a.txt",
    "Grüße.pdf",
    "日本.png",
    'quo"te.bin',
    "=?utf-8?q?x?=.txt",
    "long" * 60 + ".txt",
    "no suffix",
    "two  spaces.txt",
)
HEADERS = (
    ("X-Order", "42"),
    ("X-Unicode", "Grüße 日本"),
    ("References", "<a@example.org> <b@example.org>"),
    ("X-Long", "word " * 60 + "end"),
    ("X-Odd", "=?utf-8?q?no?="),
    ("List-Id", "News <news.example.org>"),
    ("X-Solid", "x" * 300),
)


def generated(seed: int) -> dict[str, Any]:
    """A request with a bit of everything."""
    dice = random.Random(seed)
    text = "".join(dice.choices(PIECES, k=dice.choice((0, 1, 5, 30)))).replace("\0", "")
    request: dict[str, Any] = {
        "to": [
            {
                "email": f"bob{n}@example.org",
                "name": dice.choice(("", "Bob", "Doe, Bob", "Grüße", "日本" * 30)),
            }
            for n in range(dice.choice((1, 2, 10)))
        ]
    }
    request |= (
        {"cc": "carol@example.org", "bcc": ["dave@example.org"]} if dice.random() < 0.5 else {}
    )
    request |= (
        {"reply_to": ["desk@example.org", "Ölaf <oelaf@example.org>"]}
        if dice.random() < 0.5
        else {}
    )
    request |= {
        "subject": dice.choice(
            ("Hello", "Grüße aus 日本 👩‍👩‍👧", "=?utf-8?q?x?=", "x" * 500, "a  b", "")
        ),
        "text": text,
    }
    request |= {"html": f"<p>{text}</p><img src=cid:logo@x>"} if dice.random() < 0.7 else {}
    files = [
        {
            "filename": name,
            "content": base64.b64encode(dice.randbytes(dice.choice((0, 1, 56, 57, 5000)))).decode(),
            "content_type": dice.choice(("text/plain", "application/pdf", "image/png")),
        }
        for name in dice.sample(FILE_NAMES, dice.choice((0, 1, 3)))
    ]
    if "html" in request and dice.random() < 0.7:
        files.append(
            {
                "filename": "logo.png",
                "content": PNG,
                "content_type": "image/png",
                "content_id": "logo@x",
            }
        )
    return request | {
        "attachments": files,
        "headers": dict(dice.sample(HEADERS, dice.choice((0, 2, len(HEADERS))))),
    }


def assert_is_what_was_asked(data: bytes, request: dict[str, Any]) -> None:
    mail, message = read(data), message_from(request)
    assert names(data) == [to.name for to in message.to]
    assert [to.addr_spec for to in mail["To"].addresses] == [to.address for to in message.to]
    for field, people in (("Cc", message.cc), ("Reply-To", message.reply_to)):
        assert [to.addr_spec for to in (mail[field].addresses if people else ())] == [
            to.address for to in people
        ]
        assert people or field not in mail
    assert b"dave@example.org" not in data and "Bcc" not in mail
    assert mail["Subject"] == request["subject"]
    assert {name: str(mail[name]) for name, _ in message.headers} == dict(message.headers)
    assert body(mail, "plain") == lines(request["text"])
    if "html" in request:
        assert body(mail, "html") == lines(request["html"])
    files = [part for part in mail.walk() if part.get_content_disposition()]
    assert sorted(
        (
            part.get_filename(),
            part.get_content_type(),
            "".join(str(part.get_payload()).split()),
            (part["Content-ID"] or "").strip("<>"),
            part.get_content_disposition(),
        )
        for part in files
    ) == sorted(
        (
            file.name,
            file.content_type,
            base64.b64encode(file.content).decode(),
            file.content_id,
            "inline" if file.content_id else "attachment",
        )
        for file in message.attachments
    )
    assert [part for part in mail.walk() if part.defects] == []
    assert data.isascii() and max(map(len, data.split(b"\r\n"))) <= 998


@pytest.mark.parametrize("seed", range(4))
def test_what_a_parser_reads_is_what_was_asked_for(seed: int) -> None:
    for number in range(seed * 20, seed * 20 + 20):
        request = generated(number)
        assert_is_what_was_asked(compose(claim(message_from(request)), sender=ALICE), request)


def test_an_html_mail_with_an_image_and_a_file_has_the_structure_that_readers_expect() -> None:
    message = Message(
        to=(ALICE,),
        html="<img src=cid:a>",
        attachments=(
            Attachment("a.png", "image/png", b"a", "a"),
            Attachment("b.txt", "text/plain", b"b"),
        ),
    )
    kinds = [part.get_content_type() for part in read(compose(claim(message), sender=ALICE)).walk()]
    assert kinds == [
        "multipart/mixed",
        "multipart/related",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "image/png",
        "text/plain",
    ]


def test_the_from_that_was_asked_for_stands_in_the_mail() -> None:
    mail = read(
        compose(claim(message_from({"to": BOB, "from": "Ops <ops@example.org>"})), sender=ALICE)
    )
    assert mail["From"] == "Ops <ops@example.org>"


def test_an_address_beyond_ascii_is_written_as_it_is() -> None:
    data = compose(
        claim(message_from({"to": ["jürgen@example.org", "Bøb <bøb@münchen.example.org>"]})),
        sender=ALICE,
    )
    header = data[: data.index(b"\r\n\r\n")].decode()
    assert re.search(
        r"\r\nTo: jürgen@example\.org,\r\n =\?utf-8\?\S+\?= <bøb@xn--mnchen-3ya\.example\.org>\r\n",
        header,
    )


@on_sqlite
@pytest.mark.parametrize(
    ("field", "value", "pointer", "detail"),
    [
        ("headers", {"Bcc": "eve@example.org"}, "#/headers/Bcc", "got another name"),
        ("headers", {"from": "eve@example.org"}, "#/headers/from", "got another name"),
        ("headers", {"Message-ID": "<a@b>"}, "#/headers/Message-ID", "got another name"),
        ("headers", {"Date": "x", "Sender": "x"}, "#/headers/Sender", "got another name"),
        ("headers", {"Content-Type": "text/html"}, "#/headers/Content-Type", "got another name"),
        ("headers", {"X-A": "a\r\nBcc: eve@example.org"}, "#/headers/X-A", "expected one line"),
        ("headers", {"X-A:": "a"}, "#/headers/X-A:", "got another name"),
        ("headers", {"X-A": "a", "x-a": "b"}, "#/headers/x-a", "once"),
        ("headers", {"References": "<ü@example.org>"}, "#/headers/References", "expected ASCII"),
        (
            "attachments",
            [{"filename": "a", "content": "%%%"}],
            "#/attachments/0/content",
            "expected base64",
        ),
        (
            "attachments",
            [{"filename": "a", "content": "", "content_type": "text/html\r\nX: y"}],
            "#/attachments/0/content_type",
            "image/png",
        ),
        (
            "attachments",
            [{"filename": "a", "content": "", "content_id": "a>\r\nX: y"}],
            "#/attachments/0/content_id",
            "letters",
        ),
        (
            "attachments",
            [{"filename": "a", "content": "", "path": "/etc/passwd"}],
            "#/attachments/0/path",
            "none of them",
        ),
        ("attachments", [{"filename": "a", "content": ""}] * 21, "#/attachments", "20"),
        ("attachments", [{"filename": "a", "content": "A" * 25_000_004}], "#", "25000000 bytes"),
        ("cc", [f"bob{n}@example.org" for n in range(100)], "#", "at most 100 recipients"),
        ("cc", [BOB, "nobody", 3], "#/cc/2", "expected an address, got 3"),
        ("to", {"email": BOB, "mail": "x"}, "#/to", '{"email"'),
        ("reply_to", "nobody", "#/reply_to", "expected an address"),
        ("tags", ["a\nb"], "#/tags/0", "printable"),
        ("tags", ["x"] * 11, "#/tags", "10"),
        ("metadata", {"a": "x" * 501}, "#/metadata/a", "at most 500"),
        ("priority", "high", "#/priority", "expected 'normal' or 'low'"),
        ("scheduled_at", "2020-01-01T00:00:00Z", "#/scheduled_at", "a time in the future"),
        ("template", {"name": "none"}, "#/template/name", "a stored template"),
        ("unsubscribe", True, "#/unsubscribe", "PUBLIC_URL"),
        ("from", "eve@", "#/from", "expected an address"),
        ("subject", "x" * 999, "#/subject", "998"),
    ],
)
def test_what_cannot_be_is_told_with_field_and_limit(
    client: FlaskClient, field: str, value: object, pointer: str, detail: str
) -> None:
    answer = client.post("/v1/messages", json={"to": BOB, field: value})
    assert answer.status_code == 422
    assert detail in errors(answer)[pointer]


def test_both_of_two_ways_to_say_one_thing_are_too_many(client: FlaskClient) -> None:
    for both in (
        {"contents": "a", "html": "b"},
        {"delay": 1, "scheduled_at": "2030-01-01T00:00:00Z"},
        {"expires_in": 1, "delay": 2},
    ):
        assert client.post("/v1/messages", json={"to": BOB, **both}).status_code == 422


def test_a_from_that_no_account_may_use_is_refused(sqlite_url: str) -> None:
    aliases = "ops@example.org,@example.net,o..ps@example.org"
    for app in made(
        sqlite_url,
        SMTP_HOST="mail.example.org",
        MAIL_FROM="alice@example.org",
        MAIL_ALIASES=aliases,
    ):
        answers = [
            app.test_client().post("/v1/messages", json={"to": BOB, "from": sender})
            for sender in (
                "Alice <ALICE@example.org>",
                "ops@example.org",
                "anybody@example.net",
                '"O..ps"@example.org',
                "o..ps@example.org",
                "eve@example.org",
                "eve@mail.example.net",
            )
        ]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 202, 202, 422, 422]
        assert json.loads(answers[-1].data)["code"] == "invalid_from_address"


def test_a_scheduled_message_waits_for_its_time(client: FlaskClient) -> None:
    moment = (
        (datetime.now(UTC) + timedelta(hours=1))
        .isoformat(timespec="seconds")
        .replace("+00:00", "Z")
    )
    answer = client.post("/v1/messages", json={"to": BOB, "scheduled_at": moment})
    assert (answer.status_code, answer.json["status"]) == (202, "scheduled")  # type: ignore[index]
    message = client.get(answer.headers["Location"]).json
    assert message["next_attempt_at"][:19] == moment[:19] and "to be sent at" in message["why"]  # type: ignore[index]


def test_a_dry_run_says_what_would_be_sent_and_keeps_nothing(client: FlaskClient) -> None:
    answer = client.post(
        "/v1/messages",
        json={
            "to": BOB,
            "cc": "carol@example.org",
            "html": "<b>Hi</b>",
            "dry_run": True,
            "attachments": [{"filename": "../../etc/passwd", "content": "eA=="}],
        },
    )
    preview = answer.json
    assert answer.status_code == 200 and preview is not None
    assert (preview["dry_run"], preview["text"], preview["html"]) == (True, "Hi", "<b>Hi</b>")
    assert [(to["email"], to["kind"]) for to in preview["recipients"]] == [
        (BOB, "to"),
        ("carol@example.org", "cc"),
    ]
    assert preview["attachments"] == [
        {"filename": "passwd", "content_type": "application/octet-stream", "size": 1}
    ]
    assert client.get("/v1/messages").json == {"data": [], "has_more": False, "next": None}


def test_files_come_as_a_form(client: FlaskClient) -> None:
    answer = client.post(
        "/v1/messages",
        content_type="multipart/form-data",
        data={
            "message": json.dumps({"to": BOB, "html": "<img src=cid:logo>"}),
            "attachments": [(io.BytesIO(b"one"), "one.txt", "text/plain")],
            "logo": (io.BytesIO(b"png"), "../pictures/logo.png", "image/png"),
        },
    )
    assert answer.status_code == 202
    raw = client.get(answer.headers["Location"] + "/raw")
    assert raw.content_type == "message/rfc822"
    found = {
        part.get_filename(): (part.get_payload(decode=True), part["Content-ID"])
        for part in read(raw.data).walk()
        if part.get_filename()
    }
    assert found == {"one.txt": (b"one", None), "logo.png": (b"png", "<logo>")}


def test_a_list_is_filtered_and_comes_in_pages(client: FlaskClient) -> None:
    ids = [
        client.post(
            "/v1/messages",
            json={"to": f"bob{n % 2}@example.org", "subject": str(n), "tags": [f"tag {n % 3}"]},
        ).json["id"]  # type: ignore[index]
        for n in range(7)
    ]
    first = client.get("/v1/messages?limit=3").json
    assert [row["id"] for row in first["data"]] == ids[:-4:-1] and first["has_more"]  # type: ignore[index]
    rest = client.get("/v1/messages", query_string={"limit": 10, "after": first["next"]}).json  # type: ignore[index]
    assert [row["id"] for row in rest["data"]] == ids[3::-1] and not rest["has_more"]  # type: ignore[index]

    def listed(**query: str) -> list[str]:
        found = client.get("/v1/messages", query_string=query).json
        return [row["subject"] for row in found["data"]]  # type: ignore[index]

    assert listed(to="bob1@example.org") == ["5", "3", "1"]
    assert listed(tag="tag 0") == ["6", "3", "0"]
    assert listed(tag="tag 0", to="bob1@example.org") == ["3"]
    assert len(listed(status="queued")) == 7 and listed(status="sent") == []
    assert (
        listed(until="2020-01-01T00:00:00Z") == []
        and len(listed(since="2020-01-01T00:00:00Z")) == 7
    )
    client.post(f"/v1/messages/{ids[0]}/cancel")
    assert listed(status="canceled") == ["0"]
    assert (
        listed(q="bob1@EXAMPLE") == ["5", "3", "1"]
        and listed(q="6") == ["6"]
        and listed(q="tag") == []
    )


def test_words_are_found_whatever_their_case_and_signs(client: FlaskClient) -> None:
    for subject in ("Straße_100%", "STRASSE 100", "10/0 \\ Ünïcode"):
        client.post("/v1/messages", json={"to": BOB, "subject": subject})

    def found(words: str) -> list[str]:
        answer: Any = client.get("/v1/messages", query_string={"q": words}).json
        return [row["subject"] for row in answer["data"]]

    assert found("strasse") == ["STRASSE 100", "Straße_100%"]
    assert (
        found("_100%") == ["Straße_100%"]
        and found("0/0 \\ ÜN") == ["10/0 \\ Ünïcode"]
        and found("%") == ["Straße_100%"]
    )
    assert found("") == found("@") == ["10/0 \\ Ünïcode", "STRASSE 100", "Straße_100%"]


@on_sqlite
@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("status=lost", "?status"),
        ("to=nobody", "?to"),
        ("since=yesterday", "?since"),
        ("limit=0", "?limit"),
        ("after=x", "?after"),
        ("tag=%00", "?tag"),
    ],
)
def test_a_wrong_filter_is_told(client: FlaskClient, query: str, pointer: str) -> None:
    answer = client.get(f"/v1/messages?{query}")
    assert answer.status_code == 422 and pointer in errors(answer)


class TestBatch:
    def test_a_thousand_are_accepted_by_one_request(self, client: FlaskClient) -> None:
        answer = client.post(
            "/v1/messages/batch",
            json={
                "common": {"subject": "News", "text": "Hi"},
                "messages": [{"to": f"bob{n}@example.org"} for n in range(1000)],
            },
        )
        assert answer.status_code == 202
        batch = answer.json
        assert batch is not None and len({row["id"] for row in batch["data"]}) == 1000
        last = client.get(f"/v1/messages/{batch['data'][-1]['id']}").json
        assert last["recipients"][0]["email"] == "bob999@example.org"  # type: ignore[index]
        assert client.get("/v1/messages?limit=1").json["data"][0]["queue"] == "mail.bulk"  # type: ignore[index]

    def test_it_is_one_commit(self, client: FlaskClient, app: Flask) -> None:
        engine, commits = app.extensions["mailasync"].outbox.database.engine, list[int]()

        def note(connection: object) -> None:
            commits.append(threading.get_ident())

        event.listen(engine, "commit", note)
        assert (
            client.post(
                "/v1/messages/batch", json=[{"to": f"bob{n}@example.org"} for n in range(100)]
            ).status_code
            == 202
        )
        event.remove(engine, "commit", note)
        rows = [
            table
            for table in ("messages", "contents", "recipients")
            if app.extensions["mailasync"].outbox.database.read(
                lambda connection, table=table: connection.scalar(
                    text(f"SELECT count(*) FROM {table}")
                )
            )
            == 100
        ]
        # The publisher, which finds no broker, writes in a thread of its own.
        here = commits.count(threading.get_ident())
        assert (here, rows) == (1, ["messages", "contents", "recipients"])

    def test_a_list_alone_will_do(self, client: FlaskClient) -> None:
        answer = client.post(
            "/v1/messages/batch",
            json=[{"to": BOB, "subject": "a"}, {"to": BOB, "subject": "b", "priority": "normal"}],
        )
        assert [row["status"] for row in answer.json["data"]] == ["queued", "queued"]  # type: ignore[index]
        listed: Any = client.get("/v1/messages").json
        assert [(row["subject"], row["queue"]) for row in listed["data"]] == [
            ("b", "mail"),
            ("a", "mail.bulk"),
        ]

    def test_one_that_is_wrong_keeps_all_from_being_accepted(self, client: FlaskClient) -> None:
        answer = client.post(
            "/v1/messages/batch",
            json={
                "common": {"subject": "a\nb"},
                "messages": [
                    {"to": BOB},
                    {"to": "nobody"},
                    {"to": BOB, "subject": 3},
                    4,
                    {"to": BOB, "job": {"name": "simulate"}},
                ],
            },
        )
        assert answer.status_code == 422
        wrong_fields = errors(answer)
        assert [*wrong_fields] == [
            "#/common/subject",
            "#/messages/1/to",
            "#/messages/2/subject",
            "#/messages/3",
            "#/messages/4/job",
        ]
        assert client.get("/v1/messages").json["data"] == []  # type: ignore[index]

    @on_sqlite
    @pytest.mark.parametrize(
        ("value", "status"),
        [
            ([], 422),
            ({"messages": []}, 422),
            ([{"to": BOB}] * 1001, 422),
            (3, 400),
            ("x", 400),
            ({"messages": [{"to": BOB}], "commom": {}}, 422),
        ],
    )
    def test_what_is_no_batch_is_refused(
        self, client: FlaskClient, value: object, status: int
    ) -> None:
        assert client.post("/v1/messages/batch", json=value).status_code == status

    def test_what_is_common_does_not_grow_without_bounds(self, client: FlaskClient) -> None:
        common = {
            "attachments": [
                {"filename": "a", "content": base64.b64encode(bytes(1_000_000)).decode()}
            ]
        }
        answer = client.post(
            "/v1/messages/batch", json={"common": common, "messages": [{"to": BOB}] * 101}
        )
        assert (
            answer.status_code == 422 and "at most 100000000 bytes" in errors(answer)["#/messages"]
        )
        assert client.get("/v1/messages").json["data"] == []  # type: ignore[index]

    def test_each_has_variables_of_its_own(self, client: FlaskClient) -> None:
        client.put(
            "/v1/templates/hello",
            json={"subject": "Hello {{ name }}", "text": "{{ greeting }}, {{ name }}!"},
        )
        answer = client.post(
            "/v1/messages/batch",
            json={
                "common": {"template": {"name": "hello", "variables": {"greeting": "Ahoy"}}},
                "messages": [
                    {"to": "a@example.org", "variables": {"name": "Ann"}},
                    {"to": "b@example.org", "variables": {"name": "Bea"}},
                ],
            },
        )
        rows: Any = answer.json
        raws = [read(client.get(f"/v1/messages/{row['id']}/raw").data) for row in rows["data"]]
        assert [(raw["Subject"], body(raw, "plain").strip()) for raw in raws] == [
            ("Hello Ann", "Ahoy, Ann!"),
            ("Hello Bea", "Ahoy, Bea!"),
        ]
        missing = client.post(
            "/v1/messages/batch",
            json={
                "common": {"template": {"name": "hello"}},
                "messages": [{"to": BOB, "variables": {"name": "x"}}],
            },
        )
        assert missing.status_code == 422 and "greeting" in json.dumps(errors(missing))

    def test_it_comes_once_with_its_key(self, client: FlaskClient) -> None:
        answers = [
            client.post("/v1/messages/batch", json=[{"to": BOB}], headers={"Idempotency-Key": "k"})
            for _ in range(2)
        ]
        assert (
            answers[0].json == answers[1].json
            and answers[1].headers["Idempotency-Replayed"] == "true"
        )
        assert len(client.get("/v1/messages").json["data"]) == 1  # type: ignore[index]


@on_postgresql
def test_everything_arrives_as_it_was_asked_for(pair: Service, smtpd: ScriptedSMTP) -> None:
    pair.web()
    pair.worker()
    requests = {number: generated(number) | {"subject": f"mail {number}"} for number in range(200)}
    for request in requests.values():
        pair.post("/v1/messages", contents=None, **request)
    wait_until(lambda: len(smtpd.payloads) == 200, what="all have arrived")
    for payload in smtpd.payloads:
        request = requests[int(str(read(payload.data)["Subject"]).split()[1])]
        assert sorted(payload.rcpt_tos) == sorted(
            to.address for to in message_from(request).everyone
        )
        assert_is_what_was_asked(payload.data, request)


@on_sqlite
def test_a_scheduled_mail_comes_at_its_time_and_not_before(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    pair.web()
    pair.worker()
    id = pair.post("/v1/messages", subject="later", delay=3)
    pair.post("/v1/messages", subject="now")
    wait_until(lambda: len(smtpd.payloads) == 2, what="both have come")
    assert [read(payload.data)["Subject"] for payload in smtpd.payloads] == ["now", "later"]
    assert pair.final(id)["status"] == "sent"


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_quoted_address_goes_out_quoted_in_envelope_and_header(pipelining: bool) -> None:
    message = message_from(
        {
            "from": "Alice <alice.@example.org>",
            "reply_to": '"re ply"@example.org',
            "to": ["abc.@docomo.ne.jp", '"odd user"@example.net'],
            "cc": {"email": '"a@b"@example.net', "name": "Grüße"},
            "bcc": ['"c \\"d"@example.net', BOB],
        }
    )
    with ScriptedSMTP(pipelining=pipelining) as smtpd:
        sessions = Sessions(NextHop(host=smtpd.host, port=smtpd.port, security="none"))
        sender = message.sender or ALICE
        people = {at: person.address for at, person in enumerate(message.everyone)}
        run(
            sessions.attempt(sender.address, people, compose(claim(message), sender=ALICE)),
            lambda: True,
        )
        sessions.close()
        said = [line.partition(" SIZE=")[0] for _, line in smtpd.commands]
        assert [line for line in said if line.startswith(("MAIL", "RCPT"))] == [
            'MAIL FROM:<"alice."@example.org>',
            'RCPT TO:<"abc."@docomo.ne.jp>',
            'RCPT TO:<"odd user"@example.net>',
            'RCPT TO:<"a@b"@example.net>',
            'RCPT TO:<"c \\"d"@example.net>',
            "RCPT TO:<bob@example.org>",
        ]
        head = smtpd.payloads[0].data
        assert smtpd.violations == []
    for field in (
        b'From: Alice <"alice."@example.org>',
        b'Reply-To: "re ply"@example.org',
        b'To: "abc."@docomo.ne.jp,\r\n "odd user"@example.net',
        b'Cc: =?utf-8?b?R3LDvMOfZQ==?= <"a@b"@example.net>',
    ):
        assert b"\r\n" + field + b"\r\n" in b"\r\n" + head


def test_no_line_of_a_quoted_address_is_folded_at_its_spaces_or_too_long() -> None:
    address = f'"{"a b " * 15}"@example.org'
    people = [{"email": address, "name": name} for name in ("", "Bob", "Grüße " * 60, "b " * 200)]
    data = compose(
        claim(message_from({"to": BOB, "cc": people[:1], "reply_to": people[1:]})), sender=ALICE
    )
    assert data.count(address.encode()) == 2 and data.count(b"Reply-To") == 1
    lists = [compose(claim(message_from({"to": person})), sender=ALICE) for person in people]
    for each in (data, *lists):
        assert address.encode() in each and max(map(len, each.split(b"\r\n"))) <= 998
    assert [names(each) for each in lists] == [[one["name"].strip()] for one in people]


@pytest.mark.parametrize("field", ["to", "cc", "bcc", "from", "reply_to"])
def test_a_quoted_address_is_taken_and_found_in_each_field(client: FlaskClient, field: str) -> None:
    mail = {"to": BOB, field: "abc.@docomo.ne.jp"}
    id = (client.post("/v1/messages", json=mail).json or {})["id"]
    assert ('"abc."@docomo.ne.jp' in client.get(f"/v1/messages/{id}/raw").text) is (field != "bcc")
    if field in ("to", "cc", "bcc"):
        for query in (
            {"to": "abc.@docomo.ne.jp"},
            {"to": '"abc."@docomo.ne.jp'},
            {"q": "ABC.@docomo"},
            {"q": '"abc."@doc'},
            {"q": "abc."},
        ):
            found = client.get("/v1/messages", query_string=query).json or {}
            assert [row["id"] for row in found["data"]] == [id], query


@on_sqlite
@pytest.mark.parametrize("offered", [True, False])
def test_an_address_beyond_ascii_needs_a_server_that_takes_it(
    pair: Service, smtpd: ScriptedSMTP, offered: bool
) -> None:
    smtpd.smtputf8 = offered
    pair.web()
    pair.worker()
    message = pair.final(pair.post("/v1/messages", to="jürgen@example.org", subject="Grüße"))
    plain = pair.final(pair.post("/v1/messages"))
    assert plain["status"] == "sent"
    if offered:
        assert message["status"] == "sent" and smtpd.payloads[0].rcpt_tos == ("jürgen@example.org",)
    else:
        assert message["status"] == "failed" and "5.6.7" in message["why"]
        assert [payload.rcpt_tos for payload in smtpd.payloads] == [("bob@example.org",)]
