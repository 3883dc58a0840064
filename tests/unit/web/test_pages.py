"""Pages, asked for without a browser: what they say, what they let whom do, and that they ask nobody else for anything."""

import hashlib
import json
import os
import re
import shlex
import threading
from ast import literal_eval
from collections.abc import Iterator
from email.parser import BytesParser
from email.policy import default
from html import unescape
from io import BytesIO
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, text
from werkzeug.test import TestResponse

from mailroom.api.auth.wrong_keys import WRONG_MAX
from mailroom.api.services import Services
from mailroom.inbox import Chaos, InboxStorage
from mailroom.model.message import Address, Message, State
from mailroom.server import serve
from mailroom.store.events.changes import pulse
from mailroom.store.keys.api_keys import Scope
from mailroom.store.messages.outbox import NewMessage
from mailroom.web import event_stream
from mailroom.web.charts import Line, Times, amount, chart, nice
from mailroom.web.layout import NOTICES, apart, here
from tests.services import wait_until
from tests.services.application import made
from tests.services.processes import PROJECT

#: Hundreds of pages, each of an application of its own.
pytestmark = pytest.mark.slow

HTML = {"Accept": "text/html"}
MAIL = {"to": "bob@example.org", "subject": "Hello", "text": "Hi"}
PAGES = (
    "/",
    "/dashboard",
    "/messages",
    "/compose",
    "/jobs",
    "/templates",
    "/templates/new",
    "/suppressions",
    "/webhooks",
    "/keys",
)
STATIC = PROJECT / "mailroom" / "web" / "static"
ADMIN, READ, SEND = Scope.ADMIN, Scope.READ, Scope.SEND


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Flask]:
    for served in made(sqlite_url):
        served.register_blueprint(serve.inbox_blueprint(InboxStorage(), Chaos()))
        yield served


def services(app: Flask) -> Services:
    found: Services = app.extensions["mailasync"]
    return found


def look(client: FlaskClient, path: str, status: int = 200) -> str:
    answer = client.get(path, headers=HTML)
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "text/html"
    return answer.text


