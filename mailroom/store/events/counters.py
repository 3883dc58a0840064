"""Counts events, minute by minute, and what there is at this moment.

Counts survive restarts, and every process reads the same. A transaction writes its counts at its very end,
with one statement for all events of a group commit, so that their rows are locked as shortly as can be. Each
process adds to rows of its own, so that no two wait for each other.
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
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import PASSING, jobs, messages, tallies, workers
from mailroom.store.db.statements import Rows, RowValues
from mailroom.store.workers import is_alive

MINUTE_MS = 60_000
#: How many minutes are kept one by one; older ones are added to minute 0.
KEPT_MINUTES = 2 * 24 * 60
#: The most rows of one kind that are counted, so that it takes little time whatever waits.
DEPTH_MAX = 100_000
#: The most rows without a nudge that are searched for the oldest.
OLDEST_LOOK = 1_000

_COUNTED_STATES = (
    State.SENT,
    State.FAILED,
    State.DEFERRED,
    State.UNCERTAIN,
    State.SUPPRESSED,
    State.CANCELED,
    State.EXPIRED,
    State.HELD,
    State.BOUNCED,
    State.COMPLAINED,
)
_COUNTED_JOB_STATES = ("succeeded", "failed", "timed_out", "canceled")
#: The names of the counts, by the events of timelines. One of messages is the name of a state, or "accepted".
COUNTED = {str(state): str(state) for state in _COUNTED_STATES}
COUNTED |= {f"job {state}": f"jobs_{state}" for state in _COUNTED_JOB_STATES}
COUNTED["resent"] = "accepted"  # The new message has no line of its own.

#: Upper bounds of a histogram: seconds from acceptance to the next hop's 250.
#: Its buckets are counted under the names of SENT_WITHIN, the sum of all times as SENT_MS.
LATENCY_SECONDS = (0.1, 0.5, 1, 5, 30, 120, 600, 3600)
SENT_WITHIN = (*(f"sent_le_{seconds:g}" for seconds in LATENCY_SECONDS), "sent_le_inf")
SENT_MS = "sent_ms"
_LATENCY_MS = [int(seconds * 1000) for seconds in LATENCY_SECONDS]

#: The counts of each transaction, which has a Connection of its own.
_counted: WeakKeyDictionary[Connection, Counter[str]] = WeakKeyDictionary()
_sources: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()


def count(connection: Connection, counts: Mapping[str, int]) -> None:
    """Add to this minute's counts, if the transaction commits."""
    _counted.setdefault(connection, Counter()).update(counts)


def count_each(connection: Connection, names: list[str]) -> list[None]:
    """Count events outside of any other transaction: a work for `write`."""
    count(connection, Counter(names))
    return [None] * len(names)


def count_events(connection: Connection, happened: Iterable[str]) -> None:
    """Count events of timelines, without those that are not in COUNTED."""
    count(connection, Counter(COUNTED[name] for name in happened if name in COUNTED))


def count_latencies(connection: Connection, milliseconds: Iterable[int]) -> None:
    """Count how long messages took from acceptance until they were sent."""
    latencies = [max(0, latency) for latency in milliseconds]
    count(
        connection, Counter(SENT_WITHIN[bisect_left(_LATENCY_MS, latency)] for latency in latencies)
    )
    count(connection, {SENT_MS: sum(latencies)})


@event.listens_for(Engine, "commit")
def _write(connection: Connection) -> None:
    """Write the counts of a transaction, just before its COMMIT.

    They are sorted by name, as two threads of this process may write the same rows at a time.
    """
    if counts := _counted.pop(connection, None):
        source = _sources.setdefault(connection.engine, str(uuid4()))
        rows = [
            {"event": name, "source": source, "count": n} for name, n in sorted(counts.items()) if n
        ]
        if rows:
            _ADD[connection.dialect.name](connection, rows)


