"""Remembers what a client's Idempotency-Key was answered, in the same commit as what it was answered for."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from sqlalchemy import Connection, select, text, tuple_

from mailroom.model.errors import MailroomError
from mailroom.store.db.database import Database
from mailroom.store.db.schema import idempotency, now_ms
from mailroom.store.jobs.jobs import NewJob, insert, is_large


class KeyTaken(MailroomError):
    """Somebody else's request with this key was committed, or is being committed just now; nothing of ours was."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A client's key, and what came with it."""

    owner: str  #: of whom: the API key's id
    key: str
    request_hash: str


@dataclass(frozen=True, kw_only=True)
class StoredAnswer:
    """The answer that a client had. Without a body it is told how things stand now."""

    status: int
    location: str
    body: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A key and the answer it stands for."""

    key: Key
    answer: StoredAnswer


@dataclass(frozen=True)
class Keys:
    """The keys of all clients, and those that this process is busy with."""

    database: Database
    _busy: set[tuple[str, str]] = field(default_factory=set, repr=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def find(self, key: Key) -> Kept | None:
        """Return what the key was first used for, if it was."""
        row = self.database.read(
            lambda connection: connection.execute(
                select(idempotency).where(idempotency.c.owner == key.owner, idempotency.c.key == key.key)
            ).one_or_none()
        )
        if row is None:
            return None
        return Kept(
            key=Key(owner=row.owner, key=row.key, request_hash=row.request_hash),
            answer=StoredAnswer.from_json(row.answer),
        )

    def accept_job(self, job: NewJob, kept: Kept) -> None:
        """Commit a job without a message together with its key. Raises KeyTaken, and what `Jobs.accept` raises."""
        if not self.database.write(_accept_jobs, (job, kept), alone=is_large(job)):
            raise KeyTaken

    @contextmanager
    def in_hand(self, key: Key, *, until: float) -> Iterator[bool]:
        """Keep the other threads of this process away from a key; yields False where one has it until that (monotonic) time."""
        name = key.owner, key.key
        with self._changed:
            ours = self._changed.wait_for(lambda: name not in self._busy, max(0.0, until - time.monotonic()))
            if ours:
                self._busy.add(name)
        try:
            yield ours
        finally:
            if ours:
                with self._changed:
                    self._busy.discard(name)
                    self._changed.notify_all()


def take(connection: Connection, wanted: Sequence[Kept | None]) -> list[bool]:
    """For each, whether it may go on: it has no key, or its key is new, and written in this transaction.

    Nothing waits here, so a batch of many is not held up by one, and two of them cannot wait for each other.
    """
    first = {(kept.key.owner, kept.key.key): kept for kept in reversed(wanted) if kept is not None}
    if not first:
        return [True] * len(wanted)
    free = _lock(connection, list(first))
    free -= {
        (row.owner, row.key)
        for row in connection.execute(
            select(idempotency.c.owner, idempotency.c.key).where(
                tuple_(idempotency.c.owner, idempotency.c.key).in_(sorted(free))
            )
        )
    }
    if free:
        connection.execute(
            idempotency.insert().values(created_at=now_ms()),
            [
                {
                    **asdict(first[name].key),
                    "answer": json.dumps(asdict(first[name].answer), ensure_ascii=False),
                }
                for name in sorted(free)
            ],
        )
    return [
        kept is None
        or ((kept.key.owner, kept.key.key) in free and first[kept.key.owner, kept.key.key] is kept)
        for kept in wanted
    ]


def give_back(connection: Connection, refused: Sequence[Kept | None]) -> None:
    """Free the keys that `take` wrote in this transaction for what is refused after all."""
    if names := [(kept.key.owner, kept.key.key) for kept in refused if kept is not None]:
        connection.execute(
            idempotency.delete().where(tuple_(idempotency.c.owner, idempotency.c.key).in_(names))
        )


def _lock(connection: Connection, names: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Lock these keys, and return those that no other transaction is about to write.

    They stay ours until ours ends.
    """
    if connection.dialect.name == "sqlite":
        return set(names)  # It has one writer at a time.
    numbers = {_number(owner, key): (owner, key) for owner, key in names}
    got = connection.execute(
        text("SELECT n, pg_try_advisory_xact_lock(n) AS got FROM unnest(CAST(:numbers AS bigint[])) AS n"),
        {"numbers": list(numbers)},
    )
    return {numbers[row.n] for row in got if row.got}


def _number(owner: str, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{owner} {key}".encode()).digest()[:8], signed=True)


def _accept_jobs(connection: Connection, asked: list[tuple[NewJob, Kept]]) -> list[bool]:
    ours = take(connection, [kept for _, kept in asked])
    if new := [job for (job, _), is_ours in zip(asked, ours, strict=True) if is_ours]:
        insert(connection, new)
    return ours
