"""Warm child processes for jobs: spawned, used again, killed when they must be, and replaced. See child_process.py for the other side."""

import base64
import json
import logging
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from mailroom.jobs.registry import FILE_MAX_BYTES, RESULT_MAX_BYTES, File, Interrupted, Result
from mailroom.model.errors import MailroomError

log = logging.getLogger("mailasync.jobs")

#: A longer line from a child ends its job; the longest that a job may cause has a file, in base64.
LINE_MAX_BYTES = FILE_MAX_BYTES * 4 // 3 + RESULT_MAX_BYTES + 10_000
#: A child that ran this many jobs is replaced, so that what they leak goes with it.
JOBS_PER_CHILD = 100
#: A child that has not begun its job after this long never will; the job's own time counts from its begin.
START_SECONDS = 60.0
#: What a job gets to clean up, once it is not wanted any more.
INTERRUPT_SECONDS = 2.0
#: How much of what a job prints is logged.
OUTPUT_MAX_BYTES = 64_000
OUTPUT_LINE_MAX_CHARACTERS = 500
#: How often a running job's deadline, process and interrupts are looked at.
LOOK_SECONDS = 0.1
#: More than a pipe holds, so one read takes all that was written by the dead.
CHUNK_BYTES = 1 << 18
KILLED_SECONDS = 5.0

PROJECT = Path(__file__).resolve().parents[2]

_NOT_PRINTED = dict.fromkeys([*range(32), *range(127, 160)], " ")


class ChildError(MailroomError):
    """The job raised, or its process ended; the text is one line for the client."""


class ChildTimeout(MailroomError):
    """The job was killed at its timeout."""


class _NotBegun(ChildError):
    """The process ended, and the job had not begun: another one may have it."""


class Children:
    """The child processes of one worker; each thread that runs a job borrows one."""

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: dict[str, _Run] = {}  #: by the job's id
        self._closed = False

    def run(self, id: str, name: str, args: dict[str, Any], *, timeout_seconds: float, progress: Callable[[float, str], None]) -> Result:
        """Run a job in a child and return its result; what `progress` raises ends the job, and is raised.

        Raises:
          ChildError: the job raised, its process ended, or its result is no JSON or too much.
          ChildTimeout: it was killed `timeout_seconds` after it began.
          Interrupted: it was interrupted, whatever it returned then.
        """
        run = _Run(id, {"id": id, "name": name, "args": args}, timeout_seconds, progress)
        with self._lock:
            self._busy[id] = run
        try:
            result = _result(self._told(run))
        except ChildError as e:
            raise run.unwanted or (ChildError("its process ended") if self._closed else e) from None
        finally:
            with self._lock:
                self._busy.pop(id, None)
        if run.unwanted:
            raise run.unwanted
        return result

    def interrupt(self, id: str) -> None:
        """Tell a job that it is not wanted any more, and kill it if it has not ended after INTERRUPT_SECONDS; returns at once."""
        with self._lock:
            if run := self._busy.get(id):
                run.unwanted = run.unwanted or Interrupted()

    def close(self) -> None:
        """Kill them all, those at work too."""
        with self._lock:
            self._closed = True
            busy = [run.child for run in self._busy.values() if run.child]
            idle, self._idle = self._idle, []
        for child in busy:
            child.kill()
        for child in idle:
            child.end()

    def _told(self, run: "_Run") -> dict[str, Any]:
        while True:
            child = self._borrow(run)
            is_new = child.jobs == 0
            told = None
            try:
                told = run.converse(child)
                return told
            except _NotBegun:
                if is_new or self._closed:
                    raise
            finally:
                self._take_back(child, is_well=told is not None and not run.unwanted)

    def _borrow(self, run: "_Run") -> "_Child":
        """Lend an idle child that is alive, or a new one."""
        with self._lock:
            if self._closed:
                raise ChildError("its process ended")
            while self._idle:
                child = self._idle.pop()
                if not child.has_ended():
                    break
                child.end()
            else:
                try:
                    child = _Child(self._modules)
                except OSError as e:
                    raise ChildError(f"no process can be started: {e}") from None
            run.child = child
            return child

    def _take_back(self, child: "_Child", *, is_well: bool) -> None:
        child.jobs += 1
        child.finish()
        with self._lock:
            if is_well and child.jobs < JOBS_PER_CHILD and not self._closed:
                self._idle.append(child)
                return
        child.end()


