"""Reads what is new in an account's inbox, and applies the bounces and complaints among it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from mailroom.mailbox.bounces import HEADERS_WANTED, may_be_report, read_report
from mailroom.mailbox.connection import MailboxConnection
from mailroom.mailbox.parts import MAIL_MAX_BYTES
from mailroom.store.mailboxes import Mailboxes, Position
from mailroom.store.messages.bounces import Bounces

log = logging.getLogger("mailasync.mailbox")

#: Mails whose headers are read at a time.
BATCH_MAX = 100
#: The most mails that are read again after the server has numbered them anew.
RENUMBERED_MAX = 10_000


@dataclass
class InboxReading:
    """The reading of one account's inbox, which goes on from where it ended before."""

    account: str
    connection: MailboxConnection
    mailboxes: Mailboxes
    bounces: Bounces
    position: Position
    folder: str  #: BOUNCES_FOLDER

    def read_new(self) -> None:
        """Read all mails that came since the last time.

        Of a mailbox that was never read, only what comes from now on: older bounces are of nobody's concern.
        """
        status = self.connection.select_inbox(writable=bool(self.folder))
        last_uid = self.position.uid
        if self.position.uid_validity is None or last_uid is None:
            last_uid = status.uid_next - 1
        elif self.position.uid_validity != status.uid_validity:
            self._read_renumbered()
            last_uid = status.uid_next - 1
        uids = self.connection.new_uids(last_uid, limit=BATCH_MAX)
        while uids:
            self._read(uids)
            last_uid = uids[-1]
            self._note(status.uid_validity, last_uid)
            uids = self.connection.new_uids(last_uid, limit=BATCH_MAX)
        self._note(status.uid_validity, last_uid)

    def _read_renumbered(self) -> None:
        """Read what may not have been read, by its date, as no UID is what it was (RFC 3501, 2.3.1.1)."""
        read_at = datetime.fromtimestamp((self.position.read_at or 0) / 1000, UTC)
        since = (read_at - timedelta(days=1)).date()
        uids = self.connection.uids_since(since, limit=RENUMBERED_MAX)
        for start in range(0, len(uids), BATCH_MAX):
            self._read(uids[start : start + BATCH_MAX])

    def _read(self, uids: Sequence[int]) -> None:
        headers = self.connection.headers(uids, HEADERS_WANTED)
        understood = [
            uid for uid in uids if may_be_report(headers.get(uid, b"")) and self._apply(uid)
        ]
        if understood:
            log.info("%d reports in the mailbox of %s were applied", len(understood), self.account)
            if self.folder:
                self.connection.move(understood, self.folder)

    def _apply(self, uid: int) -> bool:
        report = read_report(self.connection.fetch(uid, MAIL_MAX_BYTES))
        return report is not None and self.bounces.apply(report)

    def _note(self, uid_validity: int, uid: int) -> None:
        self.mailboxes.note_read(self.account, uid_validity=uid_validity, uid=uid)
        self.position = Position(uid_validity=uid_validity, uid=uid, read_at=self.position.read_at)
