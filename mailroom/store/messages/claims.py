"""A worker's steps with messages: claim, fence, finish, release.

Each step is one conditional UPDATE of many rows. A worker can lose a row at any moment: it was paused, and a
sweeper took it for dead. So no step trusts an earlier one: each names the owner and the attempt that it
believes in, and changes only the rows where both are still true. An attempt's number is never used again, so
a step can be repeated where its commit got no answer.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sqlalchemy import BigInteger, Connection, String, exists, func, select
from sqlalchemy.sql.dml import ReturningUpdate

from mailroom.model.account import DEFAULT_ACCOUNT, Capacity, SendingLimit
from mailroom.model.attempt import Claim, Outcome
from mailroom.model.errors import StoreUnavailable
from mailroom.model.message import State
from mailroom.store.accounts import Accounts
from mailroom.store.content import load_attachments
from mailroom.store.db.database import Database, run_in_order
from mailroom.store.db.locking import in_order
from mailroom.store.db.schema import messages, workers
from mailroom.store.db.statements import Rows, parameter
from mailroom.store.messages import outcomes
from mailroom.store.messages.allocation import ClaimedRow, claim_rows
from mailroom.store.messages.claimed import load_claims
from mailroom.store.messages.outcomes import attempts_of, on_record
from mailroom.store.messages.ownership import mine
from mailroom.store.messages.suppressions import drop_suppressed
from mailroom.store.workers import is_seen_within

log = logging.getLogger("mailasync.outbox")


@dataclass(frozen=True, eq=False)
class Claims:
    """The rows of one worker, whose heartbeat is its lease on all of them."""

    database: Database
    owner: str
    lease_seconds: float
    #: One for each account that this worker can send by.
    limits: tuple[SendingLimit, ...] = (SendingLimit(account=DEFAULT_ACCOUNT),)
    free: Callable[[str], Capacity] | None = None  #: how many more mails of an account it can take
    #: Ids that threads of this worker claim or work on, each with their number.
    _in_hand: Counter[str] = field(default_factory=Counter, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def claim(self, ids: Sequence[str]) -> list[Claim]:
        """Become the owner of those of `ids` that are queued, in the order given; each begins a new attempt.

        A row whose owner died before is left for `claim_alone`.
        """
        distinct_ids = list(dict.fromkeys(ids))
        return self._become_owner(distinct_ids, suspects=False)

    def suspect(self, id: str) -> bool:
        """Tell whether this row waits for a worker that does nothing else: its last owner died with it."""
        of_queued = select(messages.c.crashes).where(
            messages.c.id == id,
            messages.c.state == State.QUEUED,
        )
        crashes = self.database.read(lambda connection: connection.scalar(of_queued))
        return crashes not in (None, 0)

    def claim_alone(self, id: str) -> Claim | None:
        """Become the owner of a suspect row; the caller delivers nothing else until that is done."""
        claims = self._become_owner([id], suspects=True)
        return claims[0] if claims else None

    def with_attachments(self, claim: Claim) -> Claim:
        """Return the claim with its attachments, which may be large.

        A worker has thousands of claims, and needs the attachments of few at a time.
        """
        files = self.database.read(lambda connection: load_attachments(connection, [claim.id]))
        attachments = files.get(claim.id, ())
        message = replace(claim.message, attachments=attachments)
        return replace(claim, message=message)

    def fence(self, claim: Claim) -> bool:
        """Tell whether the payload may be sent: row and lease are still ours. If True, that is committed."""
        return self.database.write(self._fence, claim)

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """Commit how the attempt ended; False if the row is no longer ours, and nothing was changed.

        A second call for the same attempt changes nothing.
        """
        return self._end_with(
            claim, outcome, partial(self.database.write, self._finish, (claim, outcome))
        )

    def fence_and_finish(
        self, claims: Sequence[Claim], ended: Sequence[tuple[Claim, Outcome]]
    ) -> tuple[list[Callable[[], bool]], list[Callable[[], bool]]]:
        """Do `fence` for some and `finish` for others, in one commit.

        Each result is a function to call: it returns or raises what `fence` or `finish` would.
        """
        passed, finished = self.database.write_all((self._fence, claims), (self._finish, ended))
        return passed, [
            partial(self._end_with, claim, outcome, write)
            for (claim, outcome), write in zip(ended, finished, strict=True)
        ]

    def release(self, claim: Claim) -> bool:
        """Give back a row of which nothing was sent, whether its fence was passed or not.

        The attempt does not count. False if the row is no longer ours, and nothing was changed. A second call
        for the same attempt changes nothing.
        """
        write = partial(self.database.write, self._release, claim)
        return self._end(claim, write)

    def release_unsent(self) -> int:
        """Give back every row whose fence was not passed, as it cannot be any more; return how many."""
        unsent = (
            messages.c.owner == self.owner,
            messages.c.state == State.SENDING,
        )
        given_back = self.database.write(run_in_order, _give_back().where(*unsent))
        return len(given_back)

    def not_in_hand(self) -> list[Any]:
        """Return the rows (id, attempt) that are ours and that none of our threads works on.

        Their claim was committed, and the answer to that commit got lost.
        """
        ours = select(messages.c.id, messages.c.attempt).where(messages.c.owner == self.owner)
        rows = self.database.read(lambda connection: connection.execute(ours).all())
        with self._lock:
            return [row for row in rows if not self._in_hand[row.id]]

    def _become_owner(self, ids: list[str], *, suspects: bool) -> list[Claim]:
        self._count_in_hand(ids, +1)
        claims: list[Claim] = []
        try:
            # Where sending is limited, alone: beside a finish it would lock accounts and usage in the wrong
            # order.
            is_limited = any(limit.is_limited for limit in self.limits)
            claims = self.database.write(self._claim, (ids, suspects), alone=is_limited)
        finally:
            claimed_ids = {claim.id for claim in claims}
            self._count_in_hand({*ids} - claimed_ids, -1)
        return claims

    def _end_with(self, claim: Claim, outcome: Outcome, write: Callable[[], bool]) -> bool:
        """Finish by `write`, or if that cannot be written, with nothing but the outcome itself."""
        bare = partial(self.database.write, self._finish_bare, (claim, outcome))
        return self._end(claim, write, fallback=bare)

    def _end(
        self, claim: Claim, write: Callable[[], bool], *, fallback: Callable[[], bool] | None = None
    ) -> bool:
        """Let `write` end the attempt; the claim is then no longer in hand, unless the store is unavailable.

        `fallback` is for errors of the values themselves, which `write` would raise again and again.
        """
        try:
            done = write()
        except StoreUnavailable:
            raise  # The caller tries again, and keeps the row in hand.
        except BaseException as e:
            if fallback is None or not isinstance(e, Exception):
                self._count_in_hand([claim.id], -1)
                raise
            log.error(
                "message %s attempt %d: its outcome cannot be written with all that goes with it: %s",
                claim.id,
                claim.attempt,
                type(e).__name__,
                extra={"message_id": claim.id},
            )
            return self._end(claim, fallback)
        self._count_in_hand([claim.id], -1)
        return done

    def _count_in_hand(self, ids: Iterable[str], change: int) -> None:
        with self._lock:
            for id in ids:
                self._in_hand[id] += change
                if not self._in_hand[id]:
                    del self._in_hand[id]

    def _claim(
        self, connection: Connection, requests: list[tuple[list[str], bool]]
    ) -> list[list[Claim]]:
        """Return, for each request (ids, whether they are suspects), claims on those that could be claimed.

        They are loaded in the same transaction. An id in two requests goes to the first.
        """
        accounts = Accounts(self.database, self.limits, self.free)
        allowances = accounts.allowances(connection, locking=True)
        drop_suppressed(connection, {id for ids, _ in requests for id in ids})
        claimed: dict[str, ClaimedRow] = {}
        for suspects in (False, True):
            wanted = [
                id for ids, are_suspects in requests if are_suspects is suspects for id in ids
            ]
            if wanted:
                claimed |= claim_rows(connection, self.owner, wanted, allowances, suspects=suspects)
        claims = load_claims(connection, claimed) if claimed else {}
        results: list[list[Claim]] = []
        for ids, _ in requests:
            results.append([claims.pop(id) for id in ids if id in claims])
        return results

    def _fence(self, connection: Connection, claims: list[Claim]) -> list[bool]:
        rows = [{"id": claim.id, "attempt": claim.attempt} for claim in claims]
        lease_ms = int(self.lease_seconds * 1000)
        fenced = _FENCE(connection, rows, worker=self.owner, lease_ms=lease_ms)
        passed = attempts_of(fenced)
        return [(claim.id, claim.attempt) in passed for claim in claims]

    def _release(self, connection: Connection, claims: list[Claim]) -> list[bool]:
        unfinished = messages.c.state.in_([State.SENDING, State.IN_DATA])
        ours = mine(self.owner, claims)
        statement = in_order(connection, _give_back().where(*ours, unfinished))
        given_back = connection.execute(statement)
        return on_record(connection, claims, attempts_of(given_back))

    def _finish(self, connection: Connection, ended: list[tuple[Claim, Outcome]]) -> list[bool]:
        limited = {limit.account for limit in self.limits if limit.is_limited}
        return outcomes.finish(connection, ended, limited)

    def _finish_bare(
        self, connection: Connection, ended: list[tuple[Claim, Outcome]]
    ) -> list[bool]:
        return outcomes.finish_bare(connection, ended)


def _give_back() -> ReturningUpdate[tuple[str, int]]:
    """End attempts of which nothing was sent; they do not count."""
    return (
        messages.update()
        .values(
            state=State.QUEUED,
            owner=None,
            published_at=None,
            settled=messages.c.attempt,
            excused=messages.c.excused + 1,
            given_back=messages.c.given_back + 1,
        )
        .returning(messages.c.id, messages.c.attempt)
    )


_WORKER = parameter("worker", String)
_LEASE_MS = parameter("lease_ms", BigInteger)
_FENCE = Rows(
    messages,
    ("id", "attempt"),
    lambda row: (
        messages.update()
        .values(state=State.IN_DATA)
        .where(
            messages.c.id == row["id"],
            messages.c.attempt == row["attempt"],
            func.coalesce(messages.c.owner, "") == _WORKER,
            messages.c.state == State.SENDING,
            exists().where(workers.c.id == _WORKER, is_seen_within(_LEASE_MS)),
        )
        .returning(messages.c.id, messages.c.attempt)
    ),
)
