"""A message as the API shows it."""

from collections.abc import Iterable, Mapping
from typing import Any

from flask import Response, jsonify
from werkzeug.exceptions import NotFound

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
    standing = services().outbox.standing(id) if is_id(id) else None
    if standing is None:
        raise unknown(id)
    return standing


def unknown(id: str) -> NotFound:
    return NotFound(f"expected the id of a message, got {id[:80]!r}")


def answered(told: StoredAnswer, replayed: bool) -> Response:
    """Make the response of an answer, which its client gets, and gets again."""
    answer = jsonify(
        told.body if told.body is not None else shown(find(told.location.removeprefix("/v1/messages/")))
    )
    answer.status_code = told.status
    if told.location:
        answer.headers["Location"] = told.location
    answer.headers.update(REPLAYED if replayed else {})
    return answer


def shown(standing: MessageDetails) -> dict[str, Any]:
    """A message with all that is known of it."""
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
        "recipients": [recipient(person) | {"reply": person["reply"]} for person in standing.recipients],
        "job": standing.job
        and {
            "id": standing.job["id"],
            "name": standing.job["name"],
            "status": standing.job["state"],
            "progress": standing.job["progress"] / 1000,
            "step": standing.job["step"],
        },
        "timeline": timeline(standing),
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


def timeline(standing: MessageDetails) -> list[dict[str, Any]]:
    """List what happened, in order; the first steps are told by the rows themselves."""
    row, job = standing.row, standing.job
    steps: list[Step] = [(row["created_at"], "accepted", None, None)]
    if job:
        steps += [(job["started_at"], "job started", None, job["name"])]
    steps += [(e.at, e.event, e.attempt, e.detail) for e in standing.events]
    steps += [(row["published_at"], "queued", None, None)]
    steps += [(row["next_attempt_at"], "next attempt", None, None)]
    return in_order(steps)


def in_order(steps: Iterable[Step]) -> list[dict[str, Any]]:
    """List the steps that have come; of two at the same moment, the first given comes first."""
    return [
        {"at": timestamp(at), "event": event}
        | ({"attempt": attempt} if attempt else {})
        | ({"detail": detail} if detail else {})
        for at, event, attempt, detail in sorted(steps, key=lambda step: step[0] or 0)
        if at is not None
    ]


def summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """A message in a list."""
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
        "recipients": [recipient(person) for person in row["recipients"]],
    }


def attempts(row: Mapping[str, Any]) -> int:
    """Count the attempts, without those that were given back before anything was sent."""
    made: int = row["attempt"] - row["given_back"]
    return made


def recipient(person: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "email": person["address"],
        "name": person["name"],
        "kind": person["kind"],
        "status": person["state"],
    }
