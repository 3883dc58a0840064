"""Whole mails over HTTP: accepts one in RFC 5322 bytes, which goes out as it came."""

from dataclasses import replace
from hashlib import sha256

from flask import Blueprint, Response, request

from mailroom.api.auth import guard
from mailroom.api.auth.senders import account_sender
from mailroom.api.http.idempotency import HEADER
from mailroom.api.http.request import raw_body
from mailroom.api.routes.messages import answer, hand_over, submit_mail
from mailroom.api.services import services
from mailroom.model.ids import new_id
from mailroom.store.messages.idempotency import Key
from mailroom.store.messages.outbox import NewMessage
from mailroom.submission.raw_message import RawEnvelope, RawSubmission, read_raw, received
from mailroom.submission.steering import read_idempotency_key

blueprint = Blueprint("raw_messages", __name__)


@blueprint.post("/v1/messages/raw")
def post_raw() -> Response:
    """Accept a whole mail (RFC 5322), which goes out as it is; answers 202."""
    mail = raw_body()
    submission = submit_mail(lambda: _read(mail), status=202, key=_key_in(mail))
    if submission.mail:
        hand_over(submission.mail)
    return answer(submission)


def _read(mail: bytes) -> NewMessage:
    ours, id = services(), new_id()
    envelope = RawEnvelope(
        recipients=request.args.getlist("to"),
        sender=request.args.get("from"),
        received=received(by=ours.reader.domain, protocol="HTTP", id=id),
    )
    submission = read_raw(mail, envelope)
    accepted = ours.reader.raw(submission, id=id)
    _check_senders(submission, accepted)
    key_id = guard.current_key().id
    return replace(accepted, key_id=key_id) if key_id else accepted


def _check_senders(submission: RawSubmission, mail: NewMessage) -> None:
    """Abort with 403 if the key may not send from one of the addresses that the mail says it is from."""
    if not guard.current_key().senders:
        return
    for sender in submission.senders or (account_sender(mail.sender),):
        in_header = sender in submission.authors
        guard.check_sender(sender.address, pointer="#/From" if in_header else "?from")


def _key_in(mail: bytes) -> Key | None:
    """Return the key in the header of the mail; None if it has none, or the request has one itself."""
    text = "" if HEADER in request.headers else read_idempotency_key(mail)
    if not text:
        return None
    envelope = f"{request.path}?{request.query_string.decode()}\n".encode()
    return Key(
        owner=guard.current_key().id,
        key=text,
        request_hash=sha256(envelope + mail).hexdigest(),
    )
