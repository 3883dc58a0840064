"""Jobs as a client sees them: accept, list and cancel. A worker's steps with them are in claims.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, literal, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from mailroom.model.message import Attachment, State
from mailroom.store.content import load_attachments
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.locking import in_order
from mailroom.store.db.schema import events, files, jobs, messages, recipients, workers
from mailroom.store.events.counters import count, count_events
from mailroom.store.events.timeline import record
from mailroom.store.events.webhook_events import enqueue_webhooks
from mailroom.store.workers import is_alive

#: Content that is larger has a commit of its own, so that small rows do not wait for it.
SMALL_MAX_CHARACTERS = 256_000
#: The longest id a job can have: a UUID.
ID_MAX_CHARACTERS = 36


#: The columns of a job without those that may be large.
SUMMARY = [column for column in jobs.c if column.name not in ("args", "result")]


class JobState(StrEnum):
    """The state of a job. From SUCCEEDED on it is final."""

    #: for a free slot of a worker that serves its queue, or for `next_attempt_at`
    QUEUED = "queued"
    RUNNING = "running"  #: a worker runs it
    SUCCEEDED = "succeeded"  #: it returned
    FAILED = "failed"  #: it raised, or its worker died, in its last attempt
    TIMED_OUT = "timed_out"  #: it was killed at its timeout, in its last attempt
    CANCELED = "canceled"  #: the client canceled it


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.TIMED_OUT, JobState.CANCELED})


class NotifyOn(StrEnum):
    """The end of a job at which its message goes."""

    SUCCESS = "success"
    FAILURE = "failure"  #: when it failed or timed out for good
    BOTH = "both"


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be accepted, with the message that waits for it or without one."""

    id: str
    name: str
    args: dict[str, Any]
    queue: str
    timeout_seconds: float
    max_attempts: int = 1
    retry: str = ""
    notify_on: NotifyOn = NotifyOn.SUCCESS
    retry_of: str | None = None
    failed: str = ""  #: why it could not be accepted, if it is recorded only for that


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """The end of a job's attempt. `result` is JSON; `error` is one line for the client: no stack trace."""

    state: JobState
    result: str | None = None
    error: str | None = None
    file: Attachment | None = None
    wait_seconds: float | None = None  #: until the next attempt, where there is to be one


@dataclass(frozen=True, kw_only=True)
class JobDetails:
    """All that is known of one job. Times are in milliseconds since 1970."""

    now: int
    row: dict[str, Any]
    message: dict[str, Any] | None  #: id and state of the one that waits or waited for it
    file: dict[str, Any] | None  #: name, content_type and size of what it made
    events: list[dict[str, Any]]
    served: bool  #: whether a living worker serves its queue


@dataclass(frozen=True)
class Jobs:
    """The jobs of an outbox."""

    database: Database
    lease_seconds: float

    def accept(self, job: NewJob) -> bool:
        """Commit a job without a message; on return it is kept. False: one with this id was accepted before.

        Raises:
          CommitUnanswered: it may have been accepted.
          StoreUnavailable: it was not.
        """
        try:
            return self.database.write(insert, job, alone=is_large(job))
        except IntegrityError:
            if self.state(job.id) is None:
                raise
            return False

    def state(self, id: str) -> JobState | None:
        state = select(jobs.c.state).where(jobs.c.id == id)
        value = self.database.read(lambda connection: connection.scalar(state))
        return None if value is None else JobState(value)

    def awaited(self, message_ids: Sequence[str]) -> set[str]:
        """Return the queues of the jobs that have to run before these messages can go."""
        # States are compared here: in SQL, SQLite would go through all jobs that wait rather than these ids.
        queues = (
            select(jobs.c.queue, jobs.c.state, messages.c.state.label("message_state"))
            .join(messages, messages.c.job_id == jobs.c.id)
            .where(messages.c.id.in_(message_ids))
        )
        rows = self.database.read(lambda connection: connection.execute(queues).all())
        return {
            row.queue
            for row in rows
            if row.message_state == State.WAITING and row.state == JobState.QUEUED
        }

    def details(self, id: str) -> JobDetails | None:
        """Return all that is known of a job; None if there is no such job."""
        return self.database.read(lambda connection: _details(connection, id, self.lease_seconds))

    def page(
        self,
        *,
        limit: int,
        before: tuple[int, str] | None = None,
        state: str = "",
        name: str = "",
        queue: str = "",
    ) -> list[Any]:
        """Return the newest jobs with these properties; "" means any.

        `before`: only jobs older than this one (created_at, id).
        """
        values = ((jobs.c.state, state), (jobs.c.name, name), (jobs.c.queue, queue))
        conditions = [column == value for column, value in values if value]
        if before is not None:
            conditions.append(tuple_(jobs.c.created_at, jobs.c.id) < tuple_(*map(literal, before)))
        newest = select(*SUMMARY).order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        page = newest.where(*conditions).limit(limit)
        return self.database.read(lambda connection: list(connection.execute(page).mappings()))

    def file(self, id: str) -> Attachment | None:
        """Return the file that the job made."""
        files = self.database.read(lambda connection: load_attachments(connection, [id]))
        return next(iter(files.get(id, ())), None)

    def again(self, id: str, new_id: str) -> NewJob:
        """Return a copy of the job with a new id, to be accepted."""
        job = select(jobs).where(jobs.c.id == id)
        row = self.database.read(lambda connection: connection.execute(job).one())
        return NewJob(
            id=new_id,
            name=row.name,
            args=json.loads(row.args),
            queue=row.queue,
            timeout_seconds=row.timeout_ms / 1000,
            max_attempts=row.max_attempts,
            retry=row.retry or "",
            retry_of=id,
            notify_on=NotifyOn(row.notify_on or NotifyOn.SUCCESS),
        )

    def cancel(self, id: str) -> JobState | None:
        """Cancel a job that has not ended, with the message that waits for it.

        Return the state it was in, None if there is no such job.
        """
        # Alone: a worker may have locked the job, and the acceptances of a group have locked rates.
        return self.database.write(_cancel, id, alone=True)


