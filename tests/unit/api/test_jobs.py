"""Jobs over HTTP: what is accepted and refused, what is told, lists, cancel, once more, files, and clients that wait."""

import base64
import io
import threading
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mailroom.api.http import prefer_wait
from mailroom.jobs import builtin
from mailroom.model.message import Attachment, State
from mailroom.store.jobs.claims import JobClaim, JobClaims
from mailroom.store.jobs.jobs import JobEnd, JobState
from mailroom.store.workers import Heartbeat
from tests import jobs_for_tests
from tests.services import LEASE_SECONDS, wait_until

assert builtin.__name__ and jobs_for_tests.__name__
SIMULATE = {"name": "simulate", "args": {"seconds": 1}}
NOTIFY = {"to": "bob@example.org", "subject": "Done", "contents": "It is {{ job.result }}."}


@pytest.fixture
def runs(app: Flask) -> JobClaims:
    """A worker's hands, without a worker."""
    database = app.extensions["mailasync"].outbox.database
    Heartbeat(database, "worker-1", "worker-1@host", ["jobs"]).beat()
    return JobClaims(database, "worker-1", LEASE_SECONDS)


def post(client: FlaskClient, **body: Any) -> Any:
    answer = client.post("/v1/jobs", json=SIMULATE | body)
    assert answer.status_code == 202, answer.json
    return answer.json


def claim(runs: JobClaims, name: str = "simulate") -> JobClaim:
    [one] = runs.claim("jobs", [name], limit=1)
    return one


# --- accepting -----------------------------------------------------------------------------------------------------


def test_a_job_is_accepted_with_its_place(client: FlaskClient) -> None:
    answer = client.post("/v1/jobs", json=SIMULATE)
    assert answer.status_code == 202
    job: Any = answer.json
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert "Preference-Applied" not in answer.headers
    assert client.get(answer.headers["Location"]).json["id"] == job["id"]  # type: ignore[index]
    assert (
        job["status"],
        job["progress"],
        job["args"],
        job["message"],
        job["result"],
        job["file"],
    ) == (
        "queued",
        0.0,
        {"seconds": 1},
        None,
        None,
        None,
    )
    assert job["why"].startswith(
        "no worker serves the queue jobs; start one with `celery -A mailasync worker -Q jobs`"
    )


def test_a_job_with_a_mail_makes_both_and_each_tells_of_the_other(
    client: FlaskClient, runs: JobClaims
) -> None:
    job = post(client, notify=NOTIFY)
    assert job["message"]["status"] == "waiting"
    mail: Any = client.get(f"/v1/messages/{job['message']['id']}").json
    assert mail["job"]["id"] == job["id"]
    runs.finish(claim(runs), JobEnd(state=JobState.SUCCEEDED, result="[1, 2]"))
    told: Any = client.get(f"/v1/jobs/{job['id']}").json
    assert (told["status"], told["result"], told["message"]["status"]) == (
        "succeeded",
        [1, 2],
        "queued",
    )
    assert [step["event"] for step in told["timeline"]] == [
        "accepted",
        "job started",
        "job succeeded",
    ]


def test_a_message_may_carry_a_job(client: FlaskClient) -> None:
    for path, status in (("/v1/messages", 202), ("/", 200)):
        answer: Any = client.post(
            path, json={**NOTIFY, "job": {**SIMULATE, "notify_on": "failure", "max_attempts": 2}}
        )
        assert (answer.status_code, answer.json["status"]) == (status, "waiting")
        mail: Any = client.get(answer.headers["Location"]).json
        job: Any = client.get(f"/v1/jobs/{mail['job']['id']}").json
        assert (job["name"], job["notify_on"], job["max_attempts"], job["message"]["id"]) == (
            "simulate",
            "failure",
            2,
            mail["id"],
        )


