"""Work done twice: inside the request, and in the background.

    make example NAME=blocking
    .venv/bin/python -m examples.blocking.compare               in a second terminal: both, and their times

    curl 'http://127.0.0.1:5000/blocking?seconds=2'             answers when the work is done
    curl -X POST 'http://127.0.0.1:5000/background?seconds=2'   answers at once, with the id of the job
    curl -H 'Prefer: wait=10' http://127.0.0.1:5000/v1/jobs/<task_id>

Next: `POST /v1/jobs` starts any job without a route of your own, and with `notify` it mails you the result.
"""

import math
import time
from typing import Any

from flask import Blueprint, request

from app import main
from examples.blocking.jobs import SECONDS_MAX, work
from mailroom.api.routes.jobs import start_job
from mailroom.model.errors import FieldError, InvalidMessage

blueprint = Blueprint("blocking", __name__)


@blueprint.get("/blocking")
def blocking() -> dict[str, Any]:
    """Work inside the request: the client waits, and everybody else does once all WEB_THREADS are busy."""
    started = time.monotonic()
    result = work(seconds())
    return {"result": result, "seconds": round(time.monotonic() - started, 3)}


@blueprint.post("/background")
def background() -> tuple[dict[str, Any], int]:
    """Let a worker do it: the client gets the id as soon as the job is stored."""
    started = time.monotonic()
    id = start_job({"name": "work", "args": {"seconds": seconds()}})
    return {"task_id": id, "seconds": round(time.monotonic() - started, 3)}, 202


def seconds() -> float:
    """Read the parameter `?seconds=2`; without it, 2."""
    text = request.args.get("seconds", "2")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= SECONDS_MAX:
        detail = f"expected a number from 0 to {SECONDS_MAX:g}, got {text[:80]!r}"
        raise InvalidMessage([FieldError("?seconds", detail)])
    return number


if __name__ == "__main__":
    main("examples.blocking.app:blueprint")
