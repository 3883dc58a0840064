"""Real servers for the tests, private to a run or to a test; nothing here ships."""

import contextlib
import fcntl
import json
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

#: The end of any wait for what ought to come: far beyond what a busy machine needs, as no test judges by the clock.
DEADLINE_SECONDS = 60.0
#: The lease of workers that beat once in a test: none runs out by itself, however busy the machine is.
LEASE_SECONDS = 600.0
#: A run with six workers takes a fourth of that.
SCRATCH_MIN_BYTES = 4_000_000_000

T = TypeVar("T")


class Unavailable(Exception):
    """A server is not here and cannot be fetched; the message says what to install."""


class Server:
    """A server with a directory of its own, which keeps its ports and process ids.

    Whoever constructs it again with the same directory, in any process, finds the same server.
    """

    port_names: tuple[str, ...] = ()

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._state_file.exists():
            self._write_state({"ports": dict.fromkeys(self.port_names, 0), "pids": {}})

    @property
    def ports(self) -> dict[str, int]:
        return dict(self._state()["ports"])

    @property
    def pids(self) -> dict[str, int]:
        """The processes by name; `server` is the one that `kill` kills."""
        return dict(self._state()["pids"])

    def is_running(self) -> bool:
        return is_alive(self.pids.get("server", 0))

    def close(self) -> None:
        """End every process of it at once."""
        for name in self.pids:
            self._end(name, signal.SIGKILL)

    def log_tail(self, lines: int = 15) -> str:
        log = self.directory / "console.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])

    def _choose_ports(self) -> None:
        """Choose the ports, the first time; they stay the same over a restart."""
        if not all(self.ports.values()):
            state = self._state()
            self._write_state({**state, "ports": {name: free_port() for name in self.port_names}})

    def _record(self, name: str, pid: int) -> None:
        state = self._state()
        self._write_state({**state, "pids": {**state["pids"], name: pid}})

    def _end(self, name: str, which: signal.Signals) -> None:
        """End a process and forget its id, which may become another's."""
        end(self.pids.get(name, 0), which)
        state = self._state()
        state["pids"].pop(name, None)
        self._write_state(state)

    @property
    def _state_file(self) -> Path:
        return self.directory / "server.json"

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._state_file.read_text())
        return state

    def _write_state(self, state: dict[str, Any]) -> None:
        new = self._state_file.with_suffix(".new")
        new.write_text(json.dumps(state))
        new.replace(self._state_file)


def say(text: str) -> None:
    print(f"test servers: {text}", file=sys.stderr, flush=True)


def cache_directory() -> Path:
    """Return where fetched servers stay from run to run; TEST_SERVERS_CACHE names another place.

    Root's is not under /root: PostgreSQL runs as another user, who could not enter it.
    """
    ordinary = "~/.cache/mailasync" if os.geteuid() else "/var/cache/mailasync"
    return Path(os.environ.get("TEST_SERVERS_CACHE") or ordinary).expanduser().absolute()


def scratch() -> Path:
    """Return where what a run makes is kept: in memory, if there is room, as nothing of it has to outlive the machine.

    Settings of durability are those of the service all the same; a killed process loses nothing that it wrote to either.
    """
    memory = Path("/dev/shm")
    if (
        memory.is_dir()
        and os.access(memory, os.W_OK)
        and shutil.disk_usage(memory).free > SCRATCH_MIN_BYTES
    ):
        return memory
    return Path(tempfile.gettempdir())


#: By port: open for as long as this process lives, which keeps others away from it.
_ports: dict[int, TextIO] = {}


def free_port() -> int:
    """Return a loopback port nobody listens on, and that no other process of these tests gets.

    It is below the range from which systems take the ports of outgoing connections (32768 and up),
    so a client that calls a stopped server in a loop can never come to sit on the server's port.
    """
    directory = Path(tempfile.gettempdir()) / f"mailasync-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        if port in _ports:
            continue
        mark = (directory / str(port)).open("w")
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            mark.close()
            continue
        _ports[port] = mark
        return port


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(
    condition: Callable[[], T], timeout: float = DEADLINE_SECONDS, *, what: str = "it holds"
) -> T:
    """Poll `condition` until it returns something true, and return that.

    Raises:
      AssertionError: it did not within `timeout` seconds; the message says `what` was awaited.
    """
    deadline, pause = time.monotonic() + timeout, 0.001
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain until {what}")
        time.sleep(pause)
        pause = min(1.5 * pause, 0.1)  # Looks are work, too.
    return result


def let_pass(seconds: float) -> None:
    """Let a fault last for so long, where its length is what is tested."""
    time.sleep(seconds)


def spawn(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str],
    account: pwd.struct_passwd | None = None,
    cwd: Path = Path("/"),
) -> int:
    """Start `command` as a daemon of `account` that writes to `log`, and return its process id and group."""
    who: dict[str, Any] = {}
    if account:
        who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    with log.open("ab") as output:
        # A session of its own: an interrupt from the keyboard reaches the tests, not the server.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
            cwd=cwd,
            start_new_session=True,
            **who,
        )
    # It is ended by its id, perhaps by another process; Popen shall not warn that it still runs.
    process.returncode = 0
    return process.pid


def is_alive(pid: int) -> bool:
    if not pid:
        return False
    _collect(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False  # PermissionError: somebody else's process got the id.
    # In a container without an init process nobody collects the dead, and they keep their id.
    process = Path(f"/proc/{pid}")
    try:
        is_dead = (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        if not is_dead or len(list((process / "task").iterdir())) > 1:
            return True
        # It has ended since: else its id stays taken, and a server's lock file names it.
        _collect(pid)
        return False
    except (FileNotFoundError, ProcessLookupError):
        return not process.parent.joinpath("self").exists()


def _collect(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def send_signal(pid: int, which: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, which)


def freeze(pid: int) -> None:
    """SIGSTOP, and wait until every thread has stopped: a busy machine lets some run on for a moment."""
    send_signal(pid, signal.SIGSTOP)
    wait_until(lambda: set(_states(pid)) == {"T"}, what=f"process {pid} is stopped")


def _states(pid: int) -> list[str]:
    threads = Path(f"/proc/{pid}/task")
    if threads.exists():
        return [
            (thread / "stat").read_text().rpartition(")")[2].split()[0]
            for thread in threads.iterdir()
        ]
    told = subprocess.run(
        ["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    return [told.stdout.strip()[:1]]


def end(pid: int, which: signal.Signals, *, timeout: float = DEADLINE_SECONDS) -> None:
    """Send the signal and wait until the process is gone; one that was stopped is continued."""
    if not is_alive(pid):
        return
    send_signal(pid, which)
    send_signal(pid, signal.SIGCONT)
    wait_until(
        lambda: not is_alive(pid), timeout=timeout, what=f"process {pid} ended on {which.name}"
    )


@contextlib.contextmanager
def first_locked(places: Sequence[Path]) -> Iterator[Path]:
    """Hold the first of the places that nobody has, among all processes; waits until there is one."""
    handles = [place.with_suffix(".lock").open("w") for place in places]

    def lock_one() -> Path | None:
        for place, handle in zip(places, handles, strict=True):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return place
        return None

    with contextlib.ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield wait_until(lock_one, timeout=280, what=f"one of {len(places)} is free") or places[0]


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the lock that `file` stands for, among all processes."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
