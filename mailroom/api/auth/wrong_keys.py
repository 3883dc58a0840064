"""Counts wrong API keys by the address they come from, so that keys cannot be tried at full speed.

Only requests with wrong keys are refused: a right key is served however many wrong ones came from its
address, which many clients behind a proxy may share. A key is safe because it cannot be guessed; `flask keys
create` makes keys of 256 random bits.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from flask import Flask, current_app, request

#: An address may send WRONG_MAX wrong keys in WRONG_SECONDS.
WRONG_MAX = 10
WRONG_SECONDS = 60.0
#: Addresses that are remembered, those that sent a wrong key last.
ADDRESSES_MAX = 1000
#: One host may have all addresses of such an IPv6 network (RFC 4291, 2.5.4), and use a new one for each key.
NETWORK_BITS = 64

_EXTENSION = "mailasync wrong keys"


class WrongKeys:
    """The times at which wrong keys recently came from each address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._times)

    def note(self, address: str) -> int:
        """Count a wrong key from this address; return how many seconds it has to wait, 0 if few came."""
        source, now = network(address), self._clock()
        with self._lock:
            times = self._times.setdefault(source, deque())
            self._times.move_to_end(source)
            while times and times[0] <= now - WRONG_SECONDS:
                times.popleft()
            # Refused keys are not counted, so a client with an old key still gets ten answers a minute.
            if len(times) >= WRONG_MAX:
                return max(1, math.ceil(times[0] + WRONG_SECONDS - now))
            times.append(now)
            while len(self._times) > ADDRESSES_MAX:
                self._times.popitem(last=False)
        return 0


def note_wrong_key() -> int:
    """Count a wrong key from the current request's address; return how many seconds it has to wait."""
    return wrong_keys(current_app).note(request.remote_addr or "")


def wrong_keys(app: Flask) -> WrongKeys:
    """Return the wrong keys that this application counts, over HTTP and SMTP alike."""
    counted: WrongKeys = app.extensions.setdefault(_EXTENSION, WrongKeys())
    return counted


def network(address: str) -> str:
    """Return the source that an address is counted under: itself, or its network if it is an IPv6 address."""
    try:
        ip = ip_address(address)
    except ValueError:
        return address
    if not isinstance(ip, IPv6Address):
        return str(ip)
    return str(ip.ipv4_mapped or IPv6Address(int(ip) >> NETWORK_BITS << NETWORK_BITS))
