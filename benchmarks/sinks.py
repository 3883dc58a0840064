"""Mail servers that keep nothing and count: Postfix's smtp-sink, which answers at once, and `benchmarks.sink`, which takes its time."""

import json
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.rig import Bench, tool
from tests.services import free_port, wait_until


@dataclass(frozen=True)
class Count:
    """Mails that came, and how long it was from the first to the last, in seconds."""

    mails: int
    seconds: float

    @property
    def per_second(self) -> float:
        return (self.mails - 1) / self.seconds


@dataclass(frozen=True)
class Sink:
    """A mail server that runs; `tls` says whether it wants TLS from the first byte, and a login."""

    port: int
    tls: bool
    count: Callable[[], Count]

    def environment(self, bench: Bench) -> Mapping[str, str]:
        """Return the variables by which contenders find it."""
        login = {
            "SMTP_USER": "alice@example.org",
            "SMTP_PASSWORD": "secret",
            "SMTP_CA": str(bench.certificates.ca_file),
        }
        return {"SMTP_PORT": str(self.port)} | (login if self.tls else {})


@dataclass
class _Counters:
    """The counts that smtp-sink gives of itself, as they come."""

    mails: int = 0
    first: float = 0.0
    last: float = 0.0
    rest: str = field(default="", repr=False)

    def read(self, stream: "subprocess.Popen[bytes]") -> None:
        assert stream.stdout
        while text := stream.stdout.read1().decode():  # type: ignore[attr-defined]  # of a BufferedReader
            found = re.findall(r"mesg=(\d+)\D", self.rest + text)
            self.rest = (self.rest + text)[-40:]
            if found and int(found[-1]) > self.mails:
                self.last = time.monotonic()
                self.first, self.mails = self.first or self.last, int(found[-1])

    def count(self) -> Count:
        return Count(self.mails, self.last - self.first)


@contextmanager
def immediate(bench: Bench) -> Iterator[Sink]:
    """Postfix's smtp-sink: no TLS, no login, no delay."""
    program, port, counters = (
        tool("smtp-sink", "postfix", libraries="usr/lib/postfix"),
        free_port(),
        _Counters(),
    )
    user = ["-u", "nobody"]  # It insists on that where it is root's, and ignores it elsewhere.
    process = subprocess.Popen(
        [program.program, "-c", *user, f"inet:127.0.0.1:{port}", "256"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=program.environment,
    )
    threading.Thread(target=counters.read, args=(process,), daemon=True).start()
    try:
        wait_until(lambda: _greets(port), 10, what="smtp-sink answers")
        yield Sink(port, False, counters.count)
    finally:
        process.kill()
        process.wait()


@contextmanager
def gmail_like(bench: Bench, *, delay_ms: float) -> Iterator[Sink]:
    """TLS, AUTH, and so long before each group of replies."""
    port, counts_port = free_port(), free_port()
    command = [
        "python",
        "-m",
        "benchmarks.sink",
        "--port",
        str(port),
        "--counts-port",
        str(counts_port),
        "--delay",
        str(delay_ms),
        "--certificate",
        str(bench.certificates.valid),
    ]
    with bench.process(command, name="sink") as process:
        process.serves(counts_port)
        yield Sink(port, True, partial(_asked, counts_port))


def _asked(port: int) -> Count:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
        told = json.loads(b"".join(iter(partial(link.recv, 4096), b"")))
    return Count(told["mails"], told["last"] - told["first"])


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
            return link.recv(3) == b"220"
    except OSError:
        return False
