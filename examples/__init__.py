"""The tutorials this service comes from, each as a program of a few small files; run from the project's directory.

    make example NAME=notify        POST, an answer at once, the mail five seconds later
    make example NAME=fibonacci     start a computation over HTTP, ask for its status and its result
    make example NAME=buttons       a page that starts work and watches it
    make example NAME=blocking      the same work inside the request and in the background, with the times
    make example NAME=cafe          beer and coffee on queues of their own
    make example NAME=periodic      a daily report

RabbitMQ has to run, and nothing else needs to be set. Each directory has a Procfile: its lines are the commands that start the
processes, one terminal each, if you would rather type them.
"""

from collections.abc import Mapping
from typing import Any

#: What Celery calls the states of a job, for clients that know its names.
CELERY_STATES = {
    "queued": "PENDING",
    "running": "STARTED",
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "timed_out": "FAILURE",
    "canceled": "REVOKED",
}


def as_celery(job: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the state of a job by Celery's name, and its result; where it has none, the error in words, if any."""
    answer = job["result"] if job["status"] == "succeeded" else job["error"]
    return CELERY_STATES[job["status"]], answer