_COLUMNS = (
    "id",
    "name",
    "args",
    "queue",
    "state",
    "error",
    "timeout_ms",
    "max_attempts",
    "retry",
    "notify_on",
    "retry_of",
)
_NEW_JOB = jobs.insert().values(
    created_at=now_ms(), progress=0, attempt=0, **{name: bindparam(name) for name in _COLUMNS}
)


def is_large(job: NewJob) -> bool:
    texts = [value for value in job.args.values() if isinstance(value, str)]
    return sum(map(len, texts)) > SMALL_MAX_CHARACTERS


def insert(connection: Connection, accepted: Sequence[NewJob]) -> list[bool]:
    """Write these jobs; True for each."""
    connection.execute(_NEW_JOB, [_new_row(job) for job in accepted])
    failed = sum(bool(job.failed) for job in accepted)
    count(connection, {"jobs_accepted": len(accepted), "jobs_failed": failed})
    return [True] * len(accepted)


def _new_row(job: NewJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "args": json.dumps(job.args),
        "queue": job.queue,
        "state": JobState.FAILED if job.failed else JobState.QUEUED,
        "error": job.failed or None,
        "timeout_ms": int(job.timeout_seconds * 1000),
        "max_attempts": job.max_attempts,
        "retry": job.retry or None,
        "notify_on": job.notify_on,
        "retry_of": job.retry_of,
    }


def let_go(
    connection: Connection, job_id: str, end: JobEnd, *, attempt: int | None = None
) -> list[str]:
    """Let the messages that wait for a job go, or end them, as its end demands.

    Return the ids of those that are queued now.
    """
    record(
        connection,
        [{"id": job_id, "event": f"job {end.state}", "attempt": attempt, "detail": end.error}],
    )
    notify_on = connection.scalar(select(jobs.c.notify_on).where(jobs.c.id == job_id))
    state, reason = _next_state(end, notify_on)
    released = (
        update(messages)
        .values(state=state, reason=reason)
        .where(messages.c.job_id == job_id, messages.c.state == State.WAITING)
        .returning(messages.c.id)
    )
    ids = list(connection.scalars(in_order(connection, released)))
    if ids and state is not State.QUEUED:
        connection.execute(
            update(recipients)
            .values(state=state)
            .where(recipients.c.id.in_(ids), recipients.c.state == State.QUEUED)
        )
    enqueue_webhooks(connection, [{"id": id, "event": state, "detail": reason} for id in ids])
    count_events(connection, [state] * len(ids))
    return ids if state is State.QUEUED else []


def _next_state(end: JobEnd, notify_on: str | None) -> tuple[State, str | None]:
    """Return the state of a message after the job it waits for has ended, and the reason."""
    if end.state is JobState.CANCELED:
        return State.CANCELED, "its job was canceled"
    if end.state is JobState.SUCCEEDED:
        if notify_on == NotifyOn.FAILURE:
            return State.CANCELED, "its job succeeded, and it is for a failure"
        return State.QUEUED, None
    if notify_on in (NotifyOn.FAILURE, NotifyOn.BOTH):
        return State.QUEUED, None
    return State.FAILED, f"its job {end.state}: {end.error}"


def _cancel(connection: Connection, ids: list[str]) -> list[JobState | None]:
    return [_cancel_one(connection, id) for id in ids]


def _cancel_one(connection: Connection, id: str) -> JobState | None:
    locked = select(jobs.c.state, jobs.c.attempt).where(jobs.c.id == id).with_for_update()
    row = connection.execute(locked).one_or_none()
    if row is None:
        return None
    state = JobState(row.state)
    if state not in FINAL:
        connection.execute(
            update(jobs)
            .values(state=JobState.CANCELED, owner=None, finished_at=now_ms(), next_attempt_at=None)
            .where(jobs.c.id == id)
        )
        let_go(connection, id, JobEnd(state=JobState.CANCELED), attempt=row.attempt or None)
    return state


def _details(connection: Connection, id: str, lease_seconds: float) -> JobDetails | None:
    row = _one(connection, select(jobs, now_ms().label("now")).where(jobs.c.id == id))
    if row is None:
        return None
    message = select(messages.c.id, messages.c.state).where(
        messages.c.job_id == id, messages.c.resent_of.is_(None)
    )
    size = func.length(files.c.content).label("size")
    file = select(files.c.name, files.c.content_type, size).where(files.c.id == id)
    timeline = select(events).where(events.c.id == id).order_by(events.c.number)
    return JobDetails(
        now=row["now"],
        row=row,
        message=_one(connection, message),
        file=_one(connection, file),
        events=[dict(event) for event in connection.execute(timeline).mappings()],
        served=_is_served(connection, row["queue"], lease_seconds),
    )


def _one(connection: Connection, statement: Select[Any]) -> dict[str, Any] | None:
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else dict(row)


def _is_served(connection: Connection, queue: str, lease_seconds: float) -> bool:
    served = connection.scalars(select(workers.c.queues).where(is_alive(lease_seconds)))
    return any(queue in queues.split(",") for queues in served)