class _Run:
    """A job on its way through a child."""

    def __init__(self, id: str, request: dict[str, Any], timeout_seconds: float, progress: Callable[[float, str], None]) -> None:
        self.child: _Child | None = None
        self.unwanted: Exception | None = None  #: what to raise; set by any thread
        self._id = id
        self._request = request
        self._timeout_seconds = timeout_seconds
        self._progress = progress
        self._begun = self._interrupted = self._late = False
        self._deadline = math.inf

    def converse(self, child: "_Child") -> dict[str, Any]:
        """Return the line with which the job ended.

        Raises:
          ChildError, ChildTimeout, or `unwanted`: none came, and the child is to be ended.
        """
        self._deadline = time.monotonic() + START_SECONDS
        child.begin(self._id, self._request)
        while True:
            is_over = child.has_ended() or self._is_late(child)  # Looked at before the last lines are read, so that none is missed.
            for line in child.hear(0 if is_over else min(LOOK_SECONDS, max(0, self._deadline - time.monotonic()))):
                if self._is_last(line):
                    return line
            if is_over:
                raise self._end(child)

    def _is_late(self, child: "_Child") -> bool:
        """Pass an interrupt on, and kill the child when its time is up."""
        now = time.monotonic()
        if self.unwanted and not self._interrupted:
            self._interrupted = True
            self._deadline = min(self._deadline, now + INTERRUPT_SECONDS)
            child.ask({"interrupt": self._id})
        self._late = now >= self._deadline
        if self._late:
            child.kill()
        return self._late

    def _is_last(self, line: dict[str, Any]) -> bool:
        if "broken" in line:
            raise ChildError(str(line["broken"]))
        if line.get("id") != self._id:
            return False  # of an earlier job
        if "begun" in line:
            self._begun = True
            if not self._interrupted:
                self._deadline = time.monotonic() + self._timeout_seconds
        elif "progress" not in line:
            return True
        elif not self.unwanted and time.monotonic() < self._deadline:  # It may take long, and there may be thousands.
            try:
                self._progress(line["progress"], line["step"])
            except Exception as e:
                self.unwanted = e
        return False

    def _end(self, child: "_Child") -> Exception:
        if self.unwanted:
            return self.unwanted
        if not self._begun:
            return _NotBegun(f"it did not begin within {START_SECONDS:g} s" if self._late else f"{child.last_words()} before the job began")
        return ChildTimeout(f"killed after {self._timeout_seconds:g} s") if self._late else ChildError(child.last_words())


