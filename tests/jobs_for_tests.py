"""Job types that the tests of running jobs need; loaded by JOBS=tests.jobs_for_tests."""

import ctypes
import linecache
import os
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

from mailroom.jobs.registry import File, Interrupted, Progress, job


@job("add")
def add(a: int, b: int = 1) -> int:
    return a + b


@job("whoami")
def whoami() -> int:
    return os.getpid()


@job("steps")
def steps(progress: Progress) -> str:
    for n in range(3):
        progress(n / 3, f"step {n}")
    print("what a job prints is no answer", flush=True)
    return "done"


@job("file names")
def file_names() -> dict[str, Any]:
    """What a directory holds whose names are in Latin-1."""
    name = os.fsdecode(b"caf\xe9")
    return {name: [name, "whole \U0001f600", "in halves \ud83d\ude00"]}


@job("file names in a thread", isolated=False)
def file_names_in_a_thread() -> dict[str, Any]:
    return file_names()


@job("raise")
def raises() -> None:
    raise ValueError("no such file")


@job("exit")
def exits() -> None:
    sys.exit("tired")


@job("die")
def dies() -> None:
    os._exit(9)


@job("sleep", timeout_seconds=0.5)
def sleeps() -> None:
    time.sleep(60)


@job("huge")
def huge() -> str:
    return "x" * 2_000_000


@job("unserializable")
def unserializable() -> object:
    return object()


@job("fork")
def forks() -> None:
    """Leave a child of its own behind."""
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    time.sleep(60)


@job("patient", isolated=False)
def patient(seconds: float, progress: Progress) -> None:
    progress.wait(seconds)


@job("odd words", isolated=False)
def odd_words(kind: str) -> None:
    raise ValueError("bad\0byte" if kind == "nul" else "bad \ud800")


@job("odd result", isolated=False)
def odd_result() -> object:
    return object()


@job("end thread", isolated=False)
def end_thread(name: str) -> None:
    """End a thread of the worker's process, as soon as it runs Python again."""
    [thread] = [thread for thread in threading.enumerate() if thread.name == name]
    number, error = ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit)
    while not _can_be_cut_short(sys._current_frames()[thread.ident or 0]):
        time.sleep(0)  # Lets that thread run on, and waits for nothing.
    ctypes.pythonapi.PyThreadState_SetAsyncExc(number, error)


def _can_be_cut_short(frame: FrameType | None) -> bool:
    """Tell whether an error thrown in here does what one from within could do as well.

    Python's library would keep a lock for ever if cut short between taking it and the `try`, and amqp would wait
    for ever for the rest of a frame of which it has read a part.
    """
    if frame and frame.f_code is threading.Condition.wait.__code__:
        return "waiter.acquire(" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    if frame and frame.f_globals["__name__"] in ("logging", "queue", "threading"):
        return False
    while frame:
        if frame.f_globals["__name__"].startswith("amqp."):
            return False
        frame = frame.f_back
    return True


@job("nap")
def nap(seconds: float, mark: str = "") -> None:
    """Sleep, after making the file `mark`: from there on, a worker that stops does not give the job back."""
    if mark:
        Path(mark).touch()
    time.sleep(seconds)


# --- for tests/unit/jobs/test_child_process.py; a `mark` is a file that says that the job came to this point -------------------------


@job("end")
def end(how: str) -> object:
    """Do the worst."""
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "recursion":
            return end(how)
        case "nested":
            nested: list[Any] = []
            for _ in range(100_000):
                nested = [nested]
            return nested
        case "100 MB":
            return "x" * 100_000_000
        case "NaN":
            return float("nan")
        case "no type":
            return File("a", b"b", None)  # type: ignore[arg-type]  # as an untyped job might
        case "long name":
            return File("x" * 20_000_000, b"")
        case "close all":
            os.closerange(0, 1000)
        case "mute":
            os.closerange(100, 110)
            time.sleep(60)
        case "leave a copy and die":
            if os.fork() == 0:
                time.sleep(60)
            os._exit(9)
        case "broken words":
            raise type("Odd", (Exception,), {"__str__": lambda self: 1})
        case _:
            raise {"keyboard": KeyboardInterrupt, "generator": GeneratorExit}[how]
    return None


