"""Messages as a person looks at them: which there are, where one is and why, what it says, and what can be done with it."""

import re
from collections.abc import Callable, Iterator
from email.parser import BytesParser
from email.policy import compat32
from typing import Any
from urllib.parse import urlsplit

from flask import Response, make_response, request
from werkzeug.exceptions import Conflict, NotFound

from mailroom.api.answers import MessageJson
from mailroom.api.auth.guard import needs_key
from mailroom.api.http.idempotency import form_key
from mailroom.api.http.pagination import written
from mailroom.api.http.serialize import find, message_json, message_summary_json
from mailroom.api.routes import actions, messages
from mailroom.api.services import services
from mailroom.model.errors import InvalidMessage
from mailroom.model.ids import is_id
from mailroom.model.message import Message, State
from mailroom.smtp.mime import both_forms
from mailroom.store.messages.actions import (
    CANCEL,
    HOLD,
    RELEASE,
    RESCHEDULE,
    RESENDABLE,
    RETRY_ENDED,
    RETRY_NOW,
)
from mailroom.web.code_samples import body_of, code_of, is_short
from mailroom.web.layout import at, base_url, decimal, done, page, pages, see

blueprint = pages("messages")

PAGE_LENGTH = 50
VIEWS = ("text", "html", "headers", "source", "code")
#: What is longer is cut on a page; `GET /v1/messages/<id>/raw` has it whole.
SHOWN_MAX_CHARACTERS = 10_000
FILTERS = ("q", "status", "to", "tag", "since", "until", "after")
UNITS = {"minutes": 60, "hours": 3600, "days": 86400}

#: What may be done in which states, with the word that a page says of it.
ACTIONS: dict[str, tuple[tuple[State, ...], Callable[[str], Response], str]] = {
    "release": (RELEASE.states, actions.release_message, "released"),
    "retry": ((*RETRY_NOW.states, *RETRY_ENDED.states), actions.retry_message, "retried"),
    "hold": (HOLD.states, actions.hold_message, "held"),
    "cancel": (CANCEL.states, actions.cancel_message, "canceled"),
    "resend": (RESENDABLE, lambda id: actions.resend(id, form_key(request.form.get("once", ""))), "resent"),
}
# What a client sent runs nothing, sends nothing and fetches nothing, opened by itself neither.
_MAIL_POLICY = (
    "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'"
)


@blueprint.get("/messages")
def list_messages() -> Response:
    """The newest messages that the filters let pass; who looks for an id gets that message."""
    asked = {name: value for name in FILTERS if (value := request.args.get(name, "").strip())}
    if is_id(asked.get("q", "")) and services().outbox.state(asked["q"]):
        return see(at("messages", asked["q"]))
    try:
        found, wrong = messages.find_messages(asked | {"limit": str(PAGE_LENGTH)}), []
    except InvalidMessage as e:
        found, wrong = None, e.errors
    return page(
        "messages.html",
        live=not wrong,
        status=422 if wrong else 200,
        asked=asked,
        wrong=wrong,
        states=[*State],
        rows=[message_summary_json(row) for row in found.rows] if found else [],
        next=written(*found.next) if found and found.next else None,
    )


@blueprint.get("/messages/<id>")
def message(id: str) -> Response:
    """Show where a message is and why, how it came there, what it says, and what can be done with it."""
    standing = find(id)
    answer = message_json(standing)
    view = request.args.get("view", "")
    content = services().outbox.content(id)
    if view not in VIEWS:
        view = "html" if content and content.html is not None and content.text is None else "text"
    state = State(answer["status"])
    return page(
        "message.html",
        live=True,
        message=answer,
        state=state,
        view=view,
        views=VIEWS,
        row=standing.row,
        units=UNITS,
        can=[*_possible(state, answer)],
        can_reschedule=state in RESCHEDULE.states,
        content=content,
        shown=_shown(id, content, view),
        limit=SHOWN_MAX_CHARACTERS,
        webhook_host=urlsplit(standing.row["webhook"] or "").hostname,
    )


@blueprint.get("/messages/<id>/html")
def html(id: str) -> Response:
    """The HTML form, disarmed."""
    find(id)
    content = services().outbox.content(id)
    if content is None:
        raise NotFound("expected a message with content, got one whose content is no longer kept")
    answer = make_response(both_forms(content)[1])
    answer.headers["Content-Security-Policy"] = _MAIL_POLICY
    answer.headers["X-DNS-Prefetch-Control"] = "off"
    return answer


@blueprint.post("/messages/<id>/<action>")
def act(id: str, action: str) -> Response:
    """Do what `POST /v1/messages/<id>/<action>` does."""
    if action == "reschedule":
        actions.reschedule(id, {"delay": _seconds()})
        return done(at("messages", id), "rescheduled")
    if action not in ACTIONS:
        raise NotFound(f"expected one of {', '.join([*ACTIONS, 'reschedule'])}, got {action[:40]!r}")
    _, do, word = ACTIONS[action]
    answer = do(id)
    return done(
        answer.headers["Location"].removeprefix("/v1") if action == "resend" else at("messages", id), word
    )


def ids_in(message_id: str) -> list[str]:
    """The id of the message whose Message-ID this is, if it may be one of ours."""
    found = re.fullmatch(r"<?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})@[^\s<>]+>?", message_id.strip())
    return [found[1]] if found else []


def origin(message_id: str) -> list[tuple[str, str]]:
    """Links to the message that a mail in the inbox came of, and to its job."""
    links: list[tuple[str, str]] = []
    for standing in filter(None, map(services().outbox.standing, ids_in(message_id))):
        links.append((f"/messages/{standing.row['id']}", "its message"))
        links += [(f"/jobs/{standing.job['id']}", f"its job {standing.job['name']}")] if standing.job else []
    return links


def _possible(state: State, message: MessageJson) -> Iterator[str]:
    """Find the actions that this state allows; a new round only where somebody has not got it."""
    for name, (states, _, _) in ACTIONS.items():
        if state in states and (
            name != "retry"
            or state in RETRY_NOW.states
            or any(person["status"] in (State.FAILED, State.EXPIRED) for person in message["recipients"])
        ):
            yield name


def _seconds() -> float:
    """Return how long it is from now, as the form says it."""
    number, unit = decimal(request.form.get("number", "")), UNITS.get(request.form.get("unit", ""))
    return -1.0 if number is None or unit is None else number * unit  # Its reader says what was expected.


def _shown(id: str, content: Message | None, view: str) -> Any:
    """Return what the chosen view shows.

    None where there is nothing to show, a text that says why where it cannot be.
    """
    if content is None:
        return None
    if view == "text":
        return both_forms(content)[0]
    if view == "code":
        body = body_of(content)
        files = [file.name for file in content.attachments]
        return code_of(base_url(), body, files=files, needs_key=needs_key()) if is_short(body) else None
    if view in ("headers", "source"):
        try:
            raw = messages.get_raw(id).get_data()
        except Conflict as e:
            return {"wrong": e.description}
        return {"source": raw[:SHOWN_MAX_CHARACTERS].decode("utf-8", "replace"), "headers": _headers(raw)}
    return content.html


def _headers(raw: bytes) -> list[tuple[str, str]]:
    return [
        (name, str(value))
        for name, value in BytesParser(policy=compat32).parsebytes(raw, headersonly=True).items()
    ]
