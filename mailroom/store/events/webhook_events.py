"""The events that webhooks get, and the deliveries that are enqueued for them.

There is a row for each event and each webhook that wants it. It is written in the transaction of the change
that it is about, so that no event is lost, and none is delivered that did not happen.
"""

import base64
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from mailroom.store.db.dialects import insertion, now_ms
from mailroom.store.db.schema import deliveries, messages, webhooks
from mailroom.store.db.statements import Prepared

#: The events of a message that webhooks get, as "message.sent". `sending` and `in_data` are over too soon to
#: be of use.
EVENTS = (
    "accepted",
    "queued",
    "rescheduled",
    "held",
    "released",
    "retried",
    "sent",
    "deferred",
    "failed",
    "uncertain",
    "canceled",
    "expired",
    "suppressed",
    "delayed",
    "bounced",
    "complained",
)
TYPES = tuple(f"message.{event}" for event in EVENTS)
TEST = "webhook.test"
#: The row of `webhooks` that stands for the URLs that messages name themselves: it has their secret.
OWN = "own"
ENABLED, DISABLED = "enabled", "disabled"
PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"

#: Ids that one statement names; PostgreSQL takes 65,535 values at most.
CHUNK = 1000


def enqueue_webhooks(connection: Connection, happened: Sequence[Mapping[str, Any]]) -> None:
    """Add a delivery for each of these events and each webhook that wants it.

    Each is an `event` of the message `id`, with its `attempt` and `detail` where it has them. `webhook` is
    needed only where the message is new: the URL that the message itself names. Events that webhooks do not
    get, such as those of jobs, are ignored. `timeline.record` calls this by itself; others call it for a
    change that has no line in the timeline. It comes after the change, as a delivery also has the message's
    state.
    """
    new = [row for row in happened if row["event"] in EVENTS]
    if not new:
        return
    wanted = _wanted_types(connection, names_url=any(row.get("webhook") for row in new))
    new = [row for row in new if any(_type(row) in types for types in wanted.values())]
    if not new:
        return
    known = _known(connection, [row["id"] for row in new], only_own=wanted.keys() == {OWN})
    new_deliveries = [
        _new_row(row, known[row["id"]], webhook_id)
        for row in new
        for webhook_id, types in wanted.items()
        if row["id"] in known
        and _type(row) in types
        and (webhook_id != OWN or known[row["id"]].webhook)
    ]
    if new_deliveries:
        connection.execute(_NEW, new_deliveries)


def _wanted_types(connection: Connection, *, names_url: bool) -> dict[str, frozenset[str]]:
    """Return the types of events that each enabled webhook wants, by its id.

    `names_url`: a new message names a URL of its own, so that the row for those has to be there.
    """
    rows = _WEBHOOKS(connection)
    if names_url and OWN not in {row.id for row in rows}:
        have_own(connection)
        rows = _WEBHOOKS(connection)
    enabled = [row for row in rows if row.state == ENABLED]
    return {row.id: frozenset((row.events or ",".join(TYPES)).split(",")) for row in enabled}


def _type(row: Mapping[str, Any]) -> str:
    return f"message.{row['event']}"


def _new_row(row: Mapping[str, Any], message: Any, webhook_id: str) -> dict[str, Any]:
    return {
        "webhook_id": webhook_id,
        "message_id": row["id"],
        "event": _type(row),
        "status": message.state,
        "message_attempt": row.get("attempt"),
        "detail": row.get("detail"),
    }


def have_own(connection: Connection) -> None:
    """Make the row for the URLs that messages name, unless it exists or another transaction is making it."""
    connection.execute(
        insertion(connection, webhooks)
        .values(id=OWN, url="", secret=new_secret(), events="", state=ENABLED, created_at=now_ms())
        .on_conflict_do_nothing()
    )


def new_secret() -> str:
    """Make a key for Standard Webhooks, which asks for 24 to 64 random bytes in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


_WEBHOOKS = Prepared(lambda dialect: select(webhooks.c.id, webhooks.c.events, webhooks.c.state))
_NEW = insert(deliveries).values(at=now_ms(), next_attempt_at=now_ms())


def _known(connection: Connection, ids: list[str], *, only_own: bool) -> dict[str, Any]:
    """Return the state and URL of these messages, by id; `only_own`: only of those with a URL."""
    statement = select(messages.c.id, messages.c.state, messages.c.webhook)
    if only_own:
        statement = statement.where(messages.c.webhook.is_not(None))
    known: dict[str, Any] = {}
    for start in range(0, len(ids), CHUNK):
        chunk = ids[start : start + CHUNK]
        known |= {
            row.id: row for row in connection.execute(statement.where(messages.c.id.in_(chunk)))
        }
    return known
