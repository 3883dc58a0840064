"""Knows who is to be told what of a message, and what a worker does about it.

There is a row for each event and each webhook that wants it.
The rows are written in the transaction of the change that they tell of, so that none is told that did not happen, and none is lost.
"""

import base64
import json
import logging
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, and_, delete, insert, or_, select, tuple_, update

from mailroom.model.errors import StoreUnavailable
from mailroom.store.db.database import Database, run, run_in_order
from mailroom.store.db.schema import contents, deliveries, insertion, locked, messages, now_ms, tags, webhooks
from mailroom.store.db.statements import Prepared
from mailroom.store.workers import dead_owners

log = logging.getLogger("mailasync.webhook")

#: The events of a message that are told, as "message.sent". `sending` and `in_data` are over before anybody could read of them.
TOLD = (
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
)
TYPES = tuple(f"message.{event}" for event in TOLD)
TEST = "webhook.test"
#: The row of `webhooks` that stands for the URLs that messages name themselves: it has their secret.
OWN = "own"
ENABLED, DISABLED = "enabled", "disabled"
PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"

#: Ids that one statement names; PostgreSQL takes 65,535 values.
CHUNK = 1000


def tell(connection: Connection, happened: Sequence[Mapping[str, Any]]) -> None:
    """Have clients told of these rows: of the message `id` an `event`, with its `attempt` and `detail` where it has them.

    It is for whoever changes a message without a line in its timeline; `events.record` tells by itself. Called after the change, as
    the state is told with it. What is no event of a message, such as a job's, is passed over. A row's `webhook` says that the message
    names a URL of its own; it is needed only where the message is new.
    """
    told = [row for row in happened if row["event"] in TOLD]
    if not told:
        return
    rows = _LISTENING(connection)
    if any(row.get("webhook") for row in told) and OWN not in {row.id for row in rows}:
        have_own(connection)
        rows = _LISTENING(connection)
    wanted = {
        row.id: frozenset((row.events or ",".join(TYPES)).split(",")) for row in rows if row.state == ENABLED
    }
    told = [row for row in told if any(f"message.{row['event']}" in types for types in wanted.values())]
    if not told:
        return
    known = _known(connection, [row["id"] for row in told], only_own=wanted.keys() == {OWN})
    new = [
        {
            "webhook_id": id,
            "message_id": row["id"],
            "event": f"message.{row['event']}",
            "status": known[row["id"]].state,
            "message_attempt": row.get("attempt"),
            "detail": row.get("detail"),
        }
        for row in told
        if row["id"] in known
        for id, types in wanted.items()
        if f"message.{row['event']}" in types and (id != OWN or known[row["id"]].webhook)
    ]
    if new:
        connection.execute(_NEW, new)


def have_own(connection: Connection) -> None:
    """Make the row for messages' own URLs, unless it is there, or another transaction makes it just now."""
    connection.execute(
        insertion(connection, webhooks)
        .values(id=OWN, url="", secret=new_secret(), events="", state=ENABLED, created_at=now_ms())
        .on_conflict_do_nothing()
    )


