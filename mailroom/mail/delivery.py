"""Delivers claimed mails: the protocol that makes "accepted is kept" and "once" true. Read `deliver` first."""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol

from mailroom.mail.compose import compose
from mailroom.mail.errors import NotTaken, StoreUnavailable, Unanswered
from mailroom.mail.link import Reply
from mailroom.mail.message import Address, Claim, Outcome, State, Trouble
from mailroom.mail.replies import is_of_bad_address, state_of, trouble_of
from mailroom.mail.schedule import Schedule
from mailroom.mail.sessions import Sessions
from mailroom.mail.steps import Attempts, Steps, run
from mailroom.mail.transport import FenceRefused, Receipt, SessionLost
from mailroom.mail.turns import Turns

log = logging.getLogger("mailasync.delivery")

#: Waits between tries to write an outcome while the database is away, in seconds.
RECORD_WAIT_MIN_SECONDS = 0.05
RECORD_WAIT_MAX_SECONDS = 2.0
#: How often a nudge whose mails wait for their servers looks whether it got turns for the rest; and where it has no rest.
TURN_LOOK_SECONDS = 0.02
LONG_SECONDS = 3600.0


class Outbox(Protocol):
    """What delivery needs of the outbox; store/claims.py is it."""

    def claim(self, ids: Sequence[str]) -> list[Claim]: ...
    def suspect(self, id: str) -> bool: ...
    def claim_alone(self, id: str) -> Claim | None: ...
    def fence(self, claim: Claim) -> bool: ...
    def fence_all(self, claims: Sequence[Claim]) -> list[Callable[[], bool]]: ...
    def finish(self, claim: Claim, outcome: Outcome) -> bool: ...
    def finish_all(self, ended: Sequence[tuple[Claim, Outcome]]) -> list[Callable[[], bool]]: ...
    def release(self, claim: Claim) -> bool: ...


@dataclass(frozen=True)
class Sender:
    """One account: who its mails are from, and its sessions with its server."""

    address: Address
    sessions: Sessions


class _Begun(NamedTuple):
    """A claim whose attempt has begun, and when, on time.monotonic."""

    claim: Claim
    at: float


