"""Speaks with a child process over its pipes, by a JSON object a line; child_process.py is the other side."""

import json
import os
import selectors
import signal
import subprocess
from contextlib import suppress
from typing import IO, Any

from mailroom.jobs.job_output import JobOutput
from mailroom.jobs.registry import FILE_MAX_BYTES, RESULT_MAX_BYTES
from mailroom.model.errors import MailroomError
from mailroom.process.installation import IS_INSTALLED, PROJECT, PYTHON

#: A longer line from a child ends its job; the longest that a job may cause has a file, in base64.
LINE_MAX_BYTES = FILE_MAX_BYTES * 4 // 3 + RESULT_MAX_BYTES + 10_000
#: More than a pipe holds, so that one read takes all that a dead process had written.
CHUNK_BYTES = 1 << 18
KILLED_SECONDS = 5.0


class ChildError(MailroomError):
    """Raised if the job raised or its process ended; the text is one line for the client."""


class NotBegun(ChildError):
    """Raised if the process ended before the job began: another one may have it."""


class PooledProcess:
    """A child process with its three pipes; used by one thread at a time, except `kill`."""

    def __init__(self, modules: list[str]) -> None:
        self.jobs = 0
        self._process = subprocess.Popen(
            [*PYTHON, "-m", "mailroom.jobs.child_process", *modules],
            cwd=None if IS_INSTALLED else PROJECT,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self._prints = self._process.stderr
        for pipe in (self._requests, self._replies, self._prints):
            os.set_blocking(pipe.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._replies, selectors.EVENT_READ, self._read_replies)
        self._selector.register(self._prints, selectors.EVENT_READ, self._read_prints)
        self._unsent = bytearray()
        self._unread = bytearray()  #: the beginning of a line
        self._messages: list[dict[str, Any]] = []
        self._has_closed_replies = False
        self._output = JobOutput("")

    def begin(self, id: str, request: dict[str, Any]) -> None:
        """Send the request for a job."""
        self._read_prints()  # What processes of the job before have printed since is not this job's.
        self._output = JobOutput(id)
        self.send(request)

    def finish_job(self) -> None:
        """Log the rest of what the job printed: it is in the pipe by now."""
        self._read_prints()
        self._output.end_line()

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; it is sent as soon as the child reads it, during `receive`."""
        if not self._unsent:
            self._selector.register(self._requests, selectors.EVENT_WRITE, self._send_queued)
        self._unsent += json.dumps(message).encode() + b"\n"

    def receive(self, seconds: float) -> list[dict[str, Any]]:
        """Return the messages that came, after at most `seconds`.

        Raises:
          ChildError: a line is too long, or no JSON.
        """
        for key, _ in self._selector.select(seconds):
            key.data()
        messages, self._messages = self._messages, []
        return messages

    def has_ended(self) -> bool:
        if self._has_closed_replies:
            # Its end closes the pipe a moment before it can be seen; a child that closed it itself is of no
            # use.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            return True
        # The pipe alone would not tell: a process that the child forked may hold it open.
        return self._process.poll() is not None

    def describe_end(self) -> str:
        code = self._process.returncode
        if code is None:
            return "its process ended"
        if code >= 0:
            return f"its process ended: exit status {code}"
        name = f"signal {-code}"
        if -code in set(signal.Signals):
            name = signal.Signals(-code).name
        if name == "SIGKILL":
            name += " (memory may have run out)"
        return f"its process ended: {name}"

    def kill(self) -> None:
        """Kill the process at once, with everything it started: it leads a process group of its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_SECONDS)

    def end(self) -> None:
        """Kill the process and close its pipes."""
        self.kill()
        self.finish_job()
        self._selector.close()
        for pipe in (self._requests, self._replies, self._prints):
            pipe.close()

    def _send_queued(self) -> None:
        with suppress(BlockingIOError):
            try:
                sent = os.write(self._requests.fileno(), self._unsent[:CHUNK_BYTES])
                del self._unsent[:sent]
            except BrokenPipeError:
                self._unsent.clear()  # The process has ended, which `has_ended` tells.
        if not self._unsent:
            self._selector.unregister(self._requests)

    def _read_replies(self) -> None:
        chunk = self._read(self._replies)
        self._has_closed_replies = chunk == b""
        self._unread += chunk or b""
        if b"\n" in (chunk or b""):
            *lines, rest = self._unread.split(b"\n")
            self._unread = rest
            self._messages += map(_parse, lines)
        if len(self._unread) > LINE_MAX_BYTES:
            raise ChildError(f"its result or progress is longer than {LINE_MAX_BYTES} bytes")

    def _read_prints(self) -> None:
        self._output.add(self._read(self._prints) or b"")

    def _read(self, pipe: IO[bytes]) -> bytes | None:
        """Return what is there; None: nothing yet; b"": the pipe is closed, and is watched no longer."""
        try:
            chunk = os.read(pipe.fileno(), CHUNK_BYTES)
        except BlockingIOError:
            return None
        if not chunk:
            with suppress(KeyError):
                self._selector.unregister(pipe)
        return chunk


def _parse(line: bytearray) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except RecursionError:
        raise ChildError("its result is nested too deeply") from None
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise ChildError("its process said what is no answer")
    return message
