"""An attempt at a job: how far it is, and whether it is still wanted."""

import threading
import time
from dataclasses import dataclass, field

from mailroom.jobs.registry import Interrupted
from mailroom.model.errors import StoreUnavailable
from mailroom.model.text import one_line
from mailroom.store.jobs.claims import JobClaim, JobClaims

#: Progress that comes sooner after the last is written by `Runner.watch`, so that a tight loop does not wear
#: out the database.
PROGRESS_SECONDS = 0.2
#: Limit for an error or a step.
TEXT_MAX_CHARACTERS = 1000


@dataclass(eq=False)
class JobAttempt:
    """A claimed job, while it runs."""

    claim: JobClaim
    isolated: bool
    started_at: float = field(default_factory=time.monotonic)
    #: Set when it is to end: it was canceled or timed out, or we are stopping.
    interrupted: threading.Event = field(default_factory=threading.Event)
    settled: bool = False  #: its end is on record, or up to another worker
    progress_written_at: float = 0.0
    unwritten_progress: tuple[float, str] | None = None  #: it came too soon after the last

    @property
    def overdue_seconds(self) -> float:
        return time.monotonic() - self.started_at - self.claim.timeout_seconds


@dataclass(frozen=True)
class ProgressRecorder:
    """Writes progress, a few times a second at most; raises Interrupted if the job is no longer wanted."""

    claims: JobClaims
    attempt: JobAttempt

    def __call__(self, fraction: float, step: str = "") -> None:
        # Converted here, in the job's own thread: an untyped job may pass anything.
        fraction, step = float(fraction), str(step)
        if time.monotonic() - self.attempt.progress_written_at < PROGRESS_SECONDS:
            self.attempt.unwritten_progress = (fraction, step)
        else:
            self.write(fraction, step)
        if self.attempt.interrupted.is_set():
            raise Interrupted

    def write(self, fraction: float, step: str) -> None:
        self.attempt.progress_written_at, self.attempt.unwritten_progress = time.monotonic(), None
        try:
            if not self.claims.progress(self.attempt.claim, fraction, short_text(step)):
                self.attempt.interrupted.set()
        except StoreUnavailable:
            pass  # Nothing is lost but this report; the next one may get through.

    def flush(self) -> None:
        """Write progress that came too soon."""
        if progress := self.attempt.unwritten_progress:
            self.write(*progress)

    def wait(self, seconds: float) -> None:
        if self.attempt.interrupted.wait(seconds):
            raise Interrupted


def short_text(text: object) -> str:
    """Return a text of a job on one line, cut to TEXT_MAX_CHARACTERS."""
    return one_line(text, most=TEXT_MAX_CHARACTERS)
