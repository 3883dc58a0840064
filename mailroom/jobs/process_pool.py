"""Keeps warm child processes for jobs: started, used again, killed when they must be, and replaced.

Pebble's ProcessPool has warm workers and timeouts too. But it kills a worker and not its process group, so
what a job started would live on; it catches nothing of what a job prints and carries no progress; and it
pickles what goes to and fro. Each of these would have to be built beside it.
"""

import base64
import threading
from collections.abc import Callable
from typing import Any

from mailroom.jobs.pooled_job import PooledJob
from mailroom.jobs.pooled_process import ChildError, NotBegun, PooledProcess
from mailroom.jobs.registry import File, Interrupted, Result

#: A child that ran this many jobs is replaced, so that what they leak goes with it.
JOBS_PER_CHILD = 100


class Children:
    """The child processes of one worker; each thread that runs a job borrows one."""

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules
        self._lock = threading.Lock()
        self._idle: list[PooledProcess] = []
        self._busy: dict[str, PooledJob] = {}  #: by the job's id
        self._closed = False

    def run(
        self,
        id: str,
        name: str,
        args: dict[str, Any],
        *,
        timeout_seconds: float,
        progress: Callable[[float, str], None],
    ) -> Result:
        """Run a job in a child and return its result; an error of `progress` ends the job, and is raised.

        Raises:
          ChildError: the job raised, its process ended, or its result is no JSON or too much.
          ChildTimeout: it was killed `timeout_seconds` after it began.
          Interrupted: it was interrupted, whatever it returned then.
        """
        job = PooledJob(id, {"id": id, "name": name, "args": args}, timeout_seconds, progress)
        with self._lock:
            self._busy[id] = job
        try:
            result = _result(self._reply(job))
        except ChildError as e:
            raise job.unwanted or (ChildError("its process ended") if self._closed else e) from None
        finally:
            with self._lock:
                self._busy.pop(id, None)
        if job.unwanted:
            raise job.unwanted
        return result

    def interrupt(self, id: str) -> None:
        """Tell a job that it is no longer wanted, and return; it is killed after INTERRUPT_SECONDS."""
        with self._lock:
            if job := self._busy.get(id):
                job.unwanted = job.unwanted or Interrupted()

    def close(self) -> None:
        """Kill all children, those that run a job too."""
        with self._lock:
            self._closed = True
            busy = [job.process for job in self._busy.values() if job.process]
            idle, self._idle = self._idle, []
        for process in busy:
            process.kill()
        for process in idle:
            process.end()

    def _reply(self, job: PooledJob) -> dict[str, Any]:
        """Return the job's last message; if a used child ends before the job begins, try another one."""
        while True:
            process = self._borrow(job)
            is_new = process.jobs == 0
            reply = None
            try:
                reply = job.run(process)
                return reply
            except NotBegun:
                if is_new or self._closed:
                    raise
            finally:
                self._take_back(process, is_well=reply is not None and not job.unwanted)

    def _borrow(self, job: PooledJob) -> PooledProcess:
        """Return an idle child that is alive, or a new one."""
        with self._lock:
            if self._closed:
                raise ChildError("its process ended")
            process = self._idle_process() or self._new_process()
            job.process = process
            return process

    def _idle_process(self) -> PooledProcess | None:
        while self._idle:
            process = self._idle.pop()
            if not process.has_ended():
                return process
            process.end()
        return None

    def _new_process(self) -> PooledProcess:
        try:
            return PooledProcess(self._modules)
        except OSError as e:
            raise ChildError(f"no process can be started: {e}") from None

    def _take_back(self, process: PooledProcess, *, is_well: bool) -> None:
        process.jobs += 1
        process.finish_job()
        with self._lock:
            if is_well and process.jobs < JOBS_PER_CHILD and not self._closed:
                self._idle.append(process)
                return
        process.end()


def _result(reply: dict[str, Any]) -> Result:
    if "error" in reply:
        raise ChildError(reply["error"])
    file = reply.get("file")
    if not file:
        return Result(value=reply["result"])
    content = base64.b64decode(file["content"])
    return Result(value=reply["result"], file=File(file["name"], content, file["content_type"]))
