"""Judges the replies to an attempt: the outcome for the message and each recipient, and when to try again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from mailroom.delivery.groups import Groups
from mailroom.model.account import AccountError
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import NotTaken
from mailroom.model.message import State
from mailroom.model.retry import Schedule
from mailroom.smtp.connection import Reply
from mailroom.smtp.replies import (
    account_error_of,
    says_bad_address,
    says_too_many_recipients,
    sending_limit_of,
    state_of,
)
from mailroom.smtp.session import Receipt

Recipients = Mapping[int, tuple[State, str]]  #: by position: the state, and the reply or our reason

_NO_REPLY = Reply(0, "no reply")


@dataclass(frozen=True)
class Judge:
    """Turns replies into outcomes, by the retry schedule and by what ON_UNCERTAIN says."""

    schedule: Schedule
    on_uncertain: str  #: resend or hold
    groups: Groups

    def replies(self, claim: Claim, receipt: Receipt) -> Outcome:
        """Judge the replies to a mail; a hangup at RCPT is among them."""
        hangup = receipt.hangup
        outcome = self._hangup(claim, receipt, hangup) if hangup else self._answered(claim, receipt)
        # Only a reply to RCPT can be about an address; one to MAIL, DATA or the dot may have the same code.
        bounced = frozenset(at for at, reply in receipt.refused.items() if says_bad_address(reply))
        return replace(outcome, bounced=bounced) if bounced else outcome

    def not_taken(self, claim: Claim, error: NotTaken) -> Outcome:
        """Judge an attempt that ended before the server had the whole mail."""
        return self.defer_or_fail(claim, error.reply, account_error=self._account_error_of(error))

    def unanswered(self, claim: Claim, reason: str) -> Outcome:
        """Judge an attempt whose payload went out and got no reply: ON_UNCERTAIN decides."""
        if self.on_uncertain == "resend":
            return self.defer_or_fail(claim, reason, uncertain=True)
        return of_all(claim, State.UNCERTAIN, reason, uncertain=True)

    def defer_or_fail(
        self,
        claim: Claim,
        reason: str,
        recipients: Recipients | None = None,
        *,
        account_error: AccountError | None = None,
        uncertain: bool = False,
    ) -> Outcome:
        """Defer the mail, or fail it if its attempts are used up.

        With an error of the account the mail waits until an account can send.
        """
        recipients = recipients or dict.fromkeys(claim.pending, (State.DEFERRED, reason))
        wait_seconds = self._wait_seconds(claim)
        deferred = Outcome(state=State.DEFERRED, reason=reason, recipients=recipients)
        if account_error and (account_error.excuses or wait_seconds is not None):
            return replace(deferred, account_error=account_error)
        if wait_seconds is not None:
            return replace(deferred, wait_seconds=wait_seconds, uncertain=uncertain)
        return _give_up(claim, replace(deferred, account_error=account_error, uncertain=uncertain))

    def _answered(self, claim: Claim, receipt: Receipt) -> Outcome:
        """Judge a mail for which each recipient has a reply, of its own or the final one."""
        replies = {at: receipt.refused.get(at, receipt.final) or _NO_REPLY for at in claim.pending}
        recipients = {at: (state_of(reply), str(reply)) for at, reply in replies.items()}
        surplus = [at for at, reply in replies.items() if _is_surplus(claim, reply)]
        recipients |= {at: (State.DEFERRED, str(replies[at])) for at in surplus}
        account_error = self._account_error_among(replies.values())
        if self._may_try_surplus(claim, recipients, surplus) and not account_error:
            return _try_again_at_once(str(replies[surplus[0]]), recipients)
        deferred = [reply for state, reply in recipients.values() if state is State.DEFERRED]
        if deferred:
            reason = account_error.reason if account_error else deferred[0]
            return self.defer_or_fail(claim, reason, recipients, account_error=account_error)
        worst = max(replies.values(), key=lambda reply: reply.code)
        is_sent = claim.sent_before or any(state is State.SENT for state, _ in recipients.values())
        state = State.SENT if is_sent else State.FAILED
        return Outcome(state=state, reason=str(worst), recipients=recipients)

    def _may_try_surplus(self, claim: Claim, recipients: Recipients, surplus: list[int]) -> bool:
        """Tell whether the recipients that were too many may be tried again at once, in smaller groups."""
        if len(surplus) == len(recipients):
            self.groups.shrink(claim.id, claim.pending, answered=len(surplus))
            return True
        # Unless some recipient was settled, this would never come to an end.
        return bool(surplus) and any(state is not State.DEFERRED for state, _ in recipients.values())

    def _hangup(self, claim: Claim, receipt: Receipt, hangup: Reply) -> Outcome:
        """Keep the replies that came before the server hung up; try the others at once, fewer at a time."""
        self.groups.shrink(claim.id, claim.pending, answered=receipt.answered)
        recipients = dict.fromkeys(claim.pending, (State.DEFERRED, str(hangup)))
        for position, reply in receipt.refused.items():
            state = State.DEFERRED if _is_surplus(claim, reply) else state_of(reply)
            recipients[position] = (state, str(reply))
        account_error = sending_limit_of(hangup) or self._account_error_among(receipt.refused.values())
        return replace(_try_again_at_once(str(hangup), recipients), account_error=account_error)

    def _account_error_among(self, replies: Iterable[Reply]) -> AccountError | None:
        """Return the first error of the account among replies, each of which may be about its recipient."""
        errors = (account_error_of(reply, self.schedule) for reply in replies)
        return next((error for error in errors if error), None)

    def _account_error_of(self, error: NotTaken) -> AccountError | None:
        reply = Reply(error.code, error.reply.removeprefix(f"{error.code} "))
        if error.after_rcpt:
            return sending_limit_of(reply)
        account_error = account_error_of(reply, self.schedule, of_message=error.of_message)
        # Its reason may have a code that no server sent.
        return account_error and replace(account_error, reason=error.reply)

    def _wait_seconds(self, claim: Claim) -> float | None:
        """Return the seconds until the next attempt; None if this was the last.

        With its own number of attempts a message repeats the longest wait.
        """
        if claim.max_attempts is None:
            return self.schedule.wait_seconds(claim.counted)
        if claim.counted >= claim.max_attempts:
            return None
        return self.schedule.wait_seconds(min(claim.counted, len(self.schedule.waits)))


def of_all(claim: Claim, state: State, reason: str, *, uncertain: bool = False) -> Outcome:
    """Return an outcome that is the same for all pending recipients."""
    recipients = dict.fromkeys(claim.pending, (state, reason))
    return Outcome(state=state, reason=reason, recipients=recipients, uncertain=uncertain)


def of_group(outcome: Outcome, *, ends_round: bool) -> Outcome:
    """Return the outcome of a mail that was tried for a group of its recipients: the next group goes at once.

    If this was the last group of a round and settled nobody, the mail waits by the schedule: each round
    counts as one attempt.
    """
    settled_some = any(state is not State.DEFERRED for state, _ in outcome.recipients.values())
    waits = outcome.account_error or outcome.uncertain or (ends_round and not settled_some)
    if outcome.state is State.DEFERRED and waits:
        return outcome
    return replace(outcome, state=State.DEFERRED, wait_seconds=0, excused=True)


def _is_surplus(claim: Claim, reply: Reply) -> bool:
    """Tell whether a recipient was refused only because there are others."""
    return says_too_many_recipients(reply) and len(claim.pending) > 1


def _try_again_at_once(reason: str, recipients: Recipients) -> Outcome:
    """Defer the mail by no time, in an attempt that does not count."""
    return Outcome(state=State.DEFERRED, reason=reason, recipients=recipients, wait_seconds=0, excused=True)


def _give_up(claim: Claim, deferred: Outcome) -> Outcome:
    """End a mail whose attempts are used up; recipients who may have it are uncertain, not failed."""
    end = State.UNCERTAIN if deferred.uncertain else State.FAILED
    recipients = dict(deferred.recipients)
    for position, (state, reply) in deferred.recipients.items():
        if state is State.DEFERRED:
            recipients[position] = (end, reply)
    reached_some = claim.sent_before or any(state is State.SENT for state, _ in recipients.values())
    return replace(
        deferred,
        state=State.SENT if reached_some and not deferred.uncertain else end,
        reason=f"gave up after attempt {claim.attempt}: {deferred.reason}",
        recipients=recipients,
    )
