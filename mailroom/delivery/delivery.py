"""Delivers claimed mails: the protocol that makes "accepted is kept" and "once" true. Read `deliver` first."""

import logging
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from mailroom.delivery.admission import HANGS_AFTER_SECONDS, Admission
from mailroom.delivery.attempt import AttemptRunner
from mailroom.delivery.nudge import Begun, Countdown
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import StoreUnavailable, TooManyConnections
from mailroom.process.supervisor import SupervisedThread
from mailroom.smtp.poller import Dialogue, Poller, run
from mailroom.smtp.session import FenceRefused, SessionLost

log = logging.getLogger("mailasync.delivery")

#: Waits between tries to write an outcome while the database is away, in seconds.
RECORD_WAIT_MIN_SECONDS = 0.05
RECORD_WAIT_MAX_SECONDS = 2.0
#: Before a commit that takes long, replies gather for half of its time, so that more of them share it; as PostgreSQL's commit_delay.
SLOW_COMMIT_SECONDS = 0.002
GATHER_MAX_SECONDS = 0.004
#: How often the accounts that somebody waits for are looked at: whether one hangs.
LOOK_SECONDS = 1.0


class ClaimStore(Protocol):
    """The part of the outbox that delivery needs; store/messages/claims.py is it."""

    def claim(self, ids: Sequence[str]) -> list[Claim]: ...
    def suspect(self, id: str) -> bool: ...
    def claim_alone(self, id: str) -> Claim | None: ...
    def with_attachments(self, claim: Claim) -> Claim: ...
    def fence(self, claim: Claim) -> bool: ...
    def finish(self, claim: Claim, outcome: Outcome) -> bool: ...
    def fence_and_finish(self, claims: Sequence[Claim], ended: Sequence[tuple[Claim, Outcome]]
                         ) -> tuple[list[Callable[[], bool]], list[Callable[[], bool]]]: ...
    def release(self, claim: Claim) -> bool: ...
    def release_unsent(self) -> int: ...


