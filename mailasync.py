"""Queue in: the Celery application, its two tasks, and what a worker is made of.

    celery -A mailasync worker --loglevel=INFO

`sendMail` gets ids of accepted mails from RabbitMQ and delivers them; from any Celery client it takes the mail itself, as the
JSON object of `POST /`. `runJob` wakes the jobs. Importing this module starts nothing and connects to nothing.
"""

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import amqp
from celery import Celery, Task, signals
from celery.exceptions import Ignore, Reject
from celery.result import AsyncResult
from kombu import Connection, Producer
from kombu.exceptions import OperationalError

from mailroom.broker.celery_request import has_expired
from mailroom.broker.consumer import REFUSE, SHARED_QUEUE, left_queue, refused
from mailroom.broker.publisher import Publisher
from mailroom.broker.queues import words
from mailroom.broker.task_arguments import is_uuid, read_job, read_nudge
from mailroom.config import logs
from mailroom.config.accounts import accounts, schedule
from mailroom.config.settings import Settings, SettingsError, load
from mailroom.model.errors import MailroomError, StoreUnavailable
from mailroom.process import terminal
from mailroom.process.supervisor import troubles
from mailroom.store.db.database import Database
from mailroom.store.events.queue_history import Samples
from mailroom.store.maintenance.clock import Clock
from mailroom.store.messages.outbox import Outbox
from mailroom.webhooks import notifier
from mailroom.worker.celery_config import MAIL_QUEUES, celery_settings
from mailroom.worker.runtime import load_jobs, open_database, orders, sweeps_of
from mailroom.worker.worker import Worker

log = logging.getLogger("mailasync")

#: Bulk mail in one nudge, or as many as a worker has connections: so one of its threads is free after about the time of one mail, for
#: a mail that somebody waits for.
BULK_CHUNK_MIN = 10
CONFIRM_TIMEOUT_SECONDS = 3
#: How long a task waits before it gives its message back because the database is away.
REQUEUE_WAIT_SECONDS = 1.0

celery_app = Celery("mailasync", set_as_current=False, events="mailroom.broker.events:OptionalEvents")


def configure(settings: Settings) -> None:
    """Set this process up as `settings` say. Raises SettingsError for what only shows here."""
    accounts(settings)
    schedule(settings)
    load_jobs(settings)
    celery_app.conf.update(celery_settings(settings))
    _process.settings = settings


class NudgeTask(Task):  # type: ignore[type-arg]  # celery-types makes Task generic, Celery does not
    """Publishes without ever hanging or multiplying: through the publisher where one runs, else on a connection of its own."""

    Request = "mailroom.broker.celery_request:QuietRequest"
    typing = False  # Whatever a client sends is answered in the outbox, not by a TypeError in the log.

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> AsyncResult[Any]:  # type: ignore[override]  # narrower
        if not kwargs and args and len(args) == 1 and (publisher := publisher_for(args[0])):
            publisher.offer(
                args[0], queue=options.get("queue") or celery_app.conf.task_routes[self.name]["queue"]
            )
            return AsyncResult(args[0], app=celery_app)
        options.pop("producer", None)  # Celery beat brings its own, which may wait for ever.
        connection = bounded_connection()
        try:
            return self.publish(Producer(connection), args, kwargs, **options)
        finally:
            connection.collect()

    def publish(self, producer: Producer, args: Any, kwargs: Any = None, **options: Any) -> AsyncResult[Any]:
        """Publish once, and return when the broker has confirmed it; an error does not prove that it has not."""
        bounds = {
            "retry": False,
            "confirm_timeout": CONFIRM_TIMEOUT_SECONDS,
            "mandatory": True,
            "argsrepr": "()",
            "kwargsrepr": "{}",
        }
        return super().apply_async(args, kwargs, producer=producer, **{**bounds, **options})


@celery_app.task(name="mailasync.sendMail", bind=True, base=NudgeTask)
def sendMail(task: Task, *args: Any, **kwargs: Any) -> None:  # type: ignore[type-arg]
    """Deliver the mails of these ids; or accept a mail that a Celery client sent as the JSON object of `POST /`."""
    with settling(task) as worker:
        if nudge := read_nudge(args, kwargs):
            settled = worker.deliver(nudge[0], outbox_id=nudge[1])
        else:
            settled = worker.accept(
                str(task.request.id), (args[0] if len(args) == 1 else list(args)) if args else kwargs
            )
    if not settled:
        raise Reject("not settled", requeue=True)


