"""Keeps count of the mails of one nudge, and tells who waits for them how they ended."""

import threading
from typing import NamedTuple

from mailroom.model.attempt import Claim


class Countdown:
    """Mails whose end somebody may wait for."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._settled = True
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()

    def end(self, settled: bool = True, *, error: BaseException | None = None) -> None:
        """Of one of them; `settled` False: it was given back."""
        with self._lock:
            self._left -= 1
            self._settled &= settled
            self._error = self._error or error
            if not self._left:
                self._over.set()

    def wait(self) -> bool:
        """Return whether all were settled; raises an error of one of them."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        return self._settled


class Begun(NamedTuple):
    """A claim whose attempt has begun, or was given up, and when, on time.monotonic."""

    claim: Claim
    nudge: Countdown
    at: float
