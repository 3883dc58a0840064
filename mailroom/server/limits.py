"""The limits on what one client, and all together, may hold of a web process."""

import resource
from dataclasses import dataclass

#: A body of this size, or a longer one's beginning, is collected before a thread is taken; each connection may hold so much memory.
SHORT_BYTES = 65_536
#: Longer ones that are read at the same time, each in a thread.
LONG_BODIES_MAX = 128


@dataclass(frozen=True, kw_only=True)
class Limits:
    """In a process; the defaults are generous to slow links and to a proxy, whose address many clients share."""

    header_seconds: float = (
        30.0  #: for the headers of a request, and for the next request of an open connection
    )
    body_seconds: float = 20.0  #: for a body, and so much longer as its bytes take at the least rate
    body_bytes_per_second: int = 16_384  #: the least rate: 36 MB may take 37 minutes
    bodies_per_address: int = 64  #: half-read ones; an IPv6 network of 64 bits is one address
    connections: int = (
        1024  #: when three quarters of them are open, the idle ones of the busiest address are closed
    )

    def body_due(self, began: float, received: int) -> float:
        """Return when a body that began then, and of which so much has come, is too late."""
        return began + self.body_seconds + received / self.body_bytes_per_second


LIMITS = Limits()


def raise_files_limit(wanted: int) -> int:
    """Let this process open so many files, as far as the system lets it; return how many it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft
