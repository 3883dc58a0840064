"""The rig that all contenders share: one RabbitMQ, one PostgreSQL, load tools, ways to look at a process."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from tests.services import Unavailable, accepts, cache_directory, debian, locked, wait_until
from tests.services.certificates import Certificates, make_certificates
from tests.services.postgres import Postgres
from tests.services.processes import PROJECT, pss_mb
from tests.services.rabbitmq import RabbitMQ, rabbitmq_node

HERE = Path(__file__).resolve().parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Tool(NamedTuple):
    """A program, and the variables that it needs."""

    program: str
    environment: dict[str, str]


@cache
def tool(name: str, package: str, *, libraries: str = "") -> Tool:
    """Find a program, or unpack Debian's package of it; `libraries` is where that one keeps its own.

    Raises:
      Unavailable: it is not here and cannot be fetched.
    """
    paths = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/libexec/postfix"])
    if found := shutil.which(name, path=paths):
        return Tool(found, {})
    if not debian.is_here():
        raise Unavailable(f"{name} is not here: brew install {package}")
    root = debian.unpack(package, family=package)
    program = next(
        (place for place in (root / "usr/bin" / name, root / "usr/sbin" / name) if place.exists()),
        None,
    )
    if program is None:
        raise Unavailable(f"Debian's package {package} has no {name}")
    environment = debian.library_path(root)
    environment["LD_LIBRARY_PATH"] = os.pathsep.join(
        [environment["LD_LIBRARY_PATH"], str(root / libraries)]
    )
    return Tool(str(program), environment)


@dataclass(frozen=True)
class Load:
    """The measures of a number of clients who each POST one request after the other."""

    per_second: float
    p50_ms: float
    p99_ms: float


def post(port: int, path: str, body: object, *, clients: int, seconds: float) -> Load:
    """POST this JSON for so long, from connections that stay open where the server lets them."""
    wrk = tool("wrk", "wrk")
    command = [
        wrk.program,
        "--threads",
        "1",
        "--connections",
        str(clients),
        "--duration",
        f"{seconds:g}s",
        "--timeout",
        "30s",
        "--script",
        str(HERE / "post.lua"),
        f"http://127.0.0.1:{port}{path}",
        json.dumps(body),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, **wrk.environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 60,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["errors"] == 0 and told["requests"], done.stdout
    return Load(told["requests"] / told["seconds"], told["p50_ms"], told["p99_ms"])


def ask(port: int, path: str, body: object = None, *, timeout: float = 60) -> Any:
    """POST this JSON, or GET where there is none, and return the JSON of the answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.load(answer)


@dataclass
class Process:
    """A process with all that it starts."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def tree(self) -> list[int]:
        """Its id, and those of its children and theirs."""
        found = [self.process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    @property
    def cpu_seconds(self) -> float:
        fields = [
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.tree
        ]
        return sum(int(found[11]) + int(found[12]) for found in fields) / TICKS_PER_SECOND

    @property
    def pss_mb(self) -> float:
        return pss_mb(self.tree)

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def serves(self, port: int) -> None:
        wait_until(
            lambda: self.process.poll() is not None or accepts(port),
            30,
            what=f"port {port} is served:\n{self.text()[-2000:]}",
        )
        assert self.process.poll() is None, self.text()[-3000:]

    def end(self) -> None:
        for which in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, which) if which is signal.SIGTERM else os.killpg(
                    self.process.pid, which
                )
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)


@dataclass
class Bench:
    """The things that are there for all contenders."""

    directory: Path
    broker: RabbitMQ
    postgres: Postgres
    certificates: Certificates
    _numbers: Iterator[int] = field(default_factory=count)

    def path(self, name: str) -> Path:
        """A place that is used once."""
        return self.directory / f"{name}-{next(self._numbers)}"

    @contextmanager
    def vhost(self) -> Iterator[str]:
        """The URL of an empty broker."""
        name = f"bench-{next(self._numbers)}"
        self.broker.add_vhost(name)
        try:
            yield self.broker.url(name)
        finally:
            self.broker.delete_vhost(name)

    @contextmanager
    def database(self, kind: str) -> Iterator[str]:
        """The URL of an empty database."""
        if kind == "sqlite":
            yield f"sqlite:///{self.path('mail')}.sqlite3"
            return
        name = f"bench_{next(self._numbers)}"
        self.postgres.create_database(name)
        yield self.postgres.url(name)

    @contextmanager
    def process(
        self,
        command: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path = PROJECT,
    ) -> Iterator[Process]:
        """Run it until the end; its first word may be the name of a Python module's command, like `python`."""
        log = self.path(name).with_suffix(".log")
        ours = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MAILASYNC_", "CELERY_", "MAIL_", "FLASK_"))
        }
        words = [sys.executable, *command[1:]] if command[0] == "python" else list(command)
        with log.open("wb") as output:
            started = subprocess.Popen(
                words,
                cwd=cwd,
                env={**ours, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        process = Process(started, log)
        try:
            yield process
        finally:
            process.end()


def told_by(bench: Bench, command: Sequence[str]) -> dict[str, float]:
    """Return what `python -m benchmarks.limits` prints."""
    with bench.process(["python", "-m", "benchmarks.limits", *command], name="limits") as process:
        assert process.process.wait(120) == 0, process.text()
        found: dict[str, float] = json.loads(process.text())
        return found


@contextmanager
def bench(*, postgres: bool = True) -> Iterator[Bench]:
    with (
        tempfile.TemporaryDirectory(prefix="mailasync-bench-", ignore_cleanup_errors=True) as name,
        ExitStack() as stack,
    ):
        directory = Path(name)
        directory.chmod(0o755)  # PostgreSQL refuses to run as root, and has to reach its own.
        broker = rabbitmq_node(directory / "rabbitmq")
        database = Postgres(directory / "postgres", fsync=True)
        broker.start()
        stack.callback(broker.stop)
        if postgres:
            database.start()
            stack.callback(database.stop)
        yield Bench(directory, broker, database, make_certificates(directory))


def node_project() -> Path:
    """The Node.js service with what it needs, installed beside the other servers.

    Raises:
      Unavailable: there is no Node.js.
    """
    if not (npm := shutil.which("npm")) or not shutil.which("node"):
        raise Unavailable("Node.js is not here: apt install nodejs npm, or brew install node")
    source, target = HERE / "contenders" / "node", cache_directory() / "bench-node"
    with locked(target.with_suffix(".lock")):
        wanted = (source / "package.json").read_text()
        if (
            not (target / "installed.json").exists()
            or (target / "installed.json").read_text() != wanted
        ):
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / "package.json", target)
            subprocess.run(
                [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"],
                cwd=target,
                check=True,
            )
            (target / "installed.json").write_text(wanted)
    for file in source.glob("*.js"):
        shutil.copy(file, target)
    return target
