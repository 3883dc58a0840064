"""Keeps the threads of this process running: one that ends early is restarted, and /readyz reports it."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger("mailasync.supervisor")

#: The pause between an end and the next start; doubles with each end.
PAUSE_MIN_SECONDS = 0.2
PAUSE_MAX_SECONDS = 30.0
#: A thread that has run this long is well again: its last end is no longer reported, and its next pause is
#: short.
STEADY_SECONDS = 60.0

_lock = threading.Lock()
_running: set["SupervisedThread"] = set()


class SupervisedThread:
    """A thread that runs `run`, and runs it again if it returns or raises before `stopping` is set.

    `run` may have been interrupted anywhere the last time, so it has to begin by putting its state in order.
    """

    def __init__(self, name: str, run: Callable[[], object], stopping: threading.Event) -> None:
        self.name = name
        self.restarts = 0
        self._run = run
        self._stopping = stopping
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)
        self._ended_at = 0.0  #: on time.monotonic
        self._is_between = False  #: it has ended, and is not restarted yet
        self._pause_seconds = PAUSE_MIN_SECONDS

    def start(self) -> None:
        with _lock:
            _running.add(self)
        self._thread.start()

    def join(self, timeout_seconds: float | None = None) -> None:
        """Wait for its end; return at once if it was never started."""
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_down(self) -> bool:
        was_started = self._thread.ident is not None
        return self._is_between or (was_started and not self._thread.is_alive())

    def trouble(self) -> str:
        """Return a line for an operator while the thread is down, and for a while after that; else ""."""
        seconds = time.monotonic() - self._ended_at
        if self.is_down:
            return f"{self.name}: down, restarted {_times(self.restarts)} so far"
        if self.restarts and seconds <= STEADY_SECONDS:
            return f"{self.name}: restarted {_times(self.restarts)}, last {seconds:.0f} s ago"
        return ""

    def _keep(self) -> None:
        while True:
            was_stopping, began_at = self._stopping.is_set(), time.monotonic()
            error = self._run_once()
            # A thread that fails while it stops is run once more, to finish its last work.
            if self._stopping.is_set() and (error is None or was_stopping):
                break
            self._ended_at, self._is_between = time.monotonic(), True
            if self._ended_at - began_at > STEADY_SECONDS:
                self._pause_seconds = PAUSE_MIN_SECONDS
            with suppress(Exception):
                log.error(
                    "the thread %s ended; it is restarted in %.1f s",
                    self.name,
                    self._pause_seconds,
                    exc_info=error,
                )
            self._stopping.wait(self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, PAUSE_MAX_SECONDS)
            self.restarts += 1
            self._is_between = False
        self._forget()

    def _run_once(self) -> BaseException | None:
        """Run it to its end; return its error, also SystemExit, which would end a thread silently."""
        try:
            self._run()
        except BaseException as e:
            return e
        return None

    def _forget(self) -> None:
        with _lock:
            _running.discard(self)


def troubles() -> list[str]:
    """Return a line about each thread of this process that is down, or was a moment ago."""
    return [trouble for thread in _threads() if (trouble := thread.trouble())]


def is_any_down() -> bool:
    """Tell whether a thread of this process is not running, although it should be."""
    return any(thread.is_down for thread in _threads())


def _threads() -> list[SupervisedThread]:
    with _lock:
        return sorted(_running, key=lambda thread: thread.name)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
