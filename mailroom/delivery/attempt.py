"""Makes one attempt: composes the mail, hands it to the next hop, and has the replies judged."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from mailroom.delivery.groups import Groups
from mailroom.delivery.outcomes import Judge, of_all, of_group
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import NotTaken, StoreUnavailable, TooManyConnections, Unanswered
from mailroom.model.message import Address, State
from mailroom.model.retry import Schedule
from mailroom.smtp.mime import compose
from mailroom.smtp.poller import Dialogue
from mailroom.smtp.pool import Sessions
from mailroom.smtp.receipt import FenceRefused, SessionLost
from mailroom.templating.job import filled_in

log = logging.getLogger("mailasync.delivery")


@dataclass(frozen=True)
class Sender:
    """An account: the address its mails are from, and its sessions with its server."""

    address: Address
    sessions: Sessions


@dataclass(frozen=True)
class AttemptRunner:
    """Makes attempts with the accounts of one worker."""

    senders: Mapping[str, Sender]  #: by the name of the account
    schedule: Schedule
    on_uncertain: str  #: resend or hold
    mailboxes: frozenset[str] = frozenset()  #: accounts whose Sent folder can be searched
    groups: Groups = field(default_factory=Groups)

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.schedule, self.on_uncertain, self.groups, self.mailboxes)

    def close(self) -> None:
        for sender in self.senders.values():
            sender.sessions.close()

    def attempt(self, claim: Claim, *, open_only: bool = False) -> Dialogue[Outcome]:
        """Make one attempt and return its outcome.

        Raises:
          SessionLost: with `open_only`: a new session would have to be opened, which blocks.
          FenceRefused, StoreUnavailable: the fence was not passed; nobody has the mail.
          TooManyConnections: the server takes no further connection; nobody has the mail.
        """
        try:
            sender = self.senders[claim.account]
            payload = compose(filled_in(claim), sender=sender.address)
        except Exception as e:
            # It would fail again in each attempt; its text may hold the mail's content.
            kind = type(e).__name__
            extra = {"message_id": claim.id}
            log.error("message %s could not be composed: %s", claim.id, kind, extra=extra)
            return of_all(claim, State.FAILED, f"could not be composed: {kind}")
        if not claim.pending:
            state = State.SENT if claim.sent_before else State.FAILED
            return Outcome(state=state, reason="nobody is left to send it to")
        chosen = self.groups.choose(claim)
        if chosen == claim.pending:
            return (yield from self._hand_over(claim, payload, open_only=open_only))
        group = replace(claim, pending=chosen)
        outcome = yield from self._hand_over(group, payload, open_only=open_only)
        ends_round = claim.pending[-1] in chosen
        return of_group(outcome, ends_round=ends_round)

    def _hand_over(self, claim: Claim, payload: bytes, *, open_only: bool) -> Dialogue[Outcome]:
        """Hand the mail over for the pending recipients, and judge the replies."""
        sender = self.senders[claim.account]
        message = claim.message
        everyone = message.everyone
        recipients = {position: everyone[position].address for position in claim.pending}
        return_path = message.sender or sender.address
        try:
            receipt = yield from sender.sessions.attempt(
                return_path.address,
                recipients,
                payload,
                smtputf8=message.needs_smtputf8,
                open_only=open_only,
                since=claim.claimed_at,
            )
        except Unanswered as e:
            return self.judge.unanswered(claim, e.reply, e.refused)
        except (SessionLost, FenceRefused, StoreUnavailable, TooManyConnections):
            raise
        except NotTaken as e:
            return self.judge.not_taken(claim, e)
        except Exception as e:  # A bug, before the dot: whatever fails after it raises Unanswered.
            kind = type(e).__name__
            extra = {"message_id": claim.id}
            log.error("message %s attempt %d: %s", claim.id, claim.attempt, kind, extra=extra)
            return self.judge.defer_or_fail(claim, f"internal error: {kind}")
        return self.judge.replies(claim, receipt)
