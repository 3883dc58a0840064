"""Asks the kernel whose process is at the other end of a connection within this machine; only Linux tells.

A proxy with nothing but an upstream address in its configuration makes requests of strangers look local.
"""

import os
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = 0
#: sock_diag(7) looks up one socket in 10 us; /proc/net/tcp lists all, which takes 50 ms for 1,400 sockets.
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, _ALL_STATES = 4, 20, 1, 0xFFF
_HEADER, _QUERY, _OWNER = struct.Struct("=IHHII"), struct.Struct("=BBBBI"), struct.Struct("=II")
_ENDS, _ANY = struct.Struct("!HH16s16s"), struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_LENGTH = _HEADER.size + _QUERY.size + _ENDS.size + len(_ANY)
#: The offset of the owner in an answer: after the header, four bytes, both ends, and three numbers.
_OWNER_AT = _HEADER.size + 4 + _ENDS.size + len(_ANY) + 12
#: File descriptors of netlink sockets that no thread uses now; at most one for each thread.
_idle: deque[int] = deque()
_PROC = ("/proc/net/tcp", "/proc/net/tcp6")


@dataclass(frozen=True)
class End:
    """An end of a connection: an address in network byte order, and a port."""

    family: int
    packed: bytes
    port: int


@dataclass(frozen=True)
class Owner:
    """The owner of a socket; `inode` is 0 for a socket that was closed, and `uid` then says nothing."""

    uid: int
    inode: int


Look = Callable[[End, End], Owner | None]


def ask_kernel(end: End, other: End) -> Owner | None:
    """Look up the socket of `end` by sock_diag; None if there is none or the kernel does not answer."""
    ends = _ENDS.pack(end.port, other.port, end.packed, other.packed)
    query = _QUERY.pack(end.family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES) + ends + _ANY
    try:
        answer = _query_kernel(
            _HEADER.pack(_LENGTH, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + query
        )
    except OSError:
        return None
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None  # It is an error, mostly that there is no such socket.
    return Owner(*_OWNER.unpack_from(answer, _OWNER_AT))


def _query_kernel(query: bytes) -> bytes:
    """Return the kernel's answer, which is ready as soon as the query is written.

    A socket that failed is not used again.
    """
    try:
        kernel = _idle.pop()
    except IndexError:
        kernel = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_SOCK_DIAG
        ).detach()
    try:
        os.write(kernel, query)
        answer = os.read(kernel, 4096)
    except OSError:
        os.close(kernel)
        raise
    _idle.append(kernel)
    return answer


def read_proc(end: End, other: End) -> Owner | None:
    """Look for the socket of `end` in the lists of all sockets; None if it is in none."""
    local, remote = _proc_texts(end), _proc_texts(other)
    for row in _rows():
        if row[1] in local and row[2] in remote:
            return Owner(uid=int(row[7]), inode=int(row[9]))
    return None


def _end(host: object, port: object) -> End | None:
    family = socket.AF_INET6 if ":" in str(host) else socket.AF_INET
    try:
        return End(family, socket.inet_pton(family, str(host)), int(str(port)))
    except (OSError, ValueError):
        return None


def _rows() -> Iterator[list[str]]:
    for path in _PROC:
        try:
            lines = Path(path).read_text().splitlines()[1:]
        except OSError:
            continue
        yield from (line.split() for line in lines)


def _proc_texts(end: End) -> tuple[str, str]:
    """Write an end as /proc/net/tcp does, and as tcp6 does, where an IPv4 address is mapped into IPv6."""
    mapped = end.packed
    if end.family == socket.AF_INET:
        mapped = b"\0" * 10 + b"\xff\xff" + end.packed
    return _proc_text(end.packed, end.port), _proc_text(mapped, end.port)


def _proc_text(packed: bytes, port: int) -> str:
    """Write an address as 32-bit words in this machine's byte order, and the port."""
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


#: The ways to find the owner, the fast one first.
LOOKS = (ask_kernel, read_proc)


def is_own(
    environ: Mapping[str, Any],
    *,
    uids: Collection[int] | None = None,
    looks: tuple[Look, ...] = LOOKS,
) -> bool | None:
    """Tell whether a request's client runs as this service's user or as root; None if no way can tell."""
    peer = _end(environ.get("REMOTE_ADDR"), environ.get("REMOTE_PORT"))
    ours = _end(environ.get("SERVER_NAME"), environ.get("SERVER_PORT"))
    if not peer or not ours:
        return None
    try:
        look = working(looks)
    except OSError:  # Too many open files, for example; the next request may succeed.
        return False
    if look is None:
        return None
    owner = look(peer, ours)
    return owner is not None and owner.inode != 0 and owner.uid in (uids or (ROOT, os.geteuid()))


@cache
def working(looks: tuple[Look, ...] = LOOKS) -> Look | None:
    """Return the first way that works on this system, tried with a connection to ourselves; else None.

    A request could not decide that: its client may already be gone, which would look as if no way worked.

    Raises:
      OSError: no connection could be made.
    """
    if sys.platform != "linux":
        return None
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        peer, ours = _end(*client.getsockname()), _end(*listener.getsockname())
        return next((look for look in looks if peer and ours and _finds(look, peer, ours)), None)


def _finds(look: Look, peer: End, ours: End) -> bool:
    owner = look(peer, ours)
    return owner is not None and owner.uid == os.geteuid()
