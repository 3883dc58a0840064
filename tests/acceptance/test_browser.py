"""Pages in a real browser, on real processes: what a person does and sees, with a script and without, in light and in dark."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from smtplib import SMTP
from typing import Any

import pytest
from playwright.sync_api import Browser, FrameLocator, Page, expect, sync_playwright

from tests.services import free_port
from tests.services.chromium import ARGUMENTS, find_chromium
from tests.services.processes import Service, service
from tests.services.smtpd import ScriptedSMTP

#: A busy machine is slow to draw.
expect.set_options(timeout=60_000)
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = find_chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=found.program, args=ARGUMENTS, env={**os.environ, **found.environment}
        )
        yield started
        started.close()


@contextmanager
def visit(
    browser: Browser, url: str, *, but: str = "nothing else", **options: Any
) -> Iterator[Page]:
    """A page of a visitor of its own. Nothing may go wrong on it, and nobody else be asked, `but` what the test brings about."""
    context = browser.new_context(base_url=url, **options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on(
        "request",
        lambda asked: (
            wrong.append(asked.url) if not asked.url.startswith((url, "data:", "about:")) else None
        ),
    )
    yield page
    context.close()
    assert [one for one in wrong if not re.search(but, one)] == []


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`flask up`, which all tests here share: each uses addresses and subjects of its own."""
    directory = tmp_path_factory.mktemp("up")
    with service(
        directory,
        INBOX_SMTP_PORT=str(free_port()),
        SIMULATED_WORK_SECONDS="0",
        RETRY_SCHEDULE="1h*3",
        DATABASE_URL=f"sqlite:///{directory}/up.sqlite3",
    ) as made:
        made.upgrade()
        made.up()
        yield made


@pytest.fixture
def page(browser: Browser, up: Service) -> Iterator[Page]:
    with visit(browser, up.url) as found:
        yield found


def compose(page: Page, **fields: str) -> None:
    page.goto("/compose")
    for name, value in fields.items():
        (page.select_option if name == "job" else page.fill)(f"#{name}", value)
    page.click("text=Send >> visible=true")


def beside(page: Page) -> FrameLocator:
    return page.frame_locator("iframe.inbox")


# --- what a person does --------------------------------------------------------------------------------------------


def test_a_mail_sent_from_the_form_appears_in_the_inbox_beside_it(page: Page) -> None:
    page.goto("/compose")
    expect(beside(page).get_by_role("heading", name="Inbox")).to_be_visible()
    page.fill("#to", "form@example.org")
    page.fill("#subject", "From the form")
    page.fill("#contents", "It works.")
    # While it is being typed.
    expect(page.locator("#as-curl")).to_contain_text('"subject": "From the form"')
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".card.sent")).to_contain_text("sent", ignore_case=True)
    mail = beside(page).get_by_role("link", name="From the form")
    expect(mail).to_be_visible()
    mail.click()
    expect(beside(page).frame_locator("iframe").get_by_text("It works.")).to_be_visible()
    beside(page).get_by_role("link", name="Text").click()
    expect(beside(page).locator("pre")).to_contain_text("It works.")
    # And back by the link to what it came of
    beside(page).get_by_role("link", name="its message").click()
    expect(page).to_have_title("sent: From the form")
    expect(page.locator(".timeline")).to_contain_text("250 2.0.0 kept as")


def test_the_inbox_shows_a_mail_as_it_comes_without_loading_again(page: Page, up: Service) -> None:
    page.goto("/inbox/?to=live@example.org")
    page.evaluate("window.isTheSame = true")
    expect(page.get_by_text("No mail to this address")).to_be_visible()
    up.post("/v1/messages", to="live@example.org", subject="Here I am")
    expect(page.get_by_role("link", name="Here I am")).to_be_visible()
    up.post("/v1/messages", to="live@example.org", subject="And another")
    expect(page.get_by_role("link", name="And another")).to_be_visible()
    page.fill("#q", "another")
    expect(page.get_by_role("link", name="Here I am")).to_have_count(0)
    assert page.evaluate("window.isTheSame")


