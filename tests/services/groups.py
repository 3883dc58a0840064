"""Servers that fork: each is a process group, and is stopped, continued and ended with all its processes."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Self

from tests.services import DEADLINE_SECONDS, Server, is_alive, wait_until


class GroupServer(Server):
    """A server whose processes are one group; what it keeps is in `home`, and ends with `close`."""

    host = "127.0.0.1"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def home(self) -> Path:
        return Path(self._state()["home"])

    def start(self) -> None:
        """Start, and return when clients are served."""
        name = type(self).__name__
        self._choose_ports()
        if "home" not in self._state():
            self._make_home()
        self._configure()
        self._launch()
        try:
            wait_until(self._serves_or_died, what=f"{name} served clients")
            assert self.is_running(), f"{name} ended while it started"
        except AssertionError as e:
            e.add_note(self.log_tail())
            self._end("server", signal.SIGKILL)
            raise

    def stop(self) -> None:
        """Stop as an operator would; clients are disconnected, and connections refused from now on."""
        self._end("server", signal.SIGTERM)

    def kill(self) -> None:
        self._end("server", signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay open, new ones are taken by the system, and nobody answers."""
        freeze_group(self.pids["server"])

    def resume(self) -> None:
        thaw_group(self.pids["server"])

    def close(self) -> None:
        """End it at once, and delete what it keeps."""
        super().close()
        state = self._state()
        if home := state.pop("home", None):
            shutil.rmtree(home, ignore_errors=True)
            self._write_state(state)

    def _make_home(self) -> None:
        """Make `home`, and note it."""
        raise NotImplementedError

    def _configure(self) -> None:
        raise NotImplementedError

    def _launch(self) -> None:
        raise NotImplementedError

    def _serves_or_died(self) -> bool:
        raise NotImplementedError

    def _end(self, name: str, which: signal.Signals) -> None:
        group = self.pids.get(name, 0)
        if is_alive(group):
            end_group(group, which)
        super()._end(name, which)


def members(group: int) -> dict[int, str]:
    """Return the processes of a group that have not ended, each with the letter of its state."""
    found = {}
    for pid, state, its_group in _processes():
        if its_group == group and state not in ("Z", "X"):
            found[pid] = state
    return found


def freeze_group(group: int) -> None:
    """SIGSTOP, and wait until each process has stopped, also one that was forked meanwhile."""

    def is_frozen() -> bool:
        _signal(group, signal.SIGSTOP)
        return set(members(group).values()) == {"T"}

    wait_until(is_frozen, what=f"process group {group} is stopped")


def thaw_group(group: int) -> None:
    _signal(group, signal.SIGCONT)


def end_group(group: int, which: signal.Signals) -> None:
    """Send `which` to all, and wait until the leader is gone; what is left then is killed."""
    if is_alive(group):
        _signal(group, which)
        thaw_group(group)
        wait_until(lambda: not is_alive(group), what=f"process {group} ended on {which.name}")

    def is_empty() -> bool:
        _signal(group, signal.SIGKILL)
        return not members(group)

    wait_until(is_empty, DEADLINE_SECONDS, what=f"process group {group} ended")


def _signal(group: int, which: signal.Signals) -> None:
    # PermissionError: on a Mac, where all that are left have ended and were not collected.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, which)


def _processes() -> list[tuple[int, str, int]]:
    """Return id, state and group of all processes."""
    if not Path("/proc/self/stat").exists():
        command = ["ps", "-A", "-o", "pid=,state=,pgid="]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows = [line.split() for line in lines.splitlines()]
        return [(int(pid), state[:1], int(group)) for pid, state, group in rows]
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            after_name = (directory / "stat").read_text().rpartition(")")[2].split()
            found.append((int(directory.name), after_name[0], int(after_name[2])))
    return found
