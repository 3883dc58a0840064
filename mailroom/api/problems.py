"""Errors as problem details (RFC 9457): what was wrong, where, what was expected and what came."""

import json
import logging
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import HTTPException, InternalServerError, RequestEntityTooLarge

from mailroom.logs import request_id
from mailroom.mail.errors import InvalidMessage, MalformedJSON, StoreUnavailable

log = logging.getLogger("mailasync.api")
blueprint = Blueprint("problems", __name__)

PROBLEM_TYPE = "application/problem+json"
#: Seconds a client should wait when the database is away.
RETRY_AFTER_SECONDS = 2


def problem(status: int, code: str, title: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> Response:
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


@blueprint.app_errorhandler(StoreUnavailable)
def unavailable(error: StoreUnavailable) -> Response:
    log.error("%s", error)
    return problem(503, "store_unavailable", "The database is not available", "nothing can be accepted or told; try again",
                   headers={"Retry-After": str(RETRY_AFTER_SECONDS)})


@blueprint.app_errorhandler(HTTPException)
def http(error: HTTPException) -> Response:
    """Any other refusal; its own headers stay, such as Allow with a 405 and Retry-After with a 429."""
    status = error.code or 500
    headers = {name: value for name, value in error.get_headers() if name.lower() not in ("content-type", "content-length")}
    code = (error.name or "error").lower().replace(" ", "_")
    detail = error.description or ""
    if isinstance(error, RequestEntityTooLarge):
        detail = f"expected at most {request.max_content_length} bytes, got {request.content_length or 'more'}"
    return problem(status, code, error.name or "Error", detail, headers=headers)


@blueprint.app_errorhandler(Exception)
def unforeseen(error: Exception) -> Response:
    log.error("a request failed: %s", type(error).__name__, exc_info=error)
    return http(InternalServerError("this is our fault, and it is in the log"))
