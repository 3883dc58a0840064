"""Gives the commands what they work with, on the database that each is about."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from flask import Flask

from mailroom.api.services import Services
from mailroom.broker.connection import bounded_connection
from mailroom.cli.database import choose, opened
from mailroom.cli.doctor import Doctor, Finding
from mailroom.config.accounts import accounts
from mailroom.config.settings import Settings
from mailroom.model.ids import MailId
from mailroom.store.db.database import Database
from mailroom.store.messages.outbox import Outbox
from mailroom.worker import runtime


@contextmanager
def working(settings: Settings) -> Iterator[Services]:
    """Yield the services of the API for a command: on the database that it is about, and without a thread."""
    choice = choose(settings)
    # The broker of `flask up` is inside that process; its sweeper finds what is new.
    alone = choice.is_up and settings.embedded
    with opened(settings, choice) as database:
        services = Services.on(
            database,
            settings,
            reader=runtime.submission_reader(settings, database),
            publisher=lambda: None,
            send=(lambda id: None) if alone else partial(nudge, database),
            run=(lambda job: None) if alone else runtime.run_job,
        )
        app = Flask("mailasync")
        app.extensions["mailasync"] = services
        with app.app_context():
            yield services


def nudge(database: Database, id: MailId) -> None:
    """Tell a worker of one message without a publisher; ends in seconds, and raises what kombu raises."""
    started = time.monotonic()
    runtime.send_mail(id, database.outbox_id)
    Outbox(database).mark_published([id], seconds_ago=time.monotonic() - started)


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield the findings of `flask doctor`."""
    choice = choose(settings)
    database = Database(choice.url)
    connect = partial(bounded_connection, runtime.process.celery_app)
    try:
        yield from Doctor(
            settings, database, accounts(settings), None if choice.is_up and settings.embedded else connect
        ).examine()
    finally:
        database.close()
