"""A worker's steps with a delivery of an event to a webhook: claim, finish, give back."""

import json
import logging
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sqlalchemy import Connection, and_, delete, or_, select, tuple_, update

from mailroom.model.errors import StoreUnavailable
from mailroom.store.db.database import Database, run, run_in_order
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.locking import each_in_order, in_order, not_in_use, skip_locked
from mailroom.store.db.schema import contents, deliveries, messages, tags, webhooks
from mailroom.store.events.webhook_events import DELIVERED, DISABLED, ENABLED, FAILED, OWN, PENDING
from mailroom.store.workers import dead_owners, write_in_time

log = logging.getLogger("mailasync.webhook")

#: A delivery's number, and that of the attempt.
Attempt = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class DueDelivery:
    """An attempt at one delivery, by the worker that claimed it."""

    number: int
    attempt: int  #: from 1, and never used again
    counted: int  #: attempts that count towards the schedule, this one included
    webhook_id: str
    id: str  #: identifies the event to the client, the same in every attempt
    event: str
    at: int  #: milliseconds since 1970
    data: dict[str, Any]
    url: str  #: "": the webhook was deleted or disabled
    secret: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DeliveryResult:
    """The end of an attempt."""

    delivered: bool = False
    code: int | None = None  #: HTTP status, if one came
    reply: str = ""  #: the first words of the answer, or what went wrong
    wait_seconds: float | None = None  #: until the next attempt, where there is to be one
    gone: bool = False  #: whether the webhook wants no more events


@dataclass(frozen=True, eq=False)
class WebhookDeliveries:
    """The deliveries of one worker, whose heartbeat is its lease on all of them."""

    database: Database
    owner: str
    lease_seconds: float
    #: those that some thread works on
    _in_hand: set[Attempt] = field(default_factory=set, repr=False)
    #: Those that were ours at the last look though no thread worked on them.
    _suspects: set[Attempt] = field(default_factory=set, repr=False)

    def is_due(self) -> bool:
        due = _due(()).limit(1)
        return self.database.read(lambda connection: connection.scalars(due).first()) is not None

    def claim(self, *, busy: Collection[str] = ()) -> DueDelivery | None:
        """Become the owner of the delivery that has been due longest, to none of the `busy` webhooks.

        None: no delivery is due.
        """
        due = _due(busy).limit(1)
        if self.database.read(lambda connection: connection.scalars(due).first()) is None:
            return None  # Looking takes no write lock.
        rows = self.database.write(
            run,
            update(deliveries)
            .values(owner=self.owner, attempt=deliveries.c.attempt + 1, next_attempt_at=None)
            .where(deliveries.c.number.in_(skip_locked(due)))
            .returning(deliveries),
        )
        return self._loaded(rows[0]) if rows else None

    def finish(self, due: DueDelivery, result: DeliveryResult) -> bool:
        """Commit how the attempt ended; False if it was no longer ours."""
        try:
            return self.database.write(self._finish, (due, result), alone=result.gone)
        except StoreUnavailable:
            raise
        except Exception as e:  # It would be raised again, and the event delivered again and again.
            log.error(
                "delivery %d attempt %d: its answer cannot be written as it is: %s",
                due.number,
                due.attempt,
                type(e).__name__,
            )
            bare = replace(result, reply=storable(result.reply))
            return self.database.write(self._finish, (due, bare), alone=result.gone)
        finally:
            # If the end could not be written, `give_back` finds the delivery idle, and it is delivered again.
            self._in_hand.discard((due.number, due.attempt))

    def release(self) -> int:
        """Give back all that this worker owns, because it stops; return how many.

        These attempts do not count.
        """
        ours = deliveries.c.owner == self.owner
        return len(self.database.write(run_in_order, _giving_back(ours, counts=False)))

    def give_back(self) -> int:
        """Give back what dead workers own, and what is ours and idle at two looks in a row; return how many.

        A delivery is idle if none of our threads works on it.
        """
        lost = self._lost()
        dead = self.database.read(self._dead)
        if not (dead or lost):
            return 0
        return write_in_time(self.database, partial(self._orphans, lost), self.lease_seconds)

    def _dead(self, connection: Connection) -> set[str]:
        """Return the dead workers that own deliveries; this worker, however late its heartbeat, is none."""
        return dead_owners(connection, deliveries.c.owner, self.lease_seconds) - {self.owner}

    def _orphans(self, lost: set[Attempt], connection: Connection) -> int:
        owner = deliveries.c.owner
        of_dead = owner.in_(self._dead(connection))
        is_lost = and_(
            owner == self.owner, tuple_(deliveries.c.number, deliveries.c.attempt).in_(lost)
        )
        giving_back = _giving_back(or_(of_dead, is_lost), counts=True)
        return len(connection.scalars(in_order(connection, giving_back)).all())

    def _lost(self) -> set[Attempt]:
        """Return what is ours and idle, and was so at the last look."""
        ours = select(deliveries.c.number, deliveries.c.attempt).where(
            deliveries.c.owner == self.owner
        )
        rows = self.database.read(lambda connection: connection.execute(ours).all())
        idle = {(row.number, row.attempt) for row in rows} - self._in_hand
        lost = idle & self._suspects
        self._suspects.clear()
        self._suspects.update(idle - lost)
        return lost

    def _loaded(self, row: Any) -> DueDelivery:
        self._in_hand.add((row.number, row.attempt))
        try:
            return self.database.read(
                lambda connection: _load(connection, row, self.database.outbox_id)
            )
        except BaseException:
            self._in_hand.discard((row.number, row.attempt))
            raise

    def _finish(
        self, connection: Connection, ended: list[tuple[DueDelivery, DeliveryResult]]
    ) -> list[bool]:
        return each_in_order(
            ended,
            lambda item: self._finish_one(connection, *item),
            key=lambda item: item[0].number,
        )

    def _finish_one(self, connection: Connection, due: DueDelivery, result: DeliveryResult) -> bool:
        values: dict[str, Any] = {
            "state": DELIVERED if result.delivered else FAILED,
            "next_attempt_at": None,
        }
        if result.wait_seconds is not None:
            wait_ms = int(1000 * result.wait_seconds)
            values = {"state": PENDING, "next_attempt_at": now_ms() + wait_ms}
        ended = connection.execute(
            update(deliveries)
            .values(owner=None, code=result.code, reply=result.reply or None, **values)
            .where(
                deliveries.c.number == due.number,
                deliveries.c.owner == self.owner,
                deliveries.c.attempt == due.attempt,
            )
        )
        if ended.rowcount and result.gone and due.webhook_id != OWN:
            disable(connection, due.webhook_id, result.reply)
        return ended.rowcount > 0


