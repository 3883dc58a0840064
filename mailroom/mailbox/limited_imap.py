"""Speaks IMAP as imaplib does, but waits and reads no more than it may.

imaplib's timeout is for each read, and a literal may have any size: a server that sends a byte a second, or
announces 10 GB, would hold or fill us. Its `read`, `readline`, `send`, `open` and `shutdown` are meant to be
overridden; its own file of the socket is not used.
"""

import imaplib
import socket
import ssl
import time
from contextlib import suppress
from typing import Any

_RECEIVE_BYTES = 65536


class TooMuchData(Exception):
    """Raised if the server sends, or announces, more than the command may bring."""


class LimitedIMAP4(imaplib.IMAP4):
    """A connection with limits for all that happens until they are set anew."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        context: ssl.SSLContext | None,
        seconds: float,
        most_bytes: int,
    ) -> None:
        self._context = context
        self._received = bytearray()
        self.refusal = ""  #: the server's words, if it refused the last command
        self.lost: OSError | None = None  #: the error of the last command, if it could not be sent
        self.limit(seconds, most_bytes)
        super().__init__(host, port)

    def limit(self, seconds: float, most_bytes: int) -> None:
        """Allow so many seconds, and so many bytes from the server, from now on."""
        self._deadline = time.monotonic() + seconds
        self._bytes_left = most_bytes
        self.refusal, self.lost = "", None

    def forget(self, *, but: tuple[str, ...] = ()) -> None:
        """Forget the responses that nobody asked for; imaplib keeps them for ever."""
        kept = self.untagged_responses.items()
        self.untagged_responses = {
            kind: responses for kind, responses in kept if kind in ("BYE", *but)
        }

    def take(self, kind: str) -> bool:
        """Tell whether the server sent a response of this kind, and forget that it did."""
        return self.untagged_responses.pop(kind, None) is not None

    @property
    def goodbye(self) -> str:
        """Return the server's words if it said that it hangs up."""
        responses = self.untagged_responses.get("BYE") or [b""]
        return _text(responses[-1])

    def listen(self, seconds: float, *, reply_seconds: float, idle: bool) -> None:
        """Wait until the server says EXISTS, at most `seconds`; `idle`: ask it to say so (RFC 2177).

        IMAPClient's `idle` fails if something else comes before the server's "+", and its `idle_check` takes
        a lost connection for silence.
        """
        tag = self._start_idle() if idle else None
        self._deadline = time.monotonic() + seconds
        with suppress(TimeoutError):
            while "EXISTS" not in self.untagged_responses and not self.goodbye:
                self._get_response()
        self._check_bye()
        if tag is not None:
            self._deadline = time.monotonic() + reply_seconds
            self.send(b"DONE\r\n")
            self._check(*self._command_complete("IDLE", tag))

    def _start_idle(self) -> bytes:
        tag: bytes = self._command("IDLE")
        while self._get_response() is not None:
            self._check_bye()
            if self.tagged_commands[tag]:
                self._check(*self._command_complete("IDLE", tag))
                raise self.error("IDLE ended before it began")
        return tag

    def run(self, name: str) -> None:
        """Run a command without arguments; IMAPClient would wait for a reply after a BYE."""
        self._check(*self._simple_command(name))

    def _check(self, kind: str, data: list[Any]) -> None:
        if kind != "OK":
            raise self.error(f"{kind} {data}")

    def _get_tagged_response(self, *arguments: Any, **options: Any) -> Any:
        kind, data = super()._get_tagged_response(*arguments, **options)  # type: ignore[misc]  # no stub
        if kind in ("NO", "BAD"):
            self.refusal = _text(data[-1]) or kind
        return kind, data

    def starttls(self, ssl_context: ssl.SSLContext | None = None) -> Any:
        """Begin TLS, and forget all that was said before, as anybody could have said it (RFC 3501, 6.2.1)."""
        assert ssl_context is not None
        kind, data = self._simple_command("STARTTLS")
        if kind == "OK":
            if self._received:
                raise ConnectionError("the server spoke between STARTTLS and TLS")
            self.sock = self._wrap(self.sock, ssl_context)
            self.forget()
            self._tls_established = True
            self._get_capabilities()
        return kind, data

    def open(self, host: str = "", port: int = 0, timeout: float | None = None) -> None:
        self.host, self.port = host, port
        self.sock = self._connect_socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._context is not None:
            self.sock = self._wrap(self.sock, self._context)

    def _connect_socket(self) -> socket.socket:
        """Connect to the first address that answers; each gets its share of the time."""
        addresses = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for index, (family, kind, protocol, _, address) in enumerate(addresses):
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(self._seconds_left() / (len(addresses) - index))
                sock.connect(address)
                return sock
            except OSError:
                sock.close()
                if index == len(addresses) - 1:
                    raise
        raise OSError("the host has no address")

    def _wrap(self, sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
        sock.settimeout(self._seconds_left())
        try:
            return context.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise

    def read(self, size: int) -> bytes:
        if size > len(self._received) + self._bytes_left:
            raise TooMuchData
        while len(self._received) < size:
            self._receive()
        return self._take_received(size)

    def readline(self) -> bytes:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            self._receive()
        return self._take_received(end + 1)

    def _take_received(self, size: int) -> bytes:
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive(self) -> None:
        self.sock.settimeout(self._seconds_left())
        data = self.sock.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionError("connection closed by the server")
        self._received += data
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise TooMuchData

    def send(self, data: Any) -> None:
        unsent = memoryview(data)
        try:
            while unsent:
                self.sock.settimeout(self._seconds_left())
                unsent = unsent[self.sock.send(unsent) :]
        except OSError as e:
            # imaplib makes an error of its own of it.
            self.lost = e
            raise

    def _seconds_left(self) -> float:
        """Return the seconds until the deadline, for a socket that does not take 0 for a timeout.

        Raises:
          TimeoutError: there are none.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def shutdown(self) -> None:
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _log(self, line: object) -> None:
        """Keep nothing: imaplib keeps the last ten lines, with the password among them."""


def _text(data: object) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, bytes) else ""
