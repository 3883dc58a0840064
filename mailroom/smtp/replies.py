"""Judges replies: about the recipient, the message, or our account and its pace (RFC 5321, 4.2; RFC 3463; RFC 4954, 6)."""

import re

from mailroom.model.account import AccountError, AccountState
from mailroom.model.message import State
from mailroom.model.retry import Schedule
from mailroom.smtp.connection import Reply
from mailroom.smtp.sending_limits import find_limit

#: A wrong or missing login, said to a mail. A person has to mend it: no number of attempts should end that.
_LOGIN_CODES = frozenset({530, 534, 535})
#: Too many logins, or authentication is out of order (RFC 4954, 6); Gmail says it to who logs in too often.
_LOGINS_CODE = 454
#: The server closes the session: it restarts, or has enough of us.
_BUSY_CODE = 421
#: More recipients than the server takes at a time; RFC 5321, 4.5.3.1.10 has 452, and 552 of old servers as the same.
_TOO_MANY_RECIPIENTS = re.compile(r"[45]\.5\.3(?![\d.])|.*too many recipients", re.IGNORECASE | re.DOTALL)

#: As Postfix, Exim, Exchange ("maximum number of concurrent server connections", "sender thread limit"), Orange
#: ("too many connexions, slow down") and QQ ("connection frequency limited") say it.
_TOO_MANY_CONNECTIONS = re.compile(
    r"too many\b.*\b(?:conne(?:ct|x)ions|sessions)\b"
    r"|\b(?:connections?|sessions?) (?:(?:count |rate )?limit|count exceeded|frequency limited)"
    r"|\bmax(?:imum)?\b.*\bconnections\b|\bconcurrent\b|\bsimultaneous\b|\bthread limit\b",
    re.IGNORECASE | re.DOTALL,
)

#: As "too many messages in this connection"; NetEase's codes are in mail.163.com/help/help_spam_16.htm.
_SESSION_USED_UP = re.compile(
    r"\b(?:this|per|each|one|single|same)[- ](?:smtp )?(?:connection|session)\b|^(?:MI:DMC|RP:DRC)\b",
    re.IGNORECASE,
)

#: There is no such mailbox or domain, or none that takes mail (RFC 3463, 3.2; RFC 7505); 5.1.7 and 5.1.8 are about the sender, and
#: 5.1.0 can be about anything.
_BAD_ADDRESS = re.compile(r"5\.1\.(?:[1236]|10)(?![\d.])")

#: A look at a server that was away costs one connection, and once it is back its mails should go soon.
CONNECT_WAIT_MAX_SECONDS = 600.0
#: Often enough for a person who has just mended the account, too rare for a server to take offence.
LOGIN_WAITS_SECONDS = (15 * 60.0,)
LOGINS_WAITS_SECONDS = (15 * 60.0, 30 * 60.0, 3600.0)
#: Others have all connections that the server takes, and any of them may end.
CONNECTIONS_WAITS_SECONDS = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
#: 421 4.7.x is about our pace.
PACE_WAITS_SECONDS = tuple(300.0 * 2**n for n in range(6))


def state_of(reply: Reply) -> State:
    """Return what a reply means for the recipient or the message that it answers."""
    if reply.accepts:
        return State.SENT
    return State.FAILED if 500 <= reply.code < 600 and not _of_account(reply) else State.DEFERRED


def trouble_of(reply: Reply, schedule: Schedule, *, of_message: bool = True) -> AccountError | None:
    """Judge what a reply means for the account. `of_message`: it came after a login, in the transaction of a mail.

    Whatever came before that is the account's or the server's, also where nobody said a word (code 0).
    """
    reason = str(reply)
    if limit := limit_of(reply):
        return limit
    if reply.code not in _LOGIN_CODES and says_too_many_connections(reply):
        return AccountError(state=AccountState.PAUSED, reason=reason, waits=CONNECTIONS_WAITS_SECONDS)
    if reply.code in _LOGIN_CODES or (500 <= reply.code < 600 and not of_message):
        return AccountError(state=AccountState.HALTED, reason=reason, waits=LOGIN_WAITS_SECONDS)
    if reply.code == _BUSY_CODE or not of_message:
        # 421 to a mail counts: one at which the server always hangs up must not keep the others for ever.
        return AccountError(
            state=AccountState.PAUSED,
            reason=reason,
            waits=_pauses(reply, schedule, of_message),
            excuses=not of_message,
        )
    return None


def limit_of(reply: Reply) -> AccountError | None:
    """Return what a reply says of how much an account may send, in the words of its server."""
    limit = find_limit(reply.words) if reply.refuses else None
    return limit and AccountError(state=limit.state, reason=str(reply), waits=limit.waits)


def _pauses(reply: Reply, schedule: Schedule, of_message: bool) -> tuple[float, ...]:
    if reply.code == _LOGINS_CODE:
        return LOGINS_WAITS_SECONDS
    if reply.code == _BUSY_CODE and reply.text.startswith("4.7."):
        return PACE_WAITS_SECONDS
    most = float("inf") if of_message else CONNECT_WAIT_MAX_SECONDS
    return tuple(min(float(wait), most) for wait in schedule.waits)


def is_of_bad_address(reply: Reply) -> bool:
    """Tell whether a reply to RCPT says that nobody can be reached there, whatever is sent."""
    return state_of(reply) is State.FAILED and _BAD_ADDRESS.match(reply.text) is not None


def _of_account(reply: Reply) -> bool:
    is_limited = find_limit(reply.words) is not None or says_too_many_connections(reply)
    return is_limited or reply.code in _LOGIN_CODES


def is_one_too_many(reply: Reply) -> bool:
    """Tell a refusal of a recipient only because the mail has others: the next attempt may take it at once."""
    return reply.refuses and _TOO_MANY_RECIPIENTS.match(reply.words) is not None


def is_of_session(reply: Reply) -> bool:
    """Tell a refusal because of what the session has had already; a new one has had nothing."""
    return reply.refuses and (is_one_too_many(reply) or _SESSION_USED_UP.search(reply.words) is not None)


def says_too_many_connections(reply: Reply) -> bool:
    """Tell a refusal of a connection, or of what is said on it, only because there are others."""
    return reply.refuses and _TOO_MANY_CONNECTIONS.search(reply.words) is not None


def may_be_of_connections(reply: Reply) -> bool:
    """Tell a reply before MAIL that can be about the number of connections: it says so, or is 421, or none (0)."""
    return reply.code in (0, _BUSY_CODE) or says_too_many_connections(reply)
