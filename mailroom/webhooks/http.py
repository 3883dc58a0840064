"""Posts to an HTTP/1.1 server, and reads its answer as far as it counts: its status, Retry-After, and the first words of its body."""

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
from mailroom.webhooks.ssrf import AddressGuard, Forbidden, Target

BODY_MAX_BYTES = 4096
WORDS_MAX_CHARACTERS = 300
LINE_MAX_BYTES = 65_536
#: Of one header section; what comes after that is not read.
HEADER_MAX_BYTES = 1_000_000
#: Interim answers (RFC 9110, 15.2: 100, 102, 103 …) before the final one.
INTERIM_MAX = 20
SWITCHING_PROTOCOLS = 101
WITHOUT_BODY = frozenset({204, 304})

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})(?: ([^\r\n]*))?\r?\n")
#: For the whole exchange, from looking up the name to the beginning of the answer.
TIMEOUT_SECONDS = 15.0
#: For each of the addresses that a name has.
CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class WebhookAnswer:
    """A receiver's final answer. Without a code there was none, and `words` say why."""

    code: int | None
    words: str
    retry_after: str = ""


def read_answer(source: BufferedReader) -> WebhookAnswer:
    """Read to the final answer. Its status line is all that it needs: what is cut, odd or endless after that is let go.

    Raises:
      OSError, HTTPException: there was no final status line.
    """
    for _ in range(INTERIM_MAX):
        code, reason = _read_status(source)
        header: dict[str, str] = {}
        if 100 <= code < 200 and code != SWITCHING_PROTOCOLS:  # After 101 no HTTP follows.
            _read_header(source, header)
            continue
        body = b""
        with suppress(OSError, ValueError, HTTPException):
            _read_header(source, header)
            body = b"" if code in WITHOUT_BODY else _read_body(source, header)
        words = words_of(body.decode(errors="replace")) or words_of(reason)
        return WebhookAnswer(code, words, header.get("retry-after", ""))
    raise HTTPException(f"{INTERIM_MAX} interim answers, and no final one")


def words_of(text: str) -> str:
    """The beginning of it, on one line."""
    return one_line(text.replace("\ufffd", " "), most=WORDS_MAX_CHARACTERS)


def _read_status(source: BufferedReader) -> tuple[int, str]:
    """The code of a status line, and its reason."""
    line = source.readline(LINE_MAX_BYTES)
    if not line:
        raise RemoteDisconnected("closed without an answer")
    found = _STATUS.fullmatch(line)
    if not found:
        raise BadStatusLine(words_of(line.decode(errors="replace")))
    return int(found[1]), (found[2] or b"").decode(errors="replace")


def _read_header(source: BufferedReader, header: dict[str, str]) -> None:
    """Fill in the first value of each field, by its name in small letters."""
    left = HEADER_MAX_BYTES
    while (line := source.readline(LINE_MAX_BYTES)).strip():
        left -= len(line)
        if left < 0:
            raise HTTPException("the header has no end")
        name, _, value = line.decode("latin-1").partition(":")
        header.setdefault(name.strip().lower(), value.strip())


def _read_body(source: BufferedReader, header: dict[str, str]) -> bytes:
    """Return what is there of it at once; a server may keep the connection, or be in no hurry."""
    size = BODY_MAX_BYTES
    if "chunked" in header.get("transfer-encoding", "").lower():
        size = int(source.readline(LINE_MAX_BYTES).partition(b";")[0], 16)
    elif "content-length" in header:
        size = int(header["content-length"])
    return source.read1(min(size, BODY_MAX_BYTES)) if size > 0 else b""


class WebhookExchange:
    """A POST to an address that was looked at before, and the beginning of the answer.

    There is no redirect, no proxy, no second try.
    """

    def __init__(
        self, guard: AddressGuard, context: ssl.SSLContext, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> None:
        self._guard = guard
        self._context = context
        self._until = time.monotonic() + timeout_seconds
        self._socket: socket.socket | None = None
        self._closing = (
            threading.Lock()
        )  #: a number of a socket that is closed may be another's in the next moment
        self._aborted = threading.Event()

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> WebhookAnswer:
        """Never raises for what the other side does."""
        # Each wait on a socket begins anew with each byte that comes, so that somebody else has to look at the clock.
        watch = threading.Timer(max(0.0, self._until - time.monotonic()), self.abort)
        watch.daemon = True
        watch.start()
        try:
            target = self._guard.read(url)
            with self._connected(target) as connection:
                return self._ask(connection, target, body, headers)
        except Forbidden as e:
            return WebhookAnswer(None, f"not called: {e}")
        except (OSError, http.client.HTTPException, ValueError) as e:
            return WebhookAnswer(
                None, "no answer in time" if self._aborted.is_set() else words_of(f"{type(e).__name__} {e}")
            )
        finally:
            watch.cancel()

    def abort(self) -> None:
        """End it at once, from any thread."""
        self._aborted.set()
        with self._closing, suppress(OSError):
            if self._socket is not None:
                socket.socket.shutdown(
                    self._socket, socket.SHUT_RDWR
                )  # Of an SSLSocket its own would first forget that it is one.

    @contextmanager
    def _connected(self, target: Target) -> Iterator[http.client.HTTPConnection]:
        line = self._connect(target)
        try:
            if target.scheme == "https":
                line = self._context.wrap_socket(
                    line, server_hostname=target.host, do_handshake_on_connect=False
                )
                self._watch(line)
                line.do_handshake()
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = line
            yield connection
        finally:
            self._close(line)

    def _connect(self, target: Target) -> socket.socket:
        """A connection to the first of the addresses that takes it; the name is not looked up again."""
        error: OSError = OSError("no address")
        for address in self._guard.addresses(target):
            line = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            line.settimeout(max(0.1, min(CONNECT_SECONDS, self._until - time.monotonic())))
            try:
                self._watch(line)
                line.connect((address, target.port))
                line.settimeout(max(0.1, self._until - time.monotonic()))
                return line
            except OSError as e:
                self._close(line)
                error = e
        raise error

    def _close(self, line: socket.socket) -> None:
        with self._closing:
            self._socket = None
        line.close()

    def _watch(self, line: socket.socket) -> None:
        self._socket = line
        if self._aborted.is_set():
            raise TimeoutError

    def _ask(
        self, connection: http.client.HTTPConnection, target: Target, body: bytes, headers: dict[str, str]
    ) -> WebhookAnswer:
        connection.putrequest("POST", target.path, skip_host=True, skip_accept_encoding=True)
        for name, value in {
            "Host": target.authority,
            "Content-Length": str(len(body)),
            "Connection": "close",
            **headers,
        }.items():
            connection.putheader(name, value)
        broken: OSError | None = None
        try:
            connection.endheaders(body)
        except OSError as e:
            broken = e  # There may be an answer all the same, to a request that was not read to its end.
        with connection.sock.makefile("rb") as source:
            try:
                return read_answer(source)
            except (OSError, http.client.HTTPException) as e:
                raise broken or e from None
