"""Runs one job in a child process: sends the request, reads progress, and keeps its timeout."""

import math
import time
from collections.abc import Callable
from typing import Any

from mailroom.jobs.pooled_process import ChildError, NotBegun, PooledProcess
from mailroom.model.errors import MailroomError

#: A child that has not begun its job after this never will; the job's own timeout counts from its begin.
START_SECONDS = 60.0
#: Time for a job to clean up once it is no longer wanted.
INTERRUPT_SECONDS = 2.0
#: How often to check a running job's deadline, process and interrupts.
CHECK_SECONDS = 0.1


class ChildTimeout(MailroomError):
    """Raised if the job was killed at its timeout."""


class PooledJob:
    """A job on its way through a child process."""

    def __init__(
        self,
        id: str,
        request: dict[str, Any],
        timeout_seconds: float,
        progress: Callable[[float, str], None],
    ) -> None:
        self.process: PooledProcess | None = None
        self.unwanted: Exception | None = None  #: the error to end the job with; set by any thread
        self._id = id
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._progress = progress
        self._begun = self._interrupted = self._late = False
        self._deadline = math.inf

    def run(self, process: PooledProcess) -> dict[str, Any]:
        """Return the last message of the job.

        Raises:
          ChildError, ChildTimeout, or `unwanted`: there was none, and the process is to be ended.
        """
        self._deadline = time.monotonic() + START_SECONDS
        process.begin(self._id, self._request)
        while True:
            # Checked before the last messages are read, so that none is missed.
            is_over = process.has_ended() or self._is_late(process)
            wait_seconds = min(CHECK_SECONDS, max(0, self._deadline - time.monotonic()))
            for message in process.receive(0 if is_over else wait_seconds):
                if self._is_last(message):
                    return message
            if is_over:
                raise self._error(process)

    def _is_late(self, process: PooledProcess) -> bool:
        """Pass an interrupt on, and kill the process when its time is up."""
        now = time.monotonic()
        if self.unwanted and not self._interrupted:
            self._interrupted = True
            self._deadline = min(self._deadline, now + INTERRUPT_SECONDS)
            process.send({"interrupt": self._id})
        self._late = now >= self._deadline
        if self._late:
            process.kill()
        return self._late

    def _is_last(self, message: dict[str, Any]) -> bool:
        if "broken" in message:
            raise ChildError(str(message["broken"]))
        if message.get("id") != self._id:
            return False  # Of an earlier job.
        if "begun" in message:
            self._begun = True
            if not self._interrupted:
                self._deadline = time.monotonic() + self._timeout_seconds
        elif "progress" not in message:
            return True
        elif not self.unwanted and time.monotonic() < self._deadline:
            # As there may be thousands, each slow.
            try:
                self._progress(message["progress"], message["step"])
            except Exception as e:
                self.unwanted = e
        return False

    def _error(self, process: PooledProcess) -> Exception:
        if self.unwanted:
            return self.unwanted
        if self._begun and self._late:
            return ChildTimeout(f"killed after {self._timeout_seconds:g} s")
        if self._begun:
            return ChildError(process.describe_end())
        if self._late:
            return NotBegun(f"it did not begin within {START_SECONDS:g} s")
        return NotBegun(f"{process.describe_end()} before the job began")
