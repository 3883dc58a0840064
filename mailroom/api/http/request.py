"""Reads the body of a request: JSON, or a form with JSON and files in it."""

import base64
from typing import Any

from flask import abort, request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from mailroom.api.auth import guard
from mailroom.api.problems import problem
from mailroom.api.services import services
from mailroom.model.errors import FieldError, InvalidMessage, MalformedJSON
from mailroom.submission.strict_json import parse_json


def json_body() -> object:
    """Raises MalformedJSON."""
    _refuse_encoded()
    if request.mimetype != "application/json":
        raise UnsupportedMediaType(
            f"expected Content-Type application/json, got {request.mimetype or 'none'!r}"
        )
    body, length = request.get_data(), request.content_length
    _check_again()
    if length is None and len(body) >= services().settings.REQUEST_MAX_BYTES:
        raise RequestEntityTooLarge  # Without a length werkzeug cuts a longer body off, in silence.
    if len(body) < (length or 0):  # Nor does the server say that a client hung up before it had sent all.
        raise MalformedJSON(f"expected {length} bytes, as Content-Length says, got {len(body)}")
    return parse_json(body)


def mail_body() -> object:
    """A mail as JSON; or as a form whose field `message` is that JSON, and whose files go with it.

    A file of the field `attachments` is attached; the name of any other field is the content id by which the HTML shows it.
    """
    if request.mimetype != "multipart/form-data":
        return json_body()
    mail, uploads = _form("message")
    if not isinstance(mail, dict) or not isinstance(mail.get("attachments", []), list):
        return mail  # Its reader says what is wrong with it.
    files = [
        {
            "filename": file.filename or "file",
            "content": file.read(),
            "content_type": file.content_type or "application/octet-stream",
            "content_id": "" if name == "attachments" else name,
        }
        for name, listed in uploads.items()
        for file in listed
    ]
    return {**mail, "attachments": [*mail.get("attachments", []), *files]}


def _form(field: str) -> tuple[object, dict[str, list[FileStorage]]]:
    """The JSON of the form's one field, and its files."""
    _refuse_encoded()
    request.max_form_memory_size = (
        services().settings.REQUEST_MAX_BYTES
    )  # Else Flask bounds the field by a number that nobody set.
    # A part may come without a name, which is None here.
    fields = {name or "": values for name, values in request.form.to_dict(flat=False).items()}
    uploads = {name or "": files for name, files in request.files.to_dict(flat=False).items()}
    _check_again()
    if [*fields] != [field] or len(fields[field]) != 1:
        found = ", ".join(sorted(fields))[:200] or "none"
        raise MalformedJSON(f"expected one form field `{field}` with JSON beside the files, got {found}")
    return parse_json(fields[field][0].encode()), uploads


def _check_again() -> None:
    if refused := guard.check_after_body():
        abort(refused)


def _refuse_encoded() -> None:
    """Answer 415 to a body in a content coding such as gzip: none is taken (RFC 9110, 15.5.16)."""
    coding = request.headers.get("Content-Encoding", "").strip()
    if coding.lower() not in ("", "identity"):
        abort(
            problem(
                415,
                "unsupported_content_encoding",
                "The body is encoded",
                f"expected a body without Content-Encoding, got {coding[:80]!r}; send it as it is",
                headers={"Accept-Encoding": "identity"},
            )
        )


def job_body() -> object:
    """A job as JSON; or as a form whose field `job` is that JSON, and whose files are arguments of their names."""
    if request.mimetype != "multipart/form-data":
        return json_body()
    job, uploads = _form("job")
    if not isinstance(job, dict) or not isinstance(job.get("args", {}), dict):
        return job  # Its reader says what is wrong with it.
    args: dict[str, Any] = {**job.get("args", {})}
    for name, files in uploads.items():
        if name in args or len(files) > 1:
            raise InvalidMessage([FieldError(f"#/args/{name}", "expected it once, got it more often")])
        args[name] = base64.b64encode(files[0].read()).decode()
    return {**job, "args": args}
