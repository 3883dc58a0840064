"""Messages over HTTP: accept one, and tell where it is."""

from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, jsonify
from werkzeug.exceptions import NotFound

from mailroom.api.bodies import json_body
from mailroom.api.services import services
from mailroom.api.why import why
from mailroom.store.outbox import Standing, is_id

blueprint = Blueprint("messages", __name__)


@blueprint.post("/")
def post_tutorial() -> Response:
    """Accept a mail that goes after the simulated heavy work; answers 200 as soon as it is on disk."""
    return _accept(services().settings.SIMULATED_WORK_SECONDS, status=200)


@blueprint.post("/v1/messages")
def post_message() -> Response:
    """Accept a mail that goes at once; answers 202."""
    return _accept(0, status=202)


@blueprint.get("/v1/messages/<id>")
def get_message(id: str) -> Response:
    """Where a message is, why it is there, and how it came there."""
    standing = services().outbox.standing(id) if is_id(id) else None
    if standing is None:
        raise NotFound(f"expected the id of a message, got {id[:80]!r}")
    return jsonify(shown(standing))


def _accept(work_seconds: float, *, status: int) -> Response:
    acceptance = services().orders.mail(json_body(), work_seconds=work_seconds)
    services().outbox.accept(acceptance)
    if acceptance.job:
        services().run(acceptance.job)
    else:
        services().send(acceptance.id)
    answer = jsonify({"id": acceptance.id, "status": acceptance.state})
    answer.status_code = status
    answer.headers["Location"] = f"/v1/messages/{acceptance.id}"
    return answer


def shown(standing: Standing) -> dict[str, Any]:
    """A message as the API shows it."""
    row = standing.row
    return {
        "id": row["id"],
        "status": row["state"],
        "why": why(standing, services().relay(), lease_seconds=services().settings.LEASE_SECONDS),
        "created_at": timestamp(row["created_at"]),
        "next_attempt_at": timestamp(row["next_attempt_at"]),
        "message_id": f"<{row['message_id']}>",
        "attempts": row["attempt"],
        "uncertain_attempts": row["uncertain_attempts"],
        "recipients": [{"email": p["address"], "name": p["name"], "status": p["state"], "reply": p["reply"]} for p in standing.recipients],
        "job": standing.job and {"id": standing.job["id"], "name": standing.job["name"], "status": standing.job["state"],
                                 "progress": standing.job["progress"] / 1000, "step": standing.job["step"]},
        "timeline": timeline(standing),
    }


def timeline(standing: Standing) -> list[dict[str, Any]]:
    """What happened, in order; the first steps are told by the rows themselves."""
    row, job = standing.row, standing.job
    steps: list[tuple[int | None, str, int | None, str | None]] = [(row["created_at"], "accepted", None, None)]
    if job:
        steps += [(job["started_at"], "job started", None, job["name"])]
    steps += [(e.at, e.event, e.attempt, e.detail) for e in standing.events]
    steps += [(row["published_at"], "queued", None, None)]
    steps += [(row["next_attempt_at"], "next attempt", None, None)]
    steps.sort(key=lambda step: step[0] or 0)
    return [{"at": timestamp(at), "event": event} | ({"attempt": attempt} if attempt else {}) | ({"detail": detail} if detail else {})
            for at, event, attempt, detail in steps if at is not None]


def timestamp(ms: int | None) -> str | None:
    """RFC 3339, UTC."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
