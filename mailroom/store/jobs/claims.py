"""A worker's steps with jobs: claim, progress, finish, release.

What a job's end means for its mail is in the same commit.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, or_, select, update

from mailroom.store.db.database import Database, run
from mailroom.store.db.schema import files, jobs, locked, now_ms
from mailroom.store.events.timeline import record
from mailroom.store.jobs.jobs import SMALL_MAX_CHARACTERS, JobEnd, JobState, let_go
from mailroom.store.workers import dead_owners

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
    _suspects: set[Attempt] = field(
        default_factory=set, repr=False
    )  #: those that were ours and in no hand at the last look

    def claim(self, queue: str, names: Sequence[str], *, limit: int) -> list[JobClaim]:
        """Become the owner of the oldest jobs on `queue` that are due and of these types; each begins a new attempt."""
        due = [
            jobs.c.state == JobState.QUEUED,
            jobs.c.queue == queue,
            jobs.c.name.in_(names),
            or_(jobs.c.next_attempt_at.is_(None), jobs.c.next_attempt_at <= now_ms()),
            # One that we lost while we were paused: first its thread has to notice.
            jobs.c.id.not_in([id for id, _ in list(self._in_hand)]),
        ]
        found = (
            select(jobs.c.id).where(*due).order_by(jobs.c.created_at)
        )  # As the index has it: all that wait need not be sorted.
        if not self.database.read(lambda connection: connection.scalars(found.limit(1)).first()):
            return []  # Looking takes no write lock, and most of the time there is nothing.
        rows = self.database.write(
            run,
            (
                update(jobs)
                .values(
                    state=JobState.RUNNING,
                    owner=self.owner,
                    attempt=jobs.c.attempt + 1,
                    started_at=now_ms(),
                    progress=0,
                    step=None,
                    next_attempt_at=None,
                )
                .where(jobs.c.id.in_(locked(found.limit(limit))))
                .returning(jobs)
            ),
        )  # More conditions, and all that wait are looked at.
        self._in_hand.update((row.id, row.attempt) for row in rows)
        return [
            JobClaim(
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
            for row in sorted(rows, key=lambda row: (row.created_at, row.id))
        ]

    def progress(self, claim: JobClaim, fraction: float, step: str) -> bool:
        """Note how far the job is, from 0 to 1; False if it is no longer ours and should end."""
        return bool(
            self.database.write(
                run,
                (
                    update(jobs)
                    .values(progress=int(1000 * min(1.0, max(0.0, fraction))), step=step or None)
                    .where(*self._mine(claim))
                    .returning(jobs.c.id)
                ),
            )
        )

    def finish(self, claim: JobClaim, end: JobEnd) -> list[str] | None:
        """Commit how the attempt ended; return the ids of messages that are queued now, or None if it was no longer ours."""
        large = len(end.result or "") + len(end.file.content if end.file else b"") > SMALL_MAX_CHARACTERS
        released = self.database.write(self._finish, (claim, end), alone=large)
        self._in_hand.discard((claim.id, claim.attempt))
        return released

    def release(self, claim: JobClaim) -> bool:
        """Give back a job that may run again, as we are stopping; the attempt does not count."""
        released = bool(self.database.write(run, _given_back(*self._mine(claim))))
        self._in_hand.discard((claim.id, claim.attempt))
        return released

    def taken_away(self) -> set[str]:
        """Jobs that some thread of ours runs and that are no longer ours: canceled, or given to others."""
        in_hand = set(self._in_hand)  # Before the look, as what is claimed after it is in nobody's list.
        return {id for id, _ in in_hand - self._owned()} if in_hand else set()

    def keep_in_hand(self, ids: Collection[str]) -> None:
        """Say that no thread runs any other job than these: the others were claimed and never begun."""
        self._in_hand.intersection_update(ids)

    def give_back_abandoned(self) -> int:
        """Queue jobs that are ours and that none of our threads runs, at two looks in a row: the word of their claim got lost."""
        in_no_hand = self._owned() - self._in_hand
        lost = in_no_hand & self._suspects
        self._suspects.clear()
        self._suspects.update(in_no_hand - lost)
        for id, attempt in lost:
            self.database.write(run, _given_back(*self._still(id, attempt)))
        return len(lost)

    def orphans(self) -> list[str]:
        """End or requeue what dead workers ran; return the ids of messages that are queued now."""
        return self.database.write(self._orphans, None, alone=True) if self.database.read(self._dead) else []

    def _owned(self) -> set[Attempt]:
        return self.database.read(
            lambda connection: {
                (row.id, row.attempt)
                for row in connection.execute(
                    select(jobs.c.id, jobs.c.attempt).where(
                        jobs.c.owner == self.owner, jobs.c.state == JobState.RUNNING
                    )
                )
            }
        )

    def _dead(self, connection: Connection) -> set[str]:
        """Without us: who was paused for longer than the lease looks before the heartbeat that says so, and is not dead."""
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

    def _finish(self, connection: Connection, ended: list[tuple[JobClaim, JobEnd]]) -> list[list[str] | None]:
        released: dict[int, list[str] | None] = {}
        for number, (claim, end) in sorted(enumerate(ended), key=lambda one: one[1][0].id):
            work = self._end if end.wait_seconds is None else self._try_again
            released[number] = work(connection, claim, end)
        return [released[number] for number in range(len(ended))]

    def _end(self, connection: Connection, claim: JobClaim, end: JobEnd) -> list[str] | None:
        how: dict[str, Any] = {"state": end.state, "error": end.error, "result": end.result}
        if end.state is JobState.SUCCEEDED:
            how["progress"] = 1000
        if (
            connection.scalar(
                update(jobs)
                .values(owner=None, finished_at=now_ms(), **how)
                .where(*self._mine(claim))
                .returning(jobs.c.id)
            )
            is None
        ):
            return None
        if end.file:
            connection.execute(
                files.insert().values(
                    id=claim.id,
                    position=0,
                    name=end.file.name,
                    content_type=end.file.content_type,
                    content=end.file.content,
                )
            )
        return let_go(connection, claim.id, end, attempt=claim.attempt)

    def _try_again(self, connection: Connection, claim: JobClaim, end: JobEnd) -> list[str] | None:
        due = now_ms() + int(1000 * (end.wait_seconds or 0))
        if (
            connection.scalar(
                update(jobs)
                .values(state=JobState.QUEUED, owner=None, error=end.error, next_attempt_at=due)
                .where(*self._mine(claim))
                .returning(jobs.c.id)
            )
            is None
        ):
            return None
        record(
            connection,
            [{"id": claim.id, "event": "job attempt failed", "attempt": claim.attempt, "detail": end.error}],
        )
        return []

    def _orphans(self, connection: Connection, asked: list[None]) -> list[list[str]]:
        lost = [jobs.c.state == JobState.RUNNING, jobs.c.owner.in_(self._dead(connection))]
        may_try_again = jobs.c.attempt - jobs.c.excused < jobs.c.max_attempts
        end = JobEnd(state=JobState.FAILED, error="the worker that ran it died")
        again = connection.execute(
            update(jobs)
            .values(state=JobState.QUEUED, owner=None, progress=0, error=end.error)
            .where(jobs.c.id.in_(_not_in_use(*lost, may_try_again)))
            .returning(jobs.c.id, jobs.c.attempt)
        ).all()
        record(
            connection,
            [
                {"id": row.id, "event": "worker lost", "attempt": row.attempt, "detail": end.error}
                for row in again
            ],
        )
        ended = connection.execute(
            update(jobs)
            .values(state=end.state, owner=None, finished_at=now_ms(), error=end.error)
            .where(jobs.c.id.in_(_not_in_use(*lost, ~may_try_again)))
            .returning(jobs.c.id, jobs.c.attempt)
        ).all()
        released = [
            id for row in sorted(ended) for id in let_go(connection, row.id, end, attempt=row.attempt)
        ]
        return [released] * len(asked)


def _not_in_use(*which: ColumnElement[bool]) -> Any:
    """Find these jobs, but not those that somebody is changing just now: their worker lives, and is looked at again."""
    return locked(select(jobs.c.id).where(*which).order_by(jobs.c.id))


def _given_back(*whose: ColumnElement[bool]) -> Any:
    return (
        update(jobs)
        .values(state=JobState.QUEUED, owner=None, excused=jobs.c.excused + 1, progress=0, step=None)
        .where(*whose)
        .returning(jobs.c.id)
    )
