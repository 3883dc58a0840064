"""A TCP link to PostgreSQL that is cut, or held, in a transaction that a test chooses."""

import socket
import threading
from collections import deque
from contextlib import suppress

from sqlalchemy import make_url

BEGIN, COMMIT = b"BEGIN", b"COMMIT\0"
#: What becomes of a COMMIT.
PASSED = "passed"  #: all is well
LOST = "lost"  #: it never arrives
UNANSWERED = "unanswered"  #: the server commits, and its answer is lost
HELD = "held"  #: it waits for `go_on`
#: What becomes of the statement that it is chosen by.
LATE = "late"  #: it waits for `go_on`
CUT = "cut"  #: it never arrives


class LossyLink:
    """Takes connections on `port`, and carries each to the server."""

    def __init__(self, url: str) -> None:
        self._target = make_url(url)
        self._fates: deque[tuple[bytes, str]] = deque()
        self._choosing = threading.Lock()
        self.go_on, self.reached = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return self._target.set(port=self.port).render_as_string(hide_password=False)

    def at_commit(self, *fates: str, having: bytes = b"") -> None:
        """Have the next transactions with `having` in a statement meet these fates, after those that were named before."""
        self._fates.extend((having, fate) for fate in fates)

    @property
    def is_through(self) -> bool:
        """Whether all fates were met."""
        return not self._fates

    def close(self) -> None:
        self.go_on.set()
        _end(self._listener, *self._ends)
        for thread in self._threads:
            thread.join(60)
        for one in (self._listener, *self._ends):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target.port or 5432))
            self._ends += [client, server]
            unanswered = threading.Event()
            for carry, source, target in (
                (self._to_server, client, server),
                (self._to_client, server, client),
            ):
                self._threads.append(
                    threading.Thread(target=carry, args=(source, target, unanswered))
                )
                self._threads[-1].start()

    def _to_server(
        self, client: socket.socket, server: socket.socket, unanswered: threading.Event
    ) -> None:
        said = b""  # in this transaction
        with suppress(OSError):
            while data := client.recv(65536):
                said = data if BEGIN in data else said + data
                fate = self._fate(said, COMMIT in data)
                if fate in (HELD, LATE):
                    self.reached.set()
                    assert self.go_on.wait(60)
                if fate in (LOST, CUT):
                    break
                if fate == UNANSWERED:
                    unanswered.set()
                server.sendall(data)
        _end(client, server)

    def _fate(self, said: bytes, is_commit: bool) -> str:
        with self._choosing:
            if not self._fates:
                return PASSED
            having, fate = self._fates[0]
            if having not in said or is_commit is (fate in (LATE, CUT)):
                return PASSED
            self._fates.popleft()
            return fate

    def _to_client(
        self, server: socket.socket, client: socket.socket, unanswered: threading.Event
    ) -> None:
        with suppress(OSError):
            while (data := server.recv(65536)) and not unanswered.is_set():
                client.sendall(data)
        _end(client, server)


def _end(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
