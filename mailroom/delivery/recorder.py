"""Makes attempts and writes down how they ended, however long the database is away."""

import logging
import re
import threading
import time
from collections.abc import Callable

from mailroom.delivery.attempt import AttemptRunner
from mailroom.delivery.claim_store import ClaimStore
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import StoreUnavailable, TooManyConnections
from mailroom.smtp.poller import Dialogue, run
from mailroom.smtp.receipt import FenceRefused

log = logging.getLogger("mailasync.delivery")

#: Waits between tries to write an outcome while the database is away, in seconds.
RECORD_WAIT_MIN_SECONDS = 0.05
RECORD_WAIT_MAX_SECONDS = 2.0


class Recorder:
    """Attempts of one worker and their records; Delivery's threads and its loop share it.

    Once `stopping` is set no attempt is begun and no fence is passed: rows that are not past it are released.
    """

    def __init__(
        self, claims: ClaimStore, runner: AttemptRunner, stopping: threading.Event
    ) -> None:
        self.claims = claims
        self.runner = runner
        self.stopping = stopping

    def attempt(self, claim: Claim, *, open_only: bool = False) -> Dialogue[Outcome | None]:
        """Make one attempt, as `AttemptRunner.attempt` does; None if we stop and it was not begun."""
        if self.stopping.is_set():
            return None
        if claim.has_attachments:
            claim = self.claims.with_attachments(claim)
        return (yield from self.runner.attempt(claim, open_only=open_only))

    def attempt_and_record(self, claim: Claim) -> bool:
        """Make one attempt in this thread and record its outcome; False if the row was released.

        Raises:
          TooManyConnections: the server takes no further connection; the row is still ours.
        """
        started_at = time.monotonic()
        dialogue = self.attempt(claim)
        try:
            outcome = self.outcome_of(claim, lambda: run(dialogue, lambda: self._pass_fence(claim)))
        except TooManyConnections:
            if not self.stopping.is_set():
                raise
            outcome = None
        if outcome is None:
            return self.release(claim)
        return self.finish(claim, outcome, started_at)

    def _pass_fence(self, claim: Claim) -> bool:
        return not self.stopping.is_set() and self.claims.fence(claim)

    def outcome_of(self, claim: Claim, result: Callable[[], Outcome | None]) -> Outcome | None:
        """Return the outcome that `result` returns; None if nothing was sent, as the fence was not passed."""
        try:
            return result()
        except FenceRefused:
            return None
        except StoreUnavailable as e:
            extra = {"message_id": claim.id}
            log.error(
                "message %s attempt %d: not sent: %s", claim.id, claim.attempt, e, extra=extra
            )
            return None

    def release(self, claim: Claim) -> bool:
        """Give the row back to the queue; return True if it is not ours any more.

        Returns False when we stop, so that the nudge goes back to its queue as well.
        """
        is_released = self._write(claim, lambda: self.claims.release(claim), needed=False)
        return not is_released and not self.stopping.is_set()

    def finish(self, claim: Claim, outcome: Outcome, started_at: float) -> bool:
        """Record an outcome; always returns True, as then the row is settled."""
        written = self._write(claim, lambda: self.claims.finish(claim, outcome), needed=True)
        self.log_outcome(claim, outcome, started_at, written=written)
        return True

    def log_outcome(
        self, claim: Claim, outcome: Outcome, started_at: float, *, written: bool
    ) -> None:
        """Log a recorded outcome; `written` is False if the row was no longer this attempt's."""
        extra = {"message_id": claim.id}
        if written:
            log.info(
                "message %s attempt %d: %s in %.2fs",
                claim.id,
                claim.attempt,
                _state_and_code(outcome),
                time.monotonic() - started_at,
                extra=extra,
            )
        else:
            log.error(
                "message %s attempt %d: %s, but the row is no longer this attempt's",
                claim.id,
                claim.attempt,
                outcome.state,
                extra=extra,
            )

    def _write(self, claim: Claim, write: Callable[[], bool], *, needed: bool) -> bool:
        """Write until it is committed, however long that takes: a reply that was read must not be forgotten.

        What is not `needed` is given up when we stop, as the lease will settle it.
        """
        wait_seconds = RECORD_WAIT_MIN_SECONDS
        while True:
            try:
                return write()
            except StoreUnavailable as e:
                log.error(
                    "message %s attempt %d: its outcome waits for the database: %s",
                    claim.id,
                    claim.attempt,
                    e,
                    extra={"message_id": claim.id},
                )
                if not needed and self.stopping.is_set():
                    return False
                time.sleep(wait_seconds)
                wait_seconds = min(2 * wait_seconds, RECORD_WAIT_MAX_SECONDS)


def _state_and_code(outcome: Outcome) -> str:
    """Return what the log may say; the rest of a reply may hold an address."""
    code = re.match(r"\d{3} ", outcome.reason)
    if code is None:
        return str(outcome.state)
    return f"{outcome.state} ({code[0].strip()})"