def fold(connection: Connection, rows: Iterable[Any]) -> None:
    """Add the deleted rows of old minutes (event, count) to minute 0, so that no total ever goes down."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row.event] += row.count
    if sums:
        folded = [{"event": name, "source": "", "count": n} for name, n in sorted(sums.items())]
        _FOLD[connection.dialect.name](connection, folded)


def is_old(now: int) -> ColumnElement[bool]:
    """Return the condition of rows to `fold`; `now` in milliseconds since 1970."""
    return tallies.c.minute.between(1, now // MINUTE_MS - KEPT_MINUTES)


def _adding(insert: Any, minute: Any) -> Rows:
    def build(row: RowValues) -> Any:
        # Without a WHERE, SQLite would take ON CONFLICT for a join's condition (sqlite.org/lang_upsert.html,
        # 2.2).
        new = insert(tallies).from_select(
            ["minute", *row], select(minute, *row.values()).where(true())
        )
        return new.on_conflict_do_update(
            index_elements=["minute", "event", "source"],
            set_={"count": tallies.c.count + new.excluded.count},
        )

    return Rows(tallies, ("event", "source", "count"), build)


_INSERTS = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_ADD = {name: _adding(insert, now_ms() // MINUTE_MS) for name, insert in _INSERTS.items()}
_FOLD = {name: _adding(insert, literal_column("0")) for name, insert in _INSERTS.items()}


@dataclass(frozen=True, kw_only=True)
class Depths:
    """The numbers of rows at this moment; of each kind of row DEPTH_MAX at most."""

    messages: dict[str, int]  #: by state; `sending` is all that workers own
    jobs: dict[str, int]  #: queued and running
    oldest_seconds: float  #: how long the message that was queued first has waited for a worker
    workers: int  #: that are alive


@dataclass(frozen=True)
class Counters:
    """The counts of all processes together."""

    database: Database

    def totals(self) -> dict[str, int]:
        """Return how often each event happened since the beginning; none ever goes down."""
        totals = select(tallies.c.event, func.sum(tallies.c.count)).group_by(tallies.c.event)
        rows = self.database.read(lambda connection: connection.execute(totals).all())
        return {name: int(n) for name, n in rows}

    def over_time(self, since_minute: int, *, stretch: int = 1) -> dict[str, dict[int, int]]:
        """Return the counts of each event by intervals of `stretch` minutes.

        An interval is the minute since 1970 // `stretch`; those without an event are left out.
        """
        interval = (tallies.c.minute // stretch).label("place")
        sums = (
            select(tallies.c.event, interval, func.sum(tallies.c.count))
            .where(tallies.c.minute >= max(1, since_minute))
            .group_by(tallies.c.event, text("place"))
        )
        counts: dict[str, dict[int, int]] = {}
        for name, at, n in self.database.read(lambda connection: connection.execute(sums).all()):
            counts.setdefault(name, {})[at] = int(n)
        return counts

    def depths(self, lease_seconds: float) -> Depths:
        row = self.database.read(
            lambda connection: connection.execute(_depths(lease_seconds)).one()
        )
        times = [time for time in (row.published, row.unpublished) if time is not None]
        since = min(times, default=row.now)
        running = {name: getattr(row, f"jobs_{name}") for name in _JOBS}
        return Depths(
            messages={name: getattr(row, name) for name in _QUEUES},
            jobs=running,
            oldest_seconds=max(0, row.now - since) / 1000,
            workers=row.workers,
        )


# Each is found by a partial index, and names that index's condition just as it stands there: else SQLite does
# not use it.
_queued = messages.c.state == literal_column("'queued'")
_listed = messages.c.state.not_in([literal_column(f"'{state}'") for state in PASSING])
_LISTED_STATES = (State.SCHEDULED, State.DEFERRED, State.WAITING, State.HELD)
_QUEUES: dict[str, tuple[ColumnElement[bool], ...]] = {
    str(state): (_listed, messages.c.state == state) for state in _LISTED_STATES
}
_QUEUES |= {"queued": (_queued,), "sending": (messages.c.owner.is_not(None),)}
_JOBS = {"queued": jobs.c.state == literal_column("'queued'"), "running": jobs.c.owner.is_not(None)}


def _depths(lease_seconds: float) -> Select[Any]:
    """Select all of it with one statement.

    A message waits since its nudge was last published, or, as long as it has none, since it was accepted.
    """
    waiting = [
        _number(select(messages.c.id).where(*conditions)).label(name)
        for name, conditions in _QUEUES.items()
    ]
    running = [
        _number(select(jobs.c.id).where(condition)).label(f"jobs_{name}")
        for name, condition in _JOBS.items()
    ]
    published = select(func.min(messages.c.published_at)).where(
        _queued, messages.c.published_at.is_not(None)
    )
    unpublished = (
        select(messages.c.created_at)
        .where(_queued, messages.c.published_at.is_(None))
        .limit(OLDEST_LOOK)
        .subquery()
    )
    return select(
        now_ms().label("now"),
        *waiting,
        *running,
        published.scalar_subquery().label("published"),
        select(func.min(unpublished.c.created_at)).scalar_subquery().label("unpublished"),
        _number(select(workers.c.id).where(is_alive(lease_seconds))).label("workers"),
    )


def _number(rows: Select[Any]) -> Any:
    return select(func.count()).select_from(rows.limit(DEPTH_MAX).subquery()).scalar_subquery()
