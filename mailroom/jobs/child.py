"""The process a job runs in: reads one request a line, answers with progress lines and a last one. Ends with its parent."""

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from mailroom.jobs.registry import job_type


class _Told:
    """Progress as lines to the parent."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell

    def __call__(self, fraction: float, step: str = "") -> None:
        self._tell({"progress": float(fraction), "step": str(step)[:200]})

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)  # This process is killed when the job is no longer wanted.


def main(modules: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What a job prints goes to the worker's log, and not between our answers.
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(sys.stdin.fileno(), requests), daemon=True).start()
    for name in modules:
        import_module(name)

    def tell(line: dict[str, Any]) -> None:
        answers.write(json.dumps(line).encode() + b"\n")
        answers.flush()

    while True:
        tell(_run(json.loads(requests.get()), _Told(tell)))


def _run(request: dict[str, Any], progress: _Told) -> dict[str, Any]:
    try:
        kind = job_type(request["name"])
        result = kind.call(kind.check(request["args"]), progress)
        json.dumps(result)
        return {"result": result}
    except BaseException as e:  # sys.exit() in a job must not end the child in silence.
        return {"error": f"{type(e).__name__}: {e}"[:1000]}


def _listen(stdin: int, requests: "queue.SimpleQueue[bytes]") -> None:
    """Hand requests on; at the end of them the parent is gone, and so are we, with all that the job started."""
    with os.fdopen(os.dup(stdin), "rb") as lines:
        for line in lines:
            requests.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
