"""Actions of people and clients on messages: cancel, hold, release, reschedule, retry and resend.

Each action is one conditional UPDATE: the database decides whether it or a worker's claim comes first.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, case, exists, insert, literal, null, or_, select, update

from mailroom.model.errors import MailroomError
from mailroom.model.message import FINAL, OPEN, State
from mailroom.store.content import copy
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import contents, jobs, messages, recipients
from mailroom.store.events.timeline import record
from mailroom.store.events.webhook_events import enqueue_webhooks
from mailroom.store.jobs.jobs import JobState
from mailroom.store.messages.idempotency import Kept, KeyTaken, take

#: The most messages that are released in one commit.
RELEASE_MAX = 200
JOB_OPEN = (JobState.QUEUED, JobState.RUNNING)


class UnknownMessage(MailroomError):
    """There is no message with this id."""


class WrongState(MailroomError):
    """The message is in a state in which this cannot be done; nothing was changed."""

    def __init__(self, state: State, detail: str) -> None:
        self.state = state
        super().__init__(detail)


@dataclass(frozen=True, kw_only=True)
class Action:
    """The states it starts from, the state it leads to, and the states of recipients that change with it."""

    event: str
    states: tuple[State, ...]
    then: State
    #: While a message is looked for in the Sent folder, its recipients are uncertain.
    recipients: tuple[State, ...] = (*OPEN, State.UNCERTAIN)
    recipients_then: State = State.QUEUED


CANCEL = Action(
    event="canceled",
    states=(State.WAITING, State.SCHEDULED, State.QUEUED, State.DEFERRED, State.HELD),
    then=State.CANCELED,
    recipients_then=State.CANCELED,
)
HOLD = Action(event="held", states=(State.SCHEDULED, State.QUEUED, State.DEFERRED), then=State.HELD)
RESCHEDULE = Action(
    event="rescheduled",
    states=(State.SCHEDULED, State.QUEUED, State.DEFERRED),
    then=State.SCHEDULED,
)
RELEASE = Action(
    event="released",
    states=(State.HELD, State.UNCERTAIN),
    then=State.QUEUED,
)
RETRY_NOW = Action(event="retried", states=(State.SCHEDULED, State.DEFERRED), then=State.QUEUED)
#: Final states of recipients who do not have the mail.
UNREACHED = (State.FAILED, State.EXPIRED, State.BOUNCED)
#: A message that was sent goes only to the recipients whom the next hop refused, or from whom it came back.
RETRY_ENDED = Action(
    event="retried",
    states=(State.FAILED, State.EXPIRED, State.SENT, State.BOUNCED),
    then=State.QUEUED,
    recipients=(*OPEN, *UNREACHED),
)
RESENDABLE = tuple(state for state in State if state in FINAL)


@dataclass(frozen=True, kw_only=True)
class _Request:
    id: str
    actions: tuple[Action, ...]  #: the first that is possible is done
    at: int | None = None  #: milliseconds since 1970
    delay: int = 0  #: milliseconds from now, where `at` is None


@dataclass(frozen=True, kw_only=True)
class _Resend:
    id: str
    new_id: str
    message_id: str
    kept: Kept | None


@dataclass(frozen=True)
class Actions:
    """The actions on one message; each raises UnknownMessage or WrongState where it is not possible."""

    database: Database

    def cancel(self, id: str) -> None:
        """Cancel a message before it is sent. A job that it waits for goes on."""
        self._act(_Request(id=id, actions=(CANCEL,)))

    def hold(self, id: str) -> None:
        """Keep a message from being sent until it is released."""
        self._act(_Request(id=id, actions=(HOLD,)))

    def release(self, id: str) -> None:
        """Let a held message go. An uncertain one is sent once more, with the same Message-ID."""
        self._act(_Request(id=id, actions=(RELEASE,)))

    def release_all(self) -> int:
        """Release all held messages, as after a backup was restored; return how many."""
        released, ids = 0, self._held("")
        while ids:
            released += self.database.write(_release, ids, alone=True)
            ids = self._held(ids[-1])
        return released

    def _held(self, after: str) -> Sequence[str]:
        held = (
            select(messages.c.id)
            .where(messages.c.state == State.HELD, messages.c.id > after)
            .order_by(messages.c.id)
        )
        return self.database.read(
            lambda connection: connection.scalars(held.limit(RELEASE_MAX)).all()
        )

    def reschedule(self, id: str, *, at: int | None = None, delay_seconds: float = 0) -> None:
        """Send a message at this time, in milliseconds since 1970, or after so many seconds."""
        self._act(_Request(id=id, actions=(RESCHEDULE,), at=at, delay=int(delay_seconds * 1000)))

    def retry(self, id: str) -> None:
        """Try a message now. One that has ended starts again, for the recipients whom the next hop refused.

        Its Message-ID stays: none of them has the mail, and if a server was wrong, the Message-ID shows that
        it is a copy.
        """
        self._act(_Request(id=id, actions=(RETRY_NOW, RETRY_ENDED)))

    def resend(self, id: str, new_id: str, *, message_id: str, kept: Kept | None = None) -> None:
        """Send a message once more to all, as a new one; the old one stays as it is. Also raises KeyTaken."""
        request = _Resend(id=id, new_id=new_id, message_id=message_id, kept=kept)
        refusal = self.database.write(_resend, request, alone=True)
        if refusal:
            raise refusal

    def _act(self, request: _Request) -> None:
        # Alone: a worker may have locked the row, and no POST should wait for that.
        refusal = self.database.write(_act, request, alone=True)
        if refusal:
            raise refusal


def _act(connection: Connection, requests: list[_Request]) -> list[MailroomError | None]:
    return [_act_one(connection, request) for request in requests]


def _release(connection: Connection, chunks: list[Sequence[str]]) -> list[int]:
    released: list[int] = []
    for ids in chunks:
        _lock_jobs(connection, ids)
        requests = [_Request(id=id, actions=(RELEASE,)) for id in ids]
        released.append(_act(connection, requests).count(None))
    return released


def _act_one(connection: Connection, request: _Request) -> MailroomError | None:
    _lock_jobs(connection, [request.id])
    for action in request.actions:
        done = (
            update(messages)
            .values(**_values(request, action))
            .where(messages.c.id == request.id, *_conditions(request, action))
        )
        if connection.execute(done).rowcount:
            _change_recipients(connection, request.id, action)
            record(connection, [{"id": request.id, "event": action.event}])
            return None
    return _refusal(connection, request)


def _change_recipients(connection: Connection, id: str, action: Action) -> None:
    connection.execute(
        update(recipients)
        .values(state=action.recipients_then)
        .where(recipients.c.id == id, recipients.c.state.in_(action.recipients))
    )


def _conditions(request: _Request, action: Action) -> list[Any]:
    """Return the conditions on which the action is possible."""
    conditions: list[Any] = [messages.c.state.in_(action.states)]
    if action.then is State.QUEUED:
        conditions.append(exists().where(contents.c.id == messages.c.id))
    if action is RETRY_ENDED:
        conditions += [
            _has_recipients(*UNREACHED),
            or_(
                messages.c.job_id.is_(None),
                messages.c.attempt > 0,
                _job_is(JobState.SUCCEEDED, *JOB_OPEN),
            ),
        ]
    if action is RESCHEDULE:
        conditions.append(
            or_(messages.c.expires_at.is_(None), messages.c.expires_at > _time(request))
        )
    return conditions


def _values(request: _Request, action: Action) -> dict[str, Any]:
    """Return the new values of the row.

    The number of attempts never starts again, as it identifies a claim: those before are excused instead.
    """
    values: dict[str, Any] = {
        "state": action.then,
        "next_attempt_at": None,
        "published_at": None,
        "parked": None,
        "looks": None,
        "looks_then": None,
    }
    if action is CANCEL:
        values["reason"] = case(
            (messages.c.state == State.WAITING, "by request; its job goes on"), else_="by request"
        )
    if action is HOLD:
        values["reason"] = "a person stopped it, and a person lets it go"
    if action is RESCHEDULE:
        values |= {"next_attempt_at": _time(request), "at_named": None if request.at is None else 1}
    if action.then is State.QUEUED:
        values |= _values_of_a_new_start()
    return values


def _values_of_a_new_start() -> dict[str, Any]:
    """Return the new values of a row that is to be sent, perhaps after it had ended."""
    has_ended = messages.c.state.in_(FINAL)
    has_expired = and_(has_ended, messages.c.expires_at <= now_ms())
    return {
        "state": _queued_or_waiting(),
        "excused": case((has_ended, messages.c.attempt), else_=messages.c.excused),
        "crashes": case((and_(has_ended, messages.c.crashes > 1), 1), else_=messages.c.crashes),
        "expires_at": case((has_expired, null()), else_=messages.c.expires_at),
    }


def _time(request: _Request) -> Any:
    if request.at is None:
        return now_ms() + request.delay
    return literal(request.at, messages.c.next_attempt_at.type)


def _has_recipients(*states: State) -> Any:
    return exists().where(recipients.c.id == messages.c.id, recipients.c.state.in_(states))


def _job_is(*states: JobState) -> Any:
    return exists().where(jobs.c.id == messages.c.job_id, jobs.c.state.in_(states))


def _queued_or_waiting() -> Any:
    """Return WAITING for a message whose job has not ended, and QUEUED for all others."""
    return case(
        (_job_is(*JOB_OPEN), literal(State.WAITING.value)), else_=literal(State.QUEUED.value)
    )


def _lock_jobs(connection: Connection, ids: Sequence[str]) -> None:
    """Keep the jobs of these messages from ending meanwhile, without the messages that wait for them."""
    connection.execute(
        select(jobs.c.id)
        .where(jobs.c.id.in_(select(messages.c.job_id).where(messages.c.id.in_(ids))))
        .order_by(jobs.c.id)
        .with_for_update()
    )


def _refusal(connection: Connection, request: _Request) -> MailroomError:
    row = connection.execute(
        select(messages.c.state, messages.c.expires_at).where(messages.c.id == request.id)
    ).one_or_none()
    if row is None:
        return UnknownMessage()
    state = State(row.state)
    states = [possible for action in request.actions for possible in action.states]
    if state not in states:
        return WrongState(state, _expected(states, state))
    if connection.scalar(select(exists().where(contents.c.id == request.id))) is False:
        return WrongState(state, f"it is {state}, and its content is no longer kept")
    if request.actions == (RESCHEDULE,):
        return WrongState(state, f"it is {state}, and expires before that time")
    has_refused = select(_has_recipients(*UNREACHED)).select_from(messages)
    if connection.scalar(has_refused.where(messages.c.id == request.id)):
        return WrongState(
            state,
            f"it is {state}, as its job did not succeed; run the job once more, or resend the message",
        )
    return WrongState(state, f"it is {state}, and has no recipient to try again")


def _expected(states: Sequence[State], state: State) -> str:
    return f"expected a message that is {', '.join(states[:-1])} or {states[-1]}, got one that is {state}"


def _resend(connection: Connection, requests: list[_Resend]) -> list[MailroomError | None]:
    return [_resend_one(connection, request) for request in requests]


def _resend_one(connection: Connection, request: _Resend) -> MailroomError | None:
    _lock_jobs(connection, [request.id])
    row = connection.execute(
        select(
            messages.c.state,
            messages.c.message_id,
            _has_recipients(*State).label("has_recipients"),
            select(contents.c.content)
            .where(contents.c.id == messages.c.id)
            .scalar_subquery()
            .label("content"),
        )
        .where(messages.c.id == request.id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return UnknownMessage()
    state = State(row.state)
    if state not in FINAL:
        return WrongState(state, _expected(RESENDABLE, state))
    if not row.has_recipients:
        return WrongState(state, f"it is {state}, and has no recipients")
    if row.content is None:
        return WrongState(state, f"it is {state}, and has no content any more")
    if take(connection, [request.kept]) == [False]:
        return KeyTaken()
    is_raw = json.loads(row.content).get("is_raw", False)
    names_itself = is_raw and not row.message_id.startswith(request.id)
    _copy(connection, request, names_itself=names_itself)
    return None


def _copy(connection: Connection, request: _Resend, *, names_itself: bool) -> None:
    """Copy a message; one that came with its own Message-ID keeps it, as its bytes do not change."""
    new = {
        "id": literal(request.new_id),
        "state": _queued_or_waiting(),
        "queue": messages.c.queue,
        "message_id": messages.c.message_id if names_itself else literal(request.message_id),
        "taken": literal(1) if names_itself else null(),
        "created_at": now_ms(),
        "attempt": literal(0),
        "uncertain_attempts": literal(0),
        "crashes": literal(0),
        "job_id": messages.c.job_id,
        "max_attempts": messages.c.max_attempts,
        "resent_of": messages.c.id,
        "sender": messages.c.sender,
        "webhook": messages.c.webhook,
        "key_id": messages.c.key_id,
        "subject_key": messages.c.subject_key,
    }
    connection.execute(
        insert(messages).from_select(
            [*new], select(*new.values()).where(messages.c.id == request.id)
        )
    )
    copy(connection, request.id, to=request.new_id)
    enqueue_webhooks(connection, [{"id": request.new_id, "event": "accepted"}])
    record(connection, [{"id": request.id, "event": "resent", "detail": f"as {request.new_id}"}])
