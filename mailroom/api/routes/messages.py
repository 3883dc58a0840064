"""Messages over HTTP: accept one or many, list them, tell where each is and what it looks like."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from flask import Blueprint, Response, jsonify, request
from pydantic_core import PydanticCustomError
from werkzeug.exceptions import Conflict

from mailroom.api.answers import DryRunJson, FileJson
from mailroom.api.auth import guard
from mailroom.api.auth.senders import account_sender, permitted
from mailroom.api.http.idempotency import once
from mailroom.api.http.pagination import asked_page, one_of, page_of, place, word, written
from mailroom.api.http.prefer_wait import preferred_seconds, wait_for
from mailroom.api.http.request import json_body, mail_body
from mailroom.api.http.serialize import answered, find, message_json, message_summary_json, timeline
from mailroom.api.problems import may_make
from mailroom.api.services import services
from mailroom.model.addresses import parse_address
from mailroom.model.attempt import Claim
from mailroom.model.errors import FieldError, InvalidMessage, StoreUnavailable
from mailroom.model.ids import MailId, is_id
from mailroom.model.message import FINAL, Attachment, State
from mailroom.smtp.mime import both_forms, compose
from mailroom.store.messages.idempotency import Kept, Key, StoredAnswer
from mailroom.store.messages.outbox import Batch, NewMessage
from mailroom.store.messages.search import Page, Search, listed
from mailroom.submission.times import parse_time

blueprint = Blueprint("messages", __name__)


class Submission(NamedTuple):
    """A request for one mail, once that is on disk."""

    mail: NewMessage | None  #: None where none was accepted just now: for a repetition, or a dry run
    response: Response  #: for a client that does not wait

    @property
    def id(self) -> MailId | None:
        return self.mail.mail_id if self.mail else None


@blueprint.post("/v1/messages")
def post_message() -> Response:
    """Accept a mail that goes at once; answers 202."""
    submission = submit(mail_body, status=202)
    if submission.mail:
        _hand_over(submission.mail)
    return answer(submission)


@blueprint.post("/v1/messages/batch")
def post_batch() -> Response:
    """Accept up to 1,000 mails in one commit, or none of them; answers 202."""

    def accept(key: Key | None) -> StoredAnswer:
        body = json_body()
        at = "#" if isinstance(body, list) else "#/messages"
        accepted = [
            permitted(acceptance, at=f"{at}/{index}")
            for index, acceptance in enumerate(services().reader.batch(body))
        ]
        told = {"data": [{"id": acceptance.id, "status": acceptance.state} for acceptance in accepted]}
        answer = StoredAnswer(status=202, location="", body=told)
        may_make(*(acceptance.id for acceptance in accepted))
        services().outbox.accept_all(
            Batch(accepted, Kept(key=key, answer=answer) if key else None, guard.charge(len(accepted)))
        )
        for acceptance in accepted:
            _hand_over(acceptance)
        return answer

    return answered(*once(accept))


@blueprint.get("/v1/messages")
def list_messages() -> Response:
    """The newest messages, a page at a time; one may be short, and even empty, though others come after it."""
    found = find_messages(request.args)
    return page_of(found.rows, written(*found.next) if found.next else None, message_summary_json)


def find_messages(asked: Mapping[str, str]) -> Page:
    """Return the messages that a query asks for. Raises InvalidMessage."""
    limit, after = asked_page(place, asked, also=one_of("status", State, asked))
    status, to, tag, words = (word(name, asked) for name in ("status", "to", "tag", "q"))
    return listed(
        services().outbox.database,
        Search(
            status=status,
            to=_address(to),
            tag=tag,
            words=words,
            since=_time("since", asked),
            until=_time("until", asked),
            after=after,
            limit=limit,
        ),
    )


@blueprint.get("/v1/messages/<id>")
def get_message(id: str) -> Response:
    """Return where a message is, why, and how it came there.

    `Prefer: wait=N` answers when it has ended, after N seconds at most.
    """
    return _told_after_waiting(id)


@blueprint.get("/v1/messages/<id>/events")
def get_events(id: str) -> Response:
    """List what happened to a message, in order."""
    return jsonify({"data": timeline(find(id))})


@blueprint.get("/v1/messages/<id>/raw")
def get_raw(id: str) -> Response:
    """The mail as it goes over the wire."""
    row = find(id).row
    message = services().outbox.content(id)
    if message is None or not message.everyone:
        raise Conflict(
            "expected a message with content, got one that could not be accepted, or whose content is no longer kept"
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
    # As a download and never as a page: what a client sent may be anything.
    return Response(
        compose(claim, sender=account_sender(row["account"] or row["sender"])),
        content_type="message/rfc822",
        headers={
            "Content-Disposition": f'attachment; filename="{row["message_id"].partition("@")[0]}.eml"',
            "X-Content-Type-Options": "nosniff",
        },
    )


def submit(read: Callable[[], object], *, work_seconds: float = 0, status: int) -> Submission:
    """Commit the mail of this request to disk; nobody is told of it yet.

    Raises what `read`, what reading its mail and what accepting that raise.
    """
    mails: list[NewMessage] = []

    def accept(key: Key | None) -> StoredAnswer:
        mail, stored = _commit(read(), work_seconds=work_seconds, status=status, key=key)
        mails.append(mail)
        return stored

    response = answered(*once(accept))
    if not mails:
        return Submission(None, response)
    if mails[0].dry_run:
        return Submission(None, _dry_run(mails[0]))
    return Submission(mails[0], response)


def answer(submission: Submission) -> Response:
    """Answer at once, or when the mail has ended if the client prefers to wait."""
    return _waited_for(submission.response)


def accept_mail(params: object, *, key: Key | None = None) -> StoredAnswer:
    """Accept a mail, and tell the workers, unless it asks only what would be sent."""
    mail, stored = _commit(params, work_seconds=0, status=202, key=key)
    if not mail.dry_run:
        _hand_over(mail)
    return stored


def _commit(
    params: object, *, work_seconds: float, status: int, key: Key | None
) -> tuple[NewMessage, StoredAnswer]:
    """Commit a mail, unless it asks only what would be sent."""
    mail = permitted(services().reader.mail(params, work_seconds=work_seconds))
    stored = StoredAnswer(
        status=status, location=f"/v1/messages/{mail.id}", body={"id": mail.id, "status": mail.state}
    )
    if not mail.dry_run:
        may_make(mail.id, location=stored.location)
        kept = Kept(key=key, answer=stored) if key else None
        services().outbox.accept(mail, kept, guard.charge())
    return mail, stored


def _hand_over(mail: NewMessage) -> None:
    """Tell the workers now; what is to be sent later is found when its time has come."""
    if mail.job:
        services().run(mail.job)
    elif mail.state is State.QUEUED:
        services().send(mail.mail_id)


def _dry_run(acceptance: NewMessage) -> Response:
    """Answer with what would be sent; nothing is kept."""
    message = acceptance.message
    sender = message.sender or account_sender(acceptance.sender)
    text, html = both_forms(message)
    claim = Claim(
        id=acceptance.id,
        attempt=1,
        message_id=acceptance.message_id,
        created_at_ms=0,
        message=message,
        pending=(),
    )
    people = zip(message.everyone, message.kinds(), strict=True)
    answer: DryRunJson = {
        "dry_run": True,
        "status": acceptance.state,
        "from": {"email": sender.address, "name": sender.name},
        "subject": message.subject,
        "recipients": [{"email": to.address, "name": to.name, "kind": kind} for to, kind in people],
        "text": text,
        "html": html,
        "attachments": [_file_json(file) for file in message.attachments],
        "size": len(compose(claim, sender=sender)),
    }
    return jsonify(answer)


def _file_json(file: Attachment) -> FileJson:
    return {"filename": file.name, "content_type": file.content_type, "size": len(file.content)}


def _waited_for(told: Response) -> Response:
    """A client that prefers to wait is told how the message stands when it has ended.

    One that is no longer served by then, or a database that has gone away, leaves it at what was accepted.
    """
    seconds = preferred_seconds()
    if not seconds or told.status_code >= 300 or "Location" not in told.headers:  # A dry run has none.
        return told
    id, is_served = told.headers["Location"].removeprefix("/v1/messages/"), guard.standing()
    try:
        waited = _wait(id, seconds, is_served)
        if not is_served():
            return told
        answer = _told(id, waited)
    except StoreUnavailable:
        return told
    answer.headers["Location"] = told.headers["Location"]
    # 200 for those only who waited for it: another client shall not see 200 or 202 by chance.
    ended = waited and answer.json["status"] in FINAL  # type: ignore[index]  # it is an object
    answer.status_code = 200 if ended else told.status_code
    return answer


def _told_after_waiting(id: str) -> Response:
    seconds = preferred_seconds()
    if not seconds or _state(id) is None:
        return _told(id)
    waited = _wait(id, seconds, guard.standing())
    guard.check_anew()
    return _told(id, waited)


def _wait(id: str, seconds: int, is_served: Callable[[], bool]) -> int:
    """Wait until the message has ended, or who asks is no longer served.

    Return for how many seconds at most; 0 where too many wait already.
    """
    return seconds if wait_for(lambda: _state(id) in FINAL or not is_served(), seconds) else 0


def _told(id: str, waited: int = 0) -> Response:
    answer = jsonify(message_json(find(id)))
    if waited:
        answer.headers["Preference-Applied"] = f"wait={waited}"
    return answer


def _state(id: str) -> State | None:
    return services().outbox.state(id) if is_id(id) else None


def _address(text: str) -> str:
    """Return an address as it is in the envelope, its domain in ASCII."""
    try:
        return parse_address(text).address if text else ""
    except PydanticCustomError as e:
        raise InvalidMessage([FieldError("?to", e.message())]) from None


def _time(name: str, asked: Mapping[str, str]) -> int | None:
    given = asked.get(name)
    try:
        return None if given is None else parse_time(given)
    except PydanticCustomError as e:
        raise InvalidMessage([FieldError(f"?{name}", e.message())]) from None
