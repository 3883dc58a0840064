"""Sends a POST over HTTP/1.1, and reads status, Retry-After and the beginning of the body of the response."""

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import BadStatusLine, HTTPException, RemoteDisconnected
from io import BufferedReader

from mailroom.model.text import one_line
from mailroom.webhooks.ssrf import AddressGuard, ForbiddenURL, Target

BODY_MAX_BYTES = 4096
TEXT_MAX_CHARACTERS = 300
LINE_MAX_BYTES = 65_536
#: The largest header section; a longer one ends the reading.
HEADER_MAX_BYTES = 1_000_000
#: The most interim responses (RFC 9110, 15.2: 100, 102, 103 …) before the final one.
INTERIM_MAX = 20
SWITCHING_PROTOCOLS = 101
WITHOUT_BODY = frozenset({204, 304})

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})(?: ([^\r\n]*))?\r?\n")
#: For the whole exchange, from the DNS lookup to the beginning of the response.
TIMEOUT_SECONDS = 15.0
#: For each address that the host name has.
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class WebhookResponse:
    """The receiver's final response; if there was none, `code` is None and `text` says why."""

    code: int | None
    text: str  #: the beginning of the body, or the reason phrase if the body is empty
    retry_after: str = ""


def read_response(source: BufferedReader) -> WebhookResponse:
    """Read up to the final response; after its status line, truncated or malformed data is ignored.

    Raises:
      OSError, HTTPException: there was no final status line.
    """
    for _ in range(INTERIM_MAX):
        code, reason = _read_status(source)
        headers: dict[str, str] = {}
        if 100 <= code < 200 and code != SWITCHING_PROTOCOLS:  # After 101 no HTTP follows.
            _read_headers(source, headers)
            continue
        body = b""
        with suppress(OSError, ValueError, HTTPException):
            _read_headers(source, headers)
            body = b"" if code in WITHOUT_BODY else _read_body(source, headers)
        text = short_line(body.decode(errors="replace")) or short_line(reason)
        return WebhookResponse(code, text, headers.get("retry-after", ""))
    raise HTTPException(f"{INTERIM_MAX} interim answers, and no final one")


def short_line(text: str) -> str:
    """Return the beginning of a text as one line."""
    return one_line(text.replace("\ufffd", " "), most=TEXT_MAX_CHARACTERS)


def _read_status(source: BufferedReader) -> tuple[int, str]:
    """Read a status line; return its code and reason phrase."""
    line = source.readline(LINE_MAX_BYTES)
    if not line:
        raise RemoteDisconnected("closed without an answer")
    match = _STATUS.fullmatch(line)
    if not match:
        raise BadStatusLine(short_line(line.decode(errors="replace")))
    return int(match[1]), (match[2] or b"").decode(errors="replace")


def _read_headers(source: BufferedReader, headers: dict[str, str]) -> None:
    """Add the first value of each field to `headers`, by its name in lower case."""
    left = HEADER_MAX_BYTES
    while (line := source.readline(LINE_MAX_BYTES)).strip():
        left -= len(line)
        if left < 0:
            raise HTTPException("the header has no end")
        name, _, value = line.decode("latin-1").partition(":")
        headers.setdefault(name.strip().lower(), value.strip())


def _read_body(source: BufferedReader, headers: dict[str, str]) -> bytes:
    """Read what has arrived of the body, without waiting for the rest, which may never come."""
    size = BODY_MAX_BYTES
    if "chunked" in headers.get("transfer-encoding", "").lower():
        size = int(source.readline(LINE_MAX_BYTES).partition(b";")[0], 16)
    elif "content-length" in headers:
        size = int(headers["content-length"])
    return source.read1(min(size, BODY_MAX_BYTES)) if size > 0 else b""


class WebhookExchange:
    """A POST to an address that was checked first (ssrf.py), and its response.

    Follows no redirect, uses no proxy, and does not retry.
    """

    def __init__(
        self, guard: AddressGuard, context: ssl.SSLContext, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._guard = guard
        self._context = context
        self._deadline = time.monotonic() + timeout_seconds
        self._socket: socket.socket | None = None
        #: held while the socket is closed or shut down: the number of a closed socket may be reused at once
        self._closing = threading.Lock()
        self._aborted = threading.Event()

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> WebhookResponse:
        """Return the response; never raises for anything that the receiver does."""
        # A socket's timeout starts again with each byte that arrives, so a timer enforces the total one.
        timer = threading.Timer(max(0.0, self._deadline - time.monotonic()), self.abort)
        timer.daemon = True
        timer.start()
        try:
            target = self._guard.read(url)
            with self._connected(target) as connection:
                return self._send(connection, target, body, headers)
        except ForbiddenURL as e:
            return WebhookResponse(None, f"not called: {e}")
        except (OSError, http.client.HTTPException, ValueError) as e:
            reason = "no answer in time" if self._aborted.is_set() else f"{type(e).__name__} {e}"
            return WebhookResponse(None, short_line(reason))
        finally:
            timer.cancel()

    def abort(self) -> None:
        """End the exchange at once; may be called from any thread."""
        self._aborted.set()
        with self._closing, suppress(OSError):
            if self._socket is not None:
                # SSLSocket.shutdown() would drop its TLS state first, while another thread may be reading.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    @contextmanager
    def _connected(self, target: Target) -> Iterator[http.client.HTTPConnection]:
        sock = self._connect(target)
        try:
            if target.scheme == "https":
                tls = self._context.wrap_socket(
                    sock, server_hostname=target.host, do_handshake_on_connect=False
                )
                sock = tls
                self._watch(tls)
                tls.do_handshake()
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = sock
            yield connection
        finally:
            self._close(sock)

    def _connect(self, target: Target) -> socket.socket:
        """Connect to the first checked address that accepts; the name is not resolved again."""
        error: OSError = OSError("no address")
        for address in self._guard.addresses(target):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.settimeout(min(CONNECT_SECONDS, self._seconds_left()))
            try:
                self._watch(sock)
                sock.connect((address, target.port))
                sock.settimeout(self._seconds_left())
                return sock
            except OSError as e:
                self._close(sock)
                error = e
        raise error

    def _seconds_left(self) -> float:
        """Return the time left, at least 0.1: as a timeout, 0 would mean not to wait at all."""
        return max(0.1, self._deadline - time.monotonic())

    def _close(self, sock: socket.socket) -> None:
        with self._closing:
            self._socket = None
        sock.close()

    def _watch(self, sock: socket.socket) -> None:
        """Let abort() shut this socket down; raise TimeoutError if it was called already."""
        self._socket = sock
        if self._aborted.is_set():
            raise TimeoutError

    def _send(
        self,
        connection: http.client.HTTPConnection,
        target: Target,
        body: bytes,
        headers: dict[str, str],
    ) -> WebhookResponse:
        connection.putrequest("POST", target.path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", target.authority)
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Connection", "close")
        for name, value in headers.items():
            connection.putheader(name, value)
        send_error: OSError | None = None
        try:
            connection.endheaders(body)
        except OSError as e:
            send_error = e  # The server may have answered without reading the whole request.
        with connection.sock.makefile("rb") as source:
            try:
                return read_response(source)
            except (OSError, http.client.HTTPException) as e:
                raise send_error or e from None