class _Child:
    """A process with its three pipes; used by one thread at a time, except `kill`."""

    def __init__(self, modules: list[str]) -> None:
        self.jobs = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mailroom.jobs.child_process", *modules], cwd=PROJECT, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._requests, self._answers, self._prints = pipes = [self._process.stdin, self._process.stdout, self._process.stderr]
        for pipe in pipes:
            os.set_blocking(pipe.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._answers, selectors.EVENT_READ, self._read_answers)
        self._selector.register(self._prints, selectors.EVENT_READ, self._read_prints)
        self._unsent = bytearray()
        self._answer = bytearray()
        self._lines: list[dict[str, Any]] = []
        self._is_mute = False
        self._output = _Output("")

    def begin(self, id: str, request: dict[str, Any]) -> None:
        self._read_prints()  # What processes of the job before have printed since is not this job's.
        self._output = _Output(id)
        self.ask(request)

    def finish(self) -> None:
        """Log what is left of what the job printed: it is in the pipe by now."""
        self._read_prints()
        self._output.end()

    def ask(self, line: dict[str, Any]) -> None:
        """Send a line, as soon as the child reads it."""
        if not self._unsent:
            self._selector.register(self._requests, selectors.EVENT_WRITE, self._send)
        self._unsent += json.dumps(line).encode() + b"\n"

    def hear(self, seconds: float) -> list[dict[str, Any]]:
        """Return what it answered, waiting at most `seconds` for anything to happen.

        Raises:
          ChildError: a line is too long, or no JSON.
        """
        for key, _ in self._selector.select(seconds):
            key.data()
        lines, self._lines = self._lines, []
        return lines

    def has_ended(self) -> bool:
        if self._is_mute:  # Its end closes the pipe a moment before it can be seen; or it closed it itself, and is of no use.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            return True
        return self._process.poll() is not None  # The pipe alone would not tell: a process that it forked may hold it open.

    def last_words(self) -> str:
        code = self._process.returncode
        if code is None or code >= 0:
            return "its process ended" + (f": exit status {code}" if code is not None else "")
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"its process ended: {name}" + (" (memory may have run out)" if name == "SIGKILL" else "")

    def kill(self) -> None:
        """End the process, at once, with everything it started: it leads a process group of its own."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_SECONDS)

    def end(self) -> None:
        """Kill it, and give back what it took here."""
        self.kill()
        self.finish()
        self._selector.close()
        for pipe in (self._requests, self._answers, self._prints):
            pipe.close()

    def _send(self) -> None:
        with suppress(BlockingIOError):
            try:
                del self._unsent[:os.write(self._requests.fileno(), self._unsent[:CHUNK_BYTES])]
            except BrokenPipeError:
                self._unsent.clear()  # It has ended, which is seen elsewhere.
        if not self._unsent:
            self._selector.unregister(self._requests)

    def _read_answers(self) -> None:
        chunk = self._read(self._answers)
        self._is_mute = chunk == b""
        self._answer += chunk or b""
        if b"\n" in (chunk or b""):
            *lines, rest = self._answer.split(b"\n")
            self._answer = rest
            self._lines += map(_parsed, lines)
        if len(self._answer) > LINE_MAX_BYTES:
            raise ChildError(f"its result or progress is longer than {LINE_MAX_BYTES} bytes")

    def _read_prints(self) -> None:
        self._output.take(self._read(self._prints) or b"")

    def _read(self, pipe: IO[bytes]) -> bytes | None:
        """Return what is there; None: nothing yet; empty: nothing will come any more, and nobody needs to look."""
        try:
            chunk = os.read(pipe.fileno(), CHUNK_BYTES)
        except BlockingIOError:
            return None
        if not chunk:
            with suppress(KeyError):
                self._selector.unregister(pipe)
        return chunk


class _Output:
    """The output of one job, as lines of the log: cut, and not without end."""

    def __init__(self, id: str) -> None:
        self._id = id
        self._line = bytearray()
        self._room = OUTPUT_MAX_BYTES

    def take(self, chunk: bytes) -> None:
        if self._room < 0:
            return
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._add(piece)
            self.end()
        self._add(rest)

    def end(self) -> None:
        """Log the line that is begun, if it says anything."""
        text = self._line.decode(errors="replace").translate(_NOT_PRINTED)[:OUTPUT_LINE_MAX_CHARACTERS].rstrip()
        is_shown = self._room >= 0
        self._room -= len(self._line) + 1
        self._line.clear()
        if is_shown and self._room < 0:
            log.info("job %s: (the rest of what it prints is not shown)", self._id)
        elif is_shown and text:
            log.info("job %s: %s", self._id, text)

    def _add(self, piece: bytes) -> None:
        self._line += piece[:4 * OUTPUT_LINE_MAX_CHARACTERS - len(self._line)]


def _parsed(line: bytearray) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except RecursionError:
        raise ChildError("its result is nested too deeply") from None
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise ChildError("its process said what is no answer")
    return told


def _result(told: dict[str, Any]) -> Result:
    if "error" in told:
        raise ChildError(told["error"])
    file = told.get("file")
    return Result(value=told["result"], file=file and File(file["name"], base64.b64decode(file["content"]), file["content_type"]))
