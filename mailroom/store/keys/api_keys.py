"""API keys: what each may do, and from which addresses it may send.

A key itself is shown once and kept nowhere.
"""

import hashlib
import hmac
import logging
import re
import secrets
import string
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, func, or_, select, update

from mailroom.model.errors import MailroomError, StoreUnavailable
from mailroom.process.installation import PROGRAM
from mailroom.store.db.access_schema import keys
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.locking import skip_locked

log = logging.getLogger("mailasync.keys")

#: How long a revoked key may still work: the table is read once for all requests of so many seconds.
CACHE_SECONDS = 3.0
#: How soon an unknown key is looked for again: a new one works at once, and wrong ones cost little.
MISS_SECONDS = 0.1
#: The precision of `used_at`.
USED_SECONDS = 60.0

_ID_CHARACTERS = string.ascii_lowercase + string.digits
_KEY = re.compile(r"ma_([a-z0-9]{8})_[A-Za-z0-9_-]{43}", re.ASCII)
_ID = re.compile("[a-z0-9]{8}")
_NO_HASH = "0" * 64


class Scope(StrEnum):
    SEND = "send"  #: POST mails and jobs, and GET one by its id
    READ = "read"  #: every GET
    ADMIN = "admin"  #: everything


class UnknownKey(MailroomError):
    """There is no key with this id."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """The rights of a key's owner. `id` is no secret, and "" for a client without a key."""

    id: str
    name: str
    scopes: frozenset[Scope]
    senders: tuple[str, ...] = ()  #: addresses and @domains that may be in From; none: any
    per_minute: int | None = None  #: messages; None: no limit

    def may_send_from(self, address: str) -> bool:
        """A domain's subdomains are other domains; case does not matter."""
        address = address.lower()
        return not self.senders or any(
            address == sender or (sender[0] == "@" and address.endswith(sender))
            for sender in self.senders
        )


@dataclass(frozen=True, kw_only=True)
class KeyRow:
    """A key as it is kept. Times are in milliseconds since 1970."""

    key: ApiKey
    hash: str
    created_at: int
    used_at: int | None
    revoked_at: int | None


@dataclass(frozen=True)
class _Read:
    """A result of reading the table, and its time on time.monotonic."""

    at: float
    usable: dict[str, KeyRow] | None  #: by id
    error: StoreUnavailable | None = None