def send(ids: Sequence[str], queue: str) -> None:
    """`sendMail.apply_async` for each of these mails; where a publisher runs, without a result, which takes longer than the rest."""
    for id in ids:
        if publisher := publisher_for(id):
            publisher.offer(id, queue=queue)
        else:
            sendMail.apply_async((id,), queue=queue)


def publisher_for(id: object) -> Publisher | None:
    """The publisher of this process, if one runs; it takes the id of a row and nothing else."""
    return _process.publisher if is_uuid(id) else None


@celery_app.task(name="mailasync.runJob", bind=True, base=NudgeTask)
def runJob(task: Task, *args: Any, **kwargs: Any) -> None:  # type: ignore[type-arg]
    """Look for jobs to run; or accept one that a Celery client sent: the JSON object of `POST /v1/jobs`, or its name and arguments.

    The task is done, and acknowledged, before the job begins: how long that takes is no matter of the broker's.
    """
    with settling(task) as worker:
        if kwargs or len(args) != 1 or not is_uuid(args[0]):
            worker.accept_job(str(task.request.id), read_job(args, kwargs))
        worker.runner.wake()


@celery_app.task(name="mailasync.tellClients", bind=True, base=NudgeTask)
def tellClients(task: Task, *args: Any, **kwargs: Any) -> None:  # type: ignore[type-arg]
    """Look for webhooks that are to be told something; whatever came with it is not read."""
    with settling(task) as worker:
        worker.notifier.wake()


@celery_app.task(name=REFUSE, bind=True, base=NudgeTask)
def refuse(task: Task, reason: str, name: str) -> None:  # type: ignore[type-arg]
    """Record why the message that this one stands for is no task; mailroom/broker/consumer.py makes it of that."""
    with settling(task) as worker:
        worker.refuse(str(task.request.id), name, reason)


@contextmanager
def settling(task: Task) -> Iterator[Worker]:  # type: ignore[type-arg]
    """Give the worker to a task; while there is none, the task goes back to its queue. One that has expired is not done."""
    worker = _process.worker
    if worker is None:
        time.sleep(REQUEUE_WAIT_SECONDS)
        raise Reject("this worker has not started", requeue=True)
    try:
        if has_expired(task.request.expires):  # type: ignore[arg-type]  # a text, from QuietRequest
            reason = f"expired at {task.request.expires}, before a worker took it"
            worker.refuse(str(task.request.id), task.name, reason)
            raise Ignore
        yield worker
    except StoreUnavailable as e:
        log.error("%s; the message goes back to the queue", e)
        time.sleep(REQUEUE_WAIT_SECONDS)
        raise Reject("not settled", requeue=True) from None


def bounded_connection() -> Connection:
    """An open connection whose every step ends in seconds, whatever the broker does."""
    connection = celery_app.connection_for_write(connect_timeout=2)
    # connect() itself would sleep 2 s and try again. A retry is only for the next broker, where the URL names several.
    return connection.ensure_connection(
        max_retries=max(0, len(connection.alt or ()) - 1), interval_start=0, interval_step=0
    )


def start_publisher(database: Database) -> Publisher:
    """The publisher of this process, started when it is first asked for."""
    if _process.publisher is None:

        def publish(producer: Producer, queue: str, ids: Sequence[str]) -> None:
            if queue in MAIL_QUEUES:
                sendMail.publish(producer, (list(ids), database.outbox_id), queue=queue)
            else:
                (tellClients if queue == notifier.QUEUE else runJob).publish(producer, (ids[0],), queue=queue)

        def published(queue: str, ids: Sequence[str], seconds_ago: float) -> None:
            if queue in MAIL_QUEUES:
                Outbox(database).mark_published(ids, seconds_ago=seconds_ago)

        def looked() -> None:
            Clock(database).watch()
            Samples(database, _process.settings.LEASE_SECONDS).take()

        unpublished = sweeps_of(_process.settings, database).unpublish
        _process.publisher = Publisher(
            bounded_connection,
            publish,
            published=published,
            unpublished=unpublished,
            watched=MAIL_QUEUES,
            chunks={"mail.bulk": max(BULK_CHUNK_MIN, _process.settings.SMTP_CONNECTIONS)},
            looked=looked,
        )
        _process.publisher.start()
    return _process.publisher


def stop_publisher() -> None:
    publisher, _process.publisher = _process.publisher, None
    if publisher is not None:
        publisher.stop()


