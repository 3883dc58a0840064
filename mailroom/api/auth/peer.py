"""Tells whose process is at the other end of a connection within this machine, as the kernel sees it; only Linux does.

A proxy that was told nothing more than where to pass requests on makes those of strangers look like this machine's own.
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
#: sock_diag(7) tells of one socket in 10 us; /proc/net/tcp has all of them, and takes 50 ms where there are 1,400.
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, _ALL_STATES = 4, 20, 1, 0xFFF
_HEADER, _QUERY, _OWNER = struct.Struct("=IHHII"), struct.Struct("=BBBBI"), struct.Struct("=II")
_ENDS, _ANY = struct.Struct("!HH16s16s"), struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
_LENGTH = _HEADER.size + _QUERY.size + _ENDS.size + len(_ANY)
#: Where in an answer the owner is: behind its header, four bytes, the ends, and three numbers.
_OWNER_AT = _HEADER.size + 4 + _ENDS.size + len(_ANY) + 12
#: Files of sockets to the kernel that no thread uses at the moment; as many as there were threads that asked at the same time.
_idle: deque[int] = deque()
_PROC = ("/proc/net/tcp", "/proc/net/tcp6")


@dataclass(frozen=True)
class End:
    """An end of a connection."""

    family: int
    packed: bytes
    port: int


@dataclass(frozen=True)
class Owner:
    """Of a socket; one that was closed has none, whatever its user id says."""

    uid: int
    inode: int


Look = Callable[[End, End], Owner | None]


def ask_kernel(end: End, other: End) -> Owner | None:
    """Look for the socket of `end` by one question for it."""
    ends = _ENDS.pack(end.port, other.port, end.packed, other.packed)
    query = _QUERY.pack(end.family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES) + ends + _ANY
    try:
        answer = _asked(_HEADER.pack(_LENGTH, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + query)
    except OSError:
        return None
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None  # It is an error, mostly that there is no such socket.
    return Owner(*_OWNER.unpack_from(answer, _OWNER_AT))


def _asked(question: bytes) -> bytes:
    """The kernel's answer, which is there when the question has been written; a socket that failed is not used again."""
    try:
        kernel = _idle.pop()
    except IndexError:
        kernel = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_SOCK_DIAG
        ).detach()
    try:
        os.write(kernel, question)
        answer = os.read(kernel, 4096)
    except OSError:
        os.close(kernel)
        raise
    _idle.append(kernel)
    return answer


def read_proc(end: End, other: End) -> Owner | None:
    """Look for the socket of `end` among all."""
    local, remote = _written(end), _written(other)
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


def _written(end: End) -> tuple[str, str]:
    """Write an address as /proc/net/tcp and tcp6 do: each word of an address in the order of this machine."""
    mapped = end.packed if end.family == socket.AF_INET6 else b"\0" * 10 + b"\xff\xff" + end.packed
    return _in_words(end.packed, end.port), _in_words(mapped, end.port)


def _in_words(packed: bytes, port: int) -> str:
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


#: The quick way first.
LOOKS = (ask_kernel, read_proc)


def is_own(
    environ: Mapping[str, Any], *, uids: Collection[int] | None = None, looks: tuple[Look, ...] = LOOKS
) -> bool | None:
    """Tell whether the peer of a request is a process of this service's user or of root; None where nobody can tell."""
    peer = _end(environ.get("REMOTE_ADDR"), environ.get("REMOTE_PORT"))
    ours = _end(environ.get("SERVER_NAME"), environ.get("SERVER_PORT"))
    if not peer or not ours:
        return None
    try:
        look = working(looks)
    except OSError:  # No more files, say; the next request may find out.
        return False
    if look is None:
        return None
    owner = look(peer, ours)
    return owner is not None and owner.inode != 0 and owner.uid in (uids or (ROOT, os.geteuid()))


@cache
def working(looks: tuple[Look, ...] = LOOKS) -> Look | None:
    """The first way by which this system tells whose a connection is, tried with one of our own; None if there is none.

    Found once and not from a request: a client that is gone before it is looked for is not to be taken for a system that does not tell.

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
