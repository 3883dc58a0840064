"""Handles Celery's signals: a worker starts, stops, sets up its log, or is refused a queue."""

import logging
import os
import socket
import uuid
from typing import Any

from celery import signals

from mailroom.broker.connection import refuse_other_queues
from mailroom.broker.consumer import left_queue, refused
from mailroom.config import logs
from mailroom.model.errors import MailroomError
from mailroom.process import terminal
from mailroom.worker import runtime

log = logging.getLogger("mailasync")


def connect() -> None:
    """Have Celery call the functions of this module."""
    signals.celeryd_init.connect(_keep_terminal)
    signals.celeryd_init.connect(_name_worker)
    signals.worker_init.connect(_start_worker)
    signals.worker_ready.connect(_say_where_mail_goes)
    signals.worker_shutting_down.connect(_stop_claiming)
    signals.worker_shutdown.connect(_close_worker)
    signals.after_setup_logger.connect(_finish_logging)
    signals.after_setup_task_logger.connect(_finish_logging)
    refused.connect(_note_refusal)
    left_queue.connect(_note_left_queue)


def _keep_terminal(**kwargs: object) -> None:
    terminal.keep_open()


def _name_worker(sender: str, instance: Any, **kwargs: object) -> None:
    """Give each start a name of its own, unless -n gave one: a second worker of the same name is refused."""
    if instance.hostname == f"celery@{socket.gethostname()}":
        instance.hostname = f"mailasync-{os.getpid()}-{uuid.uuid4().hex[:4]}@{socket.gethostname()}"


def _start_worker(sender: Any, **kwargs: object) -> None:
    pool = sender.pool_cls if isinstance(sender.pool_cls, str) else f"{sender.pool_cls.__module__}"
    if "thread" not in pool and "solo" not in pool:
        raise SystemExit(
            "mail is sent in threads, as no process may fork after it opened a database: leave out -P"
        )
    celery_app = runtime.process.celery_app
    celery_app.set_default()  # Otherwise the pool's threads use another application, and tasks vanish.
    try:
        refuse_other_queues(celery_app)
        runtime.start_worker(name=sender.hostname, connections=int(sender.concurrency))
    except MailroomError as e:
        raise SystemExit(f"mailasync: {e}") from None
    except Exception as e:  # Celery would swallow it, and the worker would take nothing.
        log.exception("the worker cannot start")
        raise SystemExit(f"mailasync: {type(e).__name__}") from None


def _say_where_mail_goes(**kwargs: object) -> None:
    log.info("%s", runtime.process.worker)  # At the start there is no log yet.


def _note_refusal(reason: str, **kwargs: object) -> None:
    if runtime.process.worker is not None:
        runtime.process.worker.refusal = reason


def _note_left_queue(reason: str, **kwargs: object) -> None:
    if runtime.process.worker is not None:
        runtime.process.worker.heartbeat.leave_celery_queue(reason)


def _stop_claiming(**kwargs: object) -> None:
    runtime.stop_claiming()


def _close_worker(**kwargs: object) -> None:
    runtime.close_worker()


def _finish_logging(logger: logging.Logger, **kwargs: object) -> None:
    logs.finish_setup(runtime.process.settings, logger)
