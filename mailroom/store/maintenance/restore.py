"""Makes a database from a backup safe to use: its unsent mails may have been sent since the backup."""

from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy import Connection, delete, exists, func, insert, literal, or_, select, update

from mailroom.model.errors import MailroomError
from mailroom.model.message import FINAL, State
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import events, identity, jobs, messages, recipients, workers
from mailroom.store.jobs.jobs import FINAL as JOB_FINAL
from mailroom.store.jobs.jobs import JobState, NotifyOn
from mailroom.store.workers import is_alive

HELD_BECAUSE = "restored from a backup"
JOB_ERROR = "restored from a backup: it may have run since; start it again with retry"


class StillRunning(MailroomError):
    """A worker was seen on this database a moment ago, and could go on to send messages that are held."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """The result of `hold`."""

    held: int  #: messages that a person has to release
    failed: int  #: messages about the success of one of these jobs
    jobs: int  #: jobs that had not ended
    outbox_id: str


def hold(database: Database, *, lease_seconds: float) -> Restored:
    """Hold every message that is not final, end every job that had not, and give the outbox another identity.

    So nudges that the broker still has from the time after the backup are refused, as those of another
    outbox. Done twice, it finds nothing to hold.

    Raises:
      StillRunning: a worker was seen within its lease.
    """
    restored: list[Restored] = []

    def work(connection: Connection) -> None:
        _refuse_running(connection, lease_seconds)
        restored.append(_restore(connection))

    database.transaction(work)
    return restored[0]


def _refuse_running(connection: Connection, lease_seconds: float) -> None:
    name = connection.scalar(select(workers.c.name).where(is_alive(lease_seconds)).limit(1))
    if name:
        raise StillRunning(
            f"worker {name} was seen less than {lease_seconds:g} s ago; "
            "stop every worker and web process, wait that long and try again"
        )


def _restore(connection: Connection) -> Restored:
    outbox_id = str(uuid4())
    ended = _end_jobs(connection)
    failed = _fail_reports_of_success(connection)
    held = _hold(connection)
    connection.execute(update(identity).values(outbox_id=outbox_id))
    connection.execute(delete(workers))
    return Restored(jobs=ended, failed=failed, held=held, outbox_id=outbox_id)


def _end_jobs(connection: Connection) -> int:
    unended = jobs.c.state.not_in(JOB_FINAL)
    connection.execute(
        insert(events).from_select(
            ["id", "at", "event", "attempt", "detail"],
            select(
                jobs.c.id,
                now_ms(),
                literal(f"job {JobState.FAILED}"),
                func.nullif(jobs.c.attempt, 0),
                literal(JOB_ERROR),
            ).where(unended),
        )
    )
    return connection.execute(
        update(jobs)
        .where(unended)
        .values(
            state=JobState.FAILED,
            error=JOB_ERROR,
            owner=None,
            next_attempt_at=None,
            finished_at=now_ms(),
        )
    ).rowcount


def _fail_reports_of_success(connection: Connection) -> int:
    """Fail the messages that wait for the success of a job.

    Sent now, they would say that the job has succeeded.
    """
    waits = (
        messages.c.state == State.WAITING,
        exists().where(
            jobs.c.id == messages.c.job_id,
            or_(jobs.c.notify_on.is_(None), jobs.c.notify_on == NotifyOn.SUCCESS),
        ),
    )
    connection.execute(
        update(recipients)
        .values(state=State.FAILED)
        .where(recipients.c.id.in_(select(messages.c.id).where(*waits)))
    )
    return connection.execute(
        update(messages)
        .where(*waits)
        .values(state=State.FAILED, reason=f"its job failed: {JOB_ERROR}")
    ).rowcount


def _hold(connection: Connection) -> int:
    moving = messages.c.state.not_in([*FINAL, State.HELD])
    connection.execute(
        insert(events).from_select(
            ["id", "at", "event", "attempt", "detail"],
            select(
                messages.c.id,
                now_ms(),
                literal(str(State.HELD)),
                func.nullif(messages.c.attempt, 0),
                literal(HELD_BECAUSE),
            ).where(moving),
        )
    )
    return connection.execute(
        update(messages)
        .where(moving)
        .values(
            state=State.HELD,
            owner=None,
            next_attempt_at=None,
            published_at=None,
            parked=None,
            looks=None,
            looks_then=None,
            crashes=0,
            reason=f"{HELD_BECAUSE}: it may have been sent since",
        )
    ).rowcount
