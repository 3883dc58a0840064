"""The tutorial's routes: start a computation, and ask for its status.

    make example NAME=fibonacci
    examples/fibonacci/integration.sh           in a second terminal: runs the commands below

    curl http://127.0.0.1:5000/ping
    curl http://127.0.0.1:5000/create -H 'Content-Type: application/json' -d '{"number": "4"}'
    curl http://127.0.0.1:5000/status/<task_id>
    tail -f examples/fibonacci/celery.log

Next: `GET /v1/jobs/<task_id>` shows the job with progress, times and timeline, and with the header
`Prefer: wait=10` it needs no polling.
"""

import re
from typing import Any

from flask import Blueprint
from werkzeug.exceptions import NotFound

from app import main
from examples import as_celery
from examples.fibonacci.jobs import N_MAX
from mailroom.api.http.request import json_body
from mailroom.api.routes.jobs import find_job, start_job
from mailroom.model.errors import FieldError, InvalidMessage

blueprint = Blueprint("fibonacci", __name__)


@blueprint.post("/create")
def create() -> dict[str, Any]:
    """Start the computation and answer as soon as it is stored, even if RabbitMQ or the worker is down."""
    id = start_job({"name": "fibonacci", "args": {"n": number(json_body())}})
    return {"status": "success", "data": {"task_id": id}}


@blueprint.get("/status/<id>")
def status(id: str) -> dict[str, Any]:
    """Return the state, in Celery's words, and the result.

    Celery does not know which ids it issued, and calls an unknown one PENDING. This service knows, so a wrong
    id is a 404, and nobody polls it for ever.
    """
    job = find_job(id)
    if job is None:
        raise NotFound(f"expected the task_id of an answer to POST /create, got {id[:80]!r}")
    state, result = as_celery(job)
    return {"status": state, "result": result}


def number(body: object) -> int:
    """Read `{"number": "4"}`, or 4 without quotes; InvalidMessage becomes a 422."""
    if not isinstance(body, dict) or "number" not in body:
        raise InvalidMessage(
            [FieldError("#/number", f"expected a whole number up to {N_MAX}, got none")]
        )
    value = body["number"]
    is_number = isinstance(value, int | str) and not isinstance(value, bool)
    # int() alone would also accept digits of other scripts, spaces and underscores.
    if not is_number or not re.fullmatch(r"-?[0-9]{1,9}", str(value)) or int(value) > N_MAX:
        detail = f"expected a whole number up to {N_MAX}, got {str(value)[:80]!r}"
        raise InvalidMessage([FieldError("#/number", detail)])
    return int(value)


if __name__ == "__main__":
    main("examples.fibonacci.app:blueprint")
