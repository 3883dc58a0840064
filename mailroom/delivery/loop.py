"""Runs the attempts of all nudges side by side, in one thread."""

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial

from mailroom.delivery.admission import Admission
from mailroom.delivery.claim_store import Written
from mailroom.delivery.countdown import Countdown, StartedAttempt
from mailroom.delivery.recorder import Recorder
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import StoreUnavailable, TooManyConnections
from mailroom.process.supervisor import SupervisedThread
from mailroom.smtp.poller import Dialogue, Poller
from mailroom.smtp.receipt import SessionLost

log = logging.getLogger("mailasync.delivery")

#: If a commit takes longer than this, replies gather for half of its time so that more of them share the next
#: one, as with PostgreSQL's commit_delay.
SLOW_COMMIT_SECONDS = 0.002
GATHER_MAX_SECONDS = 0.004
#: While mails wait for an account, how often to check whether its server hangs.
HANGING_CHECK_SECONDS = 1.0

Queue = deque[tuple[Claim, Countdown]]


class DeliveryLoop:
    """A thread that runs as many attempts at a time as `admission` admits.

    What may block runs in `threads`: opening a session, loading attachments, and a row or an outcome that
    waits for the database. A mail that cannot be recorded harms no other.
    """

    def __init__(self, recorder: Recorder, admission: Admission, threads: Executor) -> None:
        self.recorder = recorder
        self.admission = admission
        self.threads = threads
        self.admitted: Queue = deque()
        #: They wait no longer for a connection; their rows are to be released.
        self.withdrawn: Queue = deque()
        self.poller: Poller[StartedAttempt, Outcome | None] = Poller()
        self.unrecorded: list[tuple[StartedAttempt, Outcome]] = []
        self.gather_seconds = 0.0
        self._closing = threading.Event()
        self._thread = SupervisedThread("deliveries", self._run, self._closing)
        self._thread.start()

    def add(self, claims: Sequence[Claim]) -> Countdown:
        """Queue claims for a connection of their account, from any thread."""
        countdown = Countdown(len(claims))
        by_account = defaultdict[str, deque[Claim]](deque)
        for claim in claims:
            by_account[claim.account].append(claim)
        for account, queue in by_account.items():
            self.admission.request(
                account,
                len(queue),
                partial(self._move, queue, countdown, self.admitted),
                partial(self._move, queue, countdown, self.withdrawn),
                single=len(claims) == 1,
            )
        return countdown

    def close(self) -> None:
        """Return once all attempts have ended."""
        self._closing.set()
        self.poller.wake()
        self._thread.join()

    def _move(self, queue: deque[Claim], countdown: Countdown, target: Queue, count: int) -> None:
        for _ in range(count):
            target.append((queue.popleft(), countdown))
        self.poller.wake()

    def _run(self) -> None:
        self._abort_all(RuntimeError("the thread that delivers has ended"))
        while not self._closing.is_set() or self._has_work():
            try:
                self._run_once()
            except BaseException as e:
                # A bug: whoever waits for these mails gets it, and others may go on.
                log.exception("%d deliveries broke off", len(self.poller))
                self._abort_all(e)
        self.poller.close()

    def _has_work(self) -> bool:
        return bool(self.admitted or self.withdrawn or self.poller or self.unrecorded)

    def _abort_all(self, error: BaseException) -> None:
        """End all attempts that are under way with `error`."""
        unrecorded, self.unrecorded = self.unrecorded, []
        for attempt in self.poller.abort_all():
            self._finish(attempt, error=error)
        for attempt, _ in unrecorded:
            self._finish(attempt, connected=False, error=error)

    def _run_once(self) -> None:
        has_waiting = self.admission.withdraw_hanging()
        self._release_withdrawn()
        self._start_admitted()
        if self.poller.at_fence or self.unrecorded:
            self._commit()
        elif not self.poller.ended and (self.poller or not self._closing.is_set()):
            max_seconds = float("inf")
            if has_waiting:
                max_seconds = HANGING_CHECK_SECONDS
            self.poller.wait(self.gather_seconds, max_seconds=max_seconds)
        self._collect_ended()

    def _release_withdrawn(self) -> None:
        while self.withdrawn:
            claim, countdown = self.withdrawn.popleft()
            attempt = StartedAttempt(claim, countdown, time.monotonic())
            release = partial(self.recorder.release, claim)
            self._run_in_thread(attempt, release, connected=False)

    def _start_admitted(self) -> None:
        while self.admitted:
            claim, countdown = self.admitted.popleft()
            attempt = StartedAttempt(claim, countdown, time.monotonic())
            if claim.has_attachments:
                self._attempt_in_thread(attempt)
                continue
            dialogue = self.recorder.attempt(claim, open_only=True)
            begin = partial(dialogue.send, None)
            self.poller.resume(attempt, dialogue, begin)

    def _commit(self) -> None:
        """Pass fences and record outcomes, all in one commit."""
        at_fence = self.poller.at_fence
        outcomes = self.unrecorded
        stopping = self.recorder.stopping.is_set()
        fences: list[Claim] = []
        if not stopping:
            fences = [attempt.claim for attempt, _ in at_fence]
        ended = [(attempt.claim, outcome) for attempt, outcome in outcomes]
        started_at = time.monotonic()
        passed, written = self.recorder.claims.fence_and_finish(fences, ended)
        self._set_gathering(time.monotonic() - started_at)
        self.poller.at_fence = []
        self.unrecorded = []
        if stopping:
            passed = [_refused] * len(at_fence)
        for (attempt, dialogue), may_send in zip(at_fence, passed, strict=True):
            self._resume_at_fence(attempt, dialogue, may_send)
        for (attempt, outcome), is_written in zip(outcomes, written, strict=True):
            self._log_outcome(attempt, outcome, is_written)

    def _set_gathering(self, commit_seconds: float) -> None:
        self.gather_seconds = 0
        if commit_seconds > SLOW_COMMIT_SECONDS:
            self.gather_seconds = min(commit_seconds / 2, GATHER_MAX_SECONDS)

    def _resume_at_fence(
        self, attempt: StartedAttempt, dialogue: Dialogue[Outcome | None], may_send: Written
    ) -> None:
        try:
            step = partial(dialogue.send, may_send())
        except Exception as e:
            step = partial(dialogue.throw, e)
        self.poller.resume(attempt, dialogue, step)

    def _log_outcome(self, attempt: StartedAttempt, outcome: Outcome, is_written: Written) -> None:
        claim = attempt.claim
        started_at = attempt.started_at
        try:
            self.recorder.log_outcome(claim, outcome, started_at, written=is_written())
        except StoreUnavailable:
            finish = partial(self.recorder.finish, claim, outcome, started_at)
            self._run_in_thread(attempt, finish, connected=False)
        except BaseException as e:
            self._finish(attempt, connected=False, error=e)
        else:
            self._finish(attempt, connected=False)

    def _collect_ended(self) -> None:
        """Take the outcomes of attempts that have ended; their connections are free for the next."""
        ended = self.poller.ended
        self.poller.ended = []
        for attempt, result in ended:
            try:
                outcome = self.recorder.outcome_of(attempt.claim, result)
            except SessionLost:
                # No session was open, or the server had closed it; a new one may take the mail.
                self._attempt_in_thread(attempt)
            except BaseException as e:
                self._finish(attempt, error=e)
            else:
                self._keep_or_release(attempt, outcome)

    def _keep_or_release(self, attempt: StartedAttempt, outcome: Outcome | None) -> None:
        if outcome is None:
            release = partial(self.recorder.release, attempt.claim)
            self._run_in_thread(attempt, release)
            return
        self.unrecorded.append((attempt, outcome))
        self._release_connection(attempt)

    def _attempt_in_thread(self, attempt: StartedAttempt) -> None:
        whole = partial(self.recorder.attempt_and_record, attempt.claim)
        self._run_in_thread(attempt, whole)

    def _run_in_thread(
        self, attempt: StartedAttempt, act: Callable[[], bool], *, connected: bool = True
    ) -> None:
        """Run `act` in another thread and finish the attempt there; `connected`: it holds a connection."""

        def run_and_finish() -> None:
            try:
                settled = act()
            except TooManyConnections as e:
                self._request_again(attempt, e)
            except BaseException as e:
                self._finish(attempt, connected=connected, error=e)
            else:
                self._finish(attempt, settled, connected=connected)

        self.threads.submit(run_and_finish)

    def _request_again(self, attempt: StartedAttempt, refusal: TooManyConnections) -> None:
        """Put a mail that got no connection back into the queue, before all others."""
        queue = deque([attempt.claim])
        account = attempt.claim.account
        on_granted = partial(self._move, queue, attempt.countdown, self.admitted)
        on_withdrawn = partial(self._move, queue, attempt.countdown, self.withdrawn)
        self._release_connection(attempt, refusal=refusal)
        self.admission.request(account, 1, on_granted, on_withdrawn, again=True)
        self.admission.finish(account)

    def _finish(
        self,
        attempt: StartedAttempt,
        settled: bool = True,
        *,
        connected: bool = True,
        error: BaseException | None = None,
    ) -> None:
        if connected:
            self._release_connection(attempt)
        claim = attempt.claim
        self.admission.finish(claim.account)
        attempt.countdown.end(settled, error=error)
        if error is None:
            return
        with suppress(Exception):  # Logged here as well: perhaps nobody waits for the countdown.
            log.error(
                "message %s attempt %d: not on record: %s",
                claim.id,
                claim.attempt,
                type(error).__name__,
                extra={"message_id": claim.id},
            )

    def _release_connection(
        self, attempt: StartedAttempt, *, refusal: TooManyConnections | None = None
    ) -> None:
        seconds = time.monotonic() - attempt.started_at
        self.admission.release_connection(attempt.claim.account, seconds, refusal=refusal)


def _refused() -> bool:
    return False
