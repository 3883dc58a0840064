"""Warm child processes for jobs: spawned, used again, killed at a timeout and replaced. See child.py for the other side."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mailroom.mail.errors import MailroomError

#: A longer line from a child (a result, a step) ends its job.
LINE_MAX_BYTES = 1_000_000
#: A child that ran this many jobs is replaced, so that what they leak goes with it.
JOBS_PER_CHILD = 100

PROJECT = Path(__file__).resolve().parents[2]


class ChildError(MailroomError):
    """The job raised, or its process ended; the text is one line for the client."""


class ChildTimeout(MailroomError):
    """The job was killed at its timeout."""


@dataclass
class _Child:
    process: "subprocess.Popen[bytes]"
    jobs: int = 0

    def kill(self) -> None:
        """End the child with everything it started: it leads a process group of its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


class Children:
    """The child processes of one worker; each thread that runs a job borrows one."""

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules
        self._idle: list[_Child] = []
        self._busy: list[_Child] = []

    def run(self, name: str, args: dict[str, Any], *, timeout_seconds: float, progress: Callable[[float, str], None]) -> Any:
        """Run a job in a child and return its result; `progress` may raise to end the job.

        Raises:
          ChildError: the job raised, its process ended, or its result is no JSON or too long.
          ChildTimeout: it was killed after `timeout_seconds`.
        """
        child = self._idle.pop() if self._idle else self._spawn()
        self._busy.append(child)
        expired = threading.Event()
        timer = threading.Timer(timeout_seconds, _expire, (child, expired))
        timer.start()
        ended_well = False
        try:
            result = self._converse(child, {"name": name, "args": args}, progress)
            ended_well = True
            return _result(result)
        except ChildError:
            if expired.is_set():
                raise ChildTimeout(f"killed after {timeout_seconds:g} s") from None
            raise
        finally:
            timer.cancel()
            self._busy.remove(child)
            child.jobs += 1
            if ended_well and child.jobs < JOBS_PER_CHILD and not expired.is_set():
                self._idle.append(child)
            else:
                child.kill()

    def close(self) -> None:
        """Kill them all, those at work too."""
        for child in list(self._busy):
            child.kill()
        while self._idle:
            self._idle.pop().kill()

    def _spawn(self) -> _Child:
        return _Child(subprocess.Popen(
            [sys.executable, "-m", "mailroom.jobs.child", *self._modules], cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True))

    def _converse(self, child: _Child, request: dict[str, Any], progress: Callable[[float, str], None]) -> dict[str, Any]:
        assert child.process.stdin is not None and child.process.stdout is not None
        try:
            child.process.stdin.write(json.dumps(request).encode() + b"\n")
            child.process.stdin.flush()
            while True:
                line = child.process.stdout.readline(LINE_MAX_BYTES)
                if not line.endswith(b"\n"):
                    raise ChildError(f"its result or progress is longer than {LINE_MAX_BYTES} bytes" if line else "its process ended")
                told: dict[str, Any] = json.loads(line)
                if "progress" not in told:
                    return told
                progress(told["progress"], told["step"])
        except (OSError, ValueError) as e:
            raise ChildError(f"its process ended: {type(e).__name__}") from None


def _expire(child: _Child, expired: threading.Event) -> None:
    expired.set()
    child.kill()


def _result(told: dict[str, Any]) -> Any:
    if "error" in told:
        raise ChildError(told["error"])
    return told["result"]


