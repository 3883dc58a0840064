"""The errors that a mail can meet.

MailroomError
├── MalformedJSON           the bytes are not one JSON object
├── InvalidMessage          the object is not a message; lists every wrong field
├── StoreUnavailable        the database did not take or give what it was asked for
│   └── CommitUnanswered    it was told to commit, and nobody knows whether it has
└── TransportError          an attempt ended without a reply that takes the mail
    ├── NotTaken            the next hop said no, or could not be reached, before it had the whole mail
    └── Unanswered          the whole mail went out and no reply came back
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn
from urllib.parse import quote

from pydantic_core import PydanticCustomError

#: Wrong fields that are told; a body of a million unknown ones gets an answer that a person can read.
ERRORS_MAX = 20

#: Characters of a name that an answer repeats; a client's own may be as long as its request.
NAME_MAX_CHARACTERS = 200


class MailroomError(Exception):
    """Base of all errors that this service raises on purpose."""


class MalformedJSON(MailroomError):
    """The bytes are not one JSON object in UTF-8, or are nested deeper than any message needs."""


@dataclass(frozen=True)
class FieldError:
    """A wrong field: where it is, what was expected and what came.

    The place is a JSON pointer as URI fragment (RFC 6901, 6).
    """

    pointer: str
    detail: str


class InvalidMessage(MailroomError):
    """A well-formed object that is no message that can be sent; `errors` has every wrong field at once, `code` the kind of mistake."""

    def __init__(self, errors: list[FieldError], *, code: str = "validation_error") -> None:
        self.errors = errors
        self.code = code
        super().__init__("; ".join(f"{e.pointer}: {e.detail}" for e in errors))


class WrongDatabaseURL(MailroomError):
    """The URL of the database cannot be read, or names an option that its driver does not know."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"MAILASYNC_DATABASE_URL: {detail}")


class StoreUnavailable(MailroomError):
    """The database could not be reached, or could not write: nothing that was asked for has happened, unless it is a CommitUnanswered."""


class CommitUnanswered(StoreUnavailable):
    """The database was told to commit, and the link broke before it answered: all that was asked for has happened, or nothing."""


class TransportError(MailroomError):
    """An attempt ended without a final reply that takes the mail.

    `reply` is the server's last words ("550 5.7.1 no"), or ours where no server spoke.
    """

    def __init__(self, reply: str, *, code: int = 0) -> None:
        self.reply = reply
        self.code = code
        super().__init__(reply)

    @property
    def permanent(self) -> bool:
        """Tell whether trying the same mail again cannot help."""
        return 500 <= self.code < 600


class NotTaken(TransportError):
    """The attempt ended before the final dot, or the dot was answered with a refusal: nobody has the mail.

    `of_message` is False where the trouble came before MAIL (connect, greeting, EHLO, TLS, AUTH): it is the
    account's or the server's, and no mail fails for it. `code` is then what SMTP would say to it, 5xx where a
    person has to act; 0: the server was not reached. `after_rcpt` is True where recipients of this mail had
    been answered for, so that the end may be about them.
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
    """The next hop took no connection: refused or reset it, hung up, or said that there are too many."""


class TooManyConnections(MailroomError):
    """Raised if a further connection is refused while `open_connections` others can take the mail."""

    def __init__(self, reply: str, *, code: int, open_connections: int) -> None:
        self.code = code
        self.open_connections = open_connections
        super().__init__(reply)


class Unanswered(TransportError):
    """The link broke after the final dot went out: the next hop may have the mail (RFC 5321, 4.5.3.2.6; RFC 1047)."""


def refuse(detail: str) -> NoReturn:
    """Say in a validator what was expected, and what came."""
    raise PydanticCustomError("refused", "{detail}", {"detail": detail})


def refuse_items(wrong: Sequence[tuple[list[str | int], str]]) -> NoReturn:
    """Refuse several places below the field: say where each is, and what was expected there."""
    raise PydanticCustomError(
        "refused", "{detail}", {"detail": wrong[0][1], "items": list(wrong[:ERRORS_MAX])}
    )


def pointer(parts: list[Any]) -> str:
    """The end of a JSON pointer as URI fragment (RFC 6901, 6)."""
    path = "".join(
        "/" + str(part)[:NAME_MAX_CHARACTERS].replace("~", "~0").replace("/", "~1") for part in parts
    )
    return quote(path, safe="/~!$&'()*+,;=:@?", errors="backslashreplace")
