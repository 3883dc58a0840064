"""Jobs over HTTP: start, list, show, cancel and run again; and the list of job types.

`start_job` and `find_job` are for Flask views that an operator adds to this application.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from io import BytesIO
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, jsonify, request, send_file
from werkzeug.exceptions import Conflict, NotFound

from mailroom.api.answers import (
    AcceptedJson,
    EventJson,
    JobFileJson,
    JobJson,
    JobSummaryJson,
    JobTypeJson,
)
from mailroom.api.auth import guard
from mailroom.api.auth.senders import permitted
from mailroom.api.http.idempotency import REPLAYED, once
from mailroom.api.http.pagination import (
    choice_errors,
    page_response,
    read_page,
    read_position,
    text_param,
)
from mailroom.api.http.prefer_wait import preferred_seconds, wait_for
from mailroom.api.http.request import job_body
from mailroom.api.http.serialize import Step, answered, in_order
from mailroom.api.http.why import why_job
from mailroom.api.problems import may_make
from mailroom.api.services import services
from mailroom.jobs import registry
from mailroom.model.errors import StoreUnavailable
from mailroom.model.ids import is_id, new_id
from mailroom.model.message import SendOptions, file_name
from mailroom.model.times import timestamp
from mailroom.store.jobs.jobs import FINAL, JobDetails, JobState
from mailroom.store.messages.idempotency import Kept, Key, StoredAnswer
from mailroom.submission.reader import JobSubmission

blueprint = Blueprint("jobs", __name__)

#: A longer string in the arguments, such as an image, is shown cut, with its length.
SHOWN_MAX_CHARACTERS = 200


def start_job(params: object) -> str:
    """Accept a job, as `POST /v1/jobs` does, commit it, and return its id.

    Raises:
      InvalidMessage: it is not a job. The application answers 422.
      StoreUnavailable: it was not accepted, or, if it is CommitUnanswered, it may have been. The application
        answers 503.
    """
    return _accept(services().reader.job(params))


def find_job(id: str) -> JobJson | None:
    """Return where a job is, as `GET /v1/jobs/<id>` shows it; None if there is no such job."""
    details = _find(id)
    return None if details is None else job_json(details)


@blueprint.post("/v1/jobs")
def post_job() -> Response:
    """Accept a job; answers 202 at once, or when the job has ended if the client prefers to wait."""
    accepted, replayed = once(
        lambda key: _kept_answer(_accept(services().reader.job(job_body()), key))
    )
    id = accepted.location.removeprefix("/v1/jobs/")
    # For a repeated request, too: the job has gone on, and the client may want to wait for its end.
    response = _response_after_wait(id)
    # 200 only for a client that waited: for another one 200 or 202 would be a matter of chance.
    has_waited = "Preference-Applied" in response.headers
    has_ended = has_waited and response.json["status"] in FINAL  # type: ignore[index]  # it is an object
    response.status_code = 200 if has_ended else 202
    response.headers["Location"] = accepted.location
    if replayed:
        response.headers.update(REPLAYED)
    return response


@blueprint.get("/v1/jobs")
def list_jobs() -> Response:
    """List the newest jobs, a page at a time."""
    return page_response(*find_jobs(request.args), job_summary_json)


def find_jobs(params: Mapping[str, str]) -> tuple[list[Any], int]:
    """Return the jobs that match the parameters of a query, and its limit.

    There is one more than the limit if another page follows. Raises InvalidMessage.
    """
    limit, after = read_page(
        read_position, params, other_errors=choice_errors("status", JobState, params)
    )
    status, name, queue = (text_param(field, params) for field in ("status", "name", "queue"))
    rows = services().jobs.page(limit=limit + 1, before=after, state=status, name=name, queue=queue)
    return rows, limit


@blueprint.get("/v1/jobs/<id>")
def get_job(id: str) -> Response:
    """Return where a job is; `Prefer: wait=N` answers when it has ended, after N seconds at most."""
    if waited := _wait(id, guard.access_check()):
        guard.check_anew()
    return _job_response(find_job(id), id, waited)


@blueprint.get("/v1/jobs/<id>/file")
def get_file(id: str) -> Response:
    """Return the file that the job made."""
    file = services().jobs.file(id) if is_id(id) else None
    if file is None:
        raise NotFound(f"expected the id of a job that made a file, got {id[:80]!r}")
    # As a download and never as a page: what a job made may be anything.
    answer = send_file(
        BytesIO(file.content),
        "application/octet-stream",
        as_attachment=True,
        download_name=file_name(file.name),
    )
    answer.headers["X-Content-Type-Options"] = "nosniff"
    return answer


@blueprint.post("/v1/jobs/<id>/cancel")
def cancel_job(id: str) -> Response:
    """Cancel a job and the mail that waits for it; 409 if the job has ended."""
    may_make(location=f"/v1/jobs/{quote(id, safe='')}")
    state = services().jobs.cancel(id) if is_id(id) else None
    if state is None:
        raise _unknown(id)
    if state in FINAL:
        raise Conflict(f"expected a job that has not ended, got one that is {state}")
    return jsonify(find_job(id))


@blueprint.post("/v1/jobs/<id>/retry")
def retry_job(id: str) -> Response:
    """Run a job that has ended again, as a new job with a new mail; 409 if it has not ended."""
    return retry(id)


def retry(id: str, form: Key | None = None) -> Response:
    """Run a job that has ended again; at most once for the key of a web page's form."""
    accepted, replayed = once(lambda key: _kept_answer(_accept(_rerun(id), key)), form)
    new_job = find_job(accepted.location.removeprefix("/v1/jobs/"))
    return answered(replace(accepted, body=new_job), replayed)


