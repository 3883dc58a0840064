"""Allocates queued messages to accounts that can send them, and makes them this worker's."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, String, func, or_, select

from mailroom.model.message import State
from mailroom.store.accounts import Allowance, begin_probe
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import messages, recipients
from mailroom.store.db.statements import Rows, parameter
from mailroom.store.events.webhook_events import enqueue_webhooks


class ClaimedRow(NamedTuple):
    """The columns that a claim's UPDATE returned, and the allowance that the message is sent from."""

    attempt: int
    excused: int
    max_attempts: int | None
    allowance: Allowance


def claim_rows(
    connection: Connection,
    owner: str,
    ids: list[str],
    allowances: list[Allowance],
    *,
    suspects: bool,
) -> dict[str, ClaimedRow]:
    """Claim queued messages as far as the allowances go; the others wait for an account."""
    if len(allowances) == 1 and allowances[0].unlimited:  # Nothing to divide: one statement.
        return _claim(connection, owner, ids, allowances[0], suspects=suspects)
    allocated, unallocated = _allocate(_lock_rows(connection, ids, suspects=suspects), allowances)
    for sender, sender_ids in unallocated.items():
        _park(connection, sender_ids, _usable(allowances, sender))
    claimed: dict[str, ClaimedRow] = {}
    for allowance in allowances:
        if allowance.account not in allocated:
            continue
        claimed |= _claim(
            connection, owner, allocated[allowance.account], allowance, suspects=suspects
        )
        if allowance.is_probe:
            begin_probe(connection, allowance.account)
    return claimed


def _lock_rows(connection: Connection, ids: list[str], *, suspects: bool) -> Sequence[Any]:
    """Return the messages that can be claimed, the oldest first, each with its number of `people`."""
    people = select(func.count()).where(
        recipients.c.id == messages.c.id, recipients.c.state.in_([State.QUEUED, State.DEFERRED])
    )
    return connection.execute(
        select(
            messages.c.id,
            messages.c.account,
            messages.c.sender,
            people.scalar_subquery().label("people"),
        )
        .where(messages.c.id.in_(ids), *_claimable(suspects))
        .order_by(messages.c.created_at, messages.c.id)
        .with_for_update(skip_locked=True)
    ).all()


def _allocate(
    rows: Sequence[Any], allowances: list[Allowance]
) -> tuple[dict[str, list[str]], dict[str | None, list[str]]]:
    """Return the ids of messages by the account that sends them, and the ids of the others by sender."""
    allocated: dict[str, list[str]] = defaultdict(list)
    unallocated: dict[str | None, list[str]] = defaultdict(list)
    for row in rows:
        allowance = _choose(row, allowances)
        if allowance is None:
            unallocated[row.sender].append(row.id)
        else:
            allocated[allowance.account].append(row.id)
            allowance.take(row.people)
    return allocated, unallocated


def _choose(row: Any, allowances: list[Allowance]) -> Allowance | None:
    """Choose the account that the message had before, if it can, or else the one that can send most."""
    usable = _usable(allowances, row.sender)
    usable.sort(key=lambda allowance: (allowance.account != row.account, -allowance.messages))
    return next((allowance for allowance in usable if allowance.holds(row.people)), None)


def _usable(allowances: list[Allowance], sender: str | None) -> list[Allowance]:
    return [allowance for allowance in allowances if sender in (None, allowance.account)]


def _park(connection: Connection, ids: list[str], allowances: list[Allowance]) -> None:
    """Let messages wait until an account can send them.

    Webhooks get an event, unless all that the messages wait for is a free connection.
    """
    times = [allowance.until for allowance in allowances if allowance.until is not None]
    until = min(times) if len(times) == len(allowances) else None
    reason = "waits for " + "; ".join(
        allowance.words for allowance in allowances if allowance.words
    )
    parked = connection.scalars(
        messages.update()
        .values(
            state=State.DEFERRED, parked=1, published_at=None, next_attempt_at=until, reason=reason
        )
        .where(messages.c.id.in_(ids), messages.c.state == State.QUEUED)
        .returning(messages.c.id)
    ).all()
    if until is not None:
        enqueue_webhooks(
            connection, [{"id": id, "event": "deferred", "detail": reason} for id in parked]
        )


def _claim(
    connection: Connection, owner: str, ids: list[str], allowance: Allowance, *, suspects: bool
) -> dict[str, ClaimedRow]:
    rows = _CLAIM[suspects].of(connection, ids, worker=owner, by=allowance.account)
    return {
        row.id: ClaimedRow(row.attempt, row.excused, row.max_attempts, allowance) for row in rows
    }


def _claimable(suspects: bool) -> list[ColumnElement[bool]]:
    """Return the conditions of a claim: on rows whose last owner died, or on all others."""
    return [
        messages.c.state == State.QUEUED,
        or_(messages.c.expires_at.is_(None), messages.c.expires_at > now_ms()),
        messages.c.crashes > 0 if suspects else messages.c.crashes == 0,
    ]


def _claiming(suspects: bool) -> Rows:
    return Rows(
        messages,
        ("id",),
        lambda row: (
            messages.update()
            .values(
                state=State.SENDING,
                owner=parameter("worker", String),
                attempt=messages.c.attempt + 1,
                account=parameter("by", String),
                parked=None,
                # A message that is claimed had its nudge, whether or not the publisher has noted that
                # already.
                published_at=func.coalesce(messages.c.published_at, now_ms()),
                first_attempt_at=func.coalesce(messages.c.first_attempt_at, now_ms()),
            )
            .where(messages.c.id == row["id"], *_claimable(suspects))
            .returning(
                messages.c.id, messages.c.attempt, messages.c.excused, messages.c.max_attempts
            )
        ),
    )


_CLAIM = {suspects: _claiming(suspects) for suspects in (False, True)}
