"""Judges the replies to an attempt: the outcome for the message and each recipient, and when to try again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from mailroom.delivery.groups import Groups
from mailroom.model.account import AccountError
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import NotTaken
from mailroom.model.message import State
from mailroom.model.retry import LOOK_WAITS_SECONDS, Schedule
from mailroom.smtp.connection import Reply
from mailroom.smtp.receipt import Receipt
from mailroom.smtp.replies import (
    account_error_of,
    says_bad_address,
    says_too_many_recipients,
    sending_limit_of,
    state_of,
)

Recipients = Mapping[int, tuple[State, str]]  #: by position: the state, and the reply or our reason

_NO_REPLY = Reply(0, "no reply")


@dataclass(frozen=True)
class Judge:
    """Turns replies into outcomes, by the retry schedule and by what ON_UNCERTAIN says."""

    schedule: Schedule
    on_uncertain: str  #: resend or hold
    groups: Groups
    mailboxes: frozenset[str] = frozenset()  #: accounts whose Sent folder can be searched

    def replies(self, claim: Claim, receipt: Receipt) -> Outcome:
        """Judge the replies to a mail; a hangup at RCPT is among them."""
        hangup = receipt.hangup
        outcome = self._hangup(claim, receipt, hangup) if hangup else self._answered(claim, receipt)
        # Only a reply to RCPT can be about an address; one to MAIL, DATA or the dot may have the same code.
        bounced = frozenset(
            position for position, reply in receipt.refused.items() if says_bad_address(reply)
        )
        if not bounced:
            return outcome
        return replace(outcome, bounced=bounced)

    def not_taken(self, claim: Claim, error: NotTaken) -> Outcome:
        """Judge an attempt that ended before the server had the whole mail."""
        account_error = self._account_error_of(error)
        return self.defer_or_fail(claim, error.reply, account_error=account_error)

    def unanswered(
        self, claim: Claim, reason: str, refused: Mapping[int, Reply] = MappingProxyType({})
    ) -> Outcome:
        """Judge an attempt whose payload went out and got no reply: ON_UNCERTAIN decides.

        `refused` are the recipients whom the server had refused before. Where the Sent folder can be
        searched, and no earlier attempt can have left a copy in it, that is done first.
        """
        answered = _answers(claim, refused)
        outcome = self._unanswered(claim, reason, answered)
        if claim.account not in self.mailboxes or claim.taken_before:
            return outcome
        then = State.UNCERTAIN if outcome.state is State.UNCERTAIN else State.QUEUED
        return replace(
            outcome,
            state=State.DEFERRED,
            reason=reason,
            recipients=_all(claim, State.UNCERTAIN, reason) | answered,
            wait_seconds=LOOK_WAITS_SECONDS[0],
            look_up=then,
        )

    def _unanswered(
        self, claim: Claim, reason: str, answered: dict[int, tuple[State, str]]
    ) -> Outcome:
        if self.on_uncertain == "resend":
            recipients = _all(claim, State.DEFERRED, reason) | answered
            return self.defer_or_fail(claim, reason, recipients, uncertain=True)
        outcome = of_all(claim, State.UNCERTAIN, reason, uncertain=True)
        return replace(outcome, recipients={**outcome.recipients, **answered})

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
        if not recipients:
            recipients = dict.fromkeys(claim.pending, (State.DEFERRED, reason))
        wait_seconds = self._wait_seconds(claim)
        deferred = Outcome(
            state=State.DEFERRED,
            reason=reason,
            recipients=recipients,
        )
        if account_error and (account_error.excuses or wait_seconds is not None):
            return replace(deferred, account_error=account_error)
        if wait_seconds is not None:
            return replace(deferred, wait_seconds=wait_seconds, uncertain=uncertain)
        last = replace(deferred, account_error=account_error, uncertain=uncertain)
        return _give_up(claim, last)

    def _answered(self, claim: Claim, receipt: Receipt) -> Outcome:
        """Judge a mail for which each recipient has a reply, of its own or the final one."""
        replies = _replies(claim, receipt)
        recipients: dict[int, tuple[State, str]] = {}
        surplus: list[int] = []
        for position, reply in replies.items():
            state = state_of(reply)
            if _is_surplus(claim, reply):
                state = State.DEFERRED
                surplus.append(position)
            recipients[position] = (state, str(reply))
        account_error = self._account_error_among(replies.values())
        if self._may_try_surplus(claim, recipients, surplus) and not account_error:
            first = replies[surplus[0]]
            return _try_again_at_once(str(first), recipients)
        if _has_any(recipients, State.DEFERRED):
            reason = _reason_to_wait(recipients, account_error)
            return self.defer_or_fail(claim, reason, recipients, account_error=account_error)
        worst = max(replies.values(), key=lambda reply: reply.code)
        return Outcome(
            state=State.SENT if _reached_some(claim, recipients) else State.FAILED,
            reason=str(worst),
            recipients=recipients,
        )

    def _may_try_surplus(self, claim: Claim, recipients: Recipients, surplus: list[int]) -> bool:
        """Tell whether the recipients that were too many may be tried again at once, in smaller groups."""
        if len(surplus) == len(recipients):
            self.groups.shrink(claim.id, claim.pending, answered=len(surplus))
            return True
        if not surplus:
            return False
        # Unless some recipient was settled, this would never come to an end.
        return _settles_some(recipients)

    def _hangup(self, claim: Claim, receipt: Receipt, hangup: Reply) -> Outcome:
        """Keep the replies that came before the server hung up; try the others at once, fewer at a time."""
        self.groups.shrink(claim.id, claim.pending, answered=receipt.answered)
        recipients = _all(claim, State.DEFERRED, str(hangup)) | _answers(claim, receipt.refused)
        account_error = sending_limit_of(hangup)
        if account_error is None:
            account_error = self._account_error_among(receipt.refused.values())
        outcome = _try_again_at_once(str(hangup), recipients)
        return replace(outcome, account_error=account_error)

    def _account_error_among(self, replies: Iterable[Reply]) -> AccountError | None:
        """Return the first error of the account among replies, each of which may be about its recipient."""
        for reply in replies:
            error = account_error_of(reply, self.schedule)
            if error:
                return error
        return None

    def _account_error_of(self, error: NotTaken) -> AccountError | None:
        text = error.reply.removeprefix(f"{error.code} ")
        reply = Reply(error.code, text)
        if error.after_rcpt:
            return sending_limit_of(reply)
        account_error = account_error_of(
            reply,
            self.schedule,
            of_message=error.of_message,
        )
        if account_error is None:
            return None
        # Its reason may have a code that no server sent.
        return replace(account_error, reason=error.reply)

    def _wait_seconds(self, claim: Claim) -> float | None:
        """Return the seconds until the next attempt; None if this was the last.

        With its own number of attempts a message repeats the longest wait.
        """
        if claim.max_attempts is None:
            return self.schedule.wait_seconds(claim.counted)
        if claim.counted >= claim.max_attempts:
            return None
        last = len(self.schedule.waits)
        return self.schedule.wait_seconds(min(claim.counted, last))


def _answers(claim: Claim, refused: Mapping[int, Reply]) -> dict[int, tuple[State, str]]:
    """Return what the replies to RCPT mean for those who were refused; surplus ones are tried again."""
    states = {
        position: State.DEFERRED if _is_surplus(claim, reply) else state_of(reply)
        for position, reply in refused.items()
    }
    return {position: (state, str(refused[position])) for position, state in states.items()}


def _all(claim: Claim, state: State, reply: str) -> dict[int, tuple[State, str]]:
    return dict.fromkeys(claim.pending, (state, reply))


def of_all(claim: Claim, state: State, reason: str, *, uncertain: bool = False) -> Outcome:
    """Return an outcome that is the same for all pending recipients."""
    return Outcome(
        state=state,
        reason=reason,
        recipients=_all(claim, state, reason),
        uncertain=uncertain,
    )


def of_group(outcome: Outcome, *, ends_round: bool) -> Outcome:
    """Return the outcome of a mail that was tried for a group of its recipients: the next group goes at once.

    If this was the last group of a round and settled nobody, the mail waits by the schedule: each round
    counts as one attempt.
    """
    settled_none = ends_round and not _settles_some(outcome.recipients)
    waits = outcome.account_error or outcome.uncertain or settled_none
    if outcome.state is State.DEFERRED and waits:
        return outcome
    return replace(
        outcome,
        state=State.DEFERRED,
        wait_seconds=0,
        excused=True,
    )


def _replies(claim: Claim, receipt: Receipt) -> dict[int, Reply]:
    """Return the reply for each pending recipient, by position: its own or the final one."""
    replies = {}
    for position in claim.pending:
        reply = receipt.refused.get(position, receipt.final)
        replies[position] = reply or _NO_REPLY
    return replies


def _reason_to_wait(recipients: Recipients, account_error: AccountError | None) -> str:
    """Return why the mail waits: the error of the account, or the reply for the first who has to wait."""
    if account_error:
        return account_error.reason
    return next(reply for state, reply in recipients.values() if state is State.DEFERRED)


def _has_any(recipients: Recipients, wanted: State) -> bool:
    return any(state is wanted for state, _ in recipients.values())


def _settles_some(recipients: Recipients) -> bool:
    return any(state is not State.DEFERRED for state, _ in recipients.values())


def _reached_some(claim: Claim, recipients: Recipients) -> bool:
    """Tell whether a recipient has the mail, by this attempt or by an earlier one."""
    return claim.sent_before or _has_any(recipients, State.SENT)


def _is_surplus(claim: Claim, reply: Reply) -> bool:
    """Tell whether a recipient was refused only because there are others."""
    return says_too_many_recipients(reply) and len(claim.pending) > 1


def _try_again_at_once(reason: str, recipients: Recipients) -> Outcome:
    """Defer the mail by no time, in an attempt that does not count."""
    return Outcome(
        state=State.DEFERRED,
        reason=reason,
        recipients=recipients,
        wait_seconds=0,
        excused=True,
    )


def _give_up(claim: Claim, deferred: Outcome) -> Outcome:
    """End a mail whose attempts are used up; recipients who may have it are uncertain, not failed."""
    end = State.FAILED
    if deferred.uncertain:
        end = State.UNCERTAIN
    recipients = dict(deferred.recipients)
    for position, (state, reply) in deferred.recipients.items():
        if state is State.DEFERRED:
            recipients[position] = (end, reply)
    state = end
    if _reached_some(claim, recipients) and not deferred.uncertain:
        state = State.SENT
    return replace(
        deferred,
        state=state,
        reason=f"gave up after attempt {claim.attempt}: {deferred.reason}",
        recipients=recipients,
    )
