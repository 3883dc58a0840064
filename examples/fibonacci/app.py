"""The tutorial's routes: start a computation, and ask for its status.

    make example NAME=fibonacci
    examples/fibonacci/integration.sh           in a second terminal: does what follows, and polls until it has the result

    curl http://127.0.0.1:5000/ping
    curl http://127.0.0.1:5000/create -H 'Content-Type: application/json' -d '{"number": "4"}'
    curl http://127.0.0.1:5000/status/<task_id>
    tail -f examples/fibonacci/celery.log

Next: `GET /v1/jobs/<task_id>` is the same job with progress, times and timeline, and needs no polling: `Prefer: wait=10`.
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
    """Start it and answer at once; it is on disk then, whether RabbitMQ and a worker are there or not."""
    id = start_job({"name": "fibonacci", "args": {"n": number(json_body())}})
    return {"status": "success", "data": {"task_id": id}}


@blueprint.get("/status/<id>")
def status(id: str) -> dict[str, Any]:
    """Tell the state by Celery's name, and the result.

    Celery calls an id that it has never seen PENDING, as it does not remember what it was given. This service does, so a wrong
    id is a 404, and nobody polls it for ever.
    """
    found = find_job(id)
    if found is None:
        raise NotFound(f"expected the task_id of an answer to POST /create, got {id[:80]!r}")
    state, result = as_celery(found)
    return {"status": state, "result": result}


def number(body: object) -> int:
    """Read `{"number": "4"}`, or 4 without quotes; what is wrong with it is raised, and the application answers 422."""
    if not isinstance(body, dict) or "number" not in body:
        raise InvalidMessage([FieldError("#/number", f"expected a whole number up to {N_MAX}, got none")])
    given = body["number"]
    written = str(given) if isinstance(given, int | str) and not isinstance(given, bool) else ""
    # [0-9]: int() takes other scripts' digits, spaces and underscores as well.
    if not re.fullmatch(r"-?[0-9]{1,9}", written) or int(written) > N_MAX:
        raise InvalidMessage(
            [FieldError("#/number", f"expected a whole number up to {N_MAX}, got {str(given)[:80]!r}")]
        )
    return int(written)


if __name__ == "__main__":
    main("examples.fibonacci.app:blueprint")
