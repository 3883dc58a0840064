"""The errors of this service.

MailroomError
├── MalformedJSON           the bytes are not one JSON object
├── InvalidMessage          the object is not a message; lists every wrong field
├── WrongDatabaseURL        the URL of the database cannot be read
├── StoreUnavailable        the database could not be read or written
│   └── CommitUnanswered    a commit was sent, and it is not known whether it was made
├── TooManyConnections      the next hop refused a further connection
├── StillSending            a worker has the message, so its recipients are not settled yet
└── TransportError          an attempt ended without a reply that accepts the mail
    ├── NotTaken            the next hop does not have the mail: it refused it, or could not be reached
    │   └── ConnectionRefused   it refused the connection
    └── Unanswered          the whole mail was sent and no reply came back
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn
from urllib.parse import quote

from pydantic_core import PydanticCustomError

#: Wrong fields that an answer lists, so that it stays readable however many there are.
ERRORS_MAX = 20

#: An answer cuts a client's names to this length.
NAME_MAX_CHARACTERS = 200


class MailroomError(Exception):
    """Base of all errors that this service raises on purpose."""


class MalformedJSON(MailroomError):
    """The bytes are not one JSON object in UTF-8, or are nested deeper than any message needs."""


@dataclass(frozen=True)
class FieldError:
    """A wrong field: its JSON pointer as a URI fragment (RFC 6901, 6), and what was expected and came."""

    pointer: str
    detail: str


class InvalidMessage(MailroomError):
    """The JSON is not a valid request; `errors` has every wrong field, `code` is the problem's code."""

    def __init__(self, errors: list[FieldError], *, code: str = "validation_error") -> None:
        self.errors = errors
        self.code = code
        super().__init__("; ".join(f"{e.pointer}: {e.detail}" for e in errors))


class WrongDatabaseURL(MailroomError):
    """The URL of the database cannot be read, or names an option that its driver does not know."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"MAILASYNC_DATABASE_URL: {detail}")


class StoreUnavailable(MailroomError):
    """The database could not be read or written; nothing changed, unless it is CommitUnanswered."""


class CommitUnanswered(StoreUnavailable):
    """The connection broke while a commit was unanswered: either everything was changed, or nothing."""


class TransportError(MailroomError):
    """An attempt ended without a final reply that accepts the mail.

    `reply` is the server's last reply ("550 5.7.1 no"), or our own sentence if there was none.
    """

    def __init__(self, reply: str, *, code: int = 0) -> None:
        self.reply = reply
        self.code = code
        super().__init__(reply)

    @property
    def permanent(self) -> bool:
        """True if the same mail will be refused again."""
        return 500 <= self.code < 600


class NotTaken(TransportError):
    """The attempt ended before the final dot, or the dot got a refusal: the next hop does not have the mail.

    `of_message` is False if the error came before MAIL (connect, greeting, EHLO, TLS, AUTH): it concerns the
    account or the server, and no mail fails for it. `code` is then a fitting SMTP code, 5xx if a person must
    act, or 0 if the server was not reached. `after_rcpt` is True if a reply to RCPT came before, so that the
    error may concern the recipients.
    """

    def __init__(
        self, reply: str, *, code: int = 0, of_message: bool = True, after_rcpt: bool = False
    ) -> None:
        super().__init__(reply, code=code)
        self.of_message = of_message
        self.after_rcpt = after_rcpt

    @property
    def permanent(self) -> bool:
        return self.of_message and super().permanent


class ConnectionRefused(NotTaken):
    """The next hop refused or reset the connection, hung up, or said that there are too many."""


class StillSending(MailroomError):
    """A worker has this message now, so that it is not settled yet who has got it."""


class TooManyConnections(MailroomError):
    """A further connection was refused, while `open_connections` others are open and can take the mail."""

    def __init__(self, reply: str, *, code: int, open_connections: int) -> None:
        self.code = code
        self.open_connections = open_connections
        super().__init__(reply)


class Unanswered(TransportError):
    """The connection broke after the final dot, so the next hop may have the mail.

    See RFC 5321, 4.5.3.2.6, and RFC 1047. `refused` has the replies to RCPT of those who do not get it, by
    position.
    """

    refused: Mapping[int, Any] = MappingProxyType({})


def refuse(detail: str) -> NoReturn:
    """Refuse a field in a pydantic validator; `detail` says what was expected and what came."""
    raise PydanticCustomError("refused", "{detail}", {"detail": detail})


def refuse_items(errors: Sequence[tuple[list[str | int], str]]) -> NoReturn:
    """Refuse several items inside a field, each by its path below the field and a detail."""
    raise PydanticCustomError(
        "refused", "{detail}", {"detail": errors[0][1], "items": list(errors[:ERRORS_MAX])}
    )


def pointer(parts: list[Any]) -> str:
    """Write the names and indexes of a path as the end of a JSON pointer in a URI fragment (RFC 6901, 6)."""
    path = ""
    for part in parts:
        name = str(part)[:NAME_MAX_CHARACTERS]
        path += "/" + name.replace("~", "~0").replace("/", "~1")
    return quote(path, safe="/~!$&'()*+,;=:@?", errors="backslashreplace")
