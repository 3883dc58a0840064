"""Counts down the mails of one nudge until the last has ended, for the thread that waits for them."""

import threading
from typing import NamedTuple

from mailroom.model.attempt import Claim


class Countdown:
    """The mails of one nudge that have not ended yet."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._all_settled = True
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()

    def end(self, settled: bool = True, *, error: BaseException | None = None) -> None:
        """Note the end of one mail; `settled` is False if its row was released."""
        with self._lock:
            self._left -= 1
            self._all_settled &= settled
            self._error = self._error or error
            if not self._left:
                self._over.set()

    def wait(self) -> bool:
        """Return whether all were settled; raise the first error that one of them ended with."""
        self._over.wait()
        if self._error is not None:
            raise self._error
        return self._all_settled


class StartedAttempt(NamedTuple):
    """A claim whose attempt was started, or withdrawn; `started_at` is on the clock of time.monotonic."""

    claim: Claim
    countdown: Countdown
    started_at: float
