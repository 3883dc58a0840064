"""HTTP in: the Flask application, and what it is made of.

    python3 app.py            serve on port 5000; a worker is `celery -A mailasync worker --loglevel=INFO` in a second terminal
    flask up                  everything in one process, with a disposable inbox

The tutorial this service began with is three lines in a route; here is where each went:

    request.get_json()        mailroom/api/routes/messages.py reads bytes, mailroom/submission/message.py says what is wrong with them
    sendMail.delay(...)       the message is committed first (mailroom/store/messages/outbox.py), then `sendMail.delay(id)` carries its id
    return "sent", 200        the answer has the id, with which `GET /v1/messages/<id>` tells where the mail is
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from flask import Blueprint, Flask
from werkzeug.utils import import_string

import mailasync
from mailroom import cli, web
from mailroom.api import problems
from mailroom.api.auth import guard, rate_limits
from mailroom.api.auth.sessions import BrowserSessions
from mailroom.api.http import prefer_wait
from mailroom.api.openapi import document, queries
from mailroom.api.routes import accounts as api_accounts
from mailroom.api.routes import (
    actions,
    health,
    jobs,
    messages,
    metrics,
    suppressions,
    templates,
    unsubscribe,
    webhooks,
)
from mailroom.api.services import Services
from mailroom.broker.connection import bounded_connection
from mailroom.cli.database import choose, db_upgrade, opened, pair
from mailroom.cli.doctor import Doctor, Finding
from mailroom.config.accounts import accounts, next_hop
from mailroom.config.settings import UP_FILE, Settings, SettingsError, database_url, load
from mailroom.inbox import Chaos, Inbox, InboxStorage, PortTaken
from mailroom.model.errors import MailroomError, WrongDatabaseURL
from mailroom.server import watch
from mailroom.server.embedded_worker import EmbeddedWorker
from mailroom.server.process import at_exit, end_child, start_child
from mailroom.server.serve import beside, curl, inbox, refuse_keyless, refuse_taken, say, serve, url
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.events.webhooks import Webhooks
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import Jobs
from mailroom.store.keys.api_keys import ApiKeys
from mailroom.store.keys.sign_outs import SignOuts
from mailroom.store.keys.signing import secret
from mailroom.store.maintenance.health import Readiness
from mailroom.store.messages.actions import Actions
from mailroom.store.messages.idempotency import Keys
from mailroom.store.messages.outbox import Outbox
from mailroom.store.messages.suppressions import Suppressions, Unsubscribes
from mailroom.store.templates import Templates
from mailroom.store.workers import Heartbeat
from mailroom.worker import runtime

log = logging.getLogger("mailasync.web")


class Application(Flask):
    """Flask looks at each hook and view of each request whether it is a coroutine; none of ours is."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


def create_app(
    settings: Settings | None = None, *blueprints: Blueprint, database: Database | None = None
) -> Flask:
    """Make the application, with these blueprints of one's own. It starts no thread and opens no connection before the first request."""
    settings = settings or load()
    runtime.configure(settings)
    try:
        database = database or Database(database_url(settings))
    except WrongDatabaseURL as e:
        raise SettingsError(str(e)) from None
    known, orders, outbox = accounts(settings), runtime.orders(settings, database), Outbox(database)
    app = Application(__name__)
    app.config["MAX_CONTENT_LENGTH"] = settings.REQUEST_MAX_BYTES  # Flask itself has no limit.
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of the default provider
    app.extensions["mailasync"] = Services(
        settings=settings,
        outbox=outbox,
        readiness=Readiness(outbox),
        actions=Actions(database),
        jobs=Jobs(database, settings.LEASE_SECONDS),
        keys=Keys(database),
        api_keys=ApiKeys(database),
        orders=orders,
        webhooks=Webhooks(database),
        accounts=Accounts(database, [account.budget for account in known]),
        known_accounts=known,
        suppressions=Suppressions(database),
        unsubscribes=Unsubscribes(database, settings.PUBLIC_URL),
        templates=Templates(database),
        publisher=lambda: runtime.start_publisher(database),
        send=send,
        run=lambda job: mailasync.runJob.apply_async((job.id,), queue=job.queue),
    )
    BrowserSessions(partial(secret, database, "session"), SignOuts(database)).attach(app)
    metrics.watch(app)  # First of all hooks, so that a refusal has an id too.
    app.before_request(guard.check)
    app.before_request(
        partial(start_publisher, database)
    )  # In the process that serves, whichever server that is.
    ours = (
        problems,
        queries,
        rate_limits,
        messages,
        actions,
        jobs,
        api_accounts,
        health,
        metrics,
        suppressions,
        templates,
        unsubscribe,
        webhooks,
        document,
    )
    for blueprint in (*(module.blueprint for module in ours), *web.BLUEPRINTS, *blueprints):
        app.register_blueprint(blueprint)
    for command in cli.commands(
        up=partial(up, settings),
        inbox=partial(inbox, settings),
        upgrade=partial(db_upgrade, settings),
        examine=partial(examine, settings),
        settings=settings,
        opened=partial(opened, settings),
        opened_pair=partial(opened, settings, pair(settings)),
        message_id=orders.message_id,
        working=partial(working, app, settings),
    ):
        app.cli.add_command(command)
    return app


def start_publisher(database: Database) -> None:
    runtime.start_publisher(database)


