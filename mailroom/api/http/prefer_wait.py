"""Lets a client wait for an answer that is not ready yet (`Prefer: wait`, RFC 7240, 4.3), if few do."""

import re
import threading
import time
from collections.abc import Callable

from flask import request

#: Requests of this process that may wait at the same time; app.py has threads for them. Others do not wait.
WAITERS_MAX = 64
WAIT_MAX_SECONDS = 60
#: Between two checks of the condition; each wait is twice the one before.
LOOK_MIN_SECONDS = 0.02
LOOK_MAX_SECONDS = 0.25

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)

_stopping = threading.Event()
_waiters = threading.BoundedSemaphore(WAITERS_MAX)


def preferred_seconds() -> int:
    """Return N of `Prefer: wait=N`, at most WAIT_MAX_SECONDS; 0 if it is absent or cannot be read."""
    preferences = request.headers.get("Prefer")  # WSGI joins several with commas.
    if not preferences:
        return 0
    wait = _WAIT.search(preferences)
    return min(int(wait[1]), WAIT_MAX_SECONDS) if wait else 0


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait that long at most for the condition; return False at once if WAITERS_MAX requests wait already."""
    if not _waiters.acquire(blocking=False):
        return False
    try:
        deadline, pause = time.monotonic() + seconds, LOOK_MIN_SECONDS
        while not condition() and time.monotonic() < deadline:
            if _stopping.wait(min(pause, max(0.0, deadline - time.monotonic()))):
                break
            pause = min(2 * pause, LOOK_MAX_SECONDS)
        return True
    finally:
        _waiters.release()


def is_stopping(seconds: float) -> bool:
    """Wait that long, or until this process begins to stop; return True if it does."""
    return _stopping.wait(seconds)


def stop() -> None:
    """Answer all waiting requests: this process is about to stop, and would be killed if it kept them."""
    _stopping.set()
