"""Waits for mail servers: an attempt is a generator that yields its waits; one thread runs one or many.

Fifty threads with one connection each would cost more than the mails: about 60 futex calls a mail, only to
hand the interpreter from thread to thread.
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
    """A wait for a socket to become ready for `event`, which is select.POLLIN or select.POLLOUT.

    After `deadline`, on the clock of time.monotonic, TimeoutError is thrown into the generator.
    """

    sock: socket.socket
    event: int
    deadline: float


#: Yielded to ask for the fence; True is sent back if the payload may go out.
FENCE = object()

#: A conversation with a server, as a generator: it yields a Wait or FENCE, and returns its result.
Dialogue = Generator[Any, Any, R]


def run(dialogue: Dialogue[R], fence: Callable[[], bool] = lambda: False) -> R:
    """Run a dialogue to its end in this thread, which blocks meanwhile.

    `fence` is called where the dialogue yields FENCE; what it raises is thrown into the dialogue.
    """
    step = partial(dialogue.send, None)
    while True:
        try:
            request = step()
        except StopIteration as e:
            return e.value  # type: ignore[no-any-return]
        try:
            if request is FENCE:
                step = partial(dialogue.send, fence())
            else:
                _wait_for(request)
                step = partial(dialogue.send, None)
        except BaseException as e:
            step = partial(dialogue.throw, e)


def _wait_for(request: Wait) -> None:
    poll = select.poll()
    poll.register(request.sock, request.event)
    seconds = max(0.0, request.deadline - time.monotonic())
    if not poll.poll(seconds * 1000):
        raise TimeoutError("timed out")


class Poller(Generic[K, R]):
    """Runs many dialogues in one thread, each known by a key; none waits for another."""

    def __init__(self) -> None:
        self._poll = select.poll()
        #: By file descriptor: the key, the dialogue, and the deadline of its wait.
        self._waiting: dict[int, tuple[K, Dialogue[R], float]] = {}
        self._waker, self._wakeups = socket.socketpair()
        self._waker.setblocking(False)
        self._is_woken = False
        self._poll.register(self._wakeups, select.POLLIN)
        #: Dialogues that ask for their fence; the caller resumes them.
        self.at_fence: list[tuple[K, Dialogue[R]]] = []
        #: Dialogues that have ended; calling the second item returns the result, or raises the error.
        self.ended: list[tuple[K, Callable[[], R]]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self.at_fence)

    def resume(self, key: K, dialogue: Dialogue[R], step: Callable[[], Any]) -> None:
        """Run a dialogue until it waits, asks for its fence, or ends.

        `step` is a call of `dialogue.send` or `dialogue.throw`.
        """
        try:
            request = step()
        except StopIteration as e:
            result = partial(_return, e.value)
            self.ended.append((key, result))
            return
        except BaseException as e:
            failure = partial(_raise, e)
            self.ended.append((key, failure))
            return
        if request is FENCE:
            self.at_fence.append((key, dialogue))
            return
        descriptor = request.sock.fileno()
        self._waiting[descriptor] = (key, dialogue, request.deadline)
        self._poll.register(request.sock, request.event)

    def wake(self) -> None:
        """Make `wait` return, now or when it is called next; from any thread."""
        if not self._is_woken:
            self._is_woken = True
            with suppress(OSError):
                # The polling thread may just have ended, and closed the socket.
                self._waker.send(b"!")

    def wait(self, gather_seconds: float = 0, *, max_seconds: float = float("inf")) -> None:
        """Wait until a socket is ready, a deadline passes, `wake` is called, or `max_seconds` are over.

        Once something is there, the other dialogues get `gather_seconds` to become ready as well.
        """
        for descriptor, _ in self._ready_events(gather_seconds, max_seconds):
            if descriptor == self._wakeups.fileno():
                self._wakeups.recv(4096)
                self._is_woken = False  # All that others woke us for is already there to be seen.
                continue
            key, dialogue, _ = self._forget(descriptor)
            step = partial(dialogue.send, None)
            self.resume(key, dialogue, step)
        self._time_out()

    def _ready_events(self, gather_seconds: float, max_seconds: float) -> list[tuple[int, int]]:
        deadlines = (deadline for _, _, deadline in self._waiting.values())
        first = min(deadlines, default=float("inf"))
        until_first = max(0.0, first - time.monotonic())
        seconds = min(until_first, max_seconds)
        timeout_ms = None if seconds == float("inf") else seconds * 1000
        ready = self._poll.poll(timeout_ms)
        if gather_seconds and 0 < len(ready) < len(self._waiting):
            time.sleep(gather_seconds)
            ready = self._poll.poll(0)
        return ready

    def _time_out(self) -> None:
        now = time.monotonic()
        overdue = [
            descriptor for descriptor, (_, _, deadline) in self._waiting.items() if deadline <= now
        ]
        for descriptor in overdue:
            key, dialogue, _ = self._forget(descriptor)
            error = TimeoutError("timed out")
            step = partial(dialogue.throw, error)
            self.resume(key, dialogue, step)

    def abort_all(self) -> list[K]:
        """Close all dialogues where they stand; return their keys and those left in `ended`."""
        running = [*self.at_fence]
        for descriptor in [*self._waiting]:
            key, dialogue, _ = self._forget(descriptor)
            running.append((key, dialogue))
        for _, dialogue in running:
            dialogue.close()
        keys = [key for key, _ in running]
        keys += [key for key, _ in self.ended]
        self.at_fence = []
        self.ended = []
        self._is_woken = False  # The thread may have failed before it noted that.
        return keys

    def close(self) -> None:
        self._waker.close()
        self._wakeups.close()

    def _forget(self, descriptor: int) -> tuple[K, Dialogue[R], float]:
        self._poll.unregister(descriptor)
        return self._waiting.pop(descriptor)


def _return(value: R) -> R:
    return value


def _raise(error: BaseException) -> Any:
    raise error
