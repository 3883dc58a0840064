"""The limits on the bodies and connections of one client, and of all clients of a web process."""

import resource
from dataclasses import dataclass

#: A body of this size, or the beginning of a longer one, is collected before a thread is used. Each
#: connection may hold this much memory.
SHORT_BYTES = 65_536
#: Longer bodies that are read at the same time, each in a thread.
LONG_BODIES_MAX = 128


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of a process.

    The defaults are generous to slow links, and to a proxy, which stands for many clients with one address.
    """

    #: For the headers of a request, and for the next request on an open connection.
    header_seconds: float = 30.0
    #: For a body; longer ones have the time that their bytes take at the lowest rate in addition.
    body_seconds: float = 20.0
    #: The lowest rate: 36 MB may take 37 minutes.
    body_bytes_per_second: int = 16_384
    #: Half-sent bodies of one address; an IPv6 network of 64 bits counts as one address.
    bodies_per_address: int = 64
    #: When three quarters of these are open, the idle ones of the busiest address are closed.
    connections: int = 1024

    def body_due(self, began: float, received: int) -> float:
        """Return the deadline of a body that began at `began`, and of which `received` bytes are here."""
        return began + self.body_seconds + received / self.body_bytes_per_second


LIMITS = Limits()


def raise_files_limit(wanted: int) -> int:
    """Raise the limit on open files to `wanted`, as far as the system allows; return how many are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
