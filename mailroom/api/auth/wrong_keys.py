"""Counts wrong API keys by where they come from: nobody tries them as fast as a connection carries them.

Only wrong ones are held up: a right one is served however many wrong ones came from its address, which may be
that of a proxy for many. What makes a key safe is that nobody can guess it; those of `flask keys create` have
256 random bits.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from flask import current_app, request

#: Wrong keys that one address may send in so many seconds.
WRONG_MAX = 10
WRONG_SECONDS = 60.0
#: Addresses that are remembered.
ADDRESSES_MAX = 1000
#: A host may have all addresses of such a network (RFC 4291, 2.5.4), and send each key from another one.
NETWORK_BITS = 64

_EXTENSION = "mailasync wrong keys"


class WrongKeys:
    """The times at which wrong keys came from each address of late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._times)

    def note(self, address: str) -> int:
        """Count one more of this address; return for how many seconds others are held up, 0 if few came."""
        source, now = network(address), self._clock()
        with self._turn:
            times = self._times.setdefault(source, deque())
            self._times.move_to_end(source)
            while times and times[0] <= now - WRONG_SECONDS:
                times.popleft()
            # What is held up is not counted: a client with an old key is told so ten times a minute.
            if len(times) >= WRONG_MAX:
                return max(1, math.ceil(times[0] + WRONG_SECONDS - now))
            times.append(now)
            while len(self._times) > ADDRESSES_MAX:
                self._times.popitem(last=False)
        return 0


def note_wrong_key() -> int:
    """Count one more of the address of the present request; return for how many seconds others are held up."""
    counted: WrongKeys = current_app.extensions.setdefault(_EXTENSION, WrongKeys())
    return counted.note(request.remote_addr or "")


def network(address: str) -> str:
    """The addresses that are counted together: one of IPv4, or a network of IPv6."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if not isinstance(found, IPv6Address):
        return str(found)
    return str(found.ipv4_mapped or IPv6Address(int(found) >> NETWORK_BITS << NETWORK_BITS))
