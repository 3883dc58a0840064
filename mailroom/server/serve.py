"""Serves the application, or the inbox alone, until a signal."""

import logging
import os
import socket
import sys
from dataclasses import replace
from functools import partial
from secrets import token_bytes
from typing import Protocol

from flask import Blueprint, Flask
from werkzeug.utils import import_string

from mailroom import web
from mailroom.api.auth import guard
from mailroom.api.auth.sessions import BrowserSessions, form_token, refuse_form
from mailroom.api.http import prefer_wait
from mailroom.api.routes import health, metrics
from mailroom.config.accounts import next_hop
from mailroom.config.environment import notices
from mailroom.config.settings import PREFIX, Settings, SettingsError
from mailroom.inbox import WAITERS_MAX as INBOX_WAITERS_MAX
from mailroom.inbox import AppHooks, Chaos, Inbox, InboxStorage, PortTaken, create_blueprint
from mailroom.model.errors import MailroomError
from mailroom.model.host_names import host_and_port
from mailroom.process import terminal
from mailroom.process.installation import PROGRAM, START_WORKER
from mailroom.process.lazy_import import Lazy
from mailroom.server import watch
from mailroom.server.limits import LIMITS, LONG_BODIES_MAX, Limits
from mailroom.server.process import at_exit, end_child, start_child
from mailroom.server.submission import start_submission
from mailroom.store.db.database import Database
from mailroom.store.keys.api_keys import ApiKeys
from mailroom.store.messages.outbox import Outbox
from mailroom.worker import runtime

log = logging.getLogger("mailasync.web")
server = Lazy("mailroom.server.http_server")

STOP_SECONDS = 20
#: Threads for requests that wait: for a message or job, for events, for a mail in the inbox, and for the rest
#: of a long body.
WAITING_THREADS = (
    prefer_wait.WAITERS_MAX + web.event_stream.STREAMS_MAX + INBOX_WAITERS_MAX + LONG_BODIES_MAX
)


class CreateApp(Protocol):
    """Makes the application; app.py's `create_app` is it."""

    def __call__(
        self,
        settings: Settings | None = None,
        *blueprints: Blueprint,
        database: Database | None = None,
    ) -> Flask: ...


def serve_web(create_app: CreateApp, settings: Settings, *blueprints: str) -> None:
    """Serve on HOST and PORT. Mail is accepted even while no worker and no RabbitMQ is running.

    Your own `blueprints` are named as "package.module:blueprint", and imported by the serving process.
    """
    if settings.BROKER_URL.startswith("memory:"):
        sys.exit(
            f"mailasync: memory:// is for `{PROGRAM} up`, where web and worker are one process; "
            "set another MAILASYNC_BROKER_URL"
        )
    serve(settings, loader=partial(web_app, create_app, settings, *blueprints))


def web_app(create_app: CreateApp, settings: Settings, *blueprints: str) -> Flask:
    """Make the application on its opened database; runs in granian's child process."""
    start_child(settings, prefer_wait.stop, watch.stop)
    try:
        database = runtime.open_database(settings)
        refuse_keyless(settings, database)
    except (MailroomError, SettingsError) as e:
        end_child(e)
    app = create_app(settings, *map(import_string, blueprints), database=database)
    runtime.start_publisher(database)
    at_exit(runtime.stop_publisher)
    start_submission(app, settings, port=settings.SUBMISSION_PORT)
    hop = next_hop(settings)
    is_inbox = hop.host == "127.0.0.1" and not settings.SMTP_HOST
    say(
        f"mailasync listens on {url(settings)}",
        f"mail goes to {hop}{f' ({PROGRAM} inbox)' if is_inbox else ''}",
        f"a worker, in a second terminal: {START_WORKER}",
    )
    if Outbox(database).worker_seen_ms_ago() is None:
        log.warning(
            "no worker is running; mail is accepted and kept until one is: %s", START_WORKER
        )
    return app


def serve_inbox(settings: Settings) -> None:
    """Serve the disposable inbox alone: its SMTP server, and its pages on INBOX_PORT."""
    refuse_taken_port(settings.INBOX_HOST, settings.INBOX_SMTP_PORT, "INBOX_SMTP_PORT")
    alone = replace(settings, HOST=settings.INBOX_HOST, PORT=settings.INBOX_PORT)
    serve(alone, loader=partial(inbox_app, alone, settings), port_setting="INBOX_PORT")


def serve(
    settings: Settings,
    *,
    loader: "partial[Flask]",
    port_setting: str = "PORT",
    limits: Limits = LIMITS,
) -> None:
    """Run granian until a signal; its child process makes the application and opens everything."""
    terminal.keep_open()
    refuse_taken_port(settings.HOST, settings.PORT, port_setting)
    for line in notices(settings, os.environ):
        say(line)
    server.serve(
        settings.HOST,
        settings.PORT,
        loader=loader,
        threads=settings.WEB_THREADS + WAITING_THREADS,
        limits=limits,
        stop_seconds=STOP_SECONDS,
    )


def inbox_blueprint(storage: InboxStorage, chaos: Chaos, *, hint: str = "") -> Blueprint:
    """Make the inbox a part of this service's pages, with the same sign-in."""
    blueprint = create_blueprint(
        storage,
        chaos,
        AppHooks(
            hint=hint,
            scripts=web.layout.SCRIPTS,
            pages=web.layout.visible_pages,
            origin=web.messages.origin,
            form_token=form_token,
            refuse_form=refuse_form,
            may_act=partial(web.layout.may, "POST", "/inbox/delete"),
            access_check=guard.access_check,
            refuse_waited=guard.check,
        ),
    )
    blueprint.after_request(web.layout.for_people)
    return blueprint


def inbox_app(settings: Settings, served: Settings) -> Flask:
    """Make the inbox alone and start its SMTP server; runs in granian's child process.

    This machine's user needs no key, others need the API key. `served` has the address of the web process.
    """
    storage, chaos = InboxStorage(), Chaos()
    start_child(settings, storage.stop, watch.stop)
    smtp = Inbox(settings.HOST, settings.INBOX_SMTP_PORT, storage=storage, chaos=chaos)
    try:
        smtp.start()
    except PortTaken as e:
        end_child(e)
    at_exit(smtp.stop)
    listener = host_and_port(settings.HOST, settings.INBOX_SMTP_PORT)
    say(f"the inbox takes mail on {listener} and shows it at {url(settings)}/inbox/")
    app = Flask("inbox")
    set_up_inbox(app, settings)
    app.register_blueprint(create_blueprint(storage, chaos, inbox_hooks(served)))
    return app


def set_up_inbox(app: Flask, settings: Settings) -> None:
    """Give the application of the inbox alone its limits, its sign-in and /livez."""
    app.config["MAX_CONTENT_LENGTH"] = settings.REQUEST_MAX_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of the default provider
    BrowserSessions(partial(token_bytes, 32)).attach(app)
    metrics.watch(app)
    app.before_request(
        partial(guard.check_alone, "" if settings.listens_on_loopback else settings.API_KEY)
    )
    app.add_url_rule("/livez", view_func=health.livez)
    app.register_blueprint(web.layout.assets)


def inbox_hooks(served: Settings) -> AppHooks:
    """Adapt the inbox alone to the web process at `served`, to which its links lead."""

    def links(message_id: str) -> list[tuple[str, str]]:
        return [
            (f"{url(served)}/messages/{id}", "its message")
            for id in web.messages.ids_in(message_id)
        ]

    return AppHooks(
        hint=curl(served),
        scripts=web.layout.SCRIPTS,
        form_token=form_token,
        refuse_form=refuse_form,
        origin=links,
    )


def refuse_keyless(settings: Settings, database: Database) -> None:
    """Refuse to start if other machines can send requests, and no API key exists.

    Raises:
      SettingsError: says how to make a key.
    """
    if not (settings.listens_on_loopback or settings.API_KEY or ApiKeys(database).are_there()):
        raise SettingsError(
            f"{PREFIX}HOST={settings.HOST!r} can be reached from other machines, and there is no API key in "
            f"{database}; make one with `{PROGRAM} keys create NAME`, or set {PREFIX}API_KEY"
        )


def refuse_taken_port(host: str, port: int, setting: str) -> None:
    """Exit if this port cannot be bound; `setting` is what the message says to change."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            airplay = " (on a Mac, AirPlay's receiver holds 5000)" if port == 5000 else ""
            sys.exit(
                f"mailasync: {host_and_port(host, port)} cannot be used: {e.strerror}{airplay}; "
                f"set {PREFIX}{setting} to another port"
            )


def url(settings: Settings) -> str:
    host = {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(
        settings.HOST, settings.HOST
    )
    return f"http://{host_and_port(host, settings.PORT)}"


def curl(settings: Settings) -> str:
    key = ' -H "Authorization: Bearer $API_KEY"' if settings.API_KEY else ""
    return (
        f"curl {url(settings)}/{key} -H 'Content-Type: application/json' "
        """-d '{"to": "you@example.org", "subject": "Hello", "contents": "The work is done."}'"""
    )


def say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)
