"""The process a job runs in: reads requests, answers with lines (process_pool.py is the other side), and ends with its parent."""

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

#: Our own descriptors begin here, out of the way of a job that closes or replaces 0, 1 and 2.
FIRST_FD = 100
#: Mail and web come first where the processor is short.
NICE = 5
STEP_MAX_CHARACTERS = 200
ERROR_MAX_CHARACTERS = 1000


class Job:
    """A requested job, and what its function gets as its progress."""

    def __init__(self, request: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
        self.id: str = request["id"]
        self.name: str = request["name"]
        self.args: dict[str, Any] = request["args"]
        self._tell = tell
        self._unwanted = threading.Event()
        self._fraction = 0.0
        self._process = os.getpid()

    def __call__(self, fraction: float, step: str = "") -> None:
        if self.is_in_a_copy():
            return
        if self._unwanted.is_set():
            raise Interrupted
        self._fraction = known if math.isfinite(known := float(fraction)) else self._fraction
        self.tell({"progress": self._fraction, "step": str(step)[:STEP_MAX_CHARACTERS]})

    def wait(self, seconds: float) -> None:
        if self.is_in_a_copy():
            time.sleep(
                seconds
            )  # It ends with this process; the event could be locked for ever by a thread that was not copied.
        elif self._unwanted.wait(seconds):
            raise Interrupted

    def stop(self) -> None:
        """Stop what is not wanted, or over: a thread that it left behind shall not go on either."""
        self._unwanted.set()

    def tell(self, line: dict[str, Any]) -> None:
        self._tell({"id": self.id, **line})

    def is_in_a_copy(self) -> bool:
        """Tell whether the job forked this process, which must not speak for the one it was copied from."""
        return os.getpid() != self._process


def main(modules: list[str]) -> NoReturn:
    requests, answers, output, null = (_high(fd) for fd in (0, 1, 2, os.open(os.devnull, os.O_RDWR)))
    home = Path.cwd()
    tell = partial(_tell, answers, threading.Lock())
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, tell, jobs), daemon=True).start()
    try:
        _tidy(output, null, home)
        _yield_to_others()
        faulthandler.enable()
        _load(modules, tell)
        while True:
            job = jobs.get()
            _tidy(output, null, home)
            job.tell(
                {"begun": True}
            )  # From here on it cannot be given to another child as if it had not run.
            answer = _answer(job)
            _flush()
            job.stop()
            job.tell(answer)
    except BaseException:  # No module, no descriptors any more, or an alarm that a job left behind.
        traceback.print_exc()
    finally:
        _flush()
        os._exit(1)  # Not sys.exit(), which waits for threads that jobs left behind.


def _high(fd: int) -> int:
    """Return a copy of a descriptor that no job hits by accident, and that nothing it starts inherits."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD)


def _tell(answers: int, lock: threading.Lock, line: dict[str, Any]) -> None:
    data = memoryview(json.dumps(line).encode() + b"\n")
    with lock:
        while data:
            data = data[os.write(answers, data) :]


def _yield_to_others() -> None:
    os.nice(NICE)
    with suppress(OSError):
        # Where Linux groups processes by session (autogroup), nice counts within ours only, and the session has a nice of its own.
        Path("/proc/self/autogroup").write_text(str(NICE))


def _listen(requests: int, tell: Callable[[dict[str, Any]], None], jobs: "queue.SimpleQueue[Job]") -> None:
    """Hand requests on; at the end of them the parent is gone, and so are we, with all that the jobs started."""
    try:
        latest: Job | None = None
        with os.fdopen(requests, "rb", closefd=False) as lines:
            for line in lines:
                request = json.loads(line)
                if "interrupt" not in request:
                    latest = Job(request, tell)
                    jobs.put(latest)
                elif latest and latest.id == request["interrupt"]:
                    latest.stop()
    finally:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def _load(modules: list[str], tell: Callable[[dict[str, Any]], None]) -> None:
    """Import what has the job types; where that fails no job can run here, and the next child tries again."""
    try:
        for name in modules:
            import_module(name)
    except BaseException as e:
        tell({"broken": f"{name} cannot be imported: {_words(e)}"})
        raise


def _tidy(output: int, null: int, home: Path) -> None:
    """Give a job what an earlier one may have closed, replaced or left: standard streams and working directory."""
    for fd, known in enumerate((null, output, output)):
        os.dup2(known, fd)
    sys.stdin, sys.stdout, sys.stderr = open(0, closefd=False), _printer(1), _printer(2)  # noqa: SIM115  # for the whole job
    with suppress(OSError):
        os.chdir(home)


def _printer(fd: int) -> Any:
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # A job may have put anything there.
            stream.flush()


def _answer(job: Job) -> dict[str, Any]:
    """Run it, and return what to tell of its end, whatever that is."""
    try:
        kind = job_type(job.name)
        args = kind.check(job.args)
        context: AbstractContextManager[object] = (
            _application().app_context() if kind.app_context else nullcontext()
        )
        with context:
            return _told(result_of(_call(kind, args, job)))
    except BaseException as e:  # sys.exit() in a job must not end the child in silence.
        return {"error": _words(e)}


def _call(kind: JobType, args: dict[str, Any], job: Job) -> Any:
    """Call the function. A copy that it forked, and that comes back from it, ends here."""
    try:
        if not job.is_in_a_copy():
            job.wait(0)  # It may have been interrupted before it began.
        returned = kind.call(args, job)
    except BaseException as e:
        if job.is_in_a_copy():
            _end_copy(e)
        raise
    if job.is_in_a_copy():
        _end_copy(None)
    return returned


def _end_copy(error: BaseException | None) -> NoReturn:
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
    """Return the Flask application of FLASK_APP, or of app.py, as `flask run` finds it."""
    # Imported only here: a child whose jobs want no application starts without Flask.
    return import_module("flask.cli").ScriptInfo(app_import_path=os.environ.get("FLASK_APP")).load_app()


def _told(result: Result) -> dict[str, Any]:
    """Raises TypeError: the file's fields are not of the types they should be."""
    if (file := result.file) is None:
        return {"result": result.value}
    if not (isinstance(file.name, str) and isinstance(file.content_type, str)):
        raise TypeError(
            f"a file's name and type are text, got {file.name!r:.100} and {file.content_type!r:.100}"
        )
    content = base64.b64encode(file.content).decode()
    return {
        "result": result.value,
        "file": {"name": file.name, "content_type": file.content_type, "content": content},
    }


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:ERROR_MAX_CHARACTERS]
    except Exception:  # its __str__ is broken
        return type(error).__name__


if __name__ == "__main__":
    main(sys.argv[1:])
