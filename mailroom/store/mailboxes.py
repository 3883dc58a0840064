"""Mailboxes of accounts: which worker reads each, and how far it has come."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, or_, select, update

from mailroom.store.db.database import Database, run
from mailroom.store.db.dialects import insertion, now_ms
from mailroom.store.db.schema import mailboxes, workers
from mailroom.store.workers import is_alive


@dataclass(frozen=True, kw_only=True)
class Position:
    """The last mail that was read in an inbox; None: none ever was."""

    uid_validity: int | None
    uid: int | None
    read_at: int | None  #: in milliseconds since 1970


@dataclass(frozen=True)
class Mailboxes:
    """The mailboxes that one worker may read; its heartbeat is its lease on those that it owns."""

    database: Database
    owner: str
    lease_seconds: float

    def claim(self, account: str) -> Position | None:
        """Become, or stay, the reader of an account's mailbox; None if another living worker is it."""
        return self.database.write(self._claim, account, alone=True)

    def note_read(self, account: str, *, uid_validity: int, uid: int) -> bool:
        """Note that all mails up to this UID were read; False if another worker reads it now."""
        values = {
            "uid_validity": uid_validity,
            "uid": uid,
            "read_at": now_ms(),
            "trouble": None,
        }
        return self._update(account, values)

    def note_sent_folder(self, account: str, name: str) -> bool:
        return self._update(account, {"sent_folder": name})

    def note_trouble(self, account: str, words: str) -> bool:
        """Note why the mailbox cannot be read."""
        return self._update(account, {"trouble": words})

    def release(self, account: str) -> bool:
        """Let another worker read it."""
        return self._update(account, {"owner": None})

    def _update(self, account: str, values: dict[str, Any]) -> bool:
        ours = (
            mailboxes.c.account == account,
            mailboxes.c.owner == self.owner,
        )
        change = update(mailboxes).values(**values).where(*ours)
        changed = self.database.write(run, change.returning(mailboxes.c.account))
        return bool(changed)

    def _claim(self, connection: Connection, accounts: list[str]) -> list[Position | None]:
        return [self._claim_one(connection, account) for account in accounts]

    def _claim_one(self, connection: Connection, account: str) -> Position | None:
        connection.execute(
            insertion(connection, mailboxes).values(account=account).on_conflict_do_nothing()
        )
        living = select(workers.c.id).where(is_alive(self.lease_seconds))
        is_free = or_(
            mailboxes.c.owner.is_(None),
            mailboxes.c.owner == self.owner,
            mailboxes.c.owner.not_in(living),
        )
        claim = (
            update(mailboxes)
            .values(owner=self.owner)
            .where(mailboxes.c.account == account, is_free)
            .returning(mailboxes)
        )
        claimed = connection.execute(claim).one_or_none()
        if claimed is None:
            return None
        return Position(
            uid_validity=claimed.uid_validity,
            uid=claimed.uid,
            read_at=claimed.read_at,
        )


def accounts_being_read(database: Database, lease_seconds: float) -> set[str]:
    """Return the accounts whose mailbox is a living worker's to read."""
    living = select(workers.c.id).where(is_alive(lease_seconds))
    accounts = select(mailboxes.c.account).where(mailboxes.c.owner.in_(living))
    being_read = database.read(lambda connection: connection.scalars(accounts).all())
    return set(being_read)


def mailbox_rows(database: Database) -> Sequence[Any]:
    """Return the rows of all mailboxes, by account."""
    rows = select(mailboxes, now_ms().label("now")).order_by(mailboxes.c.account)
    return database.read(lambda connection: connection.execute(rows).all())
