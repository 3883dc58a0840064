"""Moves all times that matter when the database's clock is set back.

Else messages would wait for that much longer, and dead workers seem alive.
"""

import logging
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, or_, select, update

from mailroom.model.message import FINAL, State
from mailroom.model.times import readable_time
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.locking import in_order
from mailroom.store.db.schema import accounts, clock, deliveries, jobs, messages, samples, workers

log = logging.getLogger("mailasync.clock")

#: How often the time is noted; after a step a wait can be longer by as much.
NOTED_MS = 5_000
#: After a smaller step nothing is moved, and everything waits for that much longer.
STEP_MIN_MS = 2_000
#: How long /readyz reports a step.
REPORTED_MS = 24 * 3600_000
MINUTE_MS = 60_000


@dataclass(frozen=True)
class Clock:
    """The clock of one database. Every process watches it, and one of them moves what waits."""

    database: Database

    def watch(self) -> int:
        """Move all that waits if the clock was set back; return the time, in milliseconds since 1970."""
        now, latest, _, _ = self._look()
        if latest - now > STEP_MIN_MS:
            self.database.transaction(_move)
        elif now - latest >= NOTED_MS:
            self.database.write(_note, now, alone=True)
        return now

    def trouble(self) -> str:
        """Describe the last step to an operator; "" if there was none of late."""
        now, latest, stepped_at, step_ms = self._look()
        if latest - now > STEP_MIN_MS:
            return f"set back by {_seconds(latest - now)}; what waits is moved by that in a moment"
        if stepped_at is None or now - stepped_at > REPORTED_MS:
            return ""
        when = readable_time(stepped_at)
        return f"set back by {_seconds(step_ms)} at {when}; what waited was moved by that"

    def _look(self) -> tuple[int, int, int | None, int]:
        """Return now, the latest time that was noted, when the last step was noticed, and its length."""
        now, latest, stepped_at, step_ms = self.database.read(
            lambda connection: connection.execute(_LOOK).one()
        )
        return now, latest, stepped_at, step_ms


_LOOK = select(now_ms(), clock.c.latest_at, clock.c.stepped_at, clock.c.step_ms)


def _seconds(ms: int) -> str:
    return f"{ms / 1000:,.0f} s"


def _note(connection: Connection, times: list[int]) -> list[None]:
    connection.execute(
        update(clock).where(clock.c.latest_at < max(times)).values(latest_at=max(times))
    )
    return [None] * len(times)


def _move(connection: Connection) -> None:
    """Move all that waits by what the clock was set back, unless another process has done so."""
    now, latest, _, _ = connection.execute(_LOOK.with_for_update()).one()
    step = latest - now
    if step <= STEP_MIN_MS:
        return
    for column, *conditions in _COMING:
        moved = (
            update(column.table).where(column > now, *conditions).values({column: column - step})
        )
        connection.execute(in_order(connection, moved))
    for column, *conditions in _GONE:
        past = _not_after(now, column - step)
        moved = update(column.table).where(column > now, *conditions).values({column: past})
        connection.execute(in_order(connection, moved))
    connection.execute(
        in_order(connection, delete(samples).where(samples.c.minute > now // MINUTE_MS))
    )
    connection.execute(update(clock).values(latest_at=now, stepped_at=now, step_ms=step))
    log.warning(
        "the database's clock was set back by %s; what waits was moved by that", _seconds(step)
    )


def _not_after(now: int, time: ColumnElement[int]) -> ColumnElement[int]:
    return case((time > now, now), else_=time)


#: Future times that were computed from the old clock. Times that a client named stay as they are, as does
#: `expires_at`, after which nothing waits.
_COMING: tuple[tuple[Any, ...], ...] = (
    (
        messages.c.next_attempt_at,
        or_(messages.c.state == State.DEFERRED, messages.c.at_named.is_(None)),
    ),
    (jobs.c.next_attempt_at,),
    (deliveries.c.next_attempt_at,),
    (accounts.c.until,),
)
#: Past times, which cannot be later than now. Messages and jobs that have ended keep theirs.
_GONE: tuple[tuple[Any, ...], ...] = (
    (messages.c.created_at, messages.c.state.not_in(FINAL)),
    (messages.c.published_at, messages.c.state == State.QUEUED),
    (jobs.c.created_at, jobs.c.finished_at.is_(None)),
    (jobs.c.started_at, jobs.c.finished_at.is_(None)),
    (workers.c.seen_at,),
)
