"""Reads what a mail server says: whole replies, each limited in size and in time."""

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
#: A reply is cut to this, as the timeline keeps it once for each recipient.
REPLY_MAX_CHARACTERS = 500

T = TypeVar("T")
#: URLs, addresses and host names.
_NAMES = re.compile(
    r"""https?://\S+|<[^<>]*>|"[^"]*"@\S+|\S*@\S+|\b[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b""",
    re.IGNORECASE,
)

RawReply = tuple[int, bytes]  #: a reply as smtplib returns it: its code and its text


class Reply(NamedTuple):
    """A reply of the server: its code, and its text on one line. Code 0: our own words, as none came."""

    code: int
    text: str

    def __str__(self) -> str:
        if self.code <= 0:
            return self.text
        return f"{self.code} {self.text}".strip()

    @property
    def text_without_names(self) -> str:
        """Return the text without URLs, addresses, hosts: bob@daily-limit.example is no sign of a limit."""
        return _NAMES.sub("", self.text)

    @property
    def accepts(self) -> bool:
        return 200 <= self.code < 300

    @property
    def refuses(self) -> bool:
        return 400 <= self.code < 600


def reply_text(text: bytes | str) -> str:
    """Return a server's text on one line, cut to REPLY_MAX_CHARACTERS."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return one_line(text, most=REPLY_MAX_CHARACTERS)


def describe(error: Exception) -> str:
    """Describe a connection error in one line."""
    if isinstance(error, smtplib.SMTPResponseException):
        return reply_text(error.smtp_error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return reply_text(str(error)) or type(error).__name__


class Connection(smtplib.SMTP):
    """An SMTP connection that no server can hold up by a reply that never ends, or comes byte by byte.

    The socket never blocks: a socket with a timeout makes three system calls for each of ours, and other
    threads get the interpreter in each of them.
    """

    sock: socket.socket
    #: Time limit for a whole reply, and for each part of what we send to be taken by the server.
    reply_timeout_seconds: float
    #: True if not all could be sent; replies that came before can still be read.
    broken = False
    _refusal: smtplib.SMTPAuthenticationError | None = None

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        self.reply_timeout_seconds = timeout
        sock: socket.socket = super()._get_socket(host, port, timeout)  # type: ignore[misc]  # no stub
        sock.setblocking(False)
        return sock

    def ehlo(self, name: str = "") -> RawReply:
        """Introduce ourselves, by HELO if EHLO gets a 5xx, and by our IP address if we have no name.

        Raises:
          SMTPHeloError: with the reply to EHLO, also if the connection was lost after it.
        """
        self.local_hostname = self.local_hostname or literal(self.sock.getsockname()[0])
        reply = super().ehlo(name)
        if reply[0] // 100 == 2:
            return reply
        with suppress(smtplib.SMTPServerDisconnected):
            if reply[0] // 100 == 5:
                helo_reply = self.helo(name)
                if helo_reply[0] // 100 == 2:
                    return helo_reply
        raise smtplib.SMTPHeloError(*reply)

    def starttls(self, *, context: Any = None) -> RawReply:  # type: ignore[override]  # narrower
        handshake = _Handshake(context or ssl.create_default_context(), self.reply_timeout_seconds)
        return super().starttls(context=handshake)  # type: ignore[call-overload, no-any-return]

    def send(self, s: Any) -> None:
        """Send bytes or ASCII, as smtplib does; if the connection breaks, the next `getreply` raises."""
        run(self.write(s))

    def write(self, data: bytes | str) -> Dialogue[None]:
        """Send `data` without blocking; `broken` is set if the connection is lost."""
        if not self.sock:
            raise smtplib.SMTPServerDisconnected("please run connect() first")
        if isinstance(data, str):
            data = data.encode(self.command_encoding)
        unsent = memoryview(data)
        try:
            while unsent:
                deadline = time.monotonic() + self.reply_timeout_seconds
                send = partial(self.sock.send, unsent)
                sent = yield from _when_ready(self.sock, send, deadline, event=select.POLLOUT)
                unsent = unsent[sent:]
        except OSError:
            self.broken = True
            self.reply_timeout_seconds = 0.0  # Nothing more will come.

    def auth(self, *args: Any, **kwargs: Any) -> RawReply:
        """Authenticate as smtplib does, but raise the refusal if the server hung up after it.

        smtplib tries the next mechanism after a refusal, and loses the refusal when that fails.
        """
        try:
            return super().auth(*args, **kwargs)
        except smtplib.SMTPAuthenticationError as e:
            self._refusal = e
            raise
        except smtplib.SMTPServerDisconnected:
            if self._refusal is None:
                raise
            raise self._refusal from None

    def getreply(self) -> RawReply:
        """Read a reply as smtplib does, within `reply_timeout_seconds`; code -1: what came is none."""
        return run(self.read_raw_reply())

    def read_raw_reply(self) -> Dialogue[RawReply]:
        """Read a reply as `getreply` does, without blocking."""
        try:
            deadline = time.monotonic() + self.reply_timeout_seconds
            return (yield from self._read_lines(deadline))
        except OSError as e:
            self.close()
            reason = e.strerror or str(e)
            raise smtplib.SMTPServerDisconnected(f"connection lost: {reason}") from e

    def read_reply(self) -> Dialogue[Reply]:
        """Read a reply; raise SMTPServerDisconnected also if what comes is none."""
        code, text = yield from self.read_raw_reply()
        if code < 200 or code >= 600:
            raise smtplib.SMTPServerDisconnected(
                f"expected an SMTP reply, got {reply_text(text)!r}"
            )
        return Reply(code, reply_text(text))

    def read_refusal(self) -> Dialogue[Reply | None]:
        """Return the refusal that has arrived from a server that is hanging up, if there is one."""
        self.reply_timeout_seconds = 0.0
        try:
            while True:
                reply = yield from self.read_reply()
                if reply.refuses:
                    return reply
        except smtplib.SMTPServerDisconnected:
            return None

    @property
    def has_unexpected_data(self) -> bool:
        """Tell whether the server said something, or hung up, when we had asked it nothing."""
        return self._lines().has_unexpected_data()

    def _read_lines(self, deadline: float) -> Dialogue[RawReply]:
        lines = self._lines()
        texts: list[bytes] = []
        while len(texts) < REPLY_LINES_MAX:
            line = yield from lines.read_line(deadline)
            if not line[:3].isdigit() or line[3:4] not in (b" ", b"-", b""):
                return -1, line[:200]
            texts.append(line[4:].strip())
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(texts)
        raise ConnectionError("the reply had no end")

    def _lines(self) -> "_LineReader":
        if self.file is None:  # smtplib's sign for a new socket: at first, and after STARTTLS.
            self.file = _LineReader(self.sock)
        reader: _LineReader = self.file
        return reader


class TLSConnection(Connection, smtplib.SMTP_SSL): ...


class _LineReader:
    """Reads lines from a socket; takes the place of smtplib's file, which knows no deadline."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = bytearray()

    def read_line(self, deadline: float) -> Dialogue[bytes]:
        """Return a line without its line end.

        Raises:
          OSError: there was none at `deadline`, on the clock of time.monotonic; or the connection was lost.
        """
        while True:
            end = self._received.find(b"\n")
            if end >= 0:
                break
            if len(self._received) > LINE_MAX_BYTES:
                raise ConnectionError("a line of the reply had no end")
            if not isinstance(self._sock, ssl.SSLSocket) or not self._sock.pending():
                # The reply has never arrived yet, so trying to read first would waste a system call.
                yield Wait(self._sock, select.POLLIN, deadline)
            yield from _when_ready(self._sock, self._receive, deadline)
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line.rstrip(b"\r")

    def has_unexpected_data(self) -> bool:
        try:
            self._receive()
        except (BlockingIOError, ssl.SSLWantReadError):
            return bool(self._received)
        except OSError:
            pass
        return True

    def _receive(self) -> None:
        data = self._sock.recv(4096)
        if not data:
            raise ConnectionError("connection closed by the server")
        self._received += data

    def close(self) -> None:
        """Do nothing: smtplib closes the socket itself."""


class _Handshake:
    """Stands for a TLS context that wraps a non-blocking socket; the handshake may take `timeout_seconds`."""

    def __init__(self, context: ssl.SSLContext, timeout_seconds: float) -> None:
        self._context = context
        self._timeout_seconds = timeout_seconds

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:
        sock.settimeout(self._timeout_seconds)
        wrapped = self._context.wrap_socket(sock, **options)
        wrapped.setblocking(False)
        return wrapped


def _when_ready(
    sock: socket.socket, act: Callable[[], T], deadline: float, *, event: int = select.POLLIN
) -> Dialogue[T]:
    """Call `act` until the socket is ready for it; `event` is what to wait for otherwise.

    Raises:
      TimeoutError: it was not ready at `deadline`, on the clock of time.monotonic.
    """
    while True:
        try:
            return act()
        except ssl.SSLWantReadError:  # TLS may have to read before it can write.
            awaited = select.POLLIN
        except ssl.SSLWantWriteError:
            awaited = select.POLLOUT
        except BlockingIOError:
            awaited = event
        yield Wait(sock, awaited, deadline)
