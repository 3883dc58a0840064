"""Makes the next mails fail on purpose, to test how the sender copes."""

import threading
from enum import StrEnum

COUNT_MAX = 1000


class Failure(StrEnum):
    """The ways in which the inbox can fail a mail after the final dot of DATA."""

    DEFER = "defer"  #: reply 451 and discard the mail
    REFUSE = "refuse"  #: reply 550 and discard the mail
    DROP = "drop"  #: keep the mail, but close the connection without a reply


class Chaos:
    """The failure that the next mails get, and for how many of them. All methods are thread-safe."""

    def __init__(self) -> None:
        self._failure: Failure | None = None
        self._count = 0
        self._lock = threading.Lock()

    def set(self, failure: Failure | None, count: int = 1) -> None:
        """Fail the next `count` mails in this way; None lets all mail through."""
        with self._lock:
            self._failure, self._count = failure, count if failure else 0

    def read(self) -> tuple[Failure | None, int]:
        """Return the failure and how many mails will still get it; (None, 0) if none will."""
        with self._lock:
            return self._failure, self._count

    def take(self) -> Failure | None:
        """Return the failure for the mail being received now, and count it."""
        with self._lock:
            failure = self._failure
            if failure:
                self._count -= 1
                self._failure = failure if self._count > 0 else None
            return failure
