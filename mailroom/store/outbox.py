"""Accepts messages, and tells where each one is. What a worker does with them is in claims.py."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, Connection, bindparam, case, func, select
from sqlalchemy.exc import IntegrityError

from mailroom.mail.message import Address, Message, State
from mailroom.store.database import Database
from mailroom.store.idempotency import Kept, KeyTaken, take
from mailroom.store.jobs import SMALL_MAX_CHARACTERS, SUMMARY, NewJob, insert, is_large
from mailroom.store.schema import contents, events, jobs, messages, now_ms, recipients, workers


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Everything that one accepted message writes, and the id it gets."""

    id: str
    message: Message
    message_id: str
    queue: str = "mail"
    job: NewJob | None = None
    expires_at: int | None = None  #: milliseconds since 1970; sent before that, or not at all …
    expires_in: int | None = None  #: … or in milliseconds from now, by the database's clock
    max_attempts: int | None = None  #: None: as many as RETRY_SCHEDULE has
    kept: Kept | None = None  #: the client's key, and the answer it gets whenever it comes again
    failed: str = ""  #: set where it is recorded only to tell why it could not be accepted

    @property
    def state(self) -> State:
        return State.FAILED if self.failed else State.WAITING if self.job else State.QUEUED


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a timeline. `at` is in milliseconds since 1970."""

    at: int
    event: str
    attempt: int | None
    detail: str | None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """All that is known of one message. Times are in milliseconds since 1970."""

    now: int
    row: dict[str, Any]
    recipients: list[dict[str, Any]]
    events: list[Event]
    job: dict[str, Any] | None
    worker_seen_at: int | None  #: when any worker was last seen
    worker_beat_at: int | None  #: the same, of those that have not said that they stop


def is_id(text: str) -> bool:
    """Whether `text` can be the id of a message: a client chose it where it is the id of a task."""
    return re.fullmatch(r"[\x20-\x7e]{1,200}", text) is not None


def new_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): ids sort by time, so that new rows are neighbours in the index.

    The 12 bits after the millisecond are its fraction (6.2, method 3), so that ids of one process are in the order they were made.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = rest_ns * 4096 // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | int.from_bytes(os.urandom(8)) >> 2
    return str(UUID(int=value))


class Outbox:
    def __init__(self, database: Database) -> None:
        self.database = database

    def accept(self, acceptance: Acceptance) -> bool:
        """Commit the message to disk, and the job before it; on return they are kept. False: one with this id was accepted before.

        Raises:
          KeyTaken: it was not accepted, as another request with this Idempotency-Key was, or is about to be.
          StoreUnavailable: it was not accepted.
        """
        try:
            large = acceptance.message.size > SMALL_MAX_CHARACTERS or (acceptance.job is not None and is_large(acceptance.job))
            if not self.database.write(_accept, acceptance, alone=large):
                raise KeyTaken
        except IntegrityError:
            if not self.database.read(lambda connection: _known(connection, acceptance)):
                raise
            return False
        return True

    def mark_published(self, ids: Sequence[str], *, seconds_ago: float = 0) -> None:
        """Note that a nudge for each of `ids`, sent so long ago, was confirmed by the broker."""
        # Alone: workers hold locks on these rows, and no POST should have to wait for those, or die of a deadlock with them.
        self.database.write(_mark_published, (ids, int(seconds_ago * 1000)), alone=True)

    def standing(self, id: str) -> Standing | None:
        """Where the message is, and how it came there; None if there is no such message."""
        return self.database.read(lambda connection: _standing(connection, id))

    def message_of(self, job_id: str) -> Message | None:
        """What was to be sent when that job ended."""
        return self.database.read(lambda connection: _message_of(connection, job_id))

    def worker_seen_ms_ago(self) -> int | None:
        """How long ago a worker of this outbox was seen that has not stopped since, in milliseconds; None if there is none."""
        now, _, beat = self.database.read(lambda connection: connection.execute(_WORKERS_SEEN).one())
        return None if beat is None else now - beat


_NEW_MESSAGE = messages.insert().values(
    created_at=now_ms(), attempt=0, uncertain_attempts=0, crashes=0,
    expires_at=func.coalesce(bindparam("expires_at", type_=BigInteger), now_ms() + bindparam("expires_in", type_=BigInteger)),
    **{name: bindparam(name) for name in ("id", "state", "queue", "message_id", "job_id", "reason", "max_attempts")},
)


def _accept(connection: Connection, asked: list[Acceptance]) -> list[bool]:
    """Write those whose key is not taken; say of each whether it is one."""
    ours = take(connection, [a.kept for a in asked])
    if new := [a for a, is_ours in zip(asked, ours, strict=True) if is_ours]:
        _insert(connection, new)
    return ours


def _insert(connection: Connection, accepted: list[Acceptance]) -> None:
    connection.execute(_NEW_MESSAGE, [
        {"id": a.id, "state": a.state, "queue": a.queue, "message_id": a.message_id, "job_id": a.job and a.job.id,
         "reason": a.failed or None, "max_attempts": a.max_attempts, "expires_at": a.expires_at, "expires_in": a.expires_in}
        for a in accepted])
    connection.execute(contents.insert(), [{"id": a.id, "content": a.message.to_row()} for a in accepted])
    people = [{"id": a.id, "position": n, "address": to.address, "name": to.name, "state": "failed" if a.failed else "queued"}
              for a in accepted for n, to in enumerate(a.message.to)]
    if people:
        connection.execute(recipients.insert(), people)
    if new_jobs := [a.job for a in accepted if a.job]:
        insert(connection, new_jobs)


def _known(connection: Connection, acceptance: Acceptance) -> bool:
    """Whether there is such a message, or such a job, already."""
    message = connection.scalar(select(messages.c.id).where(messages.c.id == acceptance.id))
    return message is not None or (acceptance.job is not None and connection.scalar(
        select(jobs.c.id).where(jobs.c.id == acceptance.job.id)) is not None)


def _mark_published(connection: Connection, chunks: list[tuple[Sequence[str], int]]) -> list[None]:
    for ids, ms_ago in chunks:
        connection.execute(messages.update().values(published_at=now_ms() - ms_ago)
                           .where(messages.c.id.in_(ids), messages.c.published_at.is_(None)))
    return [None] * len(chunks)


def _message_of(connection: Connection, job_id: str) -> Message | None:
    row = connection.execute(select(contents).join(messages, messages.c.id == contents.c.id)
                             .where(messages.c.job_id == job_id, messages.c.resent_of.is_(None))).first()
    if row is None:
        return None
    people = connection.execute(select(recipients).where(recipients.c.id == row.id).order_by(recipients.c.position))
    return Message.from_row(row.content, tuple(Address(person.address, person.name) for person in people))


_WORKERS_SEEN = select(now_ms(), func.max(workers.c.seen_at), func.max(case((workers.c.stopped_at.is_(None), workers.c.seen_at))))


def _standing(connection: Connection, id: str) -> Standing | None:
    row = connection.execute(messages.select().where(messages.c.id == id)).mappings().one_or_none()
    if row is None:
        return None
    people = connection.execute(recipients.select().where(recipients.c.id == id).order_by(recipients.c.position)).mappings()
    told = connection.execute(events.select().where(events.c.id.in_([id, row["job_id"] or id])).order_by(events.c.number)).mappings()
    job = connection.execute(select(*SUMMARY).where(jobs.c.id == row["job_id"])).mappings().one_or_none() if row["job_id"] else None
    now, seen, beat = connection.execute(_WORKERS_SEEN).one()
    return Standing(
        now=now, row=dict(row), recipients=[dict(person) for person in people],
        events=[Event(at=e["at"], event=e["event"], attempt=e["attempt"], detail=e["detail"]) for e in told],
        job=dict(job) if job else None, worker_seen_at=seen, worker_beat_at=beat)
