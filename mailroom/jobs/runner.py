"""Runs the jobs of one worker: in threads where they only wait, in child processes where they work."""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mailroom.jobs.children import Children, ChildTimeout
from mailroom.jobs.registry import Interrupted, JobType, job_type
from mailroom.mail.errors import MailroomError, StoreUnavailable
from mailroom.store.jobs import JobClaim, JobEnd, Jobs, JobState

log = logging.getLogger("mailasync.jobs")

#: How long stopping waits for jobs that run in child processes, before it kills them.
STOP_SECONDS = 10.0
RECORD_WAIT_SECONDS = 0.5
#: What is kept of an error or a step.
WORDS_MAX_CHARACTERS = 1000


class Runner:
    """At most `slots` jobs at a time, in threads of its own: mail's threads never wait for a job."""

    def __init__(self, jobs: Jobs, queues: Sequence[str], *, slots: int, children: Children, queued: Callable[[str], None]) -> None:
        """`queued` is told the id of each message that a job let go."""
        self._jobs = jobs
        self._queues = list(queues)
        self._slots = slots
        self._children = children
        self._queued = queued
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="job")
        self._running = 0
        self._turn = threading.Lock()
        self._stopping = threading.Event()

    def wake(self) -> None:
        """Look for a job, in a free slot if there is one; returns at once. A busy slot looks by itself when it is free."""
        with self._turn:
            if not self._queues or self._stopping.is_set() or self._running >= self._slots:
                return
            self._running += 1
        self._threads.submit(self._work)

    def stop(self) -> None:
        """Begin no job any more; those that wait give themselves back, the others get a moment to end."""
        self._stopping.set()

    def close(self) -> None:
        self.stop()
        deadline = time.monotonic() + STOP_SECONDS
        while self._running and time.monotonic() < deadline:
            time.sleep(0.02)
        self._children.close()
        self._threads.shutdown(cancel_futures=True)

    def _work(self) -> None:
        try:
            while not self._stopping.is_set() and (claim := self._jobs.claim(self._queues)):
                self.wake()  # One nudge may stand for many jobs; who finds one sends the next slot to look for another.
                self._run(claim)
        except StoreUnavailable as e:
            log.error("%s", e)
        except Exception:
            log.exception("a job slot failed")
        finally:
            with self._turn:
                self._running -= 1

    def _run(self, claim: JobClaim) -> None:
        started = time.monotonic()
        end = self._end(claim)
        broken_off = end is not None and end.state is not JobState.SUCCEEDED and self._stopping.is_set()
        if end is None or (broken_off and claim.attempt < claim.max_attempts):
            return self._give_back(claim)
        released = self._until_committed(lambda: self._jobs.finish(claim, end))
        log.info("job %s (%s): %s in %.2fs", claim.id, claim.name, end.state, time.monotonic() - started)
        for id in released or ():
            self._queued(id)

    def _end(self, claim: JobClaim) -> JobEnd | None:
        """Run it; None if it was interrupted and did nothing that counts."""
        try:
            result = self._call(job_type(claim.name), claim)
            return JobEnd(state=JobState.SUCCEEDED, result=json.dumps(result))
        except Interrupted:
            return None
        except ChildTimeout as e:
            return JobEnd(state=JobState.TIMED_OUT, error=_one_line(str(e)))
        except MailroomError as e:
            return JobEnd(state=JobState.FAILED, error=_one_line(str(e)))
        except Exception as e:
            return JobEnd(state=JobState.FAILED, error=_one_line(f"{type(e).__name__}: {e}"))

    def _call(self, kind: JobType, claim: JobClaim) -> Any:
        progress = _Reported(self._jobs, claim, None if kind.isolated else self._stopping)
        if kind.isolated:
            return self._children.run(claim.name, claim.args, timeout_seconds=claim.timeout_seconds, progress=progress)
        return kind.call(kind.check(claim.args), progress)

    def _give_back(self, claim: JobClaim) -> None:
        if self._until_committed(lambda: self._jobs.release(claim)):
            log.info("job %s (%s): given back, as this worker stops", claim.id, claim.name)

    def _until_committed(self, write: Callable[[], Any]) -> Any:
        """Write until it is committed; when we stop, the lease will settle what cannot be written."""
        while True:
            try:
                return write()
            except StoreUnavailable as e:
                log.error("the end of a job waits for the database: %s", e)
                if self._stopping.wait(RECORD_WAIT_SECONDS):
                    return None


class _Reported:
    """Progress as rows; raises Interrupted where the job is no longer ours, or where it can be given back as we stop."""

    def __init__(self, jobs: Jobs, claim: JobClaim, stopping: threading.Event | None) -> None:
        self._jobs = jobs
        self._claim = claim
        self._stopping = stopping or threading.Event()

    def __call__(self, fraction: float, step: str = "") -> None:
        if self._stopping.is_set():
            raise Interrupted
        try:
            ours = self._jobs.progress(self._claim, fraction, _one_line(step))
        except StoreUnavailable:
            return  # Progress is a courtesy; the next report may get through.
        if not ours:
            raise Interrupted

    def wait(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise Interrupted


def _one_line(text: str) -> str:
    """A job's words, fit for every database: no NUL, no half of a surrogate pair."""
    return " ".join(text.encode("utf-8", "replace").decode().replace("\0", " ").split())[:WORDS_MAX_CHARACTERS]
