"""Reads the body of a request: JSON, or a form with JSON and files in it."""

import base64

from flask import abort, request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge, UnsupportedMediaType

from mailroom.api.auth import guard
from mailroom.api.problems import problem
from mailroom.api.services import services
from mailroom.model.errors import FieldError, InvalidMessage, MalformedJSON
from mailroom.submission.raw_message import with_crlf
from mailroom.submission.strict_json import parse_json

#: The media type of a whole mail (RFC 2046, 5.2.1).
RAW_TYPE = "message/rfc822"

#: The files of a form by field, "" for a file whose field has no name.
Uploads = dict[str, list[FileStorage]]


def json_body() -> object:
    """Read the body as JSON.

    Raises:
      MalformedJSON: the body is cut off, or is not JSON.
      HTTPException: it is too large, encoded, or of another media type.
    """
    return parse_json(_whole_body("application/json"))


def raw_body() -> bytes:
    """Read the body as a mail with CRLF line ends; raises what `json_body` raises."""
    return with_crlf(_whole_body(RAW_TYPE))


def _whole_body(media_type: str) -> bytes:
    _refuse_encoded()
    if request.mimetype != media_type:
        raise UnsupportedMediaType(
            f"expected Content-Type {media_type}, got {request.mimetype or 'none'!r}"
        )
    body, length = request.get_data(), request.content_length
    _check_access_again()
    if length is None and len(body) >= services().settings.REQUEST_MAX_BYTES:
        raise RequestEntityTooLarge  # Without a length werkzeug cuts a longer body off, in silence.
    if len(body) < (length or 0):
        # The server does not report a client that hung up in the middle, either.
        raise MalformedJSON(f"expected {length} bytes, as Content-Length says, got {len(body)}")
    return body


def mail_body() -> object:
    """Read a mail as JSON, or as a form with that JSON in the field `message` and with attached files.

    A file in the field `attachments` is attached; another field's name is the content id by which the HTML
    shows its file.
    """
    if request.mimetype != "multipart/form-data":
        return json_body()
    mail, uploads = _form("message")
    if not isinstance(mail, dict) or not isinstance(mail.get("attachments", []), list):
        return mail  # The reader of mails says what is wrong with it.
    attachments = [*mail.get("attachments", [])]
    for field, files in uploads.items():
        attachments += [_attachment(field, file) for file in files]
    return {**mail, "attachments": attachments}


def job_body() -> object:
    """Read a job as JSON, or as a form whose field `job` is that JSON and whose files are arguments.

    The name of a file's field is the name of the argument, and its content comes in base64.
    """
    if request.mimetype != "multipart/form-data":
        return json_body()
    job, uploads = _form("job")
    if not isinstance(job, dict) or not isinstance(job.get("args", {}), dict):
        return job  # The reader of jobs says what is wrong with it.
    args = {**job.get("args", {})}
    for name, files in uploads.items():
        if name in args or len(files) > 1:
            raise InvalidMessage(
                [FieldError(f"#/args/{name}", "expected it once, got it more often")]
            )
        args[name] = base64.b64encode(files[0].read()).decode()
    return {**job, "args": args}


def _attachment(field: str, file: FileStorage) -> dict[str, object]:
    return {
        "filename": file.filename or "file",
        "content": file.read(),
        "content_type": file.content_type or "application/octet-stream",
        "content_id": "" if field == "attachments" else field,
    }


def _form(field: str) -> tuple[object, Uploads]:
    """Return the JSON in the form's only text field, which must have this name, and the form's files."""
    _refuse_encoded()
    # Flask bounds a form's text fields by 500 kB unless this says otherwise.
    request.max_form_memory_size = services().settings.REQUEST_MAX_BYTES
    # A part may come without a name, which is None here.
    fields = {name or "": values for name, values in request.form.to_dict(flat=False).items()}
    uploads = {name or "": files for name, files in request.files.to_dict(flat=False).items()}
    _check_access_again()
    if [*fields] != [field] or len(fields[field]) != 1:
        names = ", ".join(sorted(fields))[:200] or "none"
        raise MalformedJSON(
            f"expected one form field `{field}` with JSON beside the files, got {names}"
        )
    return parse_json(fields[field][0].encode()), uploads


def _check_access_again() -> None:
    if refused := guard.check_after_body():
        abort(refused)


def _refuse_encoded() -> None:
    """Answer 415 to a body in a content coding such as gzip: none is taken (RFC 9110, 15.5.16)."""
    coding = request.headers.get("Content-Encoding", "").strip()
    if coding.lower() in ("", "identity"):
        return
    abort(
        problem(
            415,
            "unsupported_content_encoding",
            "The body is encoded",
            f"expected a body without Content-Encoding, got {coding[:80]!r}; send it as it is",
            headers={"Accept-Encoding": "identity"},
        )
    )
