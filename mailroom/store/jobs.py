"""Jobs in the outbox: claim, progress, finish, release; what a job's end means for the mail that waits for it is in the same commit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, select, update

from mailroom.mail.message import State
from mailroom.store.database import Database
from mailroom.store.schema import events, jobs, locked, messages, now_ms, recipients
from mailroom.store.workers import dead_owners


class JobState(StrEnum):
    """Where a job is. From SUCCEEDED on it is final."""

    QUEUED = "queued"  #: for a free slot of a worker that serves its queue
    RUNNING = "running"  #: a worker runs it
    SUCCEEDED = "succeeded"  #: it returned
    FAILED = "failed"  #: it raised, or its worker died in its last attempt
    TIMED_OUT = "timed_out"  #: it was killed at its timeout
    CANCELED = "canceled"  #: the client took it back


@dataclass(frozen=True, kw_only=True)
class JobClaim:
    """One attempt at one job, by the worker that claimed it."""

    id: str
    name: str
    args: dict[str, Any]
    attempt: int
    timeout_seconds: float
    max_attempts: int


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """How a job ended. `result` is JSON; `error` is one line for the client: no stack trace."""

    state: JobState
    result: str | None = None
    error: str | None = None


@dataclass(frozen=True, eq=False)
class Jobs:
    """The jobs of one worker."""

    database: Database
    owner: str
    lease_seconds: float
    _in_hand: set[str] = field(default_factory=set, repr=False)  #: jobs that some thread runs
    _suspects: set[str] = field(default_factory=set, repr=False)  #: jobs that were ours and in no hand at the last look

    def claim(self, queues: Sequence[str]) -> JobClaim | None:
        """Become the owner of the oldest queued job on one of `queues`, if there is one."""
        waiting = select(jobs.c.id).where(jobs.c.state == JobState.QUEUED, jobs.c.queue.in_(queues)) \
            .order_by(jobs.c.created_at, jobs.c.id).limit(1)
        if not self.database.read(lambda connection: connection.scalars(waiting).first()):
            return None
        row = self.database.write(_run_one, (
            update(jobs).values(state=JobState.RUNNING, owner=self.owner, attempt=jobs.c.attempt + 1, started_at=now_ms(), progress=0)
            .where(jobs.c.id.in_(locked(waiting)), jobs.c.state == JobState.QUEUED)
            .returning(jobs)))
        if row is None:
            return None
        self._in_hand.add(row.id)
        return JobClaim(id=row.id, name=row.name, args=json.loads(row.args), attempt=row.attempt,
                        timeout_seconds=row.timeout_ms / 1000, max_attempts=row.max_attempts)

    def progress(self, claim: JobClaim, fraction: float, step: str) -> bool:
        """Note how far the job is, from 0 to 1; False if it is no longer ours and should end."""
        return self.database.write(_run_one, (
            update(jobs).values(progress=int(1000 * min(1.0, max(0.0, fraction))), step=step or None)
            .where(*self._mine(claim)).returning(jobs.c.id))) is not None

    def finish(self, claim: JobClaim, end: JobEnd) -> list[str] | None:
        """Commit how the job ended; return the ids of messages that are queued now, or None if it was no longer ours."""
        released = self.database.write(self._finish, (claim, end))
        self._in_hand.discard(claim.id)
        return released

    def release(self, claim: JobClaim) -> bool:
        """Give back a job that did nothing yet that counts, as we are stopping; the attempt does not count."""
        released = self.database.write(_run_one, (
            update(jobs).values(state=JobState.QUEUED, owner=None, attempt=jobs.c.attempt - 1, progress=0)
            .where(*self._mine(claim)).returning(jobs.c.id))) is not None
        self._in_hand.discard(claim.id)
        return released

    def give_back_abandoned(self) -> int:
        """Queue jobs that are ours and that none of our threads runs, at two looks in a row: the word of their claim got lost."""
        owned = self.database.read(lambda connection: set(connection.scalars(
            select(jobs.c.id).where(jobs.c.owner == self.owner, jobs.c.state == JobState.RUNNING))))
        in_no_hand = owned - self._in_hand
        lost = in_no_hand & self._suspects
        self._suspects.clear()
        self._suspects.update(in_no_hand - lost)
        for id in lost:
            self.database.write(_run_one, (
                update(jobs).values(state=JobState.QUEUED, owner=None, attempt=jobs.c.attempt - 1, progress=0)
                .where(jobs.c.id == id, jobs.c.owner == self.owner, jobs.c.state == JobState.RUNNING).returning(jobs.c.id)))
        return len(lost)

    def orphans(self) -> list[str]:
        """End or requeue what dead workers ran; return the ids of messages that are queued now."""
        return self.database.write(self._orphans, None) if self.database.read(self._dead) else []

    def _dead(self, connection: Connection) -> set[str]:
        return dead_owners(connection, jobs.c.owner, self.lease_seconds)

    def _mine(self, claim: JobClaim) -> list[Any]:
        return [jobs.c.id == claim.id, jobs.c.owner == self.owner, jobs.c.attempt == claim.attempt, jobs.c.state == JobState.RUNNING]

    def _finish(self, connection: Connection, ended: list[tuple[JobClaim, JobEnd]]) -> list[list[str] | None]:
        results: list[list[str] | None] = []
        for claim, end in ended:
            written = connection.scalar(
                update(jobs).values(state=end.state, owner=None, finished_at=now_ms(), error=end.error,
                                    result=end.result,
                                    **({"progress": 1000} if end.state is JobState.SUCCEEDED else {}))
                .where(*self._mine(claim)).returning(jobs.c.id))
            results.append(_let_go(connection, claim.id, end) if written else None)
        return results

    def _orphans(self, connection: Connection, asked: list[None]) -> list[list[str]]:
        lost = [jobs.c.state == JobState.RUNNING, jobs.c.owner.in_(self._dead(connection))]
        connection.execute(update(jobs).values(state=JobState.QUEUED, owner=None, progress=0)
                           .where(*lost, jobs.c.attempt < jobs.c.max_attempts))
        end = JobEnd(state=JobState.FAILED, error="the worker that ran it died")
        ended = connection.scalars(update(jobs).values(state=end.state, owner=None, finished_at=now_ms(), error=end.error)
                                   .where(*lost).returning(jobs.c.id)).all()
        released = [id for job_id in ended for id in _let_go(connection, job_id, end)]
        return [released] * len(asked)


def _let_go(connection: Connection, job_id: str, end: JobEnd) -> list[str]:
    """Queue the messages that waited for this job, or fail them with it; return the ids of the queued ones."""
    succeeded = end.state is JobState.SUCCEEDED
    ids = list(connection.scalars(
        update(messages).values(state=State.QUEUED if succeeded else State.FAILED,
                                reason=None if succeeded else f"its job {end.state}: {end.error}")
        .where(messages.c.job_id == job_id, messages.c.state == State.WAITING).returning(messages.c.id)))
    if ids:
        connection.execute(events.insert().values(at=now_ms()), [
            {"id": id, "event": f"job {end.state}", "detail": end.error} for id in ids])
    if ids and not succeeded:
        connection.execute(update(recipients).values(state=State.FAILED).where(recipients.c.id.in_(ids)))
    return ids if succeeded else []


def _run_one(connection: Connection, statements: list[Any]) -> list[Any]:
    """The first row that each statement gives, or None."""
    return [connection.execute(statement).first() for statement in statements]