def disable(connection: Connection, id: str, reason: str | None) -> None:
    """Disable a webhook, and fail the deliveries that wait for it."""
    connection.execute(
        update(webhooks)
        .values(state=DISABLED, reason=reason)
        .where(webhooks.c.id == id, webhooks.c.state == ENABLED)
    )
    of_webhook = (deliveries.c.webhook_id == id, deliveries.c.next_attempt_at.is_not(None))
    connection.execute(
        update(deliveries)
        .values(state=FAILED, next_attempt_at=None, reply="the webhook was disabled")
        .where(deliveries.c.number.in_(not_in_use(deliveries, *of_webhook)))
    )


def forget(connection: Connection, ids: Collection[str]) -> None:
    """Delete the deliveries to these webhooks, but not those that a worker is changing."""
    numbers = not_in_use(deliveries, deliveries.c.webhook_id.in_(ids))
    connection.execute(delete(deliveries).where(deliveries.c.number.in_(numbers)))


def _due(busy: Collection[str]) -> Any:
    """Select the numbers of the deliveries that are due, to none of the `busy` webhooks."""
    due = (
        select(deliveries.c.number.label("id"))
        .where(deliveries.c.next_attempt_at <= now_ms())
        .order_by(deliveries.c.next_attempt_at)
    )
    return due.where(deliveries.c.webhook_id.not_in(list(busy))) if busy else due


def _giving_back(*conditions: Any, counts: bool) -> Any:
    return (
        update(deliveries)
        .values(
            owner=None, next_attempt_at=now_ms(), excused=deliveries.c.excused + int(not counts)
        )
        .where(*conditions)
        .returning(deliveries.c.number)
    )


def storable(text: str) -> str:
    """Replace each character that some database does not take by a question mark."""
    return text.replace("\0", "?").encode("ascii", errors="replace").decode()


def _load(connection: Connection, row: Any, outbox_id: str) -> DueDelivery:
    webhook = connection.execute(
        select(webhooks).where(webhooks.c.id == row.webhook_id, webhooks.c.state == ENABLED)
    ).one_or_none()
    url = webhook.url if webhook else ""
    data: dict[str, Any] = {"id": row.webhook_id}  # Of a test.
    if row.message_id is not None:
        message = _message(connection, row.message_id)
        data = _data(connection, row, json.loads((message and message.content) or "{}"))
        if webhook and webhook.id == OWN:
            url = (message and message.webhook) or ""
    return DueDelivery(
        number=row.number,
        attempt=row.attempt,
        counted=row.attempt - row.excused,
        webhook_id=row.webhook_id,
        id=f"msg_{outbox_id}_{row.number}",
        event=row.event,
        at=row.at,
        data=data,
        url=url,
        secret=webhook.secret if webhook else "",
    )


def _message(connection: Connection, id: str) -> Any:
    """Return a message's own URL and its content, None if it is no longer kept."""
    return connection.execute(
        select(messages.c.webhook, contents.c.content)
        .join(contents, contents.c.id == messages.c.id, isouter=True)
        .where(messages.c.id == id)
    ).one_or_none()


def _data(connection: Connection, row: Any, content: dict[str, Any]) -> dict[str, Any]:
    """Return the data of an event; what a message does not have, such as tags, is left out."""
    of_message = select(tags.c.tag).where(tags.c.id == row.message_id).order_by(tags.c.tag)
    optional = {
        "attempt": row.message_attempt,
        "detail": row.detail,
        "tags": list(connection.scalars(of_message)),
        "metadata": content.get("metadata"),
    }
    present = {name: value for name, value in optional.items() if value}
    return {"id": row.message_id, "status": row.status, **present}
