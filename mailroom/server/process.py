"""A process that serves: how it begins, and how it ends with its parent or at a signal."""

import multiprocessing.util
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from mailroom.config import logs
from mailroom.config.settings import Settings
from mailroom.process import terminal
from mailroom.process.supervisor import SupervisedThread

PARENT_LOOK_SECONDS = 1.0


def start_child(settings: Settings, *at_signal: Callable[[], None]) -> None:
    """Set up granian's child, before all else there.

    `at_signal` ends what would let a request last on when the server is asked to stop.
    """
    terminal.keep_open()
    logs.setup_web(settings)
    asked, asks = os.pipe()
    os.set_blocking(asks, False)
    signal.set_wakeup_fd(
        asks, warn_on_full_buffer=False
    )  # The handlers are granian's; this tells of the signal beside them.
    ending, orphaned = threading.Event(), threading.Event()
    SupervisedThread("signals", partial(end_at_signal, asked, at_signal, ending), ending).start()
    SupervisedThread("parent", partial(end_with_parent, os.getppid(), orphaned), orphaned).start()


def end_at_signal(asked: int, acts: Sequence[Callable[[], None]], ending: threading.Event) -> None:
    """Call these when a signal asks us to end, and set `ending`."""
    while os.read(asked, 1) not in (bytes([signal.SIGTERM]), bytes([signal.SIGINT])):
        pass
    for act in acts:
        act()
    ending.set()


def end_with_parent(parent: int, orphaned: threading.Event) -> None:
    """End with the parent: a supervisor that kills only the process it started shall find the port free."""
    while os.getppid() == parent:
        time.sleep(PARENT_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    orphaned.set()


def end_child(error: Exception) -> NoReturn:
    print(f"mailasync: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def at_exit(stop: Callable[[], None]) -> None:
    """Call `stop` at the end, through multiprocessing, which skips atexit in a child that it forked."""
    multiprocessing.util.Finalize(None, stop, exitpriority=10)
