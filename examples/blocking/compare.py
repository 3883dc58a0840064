"""Print how long a client waits, side by side, while the example runs.

.venv/bin/python -m examples.blocking.compare
.venv/bin/python -m examples.blocking.compare 5 http://127.0.0.1:5000    seconds of work, URL of the example
"""

import sys
import time

import requests


def compare(seconds: float, base_url: str) -> str:
    """Run the work both ways, one after the other; return a table of the times."""
    params = {"seconds": str(seconds)}
    started = time.monotonic()
    requests.get(f"{base_url}/blocking", params, timeout=seconds + 30).raise_for_status()
    blocking = time.monotonic() - started

    started = time.monotonic()
    response = requests.post(f"{base_url}/background", params=params, timeout=10)
    response.raise_for_status()
    answered = time.monotonic() - started
    job_url = f"{base_url}/v1/jobs/{response.json()['task_id']}"
    status = wait_for_job(job_url, deadline=started + seconds + 30)
    background = time.monotonic() - started

    return (
        f"{seconds:g} s of work      blocking   background\n"
        f"answer after   {blocking:8.2f} s   {answered:8.2f} s\n"
        f"work ended     {blocking:8.2f} s   {background:8.2f} s   {status}"
    )


def wait_for_job(url: str, *, deadline: float) -> str:
    """Wait for the end of a job, and return its status; each request waits up to ten seconds."""
    while True:
        response = requests.get(url, headers={"Prefer": "wait=10"}, timeout=20)
        response.raise_for_status()
        status: str = response.json()["status"]
        if status not in ("queued", "running"):
            return status
        if time.monotonic() > deadline:
            sys.exit(f"the job is still {status}; is the worker running?")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    work_seconds = float(arguments[0]) if arguments else 2.0
    service_url = arguments[1] if len(arguments) > 1 else "http://127.0.0.1:5000"
    print(compare(work_seconds, service_url))