def test_a_progress_bar_moves_until_its_mail_is_sent(page: Page) -> None:
    compose(
        page,
        to="job@example.org",
        subject="{{ job.name }}: {{ job.status }}",
        contents="x",
        job="simulate",
        job_args='{"seconds": 3}',
    )
    bar = page.locator("#progress")
    expect(bar).to_be_visible()
    page.evaluate("window.isTheSame = true")
    seen: set[str] = set()

    def moved() -> bool:
        value = bar.get_attribute("value", timeout=1000) if bar.count() else None
        seen.update({value} if value else set())
        return len(seen) >= 3

    until(page, moved)
    expect(page.locator(".card.sent .badge")).to_have_text("sent")
    assert page.evaluate("window.isTheSame")
    expect(beside(page).get_by_role("link", name="simulate: succeeded")).to_be_visible()
    page.click("text=See what happens to it")
    page.get_by_role("link", name="simulate").first.click()
    expect(page.locator(".timeline")).to_contain_text("Job succeeded")


def until(page: Page, is_so: Callable[[], bool], seconds: float = 60) -> None:
    for _ in range(int(seconds * 20)):
        if is_so():
            return
        page.wait_for_timeout(50)
    raise AssertionError("not so in time")


def test_a_scheduled_mail_is_canceled_and_a_held_one_released(page: Page, up: Service) -> None:
    later = up.post("/v1/messages", to="later@example.org", subject="Later", delay=3600)
    page.goto(f"/messages/{later}")
    expect(page.locator("h1 .badge")).to_have_text("scheduled")
    page.get_by_role("button", name="Hold").click()
    expect(page.locator("h1 .badge")).to_have_text("held")
    page.goto("/dashboard")
    expect(page.locator(".needs")).to_contain_text("Later")
    page.goto(f"/messages/{later}")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("h1 .badge")).to_have_text("canceled")
    expect(page.get_by_role("status")).to_have_text("Canceled.")
    now = up.post("/v1/messages", to="later@example.org", subject="Rather now", delay=3600)
    page.goto(f"/messages/{now}")
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("h1 .badge")).to_have_text("sent")


def test_a_mail_that_the_dial_lets_fail_is_tried_again(page: Page, up: Service) -> None:
    page.goto("/inbox/")
    page.click("text=Make the next mail fail")
    page.select_option("#failure", "refuse")
    page.get_by_role("button", name="Set").click()
    expect(page.get_by_role("status")).to_contain_text("refused (550)")
    id = up.post("/v1/messages", to="chaos@example.org", subject="Refused first")
    page.goto(f"/messages/{id}")
    expect(page.locator("h1 .badge")).to_have_text("failed")
    expect(page.locator(".why")).to_contain_text("550 5.7.1 refused, as the inbox was told to")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("h1 .badge")).to_have_text("sent")
    expect(page.locator(".timeline")).to_contain_text("Retried")
    for failure, said in (("defer", "451 4.3.0 deferred"), ("drop", "no reply")):
        up.request("PUT", "/inbox/api/failure", {"failure": failure})
        page.goto(f"/messages/{up.post('/v1/messages', to='chaos@example.org', subject=failure)}")
        expect(page.locator(".why")).to_contain_text(said)
        page.get_by_role("button", name="Try now").click()
        expect(page.locator("h1 .badge")).to_have_text("sent")
    page.goto("/inbox/?to=chaos@example.org")
    expect(page.get_by_role("link", name="drop")).to_have_count(2)


def test_a_template_shows_what_a_mail_would_say_while_it_is_written(page: Page) -> None:
    page.goto("/templates/browser")
    page.fill("#subject", "Order {{ order }}")
    page.fill("#html", "<style>b { color: rgb(1, 2, 3) }</style><b>{{ name }}</b>")
    preview = page.frame_locator("iframe.preview")
    expect(preview.get_by_role("heading", name="Order 42")).to_be_visible()
    bold = preview.frame_locator("iframe").locator("b")
    expect(bold).to_have_text("Bob")
    expect(bold).to_have_css("color", "rgb(1, 2, 3)")
    steps = page.evaluate("history.length")
    page.fill("#variables", "{}")
    expect(preview.get_by_role("alert")).to_contain_text("order")
    # Back leads out of the editor, and not through what was typed.
    assert page.evaluate("history.length") == steps
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_have_text("Saved.")


