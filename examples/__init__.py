"""The tutorials this service grew out of, each as a few small files; run them from the project's directory.

    make example NAME=notify        POST, an answer at once, the mail five seconds later
    make example NAME=fibonacci     start a computation over HTTP, then ask for its status and its result
    make example NAME=buttons       a page that starts tasks and watches them
    make example NAME=blocking      the same work inside the request and in the background, with the times
    make example NAME=cafe          beer and coffee on queues of their own
    make example NAME=periodic      a daily report

RabbitMQ has to be running; nothing else needs to be set up. Each directory has a Procfile with the commands
of its processes, if you would rather type them, each in a terminal of its own.
"""

from collections.abc import Mapping
from typing import Any

#: Celery's names for the states of a job.
CELERY_STATES = {
    "queued": "PENDING",
    "running": "STARTED",
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "timed_out": "FAILURE",
    "canceled": "REVOKED",
}


def as_celery(job: Mapping[str, Any]) -> tuple[str, Any]:
    """Return Celery's name for the state of a job, and its result, or its error if it failed."""
    state = CELERY_STATES[job["status"]]
    if job["status"] == "succeeded":
        return state, job["result"]
    return state, job["error"]
