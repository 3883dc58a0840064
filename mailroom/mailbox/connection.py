"""Reads the account's own mailbox over IMAP; marks nothing read, and moves only what it is asked to."""

import base64
import imaplib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple, Self

from mailroom.mailbox.client import RESPONSE_MAX_BYTES, ImapClient
from mailroom.mailbox.failures import CONNECTION, LOGIN, explain, is_about_login
from mailroom.mailbox.limited_imap import TooMuchData
from mailroom.model.account import MailboxServer
from mailroom.model.host_names import host_and_port
from mailroom.model.text import one_line
from mailroom.smtp.login import NoMechanism
from mailroom.smtp.oauth2 import TokenError, TokenSource

#: The server may end an IDLE after 29 minutes (RFC 2177), and a router forget a silent link much sooner.
IDLE_SECONDS_MAX = 300
LOGOUT_SECONDS = 1
#: A search may return a million UIDs.
SEARCH_MAX_BYTES = 8_000_000
HEADERS_MAX_BYTES = 16_384  #: of one mail
BATCH_UIDS = 100
UID_MAX = 2**32 - 1
REASON_MAX_CHARACTERS = 500

_HEADER_NAME = re.compile(r"[A-Za-z0-9-]+")
#: How a server that does not keep to the protocol makes imaplib and IMAPClient fail.
_FAULTS = (
    imaplib.IMAP4.error,
    OSError,
    TooMuchData,
    TokenError,
    NoMechanism,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)


class MailboxError(Exception):
    """Raised if the mailbox could not be reached or read; the text is one line for people, without secrets.

    `of_login`: the server refused the login, so a person has to act.
    """

    def __init__(self, reason: str, *, of_login: bool = False) -> None:
        self.of_login = of_login
        super().__init__(one_line(reason, most=REASON_MAX_CHARACTERS))


class InboxStatus(NamedTuple):
    """The UIDVALIDITY of the inbox, and the UID that the next mail will get (RFC 3501, 2.3.1.1)."""

    uid_validity: int
    uid_next: int


class Folder(NamedTuple):
    """A folder as LIST tells it; `separator` is "" if folders have no levels."""

    name: str
    separator: str
    attributes: frozenset[str]  #: in lower case, such as r"\sent"


