"""The work: a plain function, which a view may call and a worker may run."""

import time

from mailroom.jobs.registry import job

SECONDS_MAX = 30.0


@job("work", timeout_seconds=2 * SECONDS_MAX)
def work(seconds: float) -> str:
    """Stand in for work that takes so many seconds."""
    time.sleep(seconds)
    return f"worked for {seconds:g} s"
