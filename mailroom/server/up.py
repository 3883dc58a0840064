"""Runs everything in one process: web, worker, database and inbox, which is `flask up`."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from flask import Flask

from mailroom.api.http import prefer_wait
from mailroom.config.accounts import accounts, next_hop
from mailroom.config.settings import UP_FILE, Settings, SettingsError
from mailroom.inbox import Chaos, Inbox, InboxStorage, PortTaken
from mailroom.model.errors import MailroomError
from mailroom.server import watch
from mailroom.server.embedded_worker import EmbeddedWorker
from mailroom.server.process import at_exit, end_child, start_child
from mailroom.server.serve import (
    CreateApp,
    curl,
    inbox_blueprint,
    refuse_keyless,
    refuse_taken_port,
    say,
    serve,
    url,
)
from mailroom.server.submission import UP_PORT, start_submission
from mailroom.store.db.database import Database
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.workers import Heartbeat
from mailroom.worker import runtime


def up(create_app: CreateApp, settings: Settings, deliver: bool) -> None:
    """Serve with a worker and an inbox in the same process; without `deliver` all mail goes to the inbox."""
    if settings.embedded:
        settings = replace(settings, BROKER_URL="memory://localhost/")
    if not deliver:
        settings = _to_inbox(settings)
    refuse_taken_port("127.0.0.1", settings.INBOX_SMTP_PORT, "INBOX_SMTP_PORT")
    serve(settings, loader=partial(all_in_one, create_app, settings, deliver))


def _to_inbox(settings: Settings) -> Settings:
    """Leave all real accounts and their mailboxes alone; only the address in From is the first one's."""
    sender = accounts(settings)[0].sender
    return replace(
        settings,
        ACCOUNTS_FILE="",
        MAIL_FROM=sender.address,
        SMTP_HOST="127.0.0.1",
        SMTP_PORT=settings.INBOX_SMTP_PORT,
        SMTP_SECURITY="none",
        SMTP_AUTH="off",
        IMAP_HOST="off",
    )


def all_in_one(create_app: CreateApp, settings: Settings, deliver: bool) -> Flask:
    """Make the application, a worker thread and the inbox; runs in granian's child process."""
    storage, chaos = InboxStorage(), Chaos()
    start_child(settings, prefer_wait.stop, storage.stop, watch.stop)
    runtime.configure(settings)
    smtp = Inbox(port=settings.INBOX_SMTP_PORT, storage=storage, chaos=chaos)
    try:
        smtp.start()
        database = runtime.open_database(settings, file_name=UP_FILE)
        refuse_keyless(settings, database)
    except (MailroomError, PortTaken, SettingsError) as e:
        end_child(e)
    if settings.embedded:
        give_back_everything(settings, database)
    app = create_app(settings, database=database)
    app.register_blueprint(inbox_blueprint(storage, chaos, hint=curl(settings)))
    at_exit(smtp.stop)
    at_exit(start_worker(database))
    submission = start_submission(
        app,
        settings,
        port=settings.SUBMISSION_PORT or UP_PORT,
        is_needed=bool(settings.SUBMISSION_PORT),
    )
    say_addresses(settings, deliver, submission)
    return app


def give_back_everything(settings: Settings, database: Database) -> None:
    """Queue all unfinished mail and jobs again: the broker is empty, and earlier workers have ended."""
    sweeps = runtime.sweeps_of(settings, database)
    Heartbeat(database, "", "", []).stop_others()
    sweeps.orphans()
    JobClaims(database, "", settings.LEASE_SECONDS).orphans()
    sweeps.forget_nudges()


def start_worker(database: Database) -> Callable[[], None]:
    """Run a Celery worker in a thread of this process; return the function that stops it."""
    runtime.share_database(database)
    worker = EmbeddedWorker(
        runtime.process.celery_app, stop_claiming=runtime.stop_claiming, close=runtime.close_worker
    )
    worker.start()
    return worker.stop


def say_addresses(settings: Settings, deliver: bool, submission: str) -> None:
    remark = "" if deliver else ", the inbox; --deliver sends it for real"
    broker = (
        "in this process; set MAILASYNC_BROKER_URL for RabbitMQ"
        if settings.embedded
        else "RabbitMQ"
    )
    say(
        f"mailasync runs at  {url(settings)}",
        f"how it goes        {url(settings)}/dashboard",
        f"read the mail at   {url(settings)}/inbox/",
        f"SMTP for programs  {submission}",
        f"mail goes to       {next_hop(settings)}{remark}",
        f"broker             {broker}",
        "",
        "send one:",
        curl(settings),
        "",
    )