def test_the_code_is_copied_and_runs(page: Page, up: Service, tmp_path: Path) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto("/compose")
    page.fill("#to", "code@example.org")
    page.fill("#subject", "It's code")
    expect(page.locator("#as-curl")).to_contain_text("s code")
    page.locator("[data-copy=as-curl]").click()
    expect(page.locator("[data-copy=as-curl]")).to_have_text("Copied")
    command = page.evaluate("navigator.clipboard.readText()")
    answer = json.loads(subprocess.check_output(["bash", "-c", command], text=True))
    assert up.final(answer["id"])["subject"] == "It's code"
    python = page.locator("#as-python").text_content()
    assert python
    subprocess.run([sys.executable, "-c", python], check=True, timeout=60)


def test_slash_goes_to_the_search_and_typing_there_stays_there(page: Page) -> None:
    page.goto("/messages")
    page.keyboard.press("/")
    page.keyboard.type("a/b")
    expect(page.locator("#q")).to_have_value("a/b")
    page.keyboard.press("Enter")
    expect(page).to_have_url(f"{page.url.partition('/messages')[0]}/messages?q=a%2Fb&status=&to=")


def test_what_happens_is_shown_where_streams_cannot_be_had(browser: Browser, up: Service) -> None:
    with visit(browser, up.url, but="503") as page:
        page.route("**/live", lambda route: route.fulfill(status=503, body="no"))
        page.goto("/messages?to=poll@example.org")
        expect(page.locator("#live-state")).to_contain_text("Refreshes every 3 seconds")
        up.post("/v1/messages", to="poll@example.org", subject="Seen all the same")
        expect(page.get_by_role("link", name="Seen all the same")).to_be_visible()


def test_a_page_that_nobody_sees_holds_no_stream(page: Page, up: Service) -> None:
    with page.expect_request("**/live"):
        page.goto("/messages?to=hidden@example.org")
    expect(page.locator("#live-state")).to_have_text("Updates live.")
    hide = (
        "Object.defineProperty(document, 'hidden', {value: %s, configurable: true}); "
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    page.evaluate(hide % "true")
    up.post("/v1/messages", to="hidden@example.org", subject="While hidden")
    up.final(up.get("/v1/messages?to=hidden@example.org")["data"][0]["id"])
    expect(page.get_by_role("link", name="While hidden")).to_have_count(0)
    with page.expect_request("**/live"):
        page.evaluate(hide % "false")
    expect(page.get_by_role("link", name="While hidden")).to_be_visible()


def test_a_look_that_fails_leaves_what_was_shown(browser: Browser, up: Service) -> None:
    up.post("/v1/messages", to="away@example.org", subject="Still here")
    with visit(browser, up.url, but="503") as page:
        page.goto("/messages?to=away@example.org")
        expect(page.get_by_role("link", name="Still here")).to_be_visible()
        page.route(
            "**/messages?*",
            lambda route: route.fulfill(
                status=503, content_type="text/html", body="<div id=live>away</div>"
            ),
        )
        with page.expect_response(lambda answer: answer.status == 503):
            page.evaluate("document.body.dispatchEvent(new CustomEvent('changed'))")
        page.wait_for_timeout(100)
        expect(page.get_by_role("link", name="Still here")).to_be_visible()


# --- without a script ----------------------------------------------------------------------------------------------


def test_all_can_be_read_and_done_without_a_script(browser: Browser, up: Service) -> None:
    with visit(browser, up.url, java_script_enabled=False) as page:
        page.goto("/compose")
        page.fill("#to", "plain@example.org")
        page.fill("#subject", "Without a script")
        page.get_by_role("button", name="Show as code").click()
        expect(page.locator("#as-curl")).to_contain_text('"subject": "Without a script"')
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".card.sent")).to_contain_text("Accepted")
        page.click("text=See what happens to it")
        until(
            page, lambda: bool(page.reload()) and page.locator("h1 .badge").text_content() == "sent"
        )
        page.click("text=See it in the inbox")
        page.get_by_role("link", name="Without a script").click()
        page.get_by_role("link", name="Headers").click()
        expect(page.locator(".headers")).to_contain_text("Message-ID")
        page.get_by_role("button", name="Delete this mail").click()
        page.goto("/inbox/?to=plain@example.org")
        expect(page.get_by_text("No mail to this address")).to_be_visible()
        id = up.post("/v1/messages", to="plain@example.org", subject="Wait", delay=3600)
        page.goto("/messages?q=wait&status=scheduled")
        page.get_by_role("link", name="Wait").click()
        page.get_by_role("button", name="Hold").click()
        page.get_by_role("button", name="Release").click()
        assert up.final(id)["status"] == "sent"
        page.goto("/templates/plain")
        page.fill("#subject", "Hello")
        page.fill("#text", "{{ name }}")
        page.get_by_role("button", name="Preview").click()
        expect(page.frame_locator("iframe.preview").locator("pre")).to_contain_text("Bob")
        page.goto("/inbox/")
        assert page.locator("meta[http-equiv=refresh]").count() == 1  # It looks again all the same.


