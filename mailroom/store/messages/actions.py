"""Acts for a person or a client on a message that is on its way, or on one that has ended.

Each action is one conditional UPDATE: whether it or a worker's claim comes first is the database's to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, case, exists, insert, literal, null, or_, select, update

from mailroom.model.errors import MailroomError
from mailroom.model.message import FINAL, OPEN, State
from mailroom.store.content import copy
from mailroom.store.db.database import Database
from mailroom.store.db.schema import contents, jobs, messages, now_ms, recipients
from mailroom.store.events.deliveries import tell
from mailroom.store.events.timeline import record
from mailroom.store.jobs.jobs import JobState
from mailroom.store.messages.idempotency import Kept, KeyTaken, take

#: In one commit.
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
    """From which states to which; `recipients` are those whose state follows."""

    event: str
    states: tuple[State, ...]
    then: State
    recipients: tuple[State, ...] = OPEN
    recipients_then: State = State.QUEUED


CANCEL = Action(
    event="canceled",
    states=(State.WAITING, State.SCHEDULED, State.QUEUED, State.DEFERRED, State.HELD),
    then=State.CANCELED,
    recipients_then=State.CANCELED,
)
HOLD = Action(event="held", states=(State.SCHEDULED, State.QUEUED, State.DEFERRED), then=State.HELD)
RESCHEDULE = Action(
    event="rescheduled", states=(State.SCHEDULED, State.QUEUED, State.DEFERRED), then=State.SCHEDULED
)
RELEASE = Action(
    event="released",
    states=(State.HELD, State.UNCERTAIN),
    then=State.QUEUED,
    recipients=(*OPEN, State.UNCERTAIN),
)
RETRY_NOW = Action(event="retried", states=(State.SCHEDULED, State.DEFERRED), then=State.QUEUED)
#: Of one that was sent: to those whom the next hop refused.
RETRY_ENDED = Action(
    event="retried",
    states=(State.FAILED, State.EXPIRED, State.SENT),
    then=State.QUEUED,
    recipients=(*OPEN, State.FAILED, State.EXPIRED),
)
RESENDABLE = tuple(state for state in State if state in FINAL)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    id: str
    actions: tuple[Action, ...]  #: the first that can be done is
    at: int | None = None  #: milliseconds since 1970 …
    delay: int = 0  #: … or from now


@dataclass(frozen=True, kw_only=True)
class _Resend:
    id: str
    new_id: str
    message_id: str
    kept: Kept | None


@dataclass(frozen=True)
class Actions:
    """Every method raises UnknownMessage or WrongState where it cannot be done."""

    database: Database

    def cancel(self, id: str) -> None:
        """Take it back before it is sent. A job that it waits for goes on."""
        self._act(_Asked(id=id, actions=(CANCEL,)))

    def hold(self, id: str) -> None:
        """Stop it until somebody releases it."""
        self._act(_Asked(id=id, actions=(HOLD,)))

    def release(self, id: str) -> None:
        """Let go what was held. What is uncertain goes once more, with the same Message-ID: a person has decided so."""
        self._act(_Asked(id=id, actions=(RELEASE,)))

    def release_all(self) -> int:
        """Let go all that is held, as after a backup was restored; return how many those were."""
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
        return self.database.read(lambda connection: connection.scalars(held.limit(RELEASE_MAX)).all())

    def reschedule(self, id: str, *, at: int | None = None, delay_seconds: float = 0) -> None:
        """Send it at this time, in milliseconds since 1970, or after this many seconds."""
        self._act(_Asked(id=id, actions=(RESCHEDULE,), at=at, delay=int(delay_seconds * 1000)))

    def retry(self, id: str) -> None:
        """Try it now. One that has ended gets a new round, for those recipients only whom the next hop did not take it for.

        Its Message-ID stays: none of them has the mail, and if a server's word was wrong, theirs can tell a copy by it.
        """
        self._act(_Asked(id=id, actions=(RETRY_NOW, RETRY_ENDED)))

    def resend(self, id: str, new_id: str, *, message_id: str, kept: Kept | None = None) -> None:
        """Send it once more to all, as a new message; the old one stays as it is. Also raises KeyTaken."""
        refused = self.database.write(
            _resend, _Resend(id=id, new_id=new_id, message_id=message_id, kept=kept), alone=True
        )
        if refused:
            raise refused

    def _act(self, asked: _Asked) -> None:
        # Alone: a worker may hold a lock on the row, and no POST should have to wait for that.
        refused = self.database.write(_act, asked, alone=True)
        if refused:
            raise refused


def _act(connection: Connection, all_asked: list[_Asked]) -> list[MailroomError | None]:
    return [_act_one(connection, asked) for asked in all_asked]


def _release(connection: Connection, chunks: list[Sequence[str]]) -> list[int]:
    released: list[int] = []
    for ids in chunks:
        _lock_jobs(connection, ids)
        refusals = [_act_one(connection, _Asked(id=id, actions=(RELEASE,))) for id in ids]
        released.append(refusals.count(None))
    return released


def _act_one(connection: Connection, asked: _Asked) -> MailroomError | None:
    _lock_jobs(connection, [asked.id])
    for action in asked.actions:
        done = (
            update(messages)
            .values(**_values(asked, action))
            .where(messages.c.id == asked.id, *_conditions(asked, action))
        )
        if connection.execute(done).rowcount:
            connection.execute(
                update(recipients)
                .values(state=action.recipients_then)
                .where(recipients.c.id == asked.id, recipients.c.state.in_(action.recipients))
            )
            record(connection, [{"id": asked.id, "event": action.event}])
            return None
    return _refusal(connection, asked)


def _conditions(asked: _Asked, action: Action) -> list[Any]:
    """Return the conditions on which the action can be done."""
    conditions: list[Any] = [messages.c.state.in_(action.states)]
    if action.then is State.QUEUED:
        conditions.append(exists().where(contents.c.id == messages.c.id))
    if action is RETRY_ENDED:
        conditions += [
            _has_recipients(State.FAILED, State.EXPIRED),
            or_(messages.c.job_id.is_(None), messages.c.attempt > 0, _job_is(JobState.SUCCEEDED, *JOB_OPEN)),
        ]
    if action is RESCHEDULE:
        conditions.append(or_(messages.c.expires_at.is_(None), messages.c.expires_at > _moment(asked)))
    return conditions


def _values(asked: _Asked, action: Action) -> dict[str, Any]:
    """Return what becomes of the row.

    Attempts are never counted anew, as a claim is known by its number: those before are excused instead.
    """
    values: dict[str, Any] = {
        "state": action.then,
        "next_attempt_at": None,
        "published_at": None,
        "parked": None,
    }
    if action is CANCEL:
        values["reason"] = case(
            (messages.c.state == State.WAITING, "by request; its job goes on"), else_="by request"
        )
    if action is HOLD:
        values["reason"] = "a person stopped it, and a person lets it go"
    if action is RESCHEDULE:
        values |= {"next_attempt_at": _moment(asked), "at_named": None if asked.at is None else 1}
    if action.then is State.QUEUED:
        has_ended = messages.c.state.in_(FINAL)
        values |= {
            "state": _queued_or_waiting(),
            "excused": case((has_ended, messages.c.attempt), else_=messages.c.excused),
            "crashes": case((and_(has_ended, messages.c.crashes > 1), 1), else_=messages.c.crashes),
            "expires_at": case(
                (and_(has_ended, messages.c.expires_at <= now_ms()), null()), else_=messages.c.expires_at
            ),
        }
    return values


def _moment(asked: _Asked) -> Any:
    return (
        literal(asked.at, messages.c.next_attempt_at.type) if asked.at is not None else now_ms() + asked.delay
    )


def _has_recipients(*states: State) -> Any:
    return exists().where(recipients.c.id == messages.c.id, recipients.c.state.in_(states))


def _job_is(*states: JobState) -> Any:
    return exists().where(jobs.c.id == messages.c.job_id, jobs.c.state.in_(states))


def _queued_or_waiting() -> Any:
    """Return WAITING where its job has not ended, as that end will queue it, or not; else QUEUED."""
    return case((_job_is(*JOB_OPEN), literal(State.WAITING.value)), else_=literal(State.QUEUED.value))


def _lock_jobs(connection: Connection, ids: Sequence[str]) -> None:
    """Keep the jobs before these messages from ending meanwhile; one would not see that its message waits for it."""
    connection.execute(
        select(jobs.c.id)
        .where(jobs.c.id.in_(select(messages.c.job_id).where(messages.c.id.in_(ids))))
        .order_by(jobs.c.id)
        .with_for_update()
    )


def _refusal(connection: Connection, asked: _Asked) -> MailroomError:
    row = connection.execute(
        select(messages.c.state, messages.c.expires_at).where(messages.c.id == asked.id)
    ).one_or_none()
    if row is None:
        return UnknownMessage()
    state = State(row.state)
    if state not in (states := [state for action in asked.actions for state in action.states]):
        return WrongState(state, _expected(states, state))
    if connection.scalar(select(exists().where(contents.c.id == asked.id))) is False:
        return WrongState(state, f"it is {state}, and its content is no longer kept")
    if asked.actions == (RESCHEDULE,):
        return WrongState(state, f"it is {state}, and expires before that time")
    if connection.scalar(
        select(_has_recipients(State.FAILED, State.EXPIRED))
        .select_from(messages)
        .where(messages.c.id == asked.id)
    ):
        return WrongState(
            state, f"it is {state}, as its job did not succeed; run the job once more, or resend the message"
        )
    return WrongState(state, f"it is {state}, and has no recipient to try again")


def _expected(states: Sequence[State], state: State) -> str:
    return f"expected a message that is {', '.join(states[:-1])} or {states[-1]}, got one that is {state}"


def _resend(connection: Connection, all_asked: list[_Resend]) -> list[MailroomError | None]:
    return [_resend_one(connection, asked) for asked in all_asked]


def _resend_one(connection: Connection, asked: _Resend) -> MailroomError | None:
    _lock_jobs(connection, [asked.id])
    row = connection.execute(
        select(
            messages.c.state,
            _has_recipients(*State).label("has_recipients"),
            exists().where(contents.c.id == messages.c.id).label("has_content"),
        )
        .where(messages.c.id == asked.id)
        .with_for_update()
    ).one_or_none()
    if row is None:
        return UnknownMessage()
    state = State(row.state)
    if state not in FINAL:
        return WrongState(state, _expected(RESENDABLE, state))
    if not row.has_recipients or not row.has_content:
        return WrongState(
            state, f"it is {state}, and has no {'content any more' if row.has_recipients else 'recipients'}"
        )
    if take(connection, [asked.kept]) == [False]:
        return KeyTaken()
    _copy(connection, asked)
    return None


def _copy(connection: Connection, asked: _Resend) -> None:
    new = {
        "id": literal(asked.new_id),
        "state": _queued_or_waiting(),
        "queue": messages.c.queue,
        "message_id": literal(asked.message_id),
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
        insert(messages).from_select([*new], select(*new.values()).where(messages.c.id == asked.id))
    )
    copy(connection, asked.id, to=asked.new_id)
    tell(connection, [{"id": asked.new_id, "event": "accepted"}])
    record(connection, [{"id": asked.id, "event": "resent", "detail": f"as {asked.new_id}"}])
