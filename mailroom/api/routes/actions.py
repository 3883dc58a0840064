"""Actions on a message over HTTP: cancel, hold, release, retry, reschedule, resend."""

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
    """Cancel a message before it is sent; a job that it waits for goes on."""
    return _act(id, services().actions.cancel)


@blueprint.post("/v1/messages/<id>/hold")
def hold_message(id: str) -> Response:
    """Hold a message until somebody releases it."""
    return _act(id, services().actions.hold)


@blueprint.post("/v1/messages/<id>/release")
def release_message(id: str) -> Response:
    """Release a message that is held; send one that is uncertain again."""
    return _act(id, services().actions.release)


@blueprint.post("/v1/messages/<id>/retry")
def retry_message(id: str) -> Response:
    """Try a message now; one that has ended starts again, for the recipients who do not have it."""
    return _act(id, services().actions.retry)


@blueprint.post("/v1/messages/<id>/reschedule")
def reschedule_message(id: str) -> Response:
    """Send a message at another time."""
    return reschedule(id, json_body())


def reschedule(id: str, value: object) -> Response:
    """Send a message at the time that a request has.

    Raises:
      InvalidMessage: the request is wrong.
      HTTPException: there is no such message, or its state does not allow this.
    """
    wanted = read_fields(RescheduleRequest, value)
    delay_seconds = wanted.delay or 0
    return _act(
        id, lambda id: services().actions.reschedule(id, at=wanted.at, delay_seconds=delay_seconds)
    )


@blueprint.post("/v1/messages/<id>/resend")
def resend_message(id: str) -> Response:
    """Send a message that has ended again, as a new message; answers 202 with the new one."""
    return resend(id)


def resend(id: str, form: Key | None = None) -> Response:
    """Send a message that has ended again; at most once for the key of a web page's form."""
    return answered(*once(lambda key: _resend(id, key), form))


def _resend(id: str, key: Key | None) -> StoredAnswer:
    copy_id = new_id()
    stored = StoredAnswer(status=202, location=f"/v1/messages/{copy_id}")
    kept = Kept(key=key, answer=stored) if key else None
    may_make(copy_id, location=stored.location)
    message_id = services().reader.message_id(copy_id)
    _do(id, lambda id: services().actions.resend(id, copy_id, message_id=message_id, kept=kept))
    _hand_over(find(copy_id))
    return stored


def _act(id: str, action: Callable[[str], None]) -> Response:
    may_make(location=f"/v1/messages/{quote(id, safe='')}")
    _do(id, action)
    details = find(id)
    _hand_over(details)
    return jsonify(message_json(details))


def _do(id: str, action: Callable[[str], None]) -> None:
    """Call an action of the store; its errors become 404 and 409."""
    try:
        if not is_id(id):
            raise UnknownMessage
        action(id)
    except UnknownMessage:
        raise unknown(id) from None
    except WrongState as e:
        raise Conflict(str(e)) from None


def _hand_over(details: MessageDetails) -> None:
    """Tell the workers of a message that is queued now.

    If a worker died with it before, it must be claimed alone; so the sweeper publishes a nudge of its own.
    """
    row = details.row
    if row["state"] == State.QUEUED and row["published_at"] is None and not row["crashes"]:
        services().send(MailId(row["id"], queue=row["queue"]))
