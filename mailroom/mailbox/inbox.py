"""Reads what is new in an account's inbox, and applies the bounces and complaints among it."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from mailroom.mailbox.bounces import HEADERS_WANTED, may_be_report, read_report
from mailroom.mailbox.connection import MailboxConnection, MailboxError
from mailroom.mailbox.parts import MAIL_MAX_BYTES
from mailroom.model.errors import StillSending, StoreUnavailable
from mailroom.store.mailboxes import Mailboxes, Position
from mailroom.store.messages.bounces import Bounces

log = logging.getLogger("mailasync.mailbox")

#: Mails whose headers are read at a time.
BATCH_MAX = 100
#: The most mails that are read again after the server has numbered them anew.
RENUMBERED_MAX = 10_000
#: A mail is skipped at which the server failed so often. Gmail has some that it never gives out.
FAILURES_MAX = 3


@dataclass
class InboxReading:
    """The reading of one account's inbox, which goes on from where it ended before."""

    account: str
    connection: MailboxConnection
    mailboxes: Mailboxes
    bounces: Bounces
    position: Position
    folder: str  #: BOUNCES_FOLDER
    #: How often reading failed at a UID, also in sessions before. While there are any, mails are read singly.
    failures: Counter[int] = field(default_factory=Counter)
    #: Reports about mails that a worker still had; they are read again.
    early: list[int] = field(default_factory=list)

    def read_new(self) -> bool:
        """Read all mails that came since the last time; False if another worker reads them now.

        Of a mailbox that was never read, only what comes from now on: older bounces are of nobody's concern.
        """
        status = self.connection.select_inbox(writable=bool(self.folder))
        last_uid = self.position.uid
        if self.position.uid_validity is None or last_uid is None:
            last_uid = status.uid_next - 1
        elif self.position.uid_validity != status.uid_validity:
            self.early.clear()
            self._read_renumbered()
            last_uid = status.uid_next - 1
        uids = self._new_uids(last_uid)
        while uids:
            self._read(uids)
            last_uid = uids[-1]
            if not self._note(status.uid_validity, last_uid):
                return False
            uids = self._new_uids(last_uid)
        self.failures.clear()
        return self._note(status.uid_validity, last_uid)

    def read_early(self) -> None:
        """Read reports again that came too early."""
        early, self.early = self.early, []
        validity, uid = self.position.uid_validity, self.position.uid
        if early and validity is not None and uid is not None:
            self._read(early)
            self._note(validity, uid)

    def is_at(self, position: Position) -> bool:
        """Tell whether we are the last who read the inbox, up to this position."""
        uid = self.position.uid
        if uid is None:
            return True
        ours = (self.position.uid_validity, self._noted_uid(uid))
        return ours == (position.uid_validity, position.uid)

    def _new_uids(self, after: int) -> list[int]:
        limit = 1 if self.failures else BATCH_MAX
        return self.connection.new_uids(after, limit=limit)

    def _read_renumbered(self) -> None:
        """Read what may not have been read, by its date, as no UID is what it was (RFC 3501, 2.3.1.1)."""
        read_at = datetime.fromtimestamp((self.position.read_at or 0) / 1000, UTC)
        since = (read_at - timedelta(days=1)).date()
        uids = self.connection.uids_since(since, limit=RENUMBERED_MAX)
        size = 1 if self.failures else BATCH_MAX
        for start in range(0, len(uids), size):
            self._read(uids[start : start + size])

    def _read(self, uids: Sequence[int]) -> None:
        if self.failures[uids[0]] >= FAILURES_MAX:
            log.error("a mail in the mailbox of %s cannot be read, and is skipped", self.account)
            return
        try:
            self._apply_among(uids)
        except MailboxError:
            self.failures[uids[0]] += 1
            raise

    def _apply_among(self, uids: Sequence[int]) -> None:
        headers = self.connection.headers(uids, HEADERS_WANTED)
        understood = [
            uid for uid in uids if may_be_report(headers.get(uid, b"")) and self._apply(uid)
        ]
        if understood:
            log.info("%d reports in the mailbox of %s were applied", len(understood), self.account)
            if self.folder:
                self.connection.move(understood, self.folder)

    def _apply(self, uid: int) -> bool:
        raw = self.connection.fetch(uid, MAIL_MAX_BYTES)
        report = read_report(raw)
        if report is None:
            return False
        try:
            return self.bounces.apply(report)
        except StillSending:
            self.early.append(uid)
        except StoreUnavailable:
            raise
        except Exception as e:
            # Whatever is in this report, the next one is to be read. Its words are in no log.
            log.error("a report to %s cannot be applied: %s", self.account, type(e).__name__)
        return False

    def _note(self, uid_validity: int, uid: int) -> bool:
        self.position = Position(
            uid_validity=uid_validity,
            uid=uid,
            read_at=self.position.read_at,
        )
        noted = self._noted_uid(uid)
        return self.mailboxes.note_read(self.account, uid_validity=uid_validity, uid=noted)

    def _noted_uid(self, uid: int) -> int:
        """Return the last UID with which we are done: reports that came too early are read after a crash."""
        return min(self.early) - 1 if self.early else uid
