"""Applies reports of bounces, delays and complaints to the recipients that they are about."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, exists, insert, select, text, update

from mailroom.model.account import AccountError, AccountState
from mailroom.model.errors import StillSending
from mailroom.model.message import OPEN, State
from mailroom.model.report import Report, ReportedRecipient, ReportKind
from mailroom.store.accounts import AccountReport, lock_accounts, note_ends
from mailroom.store.db.database import Database
from mailroom.store.db.schema import (
    OWN_MESSAGE_ID,
    contents,
    events,
    messages,
    recipients,
    reports,
)
from mailroom.store.events.counters import count
from mailroom.store.events.timeline import record
from mailroom.store.messages.suppressions import Reason, suppress_recipients

#: The name of the count of reports that change nothing: about no mail of ours, forged, or known already.
IGNORED = "reports_ignored"
#: How long an account rests whose mail came back for its limit, as after such a reply to SMTP.
LIMIT_WAITS_SECONDS = (3600.0,)

#: The most messages with one Message-ID that a report is tried with.
COPIES_MAX = 10

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
#: States of messages that are not sent any more, although some recipient may have them.
_OVER = (State.FAILED, State.EXPIRED, State.CANCELED, State.SUPPRESSED)
#: States of messages that follow from those of their recipients.
_FOLLOWING = (State.SENT, State.UNCERTAIN, State.BOUNCED, State.COMPLAINED)


@dataclass(frozen=True)
class Bounces:
    """The outbox, for reports about its mails."""

    database: Database

    def apply(self, report: Report) -> bool:
        """Apply a report; False if it changes nothing, and is only counted. A second call changes nothing.

        Raises:
          StillSending: it is too early; the report is to be applied later.
        """
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
    """Apply a report to the newest message with its Message-ID that it changes.

    There are several where a mail was sent once more with the Message-ID that its client chose.
    """
    found = _find(connection, report.message_ids)
    return any(_apply_to(connection, row, report) for row in found)


def _apply_to(connection: Connection, found: Any, report: Report) -> bool:
    limit = next((about for about in report.recipients if about.kind is ReportKind.LIMIT), None)
    # Accounts are locked before messages, by everybody.
    if limit and found.account:
        lock_accounts(connection, [found.account])
    row = connection.execute(
        select(messages).where(messages.c.id == found.id).with_for_update()
    ).one()
    if row.owner is not None:
        raise StillSending
    if _was_applied(connection, row.id, report.digest):
        return False
    changed = [
        (about, person)
        for about in _possible(connection, row, report)
        for person in _change(connection, row.id, about)
    ]
    if not changed:
        return False
    until = _rest(connection, row, limit) if limit else None
    _change_message(connection, row, changed, until)
    record(connection, [_line(row, about, person) for about, person in changed])
    _suppress(connection, changed)
    if report.digest:
        connection.execute(insert(reports).values(id=row.id, digest=report.digest))
    return True


def _was_applied(connection: Connection, id: str, digest: str) -> bool:
    same = exists().where(reports.c.id == id, reports.c.digest == digest)
    return bool(connection.scalar(select(same)))


def _possible(connection: Connection, row: Any, report: Report) -> Sequence[ReportedRecipient]:
    """Return the parts of a report; a limit is a failure where the mail cannot be sent again.

    That is also so the second time: whoever has the mail can forge such a report, once for each time that it
    is sent.
    """
    is_kept = connection.scalar(select(exists().where(contents.c.id == row.id)))
    before = exists().where(events.c.id == row.id, events.c.event == _EVENTS[ReportKind.LIMIT])
    is_first = not connection.scalar(select(before))
    if is_kept and is_first and row.state not in _OVER:
        return report.recipients
    return [
        replace(about, kind=ReportKind.FAILED) if about.kind is ReportKind.LIMIT else about
        for about in report.recipients
    ]


def _find(connection: Connection, message_ids: Sequence[str]) -> Sequence[Any]:
    """Return the messages with the first of these Message-IDs that is ours, the newest first."""
    for message_id in message_ids:
        local = message_id.partition("@")[0]
        is_named = (messages.c.id == local, messages.c.message_id == message_id)
        has_own = (text(OWN_MESSAGE_ID), messages.c.message_id == message_id)
        for condition in (is_named, has_own):
            found = connection.execute(
                select(messages.c.id, messages.c.account)
                .where(*condition)
                .order_by(messages.c.created_at.desc())
                .limit(COPIES_MAX)
            ).all()
            if found:
                return found
    return []


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
    connection: Connection,
    row: Any,
    changed: Sequence[tuple[ReportedRecipient, Any]],
    until: int | None,
) -> None:
    """Let the state of the message follow from those of its recipients, unless it is to be sent anyway.

    `until`: when its account can send again, if a limit came back.
    """
    news = [about for about, _ in changed if about.kind is not ReportKind.DELAYED]
    is_looked_for = row.looks is not None
    if not news or (row.state not in _FOLLOWING and not is_looked_for):
        return
    states = set(
        connection.scalars(select(recipients.c.state).where(recipients.c.id == row.id).distinct())
    )
    if is_looked_for and State.UNCERTAIN in states:
        return
    if any(about.kind is ReportKind.LIMIT for about in news):
        _wait_for_account(connection, row, reason=news[0].words, until=until)
    else:
        _update(connection, row, state=_following(states), reason=news[0].words)


def _following(states: set[str]) -> State:
    if states & {*OPEN}:
        return State.QUEUED
    order = (State.SENT, State.UNCERTAIN, State.BOUNCED, State.COMPLAINED)
    return next(state for state in order if state in states)


def _rest(connection: Connection, row: Any, limit: ReportedRecipient) -> int | None:
    """Let the account rest; return until when, in milliseconds since 1970."""
    error = AccountError(state=AccountState.PARKED, reason=limit.words, waits=LIMIT_WAITS_SECONDS)
    until = note_ends(connection, [AccountReport(row.account, is_probe=False, error=error)])
    return until.get(row.account)


def _wait_for_account(connection: Connection, row: Any, *, reason: str, until: int | None) -> None:
    """Send the mail again when its account can send, in an attempt that does not count."""
    _update(
        connection,
        row,
        state=State.DEFERRED,
        reason=reason,
        parked=1,
        next_attempt_at=until,
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