# --- hostile mail --------------------------------------------------------------------------------------------------


class Trap(ThreadingHTTPServer):
    """Notes whoever comes."""

    daemon_threads = True

    def __init__(self) -> None:
        self.seen: list[str] = []
        trap = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap.seen.append(self.path)
                self.send_response(204)
                self.end_headers()

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


HOSTILE = """<html><head><meta http-equiv="refresh" content="0;url={url}/refresh"><base href="{url}/base/">
<link rel="stylesheet" href="{url}/link.css"><link rel="prefetch" href="{url}/prefetch"><link rel="dns-prefetch" href="{url}">
<style>@import url({url}/import.css); body {{ background: url({url}/background.png); }}
@font-face {{ font-family: x; src: url({url}/font.woff); }} p {{ font-family: x; }}</style></head>
<body onload="fetch('{url}/onload')"><script>document.title = 'pwned'; fetch('{url}/script'); top.location = '{url}/top';</script>
<script src="{url}/script.js"></script><img src="{url}/pixel.gif"><img src=x onerror="fetch('{url}/onerror')">
<svg onload="fetch('{url}/svg')"><image href="{url}/svg.png"/></svg><video src="{url}/video" poster="{url}/poster" autoplay></video>
<iframe src="{url}/iframe"></iframe><iframe srcdoc="<img src='{url}/srcdoc'>"></iframe>
<object data="{url}/object"></object><embed src="{url}/embed">
<form action="{url}/form" id=f><input name=a autofocus onfocus="f.submit()"></form><p>Dear reader</p>
<a href="javascript:fetch('{url}/javascript')" id=js>click</a><button form=f id=press>press</button></body></html>"""


def test_a_hostile_mail_runs_nothing_and_fetches_nothing(browser: Browser, up: Service) -> None:
    trap = Trap()
    threading.Thread(target=trap.serve_forever, daemon=True).start()
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = (
        "<script>document.title='pwned'</script>",
        "<img src=x onerror=alert(1)>",
        "x@example.org",
    )
    mail.set_content("<script>document.title='pwned'</script>")
    mail.add_alternative(HOSTILE.format(url=trap.url), subtype="html")
    with SMTP("127.0.0.1", int(up.settings["INBOX_SMTP_PORT"])) as session:
        session.sendmail("evil@example.org", ["hostile@example.org"], mail.as_bytes())
    [letter] = up.get("/inbox/api/messages?to=hostile@example.org&wait=10")["data"]
    id = up.post(
        "/v1/messages",
        to="hostile2@example.org",
        subject="<script>document.title='pwned'</script>",
        html=HOSTILE.format(url=trap.url),
        contents=None,
    )
    # What the browser refuses, it says on the console; that is as it should be.
    with visit(browser, up.url, but=f"Content Security Policy|sandbox|Blocked|{trap.url}") as page:
        for path in (
            f"/inbox/{letter['id']}",
            f"/inbox/{letter['id']}?view=text",
            f"/inbox/{letter['id']}?view=source",
            "/inbox/",
            f"/inbox/{letter['id']}?view=links",
            f"/messages/{id}?view=html",
            f"/messages/{id}?view=text",
            "/messages",
            f"/messages/{id}?view=source",
            f"/compose?again={id}",
            "/dashboard",
        ):
            page.goto(path)
            if path.endswith((letter["id"], "view=html")):
                inner = page.frame_locator(".view iframe")
                expect(inner.get_by_text("Dear reader")).to_be_visible()
                inner.locator("#js").click()
                inner.locator("#press").click()
            page.wait_for_timeout(300)  # For what would happen by itself.
            assert page.title() != "pwned"
            assert page.url.endswith(path), "it went somewhere else"
        page.goto(f"/inbox/{letter['id']}/html")
        expect(page.get_by_text("Dear reader")).to_be_visible()
        page.wait_for_timeout(300)
        assert page.title() != "pwned"
    trap.shutdown()
    trap.server_close()
    assert trap.seen == []


