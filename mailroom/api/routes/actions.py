"""A person's actions on a message: take back, stop, let go, try, send at another time or once more."""

from collections.abc import Callable
from urllib.parse import quote

from flask import Blueprint, Response, jsonify
from werkzeug.exceptions import Conflict

from mailroom.api.http.idempotency import once
from mailroom.api.http.request import json_body
from mailroom.api.http.serialize import answered, find, message_json, unknown
from mailroom.api.problems import may_make
from mailroom.api.services import services
from mailroom.model.ids import MailId, is_id, new_id
from mailroom.model.message import State
from mailroom.store.messages.actions import UnknownMessage, WrongState
from mailroom.store.messages.idempotency import Kept, Key, StoredAnswer
from mailroom.store.messages.outbox import MessageDetails
from mailroom.submission.fields import read_fields
from mailroom.submission.times import RescheduleRequest

blueprint = Blueprint("actions", __name__)


@blueprint.post("/v1/messages/<id>/cancel")
def cancel_message(id: str) -> Response:
    """Take it back before it is sent; a job that it waits for goes on."""
    return _act(id, services().actions.cancel)


@blueprint.post("/v1/messages/<id>/hold")
def hold_message(id: str) -> Response:
    """Stop it until somebody releases it."""
    return _act(id, services().actions.hold)


@blueprint.post("/v1/messages/<id>/release")
def release_message(id: str) -> Response:
    """Let go what was held; send once more what is uncertain."""
    return _act(id, services().actions.release)


@blueprint.post("/v1/messages/<id>/retry")
def retry_message(id: str) -> Response:
    """Try it now; one that failed or expired gets a new round, for those who do not have it."""
    return _act(id, services().actions.retry)


@blueprint.post("/v1/messages/<id>/reschedule")
def reschedule_message(id: str) -> Response:
    """Send it at another time."""
    return reschedule(id, json_body())


def reschedule(id: str, value: object) -> Response:
    """Raises what reading the moment does, and what acting does."""
    asked = read_fields(RescheduleRequest, value)
    return _act(id, lambda id: services().actions.reschedule(id, at=asked.at, delay_seconds=asked.delay or 0))


@blueprint.post("/v1/messages/<id>/resend")
def resend_message(id: str) -> Response:
    """Send what has ended once more, as a new message; answers 202 with that."""
    return resend(id)


def resend(id: str, form: Key | None = None) -> Response:
    """Send what has ended once more, as a new message, but once only for each form of a page."""

    def again(key: Key | None) -> StoredAnswer:
        new = new_id()
        answer = StoredAnswer(status=202, location=f"/v1/messages/{new}")
        kept = Kept(key=key, answer=answer) if key else None
        may_make(new, location=answer.location)
        _done(
            id,
            lambda id: services().actions.resend(
                id, new, message_id=services().reader.message_id(new), kept=kept
            ),
        )
        _hand_over(find(new))
        return answer

    return answered(*once(again, form))


def _act(id: str, action: Callable[[str], None]) -> Response:
    may_make(location=f"/v1/messages/{quote(id, safe='')}")
    _done(id, action)
    standing = find(id)
    _hand_over(standing)
    return jsonify(message_json(standing))


def _done(id: str, action: Callable[[str], None]) -> None:
    try:
        if not is_id(id):
            raise UnknownMessage
        action(id)
    except UnknownMessage:
        raise unknown(id) from None
    except WrongState as e:
        raise Conflict(str(e)) from None


def _hand_over(standing: MessageDetails) -> None:
    """Tell the workers now of what is queued now. A suspect must not share a nudge, and a sweeper sees to that."""
    row = standing.row
    if row["state"] == State.QUEUED and row["published_at"] is None and not row["crashes"]:
        services().send(MailId(row["id"], queue=row["queue"]))
