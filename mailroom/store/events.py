"""Writes down what happened to messages and jobs, in the transaction in which it happens."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from mailroom.store.deliveries import tell
from mailroom.store.schema import events, now_ms
from mailroom.store.tallies import count_events


def record(connection: Connection, happened: Iterable[dict[str, Any]]) -> None:
    """Add lines to timelines: of the message or job `id` an `event`, with its `attempt` and `detail` where it has them.

    Called after the change: clients are told of the state that the message is in then.
    """
    rows = [{"attempt": None, "detail": None, **row} for row in happened]
    if rows:
        connection.execute(events.insert().values(at=now_ms()), rows)
        count_events(connection, (row["event"] for row in rows))
        tell(connection, rows)
