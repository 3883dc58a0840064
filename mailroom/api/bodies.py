"""Reads the body of a request: JSON, or a form with JSON and files in it."""

import base64
from typing import Any

from flask import request
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from mailroom.api.services import services
from mailroom.mail.errors import FieldError, InvalidMessage, MalformedJSON
from mailroom.mail.intake import parse_json


def json_body() -> object:
    """Raises MalformedJSON."""
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(f"expected Content-Type application/json, got {request.mimetype or 'none'!r}")
    body = request.get_data()
    if request.content_length is None and len(body) >= services().settings.REQUEST_MAX_BYTES:
        raise RequestEntityTooLarge  # Without a length werkzeug cuts a longer body off, in silence.
    return parse_json(body)


def job_body() -> object:
    """A job as JSON; or as a form whose field `job` is that JSON, and whose files are arguments of their names."""
    if request.mimetype != "multipart/form-data":
        return json_body()
    request.max_form_memory_size = services().settings.REQUEST_MAX_BYTES  # Else Flask bounds the field `job` by a number that nobody set.
    fields, uploads = request.form.to_dict(flat=False), request.files.to_dict(flat=False)
    if [*fields] != ["job"] or len(fields["job"]) != 1:
        raise MalformedJSON(f"expected one form field `job` with JSON beside the files, got {', '.join(sorted(fields))[:200] or 'none'}")
    job = parse_json(fields["job"][0].encode())
    if not isinstance(job, dict) or not isinstance(job.get("args", {}), dict):
        return job  # Its reader says what is wrong with it.
    args: dict[str, Any] = {**job.get("args", {})}
    for name, files in uploads.items():
        if name in args or len(files) > 1:
            raise InvalidMessage([FieldError(f"#/args/{name}", "expected it once, got it more often")])
        args[name] = base64.b64encode(files[0].read()).decode()
    return {**job, "args": args}