# --- signing in ----------------------------------------------------------------------------------------------------


def test_who_signs_in_is_let_in_and_who_may_only_read_cannot_act(
    browser: Browser, tmp_path: Path
) -> None:
    with service(
        tmp_path,
        INBOX_SMTP_PORT=str(free_port()),
        SIMULATED_WORK_SECONDS="0",
        API_KEY="s3cret-key",
        DATABASE_URL=f"sqlite:///{tmp_path}/up.sqlite3",
    ) as closed:
        closed.upgrade()
        closed.up()
        with visit(browser, closed.url, but="403") as page:
            page.goto("/messages?status=sent")
            expect(page).to_have_title("Sign in")
            page.fill("#key", "wrong")
            page.get_by_role("button", name="Sign in").click()
            expect(page.get_by_role("alert")).to_contain_text("not an API key of this service")
            page.fill("#key", "s3cret-key")
            page.keyboard.press("Enter")
            expect(page).to_have_url(f"{closed.url}/messages?status=sent")
            page.goto("/keys")
            page.fill("#name", "viewer")
            page.get_by_label("send", exact=False).first.uncheck()
            page.get_by_label("read: see everything").check()
            page.get_by_role("button", name="Create").click()
            viewer = page.locator("#new-key").text_content()
            compose(page, to="bob@example.org", subject="By form")
            expect(beside(page).get_by_role("link", name="By form")).to_be_visible()
            page.get_by_role("button", name="Sign out").click()
            expect(page).to_have_title("Sign in")
            page.fill("#key", str(viewer))
            page.keyboard.press("Enter")
            expect(page.get_by_role("link", name="By form").first).to_be_visible()
            page.get_by_role("link", name="By form").first.click()
            expect(page.locator(".timeline")).to_contain_text("Sent")
            expect(page.get_by_role("button", name="Resend to all")).to_have_count(0)
            page.goto("/compose")
            expect(page.get_by_role("heading")).to_have_text("The API key may not do this")
            page.goto("/inbox/")
            expect(page.get_by_role("button", name="Delete all")).to_have_count(0)
        with visit(browser, closed.url) as stranger:
            stranger.goto("/inbox/")
            expect(stranger).to_have_title("Sign in")


def test_an_open_page_is_sent_to_sign_in_when_its_session_is_over(
    browser: Browser, tmp_path: Path
) -> None:
    with service(
        tmp_path,
        INBOX_SMTP_PORT=str(free_port()),
        API_KEY="s3cret-key",
        DATABASE_URL=f"sqlite:///{tmp_path}/up.sqlite3",
    ) as closed:
        closed.upgrade()
        closed.up()
        with visit(browser, closed.url) as page:
            page.goto("/dashboard")
            page.fill("#key", "s3cret-key")
            page.keyboard.press("Enter")
            expect(page.locator(".verdict")).to_be_visible()
            page.context.clear_cookies()
            page.evaluate("document.body.dispatchEvent(new CustomEvent('changed'))")
            expect(page).to_have_title("Sign in")


# --- the pair ------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    with service(
        tmp_path,
        BROKER_URL=broker_url,
        DATABASE_URL=sqlite_url,
        **to_smtpd | {"RETRY_SCHEDULE": "1h*3"},
    ) as made:
        made.upgrade()
        yield made


