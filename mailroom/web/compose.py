"""The form to write a mail, next to the inbox where it arrives and to the same request as code."""

import re
from collections.abc import Iterator, Mapping
from email.utils import formataddr
from hashlib import sha256
from typing import Any

from flask import Response, current_app, request
from werkzeug.exceptions import HTTPException

from mailroom.api.auth.guard import needs_key
from mailroom.api.http.idempotency import form_key, once
from mailroom.api.http.serialize import find, message_json
from mailroom.api.routes.messages import accept_mail
from mailroom.api.services import services
from mailroom.jobs import registry
from mailroom.model.errors import FieldError, InvalidMessage, MailroomError, MalformedJSON
from mailroom.model.ids import is_id
from mailroom.model.message import Message
from mailroom.store.messages.idempotency import Key, StoredAnswer
from mailroom.submission.strict_json import parse_json
from mailroom.web.code_samples import body_of, code_of
from mailroom.web.layout import base_url, decimal, may, page, pages, see, stays_here
from mailroom.web.messages import readable

blueprint = pages("compose")

#: Fields of the form that go into the request unchanged.
_PLAIN = ("subject", "contents")
_PEOPLE = ("to", "cc", "bcc", "reply_to")
#: The field of the form for an error of the API, by the beginning of its pointer; the longest match counts.
_FORM_FIELDS = {
    "job/args": "job_args",
    "job": "job",
    "template/variables": "variables",
    "template": "template",
    "attachments": "attachments",
    "delay": "delay",
    "tags": "tags",
    "from": "from",
    **{name: name for name in (*_PLAIN, *_PEOPLE)},
}
#: One of several people, separated by commas, semicolons or lines outside quotes and angle brackets.
_PERSON = re.compile(r'(?:"(?:[^"\\]|\\.)*"|<[^<>]*>|[^,;\n"<]|["<])+')


@blueprint.get("/compose")
def compose() -> Response:
    """Show the form; `?sent=ID` adds the status of a message, `?again=ID` fills in the content of one."""
    sent, again = request.args.get("sent", ""), request.args.get("again", "")
    id = sent or again
    content = readable(services().outbox.content(id)) if is_id(id) else None
    fields = _fields_of(content) if content else {}
    left_out = list(_left_out(content)) if again and content else []
    return _page(fields, sent=message_json(find(sent)) if is_id(sent) else None, left_out=left_out)


@blueprint.post("/compose")
def send() -> Response:
    """Accept the mail as `POST /v1/messages` does, once for each form, or show it as code."""
    fields = {name: values[-1] for name, values in request.form.to_dict(flat=False).items()}
    names = _file_names()
    if fields.get("do") == "code":
        return _page(fields, names=names, shows_code=True)
    try:
        accepted = _accepted(fields)
    except InvalidMessage as e:
        return _page(fields, errors=e.errors, names=names, status=422)
    except (MailroomError, HTTPException) as e:
        # Not left to Flask's error handlers, so that the text stays in the form.
        refusal: Any = current_app.handle_user_exception(e)
        response = current_app.make_response(refusal)
        detail = (response.get_json(silent=True) or {}).get("detail", str(e))
        return _page(
            fields, errors=[FieldError("#", detail)], names=names, status=response.status_code
        )
    return see(f"/compose?sent={accepted.location.rpartition('/')[2]}")


def _accepted(fields: Mapping[str, str]) -> StoredAnswer:
    body = _body(fields, strict=True)
    if files := _files():
        body["attachments"] = files

    def accept(key: Key | None) -> StoredAnswer:
        return accept_mail(body, key=key)

    hashes = [(file["filename"], sha256(file["content"]).hexdigest()) for file in files]
    return once(accept, form_key(fields.get("once", ""), {**body, "attachments": hashes}))[0]


def _page(
    fields: Mapping[str, str],
    *,
    errors: list[FieldError] | None = None,
    names: list[str] | None = None,
    shows_code: bool = False,
    sent: Any = None,
    left_out: list[str] | None = None,
    status: int = 200,
) -> Response:
    return page(
        "compose.html",
        live=sent is not None,
        status=status,
        once=fields.get("once", ""),
        fields=fields,
        errors=_by_field(errors or []),
        sent=sent,
        code=code_of(
            base_url(), _body(fields, strict=False), files=names or [], needs_key=needs_key()
        ),
        shows_code=shows_code,
        kinds=registry.job_types(),
        inbox="inbox" in current_app.blueprints and may("GET", "/inbox/"),
        names=names or [],
        left_out=left_out or [],
        stays_here=stays_here(),
        inbox_port=services().settings.INBOX_PORT,
    )


