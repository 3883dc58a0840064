"""Job types that the tests of running jobs need; loaded by JOBS=tests.jobs_for_tests."""

import os
import sys
import time

from mailroom.jobs.registry import Progress, job


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
