"""Keeps the addresses that get no mail any more: unknown to their server, unsubscribed, or added by a person.

The links to unsubscribe are here too.
"""

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, bindparam, delete, or_, select, tuple_, update

from mailroom.model.message import OPEN, State
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import insertion, now_ms
from mailroom.store.db.locking import in_order
from mailroom.store.db.schema import messages, recipients, suppressions
from mailroom.store.db.statements import Rows
from mailroom.store.events.timeline import record
from mailroom.store.keys.signing import secret

#: The length of the column.
ADDRESS_MAX_CHARACTERS = 320
#: The reply of a suppressed recipient, in place of the server's.
REPLY = "not sent: the address is suppressed"
#: The reason of a message that has no other recipient left.
REASON = "every recipient that was left is suppressed"

#: The HMAC in a link, in bytes (RFC 2104, 5).
_MAC_BYTES = 16


class Reason(StrEnum):
    """The reason why an address gets no mail."""

    BOUNCED = "bounced"  #: a server said that there is no such address
    COMPLAINED = "complained"  #: the recipient called a mail spam
    UNSUBSCRIBED = "unsubscribed"  #: the recipient used a link to unsubscribe
    MANUAL = "manual"  #: a person or a client added it


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """An address that gets no mail. `created_at` is in milliseconds since 1970."""

    address: str
    reason: Reason
    detail: str | None
    message_id: str | None  #: the id of the message whose recipient it was
    created_at: int


@dataclass(frozen=True)
class Suppressions:
    """The addresses that get no mail, each in lower case.

    Every write is `alone`: the end of an attempt locks suppressions, an acceptance locks rates, and a
    transaction that locked both could deadlock with them.
    """

    database: Database

    def add(self, address: str, reason: Reason = Reason.MANUAL, detail: str | None = None) -> bool:
        """Suppress an address; False if it was suppressed before, and is left as it was."""
        return self.add_all([address], reason, detail) == 1

    def add_all(
        self, addresses: Collection[str], reason: Reason = Reason.MANUAL, detail: str | None = None
    ) -> int:
        """Suppress many in one commit; return how many were not suppressed before."""
        return self.database.write(
            _add, [_row(address, reason, detail) for address in addresses], alone=True
        )

    def remove(self, address: str) -> bool:
        """Let an address get mail again; False if it was not suppressed."""
        return self.database.write(_remove, _normal(address), alone=True)

    def find(self, address: str) -> Suppression | None:
        suppression = select(suppressions).where(suppressions.c.address == _normal(address))
        row = self.database.read(lambda connection: connection.execute(suppression).one_or_none())
        return _read(row) if row else None

    def page(
        self, *, limit: int, after: tuple[int, str] | None = None, reason: str = ""
    ) -> list[Suppression]:
        """Return the newest suppressions; `after`: only those older than this one (created_at, address)."""
        age = suppressions.c.created_at, suppressions.c.address
        page = select(suppressions).order_by(*(column.desc() for column in age)).limit(limit)
        if after:
            page = page.where(tuple_(*age) < after)
        if reason:
            page = page.where(suppressions.c.reason == reason)
        return self.database.read(
            lambda connection: [_read(row) for row in connection.execute(page)]
        )


@dataclass(frozen=True)
class Unsubscribes:
    """The links in the header field List-Unsubscribe (RFC 8058), each for one recipient of one message.

    They are signed with a secret from the database, so that every process makes and reads the same links.
    """

    database: Database
    public_url: str  #: PUBLIC_URL

    def url(self, message_id: str, position: int) -> str:
        """Return the link for the recipient at `position` of the message with this id of ours.

        Raises StoreUnavailable.
        """
        payload = f"{urlsafe_b64encode(message_id.encode()).decode().rstrip('=')}.{position}"
        return f"{self.public_url.rstrip('/')}/unsubscribe/{payload}.{self._mac(payload)}"

    def is_known(self, token: str) -> bool:
        """Tell whether we made the token, and the message is still kept."""
        recipient = self._read(token)
        if recipient is None:
            return False
        return self.database.read(lambda connection: _address(connection, *recipient)) is not None

    def unsubscribe(self, token: str) -> bool:
        """Suppress the recipient of a link; False if it is not known. A second call changes nothing."""
        recipient = self._read(token)
        return recipient is not None and self.database.write(_unsubscribe, recipient, alone=True)

    @cached_property
    def _key(self) -> bytes:
        return secret(self.database, "unsubscribe")

    def _read(self, token: str) -> tuple[str, int] | None:
        """Return the message's id and the recipient's position; None if we did not make the token."""
        payload, _, mac = token.rpartition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(payload).encode()):
            return None
        id, _, position = payload.partition(".")  # It is ours, so it has both.
        return urlsafe_b64decode(id + "=" * (-len(id) % 4)).decode(), int(position)

    def _mac(self, payload: str) -> str:
        digest = hmac.digest(self._key, payload.encode(), hashlib.sha256)
        return urlsafe_b64encode(digest[:_MAC_BYTES]).decode().rstrip("=")


