"""The work: a plain function, which a view can call and a worker can run."""

import time

from mailroom.jobs.registry import job

SECONDS_MAX = 30.0


@job("work", timeout_seconds=2 * SECONDS_MAX)
def work(seconds: float) -> str:
    """Stand in for work that takes this long."""
    time.sleep(seconds)
    return f"worked for {seconds:g} s"
