"""Who may deliver now: many side by side, or one that must be alone."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Asked:
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
        self._waiting: deque[_Asked] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        self.take(1)
        try:
            yield
        finally:
            self.give_back()
            self.leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        self._ask(_Asked(1, 1, alone=True)).admitted.wait()
        try:
            yield
        finally:
            with self._lock:
                self._alone = False
            self.give_back()
            self.leave()

    def take(self, most: int, *, wait: bool = True) -> int:
        """Take so many shared turns or fewer; return how many. Without `wait`, what is free and nobody else waits for, or 0.

        Who waits for many gets a fifth of all at least: one at a time, they would be scattered over as many threads.
        """
        asked = self._ask(_Asked(min(most, max(1, self._limit // 5)) if wait else 1, most), stay=wait)
        if wait:
            asked.admitted.wait()
        return asked.given

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

    def _ask(self, asked: _Asked, *, stay: bool = True) -> _Asked:
        with self._lock:
            self._waiting.append(asked)
            self._admit()
            if not stay and not asked.given:
                self._waiting.remove(asked)
        return asked

    def _admit(self) -> None:
        while self._waiting and not self._alone and self._fits(self._waiting[0]):
            asked = self._waiting.popleft()
            asked.given = min(asked.most, self._limit - self._running)
            self._alone = asked.alone
            self._running += asked.given
            self._inside += asked.given
            asked.admitted.set()

    def _fits(self, asked: _Asked) -> bool:
        return not self._inside if asked.alone else self._limit - self._running >= asked.least
