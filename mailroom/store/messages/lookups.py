"""Messages whose last attempt got no reply, while they are looked for in the Sent folder of their account.

Gmail and others keep a copy there of each mail that they take. One that is found was sent; one that is not
found may still come, so it is looked for several times before the mail is sent again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Update, case, exists, func, literal, select, update

from mailroom.model.message import OPEN, State
from mailroom.model.retry import LOOK_WAITS_SECONDS
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.locking import each_in_order, skip_locked
from mailroom.store.db.schema import messages, recipients
from mailroom.store.events.counters import count
from mailroom.store.events.timeline import record
from mailroom.store.events.webhook_events import enqueue_webhooks

#: A mailbox that cannot be read for so long after a look was due holds no mail back any more.
GIVE_UP_AFTER_MS = 20 * 60_000
#: The most messages that are looked for at a time.
BATCH_MAX = 100

#: The names of the counts.
FOUND, NOT_FOUND = "found_in_sent", "not_found_in_sent"


@dataclass(frozen=True, kw_only=True)
class LookUp:
    """A message that is due to be looked for."""

    id: str
    attempt: int
    message_id: str
    looks: int  #: made before this one
    then: State  #: the state to come if it is not found: QUEUED to be sent again, or UNCERTAIN


@dataclass(frozen=True)
class LookUps:
    """The messages of one account that are looked for."""

    database: Database
    account: str

    def due(self, limit: int = BATCH_MAX) -> list[LookUp]:
        rows = self.database.read(lambda connection: connection.execute(self._due(limit)).all())
        return [_look_up(row) for row in rows]

    def found(self, look_up: LookUp) -> bool:
        """Note that it is in the Sent folder, and so was sent; False if it is no longer looked for."""
        return self.database.write(self._found, look_up, alone=True)

    def not_found(self, look_up: LookUp) -> bool:
        """Note that it is not there yet; after the last look it is sent again, or stays uncertain."""
        return self.database.write(self._not_found, look_up, alone=True)

    def _due(self, limit: int) -> Any:
        return (
            select(messages)
            .where(
                messages.c.next_attempt_at <= now_ms(),
                messages.c.looks.is_not(None),
                messages.c.account == self.account,
            )
            .order_by(messages.c.next_attempt_at)
            .limit(limit)
        )

    def _found(self, connection: Connection, look_ups: list[LookUp]) -> list[bool]:
        detail = f"found in the Sent folder of {self.account}"
        return _each(look_ups, lambda look_up: _settle_as_sent(connection, look_up, detail))

    def _not_found(self, connection: Connection, look_ups: list[LookUp]) -> list[bool]:
        detail = f"not in the Sent folder of {self.account}"
        return _each(look_ups, lambda look_up: _look_again(connection, look_up, detail))


def begin_looks(connection: Connection, ids: Sequence[str], *, then: State) -> None:
    """Have messages looked for whose worker died after the payload went out.

    Only those with one recipient, whom the next hop has taken for the first time: of several, some may have
    been refused, and of an earlier attempt there may be a copy in the Sent folder.
    """
    people = select(func.count()).where(recipients.c.id == messages.c.id).scalar_subquery()
    begun = connection.scalars(
        update(messages)
        .values(
            state=State.DEFERRED,
            looks=0,
            looks_then=then,
            next_attempt_at=now_ms() + int(LOOK_WAITS_SECONDS[0] * 1000),
        )
        .where(messages.c.id.in_(ids), messages.c.taken.is_(None), people == 1)
        .returning(messages.c.id)
    ).all()
    connection.execute(
        update(recipients)
        .values(state=State.UNCERTAIN)
        .where(recipients.c.id.in_(begun), recipients.c.state.in_(OPEN))
    )


def give_up_looks(database: Database) -> int:
    """Settle messages whose mailbox cannot be read, as if they were not in it; return how many."""
    overdue = (
        messages.c.next_attempt_at <= now_ms() - GIVE_UP_AFTER_MS,
        messages.c.looks.is_not(None),
    )
    ids = select(messages.c.id).where(*overdue).limit(BATCH_MAX)
    if not database.read(lambda connection: connection.scalars(ids.limit(1)).first()):
        return 0
    return database.write(_give_up, ids, alone=True)


def _give_up(connection: Connection, batches: list[Any]) -> list[int]:
    settled: list[int] = []
    for ids in batches:
        rows = connection.execute(
            select(messages).where(messages.c.id.in_(skip_locked(ids))).order_by(messages.c.id)
        ).all()
        detail = "the Sent folder could not be searched"
        done = [_settle_as_not_found(connection, _look_up(row), detail) for row in rows]
        settled.append(sum(done))
    return settled


def _each(look_ups: Sequence[LookUp], change: Callable[[LookUp], bool]) -> list[bool]:
    return each_in_order(look_ups, change, key=lambda look_up: look_up.id)


def _settle_as_sent(connection: Connection, look_up: LookUp, detail: str) -> bool:
    state = _or_queued(State.SENT)
    if not _changed(connection, look_up, state=state, taken=1, reason=detail):
        return False
    _end_recipients(connection, look_up.id, State.SENT, reply=detail)
    line = {"id": look_up.id, "event": "sent", "attempt": look_up.attempt, "detail": detail}
    record(connection, [line])
    count(connection, {FOUND: 1})
    return True


def _or_queued(state: State) -> Any:
    """Return the state of a message; QUEUED for recipients who were not in the attempt, if there are any."""
    others = exists().where(recipients.c.id == messages.c.id, recipients.c.state.in_(OPEN))
    return case((others, literal(State.QUEUED.value)), else_=literal(state.value))


def _look_again(connection: Connection, look_up: LookUp, detail: str) -> bool:
    looks = look_up.looks + 1
    if looks >= len(LOOK_WAITS_SECONDS):
        return _settle_as_not_found(connection, look_up, f"{detail} after {looks} looks")
    wait_ms = int(LOOK_WAITS_SECONDS[looks] * 1000)
    again = (
        _of(look_up)
        .values(looks=looks, next_attempt_at=now_ms() + wait_ms)
        .returning(messages.c.id)
    )
    return connection.scalar(again) is not None


def _settle_as_not_found(connection: Connection, look_up: LookUp, detail: str) -> bool:
    if not _changed(connection, look_up, state=_or_queued(look_up.then)):
        return False
    sends_again = look_up.then is State.QUEUED
    if sends_again:
        _end_recipients(connection, look_up.id, State.DEFERRED)
    what_next = "sent again" if sends_again else "not sent again"
    line = {
        "id": look_up.id,
        "event": "not in sent",
        "attempt": look_up.attempt,
        "detail": f"{detail}: {what_next}",
    }
    record(connection, [line])
    if not sends_again:
        enqueue_webhooks(connection, [line | {"event": "uncertain"}])
    count(connection, {NOT_FOUND: 1})
    return True


def _changed(connection: Connection, look_up: LookUp, **values: Any) -> bool:
    """End the looks; False if the message is no longer looked for."""
    ended = (
        _of(look_up)
        .values(looks=None, looks_then=None, next_attempt_at=None, published_at=None, **values)
        .returning(messages.c.id)
    )
    return connection.scalar(ended) is not None


def _of(look_up: LookUp) -> Update:
    return update(messages).where(
        messages.c.id == look_up.id,
        messages.c.attempt == look_up.attempt,
        messages.c.looks == look_up.looks,
        messages.c.state == State.DEFERRED,
    )


def _end_recipients(connection: Connection, id: str, state: State, **values: Any) -> None:
    connection.execute(
        update(recipients)
        .values(state=state, **values)
        .where(recipients.c.id == id, recipients.c.state == State.UNCERTAIN)
    )


def _look_up(row: Any) -> LookUp:
    return LookUp(
        id=row.id,
        attempt=row.attempt,
        message_id=row.message_id,
        looks=row.looks,
        then=State(row.looks_then),
    )
