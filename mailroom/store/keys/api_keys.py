"""API keys: who may ask for what, and from which addresses. A key itself is shown once and kept nowhere."""

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
from mailroom.store.db.database import Database
from mailroom.store.db.schema import keys, locked, now_ms

log = logging.getLogger("mailasync.keys")

#: How long a revoked key may go on: one read of the table serves all requests of so many seconds.
CACHE_SECONDS = 3.0
#: A key that is not known is looked for again after this long, so that a new one works at once and wrong ones cost little.
MISS_SECONDS = 0.1
#: `used_at` is no more exact than this.
USED_SECONDS = 60.0

_ID_CHARACTERS = string.ascii_lowercase + string.digits
_KEY = re.compile(r"ma_([a-z0-9]{8})_[A-Za-z0-9_-]{43}", re.ASCII)
_ID = re.compile("[a-z0-9]{8}")
_NO_HASH = "0" * 64


class Scope(StrEnum):
    SEND = "send"  #: POST mails and jobs, and see by its id what became of one
    READ = "read"  #: every GET
    ADMIN = "admin"  #: everything


class UnknownKey(MailroomError):
    """There is no key with this id."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """The rights of a key's owner. `id` is no secret, and "" where somebody is served without a key."""

    id: str
    name: str
    scopes: frozenset[Scope]
    senders: tuple[str, ...] = ()  #: addresses and @domains that may be in From; none: any
    per_minute: int | None = None  #: messages; None: no limit

    def may_send_from(self, address: str) -> bool:
        """A domain's subdomains are other domains; case does not matter."""
        address = address.lower()
        return not self.senders or any(
            address == sender or (sender[0] == "@" and address.endswith(sender)) for sender in self.senders
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
    """The result of a look at the table, and the time of it by this process's clock."""

    at: float
    usable: dict[str, KeyRow] | None  #: by id
    error: StoreUnavailable | None = None


class ApiKeys:
    """The keys in the database, as this process has seen them last."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._last = _Read(float("-inf"), None)
        self._reading = threading.Lock()
        self._noted: dict[
            str, tuple[float, threading.Thread]
        ] = {}  #: by id: when its use was last written down, and by whom

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[Scope],
        senders: Sequence[str] = (),
        per_minute: int | None = None,
    ) -> tuple[str, ApiKey]:
        """Make a key; the first of the two is the only copy of it that there will be."""
        key = ApiKey(
            id="".join(secrets.choice(_ID_CHARACTERS) for _ in range(8)),
            name=name,
            scopes=frozenset(scopes),
            senders=tuple(sender.lower() for sender in senders),
            per_minute=per_minute,
        )
        secret = f"ma_{key.id}_{secrets.token_urlsafe(32)}"
        self.database.write(_insert, (key, hashed(secret)))
        self._last = _Read(float("-inf"), self._last.usable)  # So that this process knows it at once.
        return secret, key

    def every(self) -> list[KeyRow]:
        """All that were ever made, the oldest first."""
        return self.database.read(
            lambda connection: [
                _row(row)
                for row in connection.execute(select(keys).order_by(keys.c.created_at, keys.c.id)).mappings()
            ]
        )

    def revoke(self, id: str) -> KeyRow:
        """End a key for good; once more does nothing. Raises UnknownKey."""
        row = self.database.write(_revoke, id) if _ID.fullmatch(id) else None
        self._last = _Read(float("-inf"), self._last.usable)
        if row is None:
            raise UnknownKey(f"there is no key with the id {id[:80]!r}; `flask keys list` shows all")
        return row

    def are_there(self) -> bool:
        """Tell whether there is a key that can be used. Raises StoreUnavailable if nobody could ever see."""
        return bool(self._usable(CACHE_SECONDS))

    def find(self, secret: str) -> ApiKey | None:
        """Whose key this is, if it is one and was not revoked more than CACHE_SECONDS ago."""
        match = _KEY.fullmatch(secret)
        row = None
        if match:
            row = self.usable(match[1])
        if not hmac.compare_digest(hashed(secret), row.hash if row else _NO_HASH) or row is None:
            return None
        self.note_used(row.key.id)
        return row.key

    def usable(self, id: str) -> KeyRow | None:
        """The key with this id, unless it was revoked more than CACHE_SECONDS ago."""
        return self._usable(CACHE_SECONDS).get(id) or self._usable(MISS_SECONDS).get(id)

    def close(self) -> None:
        """Wait until all that is being written down is, before the database is closed."""
        for _, writer in self._noted.values():
            writer.join()

    def _usable(self, max_age_seconds: float) -> dict[str, KeyRow]:
        last = self._last
        if time.monotonic() - last.at > max_age_seconds:
            # While one looks, the others go on with what was known, unless that does not help them.
            if not self._reading.acquire(blocking=last.usable is None or max_age_seconds < CACHE_SECONDS):
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
        """A database that is away does not end the keys that were good: without it nothing is accepted or told anyway."""
        at = time.monotonic()
        try:
            return _Read(at, self.database.read(_all_usable))
        except StoreUnavailable as e:
            return _Read(time.monotonic(), self._last.usable, e)

    def note_used(self, id: str) -> None:
        """Write down that it was used, at most once a minute, in a thread of its own: nobody's answer waits for that."""
        now = time.monotonic()
        if id not in self._noted or now - self._noted[id][0] >= USED_SECONDS:
            writer = threading.Thread(target=self._write_used, args=(id,), name=f"key-{id}", daemon=True)
            writer.start()
            self._noted[id] = now, writer

    def _write_used(self, id: str) -> None:
        try:
            # Alone: the group's transaction may hold a row of rates, and somebody else's this one.
            self.database.write(_set_used, id, alone=True)
        except MailroomError as e:
            log.warning("the use of key %s was not written down: %s", id, e)


def hashed(secret: str) -> str:
    """A random key of 256 bits needs no slow hash: there is nothing to guess."""
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
        keys.insert().values(created_at=now_ms()),
        [
            {
                "id": key.id,
                "hash": hash,
                "name": key.name,
                "scopes": ",".join(sorted(key.scopes)),
                "senders": ",".join(key.senders),
                "per_minute": key.per_minute,
            }
            for key, hash in made
        ],
    )
    return [None] * len(made)


def _revoke(connection: Connection, ids: list[str]) -> list[KeyRow | None]:
    found: list[KeyRow | None] = []
    for id in ids:
        row = (
            connection.execute(
                update(keys)
                .where(keys.c.id == id)
                .values(revoked_at=func.coalesce(keys.c.revoked_at, now_ms()))
                .returning(keys)
            )
            .mappings()
            .one_or_none()
        )
        found.append(_row(row) if row else None)
    return found


def _set_used(connection: Connection, ids: list[str]) -> list[None]:
    """Not where another process has just done so, or is doing so."""
    old = select(keys.c.id).where(
        keys.c.id.in_(ids),
        or_(keys.c.used_at.is_(None), keys.c.used_at < now_ms() - int(USED_SECONDS * 1000)),
    )
    connection.execute(update(keys).values(used_at=now_ms()).where(keys.c.id.in_(locked(old))))
    return [None] * len(ids)