def send(ids: Sequence[str], queue: str) -> None:
    for id in ids:
        mailasync.sendMail.apply_async((id,), queue=queue)


def main(*blueprints: str) -> None:
    """Serve on HOST and PORT; accepts mail whether a worker and RabbitMQ are there or not.

    `blueprints` of one's own are named, "package.module:blueprint", as the process that serves imports them anew.
    """
    settings = load()
    if settings.BROKER_URL.startswith("memory:"):
        sys.exit(
            "mailasync: memory:// is for `flask up`, where web and worker are one process; set another MAILASYNC_BROKER_URL"
        )
    serve(settings, loader=partial(serving_app, settings, *blueprints))


def up(settings: Settings, deliver: bool) -> None:
    """Serve, with a worker and an inbox in the same process."""
    if settings.embedded:
        settings = replace(settings, BROKER_URL="memory://localhost/")
    if not deliver:
        settings = replace(
            settings,
            SMTP_HOST="127.0.0.1",
            SMTP_PORT=settings.INBOX_SMTP_PORT,
            SMTP_SECURITY="none",
            SMTP_AUTH="off",
        )
    refuse_taken("127.0.0.1", settings.INBOX_SMTP_PORT, "INBOX_SMTP_PORT")
    serve(settings, loader=partial(all_in_one, settings, deliver))


@contextmanager
def working(app: Flask, settings: Settings) -> Iterator[Services]:
    """Yield the services of the API for a command: on the database that it is about, and without a thread."""
    choice, served = choose(settings), app.extensions["mailasync"]
    alone = (
        choice.is_up and settings.embedded
    )  # The broker is inside that process; its sweeper finds what is new.
    with opened(settings, choice) as database, app.app_context():
        app.extensions["mailasync"] = found = replace(
            served,
            outbox=Outbox(database),
            orders=runtime.orders(settings, database),
            publisher=lambda: None,
            send=(lambda id, queue: None) if alone else partial(nudge, database),
            run=(lambda job: None) if alone else served.run,
        )
        try:
            yield found
        finally:
            app.extensions["mailasync"] = served


def nudge(database: Database, id: str, queue: str) -> None:
    """Tell a worker of one message from a process without a publisher; ends in seconds, and raises what kombu raises."""
    started = time.monotonic()
    mailasync.sendMail.apply_async(([id], database.outbox_id), queue=queue)
    Outbox(database).mark_published([id], seconds_ago=time.monotonic() - started)


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield the findings of `flask doctor`."""
    choice = choose(settings)
    database = Database(choice.url)
    try:
        yield from Doctor(
            settings,
            database,
            accounts(settings),
            None if choice.is_up and settings.embedded else partial(bounded_connection, mailasync.celery_app),
        ).examine()
    finally:
        database.close()


def serving_app(settings: Settings, *blueprints: str) -> Flask:
    """In granian's child: the application on its opened database."""
    start_child(settings, prefer_wait.stop, watch.stop)
    try:
        database = runtime.open_database(settings)
        refuse_keyless(settings, database)
    except (MailroomError, SettingsError) as e:
        end_child(e)
    app = create_app(settings, *map(import_string, blueprints), database=database)
    runtime.start_publisher(database)
    at_exit(runtime.stop_publisher)
    hop = next_hop(settings)
    say(
        f"mailasync listens on {url(settings)}",
        f"mail goes to {hop}"
        + (" (flask inbox)" if hop.host == "127.0.0.1" and not settings.SMTP_HOST else ""),
        "a worker, in a second terminal: celery -A mailasync worker --loglevel=INFO",
    )
    if Outbox(database).worker_seen_ms_ago() is None:
        log.warning(
            "no worker is running; mail is accepted and kept until one is: celery -A mailasync worker --loglevel=INFO"
        )
    return app


def all_in_one(settings: Settings, deliver: bool) -> Flask:
    """In granian's child: the application, a worker thread and the inbox."""
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
    if settings.embedded:  # The broker is new and empty, and whoever worked here before has ended.
        sweeps = runtime.sweeps_of(settings, database)
        Heartbeat(database, "", "", []).stop_others()
        sweeps.orphans()
        JobClaims(database, "", settings.LEASE_SECONDS).orphans()
        sweeps.forget_nudges()
    app = create_app(settings, database=database)
    app.register_blueprint(beside(storage, chaos, hint=curl(settings)))
    at_exit(smtp.stop)
    at_exit(work_here(database))
    say(
        f"mailasync runs at  {url(settings)}",
        f"how it goes        {url(settings)}/dashboard",
        f"read the mail at   {url(settings)}/inbox/",
        f"mail goes to       {next_hop(settings)}"
        + ("" if deliver else ", the inbox; --deliver sends it for real"),
        f"broker             {'in this process; set MAILASYNC_BROKER_URL for RabbitMQ' if settings.embedded else 'RabbitMQ'}",
        "",
        "send one:",
        curl(settings),
        "",
    )
    return app


def work_here(database: Database) -> Callable[[], None]:
    """Run a Celery worker in a thread of this process; return what ends it."""
    runtime.share_database(database)
    worker = EmbeddedWorker(
        mailasync.celery_app, stop_claiming=runtime.stop_claiming, close=runtime.close_worker
    )
    worker.start()
    return worker.stop


if __name__ == "__main__":
    main()