def words(page: str) -> str:
    """What a page says, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def token_in(page: str) -> str:
    found = re.search(r'name="token" value="([^"]+)"', page)
    assert found, page
    return found[1]


def send(client: FlaskClient, path: str, page: str = "/compose", **fields: Any) -> TestResponse:
    """A form of this page, as a browser sends it."""
    return client.post(path, data={"token": token_in(look(client, page)), **fields}, headers=HTML)


def accept(client: FlaskClient, **fields: Any) -> str:
    answer = client.post("/v1/messages", json=MAIL | fields)
    assert answer.status_code == 202, answer.text
    id: str = answer.get_json()["id"]
    return id


def run(app: Flask, statement: str) -> None:
    with services(app).outbox.database.engine.begin() as connection:
        connection.execute(text(statement))


def key(app: Flask, *scopes: Scope) -> tuple[str, str]:
    secret, made = services(app).api_keys.create("test", scopes=scopes)
    return secret, made.id


def enter(client: FlaskClient, secret: str, next: str = "/dashboard") -> TestResponse:
    return client.post(
        "/sign-in",
        data={"token": token_in(look(client, "/sign-in")), "key": secret, "next": next},
        headers=HTML,
    )


# --- every page ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_a_page_asks_nobody_else_for_anything_and_lets_nothing_of_others_run(
    client: FlaskClient, path: str
) -> None:
    accept(client, subject="<script>alert(1)</script>")
    answer = client.get(path, headers=HTML)
    assert answer.status_code == 200
    policy = dict(
        rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; ")
    )
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data:",
        "connect-src": "'self'",
        "frame-src": "'self'",
        "form-action": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
    }
    assert (
        answer.headers["X-Content-Type-Options"] == "nosniff"
        and answer.headers["Cache-Control"] == "no-store"
    )
    # Commands to read, in which there are addresses.
    page = re.sub(r"<pre.*?</pre>", "", answer.text, flags=re.DOTALL)
    assert not re.search(r"<script>|<style| style=| on\w+=|javascript:", page)
    assert not re.search(r'(?:src|href|action)="(?:https?:)?//(?!127\.0\.0\.1)', page)
    for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', page):
        with client.get(asset) as got:
            assert got.status_code == 200, asset


def test_a_page_with_all_that_it_needs_is_small(client: FlaskClient) -> None:
    for number in range(60):
        accept(
            client,
            to=[f"somebody.with.a.long.name.{number}@subdomain.example.org", "carol@example.org"],
            subject="A subject " * 8,
            html="<p>What it says.</p>" * 200,
            tags=["one", "two"],
            metadata={"order": "12345"},
        )
    id = accept(client, html="<p>What it says.</p>" * 5000)
    assets = sum(
        (STATIC / name).stat().st_size
        for name in ("pages.css", "pages.js", "htmx/htmx.min.js", "icon-good.svg")
    )
    for path in (
        *PAGES,
        f"/messages/{id}",
        *(f"/messages/{id}?view={view}" for view in ("text", "source", "headers", "code")),
    ):
        assert len(look(client, path).encode()) + assets < 100_000, path


def test_htmx_is_as_it_was_published() -> None:
    listed = dict(
        re.findall(
            r"^\| (\S+) \| ([0-9a-f]{64}) \|$",
            (STATIC / "htmx" / "README.md").read_text(),
            re.MULTILINE,
        )
    )
    assert {file.name for file in (STATIC / "htmx").iterdir()} == {*listed, "README.md"}
    assert {
        name: hashlib.sha256((STATIC / "htmx" / name).read_bytes()).hexdigest() for name in listed
    } == listed


def test_an_empty_service_says_the_next_command(client: FlaskClient) -> None:
    assert "Send the first one" in look(
        client, "/dashboard"
    ) and "flask send you@example.org" in words(look(client, "/messages"))
    assert "flask templates save receipt" in words(look(client, "/templates"))
    assert "flask suppressions add" in words(
        look(client, "/suppressions")
    ) and "flask keys create" in words(look(client, "/keys"))
    assert "Add a URL below" in look(client, "/webhooks") and "Run a job" in words(
        look(client, "/jobs")
    )


@pytest.mark.parametrize(
    "path", ["/messages/none", "/jobs/none", "/webhooks/none", "/messages/none/html"]
)
def test_what_is_not_there_is_a_page_for_a_person_and_json_for_a_program(
    client: FlaskClient, path: str
) -> None:
    page = look(client, path, 404)
    assert "expected the id of" in page and "In the log this request is" in page
    assert client.get(path).mimetype == "application/problem+json"


def test_while_the_database_is_away_a_page_says_so(app: Flask, client: FlaskClient) -> None:
    look(client, "/messages")
    run(app, "ALTER TABLE messages RENAME TO gone")
    answer = client.get("/messages", headers=HTML)
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "2"
    assert "Accepted mail is safe" in answer.text


# --- the dashboard -------------------------------------------------------------------------------------------------


def test_the_dashboard_says_at_once_that_nothing_moves_and_why(
    app: Flask, client: FlaskClient
) -> None:
    accept(client)
    page = words(look(client, "/dashboard"))
    assert (
        "Mail does not flow. It is accepted and kept" in page
        and "No worker was ever seen; start one with" in page
    )
    wait_until(
        lambda: "Broker unreachable since" in look(client, "/dashboard"),
        what="the broker was looked at",
    )
    assert "<title>(2) mailasync</title>" in look(client, "/dashboard") and "icon-bad.svg" in look(
        client, "/dashboard"
    )


def beats(app: Flask) -> None:
    run(
        app,
        "INSERT INTO workers (id, name, queues, started_at, seen_at) SELECT 'w', 'worker-7', 'mail,jobs', t, t FROM "
        "(SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) AS t)",
    )


def all_is_well(app: Flask) -> None:
    """A worker, and a broker of which nothing bad is known."""
    beats(app)
    publisher = services(app).publisher()
    assert publisher
    publisher.stop()
    publisher.down = None


def test_the_dashboard_says_at_once_that_mail_flows(app: Flask, client: FlaskClient) -> None:
    all_is_well(app)
    page = look(client, "/dashboard")
    assert (
        "Mail flows; none was sent in the last hour." in page
        and "worker-7" in page
        and "icon-good.svg" in page
    )
    assert "Needs you" not in page
    run(
        app,
        "INSERT INTO tallies (minute, event, source, count) SELECT t - 3, event, 'a', count FROM "
        "(SELECT CAST((julianday('now') - 2440587.5) * 1440 AS INTEGER) AS t), "
        "(SELECT 'sent' AS event, 120 AS count UNION SELECT 'sent_le_1', 120 UNION SELECT 'accepted', 130 UNION SELECT 'failed', 10)",
    )
    run(
        app,
        "INSERT INTO samples (minute, waiting, oldest_ms) SELECT CAST((julianday('now') - 2440587.5) * 1440 AS INTEGER) - 5, 77, 4200",
    )
    for span in ("", "?span=day"):
        page = look(client, f"/dashboard{span}")
        assert "Mail flows; 120 sent in the last hour." in page
        labels = "\n".join(re.findall(r'aria-label="([^"]+)"', page))
        most = re.search(r"sent: [\d.]+ now, ([\d.]+) at most", labels)
        # A day's stretch has ten minutes, the one now running fewer; three minutes are over in any case.
        assert most and (12 <= float(most[1]) <= 30 if span else most[1] == "120")
        assert (
            "95% within: 1 s now, 1 s at most" in labels
            and ", 77 at most" in labels
            and ", 4.2 s at most" in labels
        )


def test_what_waits_too_long_is_late(app: Flask, client: FlaskClient) -> None:
    all_is_well(app)
    accept(client)
    run(app, "UPDATE messages SET created_at = created_at - 100000")
    assert "Mail is delayed" in look(client, "/dashboard") and "icon-late.svg" in look(
        client, "/dashboard"
    )


def test_what_needs_a_person_comes_first_with_its_button(app: Flask, client: FlaskClient) -> None:
    all_is_well(app)
    held, uncertain = (
        accept(client, subject="stopped", delay=60),
        accept(client, subject="perhaps there"),
    )
    client.post(f"/v1/messages/{held}/hold")
    run(app, f"UPDATE messages SET state = 'uncertain' WHERE id = '{uncertain}'")
    run(app, f"UPDATE recipients SET state = 'uncertain' WHERE id = '{uncertain}'")
    services(app).accounts.register()
    run(app, "UPDATE accounts SET state = 'halted', reason = '535 5.7.8 no', until = 1893456000000")
    page = look(client, "/dashboard")
    assert page.index("Needs you") < page.index("Activity")
    assert (
        "Account default is halted" in page
        and "535 5.7.8 no" in page
        and "<title>(3) mailasync</title>" in page
    )
    token = token_in(page)
    tried = client.post("/accounts/default/retry", data={"token": token}, headers=HTML)
    assert tried.status_code == 303 and services(app).accounts.details()[0]["until"] < 1893456000000
    for id in (held, uncertain):
        assert f'action="/messages/{id}/release"' in page
    assert (
        client.post(
            f"/messages/{uncertain}/release", data={"token": token}, headers=HTML
        ).status_code
        == 303
    )
    assert services(app).outbox.state(uncertain) == "queued"
    accept_held = [accept(client, delay=60) for _ in range(3)]
    for id in accept_held:
        client.post(f"/v1/messages/{id}/hold")
    assert ">4 message" in look(client, "/dashboard").replace("4  message", "4 message")
    assert (
        client.post("/dashboard/release-held", data={"token": token}, headers=HTML).status_code
        == 303
    )
    assert {services(app).outbox.state(id) for id in (held, *accept_held)} == {"queued"}
    assert "Needs you" not in look(client, "/dashboard") or "held: nobody" not in look(
        client, "/dashboard"
    )


def test_a_webhook_that_gave_up_needs_a_person(client: FlaskClient, app: Flask) -> None:
    hook = client.post("/v1/webhooks", json={"url": "https://hooks.example.org/x"}).get_json()["id"]
    client.patch(f"/v1/webhooks/{hook}", json={"enabled": False})
    assert "A webhook is disabled" not in look(client, "/dashboard")
    run(app, "UPDATE webhooks SET reason = '410 Gone'")
    assert "A webhook is disabled" in look(client, "/dashboard")


# --- messages ------------------------------------------------------------------------------------------------------


def test_messages_are_filtered_by_the_address_of_the_page(client: FlaskClient) -> None:
    ids = [
        accept(
            client, to=f"bob{n}@example.org", subject=f"Order {n}", tags=["odd"] if n % 2 else []
        )
        for n in range(60)
    ]
    page = look(client, "/messages")
    assert (
        "Order 59" in page
        and "Order 10<" in page
        and "Order 9<" not in page
        and 'rel="next"' in page
    )
    older = re.search(r'rel="next" href="([^"]+)"', page)
    assert (
        older
        and "Order 9<" in look(client, unescape(older[1]))
        and "The newest" in look(client, unescape(older[1]))
    )
    assert re.findall(r"Order \d+", look(client, "/messages?q=order+5&status=&to=")) == [
        f"Order {n}" for n in [*range(59, 49, -1), 5]
    ]
    assert re.findall(r"Order \d+", look(client, "/messages?to=bob7@example.org")) == ["Order 7"]
    assert "No message matches" in look(client, "/messages?status=failed")
    assert 'value="odd"' in look(client, "/messages?tag=odd")
    assert (
        client.get("/messages", query_string={"q": ids[3]}, headers=HTML).headers["Location"]
        == f"/messages/{ids[3]}"
    )
    assert "expected an address" in look(client, "/messages?to=nobody", 422)
    assert "expected one of" in look(client, "/messages?status=lost", 422)


def test_a_message_is_shown_with_all_that_is_known_of_it(client: FlaskClient, app: Flask) -> None:
    id = accept(
        client,
        to=[{"email": "bob@example.org", "name": "Bob <b>"}, "carol@example.org"],
        cc="dave@example.org",
        tags=["x y"],
        metadata={"order": "42"},
        html="<p>The <b>HTML</b></p>",
        attachments=[{"filename": "a<b>.txt", "content": "aGk="}],
    )
    page = look(client, f"/messages/{id}")
    said = words(page)
    for part in (
        id,
        "queued",
        "Bob <b>",
        "carol@example.org",
        "dave@example.org",
        "x y",
        "order : 42",
        "a<b>.txt",
        "2 Bytes",
        "Accepted 20",
    ):
        assert part in said, part
    assert "No worker was ever seen" in said or "Broker unreachable" in said
    assert "<b>.txt" not in page and "Bob <b>" not in page
    assert "Hi" in look(client, f"/messages/{id}?view=text") and "Message-ID" in look(
        client, f"/messages/{id}?view=headers"
    )
    assert "MIME-Version: 1.0" in look(client, f"/messages/{id}?view=source")
    html = client.get(f"/messages/{id}/html")
    assert html.text == "<p>The <b>HTML</b></p>" and html.headers[
        "Content-Security-Policy"
    ].startswith("sandbox; default-src 'none'")
    run(app, f"DELETE FROM contents WHERE id = '{id}'")
    assert "The content is no longer kept" in look(client, f"/messages/{id}")
    assert client.get(f"/messages/{id}/html", headers=HTML).status_code == 404


def test_a_message_that_waits_for_its_job_shows_how_far_that_is(
    client: FlaskClient, app: Flask
) -> None:
    id = accept(
        client, job={"name": "simulate", "args": {"seconds": 30}}, subject="{{ job.status }}"
    )
    job = client.get(f"/v1/messages/{id}").get_json()["job"]["id"]
    run(
        app,
        f"UPDATE jobs SET state = 'running', progress = 400, step = 'step 4 of 10', owner = 'w' WHERE id = '{job}'",
    )
    page = look(client, f"/messages/{id}")
    assert (
        'max="1" value="0.4"' in page and f'href="/jobs/{job}"' in page and "step 4 of 10" in page
    )
    assert "written when its job has ended" in look(client, f"/messages/{id}?view=source")
    assert "filled in when its job has ended" in page


#: States of messages that their recipients have as well.
ENDS = ("sent", "failed", "expired", "uncertain", "bounced", "complained")


@pytest.mark.parametrize("state", [*State])
def test_each_button_that_is_shown_does_what_it_says(
    client: FlaskClient, app: Flask, state: State
) -> None:
    def fresh() -> str:
        id = accept(client)
        due = "9999999999999" if state in ("scheduled", "deferred") else "NULL"
        run(
            app, f"UPDATE messages SET state = '{state}', next_attempt_at = {due} WHERE id = '{id}'"
        )
        run(
            app,
            f"UPDATE recipients SET state = '{state if state in ENDS else 'queued'}' WHERE id = '{id}'",
        )
        return id

    page = look(client, f"/messages/{fresh()}")
    shown = set(re.findall(r'action="/messages/[^/"]+/(\w+)"', page))
    for action in ("cancel", "hold", "release", "retry", "resend", "reschedule"):
        id = fresh()
        answer = client.post(
            f"/messages/{id}/{action}",
            data={"token": token_in(look(client, "/compose")), "number": "2", "unit": "hours"},
            headers=HTML,
        )
        assert answer.status_code == (303 if action in shown else 409), (action, answer.text)
        if action in shown:
            assert any(
                notice in words(look(client, answer.headers["Location"]))
                for notice in NOTICES.values()
            )
    assert (state in ("sending", "in_data")) == (not shown)


def test_an_action_that_cannot_be_done_says_why(client: FlaskClient) -> None:
    id = accept(client)
    answer = send(client, f"/messages/{id}/reschedule", number="x", unit="hours")
    assert (
        answer.status_code == 422
        and "delay" in answer.text
        and "Nothing was changed" in answer.text
    )
    assert send(client, f"/messages/{id}/explode").status_code == 404
    assert send(client, "/messages/none/cancel").status_code == 404


def test_a_resent_message_is_shown_in_place_of_the_old_one(client: FlaskClient, app: Flask) -> None:
    id = accept(client)
    run(app, f"UPDATE messages SET state = 'failed' WHERE id = '{id}'")
    location = send(client, f"/messages/{id}/resend").headers["Location"]
    assert location.startswith("/messages/") and id not in location
    assert f'href="/messages/{id}"' in look(client, location) and "This is the new message" in look(
        client, location
    )


# --- composing -----------------------------------------------------------------------------------------------------


def test_the_form_sends_what_it_holds(client: FlaskClient, app: Flask) -> None:
    answer = send(
        client,
        "/compose",
        to="Bob <bob@example.org>, carol@example.org",
        subject="Hello",
        contents="Dear all,\r\nhi",
        cc="",
        tags="a, b",
        delay="3600",
        attachments=(BytesIO(b"hi"), "a.txt"),
        do="send",
    )
    id = answer.headers["Location"].removeprefix("/compose?sent=")
    message = client.get(f"/v1/messages/{id}").get_json()
    assert (message["status"], message["subject"], message["tags"]) == (
        "scheduled",
        "Hello",
        ["a", "b"],
    )
    assert [(person["email"], person["name"]) for person in message["recipients"]] == [
        ("bob@example.org", "Bob"),
        ("carol@example.org", ""),
    ]
    content = services(app).outbox.content(id)
    assert (
        content
        and content.text == "Dear all,\nhi"
        and [file.name for file in content.attachments] == ["a.txt"]
    )
    page = look(client, answer.headers["Location"])
    assert (
        f'href="/messages/{id}"' in page
        and 'value="Hello"' in page
        and "Bob &lt;bob@example.org&gt;, carol@example.org" in page
    )


def test_the_form_sends_after_a_job(client: FlaskClient) -> None:
    answer = send(
        client,
        "/compose",
        to="bob@example.org",
        contents="{{ job.status }}",
        job="simulate",
        job_args='{"seconds": 9}',
        do="send",
    )
    message = client.get(
        "/v1/messages/" + answer.headers["Location"].removeprefix("/compose?sent=")
    ).get_json()
    assert message["status"] == "waiting" and client.get(
        f"/v1/jobs/{message['job']['id']}"
    ).get_json()["args"] == {"seconds": 9}
    assert "<progress" in look(client, answer.headers["Location"])


@pytest.mark.parametrize(
    ("fields", "place", "said"),
    [
        ({"to": "nobody"}, "to-hint", "expected an address"),
        ({"to": ""}, "to-hint", "expected"),
        ({"subject": "a\x0bb"}, "subject-hint", "one line"),
        ({"job": "simulate", "job_args": "{"}, "job_args-hint", "expected JSON"),
        ({"job": "simulate", "job_args": "{}"}, "job_args-hint", "expected"),
        ({"job": "nope"}, "job-hint", "expected one of"),
        ({"delay": "soon"}, "delay-hint", "expected"),
        ({"template": "none"}, "template-hint", "expected the name of a stored template"),
        ({"cc": "x@"}, "cc-hint", "expected an address"),
    ],
)
def test_what_is_wrong_is_said_beside_its_field_and_nothing_is_lost(
    client: FlaskClient, fields: dict[str, str], place: str, said: str
) -> None:
    answer = send(
        client,
        "/compose",
        **({"to": "bob@example.org", "subject": "Kept subject", "do": "send"} | fields),
    )
    assert answer.status_code == 422
    found = re.search(rf'<p class="wrong" id="{place}">(.*?)</p>', answer.text)
    assert found and said in unescape(found[1]), answer.text
    assert "Not sent: " in answer.text
    assert client.get("/v1/messages").get_json()["data"] == []
    assert "subject" in fields or 'value="Kept subject"' in answer.text


def test_the_code_asks_for_what_the_form_would_send(app: Flask, client: FlaskClient) -> None:
    fields = {
        "to": "bob@example.org, carol@example.org",
        "subject": 'It\'s "quoted" & ünï',
        "contents": "line 1\r\nline 2 $HOME `x`",
        "tags": "a",
        "delay": "60",
        "job": "",
        "do": "code",
    }
    page = send(client, "/compose", **fields).text
    curl, python, postman = (
        unescape(code) for code in re.findall(r'<code id="as-\w+">(.*?)</code>', page, re.DOTALL)
    )
    wanted = {
        "to": ["bob@example.org", "carol@example.org"],
        "subject": 'It\'s "quoted" & ünï',
        "contents": "line 1\nline 2 $HOME `x`",
        "tags": ["a"],
        "delay": 60.0,
    }
    assert json.loads(shlex.split(curl.replace("\\\n", ""))[-1]) == wanted
    compile(python, "shown", "exec")
    found = re.search(r"json=(\{.*\}),", python)
    assert found and literal_eval(found[1]) == wanted
    request = json.loads(postman)["item"][0]["request"]
    assert json.loads(request["body"]["raw"]) == wanted and request["url"].endswith("/v1/messages")
    files = send(client, "/compose", **fields, attachments=(BytesIO(b"hi"), "it's.txt")).text
    assert "attachments=@it" in unescape(files) and "formdata" in files
    assert "Authorization" not in files
    enter(client, key(app, ADMIN)[0])
    assert "Authorization: Bearer $API_KEY" in unescape(send(client, "/compose", **fields).text)


def test_a_message_is_shown_as_code_that_asks_for_the_same(client: FlaskClient) -> None:
    id = accept(
        client,
        to=[{"email": "bob@example.org", "name": "Bob"}],
        cc=["carol@example.org"],
        reply_to="r@example.org",
        html="<p>x</p>",
        headers={"X-A": "b"},
        tags=["t"],
        metadata={"m": "1"},
    )
    page = look(client, f"/messages/{id}?view=code")
    curl = unescape(re.findall(r'<code id="as-curl">(.*?)</code>', page, re.DOTALL)[0])
    again = client.post(
        "/v1/messages", json=json.loads(shlex.split(curl.replace("\\\n", ""))[-1])
    ).get_json()["id"]
    one, other = (client.get(f"/v1/messages/{each}").get_json() for each in (id, again))
    for field in ("subject", "tags", "metadata", "recipients"):
        assert one[field] == other[field]
    raws = [
        BytesParser(policy=default).parsebytes(client.get(f"/v1/messages/{each}/raw").data)
        for each in (id, again)
    ]
    for field in ("From", "To", "Cc", "Reply-To", "Subject", "X-A"):
        assert raws[0][field] == raws[1][field] and raws[0][field]
    assert [part.get_content() for part in raws[0].walk() if not part.is_multipart()] == [
        part.get_content() for part in raws[1].walk() if not part.is_multipart()
    ]
    assert "This message is too long to copy" in look(
        client, f"/messages/{accept(client, text='x' * 30_000)}?view=code"
    )


def test_composing_begins_with_an_older_message(client: FlaskClient) -> None:
    id = accept(client, subject="Once more", cc="carol@example.org")
    page = look(client, f"/compose?again={id}")
    assert (
        'value="Once more"' in page
        and 'value="carol@example.org"' in page
        and "See what happens to it" not in page
    )


# --- jobs, templates, suppressions, webhooks, keys -----------------------------------------------------------------


def test_jobs_are_listed_shown_canceled_and_run_once_more(client: FlaskClient, app: Flask) -> None:
    id = client.post(
        "/v1/jobs", json={"name": "simulate", "args": {"seconds": 9}, "notify": MAIL}
    ).get_json()["id"]
    assert f'href="/jobs/{id}"' in look(client, "/jobs") and "No job matches" in look(
        client, "/jobs?status=failed"
    )
    assert "expected one of" in look(client, "/jobs?status=lost", 422)
    page = look(client, f"/jobs/{id}")
    assert (
        "No worker serves the queue jobs" in words(page)
        and '"seconds": 9' in unescape(page)
        and "the mail that reports it" in page
    )
    assert send(client, f"/jobs/{id}/retry").status_code == 409
    assert send(client, f"/jobs/{id}/cancel").headers["Location"] == f"/jobs/{id}?done=canceled"
    assert "Run again" in look(client, f"/jobs/{id}")
    again = send(client, f"/jobs/{id}/retry").headers["Location"]
    assert f'href="/jobs/{id}"' in look(client, again)
    run(
        app,
        f"UPDATE jobs SET state = 'failed', error = 'ValueError: <b>', result = NULL WHERE id = '{id}'",
    )
    assert "ValueError: &lt;b&gt;" in look(client, f"/jobs/{id}") and "icon-bad" in look(
        client, f"/jobs/{id}"
    )


def test_a_result_that_is_no_unicode_is_shown(client: FlaskClient, app: Flask) -> None:
    """As one that was kept before results were made text."""
    id = client.post("/v1/jobs", json={"name": "simulate", "args": {"seconds": 9}}).get_json()["id"]
    result = json.dumps({"names": [os.fsdecode(b"caf\xe9")]})
    run(app, f"UPDATE jobs SET state = 'succeeded', result = '{result}' WHERE id = '{id}'")
    assert '"caf\ufffd"' in unescape(look(client, f"/jobs/{id}"))
    assert client.get(f"/v1/jobs/{id}").status_code == 200


def test_a_template_is_begun_previewed_saved_and_deleted(client: FlaskClient) -> None:
    assert (
        client.get("/templates?name=receipt", headers=HTML).headers["Location"]
        == "/templates/receipt"
    )
    assert "not saved yet" in look(client, "/templates/receipt") and "Expected 1 to 100" in look(
        client, "/templates?name=No+Name", 422
    )
    texts = {
        "subject": "Order {{ order }}",
        "html": "<style>b { color: red }</style><b>{{ name }}</b>",
        "text": "",
    }
    shown = send(
        client, "/templates/receipt/preview", **texts, variables='{"order": 42, "name": "<Bob>"}'
    )
    assert shown.status_code == 200 and "Order 42" in shown.text
    inner = re.search(r'srcdoc="([^"]*)"', shown.text)
    assert inner and "&lt;Bob&gt;" in unescape(inner[1]) and "color: red" in unescape(inner[1])
    policy = shown.headers["Content-Security-Policy"]
    assert (
        "script-src" not in policy
        and "default-src 'none'" in policy
        and "frame-ancestors 'self'" in policy
    )
    for wrong, said in (
        ({"variables": "{"}, "expected JSON"),
        ({"variables": "[]"}, "object of variables"),
        ({"variables": "{}"}, "order"),
        ({"subject": "{% x %}"}, "subject"),
        ({"html": ""}, "expected text, html or both"),
    ):
        fields = texts | {"variables": '{"order": 1, "name": "x"}'} | wrong
        assert said in words(send(client, "/templates/receipt/preview", **fields).text)
    assert "expected" in send(client, "/templates/receipt", **(texts | {"subject": "{{ 1 +"})).text
    assert send(client, "/templates/receipt", **texts).status_code == 303
    assert client.get("/v1/templates/receipt").get_json()["subject"] == "Order {{ order }}"
    assert "Order {{ order }}" in look(client, "/templates") and "not saved yet" not in look(
        client, "/templates/receipt"
    )
    assert (
        send(client, "/templates/receipt/delete").status_code == 303
        and client.get("/v1/templates/receipt").status_code == 404
    )


def test_suppressions_are_added_found_and_removed(client: FlaskClient) -> None:
    assert "expected an address" in send(client, "/suppressions", address="nobody").text
    assert (
        send(
            client, "/suppressions", address="Bob@example.org", detail="asked by phone"
        ).status_code
        == 303
    )
    page = look(client, "/suppressions")
    assert "bob@example.org" in page and "asked by phone" in page
    assert "bob@example.org" in look(client, "/suppressions?address=BOB@example.org&reason=")
    assert "This address is not suppressed" in look(client, "/suppressions?address=x@example.org")
    assert "None for this reason" in look(client, "/suppressions?reason=bounced")
    assert send(client, "/suppressions/remove", address="bob@example.org").status_code == 303
    assert (
        "Nobody is suppressed" in look(client, "/suppressions")
        and send(client, "/suppressions/remove", address="x").status_code == 404
    )


def test_webhooks_are_made_changed_tested_replayed_and_deleted(
    client: FlaskClient, app: Flask
) -> None:
    assert "expected" in send(client, "/webhooks", url="http://10.0.0.1/").text
    at = (
        send(client, "/webhooks", url="https://hooks.example.org/x", events="message.sent")
        .headers["Location"]
        .partition("?")[0]
    )
    page = look(client, at)
    assert (
        "whsec_" in page
        and "Nothing yet" in page
        and re.search(r'value="message.sent" checked', page)
    )
    assert send(client, f"{at}/test").status_code == 303 and "webhook.test" in look(client, at)
    run(
        app,
        "UPDATE deliveries SET state = 'failed', code = 500, reply = 'oops <b>', next_attempt_at = NULL, attempt = 9",
    )
    page = look(client, at)
    assert "oops &lt;b&gt;" in page and "Replay" in page
    number = re.search(r"/replay/(\d+)", page)
    assert (
        number
        and send(client, f"{at}/replay/{number[1]}").status_code == 303
        and "pending" in look(client, at)
    )
    assert (
        send(client, f"{at}/change", events=["message.failed", "message.sent"]).status_code == 303
    )
    assert re.search(r'value="message.failed" checked', look(client, at))
    assert send(client, f"{at}/change", enabled="no").status_code == 303 and "disabled" in look(
        client, at
    )
    assert "hooks.example.org" in look(client, "/webhooks")
    assert send(client, f"{at}/delete").status_code == 303 and at not in look(client, "/webhooks")
    assert "URLs that messages name themselves" in look(client, "/webhooks/own")


def test_the_first_key_closes_the_service_and_signs_its_maker_in(
    client: FlaskClient, app: Flask
) -> None:
    assert "There is no key" in look(client, "/keys")
    wrong = send(client, "/keys", name="a\nb", scopes="admin", per_minute="x", senders="nobody")
    assert (
        wrong.status_code == 422
        and "name: expected" in words(wrong.text)
        and "senders/0" in words(wrong.text)
    )
    answer = send(client, "/keys", name="me", scopes="admin")
    assert answer.status_code == 201
    secret = unescape(re.findall(r'<code id="new-key">(.*?)</code>', answer.text)[0])
    assert client.get("/v1/messages", headers={"X-API-Key": secret}).status_code == 200
    assert "Sign out" in look(client, "/dashboard") and secret not in look(client, "/keys")
    assert app.test_client().get("/dashboard", headers=HTML).status_code == 303
    id = re.search(r"/keys/(\w+)/revoke", look(client, "/keys"))
    assert id and send(client, f"/keys/{id[1]}/revoke", "/keys").status_code == 303


def test_a_first_key_that_may_not_do_everything_is_told_to_whoever_made_it(
    client: FlaskClient,
) -> None:
    answer = send(
        client, "/keys", name="shop", scopes="send", senders="@shop.example", per_minute="60"
    )
    assert (
        "sign in</a> with one that has the scope admin" in answer.text
        and "mailasync_session" not in str(answer.headers)
    )


# --- signing in ----------------------------------------------------------------------------------------------------


def test_without_a_key_nobody_has_to_sign_in(client: FlaskClient) -> None:
    assert client.get("/sign-in?next=/jobs", headers=HTML).headers["Location"] == "/jobs"
    assert "Sign out" not in look(client, "/dashboard")


def test_who_has_no_key_is_sent_to_sign_in_and_comes_back(client: FlaskClient, app: Flask) -> None:
    secret, _ = key(app, ADMIN)
    answer = client.get("/messages?q=a%26b", headers=HTML)
    assert (answer.status_code, answer.headers["Location"]) == (
        303,
        "/sign-in?next=/messages%3Fq%3Da%2526b",
    )
    assert client.get("/messages").status_code == 401
    page = client.get(answer.headers["Location"], headers=HTML)
    assert 'value="/messages?q=a%26b"' in page.text
    answer = enter(client, secret, "/messages?q=a%26b")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/messages?q=a%26b")
    cookie = answer.headers["Set-Cookie"]
    assert (
        "HttpOnly" in cookie
        and "SameSite=Lax" in cookie
        and "Secure" not in cookie
        and "Max-Age=43200" in cookie
    )
    assert secret not in cookie
    assert "Sign out" in look(client, "/messages")
    assert client.get("/v1/messages").status_code == 200  # It reads everywhere …
    # … and changes nothing without a form's token.
    assert client.post("/v1/messages", json=MAIL).status_code == 403
    assert send(client, "/sign-out").headers["Location"] == "/sign-in?done=signed-out"
    assert client.get("/messages", headers=HTML).status_code == 303


def test_the_cookie_is_for_https_where_the_browser_speaks_it(
    client: FlaskClient, app: Flask
) -> None:
    secret, _ = key(app, ADMIN)
    token = token_in(look(client, "/sign-in"))
    answer = client.post(
        "/sign-in",
        data={"token": token, "key": secret},
        headers=HTML | {"X-Forwarded-Proto": "https"},
    )
    assert "Secure" in answer.headers["Set-Cookie"]


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "javascript:alert(1)",
        "/a\nb",
        "",
    ],
)
def test_nobody_is_sent_to_another_site(client: FlaskClient, app: Flask, path: str) -> None:
    assert here(path) == ""
    assert enter(client, key(app, ADMIN)[0], path).headers["Location"] == "/dashboard"


def test_a_form_of_another_site_is_refused_whoever_is_signed_in(
    client: FlaskClient, app: Flask
) -> None:
    id = accept(client)
    for form in ({}, {"token": ""}, {"token": "0" * 32}):
        assert client.post(f"/messages/{id}/cancel", data=form, headers=HTML).status_code == 403
    enter(client, key(app, ADMIN)[0])
    other = app.test_client()
    enter(other, key(app, ADMIN)[0])
    for token in ("", token_in(look(other, "/compose"))):
        answer = client.post(f"/messages/{id}/cancel", data={"token": token}, headers=HTML)
        assert answer.status_code == 403 and "This form is not valid any more" in answer.text
    assert services(app).outbox.state(id) == "queued"
    assert (
        client.post(
            f"/messages/{id}/cancel",
            headers=HTML | {"X-Form-Token": token_in(look(client, "/compose"))},
        ).status_code
        == 303
    )


def test_signing_in_needs_the_forms_own_token(client: FlaskClient, app: Flask) -> None:
    secret, _ = key(app, ADMIN)
    for data in ({"key": secret}, {"key": secret, "token": "x"}):
        assert client.post("/sign-in", data=data, headers=HTML).status_code == 403
    token = token_in(look(client, "/sign-in"))
    client.delete_cookie("mailasync_session")
    assert (
        client.post("/sign-in", data={"key": secret, "token": token}, headers=HTML).status_code
        == 403
    )


def test_wrong_keys_are_counted_and_let_the_right_one_in(client: FlaskClient, app: Flask) -> None:
    secret, _ = key(app, ADMIN)
    for _ in range(WRONG_MAX):
        answer = enter(client, "ma_wrong")
        assert answer.status_code == 403 and "not an API key of this service" in answer.text
    answer = enter(client, "ma_wrong")
    assert answer.status_code == 429 and 1 <= int(answer.headers["Retry-After"]) <= 60
    # It is one count, whichever way they come.
    assert client.get("/messages", headers=HTML | {"X-API-Key": "ma_wrong"}).status_code == 429
    assert enter(client, "").status_code == 403
    assert enter(client, secret).status_code == 303


def test_a_session_ends_with_its_key(client: FlaskClient, app: Flask) -> None:
    secret, id = key(app, ADMIN)
    enter(client, secret)
    assert client.get("/messages", headers=HTML).status_code == 200
    services(app).api_keys.revoke(id)
    key(app, ADMIN)
    wait_until(
        lambda: client.get("/messages", headers=HTML).status_code == 303,
        what="the session has ended",
    )


def test_a_session_of_the_setting_ends_when_that_changes(sqlite_url: str) -> None:
    cookie = ""
    for app in made(sqlite_url, API_KEY="one"):
        client = app.test_client()
        cookie = enter(client, "one").headers["Set-Cookie"].partition(";")[0]
        assert client.get("/messages", headers=HTML).status_code == 200
    for value, status in (("one", 200), ("two", 303)):
        for app in made(sqlite_url, API_KEY=value):
            assert (
                app.test_client(use_cookies=False)
                .get("/messages", headers=HTML | {"Cookie": cookie})
                .status_code
                == status
            )


def test_what_is_no_cookie_of_ours_is_nobody(client: FlaskClient, app: Flask) -> None:
    key(app, ADMIN)
    for cookie in ("x", "a.b.c", "eyJrZXkiOiJkZWZhdWx0In0.aaaa.bbbb"):
        client.set_cookie("mailasync_session", cookie)
        assert client.get("/messages", headers=HTML).status_code == 303


def test_a_read_key_sees_and_cannot_act(client: FlaskClient, app: Flask) -> None:
    id = accept(client)
    held = accept(client, delay=60)
    client.post(f"/v1/messages/{held}/hold")
    enter(client, key(app, READ)[0])
    for path in (
        "/dashboard",
        "/messages",
        f"/messages/{id}",
        "/jobs",
        "/templates",
        "/suppressions",
        "/webhooks",
        "/inbox/",
    ):
        page = look(client, path)
        forms = set(re.findall(r'<form method="post" action="([^"]+)"', page)) - {
            "/sign-out",
            "/templates/new",
        }
        assert forms == set(), path
        assert (
            "/compose" not in re.findall(r'<nav aria-label="Pages">(.*?)</nav>', page, re.DOTALL)[0]
        )
    token = token_in(look(client, "/dashboard"))
    for path in (
        f"/messages/{id}/cancel",
        "/compose",
        "/suppressions",
        "/webhooks",
        "/templates/a",
        "/keys",
        "/dashboard/release-held",
    ):
        answer = client.post(path, data={"token": token, "to": "bob@example.org"}, headers=HTML)
        assert answer.status_code == 403 and "The API key may not do this" in answer.text, path
    assert services(app).outbox.state(id) == "queued"
    look(client, "/keys", 403)


def test_a_send_key_composes_and_sees_what_it_sent(client: FlaskClient, app: Flask) -> None:
    enter(client, key(app, SEND)[0], "/compose")
    sent = send(client, "/compose", to="bob@example.org", do="send").headers["Location"]
    assert "See what happens to it" in look(client, sent)
    look(client, "/messages/" + sent.partition("=")[2])
    assert "may not do this" in look(client, "/dashboard", 403)


# --- what shows as it happens --------------------------------------------------------------------------------------


def lines(answer: TestResponse, count: int) -> list[str]:
    """The first so many events of a stream."""
    found: list[str] = []
    for part in answer.iter_encoded():
        found += [line for line in part.decode().splitlines() if line.startswith("data: ")]
        if len(found) >= count:
            break
    return found


def test_a_stream_says_a_word_at_once_and_another_when_something_has_happened(
    client: FlaskClient, app: Flask
) -> None:
    page = look(client, "/messages")
    known = re.search(r'data-pulse="([^"]+)"', page)
    answer = client.get("/live", buffered=False)
    assert answer.mimetype == "text/event-stream" and known
    threading.Timer(0.7, accept, [app.test_client()]).start()
    first, second = lines(answer, 2)
    answer.close()
    assert first == f"data: {known[1]}" and second != first


def test_what_happens_while_a_page_is_made_is_news_to_it(client: FlaskClient, app: Flask) -> None:
    id, database = accept(client), services(app).outbox.database
    happened: list[str] = []

    def happen(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "FROM events" in statement and not happened:
            # The page has read how it stands, and is not written yet.
            happened.append(statement)
            run(app, f"INSERT INTO events (id, at, event) VALUES ('{id}', 1, 'sent')")

    event.listen(database.engine, "after_cursor_execute", happen)
    shown = re.search(r'data-pulse="([^"]+)"', look(client, f"/messages/{id}"))
    assert happened and shown
    assert shown[1] != pulse(database, services(app).settings.LEASE_SECONDS)
    again = re.search(r'data-pulse="([^"]+)"', look(client, f"/messages/{id}"))
    assert again and again[1] == pulse(database, services(app).settings.LEASE_SECONDS)


def test_there_are_so_many_streams_and_no_more(client: FlaskClient, app: Flask) -> None:
    open_streams = [
        app.test_client().get("/live", buffered=False) for _ in range(event_stream.STREAMS_MAX)
    ]
    refused = client.get("/live")
    assert refused.status_code == 503 and refused.headers["Retry-After"] == "30"
    for stream in open_streams:
        stream.close()
    with client.get("/live", buffered=False) as again:
        assert again.status_code == 200


def test_a_stream_ends_by_itself(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "STREAM_SECONDS", 0.2)
    answer = client.get("/live")
    assert answer.data.startswith(b"retry: 2000\n\ndata: ")


# --- pieces --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "now"),
        (-12, "12 s ago"),
        (12.4, "in 12 s"),
        (-300, "5 min ago"),
        (7200, "in 2 h"),
        (-3600 * 30, "30 h ago"),
        (86400 * 3, "in 3 days"),
    ],
)
def test_times_apart_are_told_in_words(seconds: float, words: str) -> None:
    assert apart(seconds) == words


@pytest.mark.parametrize(
    ("value", "top"),
    [
        (0, 1),
        (0.04, 0.1),
        (0.3, 0.3),
        (1, 1),
        (1.2, 2),
        (4, 5),
        (7, 10),
        (23, 30),
        (999, 1000),
        (1200, 2000),
    ],
)
def test_the_top_of_a_chart_is_a_round_number(value: float, top: float) -> None:
    assert nice(value) == pytest.approx(top)


def test_a_chart_shows_gaps_and_lone_points() -> None:
    drawn = chart(
        "T <x>",
        [Line(name="a", look="sent", values=[1, 2, None, 3, None], is_area=True)],
        Times(first=0, stretch=1, count=5),
    )
    assert (
        drawn.count('class="line sent"') == 1
        and drawn.count("<circle") == 1
        and "T &lt;x&gt;" in drawn
    )
    empty = chart(
        "T", [Line(name="a", look="sent", values=[None] * 3)], Times(first=0, stretch=1, count=3)
    )
    assert "nothing in this time" in empty and "<circle" not in empty and "a: none" in empty


def test_every_notice_is_said_by_some_page(client: FlaskClient) -> None:
    sources = "".join(file.read_text() for file in STATIC.parent.glob("*.py"))
    assert [
        word for word in NOTICES if f'"{word}"' not in sources.replace(f'"{word}": "', "")
    ] == []


# --- sent twice, lost, mistaken ------------------------------------------------------------------------------------


def test_a_form_that_is_sent_twice_makes_one_mail(client: FlaskClient) -> None:
    page = look(client, "/compose")
    once = re.search(r'name="once" value="([^"]+)"', page)
    assert once
    fields = {"token": token_in(page), "once": once[1], "to": "bob@example.org", "do": "send"}

    def sent(**more: str) -> str:
        data = fields | more | {"attachments": (BytesIO(b"hi"), "a.txt")}
        return str(client.post("/compose", data=data, headers=HTML).headers["Location"])

    assert sent() == sent()
    assert sent(subject="Another") not in (sent(), sent(once="x"))
    assert len(client.get("/v1/messages").get_json()["data"]) == 3


@pytest.mark.parametrize("what", ["messages", "jobs"])
def test_a_button_that_is_pressed_twice_makes_one_more(
    client: FlaskClient, app: Flask, what: str
) -> None:
    if what == "messages":
        path = f"/messages/{(id := accept(client))}/resend"
        run(app, f"UPDATE messages SET state = 'failed' WHERE id = '{id}'")
    else:
        id = client.post("/v1/jobs", json={"name": "simulate", "args": {"seconds": 0}}).get_json()[
            "id"
        ]
        path = f"/jobs/{id}/retry"
        run(app, f"UPDATE jobs SET state = 'failed' WHERE id = '{id}'")
    once = re.search(r'name="once" value="([^"]+)"', look(client, f"/{what}/{id}"))
    assert once
    first, second = (send(client, path, once=once[1]).headers["Location"] for _ in range(2))
    assert first == second and id not in first
    assert send(client, path, once="another-form").headers["Location"] != first


def test_a_file_that_has_to_be_chosen_again_is_named(client: FlaskClient) -> None:
    answer = send(
        client, "/compose", to="nobody", attachments=(BytesIO(b"hi"), "invoice.pdf"), do="send"
    )
    assert answer.status_code == 422
    assert (
        "please choose them again: invoice.pdf" in answer.text and "<details open>" in answer.text
    )


def test_a_name_with_a_comma_is_one_person(client: FlaskClient) -> None:
    people = [("doe@example.org", 'Doe, "J" Jane'), ("x@example.org", "")]
    answer = send(
        client,
        "/compose",
        to='"Doe, \\"J\\" Jane" <doe@example.org>; x@example.org',
        cc='"Jörg, B" <j@example.org>',
        do="send",
    )
    for _ in range(2):  # The second time with what the form shows of the first one.
        id = answer.headers["Location"].removeprefix("/compose?sent=")
        recipients = client.get(f"/v1/messages/{id}").get_json()["recipients"]
        assert [(person["email"], person["name"]) for person in recipients] == [
            *people,
            ("j@example.org", "Jörg, B"),
        ]
        page = look(client, f"/compose?again={id}")
        fields = {
            name: unescape(value)
            for name, value in re.findall(r'<input id="(to|cc)" [^>]*? value="([^"]*)"', page)
        }
        answer = send(client, "/compose", **fields, do="send")


def test_what_a_form_cannot_carry_over_is_said(client: FlaskClient) -> None:
    id = accept(
        client,
        html="Hello <b>x</b>",
        headers={"X-A": "b"},
        metadata={"m": "1"},
        **{"from": "mailasync@localhost"},
        attachments=[{"filename": "a.txt", "content": "aGk="}],
    )
    page = look(client, f"/compose?again={id}")
    assert (
        "Not copied: the attachment a.txt, the header field X-A, the text beside the HTML, metadata."
        in page
    )
    assert (
        "&lt;div&gt;Hello &lt;b&gt;x&lt;/b&gt;&lt;/div&gt;" in page
        and 'name="from" type="text" value="mailasync@localhost"' in page
    )


def test_what_was_typed_outlives_a_refusal(client: FlaskClient, app: Flask) -> None:
    secret, _ = services(app).api_keys.create(
        "shop", scopes=[SEND], senders=["@shop.example"], per_minute=1
    )
    enter(client, secret)
    typed = {"to": "bob@example.org", "subject": "Typed", "do": "send"}
    answer = send(client, "/compose", **typed)
    assert (
        answer.status_code == 403
        and "expected a sender that the key" in answer.text
        and 'value="Typed"' in answer.text
    )
    services(app).api_keys.revoke(services(app).api_keys.every()[0].key.id)
    enter(client, services(app).api_keys.create("slow", scopes=[SEND], per_minute=1)[0])
    assert send(client, "/compose", **typed).status_code == 303
    answer = send(client, "/compose", **typed)
    assert (
        answer.status_code == 429
        and 'value="Typed"' in answer.text
        and 'role="alert"' in answer.text
    )
    services(app).api_keys.revoke(services(app).api_keys.every()[1].key.id)
    enter(client, key(app, SEND)[0])
    run(app, "ALTER TABLE messages RENAME TO elsewhere")
    answer = send(client, "/compose", **typed)
    assert answer.status_code == 503 and 'value="Typed"' in answer.text


def test_a_long_text_goes_by_the_form_too(client: FlaskClient) -> None:
    fields = {
        "token": token_in(look(client, "/compose")),
        "to": "bob@example.org",
        "contents": "x" * 600_000,
    }
    parts = "".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    answer = client.post(
        "/compose",
        data=f"{parts}--x--\r\n".encode(),
        headers=HTML | {"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert answer.status_code == 303


def test_who_looks_at_the_sign_in_page_stays_signed_in(client: FlaskClient, app: Flask) -> None:
    secret, _ = key(app, ADMIN)
    first = token_in(look(client, "/sign-in"))
    # Two windows with the form, and both are valid.
    assert token_in(look(client, "/sign-in")) == first
    assert enter(client, secret).status_code == 303
    assert client.get("/sign-in?next=/jobs", headers=HTML).headers["Location"] == "/jobs"
    assert (
        client.post("/sign-in", data={"token": first, "key": "x"}, headers=HTML).headers["Location"]
        == "/dashboard"
    )
    look(client, "/messages")
    wait_until(
        lambda: services(app).api_keys.every()[0].used_at, what="the use of the key is written down"
    )


def test_who_may_not_see_the_dashboard_is_sent_where_he_may_be(
    client: FlaskClient, app: Flask
) -> None:
    answer = enter(client, key(app, SEND)[0], next="")
    assert answer.headers["Location"] == "/compose"
    assert "/inbox/?beside" not in look(client, "/compose")


def test_a_read_key_is_offered_no_form(client: FlaskClient, app: Flask) -> None:
    enter(client, key(app, READ)[0])
    assert (
        'href="/compose"'
        not in look(client, "/messages").partition("<main")[2].partition("<form")[0]
    )


def test_the_dashboard_does_not_call_a_halted_account_well(client: FlaskClient, app: Flask) -> None:
    all_is_well(app)
    services(app).accounts.register()
    run(app, "UPDATE accounts SET state = 'halted', until = 9e12")
    page = look(client, "/dashboard")
    assert 'class="verdict bad"' in page and "no account can send" in page
    run(app, "UPDATE accounts SET state = 'ok'")
    assert 'class="verdict good"' in look(client, "/dashboard")


def test_the_dashboards_command_is_as_it_is_typed(client: FlaskClient) -> None:
    assert "celery -A mailasync worker --loglevel=INFO" in words(
        look(client, "/dashboard").partition("<ul")[0]
    )


def test_the_address_of_this_service_is_told_as_the_browser_knows_it(
    client: FlaskClient, app: Flask
) -> None:
    secret, _ = key(app, ADMIN)
    enter(client, secret)
    page = client.get(
        "/compose",
        headers=HTML
        | {"X-Forwarded-Proto": "https", "Host": "mail.example.org", "X-API-Key": secret},
    ).text
    assert "curl https://mail.example.org/v1/messages" in page and "http://mail" not in page


def test_a_suppressed_address_is_found_however_it_is_written(client: FlaskClient) -> None:
    send(client, "/suppressions", page="/suppressions", address="bob@exämple.org")
    assert "This address is not suppressed" not in look(
        client, "/suppressions?address=bob@ex%C3%A4mple.org"
    )
    assert "This address is not suppressed" in look(client, "/suppressions?address=%00")


def test_what_no_key_is_called_is_not_there(client: FlaskClient) -> None:
    assert send(client, "/keys/%00/revoke").status_code == 404


def test_a_webhook_that_was_refused_keeps_what_it_is_to_be_told(client: FlaskClient) -> None:
    answer = send(client, "/webhooks", page="/webhooks", url="http://x", events="message.failed")
    assert answer.status_code == 422 and 'value="message.failed" checked' in answer.text


def test_revoking_the_last_key_says_what_that_opens(client: FlaskClient, app: Flask) -> None:
    enter(client, key(app, ADMIN)[0])
    assert "served without a key" in look(client, "/keys")
    key(app, READ)
    assert "served without a key" not in look(client, "/keys")


def test_a_webhooks_url_is_not_told_by_a_message(client: FlaskClient) -> None:
    id = accept(client, webhook_url="https://hooks.example.org/T0/SECRET")
    assert "SECRET" not in look(client, f"/messages/{id}") and "hooks.example.org" in look(
        client, f"/messages/{id}"
    )


@pytest.mark.parametrize("id", ["order#7", "a?b", "50%"])
def test_ids_that_clients_choose_lead_to_their_pages(
    client: FlaskClient, app: Flask, id: str
) -> None:
    services(app).outbox.accept(
        NewMessage(
            id=id, message=Message(to=(Address("bob@example.org"),)), message_id="x@example.org"
        )
    )
    page = look(client, f"/messages/{quote(id)}?view=text")
    assert f'hx-get="/messages/{quote(id)}?view=text"' in page
    answer = send(client, f"/messages/{quote(id)}/hold")
    assert "Held until somebody releases it." in look(client, answer.headers["Location"])


@pytest.mark.parametrize(
    "words", ["JÖRG@", "jörg", "Jörg@exämple.ORG", "exämple", "word at the end"]
)
def test_search_finds_what_is_not_ascii_and_what_comes_late(
    client: FlaskClient, words: str
) -> None:
    accept(client, to="JÖRG@exämple.org", subject="x" * 300 + " Word at the end")
    assert len(client.get("/v1/messages", query_string={"q": words}).get_json()["data"]) == 1
    assert client.get("/v1/messages", query_string={"q": "jürg"}).get_json()["data"] == []


def test_another_port_is_another_site(client: FlaskClient) -> None:
    for origin in ("http://localhost:3000", "https://localhost", "http://127.0.0.1"):
        assert client.post("/v1/messages", json=MAIL, headers={"Origin": origin}).status_code == 401
    assert (
        client.post("/v1/messages", json=MAIL, headers={"Origin": "http://localhost"}).status_code
        == 202
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.05, "0.05"), (0.25, "0.25"), (0.1, "0.1"), (0, "0"), (1.5, "1.5"), (1500, "1.5k")],
)
def test_amounts_are_told_in_few_signs(value: float, shown: str) -> None:
    assert amount(value) == shown
