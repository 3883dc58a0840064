"""Waits for mail servers: an attempt is a generator that says what it waits for; one thread runs one of them, or many side by side.

Fifty threads with a connection each spend more on changing turns, 60 futex calls a mail, than on the mails.
"""

import select
import socket
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

K = TypeVar("K")
R = TypeVar("R")


class Wait(NamedTuple):
    """Until the socket is ready for `event` (select.POLLIN or POLLOUT); after `deadline`, on time.monotonic, TimeoutError is thrown in."""

    link: socket.socket
    event: int
    deadline: float


#: Asks for the fence: whether the payload may go is sent in.
FENCE = object()

#: What an attempt yields, is sent, and returns.
Dialogue = Generator[Any, Any, R]


def run(steps: Dialogue[R], fence: Callable[[], bool] = lambda: False) -> R:
    """Run them to their end in this thread, which waits; `fence` is called where they ask for it, and what it raises is thrown in."""
    step = partial(steps.send, None)
    while True:
        try:
            asked = step()
        except StopIteration as e:
            return e.value  # type: ignore[no-any-return]
        try:
            if asked is FENCE:
                step = partial(steps.send, fence())
            else:
                _wait(asked)
                step = partial(steps.send, None)
        except BaseException as e:
            step = partial(steps.throw, e)


def _wait(asked: Wait) -> None:
    waiting = select.poll()
    waiting.register(asked.link, asked.event)
    if not waiting.poll(max(0.0, asked.deadline - time.monotonic()) * 1000):
        raise TimeoutError("timed out")


class Poller(Generic[K, R]):
    """Many attempts in one thread, each by a key; none waits for another."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._waiting: dict[int, tuple[K, Dialogue[R], float]] = {}  # by file descriptor, with the deadline
        self._waker, self._woken = socket.socketpair()
        self._waker.setblocking(False)
        self._is_woken = False
        self._poll.register(self._woken, select.POLLIN)
        #: Those that ask for their fence; `go_on` takes them further.
        self.fenced: list[tuple[K, Dialogue[R]]] = []
        #: Those that have ended: each is told by calling it.
        self.ended: list[tuple[K, Callable[[], R]]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self.fenced)

    def go_on(self, key: K, steps: Dialogue[R], step: Callable[[], Any]) -> None:
        """`step` is a call of `steps.send` or `steps.throw`."""
        try:
            asked = step()
        except StopIteration as e:
            self.ended.append((key, partial(_returned, e.value)))
        except BaseException as e:
            self.ended.append((key, partial(_raised, e)))
        else:
            if asked is FENCE:
                self.fenced.append((key, steps))
            else:
                self._waiting[asked.link.fileno()] = (key, steps, asked.deadline)
                self._poll.register(asked.link, asked.event)

    def wake(self) -> None:
        """Have `wait` return, now or when it is called next; from any thread."""
        if not self._is_woken:
            self._is_woken = True
            with suppress(OSError):  # The thread that waits may just have ended, and closed it.
                self._waker.send(b"!")

    def wait(self, gather_seconds: float = 0, *, at_most_seconds: float = float("inf")) -> None:
        """Until something has come for one of them, or the first has waited long enough, or somebody calls `wake`; and then for as long
        as the others get to come, too."""
        first = min((deadline for _, _, deadline in self._waiting.values()), default=float("inf"))
        seconds = min(max(0.0, first - time.monotonic()), at_most_seconds)
        ready = self._poll.poll(None if seconds == float("inf") else seconds * 1000)
        if gather_seconds and 0 < len(ready) < len(self._waiting):
            time.sleep(gather_seconds)
            ready = self._poll.poll(0)
        for number, _ in ready:
            if number == self._woken.fileno():
                self._woken.recv(4096)
                self._is_woken = False  # What others have called it for until now is there already.
                continue
            key, steps, _ = self._forget(number)
            self.go_on(key, steps, partial(steps.send, None))
        now = time.monotonic()
        for number in [number for number, (_, _, deadline) in self._waiting.items() if deadline <= now]:
            key, steps, _ = self._forget(number)
            self.go_on(key, steps, partial(steps.throw, TimeoutError("timed out")))

    def break_off(self) -> list[K]:
        """End all without a word, and return the keys of all that nobody was told the end of."""
        going = [*self.fenced, *((key, steps) for key, steps, _ in map(self._forget, [*self._waiting]))]
        for _, steps in going:
            steps.close()
        keys = [key for key, _ in [*going, *self.ended]]
        self.fenced, self.ended = [], []
        self._is_woken = False  # It may have been broken off before it noted that.
        return keys

    def close(self) -> None:
        self._waker.close()
        self._woken.close()

    def _forget(self, number: int) -> tuple[K, Dialogue[R], float]:
        self._poll.unregister(number)
        return self._waiting.pop(number)


def _returned(value: R) -> R:
    return value


def _raised(error: BaseException) -> Any:
    raise error
