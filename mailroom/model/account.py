"""A sender account: its state, its sending limits, and the server that takes its mails."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from mailroom.model.host_names import host_and_port

#: The account of the settings MAIL_…, where there is no ACCOUNTS_FILE.
DEFAULT_ACCOUNT = "default"


class AccountState(StrEnum):
    """The state of an account; PAUSED, HALTED and PARKED end as soon as the server takes one of its mails."""

    OK = "ok"
    PAUSED = "paused"  #: the server asked us to come back later, or could not be reached
    HALTED = "halted"  #: the server refused the login, or the connection
    PARKED = "parked"  #: the server's daily limit is reached


@dataclass(frozen=True, kw_only=True)
class AccountError:
    """An error that concerns the account and not the mail, such as a refused login."""

    state: AccountState
    reason: str  #: the server's reply
    #: Seconds until the account is tried again, after the first such error in a row, the second, …
    waits: tuple[float, ...]
    excuses: bool = True  #: the attempt does not count against the mail


@dataclass(frozen=True, kw_only=True)
class SendingLimit:
    """The limits of one account for any 24 hours; 0 means no limit."""

    account: str
    messages: int = 0
    recipients: int = 0
    credentials: str = ""  #: a hash of the account's login, which changes with it

    @property
    def is_limited(self) -> bool:
        return bool(self.messages or self.recipients)


class Capacity(NamedTuple):
    """The mails that a worker can still take for an account, and the reason why it takes no more."""

    mails: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class NextHop:
    """The server that takes our mail, and the login and the options for connections to it."""

    host: str
    port: int
    security: str  #: ssl, starttls or none
    user: str = ""  #: "": no login
    password: str = field(default="", repr=False)
    oauth2_file: str = ""
    ca_file: str = ""
    timeout_seconds: float = 60.0
    ehlo_name: str = ""  #: "": this machine's full name, or else `sender_domain`
    sender_domain: str = ""
    mails_per_connection: int = 10
    #: send commands in one write if the server announces PIPELINING (RFC 2920)
    pipelining: bool = True

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)


@dataclass(frozen=True, kw_only=True)
class MailboxServer:
    """The IMAP server with the mailbox of an account, and the login for it."""

    host: str
    port: int
    security: str  #: ssl, starttls or none
    user: str
    password: str = field(default="", repr=False)
    oauth2_file: str = ""
    ca_file: str = ""
    timeout_seconds: float = 60.0
