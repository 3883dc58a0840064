"""Writes how attempts ended: for the message, its recipients, its timeline and its account."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, and_, func, or_, select, tuple_

from mailroom.model.attempt import Claim, Outcome
from mailroom.model.message import State
from mailroom.store.accounts import AccountReport, lock_accounts, note_ends, note_sent
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import events, messages, recipients
from mailroom.store.db.statements import Rows
from mailroom.store.events.counters import count_latencies
from mailroom.store.events.deliveries import storable
from mailroom.store.events.timeline import record
from mailroom.store.messages.suppressions import note_bounces

Ended = tuple[Claim, Outcome]
#: A message's id, and the number of the attempt.
AttemptKey = tuple[str, int]

#: A row's state when its attempt ends: it is still ours, or a sweeper that took us for dead gave it back.
_OURS = [State.SENDING, State.IN_DATA, State.QUEUED, State.UNCERTAIN]
#: The states that a person may have brought it to from there.
_CHANGED_BY_HAND = [State.HELD, State.SCHEDULED, State.CANCELED, State.EXPIRED]

# Each claim makes a new attempt, so its number alone says whether this is still the same claim. So a reply
# that was read counts even where a sweeper has given the row back, as long as no other worker has claimed it;
# and if the mail was sent, whatever a person has done to it since. `settled` keeps an end from being written
# twice.
_FINISH = Rows(
    messages,
    (
        "id",
        "attempt",
        "state",
        "reason",
        "uncertain",
        "parked",
        "excused",
        "next_at",
        "wait_ms",
        "taken",
        "looks",
        "looks_then",
    ),
    lambda row: (
        messages.update()
        .values(
            state=row["state"],
            owner=None,
            reason=row["reason"],
            settled=row["attempt"],
            excused=messages.c.excused + row["excused"],
            uncertain_attempts=messages.c.uncertain_attempts + row["uncertain"],
            parked=row["parked"],
            taken=func.coalesce(row["taken"], messages.c.taken),
            looks=row["looks"],
            looks_then=row["looks_then"],
            next_attempt_at=func.coalesce(row["next_at"], now_ms() + row["wait_ms"]),
        )
        .where(
            messages.c.id == row["id"],
            messages.c.attempt == row["attempt"],
            messages.c.settled < row["attempt"],
            or_(
                messages.c.state.in_(_OURS),
                messages.c.looks.is_not(None),
                and_(row["state"] == State.SENT, messages.c.state.in_(_CHANGED_BY_HAND)),
            ),
        )
        .returning(
            messages.c.id,
            messages.c.attempt,
            messages.c.state,
            messages.c.created_at,
            now_ms().label("now"),
        )
    ),
)
_REPLIES = Rows(
    recipients,
    ("id", "position", "state", "reply"),
    lambda row: (
        recipients.update()
        .values(state=row["state"], reply=row["reply"])
        .where(recipients.c.id == row["id"], recipients.c.position == row["position"])
    ),
    guarded=True,
)


def finish(connection: Connection, ended: list[Ended], limited: Collection[str]) -> list[bool]:
    """Write outcomes, and what they say of the accounts; return for each whether it is on record.

    `limited`: the accounts whose mails are counted.
    """
    reports = [
        AccountReport(claim.account, claim.is_probe, outcome.account_error)
        for claim, outcome in _about_accounts(connection, ended)
    ]
    until = note_ends(connection, reports)
    rows = _write_outcomes(connection, ended, until)
    written = attempts_of(rows)
    count_latencies(
        connection, [row.now - row.created_at for row in rows if row.state == State.SENT]
    )
    kept = _only(ended, written)
    _write_replies(connection, kept)
    _note_bounces(connection, kept)
    record(connection, [_line(claim, outcome) for claim, outcome in kept])
    if limited:
        _note_sent(connection, kept, limited)
    return on_record(connection, [claim for claim, _ in ended], written)


def finish_bare(connection: Connection, ended: list[Ended]) -> list[bool]:
    """Write outcomes alone, in words that any database takes; return for each whether it is on record.

    A mail that is not recorded as sent would be sent again.
    """
    plain = [(claim, _storable(outcome)) for claim, outcome in ended]
    written = attempts_of(_write_outcomes(connection, plain, {}))
    kept = _only(plain, written)
    _write_replies(connection, kept)
    if kept:
        lines = [_line(claim, outcome) for claim, outcome in kept]
        connection.execute(events.insert().values(at=now_ms()), lines)
    return on_record(connection, [claim for claim, _ in ended], written)


def attempts_of(rows: Iterable[Any]) -> set[AttemptKey]:
    """Return the attempts that these rows are about: one transaction may have two of the same message."""
    return {(row.id, row.attempt) for row in rows}


def on_record(
    connection: Connection, claims: Sequence[Claim], written: set[AttemptKey]
) -> list[bool]:
    """Tell for each claim whether its end is on record, perhaps by a commit that got no answer."""
    others = [
        (claim.id, claim.attempt) for claim in claims if (claim.id, claim.attempt) not in written
    ]
    recorded = written | (_settled(connection, others) if others else set())
    return [(claim.id, claim.attempt) in recorded for claim in claims]


def _settled(connection: Connection, attempts: list[AttemptKey]) -> set[AttemptKey]:
    rows = connection.execute(
        select(messages.c.id, messages.c.settled.label("attempt")).where(
            tuple_(messages.c.id, messages.c.settled).in_(attempts)
        )
    )
    return attempts_of(rows)


def _about_accounts(connection: Connection, ended: list[Ended]) -> list[Ended]:
    """Return those that say something of an account and are not on record, so that no error counts twice."""
    about = [
        (claim, outcome) for claim, outcome in ended if outcome.account_error or claim.is_probe
    ]
    if not about:
        return []
    # A commit that got no answer may still hold these locks: then its outcome can be read only after it.
    lock_accounts(connection, {claim.account for claim, _ in about})
    recorded = _settled(connection, [(claim.id, claim.attempt) for claim, _ in about])
    return [
        (claim, outcome) for claim, outcome in about if (claim.id, claim.attempt) not in recorded
    ]


def _only(ended: list[Ended], attempts: set[AttemptKey]) -> list[Ended]:
    return [(claim, outcome) for claim, outcome in ended if (claim.id, claim.attempt) in attempts]


def _write_outcomes(connection: Connection, ended: list[Ended], until: dict[str, int]) -> list[Any]:
    """Write outcomes; return the rows that could be changed.

    `until`: when accounts are tried again, in milliseconds since 1970.
    """
    return _FINISH(connection, [_row(claim, outcome, until) for claim, outcome in ended])


def _row(claim: Claim, outcome: Outcome, until: dict[str, int]) -> dict[str, Any]:
    """Return the values of `_FINISH`. With an error of the account, a message waits until that can send."""
    error = outcome.account_error
    row: dict[str, Any] = {
        "id": claim.id,
        "attempt": claim.attempt,
        "state": outcome.state,
        "reason": outcome.reason,
        "uncertain": int(outcome.uncertain),
        "parked": None,
        "excused": int(outcome.excused),
        "next_at": None,
        "wait_ms": None,
        "taken": 1 if _reached(outcome) and not outcome.uncertain else None,
        "looks": None,
        "looks_then": None,
    }
    if error and outcome.state is State.DEFERRED:
        is_excused = outcome.excused or error.excuses
        row |= {"parked": 1, "excused": int(is_excused), "next_at": until.get(claim.account)}
    elif outcome.wait_seconds is not None:
        row["wait_ms"] = int(outcome.wait_seconds * 1000)
    if outcome.look_up:
        row |= {"looks": 0, "looks_then": outcome.look_up}
    return row


def _write_replies(connection: Connection, ended: list[Ended]) -> None:
    rows = [
        {"id": claim.id, "position": position, "state": state, "reply": reply}
        for claim, outcome in ended
        for position, (state, reply) in outcome.recipients.items()
    ]
    _REPLIES(connection, rows)


def _note_bounces(connection: Connection, ended: list[Ended]) -> None:
    bounces = [
        (claim.id, position, outcome.recipients[position][1])
        for claim, outcome in ended
        for position in outcome.bounced
    ]
    note_bounces(connection, bounces)


def _note_sent(connection: Connection, ended: list[Ended], limited: Collection[str]) -> None:
    reached = [
        (claim.account, _reached(outcome)) for claim, outcome in ended if claim.account in limited
    ]
    note_sent(connection, [(account, people) for account, people in reached if people])


def _line(claim: Claim, outcome: Outcome) -> dict[str, Any]:
    """Return the line of the timeline."""
    event = "uncertain" if outcome.uncertain else outcome.state
    return {"id": claim.id, "event": event, "attempt": claim.attempt, "detail": outcome.reason}


def _reached(outcome: Outcome) -> int:
    """Count the recipients for whom the server took the mail, or may have."""
    if outcome.uncertain:
        return len(outcome.recipients)
    return sum(state is State.SENT for state, _ in outcome.recipients.values())


def _storable(outcome: Outcome) -> Outcome:
    replies = {
        position: (state, storable(reply))
        for position, (state, reply) in outcome.recipients.items()
    }
    return replace(outcome, reason=storable(outcome.reason), recipients=replies)
