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
    RecipientWithReplyJson,
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

#: A step of a timeline: its time (milliseconds since 1970, None: not yet), name, attempt, and further detail.
Step = tuple[int | None, str, int | None, str | None]


def find(id: str) -> MessageDetails:
    """Return the message with this id.

    Raises:
      NotFound: there is none.
    """
    details = services().outbox.details(id) if is_id(id) else None
    if details is None:
        raise unknown(id)
    return details


def unknown(id: str) -> NotFound:
    return NotFound(f"expected the id of a message, got {id[:80]!r}")


def answered(stored: StoredAnswer, replayed: bool) -> Response:
    """Make the response of a stored answer; one without a body answers with its message as it is now."""
    body: Mapping[str, Any] | None = stored.body
    if body is None:
        body = message_json(find(stored.location.removeprefix("/v1/messages/")))
    response = jsonify(body)
    response.status_code = stored.status
    if stored.location:
        response.headers["Location"] = stored.location
    if replayed:
        response.headers.update(REPLAYED)
    return response


def message_json(details: MessageDetails) -> MessageJson:
    """Return a message with all that is known of it."""
    row, content = details.row, details.content
    return {
        "id": row["id"],
        "status": row["state"],
        "subject": content.get("subject", ""),
        "tags": content.get("tags", []),
        "metadata": content.get("metadata", {}),
        "why": _why(details),
        "created_at": timestamp(row["created_at"]),
        "next_attempt_at": timestamp(row["next_attempt_at"]),
        "expires_at": timestamp(row["expires_at"]),
        "max_attempts": row["max_attempts"],
        "resent_of": row["resent_of"],
        "message_id": f"<{row['message_id']}>",
        "attempts": attempts(row),
        "uncertain_attempts": row["uncertain_attempts"],
        "recipients": _recipients_json(details),
        "job": _job_json(details.job) if details.job else None,
        "timeline": timeline(details),
    }


def _recipients_json(details: MessageDetails) -> list[RecipientWithReplyJson]:
    return [{**_recipient_json(row), "reply": row["reply"]} for row in details.recipients]


def _job_json(job: Mapping[str, Any]) -> JobOfMessageJson:
    return {
        "id": job["id"],
        "name": job["name"],
        "status": job["state"],
        "progress": job["progress"] / 1000,
        "step": job["step"],
    }


def _why(details: MessageDetails) -> str:
    lease_seconds = services().settings.LEASE_SECONDS
    hanging: dict[str, str] = {}
    if details.row["state"] not in FINAL:
        hanging = hanging_accounts(services().outbox.database, lease_seconds)
    return why(
        details,
        services().publisher(),
        lease_seconds=lease_seconds,
        hanging=hanging,
        accounts=[account.name for account in services().known_accounts],
        broker_trouble=services().broker_trouble,
    )


def timeline(details: MessageDetails) -> list[EventJson]:
    """List the steps of a message in order; a few of them are not events, but columns of its row."""
    row, job = details.row, details.job
    steps: list[Step] = [(row["created_at"], "accepted", None, None)]
    if job:
        steps.append((job["started_at"], "job started", None, job["name"]))
    steps += [(event.at, event.event, event.attempt, event.detail) for event in details.events]
    steps.append((row["published_at"], "queued", None, None))
    steps.append((row["next_attempt_at"], "next attempt", None, None))
    return in_order(steps)


def in_order(steps: Iterable[Step]) -> list[EventJson]:
    """Sort the steps that have a time by it; steps of the same millisecond keep their order."""
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
    """Return a message as an item of a list."""
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
        "recipients": [_recipient_json(recipient) for recipient in row["recipients"]],
    }


def attempts(row: Mapping[str, Any]) -> int:
    """Count the attempts, without those that a worker gave back before anything was sent."""
    count: int = row["attempt"] - row["given_back"]
    return count


def _recipient_json(row: Mapping[str, Any]) -> RecipientJson:
    return {
        "email": row["address"],
        "name": row["name"],
        "kind": row["kind"],
        "status": row["state"],
    }
