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
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import idempotency
from mailroom.store.jobs.jobs import NewJob, insert, is_large


class KeyTaken(MailroomError):
    """Another request with this key was committed, or is being committed; nothing of ours was."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A client's Idempotency-Key, and the request that it came with."""

    owner: str  #: the id of the API key; "" where there is none
    key: str
    request_hash: str


@dataclass(frozen=True, kw_only=True)
class StoredAnswer:
    """The answer that a client got. Without a body, it is made anew from the message or job."""

    status: int
    location: str
    body: Mapping[str, Any] | None = None

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A key and the answer to its request."""

    key: Key
    answer: StoredAnswer


@dataclass(frozen=True)
class Keys:
    """The keys of all clients, and those whose requests this process is handling."""

    database: Database
    _busy: set[tuple[str, str]] = field(default_factory=set, repr=False)
    _changed: threading.Condition = field(default_factory=threading.Condition, repr=False)

    def find(self, key: Key) -> Kept | None:
        """Return what the key was first used for, if it was."""
        stored = select(idempotency).where(
            idempotency.c.owner == key.owner, idempotency.c.key == key.key
        )
        row = self.database.read(lambda connection: connection.execute(stored).one_or_none())
        if row is None:
            return None
        return Kept(
            key=Key(owner=row.owner, key=row.key, request_hash=row.request_hash),
            answer=StoredAnswer.from_json(row.answer),
        )

    def accept_job(self, job: NewJob, kept: Kept) -> None:
        """Commit a job without a message, and its key. Raises KeyTaken, and what `Jobs.accept` raises."""
        if not self.database.write(_accept_jobs, (job, kept), alone=is_large(job)):
            raise KeyTaken

    @contextmanager
    def in_hand(self, key: Key, *, until: float) -> Iterator[bool]:
        """Keep the other threads of this process away from a key.

        Yields False where one of them has it until that time, on time.monotonic.
        """
        name = key.owner, key.key
        with self._changed:
            ours = self._changed.wait_for(
                lambda: name not in self._busy, max(0.0, until - time.monotonic())
            )
            if ours:
                self._busy.add(name)
        try:
            yield ours
        finally:
            if ours:
                with self._changed:
                    self._busy.discard(name)
                    self._changed.notify_all()


def take(connection: Connection, requests: Sequence[Kept | None]) -> list[bool]:
    """Tell for each request whether it may go on: it has no key, or its key is new and written here.

    Nothing waits here, so that a batch of many is not delayed by one of them, and two batches cannot wait for
    each other.
    """
    first = {_name(kept): kept for kept in reversed(requests) if kept is not None}
    if not first:
        return [True] * len(requests)
    free = _lock(connection, list(first))
    free -= _stored(connection, sorted(free))
    if free:
        rows = [_row(first[name]) for name in sorted(free)]
        connection.execute(idempotency.insert().values(created_at=now_ms()), rows)
    return [
        kept is None or (_name(kept) in free and first[_name(kept)] is kept) for kept in requests
    ]


def _name(kept: Kept) -> tuple[str, str]:
    return kept.key.owner, kept.key.key


def _row(kept: Kept) -> dict[str, Any]:
    return {**asdict(kept.key), "answer": json.dumps(asdict(kept.answer), ensure_ascii=False)}


def _stored(connection: Connection, names: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those of these keys that earlier transactions have written."""
    owner_and_key = tuple_(idempotency.c.owner, idempotency.c.key)
    stored = select(idempotency.c.owner, idempotency.c.key).where(owner_and_key.in_(names))
    return {(row.owner, row.key) for row in connection.execute(stored)}


def give_back(connection: Connection, refused: Sequence[Kept | None]) -> None:
    """Free the keys that `take` wrote in this transaction for requests that are refused after all."""
    names = [_name(kept) for kept in refused if kept is not None]
    if names:
        owner_and_key = tuple_(idempotency.c.owner, idempotency.c.key)
        connection.execute(idempotency.delete().where(owner_and_key.in_(names)))


def _lock(connection: Connection, names: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Lock these keys until the transaction ends; return those that no other transaction has locked."""
    if connection.dialect.name == "sqlite":
        return set(names)  # It has one writer at a time.
    numbers = {_number(owner, key): (owner, key) for owner, key in names}
    rows = connection.execute(
        text(
            "SELECT n, pg_try_advisory_xact_lock(n) AS got FROM unnest(CAST(:numbers AS bigint[])) AS n"
        ),
        {"numbers": list(numbers)},
    )
    return {numbers[row.n] for row in rows if row.got}


def _number(owner: str, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{owner} {key}".encode()).digest()[:8], signed=True)


def _accept_jobs(connection: Connection, requests: list[tuple[NewJob, Kept]]) -> list[bool]:
    ours = take(connection, [kept for _, kept in requests])
    new = [job for (job, _), is_ours in zip(requests, ours, strict=True) if is_ours]
    if new:
        insert(connection, new)
    return ours
