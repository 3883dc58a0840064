"""Messages over HTTP: accept one or many, list them, and say where each is and what it looks like."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from flask import Blueprint, Response, jsonify, request
from pydantic_core import PydanticCustomError
from werkzeug.exceptions import Conflict

from mailroom.api.answers import DryRunJson, FileJson, PersonJson
from mailroom.api.auth import guard
from mailroom.api.auth.senders import account_sender, permitted
from mailroom.api.http.idempotency import once
from mailroom.api.http.pagination import (
    choice_errors,
    list_response,
    position_cursor,
    read_page,
    read_position,
    text_param,
)
from mailroom.api.http.prefer_wait import preferred_seconds, wait_for
from mailroom.api.http.request import json_body, mail_body
from mailroom.api.http.serialize import answered, find, message_json, message_summary_json, timeline
from mailroom.api.problems import may_make
from mailroom.api.services import services
from mailroom.model.addresses import parse_address
from mailroom.model.attempt import Claim
from mailroom.model.errors import FieldError, InvalidMessage, StoreUnavailable
from mailroom.model.ids import MailId, is_id
from mailroom.model.message import FINAL, Attachment, Message, State
from mailroom.smtp.mime import both_forms, compose
from mailroom.store.messages.idempotency import Kept, Key, StoredAnswer
from mailroom.store.messages.outbox import Batch, NewMessage
from mailroom.store.messages.search import Page, Search, listed
from mailroom.submission.times import parse_time

blueprint = Blueprint("messages", __name__)


class Submission(NamedTuple):
    """A request for one mail, after that mail was committed."""

    #: None if this request accepted none: it repeats another, or is a dry run
    mail: NewMessage | None
    response: Response  #: for a client that does not wait

    @property
    def id(self) -> MailId | None:
        return self.mail.mail_id if self.mail else None


@blueprint.post("/v1/messages")
def post_message() -> Response:
    """Accept a mail and send it at once; answers 202."""
    submission = submit(mail_body, status=202)
    if submission.mail:
        hand_over(submission.mail)
    return answer(submission)


@blueprint.post("/v1/messages/batch")
def post_batch() -> Response:
    """Accept up to 1,000 mails in one commit, or none of them; answers 202."""
    return answered(*once(_accept_batch))


def _accept_batch(key: Key | None) -> StoredAnswer:
    body = json_body()
    pointer = "#" if isinstance(body, list) else "#/messages"
    mails = []
    for index, mail in enumerate(services().reader.batch(body)):
        mails.append(permitted(mail, pointer=f"{pointer}/{index}"))
    data = [{"id": mail.id, "status": mail.state} for mail in mails]
    stored = StoredAnswer(status=202, location="", body={"data": data})
    may_make(*(mail.id for mail in mails))
    kept = Kept(key=key, answer=stored) if key else None
    services().outbox.accept_all(Batch(mails, kept, guard.charge(len(mails))))
    for mail in mails:
        hand_over(mail)
    return stored


@blueprint.get("/v1/messages")
def list_messages() -> Response:
    """List the newest messages, a page at a time; a page may be short or empty though others follow."""
    found = find_messages(request.args)
    next_cursor = position_cursor(*found.next) if found.next else None
    return list_response(found.rows, next_cursor, message_summary_json)


def find_messages(params: Mapping[str, str]) -> Page:
    """Return the messages that match the parameters of a query.

    Raises:
      InvalidMessage: a parameter cannot be read.
    """
    limit, after = read_page(
        read_position, params, other_errors=choice_errors("status", State, params)
    )
    status, to, tag, words = (text_param(name, params) for name in ("status", "to", "tag", "q"))
    search = Search(
        status=status,
        to=_envelope_address(to),
        tag=tag,
        words=words,
        since=_time_param("since", params),
        until=_time_param("until", params),
        after=after,
        limit=limit,
    )
    return listed(services().outbox.database, search)


@blueprint.get("/v1/messages/<id>")
def get_message(id: str) -> Response:
    """Return where a message is, why, and how it came there.

    `Prefer: wait=N` answers when it has ended, after N seconds at most.
    """
    seconds = preferred_seconds()
    if not seconds or _state(id) is None:
        return _message_response(id)
    waited = _wait(id, seconds, guard.access_check())
    guard.check_anew()
    return _message_response(id, waited)


@blueprint.get("/v1/messages/<id>/events")
def get_events(id: str) -> Response:
    """List what happened to a message, in order."""
    return jsonify({"data": timeline(find(id))})


@blueprint.get("/v1/messages/<id>/raw")
def get_raw(id: str) -> Response:
    """Return the mail as it is sent to the mail server."""
    row = find(id).row
    message = services().outbox.content(id)
    if message is None or not message.everyone:
        raise Conflict(
            "expected a message with content, got one that could not be accepted, "
            "or whose content is no longer kept"
        )
    if message.template:
        raise Conflict(
            "expected a message that tells of no job, got one that is written when its job has ended"
        )
    claim = Claim(
        id=id,
        attempt=1,
        message_id=row["message_id"],
        created_at_ms=row["created_at"],
        first_attempt_at_ms=row["first_attempt_at"],
        message=message,
        pending=(),
    )
    data = compose(claim, sender=account_sender(row["account"] or row["sender"]))
    # A download and never a page: a client may have sent any HTML.
    file_name = f"{row['message_id'].partition('@')[0]}.eml"
    headers = {
        "Content-Disposition": f'attachment; filename="{file_name}"',
        "X-Content-Type-Options": "nosniff",
    }
    return Response(data, content_type="message/rfc822", headers=headers)


def submit(read: Callable[[], object], *, work_seconds: float = 0, status: int) -> Submission:
    """Commit the mail of this request, without telling the workers yet; `status` is for one that is accepted.

    `work_seconds` is the length of the simulated job before the mail, 0 for none. Raises what `read` raises,
    and what reading and accepting its mail raise.
    """
    return submit_mail(lambda: _read(read(), work_seconds=work_seconds), status=status)


def submit_mail(
    make: Callable[[], NewMessage], *, status: int, key: Key | None = None
) -> Submission:
    """Do what `submit` does with the mail that `make` reads; `key` stands for an Idempotency-Key."""
    mails: list[NewMessage] = []

    def accept(key: Key | None) -> StoredAnswer:
        mail = make()
        stored = _commit(mail, status=status, key=key)
        mails.append(mail)
        return stored

    response = answered(*once(accept, key))
    if not mails:
        return Submission(None, response)
    if mails[0].dry_run:
        return Submission(None, _dry_run(mails[0]))
    return Submission(mails[0], response)


def answer(submission: Submission) -> Response:
    """Answer at once, or when the mail has ended if the client prefers to wait.

    If the client is no longer allowed by then, or the database is gone, the answer is that to the acceptance.
    """
    response, seconds = submission.response, preferred_seconds()
    # A dry run has no Location.
    if not seconds or response.status_code >= 300 or "Location" not in response.headers:
        return response
    location = response.headers["Location"]
    ended = _response_after_wait(
        location.removeprefix("/v1/messages/"), seconds, response.status_code
    )
    if ended is None:
        return response
    ended.headers["Location"] = location
    return ended


def _response_after_wait(id: str, seconds: int, status: int) -> Response | None:
    """Wait for the end of a message and return it; None if the client may not see it, or it cannot be read.

    The status is 200 if the message has ended, else `status`.
    """
    is_served = guard.access_check()
    try:
        waited = _wait(id, seconds, is_served)
        if not is_served():
            return None
        response = _message_response(id, waited)
    except StoreUnavailable:
        return None
    # 200 only for a client that waited: for another one 200 or 202 would be a matter of chance.
    has_ended = waited and response.json["status"] in FINAL  # type: ignore[index]  # it is an object
    response.status_code = 200 if has_ended else status
    return response


def accept_mail(params: object, *, key: Key | None = None) -> StoredAnswer:
    """Accept a mail and tell the workers, unless it is a dry run."""
    mail = _read(params)
    stored = _commit(mail, status=202, key=key)
    if not mail.dry_run:
        hand_over(mail)
    return stored


def _read(params: object, *, work_seconds: float = 0) -> NewMessage:
    return permitted(services().reader.mail(params, work_seconds=work_seconds))


def _commit(mail: NewMessage, *, status: int, key: Key | None) -> StoredAnswer:
    """Commit a mail, unless it is a dry run."""
    body = {"id": mail.id, "status": mail.state}
    stored = StoredAnswer(status=status, location=f"/v1/messages/{mail.id}", body=body)
    if not mail.dry_run:
        may_make(mail.id, location=stored.location)
        kept = Kept(key=key, answer=stored) if key else None
        services().outbox.accept(mail, kept, guard.charge())
    return stored


def hand_over(mail: NewMessage) -> None:
    """Tell the workers of a mail, unless it is scheduled: the sweeper finds that when its time has come."""
    if mail.job:
        services().run(mail.job)
    elif mail.state is State.QUEUED:
        services().send(mail.mail_id)


def _dry_run(mail: NewMessage) -> Response:
    """Answer with the mail that would be sent; nothing is kept."""
    message = mail.message
    sender = message.sender or account_sender(mail.sender)
    text, html = both_forms(message)
    claim = Claim(
        id=mail.id,
        attempt=1,
        message_id=mail.message_id,
        created_at_ms=0,
        message=message,
        pending=(),
    )
    dry_run_json: DryRunJson = {
        "dry_run": True,
        "status": mail.state,
        "from": {"email": sender.address, "name": sender.name},
        "subject": message.subject,
        "recipients": _recipients_json(message),
        "text": text,
        "html": html,
        "attachments": [_file_json(file) for file in message.attachments],
        "size": len(compose(claim, sender=sender)),
    }
    return jsonify(dry_run_json)


def _recipients_json(message: Message) -> list[PersonJson]:
    people = zip(message.everyone, message.kinds(), strict=True)
    return [{"email": to.address, "name": to.name, "kind": kind} for to, kind in people]


def _file_json(file: Attachment) -> FileJson:
    return {"filename": file.name, "content_type": file.content_type, "size": len(file.content)}


def _wait(id: str, seconds: int, is_served: Callable[[], bool]) -> int:
    """Wait that long at most, until the message has ended or the client is no longer allowed to see it.

    Returns `seconds`, or 0 if it did not wait because too many requests wait already.
    """
    has_waited = wait_for(lambda: _state(id) in FINAL or not is_served(), seconds)
    return seconds if has_waited else 0


def _message_response(id: str, waited: int = 0) -> Response:
    """Answer with a message; `waited` is the number of seconds for `Preference-Applied`, 0 for none."""
    response = jsonify(message_json(find(id)))
    if waited:
        response.headers["Preference-Applied"] = f"wait={waited}"
    return response


def _state(id: str) -> State | None:
    return services().outbox.state(id) if is_id(id) else None


def _envelope_address(text: str) -> str:
    """Return an address as it is in the envelope, its domain in ASCII; "" stays ""."""
    try:
        return parse_address(text).address if text else ""
    except PydanticCustomError as e:
        raise InvalidMessage([FieldError("?to", e.message())]) from None


def _time_param(name: str, params: Mapping[str, str]) -> int | None:
    """Return a parameter's time in milliseconds since 1970; None if it is absent."""
    if name not in params:
        return None
    try:
        return parse_time(params[name])
    except PydanticCustomError as e:
        raise InvalidMessage([FieldError(f"?{name}", e.message())]) from None
