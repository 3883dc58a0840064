"""Writes a message as the API answers it."""

from collections.abc import Iterable, Mapping
from typing import Any

from flask import Response, jsonify
from werkzeug.exceptions import NotFound

from mailroom.api.answers import (
    EventJson,
    JobOfMessageJson,
    MessageJson,
    MessageSummaryJson,
    RecipientJson,
)
from mailroom.api.http.idempotency import REPLAYED
from mailroom.api.http.why import why
from mailroom.api.services import services
from mailroom.model.ids import is_id
from mailroom.model.message import FINAL
from mailroom.model.times import timestamp
from mailroom.store.messages.idempotency import StoredAnswer
from mailroom.store.messages.outbox import MessageDetails
from mailroom.store.workers import hanging_accounts

#: When (None: not yet), what, at which attempt, and what more there is to say.
Step = tuple[int | None, str, int | None, str | None]


def find(id: str) -> MessageDetails:
    """Raises NotFound."""
    standing = services().outbox.details(id) if is_id(id) else None
    if standing is None:
        raise unknown(id)
    return standing


def unknown(id: str) -> NotFound:
    return NotFound(f"expected the id of a message, got {id[:80]!r}")


def answered(stored: StoredAnswer, replayed: bool) -> Response:
    """Make the response of an answer, which its client gets, and gets again."""
    body: Mapping[str, Any] | None = stored.body
    if body is None:
        body = message_json(find(stored.location.removeprefix("/v1/messages/")))
    answer = jsonify(body)
    answer.status_code = stored.status
    if stored.location:
        answer.headers["Location"] = stored.location
    answer.headers.update(REPLAYED if replayed else {})
    return answer


def message_json(standing: MessageDetails) -> MessageJson:
    """Return a message with all that is known of it."""
    row = standing.row
    return {
        "id": row["id"],
        "status": row["state"],
        "subject": standing.content.get("subject", ""),
        "tags": standing.content.get("tags", []),
        "metadata": standing.content.get("metadata", {}),
        "why": _why(standing),
        "created_at": timestamp(row["created_at"]),
        "next_attempt_at": timestamp(row["next_attempt_at"]),
        "expires_at": timestamp(row["expires_at"]),
        "max_attempts": row["max_attempts"],
        "resent_of": row["resent_of"],
        "message_id": f"<{row['message_id']}>",
        "attempts": attempts(row),
        "uncertain_attempts": row["uncertain_attempts"],
        "recipients": [
            {**_recipient_json(person), "reply": person["reply"]} for person in standing.recipients
        ],
        "job": _job_json(standing.job) if standing.job else None,
        "timeline": timeline(standing),
    }


def _job_json(job: Mapping[str, Any]) -> JobOfMessageJson:
    return {
        "id": job["id"],
        "name": job["name"],
        "status": job["state"],
        "progress": job["progress"] / 1000,
        "step": job["step"],
    }


def _why(standing: MessageDetails) -> str:
    lease_seconds, hanging = services().settings.LEASE_SECONDS, dict[str, str]()
    if standing.row["state"] not in FINAL:
        hanging = hanging_accounts(services().outbox.database, lease_seconds)
    accounts = [account.name for account in services().known_accounts]
    return why(
        standing,
        services().publisher(),
        lease_seconds=lease_seconds,
        hanging=hanging,
        accounts=accounts,
        broker_trouble=services().broker_trouble,
    )


def timeline(standing: MessageDetails) -> list[EventJson]:
    """List what happened, in order; the first steps are in the rows themselves."""
    row, job = standing.row, standing.job
    steps: list[Step] = [(row["created_at"], "accepted", None, None)]
    if job:
        steps += [(job["started_at"], "job started", None, job["name"])]
    steps += [(e.at, e.event, e.attempt, e.detail) for e in standing.events]
    steps += [(row["published_at"], "queued", None, None)]
    steps += [(row["next_attempt_at"], "next attempt", None, None)]
    return in_order(steps)


def in_order(steps: Iterable[Step]) -> list[EventJson]:
    """List the steps that have come; of two at the same moment, the first given comes first."""
    events = []
    for at, name, attempt, detail in sorted(steps, key=lambda step: step[0] or 0):
        if at is None:
            continue
        event: EventJson = {"at": timestamp(at), "event": name}
        if attempt:
            event["attempt"] = attempt
        if detail:
            event["detail"] = detail
        events.append(event)
    return events


def message_summary_json(row: Mapping[str, Any]) -> MessageSummaryJson:
    """Return a message as a list has it."""
    return {
        "id": row["id"],
        "status": row["state"],
        "subject": row["subject"],
        "tags": row["tags"],
        "queue": row["queue"],
        "created_at": timestamp(row["created_at"]),
        "next_attempt_at": timestamp(row["next_attempt_at"]),
        "attempts": attempts(row),
        "reason": row["reason"],
        "recipients": [_recipient_json(person) for person in row["recipients"]],
    }


def attempts(row: Mapping[str, Any]) -> int:
    """Count the attempts, without those that were given back before anything was sent."""
    made: int = row["attempt"] - row["given_back"]
    return made


def _recipient_json(person: Mapping[str, Any]) -> RecipientJson:
    return {
        "email": person["address"],
        "name": person["name"],
        "kind": person["kind"],
        "status": person["state"],
    }
