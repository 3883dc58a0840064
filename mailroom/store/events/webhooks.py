"""Webhooks as a client sees them: make, list, change and delete one, and what became of each thing that it was to be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, delete, func, insert, select, update

from mailroom.model.errors import MailroomError
from mailroom.store.db.database import Database
from mailroom.store.db.schema import deliveries, now_ms, webhooks
from mailroom.store.events.deliveries import (
    ENABLED,
    OWN,
    PENDING,
    TEST,
    disable,
    forget,
    have_own,
    new_secret,
)

#: Each one that listens adds a row to every event.
WEBHOOKS_MAX = 20


class TooMany(MailroomError):
    """There are WEBHOOKS_MAX already."""


@dataclass(frozen=True)
class Webhooks:
    """The webhooks of an outbox. Every write is alone: it is rare, and may lock many rows."""

    database: Database

    def create(self, url: str, events: Sequence[str] = ()) -> str:
        """Return the id of a new one, which is told these events; none means all. Raises TooMany."""
        id = self.database.write(_create, (url, events), alone=True)
        if id is None:
            raise TooMany(f"expected at most {WEBHOOKS_MAX} webhooks")
        return id

    def all(self) -> list[dict[str, Any]]:
        return self.database.read(
            lambda connection: [
                dict(row)
                for row in connection.execute(
                    select(webhooks).order_by(webhooks.c.created_at, webhooks.c.id)
                ).mappings()
            ]
        )

    def get(self, id: str) -> dict[str, Any] | None:
        """Return a webhook. That of messages' own URLs is made when it is first asked for."""
        found = self.database.read(lambda connection: _get(connection, id))
        if found is None and id == OWN:
            self.database.write(_own, None, alone=True)
            found = self.database.read(lambda connection: _get(connection, id))
        return found

    def change(
        self,
        id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        enabled: bool | None = None,
    ) -> bool:
        """Change what is given; False if there is none with this id."""
        return self.database.write(_change, (id, url, events, enabled), alone=True)

    def delete(self, id: str) -> bool:
        """Forget it, with its log."""
        return self.database.write(_delete, id, alone=True)

    def test(self, id: str) -> dict[str, Any]:
        """Have a test event delivered; return that delivery."""
        return self.database.write(_test, id, alone=True)

    def page(self, id: str, *, limit: int, before: int | None = None) -> list[dict[str, Any]]:
        """The newest deliveries to it, with smaller numbers than that."""
        found = (
            select(deliveries)
            .where(deliveries.c.webhook_id == id)
            .order_by(deliveries.c.number.desc())
            .limit(limit)
        )
        if before is not None:
            found = found.where(deliveries.c.number < before)
        return self.database.read(
            lambda connection: [dict(row) for row in connection.execute(found).mappings()]
        )

    def delivery(self, id: str, number: int) -> dict[str, Any] | None:
        """Return a delivery."""
        return self.database.read(lambda connection: _delivery(connection, id, number))

    def replay(self, id: str, number: int) -> bool:
        """Deliver it once more, with a schedule of its own; False if a worker is at it just now, or nobody is listening."""
        return self.database.write(_replay, (id, number), alone=True)


def _create(connection: Connection, asked: list[tuple[str, Sequence[str]]]) -> list[str | None]:
    made: list[str | None] = []
    for url, events in asked:
        count = connection.scalar(select(func.count()).select_from(webhooks)) or 0
        made.append(None if count >= WEBHOOKS_MAX else str(uuid4()))
        if made[-1]:
            connection.execute(
                insert(webhooks).values(
                    id=made[-1],
                    url=url,
                    secret=new_secret(),
                    events=",".join(events),
                    state=ENABLED,
                    created_at=now_ms(),
                )
            )
    return made


def _get(connection: Connection, id: str) -> dict[str, Any] | None:
    row = connection.execute(select(webhooks).where(webhooks.c.id == id)).mappings().one_or_none()
    return None if row is None else dict(row)


def _own(connection: Connection, asked: list[None]) -> list[None]:
    have_own(connection)
    return asked


def _change(
    connection: Connection, asked: list[tuple[str, str | None, Sequence[str] | None, bool | None]]
) -> list[bool]:
    return [_change_one(connection, *one) for one in asked]


def _change_one(
    connection: Connection, id: str, url: str | None, events: Sequence[str] | None, enabled: bool | None
) -> bool:
    values: dict[str, Any] = {} if url is None else {"url": url}
    values |= {} if events is None else {"events": ",".join(events)}
    values |= {"state": ENABLED, "reason": None} if enabled else {}
    if enabled is False:
        disable(connection, id, "by request")
    return bool(
        connection.execute(
            update(webhooks).values(**values or {"id": id}).where(webhooks.c.id == id)
        ).rowcount
    )


def _delete(connection: Connection, ids: list[str]) -> list[bool]:
    done = [bool(connection.execute(delete(webhooks).where(webhooks.c.id == id)).rowcount) for id in ids]
    forget(connection, ids)
    return done


def _test(connection: Connection, ids: list[str]) -> list[dict[str, Any]]:
    new = insert(deliveries).values(event=TEST, at=now_ms(), next_attempt_at=now_ms()).returning(deliveries)
    return [dict(connection.execute(new.values(webhook_id=id)).mappings().one()) for id in ids]


def _delivery(connection: Connection, id: str, number: int) -> dict[str, Any] | None:
    row = (
        connection.execute(
            select(deliveries).where(deliveries.c.number == number, deliveries.c.webhook_id == id)
        )
        .mappings()
        .one_or_none()
    )
    return None if row is None else dict(row)


def _replay(connection: Connection, asked: list[tuple[str, int]]) -> list[bool]:
    listening = select(webhooks.c.id).where(webhooks.c.state == ENABLED)
    return [
        bool(
            connection.execute(
                update(deliveries)
                .values(state=PENDING, excused=deliveries.c.attempt, next_attempt_at=now_ms())
                .where(
                    deliveries.c.number == number,
                    deliveries.c.webhook_id == id,
                    deliveries.c.owner.is_(None),
                    deliveries.c.webhook_id.in_(listening),
                )
            ).rowcount
        )
        for id, number in asked
    ]