@job("close streams")
def close_streams() -> None:
    sys.stdout.close()
    for fd in range(3):
        os.close(fd)
    os.chdir("/")


@job("streams")
def streams() -> list[str]:
    print("here again")
    return [sys.stdin.read(), os.getcwd()]


@job("print")
def prints(lines: list[str], megabytes: int = 0) -> str:
    for line in lines:
        print(line)
    print("to stderr", file=sys.stderr)
    subprocess.run(["sh", "-c", "printf 'by a child of its own: \\377'"], check=True)
    if megabytes:
        subprocess.run(
            ["dd", "if=/dev/zero", "bs=1000000", f"count={megabytes}", "status=none"], check=True
        )
    return "printed"


@job("print later")
def print_later(go: str) -> None:
    """Leave a process behind, which prints when there is a file `go`, and makes another one when it has."""
    subprocess.Popen(
        ["sh", "-c", f"while [ ! -e {go} ]; do sleep 0.02; done; echo later; touch {go}.done"]
    )


@job("made")
def made(size: int) -> File:
    return File("bytes.bin", bytes(range(256)) * (size // 256), "application/x-bytes")


@job("cleans up")
def cleans_up(mark: str, progress: Progress, waits: bool = True) -> str:
    Path(mark).touch()
    try:
        while True:
            progress.wait(60) if waits else progress(0.5, "on and on")
    except Interrupted:
        Path(mark).write_text("cleaned up")
        return "as if nothing had been"


@job("deaf")
def deaf(mark: str, progress: Progress) -> None:
    progress(0.1, "begun")
    Path(mark).touch()
    time.sleep(60)


@job("meet")
def meet(directory: str, n: int, progress: Progress) -> int:
    """Return when `n` of these are here at the same time."""
    Path(directory, str(os.getpid())).touch()
    while len(os.listdir(directory)) < n:
        progress.wait(0.02)
    return os.getpid()


@job("count and die")
def count_and_die(mark: str) -> None:
    with open(mark, "a") as file:
        file.write("x")
    os._exit(9)


@job("copy")
def copies(progress: Progress) -> list[Any]:
    """Fork twice: one copy returns, the other exits as a program does."""
    statuses = []
    for code in (0, 3):
        pid = os.fork()
        if pid == 0:
            progress(0.9, "I am a copy")
            progress.wait(0)
            if code:
                sys.exit(code)
            return ["I am a copy"]
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return statuses


@job("forge")
def forge() -> str:
    """Answer in the name of another job, as a line that is still on its way would."""
    for fd in range(100, 104):
        try:
            os.write(fd, b'{"id": "another", "result": "stale"}\n')
        except OSError:
            continue
    return "own"


@job("leave a thread")
def leave_a_thread(mark: str, progress: Progress) -> None:
    def report() -> None:
        try:
            while True:
                progress(0.5, "from the past")
        except Interrupted:
            Path(mark).touch()

    threading.Thread(target=report).start()


@job("fractions")
def fractions(progress: Progress) -> None:
    for fraction in (0.25, float("nan"), float("inf"), -float("inf")):
        progress(fraction, "x" * 1000)
    progress(None)  # type: ignore[arg-type]  # as an untyped job might


@job("place")
def place() -> dict[str, Any]:
    """Say what the process has and is."""
    group = Path("/proc/self/autogroup")
    return {
        "nice": os.nice(0),
        "autogroup": group.read_text() if group.exists() else "nice 5",
        "flask": "flask" in sys.modules,
    }


@job("application", app_context=True)
def application(progress: Progress) -> list[Any]:
    progress(0.5, "within")
    app = import_module("flask").current_app
    return [app.name, id(app._get_current_object())]


@job("size")
def size(image: bytes) -> int:
    return len(image)


@job("burn")
def burn(seconds: float) -> None:
    """Keep a CPU busy."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


@job("in flask", app_context=True)
def in_flask() -> str:
    # Not imported here: most children need no Flask.
    name: str = sys.modules["flask"].current_app.name
    return name
