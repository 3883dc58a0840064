"""Reads what a mail server says: whole replies, each with an end in size and in time."""

import re
import select
import smtplib
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, TypeVar

from mailroom.model.host_names import literal
from mailroom.model.text import one_line
from mailroom.smtp.poller import Dialogue, Wait, run

REPLY_LINES_MAX = 100
LINE_MAX_BYTES = 8192
#: What is kept of a reply, as it is written into the timeline once for each recipient.
REPLY_MAX_CHARACTERS = 500

T = TypeVar("T")
#: URLs, addresses and names of hosts.
_NAMES = re.compile(
    r"""https?://\S+|<[^<>]*>|"[^"]*"@\S+|\S*@\S+|\b[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b""", re.IGNORECASE
)


class Reply(NamedTuple):
    """The words of the server: its code, and its text on one line."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip() if self.code > 0 else self.text

    @property
    def words(self) -> str:
        """The text without URLs, addresses and hosts: bob@daily-limit.example says nothing of a limit."""
        return _NAMES.sub("", self.text)

    @property
    def accepts(self) -> bool:
        return 200 <= self.code < 300

    @property
    def refuses(self) -> bool:
        return 400 <= self.code < 600


def reply_text(text: bytes | str) -> str:
    """Return a server's words on one line."""
    decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return one_line(decoded, most=REPLY_MAX_CHARACTERS)


