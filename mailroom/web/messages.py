"""The pages of messages: the list, and one message with its status, timeline, content and actions."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.parser import BytesParser
from email.policy import compat32
from typing import Any
from urllib.parse import urlsplit

from flask import Response, make_response, request
from werkzeug.exceptions import Conflict, NotFound

from mailroom.api.answers import MessageJson
from mailroom.api.auth.guard import needs_key
from mailroom.api.http.idempotency import form_key
from mailroom.api.http.pagination import position_cursor
from mailroom.api.http.serialize import find, message_json, message_summary_json
from mailroom.api.routes import actions, messages
from mailroom.api.services import services
from mailroom.inbox.parser import read_body
from mailroom.model.errors import FieldError, InvalidMessage
from mailroom.model.ids import is_id
from mailroom.model.message import Attachment, Message, State, file_name
from mailroom.smtp.mime import both_forms
from mailroom.store.messages.actions import (
    CANCEL,
    HOLD,
    RELEASE,
    RESCHEDULE,
    RESENDABLE,
    RETRY_ENDED,
    RETRY_NOW,
    UNREACHED,
)
from mailroom.store.messages.search import Page
from mailroom.web.code_samples import body_of, code_of, is_short
from mailroom.web.layout import (
    base_url,
    decimal,
    done,
    item_path,
    page,
    pages,
    query_params,
    see,
    status_of,
)

blueprint = pages("messages")

PAGE_LENGTH = 50
VIEWS = ("text", "html", "headers", "source", "code")
#: Longer texts are cut on a page; `GET /v1/messages/<id>/raw` returns all of a message.
TEXT_MAX_CHARACTERS = 10_000
FILTERS = ("q", "status", "to", "tag", "since", "until", "after")
UNITS = {"minutes": 60, "hours": 3600, "days": 86400}


@dataclass(frozen=True)
class MessageAction:
    """An action on a message, as a page offers it."""

    states: tuple[State, ...]  #: in which it is possible
    do: Callable[[str], Response]
    notice: str  #: the key of layout.NOTICES


def _resend(id: str) -> Response:
    return actions.resend(id, form_key(request.form.get("once", "")))


ACTIONS = {
    "release": MessageAction(RELEASE.states, actions.release_message, "released"),
    "retry": MessageAction(
        (*RETRY_NOW.states, *RETRY_ENDED.states), actions.retry_message, "retried"
    ),
    "hold": MessageAction(HOLD.states, actions.hold_message, "held"),
    "cancel": MessageAction(CANCEL.states, actions.cancel_message, "canceled"),
    "resend": MessageAction(RESENDABLE, _resend, "resent"),
}
# Content of a message must not run scripts, send forms or fetch anything, even when opened on its own.
_MAIL_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'self'"
)


@blueprint.get("/messages")
def list_messages() -> Response:
    """List the newest messages that match the filters; searching for an id opens that message."""
    params = query_params(*FILTERS)
    if is_id(params.get("q", "")) and services().outbox.state(params["q"]):
        return see(item_path("messages", params["q"]))
    errors: list[FieldError] = []
    result = Page([], None)
    try:
        result = messages.find_messages(params | {"limit": str(PAGE_LENGTH)})
    except InvalidMessage as e:
        errors = e.errors
    rows = [message_summary_json(row) for row in result.rows]
    return page(
        "messages.html",
        live=not errors,
        status=status_of(errors),
        params=params,
        errors=errors,
        states=[*State],
        rows=rows,
        next=position_cursor(*result.next) if result.next else None,
    )


@blueprint.get("/messages/<id>")
def show_message(id: str) -> Response:
    """Show a message: status and why, timeline, content, and the actions on it."""
    details = find(id)
    message = message_json(details)
    view = request.args.get("view", "")
    content = readable(services().outbox.content(id))
    if view not in VIEWS:
        view = "html" if content and content.html is not None and content.text is None else "text"
    state = State(message["status"])
    return page(
        "message.html",
        live=True,
        message=message,
        state=state,
        view=view,
        views=VIEWS,
        row=details.row,
        units=UNITS,
        can=[*_possible(state, message)],
        can_reschedule=state in RESCHEDULE.states,
        content=content,
        shown=_view(id, content, view),
        limit=TEXT_MAX_CHARACTERS,
        webhook_host=urlsplit(details.row["webhook"] or "").hostname,
    )


@blueprint.get("/messages/<id>/html")
def html(id: str) -> Response:
    """Serve the HTML form, with a policy that disables scripts, forms and remote content."""
    find(id)
    content = readable(services().outbox.content(id))
    if content is None:
        raise NotFound("expected a message with content, got one whose content is no longer kept")
    response = make_response(both_forms(content)[1])
    response.headers["Content-Security-Policy"] = _MAIL_POLICY
    response.headers["X-DNS-Prefetch-Control"] = "off"
    return response


@blueprint.post("/messages/<id>/<action>")
def act(id: str, action: str) -> Response:
    """Do what `POST /v1/messages/<id>/<action>` does."""
    if action == "reschedule":
        actions.reschedule(id, {"delay": _seconds()})
        return done(item_path("messages", id), "rescheduled")
    if action not in ACTIONS:
        raise NotFound(
            f"expected one of {', '.join([*ACTIONS, 'reschedule'])}, got {action[:40]!r}"
        )
    response = ACTIONS[action].do(id)
    path = item_path("messages", id)
    if action == "resend":  # Shows the new message.
        path = response.headers["Location"].removeprefix("/v1")
    return done(path, ACTIONS[action].notice)


def readable(message: Message | None) -> Message | None:
    """Return a message that came as a whole mail with text, HTML and files of that; others unchanged."""
    if message is None or not message.is_raw or not message.attachments:
        return message
    body = read_body(message.raw)
    files = [
        Attachment(file_name(part.filename or "file"), part.content_type, part.data)
        for part in body.attachments
    ]
    return replace(message, text=body.text, html=body.html, attachments=tuple(files), is_raw=False)


def ids_in(message_id: str) -> list[str]:
    """Return the id of the message with this Message-ID; [] if it cannot be one of ours."""
    match = re.fullmatch(
        r"<?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})@[^\s<>]+>?", message_id.strip()
    )
    return [match[1]] if match else []


def origin(message_id: str) -> list[tuple[str, str]]:
    """Return links to the message for which a mail in the inbox was sent, and to its job."""
    links: list[tuple[str, str]] = []
    for id in ids_in(message_id):
        details = services().outbox.details(id)
        if details:
            links.append((f"/messages/{details.row['id']}", "its message"))
        if details and details.job:
            links.append((f"/jobs/{details.job['id']}", f"its job {details.job['name']}"))
    return links


def _possible(state: State, message: MessageJson) -> Iterator[str]:
    """Yield the actions possible in this state; after the end, retry only if a recipient lacks the mail."""
    is_lacking = any(person["status"] in UNREACHED for person in message["recipients"])
    for name, action in ACTIONS.items():
        is_useful = name != "retry" or state in RETRY_NOW.states or is_lacking
        if state in action.states and is_useful:
            yield name


def _seconds() -> float:
    """Return the delay in the form; -1, which the API refuses with a reason, if it is none."""
    number, unit = decimal(request.form.get("number", "")), UNITS.get(request.form.get("unit", ""))
    return -1.0 if number is None or unit is None else number * unit


def _view(id: str, content: Message | None, view: str) -> Any:
    """Return the values of a view; None if it has nothing to show, {"problem"} if it cannot be shown."""
    if content is None:
        return None
    if view == "text":
        return both_forms(content)[0]
    if view == "code":
        body = body_of(content)
        if not is_short(body):
            return None
        files = [file.name for file in content.attachments]
        return code_of(base_url(), body, files=files, needs_key=needs_key())
    if view in ("headers", "source"):
        try:
            raw = messages.get_raw(id).get_data()
        except Conflict as e:
            return {"problem": e.description}
        source = raw[:TEXT_MAX_CHARACTERS].decode("utf-8", "replace")
        return {"source": source, "headers": _headers(raw)}
    return content.html


def _headers(raw: bytes) -> list[tuple[str, str]]:
    message = BytesParser(policy=compat32).parsebytes(raw, headersonly=True)
    return [(name, str(value)) for name, value in message.items()]