@dataclass
class Delivery:
    """Hands the mails of one worker to the next hop, many at a time on sessions that stay open."""

    outbox: ClaimStore
    agent: AttemptRunner
    turns: Admission
    #: Called with the ids of a nudge of which some could not be claimed: they may wait for their jobs.
    unclaimed: Callable[[Sequence[str]], None] = lambda ids: None
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        # Twice as many as connections: what waits for the database need not wait for what waits for a server.
        self._threads = ThreadPoolExecutor(2 * self.turns.connections, thread_name_prefix="smtp")
        self._releasing = SupervisedThread("release", self._release_unsent, self._stopping)
        self._releasing.start()  # Now: `stop` is called by a signal's handler, which must wait for no lock.
        self._side_by_side: _SideBySide | None = None
        self._lock = threading.Lock()

    def deliver(self, ids: Sequence[str]) -> bool:
        """Try each of `ids` that is queued, once, and record how it went; False where some were given back.

        Where there are several accounts nobody waits here for a mail server, as all threads might come to
        wait for one that hangs: the mails are ours now, and go when it is their turn; what is given back
        later comes again by the sweeper.
        """
        if self._stopping.is_set():
            return False
        claims = self.outbox.claim(ids)
        if len(claims) < len(ids):
            self.unclaimed(ids)
        if not claims and len(ids) == 1 and self.outbox.suspect(ids[0]):
            return self._deliver_alone(ids[0])
        if not claims:
            return True
        if self.turns.is_divided:
            self._many().take(claims)
            return True
        return self._deliver_one(claims[0]) if len(claims) == 1 else self._many().deliver(claims)

    def stop(self) -> None:
        """Begin no attempt any more, and pass no fence: what is past it goes on, the rest is given back."""
        self._stopping.set()

    def close(self) -> None:
        if self._stopping.is_set():
            self._releasing.join()
        if self._side_by_side:
            self._side_by_side.close()
        self._threads.shutdown()
        self.agent.close()

    def _many(self) -> "_SideBySide":
        with self._lock:
            self._side_by_side = self._side_by_side or _SideBySide(self)
            return self._side_by_side

    def _deliver_one(self, claim: Claim) -> bool:
        again = False
        while True:
            try:
                with self.turns.shared(claim.account, again=again) as is_given:
                    return self._settle(claim) if is_given else self._give_row_back(claim)
            except TooManyConnections:
                again = True

    def _deliver_alone(self, id: str) -> bool:
        """Its last worker died with it; if this one does too, it shall take no other mail along."""
        with self.turns.alone():
            claim = None if self._stopping.is_set() else self.outbox.claim_alone(id)
            if claim is None:
                return not self._stopping.is_set()
            settled = self._threads.submit(self._settle_at_once, claim)
            wait([settled], HANGS_AFTER_SECONDS if self.turns.is_divided else None)
        return not settled.done() or settled.result()

    def _settle_at_once(self, claim: Claim) -> bool:
        try:
            with self.turns.at_once(claim.account):
                return self._settle(claim)
        except TooManyConnections:
            return self._give_row_back(claim)

    def _release_unsent(self) -> None:
        """Give back, when we stop, the rows whose attempts wait for a server: they pass no fence any more."""
        self._stopping.wait()
        self.turns.close()
        try:
            self.outbox.release_unsent()
        except StoreUnavailable as e:
            log.error("%s; what was not sent is given back when its attempt ends", e)

    def _settle(self, claim: Claim) -> bool:
        """Make one attempt in this thread, with its outcome on record; False if the row was given back."""
        began_at, steps = time.monotonic(), self._attempt(claim)
        try:
            outcome = self._outcome(claim, lambda: run(steps, lambda: not self._stopping.is_set() and self.outbox.fence(claim)))
        except TooManyConnections:
            if not self._stopping.is_set():
                raise
            outcome = None
        if outcome is None:
            return self._give_row_back(claim)
        return self._finish(claim, outcome, began_at)

    def _outcome(self, claim: Claim, attempt: Callable[[], Outcome | None]) -> Outcome | None:
        """Return how an attempt went; None if nothing was sent."""
        try:
            return attempt()
        except FenceRefused:
            return None
        except StoreUnavailable as e:
            log.error("message %s attempt %d: not sent: %s", claim.id, claim.attempt, e, extra={"message_id": claim.id})
            return None

    def _give_row_back(self, claim: Claim) -> bool:
        """Return whether somebody else has it; when we stop, False, so that its nudge goes back as well."""
        is_released = self._record(claim, lambda: self.outbox.release(claim), needed=False)
        return not is_released and not self._stopping.is_set()

    def _finish(self, claim: Claim, outcome: Outcome, began_at: float) -> bool:
        """Put it on record, however long that takes."""
        self._say(claim, outcome, began_at, written=self._record(claim, lambda: self.outbox.finish(claim, outcome), needed=True))
        return True

    def _say(self, claim: Claim, outcome: Outcome, began_at: float, *, written: bool) -> None:
        if written:
            log.info("message %s attempt %d: %s in %.2fs", claim.id, claim.attempt, _told(outcome), time.monotonic() - began_at,
                     extra={"message_id": claim.id})
        else:
            log.error("message %s attempt %d: %s, but the row is no longer this attempt's", claim.id, claim.attempt, outcome.state,
                      extra={"message_id": claim.id})

    def _attempt(self, claim: Claim, *, open_only: bool = False) -> Dialogue[Outcome | None]:
        """None if it was not begun."""
        if self._stopping.is_set():
            return None
        whole = self.outbox.with_attachments(claim) if claim.has_attachments else claim
        return (yield from self.agent.attempt(whole, open_only=open_only))

    def _record(self, claim: Claim, write: Callable[[], bool], *, needed: bool) -> bool:
        """Write until it is committed, however long the database is away: what was read from a server must not be forgotten.

        What is not `needed` is given up when we stop, as the lease will settle it.
        """
        wait_seconds = RECORD_WAIT_MIN_SECONDS
        while True:
            try:
                return write()
            except StoreUnavailable as e:
                log.error("message %s attempt %d: its outcome waits for the database: %s", claim.id, claim.attempt, e,
                          extra={"message_id": claim.id})
                if not needed and self._stopping.is_set():
                    return False
                time.sleep(wait_seconds)
                wait_seconds = min(2 * wait_seconds, RECORD_WAIT_MAX_SECONDS)


