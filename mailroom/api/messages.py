"""Messages over HTTP: accept one, tell where it is, and do with it what a person asks for."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, jsonify
from werkzeug.exceptions import Conflict, NotFound

from mailroom.api.bodies import json_body
from mailroom.api.idempotency import REPLAYED, once
from mailroom.api.services import services
from mailroom.api.why import why
from mailroom.mail.intake import AskedMoment, read_fields
from mailroom.mail.message import State
from mailroom.store.actions import UnknownMessage, WrongState
from mailroom.store.idempotency import Answer, Kept, Key
from mailroom.store.outbox import Standing, is_id, new_id

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
    return jsonify(shown(_standing(id)))


@blueprint.post("/v1/messages/<id>/cancel")
def cancel_message(id: str) -> Response:
    """Take it back before it is sent; a job that it waits for goes on."""
    return _act(id, services().actions.cancel)


@blueprint.post("/v1/messages/<id>/hold")
def hold_message(id: str) -> Response:
    """Stop it until somebody releases it."""
    return _act(id, services().actions.hold)


@blueprint.post("/v1/messages/<id>/release")
def release_message(id: str) -> Response:
    """Let go what was held; send once more what is uncertain."""
    return _act(id, services().actions.release)


@blueprint.post("/v1/messages/<id>/retry")
def retry_message(id: str) -> Response:
    """Try it now; one that failed or expired gets a new round, for those who do not have it."""
    return _act(id, services().actions.retry)


@blueprint.post("/v1/messages/<id>/reschedule")
def reschedule_message(id: str) -> Response:
    """Send it at another time."""
    asked = read_fields(AskedMoment, json_body())
    return _act(id, lambda id: services().actions.reschedule(id, at=asked.at, delay_seconds=asked.delay or 0))


@blueprint.post("/v1/messages/<id>/resend")
def resend_message(id: str) -> Response:
    """Send what has ended once more, as a new message; answers 202 with that."""
    def resend(key: Key | None) -> Answer:
        new = new_id()
        answer = Answer(status=202, location=f"/v1/messages/{new}")
        kept = Kept(key=key, answer=answer) if key else None
        _done(id, lambda id: services().actions.resend(id, new, message_id=services().orders.message_id(new), kept=kept))
        _hand_over(_standing(new))
        return answer
    return _answered(*once(resend))


def _accept(work_seconds: float, *, status: int) -> Response:
    def accept(key: Key | None) -> Answer:
        acceptance = services().orders.mail(json_body(), work_seconds=work_seconds)
        answer = Answer(status=status, location=f"/v1/messages/{acceptance.id}", body={"id": acceptance.id, "status": acceptance.state})
        services().outbox.accept(replace(acceptance, kept=Kept(key=key, answer=answer)) if key else acceptance)
        if acceptance.job:
            services().run(acceptance.job)
        else:
            services().send(acceptance.id)
        return answer
    return _answered(*once(accept))


def _answered(told: Answer, replayed: bool) -> Response:
    answer = jsonify(told.body if told.body is not None else shown(_standing(told.location.removeprefix("/v1/messages/"))))
    answer.status_code = told.status
    answer.headers["Location"] = told.location
    answer.headers.update(REPLAYED if replayed else {})
    return answer


def _act(id: str, action: Callable[[str], None]) -> Response:
    _done(id, action)
    standing = _standing(id)
    _hand_over(standing)
    return jsonify(shown(standing))


def _done(id: str, action: Callable[[str], None]) -> None:
    try:
        if not is_id(id):
            raise UnknownMessage
        action(id)
    except UnknownMessage:
        raise _unknown(id) from None
    except WrongState as e:
        raise Conflict(str(e)) from None


def _hand_over(standing: Standing) -> None:
    """Tell the workers now of what is queued now. A suspect must not share a nudge, and a sweeper sees to that."""
    row = standing.row
    if row["state"] == State.QUEUED and row["published_at"] is None and not row["crashes"] and row["queue"] == "mail":
        services().send(row["id"])


def _standing(id: str) -> Standing:
    standing = services().outbox.standing(id) if is_id(id) else None
    if standing is None:
        raise _unknown(id)
    return standing


def _unknown(id: str) -> NotFound:
    return NotFound(f"expected the id of a message, got {id[:80]!r}")


def shown(standing: Standing) -> dict[str, Any]:
    """A message as the API shows it."""
    row = standing.row
    return {
        "id": row["id"],
        "status": row["state"],
        "why": why(standing, services().relay(), lease_seconds=services().settings.LEASE_SECONDS),
        "created_at": timestamp(row["created_at"]),
        "next_attempt_at": timestamp(row["next_attempt_at"]),
        "expires_at": timestamp(row["expires_at"]),
        "max_attempts": row["max_attempts"],
        "resent_of": row["resent_of"],
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