def suppressed_among(connection: Connection, addresses: Collection[str]) -> set[str]:
    """Return those of `addresses` that are suppressed, in lower case.

    One statement with one parameter looks each of them up in the index.
    """
    normal = sorted({_normal(address) for address in addresses})
    if not normal:
        return set()
    if connection.dialect.name == "postgresql":
        rows = connection.exec_driver_sql(
            "SELECT address FROM suppressions WHERE address = ANY(CAST(%s AS varchar[]))", (normal,)
        )
    else:
        rows = connection.exec_driver_sql(
            "SELECT address FROM suppressions WHERE address IN (SELECT value FROM json_each(?) AS found)",
            (json.dumps(normal),),
        )
    return {row[0] for row in rows}


def state_at_acceptance(
    state: State, addresses: Sequence[str], suppressed: Collection[str]
) -> tuple[State, list[State]]:
    """Return the state of a message that would begin in `state`, and that of each recipient.

    `suppressed` is the result of `suppressed_among`. A message whose recipients are all suppressed has ended;
    its job runs all the same.
    """
    if state is State.FAILED:
        return state, [State.FAILED] * len(addresses)
    states = [
        State.SUPPRESSED if _normal(address) in suppressed else State.QUEUED
        for address in addresses
    ]
    if set(states) == {State.SUPPRESSED}:
        state = State.SUPPRESSED
    return state, states


_OPEN_OF = Rows(
    recipients,
    ("id",),
    lambda row: select(recipients.c.id, recipients.c.position, recipients.c.address).where(
        recipients.c.id == row["id"], recipients.c.state.in_(OPEN)
    ),
)


def drop_suppressed(connection: Connection, ids: Collection[str]) -> None:
    """Drop recipients of queued messages that were suppressed since; end messages without any other.

    This comes before each claim.
    """
    people = _OPEN_OF.of(connection, ids)
    suppressed = suppressed_among(connection, [person.address for person in people])
    if not suppressed:
        return
    gone = [person for person in people if _normal(person.address) in suppressed]
    ours = _lock_queued(connection, {person.id for person in gone})
    dropped = [{"of": person.id, "at": person.position} for person in gone if person.id in ours]
    if dropped:
        # For many recipients at a time, which a statement with IN cannot be run for.
        is_open = or_(*(recipients.c.state == state for state in OPEN))
        connection.execute(
            update(recipients)
            .values(state=State.SUPPRESSED, reply=REPLY)
            .where(
                recipients.c.id == bindparam("of"),
                recipients.c.position == bindparam("at"),
                is_open,
            ),
            dropped,
        )
        _end_without_recipients(connection, ours)


def _lock_queued(connection: Connection, ids: Collection[str]) -> set[str]:
    """Lock those of these messages that are queued, as everybody locks the message before its recipients.

    A message that is locked already is being claimed by another worker.
    """
    rows = connection.execute(
        select(messages.c.id, messages.c.state)
        .where(messages.c.id.in_(ids))
        .with_for_update(skip_locked=True)
    )
    return {row.id for row in rows if row.state == State.QUEUED}


def note_bounces(connection: Connection, bounced: Iterable[tuple[str, int, str]]) -> None:
    """Suppress recipients (message, position, reply) whose server said that there is no such address."""
    replies = {(id, position): reply for id, position, reply in bounced}
    if not replies:
        return
    people = connection.execute(
        select(recipients.c.id, recipients.c.position, recipients.c.address).where(
            tuple_(recipients.c.id, recipients.c.position).in_(list(replies))
        )
    ).all()
    rows = [
        _row(person.address, Reason.BOUNCED, replies[person.id, person.position], person.id)
        for person in people
    ]
    _insert_new(connection, rows)


