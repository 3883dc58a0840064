"""Measures what it costs to read many bounces: `python -m tests.tools.read_bounces --bounces 10000`.

Ends with exit code 1 if that takes more of the processor than --seconds, or if the memory grows.
"""

import argparse
import os
import secrets
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import Connection, insert

from mailroom.mailbox.connection import MailboxConnection
from mailroom.mailbox.inbox import InboxReading
from mailroom.model.account import MailboxServer
from mailroom.model.ids import new_id
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import messages, recipients
from mailroom.store.mailboxes import Mailboxes, Position
from mailroom.store.messages.bounces import Bounces
from mailroom.store.workers import Heartbeat
from tests.services import scratch
from tests.services.dovecot import Dovecot
from tests.services.processes import pss_mb
from tests.services.reports import notice
from tests.services.schema import ready

LEASE_SECONDS = 3600.0
#: What comes first fills caches, and is read before the memory is measured.
FIRST = 1_000
MEMORY_MAX = 1.1


def main() -> int:
    options = read_options()
    with tempfile.TemporaryDirectory(prefix="mailasync-bounces-", dir=scratch()) as name:
        directory = Path(name)
        directory.chmod(0o755)
        database = ready(f"sqlite:///{directory}/mailasync.sqlite3")
        try:
            with Dovecot(directory / "dovecot") as dovecot:
                return measure(database, dovecot, options.bounces, options.seconds)
        finally:
            database.close()


def measure(database: Database, dovecot: Dovecot, count: int, seconds: float) -> int:
    Heartbeat(database, "reader", "reader", []).beat()
    reading = Reading(database, dovecot)
    bounce_some(database, dovecot, FIRST)
    reading.read()
    before = pss_mb([os.getpid()])
    ids = bounce_some(database, dovecot, count)
    began = time.process_time()
    reading.read()
    cost = time.process_time() - began
    after = pss_mb([os.getpid()])
    bounced = reading.bounced(ids)
    print(
        f"{bounced} of {count} bounces applied, {cost:.1f} s of processor, "
        f"{1000 * cost / count:.2f} ms each; memory {before:.0f} MB before, {after:.0f} MB after"
    )
    return int(bounced < count or cost > seconds or after > MEMORY_MAX * before)


class Reading:
    """Reads the inbox as a worker does, in sessions that begin anew."""

    def __init__(self, database: Database, dovecot: Dovecot) -> None:
        self._database = database
        self._server = MailboxServer(
            host=dovecot.host,
            port=dovecot.port,
            security="ssl",
            user=dovecot.user,
            password=dovecot.password,
            ca_file=str(dovecot.certificates.ca_file),
        )
        self._mailboxes = Mailboxes(database, "reader", LEASE_SECONDS)
        self.read()

    def read(self) -> None:
        position = self._mailboxes.claim("default")
        assert isinstance(position, Position)
        bounces = Bounces(self._database)
        with MailboxConnection(self._server) as connection:
            InboxReading("default", connection, self._mailboxes, bounces, position, "").read_new()

    def bounced(self, ids: set[str]) -> int:
        rows = self._database.read(lambda connection: connection.execute(messages.select()).all())
        return sum(row.id in ids and row.state == "bounced" for row in rows)


def bounce_some(database: Database, dovecot: Dovecot, count: int) -> set[str]:
    """Make mails that were sent, and deliver a notice for each; return the ids."""
    ids = [new_id() for _ in range(count)]
    token = secrets.token_hex(3)

    def fill(connection: Connection) -> None:
        sent = {"state": "sent", "queue": "mail", "attempt": 1, "uncertain_attempts": 0}
        rows = [
            {"id": id, "message_id": f"{id}@example.org", "crashes": 0, "settled": 1, **sent}
            for id in ids
        ]
        connection.execute(insert(messages).values(created_at=now_ms()), rows)
        people = [
            {"id": id, "position": 0, "address": f"bob-{token}-{number}@example.org"}
            for number, id in enumerate(ids)
        ]
        connection.execute(insert(recipients).values(name="", state="sent"), people)

    database.transaction(fill)
    for number, id in enumerate(ids):
        dovecot.deliver(notice(f"{id}@example.org", f"bob-{token}-{number}@example.org"))
    return set(ids)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.read_bounces", description=__doc__)
    parser.add_argument("--bounces", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of processor, at most")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