@dataclass
class Delivery:
    """Hands the mails of one worker to the next hop, many at a time on sessions that stay open."""

    outbox: Outbox
    senders: Mapping[str, Sender]  #: by the name of the account
    schedule: Schedule
    on_uncertain: str  #: resend or hold
    connections: int
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(self.connections, thread_name_prefix="smtp")
        self._turns = Turns(self.connections)  # A single mail is delivered in its caller's thread, beside ours.

    def deliver(self, ids: Sequence[str]) -> bool:
        """Try each of `ids` that is queued, once, and record how it went. False: some were given back, as we are stopping."""
        if self._stopping.is_set():
            return False
        claims = self.outbox.claim(ids)
        if not claims and len(ids) == 1 and self.outbox.suspect(ids[0]):
            return self._deliver_alone(ids[0])
        if len(claims) == 1:
            return self._deliver_one(claims[0])
        return _SideBySide(self, claims).run()

    def stop(self) -> None:
        """Begin no attempt any more, and pass no fence; what is past it goes on."""
        self._stopping.set()

    def close(self) -> None:
        self._threads.shutdown()
        for sender in self.senders.values():
            sender.sessions.close()

    def _deliver_one(self, claim: Claim) -> bool:
        with self._turns.shared():
            return self._settle(claim)

    def _deliver_alone(self, id: str) -> bool:
        """Its last worker died with it; if this one does too, it shall take no other mail along."""
        with self._turns.alone():
            claim = None if self._stopping.is_set() else self.outbox.claim_alone(id)
            return not self._stopping.is_set() if claim is None else self._settle(claim)

    def _may_pass(self, claims: Sequence[Claim]) -> list[Callable[[], bool]]:
        """The fence of each, had by a call."""
        return [lambda: False] * len(claims) if self._stopping.is_set() else self.outbox.fence_all(claims)

    def _settle(self, claim: Claim) -> bool:
        """One attempt in this thread, and its outcome on record; False if the row was given back."""
        begun = _Begun(claim, time.monotonic())
        steps = self._attempt(claim)
        outcome = self._outcome(claim, lambda: run(steps, lambda: not self._stopping.is_set() and self.outbox.fence(claim)))
        if outcome is None:
            return self._give_row_back(claim)
        return self._finish(begun, outcome)

    def _outcome(self, claim: Claim, attempt: Callable[[], Outcome | None]) -> Outcome | None:
        """How it went; None if nothing was sent."""
        try:
            return attempt()
        except FenceRefused:
            return None
        except StoreUnavailable as e:
            log.error("message %s attempt %d: not sent: %s", claim.id, claim.attempt, e, extra={"message_id": claim.id})
            return None

    def _give_row_back(self, claim: Claim) -> bool:
        return not self._record(claim, lambda: self.outbox.release(claim), needed=False)

    def _finish(self, begun: _Begun, outcome: Outcome) -> bool:
        """Put it on record, however long that takes."""
        self._say(begun, outcome, written=self._record(begun.claim, lambda: self.outbox.finish(begun.claim, outcome), needed=True))
        return True

    def _say(self, begun: _Begun, outcome: Outcome, *, written: bool) -> None:
        claim = begun.claim
        if written:
            log.info("message %s attempt %d: %s in %.2fs", claim.id, claim.attempt, _told(outcome), time.monotonic() - begun.at,
                     extra={"message_id": claim.id})
        else:
            log.error("message %s attempt %d: %s, but the row is no longer this attempt's", claim.id, claim.attempt, outcome.state,
                      extra={"message_id": claim.id})

    def _attempt(self, claim: Claim, *, open_only: bool = False) -> Steps[Outcome | None]:
        """One attempt; None if it was not begun. `open_only`: SessionLost is raised where it takes a new session."""
        if self._stopping.is_set():
            return None
        sender = self.senders[claim.account]
        try:
            payload = compose(claim, sender=sender.address)
        except Exception as e:  # Whatever it is, it would be so again; its text may hold the content.
            log.error("message %s could not be composed: %s", claim.id, type(e).__name__, extra={"message_id": claim.id})
            return self._for_all(claim, State.FAILED, f"could not be composed: {type(e).__name__}")
        if not claim.pending:
            return Outcome(state=State.SENT if claim.sent_before else State.FAILED, reason="nobody is left to send it to")
        message, everyone = claim.message, claim.message.everyone
        people = {position: everyone[position].address for position in claim.pending}
        try:
            receipt = yield from sender.sessions.steps((message.sender or sender.address).address, people, payload,
                                                       smtputf8=message.needs_smtputf8, open_only=open_only)
        except Unanswered as e:
            return self._uncertain(claim, e.reply)
        except SessionLost:
            raise
        except NotTaken as e:
            said = Reply(e.code, e.reply.removeprefix(f"{e.code} "))
            return self._later(claim, e.reply, trouble=trouble_of(said, self.schedule, of_message=e.of_message))
        except (FenceRefused, StoreUnavailable):
            raise
        except Exception as e:  # A fault of ours, before the dot: transport says Unanswered whatever happens after it.
            log.error("message %s attempt %d: %s", claim.id, claim.attempt, type(e).__name__, extra={"message_id": claim.id})
            return self._later(claim, f"internal error: {type(e).__name__}")
        # A reply to MAIL, DATA or the dot may have the same code, and does not say of whom.
        return replace(self._judge(claim, receipt),
                       bounced=frozenset(at for at, reply in receipt.refused.items() if is_of_bad_address(reply)))

    def _judge(self, claim: Claim, receipt: Receipt) -> Outcome:
        """Turn replies into an outcome for each recipient, and for the message."""
        replies = {position: receipt.refused.get(position, receipt.final) or Reply(0, "no reply") for position in claim.pending}
        found = {position: (state_of(reply), str(reply)) for position, reply in replies.items()}
        states = {state for state, _ in found.values()}
        worst = max(replies.values(), key=lambda reply: reply.code)
        if State.DEFERRED in states:
            temporary = next(reply for reply in replies.values() if state_of(reply) is State.DEFERRED)
            if State.SENT in states and temporary.text.startswith("4.5.3 "):  # Too many at once: the rest now (RFC 5321, 4.5.3.1.10).
                return Outcome(state=State.DEFERRED, reason=str(temporary), recipients=found, wait_seconds=0)
            return self._later(claim, str(temporary), found, trouble=trouble_of(temporary, self.schedule))
        sent = State.SENT in states or claim.sent_before
        return Outcome(state=State.SENT if sent else State.FAILED, reason=str(worst), recipients=found)

    def _later(self, claim: Claim, reason: str, found: dict[int, tuple[State, str]] | None = None, *, trouble: Trouble | None = None,
               uncertain: bool = False) -> Outcome:
        """Defer, or fail where the attempts are used up; with trouble of the account, until an account can send."""
        found = found or dict.fromkeys(claim.pending, (State.DEFERRED, reason))
        wait = self._wait_seconds(claim)
        if trouble and (trouble.excuses or wait is not None):
            return Outcome(state=State.DEFERRED, reason=reason, recipients=found, trouble=trouble)
        if wait is not None:
            return Outcome(state=State.DEFERRED, reason=reason, recipients=found, wait_seconds=wait, uncertain=uncertain)
        end = State.UNCERTAIN if uncertain else State.FAILED  # Who may have the mail was not failed to.
        given_up = {position: (end if state is State.DEFERRED else state, reply) for position, (state, reply) in found.items()}
        sent = not uncertain and (claim.sent_before or any(state is State.SENT for state, _ in given_up.values()))
        return Outcome(state=State.SENT if sent else end, recipients=given_up, uncertain=uncertain, trouble=trouble,
                       reason=f"gave up after attempt {claim.attempt}: {reason}")

    def _wait_seconds(self, claim: Claim) -> float | None:
        """How long until the next attempt; None if this was the last. A message's own number of attempts repeats the longest wait."""
        most = claim.max_attempts
        if most is None:
            return self.schedule.wait_seconds(claim.counted)
        return self.schedule.wait_seconds(min(claim.counted, len(self.schedule.waits))) if claim.counted < most else None

    def _uncertain(self, claim: Claim, reason: str) -> Outcome:
        if self.on_uncertain == "resend":
            return self._later(claim, reason, uncertain=True)
        return self._for_all(claim, State.UNCERTAIN, reason, uncertain=True)

    def _for_all(self, claim: Claim, state: State, reason: str, *, uncertain: bool = False) -> Outcome:
        return Outcome(state=state, reason=reason, recipients=dict.fromkeys(claim.pending, (state, reason)), uncertain=uncertain)

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
    """The mails of one nudge, in one thread: as many at a time as there are turns.

    What may take long goes on in other threads: a new session, and a row or an outcome that waits for the database. A mail that cannot be
    put on record harms no other; its error is raised at the end.
    """

    def __init__(self, delivery: Delivery, claims: Sequence[Claim]) -> None:
        self.delivery = delivery
        self.turns = delivery._turns
        self.todo = deque(claims)
        self.attempts: Attempts[_Begun, Outcome | None] = Attempts()
        self.elsewhere: list[Future[bool]] = []
        self.errors: list[Exception] = []

    def run(self) -> bool:
        asked = None
        try:
            while self.todo or self.attempts:
                if self.todo and asked is None:
                    asked = self.turns.ask(len(self.todo))
                if asked and asked.admitted.wait(None if not self.attempts else 0):
                    for _ in range(asked.given):
                        self._begin(self.todo.popleft())
                    asked = None
                if self.attempts.fenced:
                    self._fence()
                elif self.attempts and not self.attempts.ended:
                    self.attempts.wait(TURN_LOOK_SECONDS if asked else LONG_SECONDS)
                if self.attempts.ended:
                    self._end()
        finally:
            if asked:
                self.turns.withdraw(asked)
            self.turns.give_back(len(self.attempts))
            self.turns.leave(len(self.attempts))
            self.attempts.close()
        done = [future.result() for future in self.elsewhere]
        if self.errors:
            raise self.errors[0]
        return all(done)

    def _begin(self, claim: Claim) -> None:
        steps = self.delivery._attempt(claim, open_only=True)
        self.attempts.go_on(_Begun(claim, time.monotonic()), steps, partial(steps.send, None))

    def _fence(self) -> None:
        asked, self.attempts.fenced = self.attempts.fenced, []
        answers = self.delivery._may_pass([begun.claim for begun, _ in asked])
        for (begun, steps), answer in zip(asked, answers, strict=True):
            try:
                step = partial(steps.send, answer())
            except Exception as e:
                step = partial(steps.throw, e)
            self.attempts.go_on(begun, steps, step)

    def _end(self) -> None:
        """Put on record, together, how those that have ended went."""
        ended, self.attempts.ended = self.attempts.ended, []
        outcomes: list[tuple[_Begun, Outcome]] = []
        for begun, told in ended:
            try:
                outcome = self.delivery._outcome(begun.claim, told)
            except SessionLost:  # There was none, or the server had closed it meanwhile; a new one may take the mail at once.
                self._go_on_elsewhere(partial(self.delivery._settle, begun.claim))
                continue
            except Exception as e:
                self.errors.append(e)
                self.turns.give_back()
                self.turns.leave()
                continue
            if outcome:
                outcomes.append((begun, outcome))
            else:
                self._go_on_elsewhere(partial(self.delivery._give_row_back, begun.claim))
        self.turns.give_back(len(outcomes))  # Their sessions wait for the next.
        written = self.delivery.outbox.finish_all([(begun.claim, outcome) for begun, outcome in outcomes])
        for (begun, outcome), is_written in zip(outcomes, written, strict=True):
            try:
                self.delivery._say(begun, outcome, written=is_written())
            except StoreUnavailable:
                self._go_on_elsewhere(partial(self.delivery._finish, begun, outcome), connected=False)
                continue
            except Exception as e:
                self.errors.append(e)
            self.turns.leave()

    def _go_on_elsewhere(self, act: Callable[[], bool], *, connected: bool = True) -> None:
        """In another thread, which ends our turn; `connected`: the connection is part of it still."""
        def go_on() -> bool:
            try:
                return act()
            finally:
                if connected:
                    self.turns.give_back()
                self.turns.leave()
        self.elsewhere.append(self.delivery._threads.submit(go_on))


def _told(outcome: Outcome) -> str:
    """State and code for the log; the rest of a reply may hold an address."""
    code = re.match(r"\d{3} ", outcome.reason)
    return f"{outcome.state} ({code[0].strip()})" if code else str(outcome.state)
