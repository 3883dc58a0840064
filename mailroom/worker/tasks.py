"""Gives each task the worker of this process, or its message back to the queue if that cannot settle it."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Task
from celery.exceptions import Ignore, Reject

from mailroom.broker.celery_request import has_expired
from mailroom.model.errors import StoreUnavailable
from mailroom.worker import runtime
from mailroom.worker.worker import Worker

log = logging.getLogger("mailasync")

#: How long a task waits before it gives its message back because the database is away.
REQUEUE_WAIT_SECONDS = 1.0


@contextmanager
def settling(task: Task) -> Iterator[Worker]:  # type: ignore[type-arg]
    """Give the worker to a task, unless that has expired; without one, the task goes back to its queue."""
    worker = runtime.process.worker
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
