"""A page that starts work of 1, 2 or 3 units, and shows each second how far it is.

    make example NAME=buttons

Then open http://127.0.0.1:5000/buttons (the tutorial's is at /, which is this service's own page here). Without a browser:

    curl -F type=0 http://127.0.0.1:5000/tasks/
    curl http://127.0.0.1:5000/tasks/<task_id>/

Next: kill -9 a worker while it works; after LEASE_SECONDS (20) its task is FAILURE and does not stay STARTED for ever, and
`GET /v1/jobs/<task_id>` tells why.
For workers on more than one machine set MAILASYNC_DATABASE_URL to a PostgreSQL database.
"""

from typing import Any

from flask import Blueprint, Response, make_response, render_template, request
from werkzeug.exceptions import NotFound

from app import main
from examples import as_celery
from mailroom.api.routes.jobs import find_job, start_job
from mailroom.model.errors import FieldError, InvalidMessage

blueprint = Blueprint(
    "buttons",
    __name__,
    template_folder="templates",
    static_folder="static",
    static_url_path="/static/buttons",
)

#: The page may use its own files and nothing else, whatever gets into it.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


@blueprint.get("/buttons")
def page() -> Response:
    """Show the buttons and the table."""
    answer = make_response(render_template("buttons/page.html"))
    answer.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return answer


@blueprint.post("/tasks", strict_slashes=False)
def start() -> tuple[dict[str, Any], int]:
    """Start what the form asks for: `type` is how many units. 0 is the tutorial's own curl line, and done at once."""
    given = request.form.get("type", "")
    if given not in ("0", "1", "2", "3"):
        raise InvalidMessage([FieldError("#/type", f"expected 0, 1, 2 or 3, got {given[:80]!r}")])
    return {"task_id": start_job({"name": "create_task", "args": {"task_type": int(given)}})}, 202


@blueprint.get("/tasks/<id>", strict_slashes=False)
def tell(id: str) -> dict[str, Any]:
    """Tell where a task is, in Celery's words."""
    found = find_job(id)
    if found is None:
        raise NotFound(f"expected the task_id of an answer to POST /tasks, got {id[:80]!r}")
    status, result = as_celery(found)
    return {"task_id": id, "task_status": status, "task_result": result}


if __name__ == "__main__":
    main("examples.buttons.app:blueprint")
