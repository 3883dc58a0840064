"""The process a job runs in: reads requests and replies in JSON, a line each, and ends with its parent.

pooled_process.py is the other side.
"""

import base64
import faulthandler
import fcntl
import json
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from mailroom.jobs.registry import Interrupted, JobType, Result, job_type, result_of
from mailroom.process.installation import APPLICATION, IS_INSTALLED

#: Our own descriptors begin here, out of the way of a job that closes or replaces 0, 1 and 2.
FIRST_FD = 100
#: Mail and web come first if the processor is busy.
NICE = 5
STEP_MAX_CHARACTERS = 200
ERROR_MAX_CHARACTERS = 1000

Send = Callable[[dict[str, Any]], None]  #: sends a message to the parent


class Job:
    """A requested job; its function gets this as its progress."""

    def __init__(self, request: dict[str, Any], send: Send) -> None:
        self.id: str = request["id"]
        self.name: str = request["name"]
        self.args: dict[str, Any] = request["args"]
        self._send = send
        self._unwanted = threading.Event()
        self._fraction = 0.0
        self._process = os.getpid()

    def __call__(self, fraction: float, step: str = "") -> None:
        if self.is_in_fork():
            return
        if self._unwanted.is_set():
            raise Interrupted
        number = float(fraction)
        if math.isfinite(number):
            self._fraction = number
        short_step = str(step)[:STEP_MAX_CHARACTERS]
        self.send({"progress": self._fraction, "step": short_step})

    def wait(self, seconds: float) -> None:
        if self.is_in_fork():
            # A fork ends with this process; the event could be locked for ever by a thread that was not
            # copied.
            time.sleep(seconds)
        elif self._unwanted.wait(seconds):
            raise Interrupted

    def stop(self) -> None:
        """Interrupt the job, or a thread that it left behind when it ended."""
        self._unwanted.set()

    def send(self, message: dict[str, Any]) -> None:
        self._send({"id": self.id, **message})

    def is_in_fork(self) -> bool:
        """Tell whether the job forked this process; a fork must not speak for its parent."""
        return os.getpid() != self._process


def main(modules: list[str]) -> NoReturn:
    requests, replies, output, null = (
        _high(fd) for fd in (0, 1, 2, os.open(os.devnull, os.O_RDWR))
    )
    home = Path.cwd()
    send = partial(_send, replies, threading.Lock())
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, send, jobs), daemon=True).start()
    if IS_INSTALLED:
        sys.path.append(str(home))  # for modules of JOBS, after all that is installed
    try:
        _restore(output, null, home)
        _lower_priority()
        faulthandler.enable()
        _load(modules, send)
        while True:
            job = jobs.get()
            _restore(output, null, home)
            # From here on no other child may get the job as if it had not run.
            job.send({"begun": True})
            reply = _run(job)
            _flush()
            job.stop()
            job.send(reply)
    except BaseException:  # No module, no descriptors any more, or an alarm that a job left behind.
        traceback.print_exc()
    finally:
        _flush()
        os._exit(1)  # Not sys.exit(), which waits for threads that jobs left behind.


def _high(fd: int) -> int:
    """Return a copy of a descriptor that no job hits by accident, and that nothing it starts inherits."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD)


def _send(replies: int, lock: threading.Lock, message: dict[str, Any]) -> None:
    data = memoryview(json.dumps(message).encode() + b"\n")
    with lock:
        while data:
            data = data[os.write(replies, data) :]


def _lower_priority() -> None:
    os.nice(NICE)
    with suppress(OSError):
        # Where Linux groups processes by session (autogroup), nice counts only within our session, which has
        # a nice of its own.
        Path("/proc/self/autogroup").write_text(str(NICE))


def _listen(requests: int, send: Send, jobs: "queue.SimpleQueue[Job]") -> None:
    """Queue requests; when they end the parent is gone, and this process ends with all that jobs started."""
    try:
        latest: Job | None = None
        with os.fdopen(requests, "rb", closefd=False) as lines:
            for line in lines:
                request = json.loads(line)
                if "interrupt" not in request:
                    latest = Job(request, send)
                    jobs.put(latest)
                elif latest and latest.id == request["interrupt"]:
                    latest.stop()
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _load(modules: list[str], send: Send) -> None:
    """Import the modules with job types; if that fails no job can run here, and the next child tries."""
    try:
        for name in modules:
            import_module(name)
    except BaseException as e:
        send({"broken": f"{name} cannot be imported: {_describe(e)}"})
        raise


def _restore(output: int, null: int, home: Path) -> None:
    """Restore the standard streams and the working directory, which the last job may have changed."""
    for fd, source in enumerate((null, output, output)):
        os.dup2(source, fd)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  # for the whole job
    sys.stdout, sys.stderr = _open_output(1), _open_output(2)
    with suppress(OSError):
        os.chdir(home)


def _open_output(fd: int) -> Any:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # A job may have put anything there.
            stream.flush()


def _run(job: Job) -> dict[str, Any]:
    """Run a job and return its last message, however it ends."""
    context: AbstractContextManager[object] = nullcontext()
    try:
        kind = job_type(job.name)
        args = kind.check(job.args)
        if kind.app_context:
            context = _application().app_context()
        with context:
            returned = _call(kind, args, job)
            return _result_message(result_of(returned))
    except BaseException as e:  # sys.exit() in a job must not end the child without a reply.
        return {"error": _describe(e)}


def _call(kind: JobType, args: dict[str, Any], job: Job) -> Any:
    """Call the function. A process that it forked, and that returns from it, ends here."""
    try:
        if not job.is_in_fork():
            job.wait(0)  # It may have been interrupted before it began.
        returned = kind.call(args, job)
    except BaseException as e:
        if job.is_in_fork():
            _end_fork(e)
        raise
    if job.is_in_fork():
        _end_fork(None)
    return returned


def _end_fork(error: BaseException | None) -> NoReturn:
    """End as a program would: the job may wait for this exit status."""
    status = 1 if error else 0
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        status = error.code or 0
    elif error:
        traceback.print_exception(error)
    _flush()
    os._exit(status)


@cache
def _application() -> Any:
    """Return the Flask application of FLASK_APP, or of app.py, as `flask run` does."""
    # Imported only here: a child whose jobs need no application starts without Flask.
    chosen = os.environ.get("FLASK_APP")
    if not chosen:
        return import_module(APPLICATION).create_app()
    return import_module("flask.cli").ScriptInfo(app_import_path=chosen).load_app()


def _result_message(result: Result) -> dict[str, Any]:
    """Return the last message of a job that succeeded.

    Raises:
      TypeError: the file's name or type is not text.
    """
    file = result.file
    if file is None:
        return {"result": result.value}
    name = file.name
    content_type = file.content_type
    if not isinstance(name, str) or not isinstance(content_type, str):
        raise TypeError(
            f"a file's name and type are text, got {name!r:.100} and {content_type!r:.100}"
        )
    content = base64.b64encode(file.content).decode()
    fields = {"name": name, "content_type": content_type, "content": content}
    return {"result": result.value, "file": fields}


def _describe(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:ERROR_MAX_CHARACTERS]
    except Exception:  # Its __str__ is broken.
        return type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1:])
