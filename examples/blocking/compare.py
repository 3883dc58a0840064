"""Print how long a client waits, side by side, while the example runs.

.venv/bin/python -m examples.blocking.compare
.venv/bin/python -m examples.blocking.compare 5 http://127.0.0.1:5000       seconds of work, and where the example is
"""

import sys
import time

import requests


def compare(seconds: float, base_url: str) -> str:
    """Have the work done both ways, one after the other; return a table."""
    wanted = {"seconds": str(seconds)}
    started = time.monotonic()
    requests.get(f"{base_url}/blocking", wanted, timeout=seconds + 30).raise_for_status()
    blocking = time.monotonic() - started

    started = time.monotonic()
    answer = requests.post(f"{base_url}/background", params=wanted, timeout=10)
    answer.raise_for_status()
    at_once = time.monotonic() - started
    status = done(f"{base_url}/v1/jobs/{answer.json()['task_id']}", deadline=started + seconds + 30)
    background = time.monotonic() - started

    return "\n".join(
        [
            f"{seconds:g} s of work      blocking   background",
            f"answer after   {blocking:8.2f} s   {at_once:8.2f} s",
            f"work ended     {blocking:8.2f} s   {background:8.2f} s   {status}",
        ]
    )


def done(url: str, *, deadline: float) -> str:
    """Wait until the job has ended; each request is answered when it has, or after ten seconds."""
    while True:
        answer = requests.get(url, headers={"Prefer": "wait=10"}, timeout=20)
        answer.raise_for_status()
        status: str = answer.json()["status"]
        if status not in ("queued", "running"):
            return status
        if time.monotonic() > deadline:
            sys.exit(f"the job is still {status}; is the worker running?")


if __name__ == "__main__":
    print(
        compare(
            float(sys.argv[1]) if len(sys.argv) > 1 else 2.0,
            sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:5000",
        )
    )
