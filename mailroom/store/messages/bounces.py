"""Applies reports of bounces, delays and complaints to the recipients that they are about."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, exists, select, text, update

from mailroom.model.account import AccountError, AccountState
from mailroom.model.message import OPEN, State
from mailroom.model.report import Report, ReportedRecipient, ReportKind
from mailroom.store.accounts import AccountReport, lock_accounts, note_ends
from mailroom.store.db.database import Database
from mailroom.store.db.schema import OWN_MESSAGE_ID, contents, messages, recipients
from mailroom.store.events.counters import count
from mailroom.store.events.timeline import record
from mailroom.store.messages.suppressions import Reason, suppress_recipients

#: The name of the count of reports that change nothing: about no mail of ours, forged, or known already.
IGNORED = "reports_ignored"
#: How long an account rests whose mail came back for its limit, as after such a reply to SMTP.
LIMIT_WAITS_SECONDS = (3600.0,)

#: What a report makes of a recipient; a delay changes nothing.
_STATES = {
    ReportKind.FAILED: State.BOUNCED,
    ReportKind.COMPLAINT: State.COMPLAINED,
    ReportKind.LIMIT: State.QUEUED,
}
_EVENTS = {
    ReportKind.FAILED: "bounced",
    ReportKind.COMPLAINT: "complained",
    ReportKind.LIMIT: "limit bounce",
    ReportKind.DELAYED: "delayed",
}
#: States of recipients that a report can be about: the next hop took the mail, or may have.
_REPORTABLE = (State.SENT, State.UNCERTAIN)
#: States of messages that follow from those of their recipients.
_FOLLOWING = (State.SENT, State.UNCERTAIN, State.BOUNCED, State.COMPLAINED)


@dataclass(frozen=True)
class Bounces:
    """The outbox, for reports about its mails."""

    database: Database

    def apply(self, report: Report) -> bool:
        """Apply a report; False if it changes nothing, and is only counted. A second call changes nothing."""
        return self.database.write(_apply_all, report, alone=True)


def _apply_all(connection: Connection, reports: list[Report]) -> list[bool]:
    applied: list[bool] = []
    for report in reports:
        changed = _apply(connection, report)
        if not changed:
            count(connection, {IGNORED: 1})
        applied.append(changed)
    return applied


def _apply(connection: Connection, report: Report) -> bool:
    found = _find(connection, report.message_ids)
    if found is None:
        return False
    # Accounts are locked before messages, by everybody.
    if any(about.kind is ReportKind.LIMIT for about in report.recipients) and found.account:
        lock_accounts(connection, [found.account])
    row = connection.execute(
        select(messages).where(messages.c.id == found.id).with_for_update()
    ).one()
    changed = [
        (about, person)
        for about in report.recipients
        for person in _change(connection, row.id, about)
    ]
    if not changed:
        return False
    _change_message(connection, row, changed)
    record(connection, [_line(row, about, person) for about, person in changed])
    _suppress(connection, changed)
    return True


def _find(connection: Connection, message_ids: Sequence[str]) -> Any:
    """Return the message with the first of these Message-IDs that is ours."""
    for message_id in message_ids:
        local = message_id.partition("@")[0]
        is_named = (messages.c.id == local, messages.c.message_id == message_id)
        has_own = (text(OWN_MESSAGE_ID), messages.c.message_id == message_id)
        for condition in (is_named, has_own):
            found = connection.execute(
                select(messages.c.id, messages.c.account).where(*condition)
            ).first()
            if found:
                return found
    return None


def _change(connection: Connection, id: str, about: ReportedRecipient) -> Sequence[Any]:
    """Change the recipients that a report names; return them, those of a delay unchanged."""
    people = connection.execute(select(recipients).where(recipients.c.id == id)).all()
    positions = [person.position for person in people if _is_about(about, person, people)]
    reportable = (
        recipients.c.id == id,
        recipients.c.position.in_(positions),
        recipients.c.state.in_(_REPORTABLE),
    )
    if about.kind is ReportKind.DELAYED:
        return connection.execute(select(recipients).where(*reportable)).all()
    changed = update(recipients).values(state=_STATES[about.kind], reply=about.words)
    return connection.execute(changed.where(*reportable).returning(recipients)).all()


def _is_about(about: ReportedRecipient, person: Any, people: Sequence[Any]) -> bool:
    """Compare addresses in any case; a complaint often hides its own, and is about the only recipient."""
    if not about.addresses:
        return len(people) == 1
    return person.address.lower() in {address.lower() for address in about.addresses}


def _change_message(
    connection: Connection, row: Any, changed: Sequence[tuple[ReportedRecipient, Any]]
) -> None:
    """Let the state of the message follow from those of its recipients, unless a worker has it now."""
    is_looked_for = row.looks is not None
    if row.state not in _FOLLOWING and not is_looked_for:
        return
    states = set(
        connection.scalars(select(recipients.c.state).where(recipients.c.id == row.id).distinct())
    )
    limit = next((about for about, _ in changed if about.kind is ReportKind.LIMIT), None)
    if limit is not None:
        _wait_for_account(connection, row, limit)
    elif not (is_looked_for and State.UNCERTAIN in states):
        _update(connection, row, state=_following(states), reason=changed[0][0].words)


def _following(states: set[str]) -> State:
    if states & {*OPEN}:
        return State.QUEUED
    order = (State.SENT, State.UNCERTAIN, State.BOUNCED, State.COMPLAINED)
    return next(state for state in order if state in states)


def _wait_for_account(connection: Connection, row: Any, limit: ReportedRecipient) -> None:
    """Let the account rest, and send the mail again after that, in an attempt that does not count."""
    error = AccountError(state=AccountState.PARKED, reason=limit.words, waits=LIMIT_WAITS_SECONDS)
    until = note_ends(connection, [AccountReport(row.account, is_probe=False, error=error)])
    is_kept = connection.scalar(select(exists().where(contents.c.id == row.id)))
    if not is_kept:
        _update(connection, row, state=State.FAILED, reason=f"{limit.words}; its content is gone")
        return
    _update(
        connection,
        row,
        state=State.DEFERRED,
        reason=limit.words,
        parked=1,
        next_attempt_at=until.get(row.account),
        excused=messages.c.excused + 1,
    )


def _update(connection: Connection, row: Any, **values: Any) -> None:
    ended = {
        "looks": None,
        "looks_then": None,
        "next_attempt_at": None,
        "published_at": None,
        "taken": 1,
    }
    connection.execute(update(messages).values(**(ended | values)).where(messages.c.id == row.id))


def _line(row: Any, about: ReportedRecipient, person: Any) -> dict[str, Any]:
    """Return the line of the timeline."""
    detail = f"{person.address}: {about.words}" if about.words else person.address
    return {
        "id": row.id,
        "event": _EVENTS[about.kind],
        "attempt": row.attempt,
        "detail": detail,
    }


def _suppress(connection: Connection, changed: Sequence[tuple[ReportedRecipient, Any]]) -> None:
    for about, person in changed:
        if about.kind is ReportKind.COMPLAINT:
            suppress_recipients(connection, [person], Reason.COMPLAINED, about.words)
        elif about.kind is ReportKind.FAILED and about.is_bad_address:
            suppress_recipients(connection, [person], Reason.BOUNCED, about.words)