def test_braces_in_a_mail_without_a_job_of_the_clients_are_text(
    client: FlaskClient, app: Flask
) -> None:
    answer: Any = client.post("/", json=NOTIFY | {"contents": "{% {{"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({"name": "simulat"}, "#/name", "did you mean simulate?"),
        ({"name": 5}, "#/name", "expected a string, got 5"),
        (
            {"args": {"seconds": "long"}},
            "#/args/seconds",
            'expected a valid number, unable to parse string as a number, got "long"',
        ),
        ({"args": {}}, "#/args/seconds", "expected this argument, got none"),
        (
            {"args": {"seconds": 1, "color": "red"}},
            "#/args/color",
            "expected one of seconds, got an argument that is none of them",
        ),
        ({"args": [1]}, "#/args", "expected a valid dictionary, got [1]"),
        (
            {"notify_on": "always"},
            "#/notify_on",
            "expected 'success', 'failure' or 'both', got \"always\"",
        ),
        (
            {"timeout_seconds": 0},
            "#/timeout_seconds",
            "expected greater than or equal to 0.001, got 0",
        ),
        ({"timeout_seconds": 10**9}, "#/timeout_seconds", "expected less than or equal to 2592000"),
        ({"max_attempts": 0}, "#/max_attempts", "expected greater than or equal to 1, got 0"),
        ({"max_attempts": "3"}, "#/max_attempts", "expected a valid integer"),
        ({"retry": "soon"}, "#/retry", "expected waits like"),
        ({"notify": {"to": "bob"}}, "#/notify/to", "expected an address"),
        ({"notify": {"subject": "x"}}, "#/notify/to", "expected this field, got none"),
        ({"notify": 5}, "#/notify", "expected an object, got 5"),
        ({"notify": {**NOTIFY, "contents": "{{ job.reslt }}"}}, "#/notify/contents", "job.result"),
        ({"notify": {**NOTIFY, "job": SIMULATE}}, "#/notify/job", "expected one of to, cc, bcc"),
        ({"nme": "x"}, "#/nme", "did you mean name?"),
    ],
)
def test_what_is_no_job_is_refused_with_field_expectation_and_what_came(
    client: FlaskClient, body: dict[str, Any], pointer: str, words: str
) -> None:
    answer = client.post("/v1/jobs", json=SIMULATE | body)
    problem: Any = answer.json
    assert answer.status_code == 422
    assert [error["pointer"] for error in problem["errors"]] == [pointer]
    assert words in problem["errors"][0]["detail"]
    assert client.get("/v1/jobs").json == {"data": [], "has_more": False, "next": None}


def test_all_that_is_wrong_is_told_at_once(client: FlaskClient) -> None:
    problem: Any = client.post(
        "/v1/jobs", json={"name": "simulate", "args": {"seconds": "x"}, "notify": {"to": "bob"}}
    ).json
    assert [error["pointer"] for error in problem["errors"]] == ["#/args/seconds", "#/notify/to"]


@pytest.mark.parametrize(
    ("job", "pointer"),
    [
        ({"name": "brew"}, "#/job/name"),
        ({"name": "simulate", "args": {"s": 1}}, "#/job/args/seconds"),
        (7, "#/job"),
        ({"name": "simulate", "args": {"seconds": 1}, "notify": {}}, "#/job/notify"),
    ],
)
def test_a_wrong_job_in_a_message_is_refused(
    client: FlaskClient, job: object, pointer: str
) -> None:
    problem: Any = client.post("/v1/messages", json={**NOTIFY, "job": job}).json
    assert pointer in [error["pointer"] for error in problem["errors"]]


# --- a form with files ---------------------------------------------------------------------------------------------


def test_a_file_in_a_form_is_an_argument(client: FlaskClient, runs: JobClaims) -> None:
    content = bytes(range(256)) * 10
    answer = client.post(
        "/v1/jobs", data={"job": '{"name": "size"}', "image": (io.BytesIO(content), "cat.png")}
    )
    assert answer.status_code == 202, answer.json
    job: Any = answer.json
    assert job["args"]["image"].endswith(f"({len(base64.b64encode(content))} characters)")
    assert base64.b64decode(claim(runs, "size").args["image"]) == content


@pytest.mark.parametrize(
    ("form", "status", "words"),
    [
        ({"image": (io.BytesIO(b"x"), "x")}, 400, "expected one form field `job`"),
        ({"job": '{"name": "size"}', "jb": "x"}, 400, "got jb, job"),
        ({"job": "{", "image": (io.BytesIO(b"x"), "x")}, 400, "expected JSON"),
        ({"job": "[]", "image": (io.BytesIO(b"x"), "x")}, 400, "expected a JSON object"),
        (
            {
                "job": '{"name": "size", "args": {"image": "eA=="}}',
                "image": (io.BytesIO(b"x"), "x"),
            },
            422,
            "expected it once",
        ),
        (
            {"job": '{"name": "size"}', "picture": (io.BytesIO(b"x"), "x")},
            422,
            "expected one of image",
        ),
    ],
)
def test_a_form_that_is_no_job_is_refused(
    client: FlaskClient, form: dict[str, Any], status: int, words: str
) -> None:
    answer = client.post("/v1/jobs", data=form, content_type="multipart/form-data")
    assert answer.status_code == status
    assert words in answer.get_data(as_text=True).replace("\\u0060", "`")


