"""Limits how fast each API key may send.

There is one row a key, written once for each group of messages, in the transaction that accepts them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from mailroom.model.errors import MailroomError
from mailroom.store.db.schema import insertion, now_ms, rates

WINDOW_SECONDS = 60
_WINDOW_NS = WINDOW_SECONDS * 10**9
#: Above this one message would take less than the clock of `rates.full_at` can tell.
PER_MINUTE_MAX = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The result of a charge, and what its key has left."""

    per_minute: int
    count: int  #: messages that were asked for
    passed: bool
    remaining: int  #: messages that it may still send at once
    full_seconds: int  #: until it may send `per_minute` at once again
    retry_seconds: int = 0  #: until what did not pass would


@dataclass
class Charge:
    """Messages that count against a key. `debit` says in `rate` what became of it."""

    key_id: str
    per_minute: int
    count: int = 1
    rate: Rate | None = None


class RateLimited(MailroomError):
    """The key has sent as much as it may for now; nothing of this request was written."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        super().__init__(
            f"expected at most {rate.per_minute} messages a minute, got {rate.count} more; "
            f"there is room for {'them' if rate.count > 1 else 'it'} in {rate.retry_seconds} s"
        )


def debit(connection: Connection, charges: Sequence[Charge | None]) -> list[bool]:
    """For each, in their order, whether it may go on: it has no limit, or there is room for all of its messages, which is taken here.

    The generic cell rate algorithm, with a minute's messages as the burst. What does not pass leaves the room to those after it. Other
    processes wait for the rows until the transaction ends.
    """
    limited = [charge for charge in charges if charge]
    if not limited:
        return [True] * len(charges)
    full_at, now = _lock(connection, sorted({charge.key_id for charge in limited}))
    before = dict(full_at)
    for charge in limited:
        charge.rate, full_at[charge.key_id] = _take(charge, full_at[charge.key_id], now)
    if taken := [{"id": id, "at": at} for id, at in full_at.items() if at != before[id]]:
        connection.execute(
            rates.update().where(rates.c.key_id == bindparam("id")).values(full_at=bindparam("at")), taken
        )
    return [charge is None or charge.rate is None or charge.rate.passed for charge in charges]


def _take(charge: Charge, full_at: int, now: int) -> tuple[Rate, int]:
    """All in nanoseconds, so that a limit that does not divide a minute lets exactly its number pass."""
    each = _WINDOW_NS // charge.per_minute
    burst = each * charge.per_minute
    full_at = min(
        max(full_at, now), now + burst
    )  # A clock that was put back must not shut anybody out for longer.
    wanted = full_at + each * charge.count
    passed = wanted - now <= burst
    full_at = wanted if passed else full_at
    return Rate(
        per_minute=charge.per_minute,
        count=charge.count,
        passed=passed,
        remaining=max(0, burst - (full_at - now)) // each,
        full_seconds=_seconds(full_at - now),
        retry_seconds=0 if passed else _seconds(wanted - now - burst),
    ), full_at


def _seconds(ns: int) -> int:
    return math.ceil(ns / 10**9)


def _lock(connection: Connection, ids: Iterable[str]) -> tuple[dict[str, int], int]:
    """Return when each is full again, and the time now.

    Rows are locked in the order of the ids, so that no two transactions wait for each other.
    """
    found: dict[str, int] = {}
    now = 0
    for id in ids:
        one = select(rates.c.full_at, now_ms().label("now")).where(rates.c.key_id == id).with_for_update()
        row = connection.execute(one).one_or_none()
        if row is None:
            connection.execute(
                insertion(connection, rates).values(key_id=id, full_at=0).on_conflict_do_nothing()
            )
            row = connection.execute(one).one()
        found[id], now = row.full_at, max(now, row.now * 10**6)
    return found, now
