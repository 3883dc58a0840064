"""Gives each task the worker of this process; without one, or without a database, the message goes back."""

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
def worker_for(task: Task) -> Iterator[Worker]:  # type: ignore[type-arg]
    """Yield the worker that does the task; one that has expired is recorded as failed and not run.

    The message goes back to its queue if the worker has not started, or the database is away.
    """
    worker = runtime.process.worker
    if worker is None:
        time.sleep(REQUEUE_WAIT_SECONDS)
        raise Reject("this worker has not started", requeue=True)
    try:
        if has_expired(task.request.expires):  # type: ignore[arg-type]  # a str, from QuietRequest
            reason = f"expired at {task.request.expires}, before a worker took it"
            worker.refuse(str(task.request.id), task.name, reason)
            raise Ignore
        yield worker
    except StoreUnavailable as e:
        log.error("%s; the message goes back to the queue", e)
        time.sleep(REQUEUE_WAIT_SECONDS)
        raise Reject("not done yet", requeue=True) from None
