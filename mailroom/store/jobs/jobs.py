"""Jobs as a client sees them: accept, list, cancel, and where each one is. What a worker does with them is in claims.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, bindparam, func, literal, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from mailroom.model.message import Attachment, State
from mailroom.store.content import load_attachments
from mailroom.store.db.database import Database
from mailroom.store.db.schema import events, files, jobs, messages, now_ms, recipients, workers
from mailroom.store.db.statements import in_order
from mailroom.store.events.counters import count, count_events
from mailroom.store.events.deliveries import tell
from mailroom.store.events.timeline import record
from mailroom.store.workers import is_alive

#: What is larger than this has a commit of its own, so that small rows do not wait for it.
SMALL_MAX_CHARACTERS = 256_000
#: The longest id a job can have: a UUID.
ID_MAX_CHARACTERS = 36


#: What is told of a job without loading what may be large.
SUMMARY = [column for column in jobs.c if column.name not in ("args", "result")]


class JobState(StrEnum):
    """The state of a job. From SUCCEEDED on it is final."""

    QUEUED = "queued"  #: for a free slot of a worker that serves its queue, or for `next_attempt_at`
    RUNNING = "running"  #: a worker runs it
    SUCCEEDED = "succeeded"  #: it returned
    FAILED = "failed"  #: it raised, or its worker died, in its last attempt
    TIMED_OUT = "timed_out"  #: it was killed at its timeout, in its last attempt
    CANCELED = "canceled"  #: the client took it back


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.TIMED_OUT, JobState.CANCELED})


class NotifyOn(StrEnum):
    """At which end of a job its message goes."""

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
    failed: str = ""  #: set where it is recorded only to tell why it could not be accepted


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """The end of a job's attempt. `result` is JSON; `error` is one line for the client: no stack trace."""

    state: JobState
    result: str | None = None
    error: str | None = None
    file: Attachment | None = None
    wait_seconds: float | None = None  #: until the next attempt, where there is to be one


@dataclass(frozen=True, kw_only=True)
class JobStanding:
    """All that is known of one job. Times are in milliseconds since 1970."""

    now: int
    row: dict[str, Any]
    message: dict[str, Any] | None  #: id and state of the one that waits or waited for it
    file: dict[str, Any] | None  #: name, content_type and size of what it made
    events: list[dict[str, Any]]
    served: bool  #: whether a living worker serves its queue


@dataclass(frozen=True)
class Jobs:
    """The jobs of an outbox, for those who ask for them."""

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
        found = self.database.read(
            lambda connection: connection.scalar(select(jobs.c.state).where(jobs.c.id == id))
        )
        return None if found is None else JobState(found)

    def awaited(self, message_ids: Sequence[str]) -> set[str]:
        """Return the queues of the jobs that have to run before these messages can go."""
        # Sorted out here, as SQLite would look through all that wait rather than for these ids.
        found = (
            select(jobs.c.queue, jobs.c.state, messages.c.state.label("message_state"))
            .join(messages, messages.c.job_id == jobs.c.id)
            .where(messages.c.id.in_(message_ids))
        )
        rows = self.database.read(lambda connection: connection.execute(found).all())
        return {
            row.queue for row in rows if row.message_state == State.WAITING and row.state == JobState.QUEUED
        }

    def standing(self, id: str) -> JobStanding | None:
        """Return where the job is, and how it came there; None if there is no such job."""
        return self.database.read(lambda connection: _standing(connection, id, self.lease_seconds))

    def page(
        self,
        *,
        limit: int,
        before: tuple[int, str] | None = None,
        state: str = "",
        name: str = "",
        queue: str = "",
    ) -> list[Any]:
        """The newest jobs with these properties, created before that moment and id."""
        wanted = [
            column == value
            for column, value in ((jobs.c.state, state), (jobs.c.name, name), (jobs.c.queue, queue))
            if value
        ]
        if before is not None:
            wanted.append(tuple_(jobs.c.created_at, jobs.c.id) < tuple_(*map(literal, before)))
        found = (
            select(*SUMMARY).where(*wanted).order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit)
        )
        return self.database.read(lambda connection: list(connection.execute(found).mappings()))

    def file(self, id: str) -> Attachment | None:
        """Return the file that the job made."""
        return self.database.read(
            lambda connection: next(iter(load_attachments(connection, [id]).get(id, ())), None)
        )

    def again(self, id: str, new_id: str) -> NewJob:
        """Return the same job once more, to be accepted."""
        row = self.database.read(
            lambda connection: connection.execute(select(jobs).where(jobs.c.id == id)).one()
        )
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
        """Take back a job that has not ended, with the message that waits for it; return the state it was in, None if it is unknown."""
        # Alone: a worker may hold a lock on the job, and the acceptances of a group hold those of rates.
        return self.database.write(_cancel, id, alone=True)


