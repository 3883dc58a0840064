"""Remembers whether a next hop takes commands in one write, as it says (PIPELINING, RFC 2920)."""

import logging
import re
from collections.abc import Iterable

from mailroom.smtp.connection import Reply
from mailroom.smtp.envelope import Envelope

log = logging.getLogger("mailasync.delivery")

#: No answer to a recipient, or to DATA after one was accepted: the command did not arrive as it was said.
_GARBLED_CODES = frozenset({500, 502, 503})
_OUT_OF_STEP = re.compile(r"pipelin|synchroni[sz]ation", re.IGNORECASE)


class Pipelining:
    """Pipelining with one next hop, by all its sessions."""

    def __init__(self, server: str, *, is_used: bool) -> None:
        self.is_used = is_used
        self._server = server
        self._is_proven = False

    def doubts(self, envelope: Envelope) -> bool:
        """Tell replies that look as if the server had lost or garbled what came with the first command."""
        if envelope.data is not None and envelope.data.code == 354 and not _is_garbled(envelope):
            self._is_proven = True
        return _is_garbled(envelope) or (_is_silent(envelope) and not self._is_proven)

    def give_up(self, refused: Iterable[Reply]) -> None:
        """Speak step by step from now on, as a mail went in that way; `refused` are the replies to its recipients.

        Not where some are such as had been doubted: so they were not about the commands.
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
    said = [*envelope.replies, *([envelope.end] if envelope.end else [])]
    if any(reply.refuses and _OUT_OF_STEP.search(reply.words) for reply in said):
        return True
    if envelope.mail is None or not envelope.mail.accepts:
        return False
    is_accepted = any(reply.accepts for reply in envelope.rcpt.values())
    data = [envelope.data] if envelope.data and is_accepted else []
    return any(reply.code in _GARBLED_CODES for reply in [*envelope.rcpt.values(), *data])


def _is_silent(envelope: Envelope) -> bool:
    """Tell a server that accepted MAIL, and does not answer all that came with it."""
    return envelope.timed_out and envelope.mail is not None and envelope.mail.accepts
