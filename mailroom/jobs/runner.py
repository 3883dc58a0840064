"""Runs the jobs of one worker: in threads where they only wait, in child processes where they work."""

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mailroom.jobs import registry
from mailroom.jobs.process_pool import Children, ChildTimeout
from mailroom.jobs.registry import Interrupted, JobType, Result, job_type, result_of
from mailroom.jobs.slots import Slots
from mailroom.model.errors import MailroomError, StoreUnavailable
from mailroom.model.message import Attachment, file_name
from mailroom.model.retry import Schedule
from mailroom.model.text import one_line
from mailroom.process.supervisor import SupervisedThread
from mailroom.store.jobs.claims import JobClaim, JobClaims
from mailroom.store.jobs.jobs import JobEnd, JobState

log = logging.getLogger("mailasync.jobs")

#: How long stopping waits for jobs that may not run twice, before it ends them.
STOP_SECONDS = 10.0
#: How long after its timeout a job in a thread may take to notice; then it ends without it.
NOTICE_SECONDS = 5.0
RECORD_WAIT_SECONDS = 0.5
#: When to try again after attempt 1, 2, … where nobody said; the last is repeated.
RETRY = "10s, 1m, 10m"
#: Progress that comes sooner after the last is written by `watch`, so that a tight loop does not wear out the database.
PROGRESS_SECONDS = 0.2
#: What is kept of an error or a step.
WORDS_MAX_CHARACTERS = 1000
STOPPED = "ended, as its worker was stopped"


@dataclass(eq=False)
class JobAttempt:
    """An attempt, while it lasts."""

    claim: JobClaim
    isolated: bool
    started: float = field(default_factory=time.monotonic)
    interrupted: threading.Event = field(
        default_factory=threading.Event
    )  #: it is to end: canceled, timed out, or we are stopping
    settled: bool = False  #: its end is on record, or somebody else's matter
    told_at: float = 0.0  #: when its progress was written last
    untold: tuple[float, str] | None = None  #: progress that came too soon after that

    @property
    def overdue_seconds(self) -> float:
        return time.monotonic() - self.started - self.claim.timeout_seconds


