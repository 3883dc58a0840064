"""Who may deliver now: many side by side, or one that must be alone."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(eq=False)
class Asked:
    """How many turns somebody in line asked for, and how many were given; he is told of that by a call."""

    most: int
    tell: Callable[[], None]
    alone: bool = False
    given: int = 0


class Turns:
    """At most `limit` shared turns at a time; a turn alone waits for them to end.

    There are two lines, one for single mails and one for many at a time. The first of each is let in by turns: so a single mail, for which
    somebody may wait, gets the next turn or the one after that, whatever else there is to do. A turn has two ends: its connection is free
    for the next one, and all is on record, for which one alone waits.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0  #: those that use a connection
        self._inside = 0  #: those, and those that are not on record yet
        self._alone = False
        self._singles: deque[Asked] = deque()
        self._many: deque[Asked] = deque()
        self._let_single_in = False  #: whether that was the last thing done
        self._lock = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        self._wait()
        try:
            yield
        finally:
            self.give_back()
            self.leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        self._wait(alone=True)
        try:
            yield
        finally:
            with self._lock:
                self._alone = False
            self.give_back()
            self.leave()

    def ask(self, most: int, tell: Callable[[], None]) -> Asked:
        """Line up for so many shared turns or fewer, and go on; `tell` is called when some were `given`, perhaps at once."""
        return self._ask(Asked(most, tell), self._many)

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

    def _wait(self, *, alone: bool = False) -> None:
        admitted = threading.Event()
        self._ask(Asked(1, admitted.set, alone), self._singles)
        admitted.wait()

    def _ask(self, asked: Asked, line: deque[Asked]) -> Asked:
        with self._lock:
            line.append(asked)
            self._admit()
        return asked

    def _admit(self) -> None:
        while (line := self._next()) and not self._alone and self._fits(line[0]):
            asked = line.popleft()
            self._let_single_in = line is self._singles
            asked.given = min(asked.most, self._limit - self._running)
            self._alone = asked.alone
            self._running += asked.given
            self._inside += asked.given
            asked.tell()

    def _next(self) -> deque[Asked]:
        return self._many or self._singles if self._let_single_in else self._singles or self._many

    def _fits(self, asked: Asked) -> bool:
        return not self._inside if asked.alone else self._running < self._limit
