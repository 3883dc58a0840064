"""The pages of jobs: the list, and one job with its progress, its result and the actions on it."""

import json
from typing import Any

from flask import Response, request
from werkzeug.exceptions import NotFound

from mailroom.api.http.idempotency import form_key
from mailroom.api.http.pagination import row_cursor
from mailroom.api.routes import jobs
from mailroom.jobs import registry
from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.store.jobs.jobs import FINAL, JobState
from mailroom.web.layout import done, item_path, page, pages, query_params, status_of

blueprint = pages("jobs")

PAGE_LENGTH = 50
FILTERS = ("status", "name", "queue", "after")
#: Longer arguments and results are cut on a page; the API returns all of them.
JSON_MAX_CHARACTERS = 10_000


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """List the newest jobs that match the filters."""
    params = query_params(*FILTERS)
    errors: list[FieldError] = []
    rows: list[Any] = []
    limit = 0
    try:
        rows, limit = jobs.find_jobs(params | {"limit": str(PAGE_LENGTH)})
    except InvalidMessage as e:
        errors = e.errors
    listed = [jobs.job_summary_json(row) for row in rows[:limit]]
    return page(
        "jobs.html",
        live=not errors,
        status=status_of(errors),
        params=params,
        errors=errors,
        states=[*JobState],
        kinds=registry.job_types(),
        rows=listed,
        next=row_cursor(rows[limit - 1]) if len(rows) > limit else None,
    )


@blueprint.get("/jobs/<id>")
def show_job(id: str) -> Response:
    """Show a job: status, progress, arguments, result, and the mail that reports it."""
    job = jobs.find_job(id)
    if job is None:
        raise NotFound(f"expected the id of a job, got {id[:80]!r}")
    has_ended = job["status"] in FINAL
    return page(
        "job.html",
        live=True,
        job=job,
        has_ended=has_ended,
        can_rerun=has_ended and registry.is_known(job["name"]),
        args=_indented(job["args"]),
        result=None if job["result"] is None else _indented(job["result"]),
    )


@blueprint.post("/jobs/<id>/cancel")
def cancel(id: str) -> Response:
    """Cancel a job, as `POST /v1/jobs/<id>/cancel` does."""
    jobs.cancel_job(id)
    return done(item_path("jobs", id), "canceled")


@blueprint.post("/jobs/<id>/retry")
def retry(id: str) -> Response:
    """Run a job once more, as `POST /v1/jobs/<id>/retry` does, and show the new job."""
    response = jobs.retry(id, form_key(request.form.get("once", "")))
    return done(response.headers["Location"].removeprefix("/v1"), "rerun")


def _indented(value: object) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) <= JSON_MAX_CHARACTERS else f"{text[:JSON_MAX_CHARACTERS]}\n… (cut)"