# --- telling -------------------------------------------------------------------------------------------------------


def test_progress_is_seen_while_a_job_runs(client: FlaskClient, runs: JobClaims) -> None:
    id = post(client)["id"]
    runs.progress(claim(runs), 0.42, "washing")
    told: Any = client.get(f"/v1/jobs/{id}").json
    assert (told["status"], told["progress"], told["step"]) == ("running", 0.42, "washing")
    assert told["why"] == "a worker runs it, attempt 1: washing"


def test_a_failed_attempt_tells_when_the_next_is(client: FlaskClient, runs: JobClaims) -> None:
    id = post(client, max_attempts=2)["id"]
    runs.finish(claim(runs), JobEnd(state=JobState.FAILED, error="OSError: no", wait_seconds=60))
    told: Any = client.get(f"/v1/jobs/{id}").json
    assert told["status"] == "queued"
    assert told["why"].startswith("tried again at 20")
    assert told["why"].endswith(": OSError: no")


@pytest.mark.parametrize("path", ["", "/file", "/cancel", "/retry"])
def test_an_unknown_job_is_404(client: FlaskClient, path: str) -> None:
    for id in ("01a1fa74-7cbf-77a5-bd1e-567fa7461b6e", "x" * 300, "%00"):
        answer = (client.get if path in ("", "/file") else client.post)(f"/v1/jobs/{id}{path}")
        assert answer.status_code == 404
        assert "expected the id of a job" in answer.json["detail"]  # type: ignore[index]


def test_jobs_are_listed_newest_first_a_page_at_a_time(client: FlaskClient) -> None:
    ids = [post(client)["id"] for _ in range(5)]
    first: Any = client.get("/v1/jobs?limit=3").json
    second: Any = client.get(f"/v1/jobs?limit=3&after={first['next']}").json
    assert (
        len(first["data"]),
        first["has_more"],
        len(second["data"]),
        second["has_more"],
        second["next"],
    ) == (3, True, 2, False, None)
    told = [(job["created_at"], job["id"]) for job in (*first["data"], *second["data"])]
    assert told == sorted(told, reverse=True) and sorted(id for _, id in told) == sorted(ids)
    assert client.get("/v1/jobs?status=running").json["data"] == []  # type: ignore[index]
    assert len(client.get("/v1/jobs?status=queued&name=simulate&queue=jobs").json["data"]) == 5  # type: ignore[index]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=0", "expected a number from 1 to 100, got '0'"),
        ("limit=101", "got '101'"),
        ("limit=x", "got 'x'"),
        ("limit=²", "got"),
        ("after=x", "expected `next` of an earlier page, got 'x'"),
        (f"after={'9' * 30}.x", "expected `next`"),
        ("status=done", "expected one of queued, running"),
    ],
)
def test_a_wrong_query_is_refused(client: FlaskClient, query: str, words: str) -> None:
    answer = client.get(f"/v1/jobs?{query}")
    assert answer.status_code == 422
    assert words in answer.json["detail"]  # type: ignore[index]


def test_job_types_are_told_with_their_arguments(client: FlaskClient) -> None:
    types = {one["name"]: one for one in client.get("/v1/job-types").json["data"]}  # type: ignore[index]
    simulate = types["simulate"]
    assert simulate["description"].startswith("Stand in for heavy work")
    assert (simulate["queue"], simulate["isolated"], simulate["max_attempts"]) == (
        "jobs",
        False,
        10,
    )
    assert simulate["arguments"]["required"] == ["seconds"]
    assert simulate["arguments"]["properties"]["seconds"]["type"] == "number"
    assert types["size"]["arguments"]["properties"]["image"] == {
        "contentEncoding": "base64",
        "title": "Image",
        "type": "string",
    }


def test_what_a_job_made_is_fetched_as_a_download(client: FlaskClient, runs: JobClaims) -> None:
    id = post(client)["id"]
    assert client.get(f"/v1/jobs/{id}/file").status_code == 404
    made = Attachment('../"é\r\n.html', "text/html", b"<script>")
    runs.finish(claim(runs), JobEnd(state=JobState.SUCCEEDED, result="null", file=made))
    told: Any = client.get(f"/v1/jobs/{id}").json
    answer = client.get(told["file"]["url"])
    assert (answer.data, answer.mimetype, answer.headers["X-Content-Type-Options"]) == (
        b"<script>",
        "application/octet-stream",
        "nosniff",
    )
    assert answer.headers["Content-Disposition"].startswith("attachment;")