def words_of(error: Exception) -> str:
    """Return what is worth saying of an error of a link."""
    if isinstance(error, smtplib.SMTPResponseException):
        return reply_text(error.smtp_error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return reply_text(str(error)) or type(error).__name__


class Link(smtplib.SMTP):
    """A link that no server can hold with a reply that never ends or trickles in byte by byte.

    The socket never blocks. With a timeout of its own each call would be three of the system's, and in each of them another thread
    takes the interpreter.
    """

    sock: socket.socket
    patience: (
        float  #: how long a whole reply may take, or the server to take in more of what we send; in seconds
    )
    broken = False  #: whether not all could be sent; what the server had said before can still be read
    _refused: smtplib.SMTPAuthenticationError | None = None

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        self.patience = timeout
        link: socket.socket = super()._get_socket(host, port, timeout)  # type: ignore[misc]  # which the stubs do not have
        link.setblocking(False)
        return link

    def ehlo(self, name: str = "") -> tuple[int, bytes]:
        """Introduce ourselves, by HELO where EHLO is refused for good, and by our address if we have no name.

        SMTPHeloError has what was said to EHLO, also where the link ended with that.
        """
        self.local_hostname = self.local_hostname or literal(self.sock.getsockname()[0])
        said = super().ehlo(name)
        if said[0] // 100 == 2:
            return said
        with suppress(smtplib.SMTPServerDisconnected):
            if said[0] // 100 == 5 and (old := self.helo(name))[0] // 100 == 2:
                return old
        raise smtplib.SMTPHeloError(*said)

    def starttls(self, *, context: Any = None) -> tuple[int, bytes]:  # type: ignore[override]  # narrower
        return super().starttls(context=_Handshake(context or ssl.create_default_context(), self.patience))  # type: ignore[call-overload, no-any-return]

    def send(self, s: Any) -> None:
        """Send bytes or ASCII, as smtplib does; of a link that breaks the next `getreply` tells."""
        run(self.sending(s))

    def sending(self, s: Any) -> Dialogue[None]:
        """Send as `send` does, in steps."""
        if not self.sock:
            raise smtplib.SMTPServerDisconnected("please run connect() first")
        left = memoryview(s.encode(self.command_encoding) if isinstance(s, str) else s)
        try:
            while left:
                taken = yield from _patiently(
                    self.sock,
                    partial(self.sock.send, left),
                    time.monotonic() + self.patience,
                    awaits=select.POLLOUT,
                )
                left = left[taken:]
        except OSError:
            self.broken, self.patience = True, 0.0  # Nothing more comes.

    def auth(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        """Authenticate as smtplib does, but raise the refusal where the server hung up with it.

        smtplib tries the next mechanism after a refusal, and forgets the refusal then.
        """
        try:
            return super().auth(*args, **kwargs)
        except smtplib.SMTPAuthenticationError as e:
            self._refused = e
            raise
        except smtplib.SMTPServerDisconnected:
            if self._refused is None:
                raise
            raise self._refused from None

    def getreply(self) -> tuple[int, bytes]:
        """Read a reply as smtplib does; `patience` is for the whole of it. What is no reply has code -1."""
        return run(self.reading())

    def reading(self) -> Dialogue[tuple[int, bytes]]:
        """Read a reply as `getreply` does, in steps."""
        try:
            return (yield from self._read_reply(time.monotonic() + self.patience))
        except OSError as e:
            self.close()
            words = e.strerror or str(e)
            raise smtplib.SMTPServerDisconnected(f"connection lost: {words}") from e

    def replying(self) -> Dialogue[Reply]:
        """Read a reply; raises SMTPServerDisconnected as well if what comes is none."""
        code, text = yield from self.reading()
        if code < 200 or code >= 600:
            raise smtplib.SMTPServerDisconnected(f"expected an SMTP reply, got {reply_text(text)!r}")
        return Reply(code, reply_text(text))

    def last_words(self) -> Dialogue[Reply | None]:
        """Return the refusal that is there to be read, of a server that ends the conversation."""
        self.patience = 0.0
        try:
            while not (reply := (yield from self.replying())).refuses:
                pass
        except smtplib.SMTPServerDisconnected:
            return None
        return reply

    @property
    def spoke_unasked(self) -> bool:
        """Tell whether the server said something, or hung up, when it was not its turn."""
        if self.file is None:
            self.file = _Lines(self.sock)
        return self.file.spoke_unasked()

    def _read_reply(self, deadline: float) -> Dialogue[tuple[int, bytes]]:
        if self.file is None:  # smtplib's sign for a new socket: at first, and after STARTTLS
            self.file = _Lines(self.sock)
        texts: list[bytes] = []
        while len(texts) < REPLY_LINES_MAX:
            line = yield from self.file.next(deadline)
            if not line[:3].isdigit() or line[3:4] not in (b" ", b"-", b""):
                return -1, line[:200]
            texts.append(line[4:].strip())
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(texts)
        raise ConnectionError("the reply had no end")


class TLSLink(Link, smtplib.SMTP_SSL): ...


class _Lines:
    """The lines that come over one socket; stands where smtplib keeps a file that knows no deadline."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._read = bytearray()

    def next(self, deadline: float) -> Dialogue[bytes]:
        """Return a line without its end; raises OSError if it is not there at `deadline`, on the clock time.monotonic."""
        while (end := self._read.find(b"\n")) < 0:
            if len(self._read) > LINE_MAX_BYTES:
                raise ConnectionError("a line of the reply had no end")
            if not isinstance(self._link, ssl.SSLSocket) or not self._link.pending():
                yield Wait(
                    self._link, select.POLLIN, deadline
                )  # A reply is never there yet, so that to look first is a call too many.
            yield from _patiently(self._link, self._more, deadline)
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return line.rstrip(b"\r")

    def spoke_unasked(self) -> bool:
        try:
            self._more()
        except (BlockingIOError, ssl.SSLWantReadError):
            return bool(self._read)
        except OSError:
            pass
        return True

    def _more(self) -> None:
        data = self._link.recv(4096)
        if not data:
            raise ConnectionError("connection closed by the server")
        self._read += data

    def close(self) -> None:
        """Nothing: the socket is smtplib's to close."""


class _Handshake:
    """Stands for a TLS context where a socket that never blocks is wrapped: the handshake may take `patience` seconds."""

    def __init__(self, context: ssl.SSLContext, patience: float) -> None:
        self._context = context
        self._patience = patience

    def wrap_socket(self, link: socket.socket, **how: Any) -> ssl.SSLSocket:
        link.settimeout(self._patience)
        wrapped = self._context.wrap_socket(link, **how)
        wrapped.setblocking(False)
        return wrapped


def _patiently(
    link: socket.socket, act: Callable[[], T], deadline: float, *, awaits: int = select.POLLIN
) -> Dialogue[T]:
    """Do it as soon as the socket lets us; raises TimeoutError if that is not before `deadline`, on the clock time.monotonic."""
    while True:
        try:
            return act()
        except ssl.SSLWantReadError:  # TLS may have to read before it can write.
            event = select.POLLIN
        except ssl.SSLWantWriteError:
            event = select.POLLOUT
        except BlockingIOError:
            event = awaits
        yield Wait(link, event, deadline)