class ApiKeys:
    """The keys in the database, as this process last read them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._last = _Read(float("-inf"), None)
        self._reading = threading.Lock()
        #: By a key's id: when its use was last recorded, and by which thread.
        self._noted: dict[str, tuple[float, threading.Thread]] = {}

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[Scope],
        senders: Sequence[str] = (),
        per_minute: int | None = None,
    ) -> tuple[str, ApiKey]:
        """Make a key; returns its text, of which there is no other copy, and its rights."""
        id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(8))
        key = ApiKey(
            id=id,
            name=name,
            scopes=frozenset(scopes),
            senders=tuple(sender.lower() for sender in senders),
            per_minute=per_minute,
        )
        secret = f"ma_{key.id}_{secrets.token_urlsafe(32)}"
        self.database.write(_insert, (key, hashed(secret)))
        # So that this process knows it at once.
        self._last = _Read(float("-inf"), self._last.usable)
        return secret, key

    def every(self) -> list[KeyRow]:
        """Return all keys that were ever made, the oldest first."""
        by_age = select(keys).order_by(keys.c.created_at, keys.c.id)
        rows = self.database.read(lambda connection: connection.execute(by_age).mappings().all())
        return [_row(row) for row in rows]

    def revoke(self, id: str) -> KeyRow:
        """Revoke a key for good; a second call changes nothing. Raises UnknownKey."""
        row = self.database.write(_revoke, id) if _ID.fullmatch(id) else None
        self._last = _Read(float("-inf"), self._last.usable)
        if row is None:
            raise UnknownKey(
                f"there is no key with the id {id[:80]!r}; `{PROGRAM} keys list` shows all"
            )
        return row

    def are_there(self) -> bool:
        """Tell whether there is a usable key. Raises StoreUnavailable if none could be read so far."""
        return bool(self._usable(CACHE_SECONDS))

    def find(self, secret: str) -> ApiKey | None:
        """Return the rights of a key; None if it is wrong, or was revoked more than CACHE_SECONDS ago."""
        match = _KEY.fullmatch(secret)
        row = self.usable(match[1]) if match else None
        if not hmac.compare_digest(hashed(secret), row.hash if row else _NO_HASH) or row is None:
            return None
        self.note_used(row.key.id)
        return row.key

    def usable(self, id: str) -> KeyRow | None:
        """Return the key with this id, unless it was revoked more than CACHE_SECONDS ago."""
        return self._usable(CACHE_SECONDS).get(id) or self._usable(MISS_SECONDS).get(id)

    def close(self) -> None:
        """Wait for the threads that record uses, before the database is closed."""
        for _, writer in self._noted.values():
            writer.join()

    def _usable(self, max_age_seconds: float) -> dict[str, KeyRow]:
        last = self._last
        if time.monotonic() - last.at > max_age_seconds:
            # While one thread reads, the others use the last result, unless they need a newer one.
            if not self._reading.acquire(
                blocking=last.usable is None or max_age_seconds < CACHE_SECONDS
            ):
                return last.usable or {}
            try:
                if time.monotonic() - self._last.at > max_age_seconds:
                    self._last = self._read()
                last = self._last
            finally:
                self._reading.release()
        if last.usable is None:
            raise last.error or StoreUnavailable("the keys were not read yet")
        return last.usable

    def _read(self) -> _Read:
        """Read the usable keys.

        While the database is away, the last keys stay good: nothing is accepted or returned without it
        anyway.
        """
        at = time.monotonic()
        try:
            return _Read(at, self.database.read(_all_usable))
        except StoreUnavailable as e:
            return _Read(time.monotonic(), self._last.usable, e)

    def note_used(self, id: str) -> None:
        """Record a use of a key, at most once a minute, in a thread of its own, so that no answer waits."""
        now = time.monotonic()
        if id not in self._noted or now - self._noted[id][0] >= USED_SECONDS:
            writer = threading.Thread(
                target=self._write_used, args=(id,), name=f"key-{id}", daemon=True
            )
            writer.start()
            self._noted[id] = now, writer

    def _write_used(self, id: str) -> None:
        try:
            # Alone: with others it could deadlock, as those lock rates.
            self.database.write(_set_used, id, alone=True)
        except MailroomError as e:
            log.warning("the use of key %s was not written down: %s", id, e)


def hashed(secret: str) -> str:
    """Hash a key. It has 256 random bits, which nobody can guess, so that no slow hash is needed."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _all_usable(connection: Connection) -> dict[str, KeyRow]:
    rows = connection.execute(select(keys).where(keys.c.revoked_at.is_(None))).mappings()
    return {row["id"]: _row(row) for row in rows}


def _row(row: Any) -> KeyRow:
    key = ApiKey(
        id=row["id"],
        name=row["name"],
        scopes=frozenset(Scope(scope) for scope in row["scopes"].split(",")),
        senders=tuple(filter(None, row["senders"].split(","))),
        per_minute=row["per_minute"],
    )
    return KeyRow(
        key=key,
        hash=row["hash"],
        created_at=row["created_at"],
        used_at=row["used_at"],
        revoked_at=row["revoked_at"],
    )


def _insert(connection: Connection, made: list[tuple[ApiKey, str]]) -> list[None]:
    connection.execute(
        keys.insert().values(created_at=now_ms()), [_new_row(*pair) for pair in made]
    )
    return [None] * len(made)


def _new_row(key: ApiKey, hash: str) -> dict[str, Any]:
    return {
        "id": key.id,
        "hash": hash,
        "name": key.name,
        "scopes": ",".join(sorted(key.scopes)),
        "senders": ",".join(key.senders),
        "per_minute": key.per_minute,
    }


def _revoke(connection: Connection, ids: list[str]) -> list[KeyRow | None]:
    return [_revoke_one(connection, id) for id in ids]


def _revoke_one(connection: Connection, id: str) -> KeyRow | None:
    revoked_at = func.coalesce(keys.c.revoked_at, now_ms())
    revoked = update(keys).where(keys.c.id == id).values(revoked_at=revoked_at).returning(keys)
    row = connection.execute(revoked).mappings().one_or_none()
    return _row(row) if row else None


def _set_used(connection: Connection, ids: list[str]) -> list[None]:
    """Record a use, unless another process has just done so or is doing so."""
    old = select(keys.c.id).where(
        keys.c.id.in_(ids),
        or_(keys.c.used_at.is_(None), keys.c.used_at < now_ms() - int(USED_SECONDS * 1000)),
    )
    connection.execute(update(keys).values(used_at=now_ms()).where(keys.c.id.in_(skip_locked(old))))
    return [None] * len(ids)
