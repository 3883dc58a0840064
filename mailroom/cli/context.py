"""Holds what the commands of one application work with, which each command gets by `@click.pass_obj`."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

from flask import Flask

from mailroom.api.services import Services
from mailroom.cli.database import choose_database, open_database, pair_database
from mailroom.config.settings import Settings
from mailroom.model.ids import MailId
from mailroom.store.db.database import Database
from mailroom.store.jobs.jobs import NewJob
from mailroom.store.messages.outbox import Outbox
from mailroom.worker import runtime


@dataclass(frozen=True, kw_only=True)
class CommandContext:
    """The settings of an application, and the functions of its server that three commands run."""

    settings: Settings
    up: Callable[[bool], None]  #: serves everything in one process
    web: Callable[[], None]  #: serves the web side of the pair
    inbox: Callable[[], None]  #: serves the inbox alone
    message_id: Callable[[str], str]  #: makes the Message-ID of a mail from its id

    def open_database(self) -> AbstractContextManager[Database]:
        """Open the database of the service that runs here: app.py with its workers, or `flask up`."""
        return open_database(self.settings)

    def open_pair_database(self) -> AbstractContextManager[Database]:
        """Open the database of app.py and its workers, for commands that need neither to run."""
        return open_database(self.settings, pair_database(self.settings))

    @contextmanager
    def services(self) -> Iterator[Services]:
        """Yield the services that the API works with, on an open database; no thread is started."""
        choice = choose_database(self.settings)
        # The broker of `flask up` is inside of that process; its sweeper finds new mail in the database.
        has_broker = not (choice.is_up and self.settings.embedded)
        with open_database(self.settings, choice) as database:
            send_mail: Callable[[MailId], object] = partial(publish_mail, database)
            run_job: Callable[[NewJob], object] = runtime.run_job
            if not has_broker:
                send_mail = run_job = _do_nothing
            services = Services.on(
                database,
                self.settings,
                reader=runtime.submission_reader(self.settings, database),
                publisher=lambda: None,
                send=send_mail,
                run=run_job,
            )
            app = Flask("mailasync")
            app.extensions["mailasync"] = services
            with app.app_context():
                yield services


def publish_mail(database: Database, id: MailId) -> None:
    """Publish the id of a mail without a publisher; returns within seconds, and raises what kombu raises."""
    started = time.monotonic()
    runtime.send_mail(id, database.outbox_id)
    Outbox(database).mark_published([id], seconds_ago=time.monotonic() - started)


def _do_nothing(_: object) -> None:
    pass
