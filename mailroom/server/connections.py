"""The open connections of this process; each takes a file, and a place among those that are allowed."""

import os
import socket
from collections import Counter
from collections.abc import Collection, Iterator

from mailroom.api.auth.wrong_keys import network

#: Where a process sees its own files: Linux, macOS.
_FILES = next((path for path in ("/proc/self/fd", "/dev/fd") if os.path.isdir(path)), "")


class Connections:
    """The connections to the server's port, of which so many are allowed at the same time."""

    def __init__(self, port: int, allowed: int) -> None:
        self._port = port
        self._enough = allowed * 3 // 4
        self._ended: set[tuple[str, int]] = set()

    def are_scarce(self) -> bool:
        return bool(_FILES) and len(os.listdir(_FILES)) > self._enough

    def close_idle(self, running: Collection[str], *, kept: int | None = None) -> int:
        """End connections without a request until so many are left, first those of the busiest address; return how many these were.

        They are idle, or the headers of a request are not whole; an answer on its way still gets out. What is there at the next look all
        the same does not read its answer, and is cut off.
        """
        opened = [*self._opened()]
        surplus = len(opened) - (self._enough if kept is None else kept)
        counts = Counter(network(peer[0]) for _, peer in opened)
        opened.sort(key=lambda one: counts[network(one[1][0])], reverse=True)
        idle = [one for one in opened if _written(one[1]) not in running]
        chosen = idle[: max(0, surplus)]
        self._ended = {peer for file, peer in chosen if _end(file, peer, self._how(peer))}
        return len(self._ended)

    def _how(self, peer: tuple[str, int]) -> int:
        return socket.SHUT_RDWR if peer in self._ended else socket.SHUT_RD

    def _opened(self) -> Iterator[tuple[int, tuple[str, int]]]:
        """Each connection's file, and its peer."""
        for name in os.listdir(_FILES) if _FILES else []:
            ends = _ends(int(name))
            if ends and ends[0][1] == self._port:
                yield int(name), ends[1]


def _ends(file: int) -> tuple[tuple[str, int], tuple[str, int]] | None:
    """Our end and the peer's of a file that is a TCP connection."""
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
        return None  # It listens, or was closed in this moment.
    finally:
        connection.detach()  # The file is the server's.


def _end(file: int, peer: tuple[str, int], how: int) -> bool:
    """Have the server see the end of this connection, unless the file has become another's."""
    try:
        with socket.socket(fileno=os.dup(file)) as connection:
            if connection.getpeername()[:2] != peer:
                return False
            connection.shutdown(how)
            return True
    except OSError:
        return False


def _written(peer: tuple[str, int]) -> str:
    """An address as granian writes it."""
    host, port = peer
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
