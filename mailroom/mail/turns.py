"""Who may deliver now: many side by side, or one that must be alone."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Asked:
    """What somebody in line asked for, and how many turns were given."""

    least: int
    most: int
    alone: bool = False
    given: int = 0
    admitted: threading.Event = field(default_factory=threading.Event)


class Turns:
    """At most `limit` shared turns at a time; a turn alone waits for them to end. Whoever came first is let in first.

    So a single mail waits for one of a long nudge, not for all of them. A turn has two ends: its connection is free for the next one,
    and all is on record, for which one alone waits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0  #: those that use a connection
        self._inside = 0  #: those, and those that are not on record yet
        self._alone = False
        self._waiting: deque[Asked] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        self._ask(Asked(1, 1)).admitted.wait()
        try:
            yield
        finally:
            self.give_back()
            self.leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        self._ask(Asked(1, 1, alone=True)).admitted.wait()
        try:
            yield
        finally:
            with self._lock:
                self._alone = False
            self.give_back()
            self.leave()

    def ask(self, most: int) -> Asked:
        """Line up for so many shared turns or fewer, and go on; `admitted` is set once some are `given`, or `withdraw` it.

        Who asks for many gets a fifth of all at least: one at a time, they would be scattered over as many threads.
        """
        return self._ask(Asked(min(most, max(1, self._limit // 5)), most))

    def withdraw(self, asked: Asked) -> None:
        with self._lock:
            if not asked.given:
                self._waiting.remove(asked)
                return
        self.give_back(asked.given)
        self.leave(asked.given)

    def give_back(self, count: int = 1) -> None:
        """The connections of so many turns are free."""
        with self._lock:
            self._running -= count
            self._admit()

    def leave(self, count: int = 1) -> None:
        """So many turns are over."""
        with self._lock:
            self._inside -= count
            self._admit()

    def _ask(self, asked: Asked) -> Asked:
        with self._lock:
            self._waiting.append(asked)
            self._admit()
        return asked

    def _admit(self) -> None:
        while self._waiting and not self._alone and self._fits(self._waiting[0]):
            asked = self._waiting.popleft()
            asked.given = min(asked.most, self._limit - self._running)
            self._alone = asked.alone
            self._running += asked.given
            self._inside += asked.given
            asked.admitted.set()

    def _fits(self, asked: Asked) -> bool:
        return not self._inside if asked.alone else self._limit - self._running >= asked.least
