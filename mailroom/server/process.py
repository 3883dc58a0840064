"""Sets up a process that serves, and ends it with its parent or at a signal."""

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

PARENT_CHECK_SECONDS = 1.0


def start_child(settings: Settings, *at_signal: Callable[[], None]) -> None:
    """Set up granian's child process, before anything else happens in it.

    Each `at_signal` is called when the server is to stop, to end requests that wait for something.
    """
    terminal.keep_open()
    logs.setup_web(settings)
    signals, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    # The signal handlers are granian's; Python writes the number of each signal to this pipe as well.
    signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    ending, orphaned = threading.Event(), threading.Event()
    SupervisedThread("signals", partial(end_at_signal, signals, at_signal, ending), ending).start()
    SupervisedThread("parent", partial(end_with_parent, os.getppid(), orphaned), orphaned).start()


def end_at_signal(
    signals: int, stops: Sequence[Callable[[], None]], ending: threading.Event
) -> None:
    """Call `stops` when SIGTERM or SIGINT arrives on the pipe `signals`, and set `ending`."""
    while os.read(signals, 1) not in (bytes([signal.SIGTERM]), bytes([signal.SIGINT])):
        pass
    for stop in stops:
        stop()
    ending.set()


def end_with_parent(parent: int, orphaned: threading.Event) -> None:
    """End when the parent has ended, so that the port is free if a supervisor killed only the parent."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    orphaned.set()


def end_child(error: Exception) -> NoReturn:
    print(f"mailasync: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def at_exit(stop: Callable[[], None]) -> None:
    """Call `stop` at exit, through multiprocessing, as a child that it forked runs no atexit functions."""
    multiprocessing.util.Finalize(None, stop, exitpriority=10)