def _body(fields: Mapping[str, str], *, strict: bool) -> dict[str, Any]:
    """Return the request that the form stands for; `strict` refuses malformed JSON, else it is left out."""
    body: dict[str, Any] = {}
    for name in _PEOPLE:
        if people := _split(_PERSON.findall(fields.get(name, ""))):
            body[name] = people[0] if len(people) == 1 else people
    if sender := fields.get("from", "").strip():
        body["from"] = sender
    for name in _PLAIN:
        if text := fields.get(name, "").replace("\r\n", "\n"):
            body[name] = text
    if template := fields.get("template", "").strip():
        body["template"] = {"name": template} | _json(
            fields, "variables", "#/template/variables", strict
        )
    if job := fields.get("job", ""):
        body["job"] = {"name": job} | _json(fields, "job_args", "#/job/args", strict)
    if tags := _split(fields.get("tags", "").split(",")):
        body["tags"] = tags
    if delay := fields.get("delay", "").strip():
        number = decimal(delay)
        body["delay"] = delay if number is None else number
    if strict:
        body.setdefault("to", "")
    return body


def _split(parts: list[str]) -> list[str]:
    return [stripped for part in parts if (stripped := part.strip())]


def _json(fields: Mapping[str, str], name: str, pointer: str, strict: bool) -> dict[str, Any]:
    """Parse the JSON in a field, and return it under the last name of `pointer`; {} if the field is empty."""
    text = fields.get(name, "").strip()
    if not text:
        return {}
    try:
        return {pointer.rpartition("/")[2]: parse_json(text.encode("utf-8", "surrogatepass"))}
    except MalformedJSON as e:
        if strict:
            raise InvalidMessage([FieldError(pointer, str(e))]) from None
        return {}


def _files() -> list[dict[str, Any]]:
    files = []
    for file in request.files.getlist("attachments"):
        if file.filename:
            content_type = file.content_type or "application/octet-stream"
            files.append(
                {"filename": file.filename, "content": file.read(), "content_type": content_type}
            )
    return files


def _file_names() -> list[str]:
    """Return the names of the attachments; for a request as code, a script sends only the names."""
    uploaded = [file.filename for file in request.files.getlist("attachments") if file.filename]
    return uploaded or [name for name in request.form.getlist("attachments") if name]


def _by_field(errors: list[FieldError]) -> dict[str, list[str]]:
    """Group errors by the field of the form, with "" for those that are about none of its fields."""
    grouped: dict[str, list[str]] = {}
    for error in errors:
        field = _form_field(error.pointer.removeprefix("#/"))
        detail = error.detail if field else f"{error.pointer}: {error.detail}"
        grouped.setdefault(field, []).append(detail)
    return grouped


def _form_field(path: str) -> str:
    for prefix in sorted(_FORM_FIELDS, key=len, reverse=True):
        if f"{path}/".startswith(f"{prefix}/"):
            return _FORM_FIELDS[prefix]
    return ""


def _fields_of(message: Message) -> dict[str, str]:
    """Return the form that would submit this message, as far as the form can."""
    body = body_of(message)
    fields: dict[str, str] = {}
    for name in (*_PEOPLE, "from"):
        if name in body:
            people = body[name] if isinstance(body[name], list) else [body[name]]
            fields[name] = ", ".join(map(_typed, people))
    html = (message.html or "").strip()
    if html and not (html.startswith("<") and html.endswith(">")):
        html = f"<div>{html}</div>"  # Contents that begin with < and end with > are HTML.
    fields["subject"] = message.subject
    fields["contents"] = html or message.text or ""
    fields["tags"] = ", ".join(message.tags)
    return fields


def _typed(person: Any) -> str:
    """Write a person as somebody would type it: an address, or a name with the address in angle brackets."""
    if isinstance(person, str):
        return person
    name, address = person["name"], person["email"]
    if name.isascii():
        return formataddr((name, address), "utf-8")
    return f'"{name.translate(_ESCAPES)}" <{address}>'  # formataddr would encode it (RFC 2047).


_ESCAPES = str.maketrans({'"': r"\"", "\\": r"\\"})


def _left_out(message: Message) -> Iterator[str]:
    """Yield, in words, what the form cannot submit."""
    for file in message.attachments:
        yield f"the attachment {file.name}"
    for name, _ in message.headers:
        yield f"the header field {name}"
    if message.text is not None and message.html is not None:
        yield "the text beside the HTML"
    if message.metadata:
        yield "metadata"
    if message.unsubscribe:
        yield "the link to unsubscribe"
    if message.template:
        yield "what its job fills in"
