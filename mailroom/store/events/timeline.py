"""Writes down what happened to messages and jobs, in the transaction in which it happens."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from mailroom.store.db.schema import events, now_ms
from mailroom.store.db.statements import inserted
from mailroom.store.events.counters import count_events
from mailroom.store.events.deliveries import tell

_NEW = inserted(events, ("id", "event", "attempt", "detail"), at=now_ms())


def record(connection: Connection, happened: Iterable[dict[str, Any]]) -> None:
    """Add lines to timelines: of the message or job `id` an `event`, with its `attempt` and `detail` where it has them.

    Called after the change: clients are told of the state that the message is in then.
    """
    rows = list(happened)
    if rows:
        _NEW(connection, rows)
        count_events(connection, (row["event"] for row in rows))
        tell(connection, rows)