_NEW_JOB = jobs.insert().values(
    created_at=now_ms(),
    progress=0,
    attempt=0,
    **{
        name: bindparam(name)
        for name in (
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
    },
)


def is_large(job: NewJob) -> bool:
    return sum(len(value) for value in job.args.values() if isinstance(value, str)) > SMALL_MAX_CHARACTERS


def insert(connection: Connection, accepted: Sequence[NewJob]) -> list[bool]:
    connection.execute(
        _NEW_JOB,
        [
            {
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
            for job in accepted
        ],
    )
    count(
        connection, {"jobs_accepted": len(accepted), "jobs_failed": sum(bool(job.failed) for job in accepted)}
    )
    return [True] * len(accepted)


def let_go(connection: Connection, job_id: str, end: JobEnd, *, attempt: int | None = None) -> list[str]:
    """Write what a job's end means for the messages that wait for it; return the ids of those that are queued now."""
    record(connection, [{"id": job_id, "event": f"job {end.state}", "attempt": attempt, "detail": end.error}])
    wanted_on = connection.scalar(select(jobs.c.notify_on).where(jobs.c.id == job_id))
    state, reason = _fate(end, wanted_on)
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
    tell(connection, [{"id": id, "event": state, "detail": reason} for id in ids])
    count_events(connection, [state] * len(ids))
    return ids if state is State.QUEUED else []


def _fate(end: JobEnd, wanted_on: str | None) -> tuple[State, str | None]:
    """Return what becomes of a message when the job it waits for has ended, and why."""
    if end.state is JobState.CANCELED:
        return State.CANCELED, "its job was canceled"
    if end.state is JobState.SUCCEEDED:
        return (
            (State.CANCELED, "its job succeeded, and it is for a failure")
            if wanted_on == NotifyOn.FAILURE
            else (State.QUEUED, None)
        )
    if wanted_on in (NotifyOn.FAILURE, NotifyOn.BOTH):
        return State.QUEUED, None
    return State.FAILED, f"its job {end.state}: {end.error}"


def _cancel(connection: Connection, ids: list[str]) -> list[JobState | None]:
    found: list[JobState | None] = []
    for id in ids:
        row = connection.execute(
            select(jobs.c.state, jobs.c.attempt).where(jobs.c.id == id).with_for_update()
        ).one_or_none()
        found.append(row and JobState(row.state))
        if row and row.state not in FINAL:
            connection.execute(
                update(jobs)
                .values(state=JobState.CANCELED, owner=None, finished_at=now_ms(), next_attempt_at=None)
                .where(jobs.c.id == id)
            )
            let_go(connection, id, JobEnd(state=JobState.CANCELED), attempt=row.attempt or None)
    return found


def _standing(connection: Connection, id: str, lease_seconds: float) -> JobStanding | None:
    row = (
        connection.execute(select(jobs, now_ms().label("now")).where(jobs.c.id == id))
        .mappings()
        .one_or_none()
    )
    if row is None:
        return None
    message = (
        connection.execute(
            select(messages.c.id, messages.c.state).where(
                messages.c.job_id == id, messages.c.resent_of.is_(None)
            )
        )
        .mappings()
        .one_or_none()
    )
    file = (
        connection.execute(
            select(files.c.name, files.c.content_type, func.length(files.c.content).label("size")).where(
                files.c.id == id
            )
        )
        .mappings()
        .one_or_none()
    )
    told = connection.execute(select(events).where(events.c.id == id).order_by(events.c.number)).mappings()
    serving = connection.scalars(select(workers.c.queues).where(is_alive(lease_seconds)))
    served = any(row["queue"] in queues.split(",") for queues in serving)
    return JobStanding(
        now=row["now"],
        row=dict(row),
        message=dict(message) if message else None,
        file=dict(file) if file else None,
        events=[dict(event) for event in told],
        served=served,
    )
