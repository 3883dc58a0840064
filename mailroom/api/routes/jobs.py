"""Jobs over HTTP: start one, see how far it is, take it back, run it once more; and what types there are.

`start_job` and `find_job` are for Flask views of one's own that run in this application.
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

from mailroom.api.answers import AcceptedJson, EventJson, JobFileJson, JobJson, JobSummaryJson, JobTypeJson
from mailroom.api.auth import guard
from mailroom.api.auth.senders import permitted
from mailroom.api.http.idempotency import REPLAYED, once
from mailroom.api.http.pagination import asked_page, one_of, page, place, word
from mailroom.api.http.prefer_wait import preferred_seconds, wait_for
from mailroom.api.http.request import job_body
from mailroom.api.http.serialize import answered, in_order
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

#: A longer string in the arguments, such as an image, is told by its length.
SHOWN_MAX_CHARACTERS = 200


def start_job(asked: object) -> str:
    """Accept a job, as `POST /v1/jobs` does, and return its id; it is on disk then.

    Raises:
      InvalidMessage: it is no job. The application answers 422.
      StoreUnavailable: it was not accepted; CommitUnanswered, which is one, that it may have been. The application answers 503.
    """
    return _accept(services().reader.job(asked))


def find_job(id: str) -> JobJson | None:
    """Return where a job is, as `GET /v1/jobs/<id>` shows it; None if there is no such job."""
    details = _details(id)
    return None if details is None else job_json(details)


@blueprint.post("/v1/jobs")
def post_job() -> Response:
    """Accept a job; answers 202 at once, or when it has ended if the client prefers to wait."""
    accepted, replayed = once(lambda key: _kept_answer(_accept(services().reader.job(job_body()), key)))
    id = accepted.location.removeprefix("/v1/jobs/")
    # For a replayed one, too: it has gone on since, and the client may want to wait for its end.
    answer = _waited_for(id)
    # 200 for those only who waited for it: another client shall not see 200 or 202 by chance.
    answer.status_code = (
        200 if "Preference-Applied" in answer.headers and answer.json["status"] in FINAL else 202  # type: ignore[index]
    )
    answer.headers["Location"] = accepted.location
    answer.headers.update(REPLAYED if replayed else {})
    return answer


@blueprint.get("/v1/jobs")
def list_jobs() -> Response:
    """The newest jobs, a page at a time."""
    return page(*find_jobs(request.args), job_summary_json)


def find_jobs(asked: Mapping[str, str]) -> tuple[list[Any], int]:
    """The rows that a query asks for, and one more where there are others; and how many it asked for. Raises InvalidMessage."""
    limit, after = asked_page(place, asked, also=one_of("status", JobState, asked))
    status, name, queue = (word(field, asked) for field in ("status", "name", "queue"))
    return services().jobs.page(limit=limit + 1, before=after, state=status, name=name, queue=queue), limit


@blueprint.get("/v1/jobs/<id>")
def get_job(id: str) -> Response:
    """Return where a job is; `Prefer: wait=N` answers when it has ended, after N seconds at most."""
    if waited := _wait(id, guard.standing()):
        guard.check_anew()
    return _answer(find_job(id), id, waited)


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
    """Take a job back, with the mail that waits for it; 409 if it has ended."""
    may_make(location=f"/v1/jobs/{quote(id, safe='')}")
    found = services().jobs.cancel(id) if is_id(id) else None
    if found is None:
        raise _unknown(id)
    if found in FINAL:
        raise Conflict(f"expected a job that has not ended, got one that is {found}")
    return jsonify(find_job(id))


@blueprint.post("/v1/jobs/<id>/retry")
def retry_job(id: str) -> Response:
    """Run a job that has ended once more, as a new one with a mail of its own; 409 if it has not."""
    return retry(id)


def retry(id: str, form: Key | None = None) -> Response:
    """Run a job that has ended once more, but once only for each form of a page."""
    accepted, replayed = once(lambda key: _kept_answer(_accept(_again(id), key)), form)
    return answered(replace(accepted, body=find_job(accepted.location.removeprefix("/v1/jobs/"))), replayed)


def _again(id: str) -> JobSubmission:
    """Run the job once more, with its mail on the terms that it had; but no moment, as that may be past."""
    details = _details(id)
    if details is None:
        raise _unknown(id)
    if details.row["state"] not in FINAL:
        raise Conflict(f"expected a job that has ended, got one that is {details.row['state']}")
    if not registry.is_known(
        name := details.row["name"]
    ):  # Nobody would ever run it; it may never have been a job.
        raise Conflict(f"expected a job of a type that is known here, got one of {name!r}")
    again = services().jobs.again(id, new_id())
    mail, row = services().outbox.message_of(id), _mail_row(details)
    if mail is None or row is None:
        return JobSubmission(again, None)
    terms = SendOptions(max_attempts=row["max_attempts"])
    return JobSubmission(
        again,
        replace(
            services().reader.mail_of_rerun(mail, again),
            terms=terms,
            webhook=row["webhook"],
            queue=row["queue"],
        ),
    )


def _mail_row(details: JobDetails) -> dict[str, Any] | None:
    message = services().outbox.details(details.message["id"]) if details.message else None
    return message.row if message else None


@blueprint.get("/v1/job-types")
def list_job_types() -> Response:
    """List what can be run here, with the arguments as JSON Schema."""
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
    if not details.file:
        return None
    return {
        "name": details.file["name"],
        "content_type": details.file["content_type"],
        "size": details.file["size"],
        "url": f"/v1/jobs/{details.row['id']}/file",
    }


def _message_json(details: JobDetails) -> AcceptedJson | None:
    message = details.message
    return {"id": message["id"], "status": message["state"]} if message else None


def job_summary_json(row: Mapping[str, Any]) -> JobSummaryJson:
    """Return a job as a list has it."""
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
    steps = [
        (row["created_at"], "accepted", None, None),
        (row["started_at"], "job started", row["attempt"], None),
        *((event["at"], event["event"], event["attempt"], event["detail"]) for event in details.events),
    ]
    return in_order(steps)


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_shortened(inner) for inner in value]
    return (
        f"{value[:60]}… ({len(value)} characters)"
        if isinstance(value, str) and len(value) > SHOWN_MAX_CHARACTERS
        else value
    )


def _accept(order: JobSubmission, key: Key | None = None) -> str:
    answer = _kept_answer(order.job.id)
    kept = Kept(key=key, answer=answer) if key else None
    may_make(order.job.id, location=answer.location)
    if order.mail:
        services().outbox.accept(permitted(order.mail), kept, guard.charge())
    elif kept:
        services().keys.accept_job(order.job, kept)
    else:
        services().jobs.accept(order.job)
    services().run(order.job)
    return order.job.id


def _kept_answer(id: str) -> StoredAnswer:
    return StoredAnswer(status=202, location=f"/v1/jobs/{id}")


def _waited_for(id: str) -> Response:
    """Tell how a job that was accepted stands, after waiting for its end if the client prefers that.

    One that is no longer served by then, or a database that has gone away, leaves it at what was accepted.
    """
    job, is_served = find_job(id), guard.standing()
    with suppress(StoreUnavailable):
        if (waited := _wait(id, is_served)) and is_served():
            return _answer(find_job(id), id, waited)
    return _answer(job, id, 0)


def _wait(id: str, is_served: Callable[[], bool]) -> int:
    """Wait as the client prefers, until the job has ended or who asks is no longer served.

    Return for how many seconds at most; 0: not at all.
    """
    seconds = preferred_seconds()
    if not seconds or _state(id) is None:
        return 0
    return seconds if wait_for(lambda: _state(id) in FINAL or not is_served(), seconds) else 0


def _answer(job: JobJson | None, id: str, waited: int) -> Response:
    if job is None:
        raise _unknown(id)
    answer = jsonify(job)
    if waited:
        answer.headers["Preference-Applied"] = f"wait={waited}"
    return answer


def _details(id: str) -> JobDetails | None:
    return services().jobs.details(id) if is_id(id) else None


def _state(id: str) -> JobState | None:
    return services().jobs.state(id) if is_id(id) else None


def _unknown(id: str) -> NotFound:
    return NotFound(f"expected the id of a job, got {id[:80]!r}")
