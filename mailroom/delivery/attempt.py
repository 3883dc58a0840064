"""Makes one attempt, and judges its replies: delivery/delivery.py makes many of them."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from mailroom.delivery.groups import Groups
from mailroom.model.account import AccountError
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import NotTaken, StoreUnavailable, TooManyConnections, Unanswered
from mailroom.model.message import Address, State
from mailroom.model.retry import Schedule
from mailroom.smtp.connection import Reply
from mailroom.smtp.mime import compose
from mailroom.smtp.poller import Dialogue
from mailroom.smtp.pool import Sessions
from mailroom.smtp.replies import (
    account_error_of,
    says_bad_address,
    says_too_many_recipients,
    sending_limit_of,
    state_of,
)
from mailroom.smtp.session import FenceRefused, Receipt, SessionLost
from mailroom.templating.job import filled_in

log = logging.getLogger("mailasync.delivery")


@dataclass(frozen=True)
class Sender:
    """An account: who its mails are from, and its sessions with its server."""

    address: Address
    sessions: Sessions


@dataclass(frozen=True)
class AttemptRunner:
    """Makes attempts, and says what became of them."""

    senders: Mapping[str, Sender]  #: by the name of the account
    schedule: Schedule
    on_uncertain: str  #: resend or hold
    groups: Groups = field(default_factory=Groups)

    def close(self) -> None:
        for sender in self.senders.values():
            sender.sessions.close()

    def attempt(self, claim: Claim, *, open_only: bool = False) -> Dialogue[Outcome]:
        """Make one attempt.

        `open_only`: SessionLost is raised where it takes a new session; FenceRefused, StoreUnavailable and
        TooManyConnections always are.
        """
        try:
            payload = compose(filled_in(claim), sender=self.senders[claim.account].address)
        except Exception as e:  # Whatever it is, it would be so again; its text may hold the content.
            log.error(
                "message %s could not be composed: %s",
                claim.id,
                type(e).__name__,
                extra={"message_id": claim.id},
            )
            return self._for_all(claim, State.FAILED, f"could not be composed: {type(e).__name__}")
        if not claim.pending:
            return Outcome(
                state=State.SENT if claim.sent_before else State.FAILED, reason="nobody is left to send it to"
            )
        group = replace(claim, pending=self.groups.choose(claim))
        outcome = yield from self._hand_over(group, payload, open_only=open_only)
        if group.pending == claim.pending:
            return outcome
        return _of_group(outcome, ends_round=claim.pending[-1] in group.pending)

    def _hand_over(self, claim: Claim, payload: bytes, *, open_only: bool) -> Dialogue[Outcome]:
        """Hand it to those who are pending, and judge how that went."""
        sender, message, everyone = self.senders[claim.account], claim.message, claim.message.everyone
        people = {position: everyone[position].address for position in claim.pending}
        try:
            receipt = yield from sender.sessions.attempt(
                (message.sender or sender.address).address,
                people,
                payload,
                smtputf8=message.needs_smtputf8,
                open_only=open_only,
                since=claim.claimed_at,
            )
        except Unanswered as e:
            return self._uncertain(claim, e.reply)
        except SessionLost:
            raise
        except NotTaken as e:
            return self._later(claim, e.reply, trouble=self._trouble_of(e))
        except (FenceRefused, StoreUnavailable, TooManyConnections):
            raise
        except (
            Exception
        ) as e:  # A fault of ours, before the dot: transport says Unanswered whatever happens after it.
            log.error(
                "message %s attempt %d: %s",
                claim.id,
                claim.attempt,
                type(e).__name__,
                extra={"message_id": claim.id},
            )
            return self._later(claim, f"internal error: {type(e).__name__}")
        outcome = (
            self._cut_off(claim, receipt, receipt.hangup) if receipt.hangup else self._judge(claim, receipt)
        )
        # A reply to MAIL, DATA or the dot may have the same code, and does not say of whom.
        bounced = frozenset(at for at, reply in receipt.refused.items() if says_bad_address(reply))
        return replace(outcome, bounced=bounced) if bounced else outcome

    def _cut_off(self, claim: Claim, receipt: Receipt, end: Reply) -> Outcome:
        """Keep the replies that came before the server hung up; ask for the others at once, fewer at a time."""
        self.groups.narrow(claim.id, claim.pending, receipt.answered)
        found = dict.fromkeys(claim.pending, (State.DEFERRED, str(end)))
        for position, reply in receipt.refused.items():
            is_surplus = says_too_many_recipients(reply) and len(claim.pending) > 1
            found[position] = (State.DEFERRED if is_surplus else state_of(reply), str(reply))
        trouble = sending_limit_of(end) or self._trouble_among(receipt.refused.values())
        return Outcome(
            state=State.DEFERRED,
            reason=str(end),
            recipients=found,
            wait_seconds=0,
            excused=True,
            trouble=trouble,
        )

    def _trouble_among(self, replies: Iterable[Reply]) -> AccountError | None:
        """Return what one of them says of the account; the others may be about their recipients."""
        troubles = (account_error_of(reply, self.schedule) for reply in replies)
        return next((trouble for trouble in troubles if trouble), None)

    def _trouble_of(self, error: NotTaken) -> AccountError | None:
        said = Reply(error.code, error.reply.removeprefix(f"{error.code} "))
        if error.after_rcpt:
            return sending_limit_of(said)
        trouble = account_error_of(said, self.schedule, of_message=error.of_message)
        return trouble and replace(trouble, reason=error.reply)  # A code may be one that nobody said.

    def _judge(self, claim: Claim, receipt: Receipt) -> Outcome:
        """Turn replies into an outcome for each recipient, and for the message."""
        replies = {
            position: receipt.refused.get(position, receipt.final) or Reply(0, "no reply")
            for position in claim.pending
        }
        found = {position: (state_of(reply), str(reply)) for position, reply in replies.items()}
        surplus = {
            position: (State.DEFERRED, str(reply))
            for position, reply in replies.items()
            if says_too_many_recipients(reply) and len(replies) > 1
        }
        found |= surplus
        states = {state for state, _ in found.values()}
        trouble = self._trouble_among(replies.values())
        if len(surplus) == len(found):
            self.groups.narrow(claim.id, claim.pending, len(surplus))
        elif states == {State.DEFERRED}:
            surplus = {}  # At once it would come to no end.
        if surplus and not trouble:
            _, reason = next(iter(surplus.values()))
            return Outcome(
                state=State.DEFERRED, reason=reason, recipients=found, wait_seconds=0, excused=True
            )
        worst = max(replies.values(), key=lambda reply: reply.code)
        if State.DEFERRED in states:
            temporary = next(reply for state, reply in found.values() if state is State.DEFERRED)
            return self._later(claim, trouble.reason if trouble else temporary, found, trouble=trouble)
        sent = State.SENT in states or claim.sent_before
        return Outcome(state=State.SENT if sent else State.FAILED, reason=str(worst), recipients=found)

    def _later(
        self,
        claim: Claim,
        reason: str,
        found: dict[int, tuple[State, str]] | None = None,
        *,
        trouble: AccountError | None = None,
        uncertain: bool = False,
    ) -> Outcome:
        """Defer, or fail where the attempts are used up; with trouble of the account, until an account can send."""
        found = found or dict.fromkeys(claim.pending, (State.DEFERRED, reason))
        wait = self._wait_seconds(claim)
        if trouble and (trouble.excuses or wait is not None):
            return Outcome(state=State.DEFERRED, reason=reason, recipients=found, trouble=trouble)
        if wait is not None:
            return Outcome(
                state=State.DEFERRED, reason=reason, recipients=found, wait_seconds=wait, uncertain=uncertain
            )
        end = State.UNCERTAIN if uncertain else State.FAILED  # Who may have the mail was not failed to.
        given_up = {
            position: (end if state is State.DEFERRED else state, reply)
            for position, (state, reply) in found.items()
        }
        sent = not uncertain and (
            claim.sent_before or any(state is State.SENT for state, _ in given_up.values())
        )
        return Outcome(
            state=State.SENT if sent else end,
            recipients=given_up,
            uncertain=uncertain,
            trouble=trouble,
            reason=f"gave up after attempt {claim.attempt}: {reason}",
        )

    def _wait_seconds(self, claim: Claim) -> float | None:
        """Return how long it is until the next attempt; None if this was the last.

        A message's own number of attempts repeats the longest wait.
        """
        most = claim.max_attempts
        if most is None:
            return self.schedule.wait_seconds(claim.counted)
        return (
            self.schedule.wait_seconds(min(claim.counted, len(self.schedule.waits)))
            if claim.counted < most
            else None
        )

    def _uncertain(self, claim: Claim, reason: str) -> Outcome:
        if self.on_uncertain == "resend":
            return self._later(claim, reason, uncertain=True)
        return self._for_all(claim, State.UNCERTAIN, reason, uncertain=True)

    def _for_all(self, claim: Claim, state: State, reason: str, *, uncertain: bool = False) -> Outcome:
        return Outcome(
            state=state,
            reason=reason,
            recipients=dict.fromkeys(claim.pending, (state, reason)),
            uncertain=uncertain,
        )


def _of_group(outcome: Outcome, *, ends_round: bool) -> Outcome:
    """Return the outcome of a mail of which some were asked for: the others come next, at once.

    Where all had their turn and none was settled by the last of them, they wait by the schedule: one attempt
    that counts for each round.
    """
    brought_further = any(state is not State.DEFERRED for state, _ in outcome.recipients.values())
    waits = outcome.trouble or outcome.uncertain or (ends_round and not brought_further)
    if outcome.state is State.DEFERRED and waits:
        return outcome
    return replace(outcome, state=State.DEFERRED, wait_seconds=0, excused=True)
