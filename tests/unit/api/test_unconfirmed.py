"""What a client is told of a write whose commit got no answer: that it may have been done, and where to look."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from mailroom.store.messages.outbox import Outbox
from tests.services.application import made
from tests.services.lossy_link import CUT, LOST, PASSED, UNANSWERED, LossyLink
from tests.services.processes import service
from tests.services.schema import ready
from tests.unit.api.test_messages import MAIL

JOB: dict[str, Any] = {"name": "simulate", "args": {"seconds": 1}}
NEW, NEW_JOB, CHANGED = b"INSERT INTO messages", b"INSERT INTO jobs", b"UPDATE messages"


@pytest.fixture
def client(link: LossyLink) -> Iterator[FlaskClient]:
    """Of a service whose link to the database may be cut."""
    for app in made(link.url):
        yield app.test_client()


@pytest.fixture
def afar(postgres_url: str) -> Iterator[FlaskClient]:
    """Of another service on the same database."""
    for app in made(postgres_url):
        yield app.test_client()


def read(answer: Any) -> Any:
    """What it holds; an error's media type is not JSON's own."""
    return json.loads(answer.data)


ACCEPTING = [
    ("/", MAIL, NEW),
    ("/v1/messages", MAIL, NEW),
    ("/v1/jobs", JOB, NEW_JOB),
    ("/v1/jobs", JOB | {"notify": MAIL}, NEW_JOB),
]


@pytest.mark.parametrize(("path", "body", "having"), ACCEPTING)
def test_a_commit_without_an_answer_says_that_it_may_be_accepted_and_where_to_look(
    client: FlaskClient, afar: FlaskClient, link: LossyLink, path: str, body: Any, having: bytes
) -> None:
    link.at_commit(UNANSWERED, having=having)
    answer = client.post(path, json=body)
    told = read(answer)
    assert (answer.status_code, told["code"], told["title"]) == (
        503,
        "commit_unconfirmed",
        "It may have been accepted",
    )
    assert (
        answer.headers["Location"].endswith(f"/{told['id']}")
        and answer.headers["Location"] in told["detail"]
    )
    assert "with an Idempotency-Key sending it again is safe" in told["detail"]
    assert "Retry-After" not in answer.headers  # Some clients would send it again by themselves.
    assert afar.get(answer.headers["Location"]).status_code == 200


def test_of_a_batch_all_ids_are_named(
    client: FlaskClient, afar: FlaskClient, link: LossyLink
) -> None:
    link.at_commit(UNANSWERED, having=NEW)
    answer = client.post("/v1/messages/batch", json=[MAIL, MAIL, MAIL])
    told = read(answer)
    assert (answer.status_code, told["code"], len(told["ids"])) == (503, "commit_unconfirmed", 3)
    assert f"look at /v1/messages/{told['ids'][0]}" in told["detail"]
    assert [afar.get(f"/v1/messages/{id}").status_code for id in told["ids"]] == [200] * 3


@pytest.mark.parametrize("fate", [LOST, UNANSWERED])
def test_with_a_key_a_client_is_told_to_send_it_again(
    client: FlaskClient, afar: FlaskClient, link: LossyLink, fate: str
) -> None:
    link.at_commit(fate, having=NEW)
    answer = client.post("/v1/messages", json=MAIL, headers={"Idempotency-Key": "key-1"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert "again with the same Idempotency-Key, and it is accepted once" in read(answer)["detail"]
    again = client.post("/v1/messages", json=MAIL, headers={"Idempotency-Key": "key-1"})
    assert again.status_code == 202
    assert (again.headers["Location"] == answer.headers["Location"]) is (fate == UNANSWERED)
    assert [one["id"] for one in read(afar.get("/v1/messages"))["data"]] == [read(again)["id"]]


@pytest.mark.parametrize(
    ("path", "body", "having"), [*ACCEPTING, ("/v1/messages/batch", [MAIL], NEW)]
)
def test_a_link_that_is_cut_before_the_commit_says_that_nothing_was_accepted(
    client: FlaskClient, link: LossyLink, path: str, body: Any, having: bytes
) -> None:
    link.at_commit(CUT, having=having)
    answer = client.post(path, json=body)
    told = read(answer)
    assert (answer.status_code, told["code"], told["detail"]) == (
        503,
        "store_unavailable",
        "nothing was accepted or changed; try again",
    )
    assert answer.headers["Retry-After"] == "2" and "Location" not in answer.headers
    assert read(client.get("/v1/messages"))["data"] == read(client.get("/v1/jobs"))["data"] == []


@pytest.mark.parametrize("action", ["cancel", "hold", "reschedule", "retry", "release"])
def test_an_action_without_an_answer_may_have_been_done(
    client: FlaskClient, afar: FlaskClient, link: LossyLink, action: str
) -> None:
    id = read(afar.post("/v1/messages", json=MAIL | {"delay": 60}))["id"]
    if action == "release":
        afar.post(f"/v1/messages/{id}/hold")
    link.at_commit(UNANSWERED, having=CHANGED)
    answer = client.post(
        f"/v1/messages/{id}/{action}", json={"delay": 90} if action == "reschedule" else None
    )
    told = read(answer)
    assert (answer.status_code, told["code"], told["title"]) == (
        503,
        "commit_unconfirmed",
        "It may have been done",
    )
    assert f"look at /v1/messages/{id} before you repeat it" in told["detail"]
    assert answer.headers["Location"] == f"/v1/messages/{id}"


def test_a_mail_that_is_resent_without_an_answer_is_named(
    client: FlaskClient, afar: FlaskClient, link: LossyLink
) -> None:
    id = read(afar.post("/v1/messages", json=MAIL | {"delay": 60}))["id"]
    afar.post(f"/v1/messages/{id}/cancel")
    link.at_commit(UNANSWERED, having=NEW)
    answer = client.post(f"/v1/messages/{id}/resend")
    assert (answer.status_code, read(answer)["code"]) == (503, "commit_unconfirmed")
    assert read(afar.get(answer.headers["Location"]))["resent_of"] == id


@pytest.mark.parametrize(
    ("method", "path", "body", "having"),
    [
        ("PUT", "/v1/templates/a", {"subject": "Hello", "text": "Hi"}, b"templates"),
        ("POST", "/v1/suppressions", {"address": "bob@example.org"}, b"INSERT INTO suppressions"),
        ("POST", "/v1/webhooks", {"url": "https://hooks.example.org/"}, b"INSERT INTO webhooks"),
    ],
)
def test_any_other_write_without_an_answer_may_have_been_done(
    client: FlaskClient, link: LossyLink, method: str, path: str, body: Any, having: bytes
) -> None:
    link.at_commit(UNANSWERED, having=having)
    answer = client.open(path, method=method, json=body)
    told = read(answer)
    assert (answer.status_code, told["code"]) == (503, "commit_unconfirmed")
    assert (
        told["detail"]
        == "the database did not confirm it; look how things stand before you repeat it"
    )


def test_what_is_lost_after_the_commit_does_not_say_that_nothing_was_accepted(
    client: FlaskClient, afar: FlaskClient, link: LossyLink
) -> None:
    link.at_commit(PASSED, having=NEW_JOB)
    link.at_commit(CUT, having=b"FROM jobs")
    answer = client.post("/v1/jobs", json=JOB)
    assert (answer.status_code, read(answer)["code"]) == (503, "commit_unconfirmed")
    assert afar.get(answer.headers["Location"]).status_code == 200


def test_a_form_that_may_have_been_accepted_can_be_sent_again(
    client: FlaskClient, afar: FlaskClient, link: LossyLink
) -> None:
    def field(page: str, name: str) -> str:
        found = re.search(f'name="{name}" value="([^"]+)"', page)
        assert found
        return found[1]

    empty = client.get("/compose").text
    form = {
        "to": "bob@example.org",
        "subject": "Hello",
        "contents": "Hi",
        "token": field(empty, "token"),
        "once": field(empty, "once"),
    }
    link.at_commit(UNANSWERED, having=NEW)
    refused = client.post("/compose", data=form, headers={"Accept": "text/html"})
    assert (
        refused.status_code == 503
        and "send this form again, and it is accepted once" in refused.text
    )
    sent = client.post("/compose", data=form | {"once": field(refused.text, "once")})
    assert sent.status_code == 303
    assert [one["id"] for one in read(afar.get("/v1/messages"))["data"]] == [
        sent.headers["Location"].rpartition("=")[2]
    ]


def test_flask_send_says_that_a_mail_may_have_been_accepted(
    tmp_path: Path, postgres_url: str, link: LossyLink
) -> None:
    database = ready(postgres_url)
    with service(
        tmp_path, DATABASE_URL=link.url, BROKER_URL="pyamqp://guest@127.0.0.1:9//"
    ) as pair:
        link.at_commit(UNANSWERED, having=NEW)
        program = pair.run("-m", "flask", "send", "bob@example.org", "Hi", name="send")
        assert program.process.wait(60) == 1
        found = re.search(
            r"look with `flask status ([0-9a-f-]+)` before you send it again", program.text()
        )
        assert found and Outbox(database).details(found[1])
    database.close()