def test_on_rabbitmq_the_pages_show_what_the_worker_does(
    browser: Browser, two: Service, smtpd: ScriptedSMTP
) -> None:
    two.web()
    with visit(browser, two.url) as page:
        page.goto("/dashboard")
        expect(page.locator(".verdict")).to_contain_text("No worker was ever seen")
        page.evaluate("window.isTheSame = true")
        id = two.post("/v1/messages", subject="On RabbitMQ")
        expect(page.get_by_role("link", name="On RabbitMQ")).to_be_visible()
        two.worker()
        expect(page.locator(".verdict")).to_contain_text("Mail flows; 1 sent in the last hour.")
        assert page.evaluate("window.isTheSame")
        smtpd.reply("RCPT", "451 4.7.1 later, please")
        id = two.post("/v1/messages", subject="Deferred first")
        page.goto(f"/messages/{id}")
        expect(page.locator("h1 .badge")).to_have_text("deferred")
        expect(page.locator(".why")).to_contain_text("451 4.7.1 later, please")
        expect(page.locator(".timeline")).to_contain_text("Next attempt")
        page.get_by_role("button", name="Try now").click()
        expect(page.locator("h1 .badge")).to_have_text("sent")
        compose(
            page,
            to="bob@example.org",
            subject="{{ job.status }}",
            contents="x",
            job="simulate",
            job_args='{"seconds": 2}',
        )
        expect(page.locator("#progress")).to_be_visible()
        expect(page.locator(".card.sent .badge")).to_have_text("sent")
        page.goto("/jobs")
        page.get_by_role("link", name="simulate").first.click()
        expect(page.locator("h1 .badge")).to_have_text("succeeded")


# --- for everybody -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(up: Service) -> dict[str, str]:
    """The pages, by name, with something on each of them."""
    sent = up.post(
        "/v1/messages",
        to=["axe@example.org", "two@example.org"],
        subject="All of it",
        html="<h1>Hi</h1>",
        contents=None,
        attachments=[{"filename": "a.txt", "content": "aGk="}],
        tags=["one"],
        metadata={"order": "1"},
    )
    up.final(sent)
    held = up.post("/v1/messages", to="axe@example.org", subject="Held", delay=3600)
    up.request("POST", f"/v1/messages/{held}/hold")
    job = up.request("POST", "/v1/jobs", {"name": "simulate", "args": {"seconds": 0.1}})[1]["id"]
    up.request("PUT", "/v1/templates/axe", {"subject": "S", "text": "T"})
    up.request("POST", "/v1/suppressions", {"address": "gone@example.org", "detail": "asked"})
    hook = up.request(
        "POST", "/v1/webhooks", {"url": "https://hooks.invalid/", "events": ["message.expired"]}
    )[1]["id"]
    up.request("POST", f"/v1/webhooks/{hook}/test")
    letter = up.get("/inbox/api/messages?to=axe@example.org&wait=10")["data"][0]["id"]
    return {
        "home": "/",
        "dashboard": "/dashboard",
        "messages": "/messages",
        "message": f"/messages/{sent}",
        "held": f"/messages/{held}",
        "code": f"/messages/{sent}?view=code",
        "compose": "/compose",
        "jobs": "/jobs",
        "job": f"/jobs/{job}",
        "templates": "/templates",
        "template": "/templates/axe",
        "suppressions": "/suppressions",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{hook}",
        "keys": "/keys",
        "inbox": "/inbox/",
        "letter": f"/inbox/{letter}",
        "headers": f"/inbox/{letter}?view=headers",
        "attachments": f"/inbox/{letter}?view=attachments",
        "not found": "/messages/none",
    }


def test_nothing_keeps_anybody_out(browser: Browser, up: Service, seen: dict[str, str]) -> None:
    """In light and in dark; and no page is wider than a narrow window."""
    found: dict[str, list[str]] = {}
    with visit(browser, up.url, but="404", bypass_csp=True) as page:
        for name, path in seen.items():
            page.goto(path)
            assert page.locator("h1").count() == 1, name
            page.evaluate(AXE)
            result = page.evaluate("axe.run(document, {iframes: true})")
            assert len(result["passes"]) > 10
            page.emulate_media(color_scheme="dark")
            page.reload()  # Else colours would be on their way from the one to the other.
            page.evaluate(AXE)
            dark = page.evaluate("axe.run(document, {iframes: true, runOnly: ['color-contrast']})")
            violations = result["violations"] + dark["violations"]
            found |= (
                {
                    name: [
                        f"{one['id']}: {one['nodes'][0]['html']}: {one['nodes'][0]['failureSummary']}"
                        for one in violations
                    ]
                }
                if violations
                else {}
            )
            page.emulate_media(color_scheme="light")
            for width in (320, 1280):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert found == {}
