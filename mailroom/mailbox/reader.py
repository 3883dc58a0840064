"""The thread that reads an account's own mailbox: its inbox for bounces, its Sent folder for lost replies."""

import logging
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from mailroom.mailbox.connection import MailboxConnection, MailboxError
from mailroom.mailbox.inbox import InboxReading
from mailroom.mailbox.sent_folder import find_sent_folder, is_in_sent
from mailroom.model.account import MailboxServer
from mailroom.model.errors import StoreUnavailable
from mailroom.process.supervisor import SupervisedThread
from mailroom.store.mailboxes import Mailboxes, Position
from mailroom.store.messages.bounces import Bounces
from mailroom.store.messages.lookups import LookUps

log = logging.getLogger("mailasync.mailbox")

#: How often to ask the database which mails are to be looked for.
LOOK_EVERY_SECONDS = 3.0
#: How often to ask whether the worker that reads the mailbox has ended.
CLAIM_EVERY_SECONDS = 10.0
#: Gmail ends sessions that logged in with OAuth after an hour.
SESSION_MAX_SECONDS = 50 * 60.0
PAUSE_MIN_SECONDS, PAUSE_MAX_SECONDS = 5.0, 300.0
#: A person has to mend a login; servers take offence at many that fail.
LOGIN_PAUSE_SECONDS = 15 * 60.0
STOP_SECONDS = 5.0


@dataclass
class MailboxReader:
    """Reads the mailbox of one account, whenever no other worker does."""

    account: str
    server: MailboxServer
    mailboxes: Mailboxes
    every_seconds: float  #: BOUNCES_EVERY_SECONDS
    folder: str  #: BOUNCES_FOLDER
    _stopping: threading.Event = field(default_factory=threading.Event)
    _pause_seconds: float = PAUSE_MIN_SECONDS
    _trouble: str = ""  #: logged once, and not each time
    _failures: Counter[int] = field(default_factory=Counter)  #: by UID, how often reading failed

    def __post_init__(self) -> None:
        database = self.mailboxes.database
        self._look_ups = LookUps(database, self.account)
        self._bounces = Bounces(database)
        self._thread = SupervisedThread(f"mailbox {self.account}", self._run, self._stopping)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; one that waits for a server ends with this process."""
        self._stopping.set()

    def join(self) -> None:
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopping.wait(self._turn()):
            pass

    def _turn(self) -> float:
        """Read the mailbox for as long as that goes well; return the seconds until the next try."""
        try:
            position = self.mailboxes.claim(self.account)
            if position is None:
                return CLAIM_EVERY_SECONDS
            with MailboxConnection(self.server) as connection:
                self._serve(connection, position)
            self.mailboxes.release(self.account)
            return 0.0
        except MailboxError as e:
            return self._pause_after(e)
        except StoreUnavailable as e:
            log.error("%s", e)
            return PAUSE_MIN_SECONDS

    def _pause_after(self, error: MailboxError) -> float:
        """Note why the mailbox cannot be read; return the seconds until the next try."""
        self._note_trouble(str(error))
        if error.of_login:
            # Other workers would only fail as well: servers take offence at many refused logins.
            return LOGIN_PAUSE_SECONDS
        self._let_others_try()
        pause = self._pause_seconds
        self._pause_seconds = min(2 * pause, PAUSE_MAX_SECONDS)
        return pause

    def _note_trouble(self, words: str) -> None:
        if words != self._trouble:
            log.warning("the mailbox of account %s cannot be read: %s", self.account, words)
        self._trouble = words
        try:
            self.mailboxes.note_trouble(self.account, words)
        except StoreUnavailable as e:
            log.error("%s", e)

    def _let_others_try(self) -> None:
        try:
            self.mailboxes.release(self.account)
        except StoreUnavailable as e:
            log.error("%s", e)

    def _serve(self, connection: MailboxConnection, position: Position) -> None:
        """Read what comes, until the session is old, another worker reads the mailbox, or we stop."""
        sent_folder = find_sent_folder(connection)
        self.mailboxes.note_sent_folder(self.account, sent_folder)
        reading = InboxReading(
            self.account,
            connection,
            self.mailboxes,
            self._bounces,
            position,
            self.folder,
            failures=self._failures,
        )
        ends_at = time.monotonic() + SESSION_MAX_SECONDS
        reads_at = time.monotonic()
        while not self._stopping.is_set() and time.monotonic() < ends_at:
            if time.monotonic() >= reads_at:
                claimed = self.mailboxes.claim(self.account)
                if claimed is None or not reading.is_at(claimed) or not reading.read_new():
                    return
                reads_at = time.monotonic() + self.every_seconds
            reading.read_early()
            has_looked = self._look_up(connection, sent_folder)
            # While the Sent folder was selected, nobody told of new mail.
            if has_looked or self._wait(connection):
                reads_at = time.monotonic()
            self._trouble = ""
            self._pause_seconds = PAUSE_MIN_SECONDS

    def _wait(self, connection: MailboxConnection) -> bool:
        """Wait for mail, or until mails may have to be looked for; True if there may be new mail."""
        if connection.can_idle:
            return connection.wait_for_mail(LOOK_EVERY_SECONDS)
        self._stopping.wait(LOOK_EVERY_SECONDS)
        return False

    def _look_up(self, connection: MailboxConnection, sent_folder: str) -> bool:
        """Look for the mails that are due in the Sent folder; False if there are none."""
        due = self._look_ups.due()
        for look_up in due:
            if self._stopping.is_set():
                break
            if sent_folder and is_in_sent(connection, sent_folder, look_up.message_id):
                self._look_ups.found(look_up)
            else:
                self._look_ups.not_found(look_up)
        return bool(due)
