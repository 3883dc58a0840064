"""Counts how much happened, minute by minute, and how much there is just now.

Counts survive restarts and are seen by every process.
What a transaction counts is written at its very end: by one statement for all events of a group commit, and with no lock held before
that. A process adds to rows of its own, so that no two wait for each other.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    event,
    func,
    literal_column,
    select,
    text,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite

from mailroom.model.message import State
from mailroom.store.db.database import Database
from mailroom.store.db.schema import PASSING, jobs, messages, now_ms, tallies, workers
from mailroom.store.db.statements import Given, Rows
from mailroom.store.workers import is_alive

MINUTE_MS = 60_000
#: Minutes that stay apart; what is older is added to minute 0.
KEPT_MINUTES = 2 * 24 * 60
#: Rows of one kind are counted up to here, so that a look is short whatever waits.
DEPTH_MAX = 100_000
#: Rows without a nudge that are looked at for the oldest of them.
OLDEST_LOOK = 1_000

#: Lines of a timeline that are counted, and as what. Every count of messages has the name of a state, or is "accepted".
TALLIED = {
    **{
        str(state): str(state)
        for state in (
            State.SENT,
            State.FAILED,
            State.DEFERRED,
            State.UNCERTAIN,
            State.SUPPRESSED,
            State.CANCELED,
            State.EXPIRED,
            State.HELD,
        )
    },
    "resent": "accepted",  # The new message has no line of its own.
    **{f"job {state}": f"jobs_{state}" for state in ("succeeded", "failed", "timed_out", "canceled")},
}

#: From acceptance to a next hop's 250, in seconds; each bucket is counted as SENT_WITHIN and the sum of all as SENT_MS.
LATENCY_SECONDS = (0.1, 0.5, 1, 5, 30, 120, 600, 3600)
SENT_WITHIN = (*(f"sent_le_{seconds:g}" for seconds in LATENCY_SECONDS), "sent_le_inf")
SENT_MS = "sent_ms"
_LATENCY_MS = [int(seconds * 1000) for seconds in LATENCY_SECONDS]

_counted: WeakKeyDictionary[Connection, Counter[str]] = (
    WeakKeyDictionary()
)  #: by transaction: each has a Connection of its own
_sources: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()


def count(connection: Connection, counts: Mapping[str, int]) -> None:
    """Add to this minute's counts, if the transaction commits."""
    _counted.setdefault(connection, Counter()).update(counts)


def count_each(connection: Connection, names: list[str]) -> list[None]:
    """Count events outside of any other transaction: a work for `write`."""
    count(connection, Counter(names))
    return [None] * len(names)


def count_events(connection: Connection, happened: Iterable[str]) -> None:
    """Count those lines of timelines that are counted."""
    count(connection, Counter(TALLIED[name] for name in happened if name in TALLIED))


def count_latencies(connection: Connection, milliseconds: Iterable[int]) -> None:
    """Count how long messages took from acceptance until they were sent."""
    found = [max(0, one) for one in milliseconds]
    count(connection, Counter(SENT_WITHIN[bisect_left(_LATENCY_MS, one)] for one in found))
    count(connection, {SENT_MS: sum(found)})


@event.listens_for(Engine, "commit")
def _write(connection: Connection) -> None:
    """The last thing of each transaction. In the order of their names, as two of one process may be at it together."""
    if counts := _counted.pop(connection, None):
        source = _sources.setdefault(connection.engine, str(uuid4()))
        rows = [{"event": name, "source": source, "count": n} for name, n in sorted(counts.items()) if n]
        if rows:
            _ADD[connection.dialect.name](connection, rows)