class Runner:
    """At most `slots` jobs at a time, in threads of its own: mail's threads never wait for a job."""

    def __init__(
        self,
        runs: JobClaims,
        queues: Sequence[str],
        *,
        slots: int,
        processes: int,
        children: Children,
        queued: Callable[[str], None],
    ) -> None:
        """`processes`: how many of the jobs may be in child processes; `queued` is told the id of each message that a job let go."""
        self._runs = runs
        #: Jobs that are claimed together, by queue and whether they are isolated; who had a turn goes to the end.
        self._turns = [(queue, isolated) for queue in queues for isolated in (False, True)]
        self._slots = Slots(slots, queues)
        self._processes = Slots(processes, [queue for queue in queues if _names(queue, isolated=True)])
        self._children = children
        self._queued = queued
        self._running: set[JobAttempt] = set()
        self._turn = threading.Lock()
        self._wanted = threading.Event()
        self._stopping = threading.Event()
        self._dispatcher = SupervisedThread("jobs", self._dispatch, self._stopping)

    def start(self) -> None:
        self._dispatcher.start()

    def wake(self) -> None:
        """Look for jobs soon; returns at once."""
        self._wanted.set()

    def watch(self) -> None:
        """End what is no longer wanted here: called about once a second. Looks for due jobs as well."""
        with self._turn:
            running = list(self._running)
        taken_away = self._runs.taken_away()
        for run in running:
            if untold := run.untold:
                _Reported(self._runs, run).write(*untold)
            if run.claim.id in taken_away or (not run.isolated and run.overdue_seconds > 0):
                self._interrupt(run)
            if not run.isolated and run.overdue_seconds > NOTICE_SECONDS:
                self._settle(run, _timed_out(run.claim))  # Its thread is lost until it returns by itself.
        self.wake()

    def stop(self) -> None:
        """Begin no job any more; those that may run again give themselves back, the others get a moment to end."""
        self._stopping.set()
        self._wanted.set()
        with self._turn:
            for run in self._running:
                if not run.claim.is_last and not run.isolated:
                    run.interrupted.set()

    def close(self) -> None:
        self.stop()
        self._dispatcher.join()
        self._wait_until_none_runs(STOP_SECONDS)
        for run in list(self._running):
            self._interrupt(run)
        self._wait_until_none_runs(NOTICE_SECONDS)
        self._children.close()
        self._wait_until_none_runs(NOTICE_SECONDS)
        for run in list(self._running):  # They look at nothing, and end with this process.
            if run.claim.is_last:
                self._settle(run, JobEnd(state=JobState.FAILED, error=STOPPED))
            else:
                self._give_back(run)

    def _wait_until_none_runs(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            time.sleep(0.02)

    def _dispatch(self) -> None:
        with self._turn:
            self._runs.keep_in_hand([run.claim.id for run in self._running])
        while not self._stopping.is_set():
            self._wanted.wait()
            self._wanted.clear()
            try:
                while not self._stopping.is_set() and self._begin_some():
                    pass
            except StoreUnavailable as e:
                log.error("%s", e)

    def _begin_some(self) -> int:
        """Claim what there is room for, and run it; return how many those were."""
        begun = 0
        for turn in list(self._turns):
            queue, isolated = turn
            with self._turn:
                limit = (
                    min(self._slots.free(queue), self._processes.free(queue))
                    if isolated
                    else self._slots.free(queue)
                )
            names = _names(queue, isolated=isolated)
            claims = self._runs.claim(queue, names, limit=limit) if limit and names else []
            for claim in claims:
                self._begin(JobAttempt(claim, isolated))
            if claims:
                self._turns.remove(turn)
                self._turns.append(turn)
            begun += len(claims)
        return begun

    def _begin(self, run: JobAttempt) -> None:
        with self._turn:
            self._running.add(run)
            self._slots.take(run.claim.queue)
            if run.isolated:
                self._processes.take(run.claim.queue)
        # No pool: Python would wait for its threads at the end of the process, and some jobs look at nothing.
        thread = threading.Thread(target=self._work, args=(run,), name="job", daemon=True)
        try:
            thread.start()
        except BaseException:  # Such as RuntimeError, where there are as many threads as there may be.
            self._leave(run)
            raise

    def _work(self, run: JobAttempt) -> None:
        try:
            end = self._end(run)
            if end is None:
                self._give_back(run)
            else:
                self._settle(run, end)
        except Exception:
            log.exception("job %s could not be settled", run.claim.id)
        finally:
            self._leave(run)
            self.wake()

    def _leave(self, run: JobAttempt) -> None:
        with self._turn:
            if run in self._running:
                self._running.remove(run)
                self._slots.give_back(run.claim.queue)
                if run.isolated:
                    self._processes.give_back(run.claim.queue)

    def _end(self, run: JobAttempt) -> JobEnd | None:
        """Run it; None if it was broken off and may run again, or has not begun before we stop."""
        claim = run.claim
        if self._stopping.is_set():
            return None
        try:
            result = self._call(job_type(claim.name), run)
            made = result.file
            return JobEnd(
                state=JobState.SUCCEEDED,
                result=json.dumps(result.value),
                file=Attachment(file_name(made.name), _words(made.content_type), made.content)
                if made
                else None,
            )
        except Interrupted:
            end = None
            if not run.interrupted.is_set():
                end = JobEnd(
                    state=JobState.FAILED, error="it raised Interrupted, and nobody had interrupted it"
                )
            elif not run.isolated and run.overdue_seconds > 0:
                end = _timed_out(claim)
        except ChildTimeout as e:
            end = JobEnd(state=JobState.TIMED_OUT, error=_words(e))
        except MailroomError as e:
            end = JobEnd(state=JobState.FAILED, error=_words(e))
        except Exception as e:
            end = JobEnd(state=JobState.FAILED, error=_words(f"{type(e).__name__}: {e}"))
        if self._stopping.is_set() and (
            end is None or (run.interrupted.is_set() and end.state is not JobState.SUCCEEDED)
        ):
            end = JobEnd(state=JobState.FAILED, error=STOPPED) if claim.is_last else None
        return end

    def _call(self, kind: JobType, run: JobAttempt) -> Result:
        progress = _Reported(self._runs, run)
        if run.isolated:
            return self._children.run(
                run.claim.id,
                run.claim.name,
                run.claim.args,
                timeout_seconds=run.claim.timeout_seconds,
                progress=progress,
            )
        return result_of(kind.call(kind.check(run.claim.args), progress))

    def _interrupt(self, run: JobAttempt) -> None:
        run.interrupted.set()
        if run.isolated:
            self._children.interrupt(run.claim.id)

    def _settle(self, run: JobAttempt, end: JobEnd) -> None:
        with self._turn:
            if run.settled:
                return
            run.settled = True
        claim = run.claim
        if untold := run.untold:
            _Reported(self._runs, run).write(*untold)
        if end.state is not JobState.SUCCEEDED and not claim.is_last:
            end = JobEnd(state=end.state, error=end.error, wait_seconds=_wait_seconds(claim))
        released = self._until_committed(lambda: self._finish(claim, end))
        how = (
            end.state
            if released is not None
            else f"{end.state}, as is on record already, or it was canceled or given to others,"
        )
        log.info(
            "job %s (%s) attempt %d: %s in %.2fs",
            claim.id,
            claim.name,
            claim.attempt,
            how,
            time.monotonic() - run.started,
        )
        for id in released or ():
            self._queued(id)

    def _finish(self, claim: JobClaim, end: JobEnd) -> list[str] | None:
        try:
            return self._runs.finish(claim, end)
        except StoreUnavailable:
            raise
        except Exception:  # The job is over all the same, and must not be left as running.
            log.exception("the end of job %s cannot be kept as it is", claim.id)
            return self._runs.finish(
                claim,
                JobEnd(state=JobState.FAILED, error="its end could not be kept; the worker's log tells why"),
            )

    def _give_back(self, run: JobAttempt) -> None:
        if self._until_committed(lambda: self._runs.release(run.claim)):
            log.info("job %s (%s): given back, as this worker stops", run.claim.id, run.claim.name)

    def _until_committed(self, write: Callable[[], Any]) -> Any:
        """Write until it is committed; when we stop, the lease will settle what cannot be written."""
        while True:
            try:
                return write()
            except StoreUnavailable as e:
                log.error("the end of a job waits for the database: %s", e)
                if self._stopping.wait(RECORD_WAIT_SECONDS):
                    return None


@dataclass(frozen=True)
class _Reported:
    """Progress as rows, a few a second at most; raises Interrupted where the job is no longer wanted here."""

    runs: JobClaims
    run: JobAttempt

    def __call__(self, fraction: float, step: str = "") -> None:
        fraction, step = (
            float(fraction),
            str(step),
        )  # Here, as what an untyped job says may be none, and this is its thread.
        if time.monotonic() - self.run.told_at < PROGRESS_SECONDS:
            self.run.untold = (fraction, step)
        else:
            self.write(fraction, step)
        if self.run.interrupted.is_set():
            raise Interrupted

    def write(self, fraction: float, step: str) -> None:
        self.run.told_at, self.run.untold = time.monotonic(), None
        try:
            if not self.runs.progress(self.run.claim, fraction, _words(step)):
                self.run.interrupted.set()
        except StoreUnavailable:
            pass  # Progress is a courtesy; the next report may get through.

    def wait(self, seconds: float) -> None:
        if self.run.interrupted.wait(seconds):
            raise Interrupted


def _names(queue: str, *, isolated: bool) -> list[str]:
    return [kind.name for kind in registry.job_types() if kind.queue == queue and kind.isolated is isolated]


def _timed_out(claim: JobClaim) -> JobEnd:
    return JobEnd(state=JobState.TIMED_OUT, error=f"ended after {claim.timeout_seconds:g} s")


def _wait_seconds(claim: JobClaim) -> float:
    schedule = Schedule.parse(claim.retry or RETRY)
    return schedule.wait_seconds(min(claim.counted, len(schedule.waits))) or 0.0


def _words(text: object) -> str:
    """Return a job's words on one line."""
    return one_line(text, most=WORDS_MAX_CHARACTERS)
