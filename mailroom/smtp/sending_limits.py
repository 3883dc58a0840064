"""Knows how mail servers say that an account may not send for now; many say it by a 5xx, as if for good."""

import re
from typing import NamedTuple

from mailroom.model.account import AccountState


class LimitPattern(NamedTuple):
    """A provider's reply for a sending limit, and what it means for the account."""

    #: a regular expression, searched in `Reply.text_without_names`, in any case of letters
    pattern: str
    state: AccountState
    #: seconds until the account is tried again, after the first such reply, …
    waits: tuple[float, ...]


#: A limit over a rolling window ends at a moment that no server says.
OF_A_DAY = (3600.0,)
OF_AN_HOUR = (600.0, 1200.0)
#: For a limit of mails a second, the next second will do.
OF_A_SECOND = tuple(2.0**n for n in range(6))

#: A person has to speak with the provider; tried as often as a login that is refused.
UNTIL_MENDED = (900.0,)

_PARKED, _PAUSED, _HALTED = AccountState.PARKED, AccountState.PAUSED, AccountState.HALTED
#: Excludes limits of the recipient, whose mailbox is full or gets too much mail, and of a mail's size.
_OURS = (
    r"^(?!.*(?:receiv|mailbox|inbox|inbound|incoming|storage|disk|\bsize\b|recipient\b[^:;]*\bhas\b"
    r"|user you))"
)
_COUNTED = r"(?:messages?|e-?mails?|mails?|rcpts?|recipients?)"
_SENDING = r"(?:send(?:ing)?|outgoing|outbound|submission|relay|message count|messages)"
_TIME = r"(?:hour|day|week|month)s?"
_TIMES = r"(?:daily|hourly|weekly|monthly|hour|(?:24|one)[- ]hours?|per[- ](?:hour|day|week|month)|today)"

#: The first one that matches counts. To add one, add a line with a link to where the provider documents it.
LIMITS = (
    # Gmail, Workspace: support.google.com/a/answer/3726730
    LimitPattern(
        r"^5\.4\.5(?![\d.])|daily smtp relay limit|daily user sending (?:limit|quota)",
        _PARKED,
        OF_A_DAY,
    ),
    # Exchange Online: learn.microsoft.com, "Fix NDR error 550 5.1.90", "… SubmissionQuotaExceededException"
    LimitPattern(r"^5\.1\.90\s|submissionquotaexceeded", _PARKED, OF_A_DAY),
    # Exchange Online: learn.microsoft.com, "Email non-delivery reports": a user or tenant who may not send
    LimitPattern(
        r"^5\.1\.8 .*bad outbound sender|^5\.7\.(?:50[123]|70[58]|750) ", _HALTED, UNTIL_MENDED
    ),
    # Amazon SES: docs.aws.amazon.com/ses/latest/dg/troubleshoot-error-messages.html
    LimitPattern(r"throttling failure: daily message quota", _PARKED, OF_A_DAY),
    LimitPattern(r"throttling failure: maximum sending rate", _PAUSED, OF_A_SECOND),
    LimitPattern(r"sending paused for this account", _HALTED, UNTIL_MENDED),
    # Zoho: zoho.com/mail/help/usage-policy.html; "550 5.4.6 Unusual sending activity detected"
    LimitPattern(r"unusual sending activity", _PARKED, OF_A_DAY),
    # NetEase (163, 126, yeah.net): mail.163.com/help/help_spam_16.htm
    LimitPattern(r"^(?:MI:STC|RP:TRC)\b", _PARKED, OF_A_DAY),
    LimitPattern(r"^(?:MI:SFQ|RP:QRC)\b", _PARKED, OF_AN_HOUR),
    # QQ: "550 Ip frequency limited", "Domain frequency limited"; service.mail.qq.com, no. 1000725
    LimitPattern(r"\b(?:ip|domain|sender|user) frequency limited", _PARKED, OF_AN_HOUR),
    # Hosts with cPanel: docs.cpanel.net, "max emails per hour", "max defers and failures per hour"
    LimitPattern(
        r"exceeded (?:the )?(?:hour|hourly|max(?:imum)? (?:emails|defers and failures) per hour)\b",
        _PARKED,
        OF_AN_HOUR,
    ),
    LimitPattern(r"outgoing mail from .* has been suspended", _HALTED, UNTIL_MENDED),
    # GoDaddy: "User has exceeded its 24-hour sending limit"
    LimitPattern(r"24[- ]hour sending limit", _PARKED, OF_A_DAY),
    # SendGrid: "451 You've exceeded your messaging limits"
    LimitPattern(r"exceeded your messaging limits", _PARKED, OF_AN_HOUR),
    # SMTP2GO: "552 Your account has been suspended. Please contact us"; a recipient's is not "your" account
    LimitPattern(
        r"\byour account (?:has been|is|was) (?:suspended|blocked|disabled|paused)",
        _HALTED,
        UNTIL_MENDED,
    ),
    # OVH: "sorry, too many emails (#5.7.1)"; Mailu: "You are sending too many emails too fast"
    LimitPattern(
        r"sorry, too many e?-?mails|\b(?:sent|sending) too many (?:e?-?mails|messages)",
        _PARKED,
        OF_AN_HOUR,
    ),
    # Other providers, in any wording: a sending limit or quota; a limit per day, hour, …; or a number of
    # mails in some time, as "limit of 400 rcpts per 24 hours", "only 10 messages per day".
    LimitPattern(
        rf"{_OURS}.*\b{_SENDING}(?: {_COUNTED})? (?:limit|quota|allowance)", _PARKED, OF_A_DAY
    ),
    LimitPattern(rf"{_OURS}.*\b{_TIMES}\b.*\b(?:limit|quota|allowance)", _PARKED, OF_A_DAY),
    LimitPattern(rf"{_OURS}.*\b(?:limit|quota|allowance)\b.*\b{_TIMES}", _PARKED, OF_A_DAY),
    LimitPattern(
        rf"{_OURS}.*\b{_COUNTED} (?:per|a|an|in|in an|in one|in the last) (?:\d+ )?{_TIME}\b",
        _PARKED,
        OF_A_DAY,
    ),
)
_COMPILED = tuple((re.compile(limit.pattern, re.IGNORECASE | re.DOTALL), limit) for limit in LIMITS)


def find_limit(text: str) -> LimitPattern | None:
    """Return the limit that a refusal speaks of; `text` is `Reply.text_without_names`."""
    return next((limit for pattern, limit in _COMPILED if pattern.search(text)), None)
