"""Runs the jobs of one worker: in threads if they only wait, in child processes if they work."""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from mailroom.jobs import registry
from mailroom.jobs.job_attempt import JobAttempt, ProgressRecorder, short_text
from mailroom.jobs.pooled_job import ChildTimeout
from mailroom.jobs.process_pool import Children
from mailroom.jobs.registry import File, Interrupted, JobType, Result, job_type, result_of
from mailroom.jobs.slots import Slots
from mailroom.model.errors import MailroomError, StoreUnavailable
from mailroom.model.message import Attachment, file_name
from mailroom.model.retry import Schedule
from mailroom.process.supervisor import SupervisedThread
from mailroom.store.jobs.claims import JobClaim, JobClaims
from mailroom.store.jobs.jobs import JobEnd, JobState

log = logging.getLogger("mailasync.jobs")

#: When we stop, time for jobs that may not run twice to end by themselves.
STOP_SECONDS = 10.0
#: Time for a job in a thread to notice its timeout; then its end is recorded while its thread still runs.
NOTICE_SECONDS = 5.0
RECORD_WAIT_SECONDS = 0.5
#: Waits after attempt 1, 2, … if the request has none; the last one is repeated.
RETRY = "10s, 1m, 10m"
STOPPED = "ended, as its worker was stopped"