def fold(connection: Connection, rows: Iterable[Any]) -> None:
    """Add to minute 0 what was deleted of old minutes (event, count), so that no total ever goes down."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row.event] += row.count
    if sums:
        _FOLD[connection.dialect.name](
            connection, [{"event": name, "source": "", "count": n} for name, n in sorted(sums.items())]
        )


def is_old(now: int) -> ColumnElement[bool]:
    """Return the condition of the rows that `fold` is for; `now` in milliseconds since 1970."""
    return tallies.c.minute.between(1, now // MINUTE_MS - KEPT_MINUTES)


def _adding(insert: Any, minute: Any) -> Rows:
    def build(given: Given) -> Any:
        # Without a WHERE, SQLite would take ON CONFLICT for a join's condition (sqlite.org/lang_upsert.html, 2.2).
        new = insert(tallies).from_select(["minute", *given], select(minute, *given.values()).where(true()))
        return new.on_conflict_do_update(
            index_elements=["minute", "event", "source"], set_={"count": tallies.c.count + new.excluded.count}
        )

    return Rows(tallies, ("event", "source", "count"), build)


_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_ADD = {name: _adding(insert, now_ms() // MINUTE_MS) for name, insert in _INSERTS.items()}
_FOLD = {name: _adding(insert, literal_column("0")) for name, insert in _INSERTS.items()}


@dataclass(frozen=True, kw_only=True)
class Depths:
    """The amounts just now; of each kind of row DEPTH_MAX at most."""

    messages: dict[str, int]  #: by state; `sending` is all that workers have in hand
    jobs: dict[str, int]  #: queued and running
    oldest_seconds: float  #: how long the queued message that has waited longest for a worker has done so
    workers: int  #: that are alive


@dataclass(frozen=True)
class Tallies:
    """The counts of all processes together."""

    database: Database

    def totals(self) -> dict[str, int]:
        """Each event's count since the beginning; it never goes down."""
        found = select(tallies.c.event, func.sum(tallies.c.count)).group_by(tallies.c.event)
        return {
            name: int(n) for name, n in self.database.read(lambda connection: connection.execute(found).all())
        }

    def over_time(self, since_minute: int, *, stretch: int = 1) -> dict[str, dict[int, int]]:
        """For each event its counts by stretches of so many minutes (since 1970 // stretch); those without any are left out."""
        found = (
            select(tallies.c.event, (tallies.c.minute // stretch).label("place"), func.sum(tallies.c.count))
            .where(tallies.c.minute >= max(1, since_minute))
            .group_by(tallies.c.event, text("place"))
        )
        counts: dict[str, dict[int, int]] = {}
        for name, at, n in self.database.read(lambda connection: connection.execute(found).all()):
            counts.setdefault(name, {})[at] = int(n)
        return counts

    def depths(self, lease_seconds: float) -> Depths:
        row = self.database.read(lambda connection: connection.execute(_depths(lease_seconds)).one())
        since = min(
            (moment for moment in (row.published, row.unpublished) if moment is not None), default=row.now
        )
        return Depths(
            messages={name: getattr(row, name) for name in _QUEUES},
            jobs={name: getattr(row, f"jobs_{name}") for name in _JOBS},
            oldest_seconds=max(0, row.now - since) / 1000,
            workers=row.workers,
        )


# Each finds its rows by a partial index, and names that index's condition as it stands there, or SQLite would not see that it may.
_queued = messages.c.state == literal_column("'queued'")
_listed = messages.c.state.not_in([literal_column(f"'{state}'") for state in PASSING])
_QUEUES = {
    str(state): (_listed, messages.c.state == state)
    for state in (State.SCHEDULED, State.DEFERRED, State.WAITING, State.HELD)
} | {"queued": (_queued,), "sending": (messages.c.owner.is_not(None),)}
_JOBS = {"queued": jobs.c.state == literal_column("'queued'"), "running": jobs.c.owner.is_not(None)}


def _depths(lease_seconds: float) -> Select[Any]:
    """Build one statement for all.

    A message waits since its nudge was last published, or, as long as it has none, since it was accepted.
    """
    waits = {
        name: _number(select(messages.c.id).where(*which)).label(name) for name, which in _QUEUES.items()
    }
    runs = {
        name: _number(select(jobs.c.id).where(which)).label(f"jobs_{name}") for name, which in _JOBS.items()
    }
    published = select(func.min(messages.c.published_at)).where(_queued, messages.c.published_at.is_not(None))
    fresh = (
        select(messages.c.created_at)
        .where(_queued, messages.c.published_at.is_(None))
        .limit(OLDEST_LOOK)
        .subquery()
    )
    return select(
        now_ms().label("now"),
        *waits.values(),
        *runs.values(),
        published.scalar_subquery().label("published"),
        select(func.min(fresh.c.created_at)).scalar_subquery().label("unpublished"),
        _number(select(workers.c.id).where(is_alive(lease_seconds))).label("workers"),
    )


def _number(rows: Select[Any]) -> Any:
    return select(func.count()).select_from(rows.limit(DEPTH_MAX).subquery()).scalar_subquery()
