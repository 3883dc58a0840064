"""Takes pictures of all pages, with something on each of them: `python -m tests.tools.pictures --help`."""

import argparse
import math
import os
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from sqlalchemy import select

from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import samples, tallies
from mailroom.store.events.counters import MINUTE_MS
from tests.services import free_port, wait_until
from tests.services.chromium import ARGUMENTS, find_chromium
from tests.services.processes import PROJECT, Service, service

DOCS = PROJECT / "docs" / "img"
#: Those that README and docs/ show.
SHOWN = ("dashboard", "inbox", "compose", "message")
THANKS = (
    "<h1 style='color: #14672c'>Thank you!</h1><p>Your order {n} is on its way. "
    "<a href='https://shop.example/track/{n}'>Follow it</a>.</p>"
)


def fill(up: Service) -> dict[str, str]:
    """Something of each kind; return the paths of all pages by name."""
    for n in range(1000, 1012):
        sent = up.post(
            "/v1/messages",
            to=[f"customer{n}@example.org", *(["accounts@example.org"] if n % 3 == 0 else [])],
            contents=None,
            subject=f"Order {n} is on its way",
            html=THANKS.format(n=n),
            tags=["order"],
            metadata={"order": str(n)},
        )
    up.final(sent)
    up.request("PUT", "/inbox/api/failure", {"failure": "refuse", "count": 2})
    failed = [
        up.post("/v1/messages", to="gone@example.org", subject="Your invoice") for _ in range(2)
    ]
    assert {up.final(id)["status"] for id in failed} == {"failed"}
    up.request("PUT", "/inbox/api/failure", {"failure": "defer"})
    deferred = up.post("/v1/messages", to="busy@example.org", subject="Reset your password")
    wait_until(lambda: up.message(deferred)["status"] == "deferred", what="one is deferred")
    held = up.post("/v1/messages", to="board@example.org", subject="Quarterly numbers", delay=3600)
    up.request("POST", f"/v1/messages/{held}/hold")
    up.post("/v1/messages", to="later@example.org", subject="Renew by Friday", delay=7200)
    ended = up.request(
        "POST",
        "/v1/jobs",
        {"name": "simulate", "args": {"seconds": 1}, "notify": {"to": "ops@example.org"}},
    )[1]["id"]
    waiting = up.post(
        "/v1/messages",
        to="ops@example.org",
        subject="{{ job.name }}: {{ job.status }}",
        job={"name": "simulate", "args": {"seconds": 300}},
    )
    up.request(
        "PUT",
        "/v1/templates/receipt",
        {
            "subject": "Order {{ order }}",
            "html": "<style>b { color: #14672c }</style><p>Thank you, <b>{{ name }}</b>.</p>",
        },
    )
    up.request(
        "POST", "/v1/suppressions", {"address": "nomore@example.org", "detail": "asked by phone"}
    )
    hook = up.request(
        "POST",
        "/v1/webhooks",
        {"url": "https://hooks.invalid/mail", "events": ["message.sent", "message.failed"]},
    )[1]["id"]
    up.request("POST", f"/v1/webhooks/{hook}/test")
    letter = up.get("/inbox/api/messages?to=customer1011@example.org&wait=10")["data"][0]["id"]
    wait_until(
        lambda: up.get(f"/v1/jobs/{ended}")["status"] == "succeeded", what="the job has ended"
    )
    return {
        "home": "/",
        "dashboard": "/dashboard",
        "messages": "/messages",
        "message": f"/messages/{sent}",
        "failed": f"/messages/{failed[0]}",
        "waiting": f"/messages/{waiting}",
        "code": f"/messages/{sent}?view=code",
        "compose": "/compose",
        "jobs": "/jobs",
        "job": f"/jobs/{ended}",
        "templates": "/templates",
        "template": "/templates/receipt",
        "suppressions": "/suppressions",
        "webhooks": "/webhooks",
        "webhook": f"/webhooks/{hook}",
        "keys": "/keys",
        "inbox": "/inbox/",
        "letter": f"/inbox/{letter}",
    }


def pretend(url: str) -> None:
    """An hour of a service that is used, so that there is something to draw."""
    database = Database(url)
    with database.engine.begin() as connection:
        now = connection.scalar(select(now_ms() // MINUTE_MS)) or 0
        for ago in range(1, 60):
            sent = 60 + int(25 * math.sin(ago / 6)) + ago * 7 % 13
            slow = 2 if 20 < ago < 28 else 0
            counts = {
                "accepted": sent + ago % 5,
                "sent": sent,
                "failed": int(ago % 19 == 0),
                "sent_le_0.1": sent - 8 - 20 * slow,
                "sent_le_0.5": 6,
                "sent_le_1": 2 + 10 * slow,
                "sent_le_5": 10 * slow,
            }
            connection.execute(
                tallies.insert(),
                [
                    {"minute": now - ago, "event": event, "source": "", "count": count}
                    for event, count in counts.items()
                ],
            )
            connection.execute(
                samples.insert().values(
                    minute=now - ago, waiting=4 + ago % 7 + 40 * slow, oldest_ms=300 + 2500 * slow
                )
            )
    database.close()


def take(
    url: str, paths: dict[str, str], directory: Path, *, width: int, scheme: str, whole: bool = True
) -> None:
    found = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found.program, args=ARGUMENTS, env={**os.environ, **found.environment}
        )
        page = browser.new_context(
            viewport={"width": width, "height": 860},
            color_scheme=scheme,  # type: ignore[arg-type]  # a word
        ).new_page()
        for name, path in paths.items():
            page.goto(url + path)
            # For what is drawn when the page is there: frames, and what has happened since.
            page.wait_for_timeout(700)
            page.screenshot(
                path=directory / (f"{name}.png" if not whole else f"{name}-{width}-{scheme}.png"),
                full_page=whole,
            )
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.pictures", description=__doc__)
    parser.add_argument(
        "--to",
        type=Path,
        help="a directory for all pages, 320 and 1280 pixels wide, in light and dark; "
        "without it those of docs/img are made anew",
    )
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        service(
            Path(directory),
            INBOX_SMTP_PORT=str(free_port()),
            SIMULATED_WORK_SECONDS="0",
            DATABASE_URL=f"sqlite:///{directory}/up.sqlite3",
        ) as up,
    ):
        up.upgrade()
        up.up()
        pretend(up.settings["DATABASE_URL"])
        paths = fill(up)
        if options.to is None:
            DOCS.mkdir(parents=True, exist_ok=True)
            take(
                up.url,
                {name: paths[name] for name in SHOWN},
                DOCS,
                width=1280,
                scheme="light",
                whole=False,
            )
            return
        options.to.mkdir(parents=True, exist_ok=True)
        for width in (320, 1280):
            for scheme in ("light", "dark"):
                take(up.url, paths, options.to, width=width, scheme=scheme)


if __name__ == "__main__":
    main()
