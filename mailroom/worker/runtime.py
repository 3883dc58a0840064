"""Holds the parts of this process: its settings, its publisher if it serves, its worker if it is one.

`mailasync.py` calls `set_up`; the tasks in it are found by their names, as nothing here may import it.
"""

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from celery import Celery
from kombu import Producer

from mailroom.broker.connection import bounded_connection
from mailroom.broker.nudge_task import NudgeTask
from mailroom.broker.publisher import Publisher
from mailroom.config.accounts import accounts, schedule
from mailroom.config.environment import load
from mailroom.config.settings import Settings, SettingsError, database_url
from mailroom.jobs import registry
from mailroom.model.errors import MailroomError
from mailroom.model.ids import MailId
from mailroom.process.supervisor import troubles
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import check, upgrade, upgrade_if_empty
from mailroom.store.events.queue_history import QueueHistory
from mailroom.store.jobs.jobs import NewJob
from mailroom.store.maintenance.clock import Clock
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.messages.outbox import Outbox
from mailroom.store.messages.suppressions import Unsubscribes
from mailroom.store.templates import Templates
from mailroom.submission.reader import SubmissionReader
from mailroom.webhooks import notifier
from mailroom.webhooks.ssrf import AddressGuard
from mailroom.worker.celery_config import (
    MAIL_QUEUES,
    RUN_JOB,
    SEND_MAIL,
    TELL_CLIENTS,
    celery_settings,
)
from mailroom.worker.worker import Worker, WorkerOptions

log = logging.getLogger("mailasync")

#: The bulk mails in one nudge, unless a worker has more connections than this. So few that a thread is free
#: after about the time of one mail, for a mail that somebody waits for.
BULK_CHUNK_MIN = 10


class _Process:
    """The parts of this process; its publisher is an attribute of NudgeTask."""

    celery_app: Celery
    settings: Settings
    worker: Worker | None = None
    database: Database | None = None  #: set if this process serves and works at the same time


process = _Process()


def set_up(celery_app: Celery) -> None:
    """Read the settings and configure `celery_app`; exit with one sentence if a setting is wrong."""
    process.celery_app = celery_app
    try:
        configure(load())
    except SettingsError as e:  # The import of mailasync starts the service, so no traceback.
        raise SystemExit(f"mailasync: {e.message}") from None


def configure(settings: Settings) -> None:
    """Set this process up. Raises SettingsError for accounts and jobs that cannot be used."""
    accounts(settings)
    schedule(settings)
    load_jobs(settings)
    process.celery_app.conf.update(celery_settings(settings))
    process.settings = settings


def start_publisher(database: Database) -> Publisher:
    """Return the publisher of this process; the first call starts it."""
    if NudgeTask.publisher is None:
        NudgeTask.publisher = _publisher(process.celery_app, process.settings, database)
        NudgeTask.publisher.start()
    return NudgeTask.publisher


def stop_publisher() -> None:
    publisher, NudgeTask.publisher = NudgeTask.publisher, None
    if publisher is not None:
        publisher.stop()


def _publisher(celery_app: Celery, settings: Settings, database: Database) -> Publisher:
    tasks: Any = celery_app.tasks

    def publish(producer: Producer, queue: str, ids: Sequence[str]) -> None:
        if queue in MAIL_QUEUES:
            tasks[SEND_MAIL].publish(producer, (list(ids), database.outbox_id), queue=queue)
        else:
            name = TELL_CLIENTS if queue == notifier.QUEUE else RUN_JOB
            tasks[name].publish(producer, (ids[0],), queue=queue)

    def mark_published(queue: str, ids: Sequence[str], seconds_ago: float) -> None:
        queued = [id for id in ids if not isinstance(id, MailId) or id.is_queued]
        if queue in MAIL_QUEUES and queued:
            Outbox(database).mark_published(queued, seconds_ago=seconds_ago)

    def on_poll() -> None:
        Clock(database).watch()
        QueueHistory(database, settings.LEASE_SECONDS).record()

    return Publisher(
        lambda: bounded_connection(celery_app),
        publish,
        on_confirmed=mark_published,
        on_unpublished=sweeps_of(settings, database).unpublish,
        polled_queues=MAIL_QUEUES,
        chunks={"mail.bulk": max(BULK_CHUNK_MIN, settings.SMTP_CONNECTIONS)},
        on_poll=on_poll,
    )


