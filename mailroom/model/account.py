"""A sender of mail: an account, its state, what it may send, and the server that takes its mails."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from mailroom.model.host_names import host_and_port

#: The account of the settings MAIL_…, where there is no ACCOUNTS_FILE.
DEFAULT_ACCOUNT = "default"


class AccountState(StrEnum):
    """The state of an account: whether it can send. All but OK end with one mail that goes through."""

    OK = "ok"
    PAUSED = "paused"  #: the server asked us to come back later, or could not be reached
    HALTED = "halted"  #: the server refused our login, or to speak with us at all
    PARKED = "parked"  #: the server's daily limit is reached


@dataclass(frozen=True, kw_only=True)
class AccountError:
    """The part of a reply that is about the account, and not about the mail."""

    state: AccountState
    reason: str  #: the server's words
    waits: tuple[
        float, ...
    ]  #: seconds until the account is tried again, after the first such reply in a row, the second, …
    excuses: bool = True  #: whether the attempt does not count against the mail


@dataclass(frozen=True, kw_only=True)
class SendingLimit:
    """The mail that one account may send in 24 hours, whenever they begin. 0: as much as it is given."""

    account: str
    messages: int = 0
    recipients: int = 0
    credentials: str = ""  #: a hash that changes with them

    @property
    def is_limited(self) -> bool:
        return bool(self.messages or self.recipients)


class Capacity(NamedTuple):
    """The room that a worker has for an account: how many mails, and what more of them wait for."""

    mails: int
    words: str


@dataclass(frozen=True, kw_only=True)
class NextHop:
    """The server that takes our mail, and how we make ourselves known to it."""

    host: str
    port: int
    security: str  #: ssl, starttls or none
    user: str = ""  #: "": no login
    password: str = field(default="", repr=False)
    oauth2_file: str = ""
    ca_file: str = ""
    timeout_seconds: float = 60.0
    ehlo_name: str = ""  #: "": this machine's own name, or else `sender_domain`
    sender_domain: str = ""
    mails_per_connection: int = 10
    pipelining: bool = True  #: whether it gets commands in one write, where it says that it takes that

    def __str__(self) -> str:
        return host_and_port(self.host, self.port)