def suppress_recipients(
    connection: Connection, people: Iterable[Any], reason: Reason, detail: str
) -> None:
    """Suppress these rows of `recipients`; those that are suppressed already stay as they are."""
    _insert_new(connection, [_row(person.address, reason, detail, person.id) for person in people])


def _end_without_recipients(connection: Connection, ids: Collection[str]) -> None:
    """End those of these messages that have no recipient left, by the outcome of the others."""
    states: dict[str, set[str]] = defaultdict(set)
    for row in connection.execute(
        select(recipients.c.id, recipients.c.state).where(recipients.c.id.in_(ids))
    ):
        states[row.id].add(row.state)
    ended: dict[State, list[str]] = defaultdict(list)
    for id, outcomes in states.items():
        if not outcomes & {*OPEN}:
            ended[_final_state(outcomes)].append(id)
    for state, ended_ids in ended.items():
        connection.execute(
            update(messages)
            .values(state=state, reason=REASON, next_attempt_at=None, parked=None)
            .where(messages.c.id.in_(ended_ids), messages.c.state == State.QUEUED)
        )
        record(connection, [{"id": id, "event": state, "detail": REASON} for id in ended_ids])


def _final_state(outcomes: set[str]) -> State:
    by_weight = (State.SENT, State.UNCERTAIN, State.FAILED)
    return next((state for state in by_weight if state in outcomes), State.SUPPRESSED)


def _add(connection: Connection, chunks: list[list[dict[str, Any]]]) -> list[int]:
    return [_insert_new(connection, rows) for rows in chunks]


def _insert_new(connection: Connection, rows: Iterable[dict[str, Any]]) -> int:
    """Write the addresses that are not suppressed yet; return how many.

    In order, so that no two transactions can wait for each other.
    """
    by_address = {row["address"]: row for row in rows}
    new = sorted(by_address.keys() - suppressed_among(connection, by_address.keys()))
    if new:
        connection.execute(
            insertion(connection, suppressions)
            .values(created_at=now_ms())
            .on_conflict_do_nothing(),
            [by_address[address] for address in new],
        )
    return len(new)


def _remove(connection: Connection, addresses: list[str]) -> list[bool]:
    removed = (
        delete(suppressions)
        .where(suppressions.c.address.in_(addresses))
        .returning(suppressions.c.address)
    )
    gone = set(connection.scalars(in_order(connection, removed)))
    return [address in gone for address in addresses]


def _unsubscribe(connection: Connection, people: list[tuple[str, int]]) -> list[bool]:
    return [_unsubscribe_one(connection, id, position) for id, position in people]


def _unsubscribe_one(connection: Connection, id: str, position: int) -> bool:
    """Suppress a recipient; their own wish replaces every other reason."""
    address = _address(connection, id, position)
    if address is None:
        return False
    row = _row(address, Reason.UNSUBSCRIBED, None, id) | {"created_at": now_ms()}
    statement = insertion(connection, suppressions).values(**row)
    if connection.scalar(
        statement.on_conflict_do_update(
            index_elements=["address"], set_=row, where=suppressions.c.reason != Reason.UNSUBSCRIBED
        ).returning(suppressions.c.address)
    ):
        record(connection, [{"id": id, "event": Reason.UNSUBSCRIBED}])
    return True


def _address(connection: Connection, id: str, position: int) -> str | None:
    address: str | None = connection.scalar(
        select(recipients.c.address).where(recipients.c.id == id, recipients.c.position == position)
    )
    return address


def _row(
    address: str, reason: Reason, detail: str | None, message_id: str | None = None
) -> dict[str, Any]:
    return {
        "address": _normal(address),
        "reason": reason,
        "detail": detail,
        "message_id": message_id,
    }


def _read(row: Any) -> Suppression:
    return Suppression(
        address=row.address,
        reason=Reason(row.reason),
        detail=row.detail,
        message_id=row.message_id,
        created_at=row.created_at,
    )


def _normal(address: str) -> str:
    return address.lower()[:ADDRESS_MAX_CHARACTERS]