def send_mail(id: MailId, outbox_id: str) -> None:
    """Publish sendMail for one mail on a connection of its own; raises what kombu raises."""
    process.celery_app.tasks[SEND_MAIL].apply_async(([id], outbox_id), queue=id.queue)


def run_job(job: NewJob) -> None:
    """Publish runJob on the queue of the job; without a publisher, raises what kombu raises."""
    process.celery_app.tasks[RUN_JOB].apply_async((job.id,), queue=job.queue)


def start_worker(*, name: str, connections: int) -> None:
    """Make this process a worker; it uses the database of its web side, if that runs in this process too."""
    settings = process.settings
    database = process.database or open_database(settings)
    options = WorkerOptions(
        name=name,
        queues=list(process.celery_app.amqp.queues.consume_from),
        connections=min(settings.SMTP_CONNECTIONS, connections),
        # If the web side runs in this process too, it reports the threads itself.
        thread_errors=tuple if process.database else troubles,
    )
    process.worker = Worker(
        settings,
        database,
        options,
        publisher=start_publisher(database),
        reader=submission_reader(settings, database),
        sweeps=sweeps_of(settings, database),
    )


def share_database(database: Database) -> None:
    """Have the worker of this process use this database, which its web side has opened."""
    process.database = database


def stop_claiming() -> None:
    """Begin no more attempts and jobs; an attempt that is past its fence is finished."""
    if process.worker is not None:
        process.worker.delivery.stop()
        process.worker.runner.stop()
        process.worker.notifier.stop()


def close_worker() -> None:
    """Stop all parts of the worker, if this process is one."""
    worker, process.worker = process.worker, None
    if worker is not None:
        worker.close()
        NudgeTask.publisher = None


def load_jobs(settings: Settings) -> None:
    """Import the modules of JOBS, which registers the job types in them."""
    for name in registry.modules(settings.JOBS):
        try:
            import_module(name)
        except ImportError as e:
            raise SettingsError(
                f"MAILASYNC_JOBS: expected modules that can be imported, got {name!r}: {e}"
            ) from None


def submission_reader(settings: Settings, database: Database) -> SubmissionReader:
    """Return the reader of mails and jobs that clients submit over HTTP or on the queue."""
    configured, links = accounts(settings), Unsubscribes(database, settings.PUBLIC_URL)

    def account_of(address: str) -> str | None:
        return next(
            (account.name for account in configured if account.may_send_from(address)), None
        )

    return SubmissionReader(
        domain=configured[0].sender.address.rpartition("@")[2],
        template=Templates(database).find,
        account_of=account_of,
        unsubscribe_url=lambda id: links.url(id, 0) if settings.PUBLIC_URL else "",
        webhook_problem=AddressGuard(settings.WEBHOOKS_TO_LOOPBACK == "on").problem,
    )


def open_database(settings: Settings, *, file_name: str = "mailasync.sqlite3") -> Database:
    """Open the database, and set it up if it is empty.

    An older schema is upgraded here in the default file only; elsewhere `flask db upgrade` does that.
    """
    database = Database(database_url(settings, file_name=file_name))
    try:
        if settings.DATABASE_URL:
            upgrade_if_empty(database)
        else:
            upgrade(database)
        check(database)
    except MailroomError:
        database.close()
        raise
    log.debug("outbox %s", database.outbox_id)  # Reads the id, so that publishing a nudge need not.
    return database


def sweeps_of(settings: Settings, database: Database) -> Sweeps:
    configured = accounts(settings)
    limited = {account.name for account in configured if account.sending_limit.is_limited}
    mailboxes = {account.name for account in configured if account.mailbox}
    return Sweeps(
        database,
        settings.LEASE_SECONDS,
        settings.ON_UNCERTAIN,
        frozenset(limited),
        frozenset(mailboxes),
    )
