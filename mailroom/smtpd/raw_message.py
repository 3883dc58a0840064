"""Commits a mail that a program handed in, and words the reply: 250 comes after the commit, not before."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256

from mailroom.model.errors import CommitUnanswered, InvalidMessage, StoreUnavailable
from mailroom.model.ids import MailId, new_id
from mailroom.model.message import Address, State
from mailroom.model.text import one_line
from mailroom.store.keys.api_keys import ApiKey
from mailroom.store.keys.rate_limits import Charge, RateLimited
from mailroom.store.messages.idempotency import Kept, Key, Keys, KeyTaken, StoredAnswer
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.submission.raw_message import RawEnvelope, RawSubmission, read_raw, received
from mailroom.submission.reader import SubmissionReader

log = logging.getLogger("mailasync.smtpd")

#: How long to find out whether a mail was accepted, when the database did not say; a client waits 10 minutes
#: (RFC 5321, 4.5.3.2.6).
SETTLE_SECONDS = 30.0
SETTLE_PAUSE_SECONDS = 0.5
#: How long to wait for another connection that hands in a mail with the same Idempotency-Key.
SAME_KEY_SECONDS = 5.0
_REPLY_MAX_CHARACTERS = 400

_UNAVAILABLE = "451 4.3.0 the database is not available; try again"


@dataclass(frozen=True, kw_only=True)
class SubmittedMail:
    """A mail whose final dot has come, or that came on standard input."""

    content: bytes
    sender: str | None  #: "": none; None: the address in From
    recipients: tuple[str, ...]  #: (): those in To, Cc and Bcc
    smtputf8: bool | None  #: whether the client said so; None: it cannot
    source: str  #: the client, as in a Received line; "": it has no address
    protocol: str  #: as in RFC 3848
    key: ApiKey


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Accepts mails as the HTTP API does."""

    reader: SubmissionReader
    outbox: Outbox
    keys: Keys
    account_sender: Callable[[str | None], Address]  #: the address of an account
    send: Callable[[MailId], object]  #: tells a worker

    def sender_refusal(self, key: ApiKey, address: str) -> str:
        """Return the reply to a sender that may not be; "" if it may."""
        if not key.may_send_from(address):
            allowed = ", ".join(key.senders)
            return _reply(f"550 5.7.1 the key {key.id} may send only from {allowed}")
        if address and self.reader.account_of(address) is None:
            return "550 5.7.1 no account here may send from this address"
        return ""

    def accept(self, mail: SubmittedMail) -> str:
        """Commit the mail, and return the reply to its final dot."""
        id = new_id()
        try:
            submission = self._read(mail, id)
            if refusal := self._refusal(submission, mail.key):
                return refusal
            new = replace(self.reader.raw(submission, id=id), key_id=mail.key.id or None)
            if submission.idempotency_key:
                return self._accept_once(new, mail, _key(mail, submission.idempotency_key))
            return self._commit(new, mail.key, None)
        except InvalidMessage as e:
            return _invalid(e)
        except RateLimited as e:
            return _reply(f"451 4.7.0 {e}")
        except StoreUnavailable as e:
            log.error("%s", e)
            return _UNAVAILABLE

    def _read(self, mail: SubmittedMail, id: str) -> RawSubmission:
        trace = received(by=self.reader.domain, protocol=mail.protocol, id=id, source=mail.source)
        envelope = RawEnvelope(
            recipients=mail.recipients,
            sender=mail.sender,
            smtputf8=mail.smtputf8,
            received=trace,
        )
        return read_raw(mail.content, envelope)

    def _refusal(self, submission: RawSubmission, key: ApiKey) -> str:
        """Return the reply to a mail from an address that may not be its sender; "" if all may."""
        addresses = [sender.address for sender in submission.senders]
        if not addresses and key.senders:
            addresses = [self.account_sender(None).address]
        refusals = [self.sender_refusal(key, address) for address in addresses]
        return next(filter(None, refusals), "")

    def _accept_once(self, new: NewMessage, mail: SubmittedMail, key: Key) -> str:
        """Accept the mail unless an earlier one had its Idempotency-Key."""
        deadline = time.monotonic() + SAME_KEY_SECONDS
        with self.keys.in_hand(key, until=deadline) as is_ours:
            if not is_ours:
                return "451 4.3.0 a mail with this Idempotency-Key is being accepted; try again"
            if stored := self.keys.find(key):
                return _repeated(stored, key)
            kept = Kept(key=key, answer=_stored(new))
            try:
                return self._commit(new, mail.key, kept)
            except KeyTaken:
                stored = self.keys.find(key)
                return _repeated(stored, key) if stored else _UNAVAILABLE

    def _commit(self, new: NewMessage, key: ApiKey, kept: Kept | None) -> str:
        charge = None
        if key.per_minute is not None:
            charge = Charge(key_id=key.id, per_minute=key.per_minute, count=1)
        try:
            self.outbox.accept(new, kept, charge)
        except CommitUnanswered:
            self._commit_anew(new, kept)
        log.info("message %s was handed in", new.id, extra={"message_id": new.id})
        self._hand_over(new)
        return f"250 2.0.0 accepted as {new.id}"

    def _commit_anew(self, new: NewMessage, kept: Kept | None) -> None:
        """Commit a mail that may have been committed: the id makes sure that there is one of it."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            try:
                self.outbox.accept(new, kept)
                return
            except StoreUnavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(SETTLE_PAUSE_SECONDS)

    def _hand_over(self, new: NewMessage) -> None:
        """Tell a worker; if that fails, the sweeper finds the mail, which is kept in any case."""
        if new.state is not State.QUEUED:
            return
        try:
            self.send(new.mail_id)
        except Exception as e:  # kombu's errors have no common base.
            log.error("message %s: no worker was told: %s", new.id, type(e).__name__)


def _key(mail: SubmittedMail, text: str) -> Key:
    envelope = "\n".join([mail.sender or "", *mail.recipients, ""]).encode()
    request_hash = sha256(envelope + mail.content).hexdigest()
    return Key(owner=mail.key.id, key=text, request_hash=request_hash)


def _stored(new: NewMessage) -> StoredAnswer:
    """Return what is kept with an Idempotency-Key: the answer that HTTP would give."""
    body = {"id": new.id, "status": new.state}
    return StoredAnswer(status=202, location=f"/v1/messages/{new.id}", body=body)


def _repeated(stored: Kept, key: Key) -> str:
    """Return the reply to a mail whose Idempotency-Key is known."""
    if stored.key.request_hash != key.request_hash:
        return "550 5.7.0 the Idempotency-Key belongs to another mail; a new one needs a new key"
    return f"250 2.0.0 accepted before as {stored.answer.location.rpartition('/')[2]}"


def _invalid(error: InvalidMessage) -> str:
    """Return the reply to a mail that cannot be accepted."""
    first = error.errors[0]
    where = first.pointer.lstrip("#/?")
    detail = f"{where}: {first.detail}" if where else first.detail
    code = {"invalid_from_address": "550 5.7.1", "mail_loop": "554 5.4.6"}.get(
        error.code, "554 5.6.0"
    )
    return _reply(f"{code} {detail}")


def _reply(text: str) -> str:
    """Return a reply of one line in ASCII (RFC 5321, 4.5.3.1.5)."""
    line = one_line(text, most=_REPLY_MAX_CHARACTERS)
    return line.encode("ascii", "replace").decode()
