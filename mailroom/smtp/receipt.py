"""Names how an attempt on a session ends: with replies, or with an error, and then nobody has the mail."""

from dataclasses import dataclass

from mailroom.model.errors import NotTaken
from mailroom.smtp.connection import Reply


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """The replies to one attempt. `final` answers the last step that was reached: MAIL, DATA or the dot.

    `refused` has the refused recipients, by position. `final` is None if all were refused, or if the server
    hung up at RCPT.
    """

    refused: dict[int, Reply]
    final: Reply | None
    #: how the server hung up at RCPT after some answers; nobody has the mail
    hangup: Reply | None = None
    answered: int = 0  #: recipients that it had answered by then


class FenceRefused(Exception):
    """Raised before the payload if the row is no longer ours or we are stopping; nobody has the mail."""


class SessionLost(NotTaken):
    """Raised if the server has closed a kept session; nobody has the mail, and a new one may take it."""


class PipeliningDoubted(SessionLost):
    """Raised if commands in one write may have been lost; a new session may send them one by one."""
