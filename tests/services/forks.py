"""Starts programs of ours as forks of a process that has imported what they need of others: that is three quarters of a start.

What is started is a process like any other: a session of its own, a fresh `__main__`, our own modules imported by itself. It has
neither files nor threads of the server, which is `python -m tests.services.forks`.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.services import DEADLINE_SECONDS, wait_until

PROJECT = Path(__file__).resolve().parents[2]

#: What app.py, mailasync.py and the commands import of others, by the modules that import the rest.
IMPORTED = (
    "aiosmtpd.smtp",
    "alembic.command",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "css_inline",
    "email_validator",
    "flask.cli",
    "granian.server",
    "kombu.transport.memory",
    "kombu.transport.pyamqp",
    "prometheus_client.exposition",
    "psycopg",
    "pydantic",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "standardwebhooks",
    "yagmail",
)


class Forks:
    """The server, started when it is first needed; it ends with this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None

    def start(
        self,
        command: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        files: tuple[str, str, str],
    ) -> "Fork":
        """Start `python COMMAND`; `files` are for its stdin, stdout and stderr."""
        asked = {
            "command": [*command],
            "directory": str(directory),
            "environment": dict(environment),
            "files": files,
        }
        return Fork(self, int(self._ask("start", asked)))

    def status(self, pid: int) -> int | None:
        """Return the exit status of a program, as subprocess has it; None while it runs."""
        status: int | None = self._ask("status", pid)
        return status

    def _ask(self, what: str, about: object) -> Any:
        with self._lock:
            if self._server is None:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", "tests.services.forks"],
                    cwd=PROJECT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            assert self._server.stdin and self._server.stdout
            self._server.stdin.write(json.dumps([what, about]).encode() + b"\n")
            self._server.stdin.flush()
            return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        if self._server:
            self._server.communicate()


class Fork:
    """A program that was started, with what tests use of subprocess.Popen."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._forks = forks

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.status(self.pid)
        return self.returncode

    def wait(self, timeout: float = DEADLINE_SECONDS) -> int:
        wait_until(lambda: self.poll() is not None, timeout, what=f"process {self.pid} has ended")
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, which: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, which)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# --- in the server --------------------------------------------------------------------------------------------------

_ended: dict[int, int] = {}


def serve() -> None:
    """Answer requests until the end of stdin; in a program that was started it runs that, and returns."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, _reap)
    while line := sys.stdin.buffer.readline():
        what, about = json.loads(line)
        if what == "status":
            answer = _ended.get(about)
        elif not (answer := _fork()):
            return _become(about)
        os.write(1, json.dumps(answer).encode() + b"\n")


def _fork() -> int:
    """Return 0 in the child, which has a session of its own before anybody knows of it."""
    ready, is_ready = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    # A busy machine soon gives the id of a program that has ended to another one.
    _ended.pop(pid, None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    if not pid:
        os.setsid()
        os.close(is_ready)
        return 0
    os.close(is_ready)
    os.read(ready, 1)
    os.close(ready)
    return pid


def _reap(*_: object) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _ended[ended[0]] = os.waitstatus_to_exitcode(ended[1])


def _become(asked: dict[str, Any]) -> None:
    """Be what a fresh interpreter would be, and run the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, file in enumerate(asked["files"]):
        os.dup2(
            os.open(
                file, (os.O_WRONLY | os.O_CREAT | os.O_APPEND) if number else os.O_RDONLY, 0o644
            ),
            number,
        )
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["directory"])
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    _run(asked["command"])


def _run(command: list[str]) -> None:
    match command:
        case ["-m", module, *arguments]:
            sys.argv[:], sys.path[0] = [module, *arguments], os.getcwd()
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *arguments]:
            sys.argv[:], sys.path[0] = ["-c", *arguments], ""
            sys.modules["__main__"] = ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), vars(sys.modules["__main__"]))
        case [script, *arguments]:
            sys.argv[:], sys.path[0] = [script, *arguments], str(Path(script).resolve().parent)
            runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    serve()