class _SideBySide:
    """The mails of all nudges, in one thread: as many at a time as there are turns.

    What may take long goes on in other threads: a new session, a mail with attachments, and a row or an outcome that waits for the
    database. A mail that cannot be put on record harms no other.
    """

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        self.turns = delivery.turns
        self.todo: deque[tuple[Claim, Countdown]] = deque()  #: those whose turn it is
        self.given_up: deque[tuple[Claim, Countdown]] = deque()  #: those that are to wait no more
        self.attempts: Poller[Begun, Outcome | None] = Poller()
        self.outcomes: list[tuple[Begun, Outcome]] = []  #: which are not on record yet
        self.gather_seconds = 0.0
        self._closing = threading.Event()
        self._thread = SupervisedThread("deliveries", self._run, self._closing)
        self._thread.start()

    def deliver(self, claims: Sequence[Claim]) -> bool:
        """Wait until all have ended; False: some were given back. Raises what kept one from being put on record."""
        return self.take(claims).wait()

    def take(self, claims: Sequence[Claim]) -> Countdown:
        """Line them up, those of each account by themselves."""
        nudge, lines = Countdown(len(claims)), defaultdict[str, deque[Claim]](deque)
        for claim in claims:
            lines[claim.account].append(claim)
        for account, line in lines.items():
            given = partial(self._move, line, nudge, self.todo)
            withdrawn = partial(self._move, line, nudge, self.given_up)
            self.turns.ask(account, len(line), given, withdrawn, single=len(claims) == 1)
        return nudge

    def _line_up_again(self, begun: Begun, refused: TooManyConnections) -> None:
        """Give up a turn without a connection, and wait for another one."""
        line, account = deque([begun.claim]), begun.claim.account
        given, withdrawn = (partial(self._move, line, begun.nudge, to) for to in (self.todo, self.given_up))
        self._give_back(begun, refused=refused)
        self.turns.ask(account, 1, given, withdrawn, again=True)
        self.turns.leave(account)

    def _move(self, line: deque[Claim], nudge: Countdown, to: deque[tuple[Claim, Countdown]], count: int) -> None:
        to.extend((line.popleft(), nudge) for _ in range(count))
        self.attempts.wake()

    def close(self) -> None:
        """End when all have."""
        self._closing.set()
        self.attempts.wake()
        self._thread.join()

    def _run(self) -> None:
        self._break_off(RuntimeError("the thread that delivers has ended"))
        while not self._closing.is_set() or self.todo or self.given_up or self.attempts or self.outcomes:
            try:
                self._go_on()
            except BaseException as e:  # A fault of ours; who waits for these mails is told of it, and others may go on.
                log.exception("%d deliveries broke off", len(self.attempts))
                self._break_off(e)
        self.attempts.close()

    def _break_off(self, error: BaseException) -> None:
        """Let nobody wait any longer for the mails that are under way."""
        outcomes, self.outcomes = self.outcomes, []
        for begun in self.attempts.abort_all():
            self._leave(begun, error=error)
        for begun, _ in outcomes:
            self._leave(begun, connected=False, error=error)

    def _go_on(self) -> None:
        is_awaited = self.turns.withdraw_hanging()
        self._begin()
        if self.attempts.fenced or self.outcomes:
            self._commit()
        elif not self.attempts.ended and (self.attempts or not self._closing.is_set()):
            at_most_seconds = LOOK_SECONDS if is_awaited else float("inf")
            self.attempts.wait(self.gather_seconds, max_seconds=at_most_seconds)
        self._end()

    def _begin(self) -> None:
        while self.given_up:
            begun = Begun(*self.given_up.popleft(), time.monotonic())
            self._go_on_elsewhere(begun, partial(self.delivery._give_row_back, begun.claim), connected=False)
        while self.todo:
            begun = Begun(*self.todo.popleft(), time.monotonic())
            if begun.claim.has_attachments:
                self._go_on_elsewhere(begun, partial(self.delivery._settle, begun.claim))
            else:
                steps = self.delivery._attempt(begun.claim, open_only=True)
                self.attempts.resume(begun, steps, partial(steps.send, None))

    def _commit(self) -> None:
        """Pass fences, and put outcomes on record, together."""
        fenced, outcomes, stopping = self.attempts.fenced, self.outcomes, self.delivery._stopping.is_set()
        began_at = time.monotonic()
        passed, written = self.delivery.outbox.fence_and_finish(
            [] if stopping else [begun.claim for begun, _ in fenced], [(begun.claim, outcome) for begun, outcome in outcomes])
        took = time.monotonic() - began_at
        self.gather_seconds = min(took / 2, GATHER_MAX_SECONDS) if took > SLOW_COMMIT_SECONDS else 0
        self.attempts.fenced, self.outcomes = [], []
        for (begun, steps), passes in zip(fenced, [_refused] * len(fenced) if stopping else passed, strict=True):
            try:
                step = partial(steps.send, passes())
            except Exception as e:
                step = partial(steps.throw, e)
            self.attempts.resume(begun, steps, step)
        for (begun, outcome), is_written in zip(outcomes, written, strict=True):
            self._say(begun, outcome, is_written)

    def _say(self, begun: Begun, outcome: Outcome, is_written: Callable[[], bool]) -> None:
        try:
            self.delivery._say(begun.claim, outcome, begun.at, written=is_written())
        except StoreUnavailable:
            self._go_on_elsewhere(begun, lambda: self.delivery._finish(begun.claim, outcome, begun.at), connected=False)
        except BaseException as e:
            self._leave(begun, connected=False, error=e)
        else:
            self._leave(begun, connected=False)

    def _end(self) -> None:
        """Hear how those that have ended went; their sessions wait for the next."""
        ended, self.attempts.ended = self.attempts.ended, []
        for begun, told in ended:
            try:
                outcome = self.delivery._outcome(begun.claim, told)
            except SessionLost:  # There was none, or the server had closed it meanwhile; a new one may take the mail at once.
                self._go_on_elsewhere(begun, partial(self.delivery._settle, begun.claim))
            except BaseException as e:
                self._leave(begun, error=e)
            else:
                if outcome is None:
                    self._go_on_elsewhere(begun, partial(self.delivery._give_row_back, begun.claim))
                else:
                    self.outcomes.append((begun, outcome))
                    self._give_back(begun)

    def _go_on_elsewhere(self, begun: Begun, act: Callable[[], bool], *, connected: bool = True) -> None:
        """In another thread, which ends the turn; `connected`: the connection is part of it still."""
        def go_on() -> None:
            try:
                settled = act()
            except TooManyConnections as e:
                self._line_up_again(begun, e)
            except BaseException as e:
                self._leave(begun, connected=connected, error=e)
            else:
                self._leave(begun, settled, connected=connected)
        self.delivery._threads.submit(go_on)

    def _leave(self, begun: Begun, settled: bool = True, *, connected: bool = True, error: BaseException | None = None) -> None:
        if connected:
            self._give_back(begun)
        self.turns.leave(begun.claim.account)
        begun.nudge.end(settled, error=error)
        if error is not None:  # Nobody may wait to be told.
            with suppress(Exception):
                log.error("message %s attempt %d: not on record: %s", begun.claim.id, begun.claim.attempt,
                          type(error).__name__, extra={"message_id": begun.claim.id})

    def _give_back(self, begun: Begun, *, refused: TooManyConnections | None = None) -> None:
        self.turns.give_back(begun.claim.account, time.monotonic() - begun.at, refused=refused)


def _refused() -> bool:
    return False


def _told(outcome: Outcome) -> str:
    """State and code for the log; the rest of a reply may hold an address."""
    code = re.match(r"\d{3} ", outcome.reason)
    return f"{outcome.state} ({code[0].strip()})" if code else str(outcome.state)