def _rerun(id: str) -> JobSubmission:
    """Make a new job of one that has ended; its mail keeps its options, but no time, which may be past."""
    details = _find(id)
    if details is None:
        raise _unknown(id)
    state, name = details.row["state"], details.row["name"]
    if state not in FINAL:
        raise Conflict(f"expected a job that has ended, got one that is {state}")
    if not registry.is_known(name):  # No worker would ever run it.
        raise Conflict(f"expected a job of a type that is known here, got one of {name!r}")
    job = services().jobs.again(id, new_id())
    mail, row = services().outbox.message_of(id), _mail_row(details)
    if mail is None or row is None:
        return JobSubmission(job, None)
    new_mail = replace(
        services().reader.mail_of_rerun(mail, job),
        terms=SendOptions(max_attempts=row["max_attempts"]),
        webhook=row["webhook"],
        queue=row["queue"],
    )
    return JobSubmission(job, new_mail)


def _mail_row(details: JobDetails) -> dict[str, Any] | None:
    if details.message is None:
        return None
    message = services().outbox.details(details.message["id"])
    return message.row if message else None


@blueprint.get("/v1/job-types")
def list_job_types() -> Response:
    """List the job types, with their arguments as JSON Schema."""
    return jsonify({"data": [_type_json(kind) for kind in registry.job_types()]})


def _type_json(kind: registry.JobType) -> JobTypeJson:
    return {
        "name": kind.name,
        "description": kind.description,
        "queue": kind.queue,
        "isolated": kind.isolated,
        "timeout_seconds": kind.timeout_seconds,
        "max_attempts": kind.max_attempts,
        "arguments": kind.schema(),
    }


def job_json(details: JobDetails) -> JobJson:
    """Return a job with all that is known of it."""
    row = details.row
    return {
        **job_summary_json(row),
        "why": why_job(details, services().publisher()),
        "args": _shortened(json.loads(row["args"])),
        "result": None if row["result"] is None else json.loads(row["result"]),
        "file": _file_json(details),
        "message": _message_json(details),
        "timeline": _timeline(details),
    }


def _file_json(details: JobDetails) -> JobFileJson | None:
    file = details.file
    if not file:
        return None
    return {
        "name": file["name"],
        "content_type": file["content_type"],
        "size": file["size"],
        "url": f"/v1/jobs/{details.row['id']}/file",
    }


