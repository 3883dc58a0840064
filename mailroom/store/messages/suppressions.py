"""Knows who gets no mail any more: refused by their server, unsubscribed, or by a person's word.

The links by which one unsubscribes are here too.
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
from mailroom.store.db.schema import insertion, messages, now_ms, recipients, suppressions
from mailroom.store.db.statements import Rows, in_order
from mailroom.store.events.timeline import record
from mailroom.store.keys.signing import secret

#: What the columns take.
ADDRESS_MAX_CHARACTERS = 320
#: In place of a server's words, for the recipient; and for a message that has no other recipient left.
REPLY = "not sent: the address is suppressed"
REASON = "every recipient that was left is suppressed"

#: The HMAC in a link, in bytes (RFC 2104, 5).
_MAC_BYTES = 16


class Reason(StrEnum):
    """The reason why somebody gets no mail."""

    BOUNCED = "bounced"  #: a server said that there is no such address
    UNSUBSCRIBED = "unsubscribed"  #: the recipient asked for it
    MANUAL = "manual"  #: a person or a client added it


@dataclass(frozen=True, kw_only=True)
class Suppression:
    """An address that gets no mail. `created_at` is in milliseconds since 1970."""

    address: str
    reason: Reason
    detail: str | None
    message_id: str | None  #: the id of the message that it came of
    created_at: int


@dataclass(frozen=True)
class Suppressions:
    """The addresses that get no mail, each in lower case.

    Every write is alone: a finish locks such rows, an acceptance those of rates, and who locked both would wait for either.
    """

    database: Database

    def add(self, address: str, reason: Reason = Reason.MANUAL, detail: str | None = None) -> bool:
        """Suppress it; False if it was suppressed before, and is left as it was."""
        return self.add_all([address], reason, detail) == 1

    def add_all(
        self, addresses: Collection[str], reason: Reason = Reason.MANUAL, detail: str | None = None
    ) -> int:
        """Suppress many in one commit; return how many were not suppressed before."""
        return self.database.write(_add, [_row(address, reason, detail) for address in addresses], alone=True)

    def remove(self, address: str) -> bool:
        """Let it get mail again; False if it did."""
        return self.database.write(_remove, _normal(address), alone=True)

    def find(self, address: str) -> Suppression | None:
        row = self.database.read(
            lambda connection: connection.execute(
                select(suppressions).where(suppressions.c.address == _normal(address))
            ).one_or_none()
        )
        return _read(row) if row else None

    def page(
        self, *, limit: int, after: tuple[int, str] | None = None, reason: str = ""
    ) -> list[Suppression]:
        """The newest, or those that come after this one (created_at, address)."""
        place = suppressions.c.created_at, suppressions.c.address
        found = select(suppressions).order_by(*(column.desc() for column in place)).limit(limit)
        if after:
            found = found.where(tuple_(*place) < after)
        if reason:
            found = found.where(suppressions.c.reason == reason)
        return self.database.read(lambda connection: [_read(row) for row in connection.execute(found)])


@dataclass(frozen=True)
class Unsubscribes:
    """The links in the header field List-Unsubscribe (RFC 8058), each for one recipient of one message.

    They are signed with a secret that the database keeps, so that every process makes and reads the same ones.
    """

    database: Database
    public_url: str  #: PUBLIC_URL

    def url(self, message_id: str, position: int) -> str:
        """The link for the recipient at `position` of the message with this id of ours. Raises StoreUnavailable."""
        said = f"{urlsafe_b64encode(message_id.encode()).decode().rstrip('=')}.{position}"
        return f"{self.public_url.rstrip('/')}/unsubscribe/{said}.{self._mac(said)}"

    def is_known(self, token: str) -> bool:
        """Tell whether we made the token, and the message is still kept."""
        whom = self._read(token)
        return (
            whom is not None
            and self.database.read(lambda connection: _address(connection, *whom)) is not None
        )

    def unsubscribe(self, token: str) -> bool:
        """Send its recipient no mail any more; False if it is not known. Done twice, it changes nothing."""
        whom = self._read(token)
        return whom is not None and self.database.write(_unsubscribe, whom, alone=True)

    @cached_property
    def _key(self) -> bytes:
        return secret(self.database, "unsubscribe")

    def _read(self, token: str) -> tuple[str, int] | None:
        said, _, mac = token.rpartition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(said).encode()):
            return None
        id, _, position = said.partition(".")  # Ours, so it has the form that we gave it.
        return urlsafe_b64decode(id + "=" * (-len(id) % 4)).decode(), int(position)

    def _mac(self, said: str) -> str:
        digest = hmac.digest(self._key, said.encode(), hashlib.sha256)
        return urlsafe_b64encode(digest[:_MAC_BYTES]).decode().rstrip("=")


def suppressed_among(connection: Connection, addresses: Collection[str]) -> set[str]:
    """Return those of `addresses` that are suppressed, in lower case.

    There is one look into the index for each, in one statement of one parameter.
    """
    wanted = sorted({_normal(address) for address in addresses})
    if not wanted:
        return set()
    if connection.dialect.name == "postgresql":
        found = connection.exec_driver_sql(
            "SELECT address FROM suppressions WHERE address = ANY(CAST(%s AS varchar[]))", (wanted,)
        )
    else:
        found = connection.exec_driver_sql(
            "SELECT address FROM suppressions WHERE address IN (SELECT value FROM json_each(?) AS found)",
            (json.dumps(wanted),),
        )
    return {row[0] for row in found}


def state_at_acceptance(
    state: State, addresses: Sequence[str], suppressed: Collection[str]
) -> tuple[State, list[State]]:
    """The state of a message that would begin in `state`, and of each recipient, where `suppressed` is what `suppressed_among` found.

    One whose recipients are all suppressed has ended; a job before it runs all the same.
    """
    usual = State.FAILED if state is State.FAILED else State.QUEUED
    states = [
        State.SUPPRESSED if _normal(address) in suppressed and usual is State.QUEUED else usual
        for address in addresses
    ]
    return (State.SUPPRESSED if states and set(states) == {State.SUPPRESSED} else state), states


_OPEN_OF = Rows(
    recipients,
    ("id",),
    lambda given: select(recipients.c.id, recipients.c.position, recipients.c.address).where(
        recipients.c.id == given["id"], recipients.c.state.in_(OPEN)
    ),
)


def drop_suppressed(connection: Connection, ids: Collection[str]) -> None:
    """Before a claim: take out the recipients of queued messages that were suppressed since; end messages that have no other left."""
    people = _OPEN_OF.of(connection, ids)
    found = suppressed_among(connection, [person.address for person in people])
    gone = [person for person in people if _normal(person.address) in found] if found else []
    if not gone:
        return
    # The message first, as everybody locks it first. One that is locked is another worker's by now.
    ours = {
        row.id
        for row in connection.execute(
            select(messages.c.id, messages.c.state)
            .where(messages.c.id.in_({person.id for person in gone}))
            .with_for_update(skip_locked=True)
        )
        if row.state == State.QUEUED
    }
    if dropped := [{"of": person.id, "at": person.position} for person in gone if person.id in ours]:
        connection.execute(
            update(recipients)
            .values(state=State.SUPPRESSED, reply=REPLY)
            .where(
                recipients.c.id == bindparam("of"),
                recipients.c.position == bindparam("at"),
                or_(*(recipients.c.state == state for state in OPEN)),
            ),
            dropped,
        )  # An IN cannot be run for many.
        _end_without_recipients(connection, ours)


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
    _insert_new(
        connection,
        [
            _row(person.address, Reason.BOUNCED, replies[person.id, person.position], person.id)
            for person in people
        ],
    )


def _end_without_recipients(connection: Connection, ids: Collection[str]) -> None:
    """End those of these messages for which nobody is left, by what became of the others."""
    states: dict[str, set[str]] = defaultdict(set)
    for row in connection.execute(
        select(recipients.c.id, recipients.c.state).where(recipients.c.id.in_(ids))
    ):
        states[row.id].add(row.state)
    ended: dict[State, list[str]] = defaultdict(list)
    for id, found in states.items():
        if not found & {*OPEN}:
            ended[
                next(
                    (state for state in (State.SENT, State.UNCERTAIN, State.FAILED) if state in found),
                    State.SUPPRESSED,
                )
            ].append(id)
    for state, those in ended.items():
        connection.execute(
            update(messages)
            .values(state=state, reason=REASON, next_attempt_at=None, parked=None)
            .where(messages.c.id.in_(those), messages.c.state == State.QUEUED)
        )
        record(connection, [{"id": id, "event": state, "detail": REASON} for id in those])


def _add(connection: Connection, asked: list[list[dict[str, Any]]]) -> list[int]:
    return [_insert_new(connection, rows) for rows in asked]


def _insert_new(connection: Connection, rows: Iterable[dict[str, Any]]) -> int:
    """Write those that are not there; return how many that were. In order, so that two transactions cannot wait for each other."""
    wanted = {row["address"]: row for row in rows}
    new = sorted(wanted.keys() - suppressed_among(connection, wanted.keys()))
    if new:
        connection.execute(
            insertion(connection, suppressions).values(created_at=now_ms()).on_conflict_do_nothing(),
            [wanted[address] for address in new],
        )
    return len(new)


def _remove(connection: Connection, addresses: list[str]) -> list[bool]:
    removed = (
        delete(suppressions).where(suppressions.c.address.in_(addresses)).returning(suppressions.c.address)
    )
    gone = set(connection.scalars(in_order(connection, removed)))
    return [address in gone for address in addresses]


def _unsubscribe(connection: Connection, asked: list[tuple[str, int]]) -> list[bool]:
    return [_unsubscribe_one(connection, id, position) for id, position in asked]


def _unsubscribe_one(connection: Connection, id: str, position: int) -> bool:
    """The recipient's own word stands above every other reason."""
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
    found: str | None = connection.scalar(
        select(recipients.c.address).where(recipients.c.id == id, recipients.c.position == position)
    )
    return found


def _row(address: str, reason: Reason, detail: str | None, message_id: str | None = None) -> dict[str, Any]:
    return {"address": _normal(address), "reason": reason, "detail": detail, "message_id": message_id}


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
