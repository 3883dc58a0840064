"""Process groups: a server that forks is stopped, continued and ended with all its processes."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from tests.services import DEADLINE_SECONDS, is_alive, wait_until


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
