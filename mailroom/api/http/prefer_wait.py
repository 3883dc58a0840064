"""Lets a client wait for an answer that is not there yet (RFC 7240, 4.3), as long as few do."""

import re
import threading
import time
from collections.abc import Callable

from flask import request

#: Requests of this process that wait at the same time; whoever comes then is answered at once. app.py has threads for them.
WAITERS_MAX = 64
WAIT_MAX_SECONDS = 60
#: Between two looks; the first come sooner, for what is over in a moment.
LOOK_MIN_SECONDS = 0.02
LOOK_MAX_SECONDS = 0.25

_stopping = threading.Event()
_places = threading.BoundedSemaphore(WAITERS_MAX)


def preferred_seconds() -> int:
    """N of the header `Prefer: wait=N`, at most WAIT_MAX_SECONDS; 0 where there is none, or none that can be read."""
    preferred = request.headers.get("Prefer")  # WSGI joins several with commas.
    found = preferred and re.search(
        r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", preferred, re.IGNORECASE
    )
    return min(int(found[1]), WAIT_MAX_SECONDS) if found else 0


def wait_for(is_so: Callable[[], bool], seconds: float) -> bool:
    """Wait until it is so, for that long; False at once where too many wait already."""
    if not _places.acquire(blocking=False):
        return False
    try:
        deadline, pause = time.monotonic() + seconds, LOOK_MIN_SECONDS
        while not is_so() and time.monotonic() < deadline:
            if _stopping.wait(min(pause, max(0.0, deadline - time.monotonic()))):
                break
            pause = min(2 * pause, LOOK_MAX_SECONDS)
        return True
    finally:
        _places.release()


def is_stopping(seconds: float) -> bool:
    """Wait for so long, or until this process is asked to end; whether it is."""
    return _stopping.wait(seconds)


def stop() -> None:
    """Answer all who wait: this process is asked to end, and would be killed if it kept them."""
    _stopping.set()
