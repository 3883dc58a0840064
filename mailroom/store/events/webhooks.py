"""Webhooks as a client sees them: create, list, change and delete one, and its deliveries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from mailroom.model.errors import MailroomError
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import deliveries, webhooks
from mailroom.store.events.deliveries import disable, forget
from mailroom.store.events.webhook_events import ENABLED, OWN, PENDING, TEST, have_own, new_secret

#: Each of them adds a row for every event.
WEBHOOKS_MAX = 20


class TooMany(MailroomError):
    """There are WEBHOOKS_MAX already."""


@dataclass(frozen=True)
class Webhooks:
    """The webhooks of an outbox. Every write is `alone`: it is rare, and may lock many rows."""

    database: Database

    def create(self, url: str, events: Sequence[str] = ()) -> str:
        """Return the id of a new webhook for these events, without any for all. Raises TooMany."""
        id = self.database.write(_create, (url, events), alone=True)
        if id is None:
            raise TooMany(f"expected at most {WEBHOOKS_MAX} webhooks")
        return id

    def all(self) -> list[dict[str, Any]]:
        by_age = select(webhooks).order_by(webhooks.c.created_at, webhooks.c.id)
        return self.database.read(lambda connection: _all(connection, by_age))

    def get(self, id: str) -> dict[str, Any] | None:
        """Return a webhook, None if there is none; the one for URLs that messages name is made if need be."""
        webhook = self.database.read(lambda connection: _get(connection, id))
        if webhook is None and id == OWN:
            self.database.write(_own, None, alone=True)
            webhook = self.database.read(lambda connection: _get(connection, id))
        return webhook

    def change(
        self,
        id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        enabled: bool | None = None,
    ) -> bool:
        """Change all that is not None; False if there is no webhook with this id."""
        return self.database.write(_change, (id, url, events, enabled), alone=True)

    def delete(self, id: str) -> bool:
        """Delete it with its deliveries; False if there is no webhook with this id."""
        return self.database.write(_delete, id, alone=True)

    def test(self, id: str) -> dict[str, Any]:
        """Enqueue the delivery of a test event; return that delivery."""
        return self.database.write(_test, id, alone=True)

    def page(self, id: str, *, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """Return the newest deliveries to it; `before`: only those with smaller numbers."""
        page = (
            select(deliveries)
            .where(deliveries.c.webhook_id == id)
            .order_by(deliveries.c.number.desc())
            .limit(limit)
        )
        if before is not None:
            page = page.where(deliveries.c.number < before)
        return self.database.read(lambda connection: _all(connection, page))

    def delivery(self, id: str, number: int) -> dict[str, Any] | None:
        """Return a delivery, None if there is none."""
        return self.database.read(lambda connection: _delivery(connection, id, number))

    def replay(self, id: str, number: int) -> bool:
        """Deliver it once more, with a new schedule; False if a worker has it or the webhook is disabled."""
        return self.database.write(_replay, (id, number), alone=True)


def _create(connection: Connection, requests: list[tuple[str, Sequence[str]]]) -> list[str | None]:
    return [_create_one(connection, url, events) for url, events in requests]


def _create_one(connection: Connection, url: str, events: Sequence[str]) -> str | None:
    count = connection.scalar(select(func.count()).select_from(webhooks)) or 0
    if count >= WEBHOOKS_MAX:
        return None
    id = str(uuid4())
    connection.execute(
        insert(webhooks).values(
            id=id,
            url=url,
            secret=new_secret(),
            events=",".join(events),
            state=ENABLED,
            created_at=now_ms(),
        )
    )
    return id


def _all(connection: Connection, statement: Select[Any]) -> list[dict[str, Any]]:
    rows = connection.execute(statement).mappings()
    return [dict(row) for row in rows]


def _get(connection: Connection, id: str) -> dict[str, Any] | None:
    webhook = select(webhooks).where(webhooks.c.id == id)
    row = connection.execute(webhook).mappings().one_or_none()
    return None if row is None else dict(row)


def _own(connection: Connection, items: list[None]) -> list[None]:
    have_own(connection)
    return items


def _change(
    connection: Connection,
    requests: list[tuple[str, str | None, Sequence[str] | None, bool | None]],
) -> list[bool]:
    return [_change_one(connection, *request) for request in requests]


def _change_one(
    connection: Connection,
    id: str,
    url: str | None,
    events: Sequence[str] | None,
    enabled: bool | None,
) -> bool:
    values: dict[str, Any] = {}
    if url is not None:
        values["url"] = url
    if events is not None:
        values["events"] = ",".join(events)
    if enabled:
        values |= {"state": ENABLED, "reason": None}
    if enabled is False:
        disable(connection, id, "by request")
    # Without a value the UPDATE still tells whether there is such a webhook.
    change = update(webhooks).values(**values or {"id": id}).where(webhooks.c.id == id)
    changed = connection.execute(change)
    return changed.rowcount > 0


def _delete(connection: Connection, ids: list[str]) -> list[bool]:
    done: list[bool] = []
    for id in ids:
        deleted = connection.execute(delete(webhooks).where(webhooks.c.id == id))
        done.append(deleted.rowcount > 0)
    forget(connection, ids)
    return done


def _test(connection: Connection, ids: list[str]) -> list[dict[str, Any]]:
    new = (
        insert(deliveries)
        .values(event=TEST, at=now_ms(), next_attempt_at=now_ms())
        .returning(deliveries)
    )
    rows: list[dict[str, Any]] = []
    for id in ids:
        inserted = connection.execute(new.values(webhook_id=id))
        rows.append(dict(inserted.mappings().one()))
    return rows


def _delivery(connection: Connection, id: str, number: int) -> dict[str, Any] | None:
    delivery = select(deliveries).where(
        deliveries.c.number == number,
        deliveries.c.webhook_id == id,
    )
    row = connection.execute(delivery).mappings().one_or_none()
    return None if row is None else dict(row)


def _replay(connection: Connection, requests: list[tuple[str, int]]) -> list[bool]:
    return [_replay_one(connection, id, number) for id, number in requests]


def _replay_one(connection: Connection, id: str, number: int) -> bool:
    enabled = select(webhooks.c.id).where(webhooks.c.state == ENABLED)
    replayed = (
        update(deliveries)
        .values(state=PENDING, excused=deliveries.c.attempt, next_attempt_at=now_ms())
        .where(
            deliveries.c.number == number,
            deliveries.c.webhook_id == id,
            deliveries.c.owner.is_(None),
            deliveries.c.webhook_id.in_(enabled),
        )
    )
    updated = connection.execute(replayed)
    return updated.rowcount > 0
