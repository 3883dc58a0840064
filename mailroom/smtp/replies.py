"""Judges whether a reply is about the recipient, the message, or our account.

See RFC 5321, 4.2; RFC 3463; RFC 4954, 6.
"""

import re

from mailroom.model.account import AccountError, AccountState
from mailroom.model.message import State
from mailroom.model.report import BAD_ADDRESS
from mailroom.model.retry import Schedule
from mailroom.smtp.connection import Reply
from mailroom.smtp.sending_limits import find_limit

#: Login wrong or missing. A person has to mend it, so it never uses up a mail's attempts.
_LOGIN_CODES = frozenset({530, 534, 535})
#: Too many logins, or authentication is out of order (RFC 4954, 6); Gmail says it if we log in too often.
_LOGIN_RATE_CODE = 454
#: The server closes the session: it restarts, or has had enough of us.
_BUSY_CODE = 421
#: More recipients than the server takes at a time: any refusal that says x.5.3 or "too many recipients".
#: RFC 5321, 4.5.3.1.10 has 452 for it, and 552 of old servers; the code itself is not compared.
_TOO_MANY_RECIPIENTS = re.compile(
    r"[45]\.5\.3(?![\d.])|.*too many recipients", re.IGNORECASE | re.DOTALL
)

#: As Postfix, Exim, Exchange ("maximum number of concurrent server connections", "sender thread limit"),
#: Orange ("too many connexions, slow down") and QQ ("connection frequency limited") say it.
_TOO_MANY_CONNECTIONS = re.compile(
    r"too many\b.*\b(?:conne(?:ct|x)ions|sessions)\b"
    r"|\b(?:connections?|sessions?) (?:(?:count |rate )?limit|count exceeded|frequency limited)"
    r"|\bmax(?:imum)?\b.*\bconnections\b|\bconcurrent\b|\bsimultaneous\b|\bthread limit\b",
    re.IGNORECASE | re.DOTALL,
)

#: As "too many messages in this connection"; NetEase's codes are in mail.163.com/help/help_spam_16.htm.
_SESSION_LIMIT = re.compile(
    r"\b(?:this|per|each|one|single|same)[- ](?:smtp )?(?:connection|session)\b|^(?:MI:DMC|RP:DRC)\b",
    re.IGNORECASE,
)

#: Trying a server that was away costs one connection, and once it is back its mails should go soon.
CONNECT_WAIT_MAX_SECONDS = 600.0
#: Often enough for a person who has just mended the account, too rare for a server to take offence.
LOGIN_WAITS_SECONDS = (15 * 60.0,)
LOGIN_RATE_WAITS_SECONDS = (15 * 60.0, 30 * 60.0, 3600.0)
#: Others have all connections that the server takes, and any of them may end.
CONNECTIONS_WAITS_SECONDS = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
#: After 421 4.7.x, which is about how fast we send.
PACE_WAITS_SECONDS = tuple(300.0 * 2**n for n in range(6))


def state_of(reply: Reply) -> State:
    """Return what a reply means for the recipient or the message that it answers."""
    if reply.accepts:
        return State.SENT
    is_permanent = 500 <= reply.code < 600
    if is_permanent and not _is_about_account(reply):
        return State.FAILED
    return State.DEFERRED


def account_error_of(
    reply: Reply, schedule: Schedule, *, of_message: bool = True
) -> AccountError | None:
    """Return what a reply means for the account; None: nothing.

    `of_message`: the reply came to MAIL or later. All before that is about the account or the server, even if
    the server said nothing (code 0).
    """
    reason = str(reply)
    limit = sending_limit_of(reply)
    if limit:
        return limit
    is_about_login = reply.code in _LOGIN_CODES
    if not is_about_login and says_too_many_connections(reply):
        waits = CONNECTIONS_WAITS_SECONDS
        return AccountError(state=AccountState.PAUSED, reason=reason, waits=waits)
    is_permanent = 500 <= reply.code < 600
    if is_about_login or (is_permanent and not of_message):
        return AccountError(state=AccountState.HALTED, reason=reason, waits=LOGIN_WAITS_SECONDS)
    if reply.code == _BUSY_CODE or not of_message:
        # 421 to a mail uses up an attempt: one that the server always hangs up on must not block others.
        return AccountError(
            state=AccountState.PAUSED,
            reason=reason,
            waits=_pause_waits(reply, schedule, of_message),
            excuses=not of_message,
        )
    return None


def sending_limit_of(reply: Reply) -> AccountError | None:
    """Return the sending limit that a reply speaks of, if it speaks of one."""
    if not reply.refuses:
        return None
    limit = find_limit(reply.text_without_names)
    if limit is None:
        return None
    return AccountError(
        state=limit.state,
        reason=str(reply),
        waits=limit.waits,
    )


def _pause_waits(reply: Reply, schedule: Schedule, of_message: bool) -> tuple[float, ...]:
    """Return the seconds until the account is tried again, after the first such reply, the second, …"""
    if reply.code == _LOGIN_RATE_CODE:
        return LOGIN_RATE_WAITS_SECONDS
    if reply.code == _BUSY_CODE and reply.text.startswith("4.7."):
        return PACE_WAITS_SECONDS
    longest = float("inf")
    if not of_message:
        longest = CONNECT_WAIT_MAX_SECONDS
    return tuple(min(float(wait), longest) for wait in schedule.waits)


def says_bad_address(reply: Reply) -> bool:
    """Tell whether a reply to RCPT says that no mail can ever be delivered to the address."""
    return state_of(reply) is State.FAILED and BAD_ADDRESS.match(reply.text) is not None


def _is_about_account(reply: Reply) -> bool:
    if reply.code in _LOGIN_CODES or says_too_many_connections(reply):
        return True
    limit = find_limit(reply.text_without_names)
    return limit is not None


def says_too_many_recipients(reply: Reply) -> bool:
    """Tell whether a recipient was refused only because the mail has others: try it again at once."""
    return reply.refuses and _TOO_MANY_RECIPIENTS.match(reply.text_without_names) is not None


def is_about_session(reply: Reply) -> bool:
    """Tell whether the mail was refused for what the session has sent before; a new one has sent nothing."""
    if not reply.refuses:
        return False
    return (
        says_too_many_recipients(reply)
        or _SESSION_LIMIT.search(reply.text_without_names) is not None
    )


def says_too_many_connections(reply: Reply) -> bool:
    """Tell whether a connection, or a command on it, was refused only because there are others."""
    return reply.refuses and _TOO_MANY_CONNECTIONS.search(reply.text_without_names) is not None


def may_be_about_connections(reply: Reply) -> bool:
    """Tell whether a reply before MAIL may mean too many connections, as 421 or a hangup (0) may."""
    if reply.code in (0, _BUSY_CODE):
        return True
    return says_too_many_connections(reply)
