"""Records what happens to messages and jobs, in the transaction in which it happens."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import events
from mailroom.store.db.statements import inserted
from mailroom.store.events.counters import count_events
from mailroom.store.events.webhook_events import enqueue_webhooks

_NEW = inserted(events, ("id", "event", "attempt", "detail"), at=now_ms())


def record(connection: Connection, happened: Iterable[dict[str, Any]]) -> None:
    """Add lines to timelines, and count and deliver these events.

    Each is an `event` of the message or job `id`, with its `attempt` and `detail` where it has them. It comes
    after the change, as webhooks also get the message's state.
    """
    rows = list(happened)
    if rows:
        _NEW(connection, rows)
        count_events(connection, (row["event"] for row in rows))
        enqueue_webhooks(connection, rows)