def _message_json(details: JobDetails) -> AcceptedJson | None:
    message = details.message
    return {"id": message["id"], "status": message["state"]} if message else None


def job_summary_json(row: Mapping[str, Any]) -> JobSummaryJson:
    """Return a job as an item of a list."""
    return {
        "id": row["id"],
        "name": row["name"],
        "status": row["state"],
        "progress": row["progress"] / 1000,
        "step": row["step"],
        "error": row["error"],
        "queue": row["queue"],
        "attempts": row["attempt"] - row["excused"],
        "max_attempts": row["max_attempts"],
        "timeout_seconds": row["timeout_ms"] / 1000,
        "notify_on": row["notify_on"],
        "retry_of": row["retry_of"],
        "created_at": timestamp(row["created_at"]),
        "started_at": timestamp(row["started_at"]),
        "finished_at": timestamp(row["finished_at"]),
        "next_attempt_at": timestamp(row["next_attempt_at"]),
    }


def _timeline(details: JobDetails) -> list[EventJson]:
    row = details.row
    steps: list[Step] = [
        (row["created_at"], "accepted", None, None),
        (row["started_at"], "job started", row["attempt"], None),
    ]
    for event in details.events:
        steps.append((event["at"], event["event"], event["attempt"], event["detail"]))
    return in_order(steps)


def _shortened(value: Any) -> Any:
    """Return a JSON value with its long strings cut."""
    if isinstance(value, dict):
        return {name: _shortened(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    if isinstance(value, str) and len(value) > SHOWN_MAX_CHARACTERS:
        return f"{value[:60]}… ({len(value)} characters)"
    return value


def _accept(submission: JobSubmission, key: Key | None = None) -> str:
    """Commit a job, with its mail if it has one, tell the workers, and return the job's id."""
    job, mail = submission.job, submission.mail
    stored = _kept_answer(job.id)
    kept = Kept(key=key, answer=stored) if key else None
    may_make(job.id, location=stored.location)
    if mail:
        services().outbox.accept(permitted(mail), kept, guard.charge())
    elif kept:
        services().keys.accept_job(job, kept)
    else:
        services().jobs.accept(job)
    services().run(job)
    return job.id


def _kept_answer(id: str) -> StoredAnswer:
    return StoredAnswer(status=202, location=f"/v1/jobs/{id}")


def _response_after_wait(id: str) -> Response:
    """Answer with a job, after waiting for its end if the client prefers to.

    If the client is no longer allowed by then, or the database is gone, it gets the job as it was accepted.
    """
    job, is_served = find_job(id), guard.access_check()
    with suppress(StoreUnavailable):
        if (waited := _wait(id, is_served)) and is_served():
            return _job_response(find_job(id), id, waited)
    return _job_response(job, id, 0)


def _wait(id: str, is_served: Callable[[], bool]) -> int:
    """Wait as long as the client prefers, until the job has ended or the client may no longer see it.

    Returns the seconds that the client prefers; 0 if it did not wait.
    """
    seconds = preferred_seconds()
    if not seconds or _state(id) is None:
        return 0
    has_waited = wait_for(lambda: _state(id) in FINAL or not is_served(), seconds)
    return seconds if has_waited else 0


def _job_response(job: JobJson | None, id: str, waited: int) -> Response:
    """Answer with a job; `waited` is the number of seconds for `Preference-Applied`, 0 for none."""
    if job is None:
        raise _unknown(id)
    response = jsonify(job)
    if waited:
        response.headers["Preference-Applied"] = f"wait={waited}"
    return response


def _find(id: str) -> JobDetails | None:
    return services().jobs.details(id) if is_id(id) else None


def _state(id: str) -> JobState | None:
    return services().jobs.state(id) if is_id(id) else None


def _unknown(id: str) -> NotFound:
    return NotFound(f"expected the id of a job, got {id[:80]!r}")
