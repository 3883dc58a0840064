"""Answers errors with problem details (RFC 9457): which field is wrong, what was expected, what came."""

import json
import logging
from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, g, request
from werkzeug.exceptions import HTTPException, InternalServerError, RequestEntityTooLarge

from mailroom.config.logs import request_id
from mailroom.model.errors import CommitUnanswered, InvalidMessage, MalformedJSON, StoreUnavailable
from mailroom.store.db.database import written

log = logging.getLogger("mailasync.api")
blueprint = Blueprint("problems", __name__)

PROBLEM_TYPE = "application/problem+json"
#: How long a client should wait before it tries again, if the database is not available.
RETRY_AFTER_SECONDS = 2


def problem(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> Response:
    """Make the response; `members` are further members of the problem's object."""
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
        **members,
    }
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
    return problem(
        422, error.code, "The request is not valid", f"{count} wrong: {error}", errors=errors
    )


@blueprint.before_app_request
def _note_written() -> None:
    g.written_before = written.get()


def may_make(*ids: str, location: str = "") -> None:
    """Note the ids that this request may create, and the URL to look at, for `_unconfirmed`."""
    g.may_make = ids, location


def may_repeat(how: str) -> None:
    """Note that this request is safe to repeat, as it has a key; `how` tells the client how to repeat it."""
    g.may_repeat = how


@blueprint.app_errorhandler(StoreUnavailable)
def unavailable(error: StoreUnavailable) -> Response:
    """Answer 503: nothing was done; or it may have been, after a commit that was or may have been made."""
    log.error("%s", error)
    if isinstance(error, CommitUnanswered) or written.get() > g.get(
        "written_before", written.get()
    ):
        return _unconfirmed()
    return problem(
        503,
        "store_unavailable",
        "The database is not available",
        "nothing was accepted or changed; try again",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _unconfirmed() -> Response:
    """Answer 503 to a request that may have been done, with the URL where the client can look.

    Retry-After is only there if the request is safe to repeat: some clients repeat it by themselves then.
    """
    ids, location = g.get("may_make", ((), ""))
    how: str = g.get("may_repeat", "")
    members: dict[str, Any] = {}
    headers = {}
    if location:
        headers["Location"] = location
    if how:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if ids and location:
        members["id"] = ids[0]
    elif ids:
        members["ids"] = ids
    return problem(
        503,
        "commit_unconfirmed",
        f"It may have been {'accepted' if ids else 'done'}",
        f"the database did not confirm it; {_advice(ids, location, how)}",
        **members,
        headers=headers,
    )


def _advice(ids: Sequence[str], location: str, how: str) -> str:
    """Say what the client can do; the arguments are those of `may_make` and `may_repeat`."""
    look = "look how things stand"
    if location:
        look = f"look at {location}"
    elif ids:
        look = f"look at /v1/messages/{ids[0]}"
    if how:
        return f"{how}, and it is accepted once; or {look}"
    if ids:
        return (
            f"{look} before you send it again, as it may take a while to appear; "
            "with an Idempotency-Key sending it again is safe"
        )
    return f"{look} before you repeat it"


@blueprint.app_errorhandler(HTTPException)
def http(error: HTTPException) -> Response:
    """Answer any other HTTP error; it keeps its own headers, such as Allow with a 405."""
    status = error.code or 500
    headers = {
        name: value
        for name, value in error.get_headers()
        if name.lower() not in ("content-type", "content-length")
    }
    code = (error.name or "error").lower().replace(" ", "_")
    detail = error.description or ""
    if isinstance(error, RequestEntityTooLarge):
        got = request.content_length or "more"
        detail = f"expected at most {request.max_content_length} bytes, got {got}"
    return problem(status, code, error.name or "Error", detail, headers=headers)


@blueprint.app_errorhandler(Exception)
def unforeseen(error: Exception) -> Response:
    log.error("a request failed: %s", type(error).__name__, exc_info=error)
    return http(InternalServerError("this is our fault, and it is in the log"))