class Runner:
    """Runs at most `slots` jobs at a time, in threads of its own: mail's threads never wait for a job."""

    def __init__(
        self,
        claims: JobClaims,
        queues: Sequence[str],
        *,
        slots: int,
        processes: int,
        children: Children,
        on_queued: Callable[[str], None],
    ) -> None:
        """At most `processes` jobs run in child processes.

        `on_queued` is called with the id of each message that waited for a job and is queued now.
        """
        self._claims = claims
        #: Jobs are claimed by queue and whether they are isolated, in turn: the last one claimed goes to the
        #: end.
        self._kinds = [(queue, isolated) for queue in queues for isolated in (False, True)]
        self._slots = Slots(slots, queues)
        self._processes = Slots(
            processes, [queue for queue in queues if _names(queue, isolated=True)]
        )
        self._children = children
        self._on_queued = on_queued
        self._running: set[JobAttempt] = set()
        self._lock = threading.Lock()
        self._claim_lock = threading.Lock()
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._dispatcher = SupervisedThread("jobs", self._dispatch, self._stopping)

    def start(self) -> None:
        self._dispatcher.start()

    def wake(self) -> None:
        """Look for jobs soon; returns at once."""
        self._wanted.set()

    def watch(self) -> None:
        """End jobs that are canceled, taken over or late, and look for due ones; called each second."""
        with self._lock:
            running = list(self._running)
        taken_away = self._claims.taken_away()
        for attempt in running:
            ProgressRecorder(self._claims, attempt).flush()
            is_late = not attempt.isolated and attempt.overdue_seconds > 0
            if is_late or attempt.claim.id in taken_away:
                self._interrupt(attempt)
            if is_late and attempt.overdue_seconds > NOTICE_SECONDS:
                # Its thread is lost until the job returns.
                self._settle(attempt, _timed_out(attempt.claim))
        self.wake()

    def stop(self) -> None:
        """Begin no job any more; jobs in threads that may run again are released, the others may end."""
        self._stopping.set()
        self._wanted.set()
        with self._lock:
            for attempt in self._running:
                if not attempt.claim.is_last and not attempt.isolated:
                    attempt.interrupted.set()

    def close(self) -> None:
        """Wait for jobs as long as STOP_SECONDS allow, interrupt the rest, then kill them."""
        self.stop()
        self._dispatcher.join()
        self._wait_until_none_runs(STOP_SECONDS)
        for attempt in list(self._running):
            self._interrupt(attempt)
        self._wait_until_none_runs(NOTICE_SECONDS)
        self._children.close()
        self._wait_until_none_runs(NOTICE_SECONDS)
        for attempt in list(self._running):
            # Threads that notice nothing; they end with this process.
            if attempt.claim.is_last:
                self._settle(attempt, JobEnd(state=JobState.FAILED, error=STOPPED))
            else:
                self._release(attempt)

    def _wait_until_none_runs(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(0.02)

    def _dispatch(self) -> None:
        with self._lock:
            self._claims.keep_in_hand([attempt.claim.id for attempt in self._running])
        while not self._stopping.is_set():
            self._wanted.wait()
            self._wanted.clear()
            try:
                while not self._stopping.is_set() and self._begin_some():
                    pass
            except StoreUnavailable as e:
                log.error("%s", e)

    def _begin_some(self) -> int:
        """Claim as many jobs as there are slots for, and run them; return their number."""
        begun = 0
        for kind in list(self._kinds):
            queue, isolated = kind
            limit = self._free(queue, isolated)
            names = _names(queue, isolated=isolated)
            if not limit or not names:
                continue
            claims = self._claim(queue, names, limit)
            for claim in claims:
                self._begin(JobAttempt(claim, isolated))
            if claims:
                self._kinds.remove(kind)
                self._kinds.append(kind)
            begun += len(claims)
        return begun

    def _claim(self, queue: str, names: list[str], limit: int) -> list[JobClaim]:
        with self._claim_lock:
            if self._stopping.is_set():
                return []
            return self._claims.claim(queue, names, limit=limit)

    def _free(self, queue: str, isolated: bool) -> int:
        with self._lock:
            free = self._slots.free(queue)
            if not isolated:
                return free
            return min(free, self._processes.free(queue))

    def _begin(self, attempt: JobAttempt) -> None:
        with self._lock:
            self._running.add(attempt)
            self._slots.acquire(attempt.claim.queue)
            if attempt.isolated:
                self._processes.acquire(attempt.claim.queue)
        # No pool: Python waits for a pool's threads at exit, and some jobs never notice that they are to end.
        thread = threading.Thread(target=self._work, args=(attempt,), name="job", daemon=True)
        try:
            thread.start()
        except BaseException:  # RuntimeError, if the system allows no more threads.
            self._free_slot(attempt)
            raise

    def _work(self, attempt: JobAttempt) -> None:
        try:
            end = self._run(attempt)
            if end is None:
                self._release(attempt)
            else:
                self._settle(attempt, end)
        except Exception:
            log.exception("job %s could not be settled", attempt.claim.id)
        finally:
            self._free_slot(attempt)
            self.wake()

    def _free_slot(self, attempt: JobAttempt) -> None:
        with self._lock:
            if attempt in self._running:
                self._running.remove(attempt)
                self._slots.release(attempt.claim.queue)
                if attempt.isolated:
                    self._processes.release(attempt.claim.queue)

    def _run(self, attempt: JobAttempt) -> JobEnd | None:
        """Run a job; None if it is to be released: it was interrupted and may run again, or never began."""
        if self._stopping.is_set():
            return None
        end = self._end(attempt)
        if not self._stopping.is_set():
            return end
        if end is not None:
            has_succeeded = end.state is JobState.SUCCEEDED
            if has_succeeded or not attempt.interrupted.is_set():
                return end
        if not attempt.claim.is_last:
            return None
        return JobEnd(state=JobState.FAILED, error=STOPPED)

    def _end(self, attempt: JobAttempt) -> JobEnd | None:
        """Run a job and return how it ended; None if it was interrupted before its timeout."""
        try:
            kind = job_type(attempt.claim.name)
            result = self._call(kind, attempt)
            return _succeeded(result)
        except Interrupted:
            if not attempt.interrupted.is_set():
                error = "it raised Interrupted, and nobody had interrupted it"
                return JobEnd(state=JobState.FAILED, error=error)
            is_late = not attempt.isolated and attempt.overdue_seconds > 0
            if not is_late:
                return None
            return _timed_out(attempt.claim)
        except ChildTimeout as e:
            return JobEnd(state=JobState.TIMED_OUT, error=short_text(e))
        except MailroomError as e:
            return JobEnd(state=JobState.FAILED, error=short_text(e))
        except Exception as e:
            error = f"{type(e).__name__}: {e}"
            return JobEnd(state=JobState.FAILED, error=short_text(error))

    def _call(self, kind: JobType, attempt: JobAttempt) -> Result:
        claim = attempt.claim
        progress = ProgressRecorder(self._claims, attempt)
        if attempt.isolated:
            return self._children.run(
                claim.id,
                claim.name,
                claim.args,
                timeout_seconds=claim.timeout_seconds,
                progress=progress,
            )
        args = kind.check(claim.args)
        returned = kind.call(args, progress)
        return result_of(returned)

    def _interrupt(self, attempt: JobAttempt) -> None:
        attempt.interrupted.set()
        if attempt.isolated:
            self._children.interrupt(attempt.claim.id)

    def _settle(self, attempt: JobAttempt, end: JobEnd) -> None:
        """Record how a job ended, once, and queue the message that waited for it."""
        with self._lock:
            if attempt.settled:
                return
            attempt.settled = True
        claim = attempt.claim
        ProgressRecorder(self._claims, attempt).flush()
        if end.state is not JobState.SUCCEEDED and not claim.is_last:
            end = JobEnd(
                state=end.state,
                error=end.error,
                wait_seconds=_wait_seconds(claim),
            )
        released = self._until_committed(lambda: self._finish(claim, end))
        _log_end(attempt, end, is_recorded=released is not None)
        for id in released or ():
            self._on_queued(id)

    def _finish(self, claim: JobClaim, end: JobEnd) -> list[str] | None:
        try:
            return self._claims.finish(claim, end)
        except StoreUnavailable:
            raise
        except Exception:  # The job is over all the same, and must not stay "running".
            log.exception("the end of job %s cannot be kept as it is", claim.id)
            error = "its end could not be kept; the worker's log tells why"
            return self._claims.finish(claim, JobEnd(state=JobState.FAILED, error=error))

    def _release(self, attempt: JobAttempt) -> None:
        claim = attempt.claim
        with self._claim_lock:
            pass  # A claim that began before we were stopped would take this job again, as a new attempt.
        if self._until_committed(lambda: self._claims.release(claim)):
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


def _names(queue: str, *, isolated: bool) -> list[str]:
    return [
        kind.name
        for kind in registry.job_types()
        if kind.queue == queue and kind.isolated is isolated
    ]


def _succeeded(result: Result) -> JobEnd:
    attachment = _attachment(result.file) if result.file else None
    return JobEnd(
        state=JobState.SUCCEEDED,
        result=json.dumps(result.value),
        file=attachment,
    )


def _attachment(file: File) -> Attachment:
    return Attachment(file_name(file.name), short_text(file.content_type), file.content)


def _timed_out(claim: JobClaim) -> JobEnd:
    return JobEnd(state=JobState.TIMED_OUT, error=f"ended after {claim.timeout_seconds:g} s")


def _wait_seconds(claim: JobClaim) -> float:
    schedule = Schedule.parse(claim.retry or RETRY)
    last = len(schedule.waits)
    return schedule.wait_seconds(min(claim.counted, last)) or 0.0


def _log_end(attempt: JobAttempt, end: JobEnd, *, is_recorded: bool) -> None:
    claim = attempt.claim
    seconds = time.monotonic() - attempt.started_at
    result = str(end.state)
    if not is_recorded:
        result += ", as is on record already, or it was canceled or given to others,"
    log.info(
        "job %s (%s) attempt %d: %s in %.2fs", claim.id, claim.name, claim.attempt, result, seconds
    )
