"""A page that starts tasks of 1, 2 or 3 units of work, and shows their state every second.

    make example NAME=buttons

Then open http://127.0.0.1:5000/buttons (not /, as in the tutorial). Without a browser:

    curl -F type=0 http://127.0.0.1:5000/tasks/
    curl http://127.0.0.1:5000/tasks/<task_id>/

Next: kill -9 a worker while it works. After LEASE_SECONDS (20) its task is FAILURE, not STARTED for ever,
and `GET /v1/jobs/<task_id>` says why.
For workers on more than one machine, set MAILASYNC_DATABASE_URL to a PostgreSQL database.
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

#: The page may load its own files and nothing else, even if somebody manages to inject HTML.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)


@blueprint.get("/buttons")
def page() -> Response:
    """Show the buttons and the table."""
    response = make_response(render_template("buttons/page.html"))
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


@blueprint.post("/tasks", strict_slashes=False)
def start() -> tuple[dict[str, Any], int]:
    """Start a task of `type` units of work; 0, as in the tutorial's curl command, ends at once."""
    units = request.form.get("type", "")
    if units not in ("0", "1", "2", "3"):
        raise InvalidMessage([FieldError("#/type", f"expected 0, 1, 2 or 3, got {units[:80]!r}")])
    id = start_job({"name": "create_task", "args": {"task_type": int(units)}})
    return {"task_id": id}, 202


@blueprint.get("/tasks/<id>", strict_slashes=False)
def status(id: str) -> dict[str, Any]:
    """Return state and result of a task, in Celery's words."""
    job = find_job(id)
    if job is None:
        raise NotFound(f"expected the task_id of an answer to POST /tasks, got {id[:80]!r}")
    state, result = as_celery(job)
    return {"task_id": id, "task_status": state, "task_result": result}


if __name__ == "__main__":
    main("examples.buttons.app:blueprint")
