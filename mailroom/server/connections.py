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
        counts = Counter(connection.network for connection in opened)
        opened.sort(key=lambda connection: counts[connection.network], reverse=True)
        idle = [connection for connection in opened if connection.client not in running]
        ended = set()
        for connection in idle[: max(0, surplus)]:
            is_second_time = connection.peer in self._ended
            if connection.shut_down(socket.SHUT_RDWR if is_second_time else socket.SHUT_RD):
                ended.add(connection.peer)
        self._ended = ended
        return len(ended)

    def _opened(self) -> Iterator["ConnectionFile"]:
        for name in os.listdir(_FILES) if _FILES else []:
            ends = _ends(int(name))
            if ends and ends[0][1] == self._port:
                yield ConnectionFile(int(name), ends[1])


class ConnectionFile(NamedTuple):
    """An open connection: its file descriptor, and the address and port of the client."""

    number: int
    peer: tuple[str, int]

    @property
    def network(self) -> str:
        return network(self.peer[0])

    @property
    def client(self) -> str:
        """The client as granian writes it."""
        host, port = self.peer
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def shut_down(self, how: int) -> bool:
        """Shut the connection down; return False if it is closed, or its file descriptor another's by now."""
        try:
            with socket.socket(fileno=os.dup(self.number)) as connection:
                if connection.getpeername()[:2] != self.peer:
                    return False
                connection.shutdown(how)
                return True
        except OSError:
            return False


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
