"""The words in which mail servers say that an account has sent enough for now; many of them look like refusals for good."""

import re
from typing import NamedTuple

from mailroom.mail.message import AccountState


class SendingLimit(NamedTuple):
    """What a reply that matches `words` means for the account: its state, and the seconds until it is tried again."""

    words: str  #: a regular expression, looked for anywhere in the reply's text, whatever the case
    state: AccountState
    waits: tuple[float, ...]


#: A rolling window frees at a moment that nobody tells.
OF_A_DAY = (3600.0,)
OF_AN_HOUR = (600.0, 1200.0)
#: So many mails a second: the next second will do.
OF_A_SECOND = tuple(2.0**n for n in range(6))

_PARKED, _PAUSED = AccountState.PARKED, AccountState.PAUSED
_TIMES = r"(?:daily|hourly|hour|(?:24|one)[- ]hour|per[- ](?:hour|day)|max(?:imum)? emails per hour)"

#: The first one that matches counts. To add a provider's, add a line with where its words come from.
LIMITS = (
    # Gmail, Workspace: support.google.com/a/answer/3726730
    SendingLimit(r"^5\.4\.5\s|daily smtp relay limit|daily user sending (?:limit|quota)", _PARKED, OF_A_DAY),
    # Exchange Online: learn.microsoft.com, "Fix NDR error 550 5.1.90" and "5.2.0 … SubmissionQuotaExceededException"
    SendingLimit(r"^5\.1\.90\s|submissionquotaexceeded", _PARKED, OF_A_DAY),
    # Amazon SES: docs.aws.amazon.com/ses/latest/dg/troubleshoot-error-messages.html
    SendingLimit(r"throttling failure: daily message quota", _PARKED, OF_A_DAY),
    SendingLimit(r"throttling failure: maximum sending rate", _PAUSED, OF_A_SECOND),
    # Hosts with cPanel: docs.cpanel.net, "max emails per hour"
    SendingLimit(r"exceeded (?:the )?(?:hour|hourly|max(?:imum)? emails per hour)\b", _PARKED, OF_AN_HOUR),
    # GoDaddy: "User has exceeded its 24-hour sending limit"
    SendingLimit(r"24[- ]hour sending limit", _PARKED, OF_A_DAY),
    # Others, in their order of words: a limit or quota for sending in some time, reached or exceeded; not one of the
    # recipient's, who has a full mailbox or receives too much.
    SendingLimit(rf"^(?!.*(?:receiv|mailbox|storage|disk)).*\b{_TIMES}\b.*\b(?:limit|quota|allowance)", _PARKED, OF_A_DAY),
    SendingLimit(rf"^(?!.*(?:receiv|mailbox|storage|disk)).*\b(?:limit|quota|allowance)\b.*\b{_TIMES}\b", _PARKED, OF_A_DAY),
)
_COMPILED = tuple((re.compile(limit.words, re.IGNORECASE | re.DOTALL), limit) for limit in LIMITS)


def find_limit(text: str) -> SendingLimit | None:
    """Return the limit that a refusal tells of; `text` is the reply without its code."""
    return next((limit for words, limit in _COMPILED if words.search(text)), None)
