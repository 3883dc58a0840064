"""A worker's steps with jobs: claim, progress, finish, release.

The end of a job and what it means for its mail are one commit.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Insert, Select, or_, select, update

from mailroom.model.message import Attachment
from mailroom.store.db.database import Database, run
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.locking import each_in_order, not_in_use, skip_locked
from mailroom.store.db.schema import files, jobs
from mailroom.store.events.timeline import record
from mailroom.store.jobs.jobs import SMALL_MAX_CHARACTERS, JobEnd, JobState, let_go
from mailroom.store.workers import dead_owners, write_in_time

#: A job's id, and the number of the attempt.
Attempt = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class JobClaim:
    """An attempt at one job, by the worker that claimed it."""

    id: str
    name: str
    queue: str
    args: dict[str, Any]
    attempt: int  #: from 1, and never used again
    timeout_seconds: float
    max_attempts: int  #: of those that count
    retry: str  #: when to try again after attempt 1, 2, …; "": as the worker does by default
    excused: int = 0  #: earlier attempts that were given back, and do not count

    @property
    def counted(self) -> int:
        """Attempts that count, this one included."""
        return self.attempt - self.excused

    @property
    def is_last(self) -> bool:
        return self.counted >= self.max_attempts


@dataclass(frozen=True, eq=False)
class JobClaims:
    """The jobs of one worker, whose heartbeat is its lease on all of them."""

    database: Database
    owner: str
    lease_seconds: float
    _in_hand: set[Attempt] = field(default_factory=set, repr=False)  #: those that some thread runs
    #: Those that were ours at the last look though no thread ran them.
    _suspects: set[Attempt] = field(default_factory=set, repr=False)

    def claim(self, queue: str, names: Sequence[str], *, limit: int) -> list[JobClaim]:
        """Become the owner of the oldest jobs on `queue` that are due and of these types.

        Each begins a new attempt.
        """
        due = self._due(queue, names)
        if not self.database.read(lambda connection: connection.scalars(due.limit(1)).first()):
            return []  # Looking takes no write lock, and most of the time there is nothing.
        # Without a condition more, or all jobs that wait would be looked at.
        claiming = _CLAIM.values(owner=self.owner).where(
            jobs.c.id.in_(skip_locked(due.limit(limit)))
        )
        rows = self.database.write(run, claiming.returning(jobs))
        self._in_hand.update((row.id, row.attempt) for row in rows)
        return [_claim(row) for row in sorted(rows, key=lambda row: (row.created_at, row.id))]

    def _due(self, queue: str, names: Sequence[str]) -> Select[Any]:
        due = [
            jobs.c.state == JobState.QUEUED,
            jobs.c.queue == queue,
            jobs.c.name.in_(names),
            or_(jobs.c.next_attempt_at.is_(None), jobs.c.next_attempt_at <= now_ms()),
            # A job that we lost while we were paused: first its thread has to notice.
            jobs.c.id.not_in([id for id, _ in list(self._in_hand)]),
        ]
        # In the order of the index, so that the jobs that wait need not be sorted.
        return select(jobs.c.id).where(*due).order_by(jobs.c.created_at)

    def progress(self, claim: JobClaim, fraction: float, step: str) -> bool:
        """Note how far the job is, from 0 to 1; False if it is no longer ours and should end."""
        per_mille = int(1000 * min(1.0, max(0.0, fraction)))
        progress = (
            update(jobs).values(progress=per_mille, step=step or None).where(*self._mine(claim))
        )
        return bool(self.database.write(run, progress.returning(jobs.c.id)))

    def finish(self, claim: JobClaim, end: JobEnd) -> list[str] | None:
        """Commit how the attempt ended; return the ids of messages that are queued now.

        None: the job was no longer ours, and nothing was changed.
        """
        file = end.file.content if end.file else b""
        is_large = len(end.result or "") + len(file) > SMALL_MAX_CHARACTERS
        released = self.database.write(self._finish, (claim, end), alone=is_large)
        self._in_hand.discard((claim.id, claim.attempt))
        return released

    def release(self, claim: JobClaim) -> bool:
        """Give back a job that may run again, because this worker stops; the attempt does not count."""
        released = bool(self.database.write(run, _giving_back(*self._mine(claim))))
        self._in_hand.discard((claim.id, claim.attempt))
        return released

    def taken_away(self) -> set[str]:
        """Return the jobs that our threads run though they were canceled, or given to others."""
        # Read first: a job that is claimed in between is in neither list.
        in_hand = set(self._in_hand)
        if not in_hand:
            return set()
        return {id for id, _ in in_hand - self._owned()}

    def keep_in_hand(self, ids: Collection[str]) -> None:
        """Note that our threads run no other jobs than these: the others were claimed and never begun."""
        self._in_hand.intersection_update(ids)

    def give_back_abandoned(self) -> int:
        """Queue jobs that are ours and that no thread runs, at two looks in a row; return how many.

        Their claim was committed, and the answer to that commit got lost.
        """
        idle = self._owned() - self._in_hand
        lost = idle & self._suspects
        self._suspects.clear()
        self._suspects.update(idle - lost)
        for id, attempt in lost:
            self.database.write(run, _giving_back(*self._still(id, attempt)))
        return len(lost)

    def orphans(self) -> list[str]:
        """End or requeue the jobs of dead workers; return the ids of messages that are queued now."""
        if not self.database.read(self._dead):
            return []
        return write_in_time(self.database, self._orphans, self.lease_seconds)

    def _owned(self) -> set[Attempt]:
        ours = select(jobs.c.id, jobs.c.attempt).where(
            jobs.c.owner == self.owner, jobs.c.state == JobState.RUNNING
        )
        rows = self.database.read(lambda connection: connection.execute(ours).all())
        return {(row.id, row.attempt) for row in rows}

    def _dead(self, connection: Connection) -> set[str]:
        """Return the dead workers that own jobs.

        This worker is none of them: after a pause that was longer than the lease it may come here before its
        next heartbeat.
        """
        return dead_owners(connection, jobs.c.owner, self.lease_seconds) - {self.owner}

    def _mine(self, claim: JobClaim) -> list[ColumnElement[bool]]:
        return self._still(claim.id, claim.attempt)

    def _still(self, id: str, attempt: int) -> list[ColumnElement[bool]]:
        return [
            jobs.c.id == id,
            jobs.c.owner == self.owner,
            jobs.c.attempt == attempt,
            jobs.c.state == JobState.RUNNING,
        ]

    def _finish(
        self, connection: Connection, ended: list[tuple[JobClaim, JobEnd]]
    ) -> list[list[str] | None]:
        def finish(item: tuple[JobClaim, JobEnd]) -> list[str] | None:
            claim, end = item
            work = self._end if end.wait_seconds is None else self._try_again
            return work(connection, claim, end)

        return each_in_order(ended, finish, key=lambda item: item[0].id)

    def _end(self, connection: Connection, claim: JobClaim, end: JobEnd) -> list[str] | None:
        values: dict[str, Any] = {"state": end.state, "error": end.error, "result": end.result}
        if end.state is JobState.SUCCEEDED:
            values["progress"] = 1000
        ended = (
            update(jobs)
            .values(owner=None, finished_at=now_ms(), **values)
            .where(*self._mine(claim))
        )
        if connection.scalar(ended.returning(jobs.c.id)) is None:
            return None
        if end.file:
            connection.execute(_file(claim.id, end.file))
        return let_go(connection, claim.id, end, attempt=claim.attempt)

    def _try_again(self, connection: Connection, claim: JobClaim, end: JobEnd) -> list[str] | None:
        due = now_ms() + int(1000 * (end.wait_seconds or 0))
        values = {
            "state": JobState.QUEUED,
            "owner": None,
            "error": end.error,
            "next_attempt_at": due,
        }
        queued = update(jobs).values(**values).where(*self._mine(claim)).returning(jobs.c.id)
        if connection.scalar(queued) is None:
            return None
        line = {
            "id": claim.id,
            "event": "job attempt failed",
            "attempt": claim.attempt,
            "detail": end.error,
        }
        record(connection, [line])
        return []

    def _orphans(self, connection: Connection) -> list[str]:
        lost = [jobs.c.state == JobState.RUNNING, jobs.c.owner.in_(self._dead(connection))]
        has_attempts = jobs.c.attempt - jobs.c.excused < jobs.c.max_attempts
        end = JobEnd(state=JobState.FAILED, error="the worker that ran it died")
        _requeue(connection, not_in_use(jobs, *lost, has_attempts), end)
        ended = connection.execute(
            update(jobs)
            .values(state=end.state, owner=None, finished_at=now_ms(), error=end.error)
            .where(jobs.c.id.in_(not_in_use(jobs, *lost, ~has_attempts)))
            .returning(jobs.c.id, jobs.c.attempt)
        ).all()
        released: list[str] = []
        for row in sorted(ended):
            released += let_go(connection, row.id, end, attempt=row.attempt)
        return released


#: All that a claim changes but the owner.
_CLAIM = update(jobs).values(
    state=JobState.RUNNING,
    attempt=jobs.c.attempt + 1,
    started_at=now_ms(),
    progress=0,
    step=None,
    next_attempt_at=None,
)


def _claim(row: Any) -> JobClaim:
    return JobClaim(
        id=row.id,
        name=row.name,
        queue=row.queue,
        args=json.loads(row.args),
        attempt=row.attempt,
        excused=row.excused,
        timeout_seconds=row.timeout_ms / 1000,
        max_attempts=row.max_attempts,
        retry=row.retry or "",
    )


def _file(job_id: str, file: Attachment) -> Insert:
    return files.insert().values(
        id=job_id, position=0, name=file.name, content_type=file.content_type, content=file.content
    )


def _requeue(connection: Connection, ids: Any, end: JobEnd) -> None:
    """Give back the jobs of these ids, whose attempt ended without them."""
    rows = connection.execute(
        update(jobs)
        .values(state=JobState.QUEUED, owner=None, progress=0, error=end.error)
        .where(jobs.c.id.in_(ids))
        .returning(jobs.c.id, jobs.c.attempt)
    ).all()
    lines = [
        {"id": row.id, "event": "worker lost", "attempt": row.attempt, "detail": end.error}
        for row in rows
    ]
    record(connection, lines)


def _giving_back(*conditions: ColumnElement[bool]) -> Any:
    """Queue jobs again; their attempts do not count."""
    return (
        update(jobs)
        .values(
            state=JobState.QUEUED, owner=None, excused=jobs.c.excused + 1, progress=0, step=None
        )
        .where(*conditions)
        .returning(jobs.c.id)
    )
