"""Makes the next mails fail, to see what whoever sends them does then."""

import threading
from enum import StrEnum

COUNT_MAX = 1000


class Failure(StrEnum):
    """The fate of a mail after its final dot."""

    DEFER = "defer"  #: 451, and it is not kept
    REFUSE = "refuse"  #: 550, and it is not kept
    DROP = "drop"  #: it is kept, and the link is cut before a word of that


class Chaos:
    """A dial for what is to fail, and how many times more. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._failure: Failure | None = None
        self._count = 0
        self._turn = threading.Lock()

    def set(self, failure: Failure | None, count: int = 1) -> None:
        with self._turn:
            self._failure, self._count = failure, count if failure else 0

    def read(self) -> tuple[Failure | None, int]:
        """The failure and how often it is still to come; None and 0 while all is well."""
        with self._turn:
            return self._failure, self._count

    def take(self) -> Failure | None:
        """Return what the present mail is to meet."""
        with self._turn:
            failure = self._failure
            if failure:
                self._count -= 1
                self._failure = failure if self._count > 0 else None
            return failure
