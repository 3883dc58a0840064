"""The open connections of this process; each takes a file descriptor, and counts towards the limit."""

import os
import socket
from collections import Counter
from collections.abc import Collection, Iterator
from typing import NamedTuple

from mailroom.api.auth.wrong_keys import network

#: Lists the open files of a process, on Linux and on macOS.
_FILES = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), "")


class Connections:
    """The connections to the server's port, of which `allowed` may be open at the same time."""

    def __init__(self, port: int, allowed: int) -> None:
        self._port = port
        self._enough = allowed * 3 // 4
        self._ended: set[tuple[str, int]] = set()

    def are_too_many(self) -> bool:
        return bool(_FILES) and len(os.listdir(_FILES)) > self._enough

    def close_idle(self, running: Collection[str], *, kept: int | None = None) -> int:
        """Close connections that have no request in `running`, until `kept` are left; return how many.

        Those of the busiest address go first. They are idle, or have sent only a part of a request's headers.
        Only the receiving side is closed at first, so that a response on its way still gets out; a connection
        that is still there the next time does not read its response, and is cut off.
        """
        opened = [*self._opened()]
        surplus = len(opened) - (self._enough if kept is None else kept)
        counts = Counter(network(connection.peer[0]) for connection in opened)
        opened.sort(key=lambda connection: counts[network(connection.peer[0])], reverse=True)
        idle = [connection for connection in opened if _as_granian_writes(connection.peer) not in running]
        chosen = idle[: max(0, surplus)]
        self._ended = {file.peer for file in chosen if _end(file.number, file.peer, self._how(file.peer))}
        return len(self._ended)

    def _how(self, peer: tuple[str, int]) -> int:
        return socket.SHUT_RDWR if peer in self._ended else socket.SHUT_RD

    def _opened(self) -> Iterator["ConnectionFile"]:
        for name in os.listdir(_FILES) if _FILES else []:
            ends = _ends(int(name))
            if ends and ends[0][1] == self._port:
                yield ConnectionFile(int(name), ends[1])


class ConnectionFile(NamedTuple):
    """An open connection: its file descriptor, and the address and port of the client."""

    number: int
    peer: tuple[str, int]


def _ends(file: int) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Return the local and the remote address of a TCP connection; None for any other file."""
    try:
        connection = socket.socket(fileno=file)
    except OSError:
        return None
    try:
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        ours, peer = connection.getsockname(), connection.getpeername()
        return (ours[0], ours[1]), (peer[0], peer[1])
    except OSError:
        return None  # It listens, or was closed a moment ago.
    finally:
        connection.detach()  # The file is the server's.


def _end(file: int, peer: tuple[str, int], how: int) -> bool:
    """Shut this connection down, unless its file descriptor belongs to another one by now."""
    try:
        with socket.socket(fileno=os.dup(file)) as connection:
            if connection.getpeername()[:2] != peer:
                return False
            connection.shutdown(how)
            return True
    except OSError:
        return False


def _as_granian_writes(peer: tuple[str, int]) -> str:
    host, port = peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