def new_secret() -> str:
    """A key as Standard Webhooks wants it: 24 to 64 random bytes in base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


_LISTENING = Prepared(lambda dialect: select(webhooks.c.id, webhooks.c.events, webhooks.c.state))
_NEW = insert(deliveries).values(at=now_ms(), next_attempt_at=now_ms())


def _known(connection: Connection, ids: list[str], *, only_own: bool) -> dict[str, Any]:
    """State and URL of these messages; `only_own`: of those with a URL."""
    found = select(messages.c.id, messages.c.state, messages.c.webhook)
    if only_own:
        found = found.where(messages.c.webhook.is_not(None))
    return {
        row.id: row
        for start in range(0, len(ids), CHUNK)
        for row in connection.execute(found.where(messages.c.id.in_(ids[start : start + CHUNK])))
    }


#: A delivery's number, and that of the attempt.
Attempt = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class DueDelivery:
    """An attempt at telling something, by the worker that claimed it."""

    number: int
    attempt: int  #: from 1, and never used again
    counted: int  #: attempts that count towards the schedule, this one included
    webhook_id: str
    id: str  #: by which the client knows the event in every attempt
    event: str
    at: int  #: milliseconds since 1970
    data: dict[str, Any]
    url: str  #: "": nobody is there to be told any more
    secret: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class DeliveryResult:
    """The end of an attempt."""

    delivered: bool = False
    code: int | None = None  #: HTTP status, if one came
    reply: str = ""  #: the first words of the answer, or what went wrong
    wait_seconds: float | None = None  #: until the next attempt, where there is to be one
    gone: bool = False  #: whether the webhook wants nothing any more


@dataclass(frozen=True, eq=False)
class WebhookDeliveries:
    """The deliveries of one worker, whose heartbeat is its lease on all of them."""

    database: Database
    owner: str
    lease_seconds: float
    _in_hand: set[Attempt] = field(default_factory=set, repr=False)  #: those that some thread works on
    _suspects: set[Attempt] = field(
        default_factory=set, repr=False
    )  #: those that were ours and in no hand at the last look

    def is_due(self) -> bool:
        return (
            self.database.read(lambda connection: connection.scalars(_due(()).limit(1)).first()) is not None
        )

    def claim(self, *, busy: Collection[str] = ()) -> DueDelivery | None:
        """Become the owner of the delivery that has been due longest, but for none of these webhooks; None if there is none."""
        found = _due(busy).limit(1)
        if self.database.read(lambda connection: connection.scalars(found).first()) is None:
            return None  # Looking takes no write lock.
        rows = self.database.write(
            run,
            update(deliveries)
            .values(owner=self.owner, attempt=deliveries.c.attempt + 1, next_attempt_at=None)
            .where(deliveries.c.number.in_(locked(found)))
            .returning(deliveries),
        )
        return self._loaded(rows[0]) if rows else None

    def finish(self, due: DueDelivery, told: DeliveryResult) -> bool:
        """Commit how the attempt ended; False if it was no longer ours."""
        try:
            return self.database.write(self._finish, (due, told), alone=told.gone)
        except StoreUnavailable:
            raise
        except Exception as e:  # It would be raised again, and the event told again and again.
            log.error(
                "delivery %d attempt %d: its answer cannot be written as it is: %s",
                due.number,
                due.attempt,
                type(e).__name__,
            )
            bare = replace(told, reply=storable(told.reply))
            return self.database.write(self._finish, (due, bare), alone=told.gone)
        finally:
            self._in_hand.discard(
                (due.number, due.attempt)
            )  # If it was not written, it is found to be in no hand, and told once more.

    def release(self) -> int:
        """Give back all that we have, as we are stopping; these attempts do not count. Return how many those were."""
        ours = deliveries.c.owner == self.owner
        rows = self.database.write(run_in_order, _given_back(ours, counts=False))
        return len(rows)

    def give_back(self) -> int:
        """Give back what dead workers own, and what we own while no thread of ours has it, at two looks in a row; return how many."""
        owned = self.database.read(
            lambda connection: {
                (row.number, row.attempt)
                for row in connection.execute(
                    select(deliveries.c.number, deliveries.c.attempt).where(deliveries.c.owner == self.owner)
                )
            }
        )
        in_no_hand = owned - self._in_hand
        lost = in_no_hand & self._suspects
        self._suspects.clear()
        self._suspects.update(in_no_hand - lost)
        dead = self.database.read(
            lambda connection: dead_owners(connection, deliveries.c.owner, self.lease_seconds)
        ) - {self.owner}
        whose = or_(
            deliveries.c.owner.in_(dead),
            and_(
                deliveries.c.owner == self.owner, tuple_(deliveries.c.number, deliveries.c.attempt).in_(lost)
            ),
        )
        if not (dead or lost):
            return 0
        return len(self.database.write(run_in_order, _given_back(whose, counts=True), alone=True))

    def _loaded(self, row: Any) -> DueDelivery:
        self._in_hand.add((row.number, row.attempt))
        try:
            return self.database.read(lambda connection: _load(connection, row, self.database.outbox_id))
        except BaseException:
            self._in_hand.discard((row.number, row.attempt))
            raise

    def _finish(self, connection: Connection, ended: list[tuple[DueDelivery, DeliveryResult]]) -> list[bool]:
        done: dict[int, bool] = {}
        for number, (due, told) in sorted(enumerate(ended), key=lambda one: one[1][0].number):
            done[number] = self._finish_one(connection, due, told)
        return [done[number] for number in range(len(ended))]

    def _finish_one(self, connection: Connection, due: DueDelivery, told: DeliveryResult) -> bool:
        again = told.wait_seconds is not None
        written = connection.execute(
            update(deliveries)
            .values(
                state=DELIVERED if told.delivered else PENDING if again else FAILED,
                owner=None,
                code=told.code,
                reply=told.reply or None,
                next_attempt_at=now_ms() + int(1000 * (told.wait_seconds or 0)) if again else None,
            )
            .where(
                deliveries.c.number == due.number,
                deliveries.c.owner == self.owner,
                deliveries.c.attempt == due.attempt,
            )
        ).rowcount
        if written and told.gone and due.webhook_id != OWN:
            disable(connection, due.webhook_id, told.reply)
        return bool(written)


def disable(connection: Connection, id: str, reason: str | None) -> None:
    """Tell a webhook nothing any more, and nothing of what it waits for either."""
    connection.execute(
        update(webhooks)
        .values(state=DISABLED, reason=reason)
        .where(webhooks.c.id == id, webhooks.c.state == ENABLED)
    )
    connection.execute(
        update(deliveries)
        .values(state=FAILED, next_attempt_at=None, reply="the webhook was disabled")
        .where(
            deliveries.c.number.in_(
                _free(deliveries.c.webhook_id == id, deliveries.c.next_attempt_at.is_not(None))
            )
        )
    )


def forget(connection: Connection, ids: Collection[str]) -> None:
    """Delete what these webhooks were told."""
    connection.execute(
        delete(deliveries).where(deliveries.c.number.in_(_free(deliveries.c.webhook_id.in_(ids))))
    )


def _free(*which: Any) -> Any:
    """The numbers of these, but not those that a worker is changing just now: it may want any other of them next, and finds by itself
    that nobody is to be told."""
    return locked(select(deliveries.c.number.label("id")).where(*which))


def _due(busy: Collection[str]) -> Any:
    found = (
        select(deliveries.c.number.label("id"))
        .where(deliveries.c.next_attempt_at <= now_ms())
        .order_by(deliveries.c.next_attempt_at)
    )
    return found.where(deliveries.c.webhook_id.not_in(list(busy))) if busy else found


def _given_back(*whose: Any, counts: bool) -> Any:
    return (
        update(deliveries)
        .values(owner=None, next_attempt_at=now_ms(), excused=deliveries.c.excused + int(not counts))
        .where(*whose)
        .returning(deliveries.c.number)
    )


def storable(words: str) -> str:
    """These words with a question mark for each character that some database does not take."""
    return words.replace("\0", "?").encode("ascii", errors="replace").decode()


def _load(connection: Connection, row: Any, outbox_id: str) -> DueDelivery:
    webhook = connection.execute(
        select(webhooks).where(webhooks.c.id == row.webhook_id, webhooks.c.state == ENABLED)
    ).one_or_none()
    url = webhook.url if webhook else ""
    if row.message_id is None:
        data = {"id": row.webhook_id}
    else:
        message = connection.execute(
            select(messages.c.webhook, contents.c.content)
            .join(contents, contents.c.id == messages.c.id, isouter=True)
            .where(messages.c.id == row.message_id)
        ).one_or_none()
        if webhook and webhook.id == OWN:
            url = (message and message.webhook) or ""
        data = dict(
            _data(connection, row, json.loads(message.content) if message and message.content else {})
        )
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


def _data(connection: Connection, row: Any, content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is told; a message without tags has none there."""
    yield from (("id", row.message_id), ("status", row.status))
    labels = list(
        connection.scalars(select(tags.c.tag).where(tags.c.id == row.message_id).order_by(tags.c.tag))
    )
    for name, value in (
        ("attempt", row.message_attempt),
        ("detail", row.detail),
        ("tags", labels),
        ("metadata", content.get("metadata")),
    ):
        if value:
            yield name, value
