"""A form that sends a mail, beside the inbox where it appears, and beside the same request as a program would make it."""

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

blueprint = pages("compose")

#: The fields of the form that are the mail's own, as they are.
_PLAIN = ("subject", "contents")
_PEOPLE = ("to", "cc", "bcc", "reply_to")
#: Which field of the form an error of the API is about, by the beginning of its pointer; the longest that fits.
_PLACES = {
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
#: Where several people are parted: not within quotes or angle brackets.
_PERSON = re.compile(r'(?:"(?:[^"\\]|\\.)*"|<[^<>]*>|[^,;\n"<]|["<])+')


@blueprint.get("/compose")
def compose() -> Response:
    """An empty form; `?sent=` shows what became of a message, `?again=` begins with what one had."""
    sent, again = (request.args.get(name, "") for name in ("sent", "again"))
    id = sent or again
    content = services().outbox.content(id) if is_id(id) else None
    return _page(
        _fields_of(content) if content else {},
        sent=message_json(find(sent)) if sent and is_id(sent) else None,
        left_out=[*_left_out(content)] if again and content else [],
    )


@blueprint.post("/compose")
def send() -> Response:
    """Accept the mail, as `POST /v1/messages` does, once for each form; or show it as a program would send it."""
    fields = {name: values[-1] for name, values in request.form.to_dict(flat=False).items()}
    names = [file.filename or "file" for file in request.files.getlist("attachments") if file.filename] or [
        name for name in request.form.getlist("attachments") if name
    ]
    if fields.get("do") == "code":
        return _page(fields, names=names, shows_code=True)
    try:
        accepted = _accepted(fields)
    except InvalidMessage as e:
        return _page(fields, wrong=e.errors, names=names, status=422)
    except (
        MailroomError,
        HTTPException,
    ) as e:  # What was typed is not lost with a refusal: it stays in the form.
        refusal: Any = current_app.handle_user_exception(e)
        told = current_app.make_response(refusal)
        words = (told.get_json(silent=True) or {}).get("detail", str(e))
        return _page(fields, wrong=[FieldError("#", words)], names=names, status=told.status_code)
    return see(f"/compose?sent={accepted.location.rpartition('/')[2]}")


def _accepted(fields: Mapping[str, str]) -> StoredAnswer:
    asked = _asked(fields, strict=True) | _files()

    def accept(key: Key | None) -> StoredAnswer:
        return accept_mail(asked, key=key)

    files = [(file["filename"], sha256(file["content"]).hexdigest()) for file in asked.get("attachments", [])]
    return once(accept, form_key(fields.get("once", ""), {**asked, "attachments": files}))[0]


def _page(
    fields: Mapping[str, str],
    *,
    wrong: list[FieldError] | None = None,
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
        wrong=_by_field(wrong or []),
        sent=sent,
        code=code_of(base_url(), _asked(fields, strict=False), files=names or [], needs_key=needs_key()),
        shows_code=shows_code,
        kinds=registry.job_types(),
        inbox="inbox" in current_app.blueprints and may("GET", "/inbox/"),
        names=names or [],
        left_out=left_out or [],
        stays_here=stays_here(),
        inbox_port=services().settings.INBOX_PORT,
    )


def _asked(fields: Mapping[str, str], *, strict: bool) -> dict[str, Any]:
    """The JSON of the request. What is no JSON itself is left away, or, if `strict`, refused."""
    asked: dict[str, Any] = {}
    for name in _PEOPLE:
        people = [person for part in _PERSON.findall(fields.get(name, "")) if (person := part.strip())]
        asked |= {name: people[0] if len(people) == 1 else people} if people else {}
    if sender := fields.get("from", "").strip():
        asked["from"] = sender
    asked |= {name: value for name in _PLAIN if (value := fields.get(name, "").replace("\r\n", "\n"))}
    if template := fields.get("template", "").strip():
        asked["template"] = {"name": template} | _json(fields, "variables", "#/template/variables", strict)
    if job := fields.get("job", ""):
        asked["job"] = {"name": job} | _json(fields, "job_args", "#/job/args", strict)
    if tags := [tag for part in fields.get("tags", "").split(",") if (tag := part.strip())]:
        asked["tags"] = tags
    if delay := fields.get("delay", "").strip():
        number = decimal(delay)
        asked["delay"] = delay if number is None else number
    return asked | ({"to": ""} if strict and "to" not in asked else {})


def _json(fields: Mapping[str, str], name: str, pointer: str, strict: bool) -> dict[str, Any]:
    text = fields.get(name, "").strip()
    if not text:
        return {}
    try:
        return {pointer.rpartition("/")[2]: parse_json(text.encode("utf-8", "surrogatepass"))}
    except MalformedJSON as e:
        if strict:
            raise InvalidMessage([FieldError(pointer, str(e))]) from None
        return {}


def _files() -> dict[str, Any]:
    files = [
        {
            "filename": file.filename,
            "content": file.read(),
            "content_type": file.content_type or "application/octet-stream",
        }
        for file in request.files.getlist("attachments")
        if file.filename
    ]
    return {"attachments": files} if files else {}


def _by_field(wrong: list[FieldError]) -> dict[str, list[str]]:
    """Return what is wrong with each field of the form; "" is what is wrong with all of it."""
    found: dict[str, list[str]] = {}
    for error in wrong:
        at = error.pointer.removeprefix("#/")
        place = next(
            (
                _PLACES[name]
                for name in sorted(_PLACES, key=len, reverse=True)
                if f"{at}/".startswith(f"{name}/")
            ),
            "",
        )
        found.setdefault(place, []).append(error.detail if place else f"{error.pointer}: {error.detail}")
    return found


def _fields_of(message: Message) -> dict[str, str]:
    """The form that would ask for this, as far as it can."""
    body = body_of(message)

    def people(value: Any) -> str:
        listed = value if isinstance(value, list) else [value]
        return ", ".join(
            one
            if isinstance(one, str)
            else formataddr((one["name"], one["email"]), "utf-8")
            if one["name"].isascii()
            else f'"{one["name"].translate(_ESCAPES)}" <{one["email"]}>'
            for one in listed
        )

    fields = {name: people(body[name]) for name in (*_PEOPLE, "from") if name in body}
    html = (message.html or "").strip()
    if html and not (html.startswith("<") and html.endswith(">")):
        html = f"<div>{html}</div>"  # That is how the form tells HTML.
    return fields | {
        "subject": message.subject,
        "contents": html or message.text or "",
        "tags": ", ".join(message.tags),
    }


_ESCAPES = str.maketrans({'"': r"\"", "\\": r"\\"})


def _left_out(message: Message) -> Iterator[str]:
    """Yield what that form cannot ask for."""
    yield from (f"the attachment {file.name}" for file in message.attachments)
    yield from (f"the header field {name}" for name, _ in message.headers)
    yield from ["a text beside the HTML"] * (message.text is not None and message.html is not None)
    yield from ["metadata"] * bool(message.metadata)
    yield from ["the link to unsubscribe"] * bool(message.unsubscribe)
    yield from ["what its job fills in"] * message.template
