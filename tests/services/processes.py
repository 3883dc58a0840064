"""The service itself as real processes: web, worker, all in one."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.services import DEADLINE_SECONDS, free_port, wait_until
from tests.services.forks import Fork, Forks
from tests.services.schema import ready

#: Set where starts have to be quick; what measures starts, or memory, leaves it as it is.
forks: Forks | None = None

PROJECT = Path(__file__).resolve().parents[2]

FINAL = frozenset(
    {
        "sent",
        "failed",
        "uncertain",
        "canceled",
        "expired",
        "suppressed",
        "bounced",
        "complained",
    }
)


def pss_mb(pids: Iterable[int]) -> float:
    """The memory of these processes, with what they share counted once."""
    lines = [
        line
        for pid in pids
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    ]
    return sum(int(line.split()[1]) for line in lines) / 1024


@dataclass(frozen=True)
class Done:
    """A program that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@dataclass
class Program:
    """One process group with its log."""

    process: "subprocess.Popen[bytes] | Fork"
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, words: str, timeout: float = DEADLINE_SECONDS) -> None:
        """Wait until `words` are in the log, or it has ended without them."""
        wait_until(
            lambda: words in self.text() or self.process.poll() is not None,
            timeout=timeout,
            what=f"{self.log.name} says {words!r}; it says:\n{self.text()[-2000:]}",
        )
        assert words in self.text(), f"ended with {self.process.returncode}:\n{self.text()[-3000:]}"

    def kill(self) -> None:
        """kill -9, with everything it started."""
        self._signal(signal.SIGKILL)
        self.process.wait(60)

    def stop(self, timeout: float = DEADLINE_SECONDS) -> int:
        """SIGTERM to the process itself, as a supervisor does; return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout)

    def _signal(self, which: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, which)


@dataclass
class Service:
    """Starts the service's processes with one set of settings, and asks its web side."""

    directory: Path
    settings: dict[str, str]
    port: int = field(default_factory=free_port)
    project: Path = PROJECT
    python: str = sys.executable  #: of another environment, where a wheel is tried
    _programs: list[Program] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The machine's environment without any setting, and ours."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MAILASYNC_", "CELERY_", "MAIL_", "FLASK_"))
        }
        ours = {"ENV_FILE": "", "PORT": str(self.port)} | self.settings
        return kept | {f"MAILASYNC_{name}": value for name, value in ours.items()}

    def run(
        self, *command: str, name: str, env: Mapping[str, str] | None = None, fresh: bool = False
    ) -> Program:
        """Start `python COMMAND`; `fresh`: by an interpreter of its own, also where forks are quicker."""
        log = self.directory / f"{name}-{len(self._programs)}.log"
        log.touch()  # A fork makes it only when it begins.
        process = self._start(
            command, {**self.environment, **(env or {})}, (Path(os.devnull), log, log), fresh=fresh
        )
        self._programs.append(Program(process, log))
        return self._programs[-1]

    def call(self, *command: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Done:
        """Run `python COMMAND` to its end."""
        with tempfile.TemporaryDirectory(dir=self.directory) as directory:
            files = [Path(directory) / name for name in ("stdin", "stdout", "stderr")]
            for file, content in zip(files, (stdin, b"", b""), strict=True):
                file.write_bytes(content)
            code = self._start(
                command, {**self.environment, **(env or {})}, (files[0], files[1], files[2])
            ).wait(60)
            return Done(code, files[1].read_text(), files[2].read_text())

    def _start(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        files: tuple[Path, Path, Path],
        *,
        fresh: bool = False,
    ) -> "subprocess.Popen[bytes] | Fork":
        """Start a program with these as stdin, stdout and stderr."""
        for file in files[1:]:
            file.touch()  # so that whoever reads it finds it, however late the program is
        is_same = self.python == sys.executable
        if forks and not fresh and is_same and _of_python(environment) == _of_python(os.environ):
            return forks.start(
                command,
                directory=self.project,
                environment=environment,
                files=(str(files[0]), str(files[1]), str(files[2])),
            )
        with (
            files[0].open("rb") as stdin,
            files[1].open("ab") as stdout,
            files[2].open("ab") as stderr,
        ):
            return subprocess.Popen(
                [self.python, *command],
                cwd=self.project,
                env=environment,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    def upgrade(self) -> None:
        """As `flask db upgrade` does, on a database that is empty, and quicker."""
        ready(self.settings["DATABASE_URL"]).close()

    def upgrade_by_command(self) -> None:
        assert self.run("-m", "flask", "db", "upgrade", name="upgrade").process.wait(60) == 0, (
            "flask db upgrade failed"
        )

    def web(self, *command: str) -> Program:
        """`python3 app.py`, or another command of Python that serves, when it answers."""
        program = self.run(*(command or ("app.py",)), name="web")
        self._answers(program)
        return program

    def up(self, *arguments: str) -> Program:
        """`flask up`, when it answers."""
        program = self.run("-m", "flask", "up", *arguments, name="up")
        self._answers(program)
        return program

    def worker(self, *arguments: str, wait: bool = True) -> Program:
        """`celery -A mailasync worker`, when it is ready."""
        program = self.run(
            "-m",
            "celery",
            "-A",
            "mailasync",
            "worker",
            *(arguments or ("--loglevel=INFO",)),
            name="worker",
        )
        if wait:
            program.says(" ready.")
        return program

    def _answers(self, program: Program) -> None:
        def answered() -> bool:
            assert program.process.poll() is None, (
                f"it ended with {program.process.returncode}:\n{program.text()[-3000:]}"
            )
            try:
                return bool(self.get("/livez")["status"] == "ok")
            except OSError:
                return False

        wait_until(answered, what="the web process answers")

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = DEADLINE_SECONDS,
    ) -> tuple[int, Any]:
        """Return status and JSON (or text) of the answer, whatever the status."""
        data = (
            body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        )
        request = urllib.request.Request(
            self.url + path,
            data,
            {"Content-Type": "application/json", **(headers or {})},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, _read(answer)
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, _read(answer)

    def get(self, path: str, timeout: float = DEADLINE_SECONDS) -> Any:
        return self.request("GET", path, timeout=timeout)[1]

    def post(self, path: str = "/", **fields: Any) -> str:
        """Send a mail and return its id."""
        status, answer = self.request(
            "POST",
            path,
            {"to": "bob@example.org", "subject": "Hello", "contents": "The work is done."} | fields,
        )
        assert status in (200, 202), answer
        id: str = answer["id"]
        return id

    def message(self, id: str) -> Any:
        return self.get(f"/v1/messages/{id}")

    def final(self, id: str, timeout: float = DEADLINE_SECONDS) -> Any:
        """Wait until the message is in a final state, and return it."""
        seen: list[Any] = [None]

        def is_final() -> bool:
            seen[0] = self.message(id)
            return seen[0]["status"] in FINAL

        try:
            wait_until(is_final, timeout=timeout, what=f"{id} is final")
        except AssertionError as e:
            raise AssertionError(f"{e}; it is {json.dumps(seen[0], indent=1)}") from None
        return seen[0]

    def close(self) -> None:
        for program in self._programs:
            program.kill()


def _of_python(environment: Mapping[str, str]) -> dict[str, str]:
    """What an interpreter reads when it starts."""
    return {name: value for name, value in environment.items() if name.startswith("PYTHON")}


def _read(answer: Any) -> Any:
    text = answer.read().decode()
    return json.loads(text) if "json" in answer.headers.get("Content-Type", "") else text


@contextmanager
def service(directory: Path, **settings: str) -> Iterator[Service]:
    made = Service(directory, settings)
    try:
        yield made
    finally:
        made.close()