class MailboxConnection:
    """A connection to one mailbox, logged in. Not for two threads at once.

    Each call ends within the server's `timeout_seconds`, or some times that if it takes several commands; it
    raises a MailboxError if that was too short, or the server refused. The connection is lost then, unless
    the server refused.
    """

    def __init__(self, server: MailboxServer, *, tokens: TokenSource | None = None) -> None:
        """`tokens`: the account's own, if there is one; else it is made from the server's `oauth2_file`."""
        self.server = server
        self._client: ImapClient | None = None
        self._capabilities: frozenset[str] = frozenset()
        self._is_writable = False
        self._tokens = tokens
        if tokens is None and server.oauth2_file:
            self._tokens = TokenSource(server.oauth2_file, server.timeout_seconds)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __str__(self) -> str:
        return host_and_port(self.server.host, self.server.port)

    @property
    def is_open(self) -> bool:
        return self._client is not None

    @property
    def can_idle(self) -> bool:
        return self.offers("IDLE")

    def offers(self, capability: str) -> bool:
        return capability in self._capabilities

    def open(self) -> None:
        """Connect, verify the certificate, and log in, unless that is done."""
        if self._client is not None:
            return
        step = LOGIN
        try:
            token = self._token()
            step = CONNECTION
            client = self._client = ImapClient(self.server)
            if self.server.security == "starttls":
                step = "STARTTLS"
                client.start_tls()
            step = LOGIN
            client.log_in(token)
            step = "CAPABILITY"
            self._learn_capabilities(client)
        except _FAULTS as e:
            failure = self._failure(e, step)
            self._drop()
            if failure.of_login and self._tokens is not None:
                self._tokens.forget()
            raise failure from None

    def close(self) -> None:
        """Log out and hang up; never fails, and takes no longer than LOGOUT_SECONDS."""
        if self._client is not None:
            with suppress(Exception):
                self._client.imap.limit(LOGOUT_SECONDS, RESPONSE_MAX_BYTES)
                self._client.logout()
        self._drop()

    def select_inbox(self, *, writable: bool = False) -> InboxStatus:
        """Select the inbox, read-only unless it has to be `writable` for `move`."""
        status = self._select("INBOX", writable=writable)
        with self._command("SELECT"):
            return InboxStatus(int(status[b"UIDVALIDITY"]), int(status[b"UIDNEXT"]))

    def examine(self, folder: str) -> None:
        """Select a folder, read-only, in place of the one that is selected."""
        self._select(folder, writable=False)

    def new_uids(self, after: int, *, limit: int) -> list[int]:
        """Return UIDs higher than `after`, ascending, at most `limit`; none only if there are none.

        Looks at a range of `limit` UIDs first, so that the response is short, however many there are.
        """
        # A server shows a search what it had noticed when the last command ended.
        with self._command("NOOP") as client:
            client.imap.run("NOOP")
            client.imap.take("EXISTS")
        end = min(after + limit, UID_MAX)
        for first, last in ((after + 1, str(end)), (end + 1, "*")):
            if first > UID_MAX:
                break
            found = self.search(f"UID {first}:{last}".encode())
            # "n:*" has the last mail, even if its UID is below n (RFC 3501, 6.4.8).
            uids = sorted(uid for uid in found if uid >= first)
            if uids:
                return uids[:limit]
        return []

    def uids_since(self, day: date, *, limit: int) -> list[int]:
        """Return the UIDs of mails that arrived on `day` or later, ascending, at most the last `limit`."""
        return sorted(self.search(["SINCE", day]))[-limit:]

    def search(
        self, criteria: bytes | Sequence[str | bytes | date], *, charset: str | None = None
    ) -> list[int]:
        """Search the selected folder; bytes are sent as they are, the parts of a sequence are quoted."""
        with self._command("SEARCH", most_bytes=SEARCH_MAX_BYTES) as client:
            return [*client.search(criteria, charset)]

    def headers(self, uids: Sequence[int], names: Sequence[str]) -> dict[int, bytes]:
        """Return the header fields `names` of each mail that is still there, cut to HEADERS_MAX_BYTES."""
        if not all(map(_HEADER_NAME.fullmatch, names)):
            raise ValueError(f"expected names of header fields, got {names!r}")
        fields = " ".join(names)
        part = f"BODY.PEEK[HEADER.FIELDS ({fields})]<0.{HEADERS_MAX_BYTES}>"
        found: dict[int, bytes] = {}
        for batch in _batches(uids):
            most_bytes = RESPONSE_MAX_BYTES + len(batch) * HEADERS_MAX_BYTES
            with self._command("FETCH", most_bytes=most_bytes) as client:
                for uid, items in client.fetch(batch, [part]).items():
                    found[uid] = _body(items)[:HEADERS_MAX_BYTES]
        return found

    def fetch(self, uid: int, max_bytes: int) -> bytes:
        """Return the first `max_bytes` of a mail; b"" if it is no longer there."""
        most_bytes = RESPONSE_MAX_BYTES + max_bytes
        with self._command("FETCH", most_bytes=most_bytes) as client:
            items = client.fetch([uid], [f"BODY.PEEK[]<0.{max_bytes}>"])
            return _body(items.get(uid, {}))[:max_bytes]

    def wait_for_mail(self, seconds: float) -> bool:
        """Wait for a new mail in the selected folder; True as soon as the server speaks of one.

        Without IDLE few servers do. The answer may be a mistake, so look by `new_uids`.
        """
        ends_at = time.monotonic() + seconds
        with self._command("IDLE") as client:
            while not client.imap.take("EXISTS"):
                left = ends_at - time.monotonic()
                if left <= 0:
                    return False
                timeout = self.server.timeout_seconds
                client.imap.limit(timeout, RESPONSE_MAX_BYTES)
                client.imap.forget(but=("EXISTS",))
                wait = min(left, IDLE_SECONDS_MAX)
                client.imap.listen(wait, reply_seconds=timeout, idle=self.can_idle)
            return True

    def folders(self) -> list[Folder]:
        """Return all folders, with their special uses (RFC 6154)."""
        with self._command("LIST") as client:
            return [
                Folder(
                    str(name),
                    (separator or b"").decode("ascii", "replace"),
                    frozenset(flag.decode("ascii", "replace").lower() for flag in flags),
                )
                for flags, separator, name in client.list_folders()
            ]

    def move(self, uids: Sequence[int], folder: str) -> None:
        """Move mails from the inbox, which has to be selected `writable`; the folder is made if missing."""
        # Dovecot 2.3 moves them out of a folder that is selected read-only.
        if not self._is_writable:
            raise MailboxError("mails can be moved only from a writable inbox")
        for batch in _batches(uids):
            if self.offers("MOVE"):
                self._put(batch, folder, "MOVE")
            else:
                self._put(batch, folder, "COPY")
                self._delete(batch)

    def _put(self, uids: Sequence[int], folder: str, command: str) -> None:
        """MOVE or COPY mails; make the folder and try again if that is refused."""
        try:
            self._put_into(folder, uids, command)
        except MailboxError:
            if not self.is_open:
                raise
            # Not all servers say TRYCREATE if the folder is missing.
            with suppress(MailboxError), self._command("CREATE") as client:
                client.create_folder(folder)
            self._put_into(folder, uids, command)

    def _put_into(self, folder: str, uids: Sequence[int], command: str) -> None:
        with self._command(command) as client:
            act = client.move if command == "MOVE" else client.copy
            act(uids, folder)

    def _delete(self, uids: Sequence[int]) -> None:
        with self._command("STORE") as client:
            client.delete_messages(uids, silent=True)
        # EXPUNGE without UIDs would delete what others have marked.
        if self.offers("UIDPLUS"):
            with self._command("EXPUNGE") as client:
                client.uid_expunge(uids)

    def _select(self, folder: str, *, writable: bool) -> dict[bytes, Any]:
        self._is_writable = False
        with self._command("SELECT" if writable else "EXAMINE") as client:
            status: dict[bytes, Any] = client.select_folder(folder, readonly=not writable)
            client.imap.forget()
            self._is_writable = writable
            return status

    def _token(self) -> bytes:
        """Return the initial response of XOAUTH2; b"" if the login is by password."""
        if self._tokens is None:
            return b""
        if self.server.security == "none":
            raise TokenError("an access token goes over TLS only")
        return base64.b64decode(self._tokens.auth_string(self.server.user))

    def _learn_capabilities(self, client: ImapClient) -> None:
        client.imap.refusal = ""
        names = client.capabilities()
        self._capabilities = frozenset(name.decode("ascii", "replace") for name in names)
        if self.offers("ID"):
            # Gmail wants to know; a server that does not is no worse for it.
            with suppress(imaplib.IMAP4.error):
                client.id_({"name": "mailasync"})

    @contextmanager
    def _command(self, name: str, *, most_bytes: int = RESPONSE_MAX_BYTES) -> Iterator[ImapClient]:
        """Give the client for one command, with new limits.

        Raises:
          MailboxError: the command failed; hangs up unless the server refused it.
        """
        if self._client is None:
            raise MailboxError(f"{self} is not connected")
        self._client.imap.limit(self.server.timeout_seconds, most_bytes)
        self._client.imap.forget(but=("EXISTS",))
        try:
            yield self._client
        except _FAULTS as e:
            raise self._failure(e, name) from None

    def _failure(self, error: Exception, name: str) -> MailboxError:
        """Return the error in words; hang up unless the server refused the command and goes on."""
        refusal = goodbye = ""
        client = self._client
        if client is not None:
            refusal = client.without_secrets(client.imap.refusal)
            goodbye = client.without_secrets(client.imap.goodbye)
            error = client.imap.lost or error
        elif error.args and isinstance(error.args[0], bytes):
            # imaplib's error for a greeting that says BYE.
            refusal = error.args[0].decode("utf-8", "replace").removeprefix("* BYE ")
        of_login = name == LOGIN and is_about_login(error, refusal)
        if goodbye or not refusal:
            self._drop()
        reason = explain(error, str(self), name, refusal=refusal, goodbye=goodbye)
        return MailboxError(reason, of_login=of_login)

    def _drop(self) -> None:
        client, self._client = self._client, None
        self._is_writable = False
        if client is not None:
            with suppress(Exception):
                client.imap.shutdown()


def _body(items: dict[bytes, Any]) -> bytes:
    """Return the body part among the items of a FETCH response, however the server writes its name."""
    for name, value in items.items():
        if name.startswith(b"BODY[") and isinstance(value, bytes):
            return value
    return b""


def _batches(uids: Iterable[int]) -> Iterator[list[int]]:
    remaining = iter(uids)
    while batch := list(islice(remaining, BATCH_UIDS)):
        yield batch