# --- cancel and once more ------------------------------------------------------------------------------------------


def test_a_job_is_canceled_once_and_with_its_mail(client: FlaskClient, runs: JobClaims) -> None:
    job = post(client, notify=NOTIFY)
    answer = client.post(f"/v1/jobs/{job['id']}/cancel")
    told: Any = answer.json
    assert (answer.status_code, told["status"], told["message"]["status"]) == (
        200,
        "canceled",
        "canceled",
    )
    again = client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (again.status_code, again.json["detail"]) == (  # type: ignore[index]
        409,
        "expected a job that has not ended, got one that is canceled",
    )
    assert runs.claim("jobs", ["simulate"], limit=1) == []


def test_once_more_is_a_new_job_with_a_mail_of_its_own(
    client: FlaskClient, runs: JobClaims
) -> None:
    job = post(client, notify=NOTIFY, notify_on="failure", max_attempts=1)
    refused = client.post(f"/v1/jobs/{job['id']}/retry")
    assert (refused.status_code, refused.json["detail"]) == (  # type: ignore[index]
        409,
        "expected a job that has ended, got one that is queued",
    )
    runs.finish(claim(runs), JobEnd(state=JobState.FAILED, error="no"))
    answer = client.post(f"/v1/jobs/{job['id']}/retry")
    again: Any = answer.json
    assert (answer.status_code, answer.headers["Location"]) == (202, f"/v1/jobs/{again['id']}")
    assert again["id"] != job["id"]
    assert (again["retry_of"], again["status"], again["args"], again["notify_on"]) == (
        job["id"],
        "queued",
        {"seconds": 1},
        "failure",
    )
    assert again["message"]["id"] != job["message"]["id"]
    assert again["message"]["status"] == State.WAITING
    assert client.get(f"/v1/jobs/{job['id']}").json["status"] == "failed"  # type: ignore[index]


# --- waiting -------------------------------------------------------------------------------------------------------


def test_a_client_that_prefers_to_wait_is_answered_at_the_end(
    client: FlaskClient, runs: JobClaims
) -> None:
    ended = threading.Timer(
        0.4, lambda: runs.finish(claim(runs), JobEnd(state=JobState.SUCCEEDED, result="7"))
    )
    ended.start()
    answer = client.post("/v1/jobs", json=SIMULATE, headers={"Prefer": "respond-async, wait=10"})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=10")
    assert (answer.json["status"], answer.json["result"]) == ("succeeded", 7)  # type: ignore[index]
    again = client.get(answer.headers["Location"], headers={"Prefer": "wait=10"})
    assert again.json == client.get(answer.headers["Location"]).json
    ended.join()


@pytest.mark.slow
@pytest.mark.parametrize("prefer", ["wait=1", 'wait="1"', "Wait = 1", "handling=lenient; wait=1"])
def test_waiting_ends_when_the_client_said(client: FlaskClient, prefer: str) -> None:
    id = post(client)["id"]
    answer = client.get(f"/v1/jobs/{id}", headers={"Prefer": prefer})
    assert (answer.headers["Preference-Applied"], answer.json["status"]) == ("wait=1", "queued")  # type: ignore[index]


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=-1", "wait", "await=5", "wait=0", ""])
def test_a_preference_that_cannot_be_read_is_passed_over(client: FlaskClient, prefer: str) -> None:
    id = post(client)["id"]
    answer = client.get(f"/v1/jobs/{id}", headers={"Prefer": prefer})
    assert "Preference-Applied" not in answer.headers


def test_at_most_so_many_wait_and_the_next_is_answered_at_once(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefer_wait, "WAIT_MAX_SECONDS", 600)
    id = post(app.test_client())["id"]
    waiters = [
        threading.Thread(
            target=lambda: app.test_client().get(f"/v1/jobs/{id}", headers={"Prefer": "wait=600"})
        )
        for _ in range(prefer_wait.WAITERS_MAX)
    ]
    for waiter in waiters:
        waiter.start()
    wait_until(lambda: prefer_wait._waiters._value == 0, what="all places are taken")
    answer = app.test_client().get(f"/v1/jobs/{id}", headers={"Prefer": "wait=600"})
    assert "Preference-Applied" not in answer.headers
    assert app.test_client().post(f"/v1/jobs/{id}/cancel").status_code == 200
    for waiter in waiters:
        waiter.join(60)
    assert not any(waiter.is_alive() for waiter in waiters)
