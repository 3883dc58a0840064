"""Who may deliver now: many side by side, or one that must be alone."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """At most `limit` shared turns at a time; a turn alone waits for them to end. Whoever came first is let in first.

    So a single mail waits for one of a long nudge, not for all of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running = 0
        self._alone = False
        self._waiting: deque[tuple[bool, threading.Event]] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._turn(alone=False):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._turn(alone=True):
            yield

    @contextmanager
    def _turn(self, *, alone: bool) -> Iterator[None]:
        admitted = threading.Event()
        with self._lock:
            self._waiting.append((alone, admitted))
            self._admit()
        admitted.wait()
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._alone = False
                self._admit()

    def _admit(self) -> None:
        while self._waiting and not self._alone and self._running < (1 if self._waiting[0][0] else self._limit):
            self._alone, admitted = self._waiting.popleft()
            self._running += 1
            admitted.set()
