"""Jobs as a person looks at them: which there are, how far one is, what came of it, and what can be done with it."""

import json

from flask import Response, request
from werkzeug.exceptions import NotFound

from mailroom.api.http.idempotency import form_key
from mailroom.api.http.pagination import next_place
from mailroom.api.routes import jobs
from mailroom.jobs import registry
from mailroom.model.errors import InvalidMessage
from mailroom.store.jobs.jobs import FINAL, JobState
from mailroom.web.layout import at, done, page, pages

blueprint = pages("jobs")

PAGE_LENGTH = 50
FILTERS = ("status", "name", "queue", "after")
#: Longer arguments and results are cut on a page; the API has them whole.
SHOWN_MAX_CHARACTERS = 10_000


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """The newest jobs that the filters let pass."""
    asked = {name: value for name in FILTERS if (value := request.args.get(name, "").strip())}
    try:
        (rows, limit), wrong = jobs.find_jobs(asked | {"limit": str(PAGE_LENGTH)}), []
    except InvalidMessage as e:
        rows, limit, wrong = [], 0, e.errors
    return page(
        "jobs.html",
        live=not wrong,
        status=422 if wrong else 200,
        asked=asked,
        wrong=wrong,
        states=[*JobState],
        kinds=registry.job_types(),
        rows=[jobs.job_summary_json(row) for row in rows[:limit]],
        next=next_place(rows[limit - 1]) if len(rows) > limit else None,
    )


@blueprint.get("/jobs/<id>")
def job(id: str) -> Response:
    """Show how far a job is, what it was asked, what came of it, and the mail that tells of it."""
    told = jobs.find_job(id)
    if told is None:
        raise NotFound(f"expected the id of a job, got {id[:80]!r}")
    has_ended = told["status"] in FINAL
    return page(
        "job.html",
        live=True,
        job=told,
        has_ended=has_ended,
        can_rerun=has_ended and registry.is_known(told["name"]),
        args=_written(told["args"]),
        result=None if told["result"] is None else _written(told["result"]),
    )


@blueprint.post("/jobs/<id>/cancel")
def cancel(id: str) -> Response:
    """Do what `POST /v1/jobs/<id>/cancel` does."""
    jobs.cancel_job(id)
    return done(at("jobs", id), "canceled")


@blueprint.post("/jobs/<id>/retry")
def retry(id: str) -> Response:
    """Do what `POST /v1/jobs/<id>/retry` does, and show the new job."""
    return done(
        jobs.retry(id, form_key(request.form.get("once", ""))).headers["Location"].removeprefix("/v1"),
        "rerun",
    )


def _written(value: object) -> str:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return text if len(text) <= SHOWN_MAX_CHARACTERS else f"{text[:SHOWN_MAX_CHARACTERS]}\n… cut here"
