"""Runs a Celery worker in a thread of a process that also serves."""

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery
from kombu.asynchronous import set_event_loop

from mailroom.process.lazy_import import Lazy
from mailroom.process.supervisor import SupervisedThread

celery_worker = Lazy("celery.worker")

STOP_SECONDS = 15.0


class EmbeddedWorker:
    """A Celery worker in a supervised thread, which is started again if it ends too early."""

    def __init__(
        self, celery_app: Celery, *, stop_claiming: Callable[[], None], close: Callable[[], None]
    ) -> None:
        """Take the functions to call: `stop_claiming` first at the end, `close` after each worker's end."""
        self._celery_app = celery_app
        self._stop_claiming = stop_claiming
        self._close = close
        self._stopping = threading.Event()
        self._worker: Any = None
        self._thread = SupervisedThread("worker", self._run, self._stopping)

    def start(self) -> None:
        """Start the thread. Raises SystemExit if a worker cannot start at all."""
        self._worker = self._make_worker()
        self._thread.start()

    def stop(self) -> None:
        self._stop_claiming()
        self._stopping.set()
        celery_worker.state.should_stop = 0  # the exit code; None means "go on"
        hub = getattr(self._worker, "hub", None)
        if hub is not None:
            # Its event loop sleeps for seconds; a signal would wake it, but signals go to the main thread.
            hub.call_soon(bool)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        try:
            if self._worker is None and not self._stopping.is_set():
                celery_worker.state.should_stop = celery_worker.state.should_terminate = None
                set_event_loop(None)  # The event loop of the last worker is closed.
                self._worker = self._make_worker()
            if self._worker is not None:
                self._worker.start()
        finally:
            self._worker = None
            self._close()

    def _make_worker(self) -> Any:
        name = f"up-{os.getpid()}@{socket.gethostname()}"
        return celery_worker.WorkController(
            app=self._celery_app,
            hostname=name,
            loglevel="INFO",
            without_mingle=True,
            without_gossip=True,
            without_heartbeat=True,
        )
