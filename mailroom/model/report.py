"""Reports of bounces, delays and complaints about mails that were taken."""

import re
from dataclasses import dataclass
from enum import StrEnum

#: No such mailbox or domain, or none that takes mail (RFC 3463, 3.2; RFC 7505). 5.1.7 and 5.1.8 are about the
#: sender, and 5.1.0 can be about anything.
BAD_ADDRESS = re.compile(r"5\.1\.(?:[1236]|10)(?![\d.])")


class ReportKind(StrEnum):
    FAILED = "failed"  #: it will not be delivered
    DELAYED = "delayed"  #: the server goes on trying
    LIMIT = "limit"  #: the account has reached its limit; the mail may be sent again later
    COMPLAINT = "complaint"  #: the recipient called it spam (ARF, RFC 5965)


@dataclass(frozen=True, kw_only=True)
class ReportedRecipient:
    """The part of a report that is about one recipient, or about several with the same outcome."""

    kind: ReportKind
    #: Original-Recipient, Final-Recipient, X-Failed-Recipients, as far as known; perhaps none
    addresses: tuple[str, ...]
    status: str  #: the enhanced status code (RFC 3463); "" if none is named
    words: str  #: the server's, on one line

    @property
    def is_bad_address(self) -> bool:
        return BAD_ADDRESS.match(self.status) is not None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A bounce, a delay or a complaint."""

    #: candidates for the Message-ID of the mail, without angle brackets, the best first
    message_ids: tuple[str, ...]
    recipients: tuple[ReportedRecipient, ...]
    digest: str = ""  #: of the mail that it came in, by which it is known if it is read again
