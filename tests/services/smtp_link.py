"""A TCP link to an SMTP server that is cut at the final dots that a test chooses."""

import socket
import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress

PASSED = "passed"  #: all is well
UNANSWERED = "unanswered"  #: the server takes the mail, and its reply is lost
LOST = "lost"  #: the dot never arrives, so the server has no mail

_DOT = b"\r\n.\r\n"


class SmtpLink:
    """Takes connections without TLS on `port`, and carries each to the server.

    The fate of each final dot is the next one that was named, or else what `choose` says.
    """

    host = "127.0.0.1"

    def __init__(self, port: int, choose: Callable[[], str] = lambda: PASSED) -> None:
        self._target = ("127.0.0.1", port)
        self._choose = choose
        self._next: deque[str] = deque()
        self._listener = socket.create_server((self.host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.fates: Counter[str] = Counter()  #: of the final dots that clients sent
        self._links: list[_Link] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def at_dot(self, *fates: str) -> None:
        """Have the next final dots meet these fates."""
        self._next.extend(fates)

    @property
    def dots(self) -> int:
        return self.fates.total()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._listener.close()
        for link in self._links:
            link.close()

    def fate(self) -> str:
        fate = self._next.popleft() if self._next else self._choose()
        self.fates[fate] += 1
        return fate

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._links.append(_Link(self, client, socket.create_connection(self._target)))


class _Link:
    """One connection, with a thread for each direction."""

    def __init__(self, owner: SmtpLink, client: socket.socket, server: socket.socket) -> None:
        self._owner, self._client, self._server = owner, client, server
        self._is_payload = False
        self._is_cut = False
        self._threads = [
            threading.Thread(target=self._to_server, daemon=True),
            threading.Thread(target=self._to_client, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._end()
        for thread in self._threads:
            thread.join(60)
        self._client.close()
        self._server.close()

    def _to_server(self) -> None:
        payload = b""
        with suppress(OSError):
            while data := self._client.recv(65536):
                if self._is_payload:
                    payload += data
                if self._is_payload and payload.endswith(_DOT):
                    self._is_payload, payload = False, b""
                    fate = self._owner.fate()
                    self._is_cut = fate == UNANSWERED
                    if fate == LOST:
                        break
                self._server.sendall(data)
        self._end()

    def _to_client(self) -> None:
        with suppress(OSError):
            # What comes after the dot is its reply: the server has the mail then.
            while (data := self._server.recv(65536)) and not self._is_cut:
                if any(line.startswith(b"354 ") for line in data.split(b"\r\n")):
                    self._is_payload = True
                self._client.sendall(data)
        self._end()

    def _end(self) -> None:
        for one in (self._client, self._server):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