@dataclass
class _Process:
    """The parts that this process runs, if it serves or works."""

    settings: Settings
    publisher: Publisher | None = None
    worker: Worker | None = None
    database: Database | None = None  #: set by a process that serves and works at the same time


try:
    _process = _Process(load())
    configure(_process.settings)
except SettingsError as e:  # Whoever imports this starts the service: flask, celery or python3 app.py. One sentence, no traceback.
    raise SystemExit(f"mailasync: {e.message}") from None


def share_database(database: Database) -> None:
    """Let the worker of this process use the database that its web side has opened."""
    _process.database = database


def stop_claiming() -> None:
    """Begin no attempt and no job any more; what is past its fence goes on."""
    if _process.worker is not None:
        _process.worker.delivery.stop()
        _process.worker.runner.stop()
        _process.worker.notifier.stop()


def close_worker() -> None:
    """End what makes this process a worker, if it is one."""
    worker, _process.worker = _process.worker, None
    if worker is not None:
        worker.close()
        _process.publisher = None


@signals.celeryd_init.connect
def _keep_terminal(**kwargs: object) -> None:
    terminal.keep_open()


@signals.celeryd_init.connect
def _name_worker(sender: str, instance: Any, **kwargs: object) -> None:
    """A second worker of the same name would be refused; so each start has a name of its own, unless -n gave one."""
    if instance.hostname == f"celery@{socket.gethostname()}":
        instance.hostname = f"mailasync-{os.getpid()}-{uuid.uuid4().hex[:4]}@{socket.gethostname()}"


@signals.worker_init.connect
def _start_worker(sender: Any, **kwargs: object) -> None:
    pool = sender.pool_cls if isinstance(sender.pool_cls, str) else f"{sender.pool_cls.__module__}"
    if "thread" not in pool and "solo" not in pool:
        raise SystemExit(
            "mail runs in threads, because no process may fork after it opened a database: leave -P away"
        )
    celery_app.set_default()  # Else the pool's threads see another application, and tasks vanish.
    settings = _process.settings
    try:
        refuse_other_queues()
        database = _process.database or open_database(settings)
        _process.worker = Worker(
            settings,
            database,
            name=sender.hostname,
            queues=list(celery_app.amqp.queues.consume_from),
            connections=min(settings.SMTP_CONNECTIONS, int(sender.concurrency)),
            publisher=start_publisher(database),
            orders=orders(settings, database),
            sweeps=sweeps_of(settings, database),
            threads=tuple if _process.database else troubles,
        )
    except MailroomError as e:
        raise SystemExit(f"mailasync: {e}") from None
    except Exception as e:  # Celery swallows it, and the worker would go on without taking anything.
        log.exception("the worker cannot start")
        raise SystemExit(f"mailasync: {type(e).__name__}") from None


@signals.worker_ready.connect
def _say_where_mail_goes(**kwargs: object) -> None:
    log.info("%s", _process.worker)  # Not at the start: Celery sets the log up after that.


def refuse_other_queues() -> None:
    """Stop where the broker has one of our queues with other arguments: no worker could ever use it."""
    try:
        connection = bounded_connection()
    except (OperationalError, amqp.exceptions.AMQPError, OSError):
        return  # The consumer keeps trying, and says what is wrong.
    try:
        for queue in celery_app.amqp.queues.values():
            if queue.name != SHARED_QUEUE:
                queue(connection.default_channel).declare()
    except amqp.exceptions.PreconditionFailed as e:
        raise SystemExit(f"mailasync: {words(e)}") from None
    except (amqp.exceptions.AMQPError, OSError):
        pass
    finally:
        connection.collect()


@refused.connect
def _note_refusal(reason: str, **kwargs: object) -> None:
    if _process.worker is not None:
        _process.worker.refusal = reason


@left_queue.connect
def _note_left_queue(reason: str, **kwargs: object) -> None:
    if _process.worker is not None:
        _process.worker.heartbeat.leave_celery_queue(reason)


@signals.worker_shutting_down.connect
def _stop_claiming(**kwargs: object) -> None:
    stop_claiming()


@signals.worker_shutdown.connect
def _close_worker(**kwargs: object) -> None:
    close_worker()


@signals.after_setup_logger.connect
@signals.after_setup_task_logger.connect
def _finish_logging(logger: logging.Logger, **kwargs: object) -> None:
    logs.finish_setup(_process.settings, logger)
