"""Remembers whether a next hop really takes several commands in one write (PIPELINING, RFC 2920)."""

import logging
import re
from collections.abc import Iterable

from mailroom.smtp.connection import Reply
from mailroom.smtp.envelope import Envelope

log = logging.getLogger("mailasync.delivery")

#: They make no sense as a reply to RCPT, or to DATA after an accepted RCPT: the command arrived damaged.
_GARBLED_CODES = frozenset({500, 502, 503})
_OUT_OF_STEP = re.compile(r"pipelin|synchroni[sz]ation", re.IGNORECASE)


class Pipelining:
    """Pipelining with one next hop; its sessions share this."""

    def __init__(self, server: str, *, is_used: bool) -> None:
        self.is_used = is_used
        self._server = server
        self._is_proven = False

    def doubts(self, envelope: Envelope) -> bool:
        """Tell whether the server seems to have lost or garbled what came in one write with MAIL."""
        if _is_garbled(envelope):
            return True
        data = envelope.data
        if data is not None and data.code == 354:
            self._is_proven = True
        return _is_silent(envelope) and not self._is_proven

    def give_up(self, refused: Iterable[Reply]) -> None:
        """Send commands one by one from now on, as a doubted mail went through that way.

        `refused` are its replies to RCPT. If some still have the codes that raised the doubt, they were about
        the recipients, and pipelining stays.
        """
        if any(reply.code in _GARBLED_CODES for reply in refused):
            return
        if self.is_used:
            log.warning(
                "%s announces PIPELINING, and loses or garbles commands; it gets them one by one now; "
                "SMTP_PIPELINING=off saves the first try",
                self._server,
            )
        self.is_used = False


def _is_garbled(envelope: Envelope) -> bool:
    replies = [*envelope.replies]
    if envelope.hangup:
        replies.append(envelope.hangup)
    if any(map(_says_out_of_step, replies)):
        return True
    if envelope.mail is None or not envelope.mail.accepts:
        return False
    answers = [*envelope.rcpt.values()]
    if envelope.data and any(reply.accepts for reply in answers):
        answers.append(envelope.data)
    return any(reply.code in _GARBLED_CODES for reply in answers)


def _says_out_of_step(reply: Reply) -> bool:
    if not reply.refuses:
        return False
    return _OUT_OF_STEP.search(reply.text_without_names) is not None


def _is_silent(envelope: Envelope) -> bool:
    """Tell whether the server accepted MAIL, and did not answer all that came with it."""
    return envelope.timed_out and envelope.mail is not None and envelope.mail.accepts
