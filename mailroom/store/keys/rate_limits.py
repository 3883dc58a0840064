"""Limits how fast each API key may send.

There is one row for each key, written once for each group of messages, in the transaction that accepts them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, select

from mailroom.model.errors import MailroomError
from mailroom.store.db.access_schema import rates
from mailroom.store.db.dialects import insertion, now_ms

WINDOW_SECONDS = 60
_WINDOW_NS = WINDOW_SECONDS * 10**9
#: A higher rate would be too fine for the nanoseconds of `rates.full_at`.
PER_MINUTE_MAX = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The result of a charge, and what its key has left."""

    per_minute: int
    count: int  #: messages of the charge
    passed: bool
    remaining: int  #: messages that the key may still send at once
    full_seconds: int  #: until the key may send `per_minute` at once again
    retry_seconds: int = 0  #: until a charge that did not pass would


@dataclass
class Charge:
    """Messages that count against a key. `debit` sets `rate`, the result."""

    key_id: str
    per_minute: int
    count: int = 1
    rate: Rate | None = None


class RateLimited(MailroomError):
    """The key has reached its limit for now; nothing of this request was written."""

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        super().__init__(
            f"expected at most {rate.per_minute} messages a minute, got {rate.count} more; "
            f"there is room for {'them' if rate.count > 1 else 'it'} in {rate.retry_seconds} s"
        )


def debit(connection: Connection, charges: Sequence[Charge | None]) -> list[bool]:
    """Make each charge, in this order, and tell whether it passes: all its messages are within the limit.

    This is the generic cell rate algorithm, with the messages of a minute as the burst. A charge that does
    not pass costs nothing. Other processes wait for the rows until the transaction ends.
    """
    limited = [charge for charge in charges if charge]
    if not limited:
        return [True] * len(charges)
    full_at, now = _lock(connection, sorted({charge.key_id for charge in limited}))
    before = dict(full_at)
    for charge in limited:
        charge.rate, full_at[charge.key_id] = _take(charge, full_at[charge.key_id], now)
    changed = [{"id": id, "at": at} for id, at in full_at.items() if at != before[id]]
    if changed:
        by_key = rates.update().where(rates.c.key_id == bindparam("id"))
        connection.execute(by_key.values(full_at=bindparam("at")), changed)
    return [charge is None or charge.rate is None or charge.rate.passed for charge in charges]


def _take(charge: Charge, full_at: int, now: int) -> tuple[Rate, int]:
    """Charge one key; return the result and the new `full_at`.

    Times are in nanoseconds, so that a limit that does not divide a minute lets exactly its number pass.
    """
    each = _WINDOW_NS // charge.per_minute
    burst = each * charge.per_minute
    # After the clock was set back, nobody is shut out for longer than a full burst takes.
    full_at = min(max(full_at, now), now + burst)
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
    """Lock the rows of these keys, in order; return each `full_at`, and the time now, in nanoseconds."""
    full_at: dict[str, int] = {}
    now = 0
    for id in ids:
        row = _lock_one(connection, id)
        full_at[id], now = row.full_at, max(now, row.now * 10**6)
    return full_at, now


def _lock_one(connection: Connection, id: str) -> Any:
    locked = (
        select(rates.c.full_at, now_ms().label("now")).where(rates.c.key_id == id).with_for_update()
    )
    row = connection.execute(locked).one_or_none()
    if row is None:
        new = insertion(connection, rates).values(key_id=id, full_at=0).on_conflict_do_nothing()
        connection.execute(new)
        row = connection.execute(locked).one()
    return row
