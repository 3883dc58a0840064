"""Errors as problem details (RFC 9457): what was wrong, where, what was expected and what came."""

import json
import logging
from typing import Any

from flask import Blueprint, Response, g, request
from werkzeug.exceptions import HTTPException, InternalServerError, RequestEntityTooLarge

from mailroom.config.logs import request_id
from mailroom.model.errors import CommitUnanswered, InvalidMessage, MalformedJSON, StoreUnavailable
from mailroom.store.db.database import written

log = logging.getLogger("mailasync.api")
blueprint = Blueprint("problems", __name__)

PROBLEM_TYPE = "application/problem+json"
#: Seconds a client should wait when the database is away.
RETRY_AFTER_SECONDS = 2


def problem(
    status: int, code: str, title: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any
) -> Response:
    body = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail, **more}
    if id := request_id.get():
        body["request_id"] = id
    return Response(json.dumps(body), status=status, content_type=PROBLEM_TYPE, headers=headers)


@blueprint.app_errorhandler(MalformedJSON)
def malformed(error: MalformedJSON) -> Response:
    return problem(400, "malformed_json", "The body is not a JSON object", str(error))


@blueprint.app_errorhandler(InvalidMessage)
def invalid(error: InvalidMessage) -> Response:
    errors = [{"pointer": e.pointer, "detail": e.detail} for e in error.errors]
    count = "1 field is" if len(errors) == 1 else f"{len(errors)} fields are"
    return problem(422, error.code, "The request is not valid", f"{count} wrong: {error}", errors=errors)


@blueprint.before_app_request
def _note_written() -> None:
    g.written_before = written.get()


def may_make(*ids: str, location: str = "") -> None:
    """Note what this request may make, and where that is or what it changes, for a 503 that cannot tell whether it has."""
    g.may_make = ids, location


def may_repeat(how: str) -> None:
    """Note that this request has a key by which it is done once, however often it is sent; and how to send it again."""
    g.may_repeat = how


@blueprint.app_errorhandler(StoreUnavailable)
def unavailable(error: StoreUnavailable) -> Response:
    """Nothing was done, or it may have been: its commit got no answer, or the database was lost after that."""
    log.error("%s", error)
    if isinstance(error, CommitUnanswered) or written.get() > g.get("written_before", written.get()):
        return _unconfirmed()
    return problem(
        503,
        "store_unavailable",
        "The database is not available",
        "nothing was accepted or changed; try again",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _unconfirmed() -> Response:
    """No Retry-After where sending it again could do it twice: some clients do so by themselves."""
    ids, location = g.get("may_make", ((), ""))
    how: str = g.get("may_repeat", "")
    title = f"It may have been {'accepted' if ids else 'done'}"
    place = location or (f"/v1/messages/{ids[0]}" if ids else "")
    look = f"look at {place}" if place else "look how things stand"
    if how:
        advice = f"{how}, and it is accepted once; or {look}"
    elif ids:
        advice = f"{look} before you send it again, as it may take a while to appear; with an Idempotency-Key sending it again is safe"
    else:
        advice = f"{look} before you repeat it"
    made = {} if not ids else {"id": ids[0]} if location else {"ids": ids}
    return problem(
        503,
        "commit_unconfirmed",
        title,
        f"the database did not confirm it; {advice}",
        **made,
        headers={
            **({"Location": location} if location else {}),
            **({"Retry-After": str(RETRY_AFTER_SECONDS)} if how else {}),
        },
    )


@blueprint.app_errorhandler(HTTPException)
def http(error: HTTPException) -> Response:
    """Answer with any other refusal.

    Its own headers stay, such as Allow with a 405 and Retry-After with a 429.
    """
    status = error.code or 500
    headers = {
        name: value
        for name, value in error.get_headers()
        if name.lower() not in ("content-type", "content-length")
    }
    code = (error.name or "error").lower().replace(" ", "_")
    detail = error.description or ""
    if isinstance(error, RequestEntityTooLarge):
        detail = (
            f"expected at most {request.max_content_length} bytes, got {request.content_length or 'more'}"
        )
    return problem(status, code, error.name or "Error", detail, headers=headers)


@blueprint.app_errorhandler(Exception)
def unforeseen(error: Exception) -> Response:
    log.error("a request failed: %s", type(error).__name__, exc_info=error)
    return http(InternalServerError("this is our fault, and it is in the log"))
