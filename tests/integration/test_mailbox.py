"""Bounces that come home, and replies that are lost: on a real Dovecot and Postfix."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from mailroom.mailbox import reader as reader_module
from mailroom.mailbox.connection import MailboxConnection
from mailroom.mailbox.reader import MailboxReader
from mailroom.mailbox.sent_folder import is_in_sent
from mailroom.store.db.database import Database
from mailroom.store.mailboxes import Mailboxes, mailbox_rows
from mailroom.store.messages.claims import Claims
from mailroom.store.workers import Heartbeat
from tests.integration.test_imap import mail, server_of
from tests.services import free_port, wait_until
from tests.services.dovecot import Dovecot
from tests.services.imap import ImapRelay, ScriptedIMAP
from tests.services.postfix import Postfix
from tests.services.processes import Service, service
from tests.services.reports import notice
from tests.services.schema import on_postgresql, on_sqlite
from tests.services.smtp_link import LOST, UNANSWERED, SmtpLink
from tests.services.smtpd import ScriptedSMTP
from tests.unit.store.test_bounces import ignored, send
from tests.unit.store.test_lookups import (
    LEASE_SECONDS,
    SENT,
    accept,
    claim,
    events,
    judge,
    lose_reply,
    make_due,
    states,
)

#: So long that nothing is read unless the server says that there is mail.
NEVER = 100_000.0


def settings(dovecot: Dovecot, port: int, **more: str) -> dict[str, str]:
    """Return the settings of an account that sends by this port, and whose mailbox is that of ops."""
    return {
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": str(port),
        "SMTP_SECURITY": "none",
        "SMTP_CA_FILE": str(dovecot.certificates.ca_file),
        "MAIL_USERNAME": dovecot.user,
        "MAIL_PASSWORD": dovecot.password,
        "IMAP_HOST": dovecot.host,
        "IMAP_PORT": str(dovecot.port),
        "BOUNCES_EVERY_SECONDS": str(NEVER),
        "SIMULATED_WORK_SECONDS": "0",
        "RETRY_SCHEDULE": "1s*10",
        "LEASE_SECONDS": "3",
        "WEBHOOKS_TO_LOOPBACK": "on",
        "INBOX_SMTP_PORT": str(free_port()),
        **more,
    }


@contextmanager
def one_process(
    directory: Path, url: str, dovecot: Dovecot, port: int, **more: str
) -> Iterator[Service]:
    """Run the service in one process, and wait until it reads the mailbox."""
    with service(directory, DATABASE_URL=url, **settings(dovecot, port, **more)) as made:
        made.upgrade()
        made.up("--deliver")
        yield made


def row(url_or_database: str | Database) -> Any:
    """Return the mailbox's row, once there is one that was read."""
    database = url_or_database
    opened = Database(database) if isinstance(database, str) else database
    try:
        return wait_until(
            lambda: next((row for row in mailbox_rows(opened) if row.uid is not None), None),
            what="the mailbox is read",
        )
    finally:
        if isinstance(database, str):
            opened.close()


def until_status(running: Service, id: str, status: str) -> Any:
    seen: list[Any] = [None]

    def has_it() -> bool:
        seen[0] = running.message(id)
        return bool(seen[0]["status"] == status)

    try:
        wait_until(has_it, what=f"{id} is {status}")
    except AssertionError as e:
        raise AssertionError(f"{e}; it is {json.dumps(seen[0], indent=1)}") from None
    return seen[0]


# The whole road, in a process of its own


@pytest.mark.parametrize("folder", ["", "Bounces"])
def test_a_bounce_comes_home(
    tmp_path: Path, sqlite_url: str, dovecot: Dovecot, postfix: Postfix, folder: str
) -> None:
    with one_process(tmp_path, sqlite_url, dovecot, postfix.port, BOUNCES_FOLDER=folder) as running:
        hook = running.request("POST", "/v1/webhooks", {"url": "http://127.0.0.1:9/hook"})[1]["id"]
        row(sqlite_url)
        # Given a mail to somebody who is unknown behind the server that takes it, and to one who is not
        id = running.post("/v1/messages", to=["nobody@example.org", "bob@example.net"])
        # When its bounce arrives, then only the server's word of new mail can have it read
        wait_until(
            lambda: "bounced" in [one["status"] for one in running.message(id)["recipients"]],
            what="the bounce is applied",
        )
        told = running.message(id)
        nobody, bob = told["recipients"]
        assert (told["status"], nobody["status"], bob["status"]) == ("sent", "bounced", "sent")
        assert nobody["reply"] == 'unknown user: "nobody@example.org"'
        assert [event["event"] for event in told["timeline"]][-2:] == ["sent", "bounced"]
        deliveries = running.get(f"/v1/webhooks/{hook}/deliveries")["data"]
        assert "message.bounced" in [one["type"] for one in deliveries]
        suppression = running.get("/v1/suppressions/nobody@example.org")
        assert suppression["reason"] == "bounced"
        wait_until(lambda: len(dovecot.messages(folder or "INBOX")) == 1, what="it lies there")
        assert dovecot.flags(folder or "INBOX") == [""]
        # A mail that comes back from all is bounced itself.
        other = running.post("/v1/messages", to="somebody@example.org")
        until_status(running, other, "bounced")


def test_a_lost_reply_is_settled_by_the_sent_folder(
    tmp_path: Path, sqlite_url: str, dovecot: Dovecot, postfix: Postfix
) -> None:
    link = SmtpLink(postfix.port)
    with one_process(tmp_path, sqlite_url, dovecot, link.port) as running:
        row(sqlite_url)
        # Given a mail that the server took, and whose reply was lost
        link.at_dot(UNANSWERED)
        id = running.post("/v1/messages", to="bob@example.net")
        told = running.final(id)
        assert (told["status"], told["uncertain_attempts"], link.dots) == ("sent", 1, 1)
        assert told["timeline"][-1]["detail"] == "found in the Sent folder of default"
        # And one that it never got
        link.at_dot(LOST)
        other = running.post("/v1/messages", to="bob@example.net")
        until_status(running, other, "deferred")
        hasten_looks(sqlite_url)
        told = running.final(other)
        words = [event["event"] for event in told["timeline"]]
        assert words[-4:] == ["uncertain", "not in sent", "queued", "sent"]
        assert told["timeline"][-1]["detail"].startswith("250 ")
        # Then each is there once.
        postfix.flush()
        assert len(dovecot.messages(dovecot.sent)) == 2
        assert link.dots == 3
    link.close()


def hasten_looks(url: str) -> None:
    """Make each look due at once, until nothing is looked for any more."""
    database = Database(url)

    def is_done() -> bool:
        make_due(database)
        looked_for = "/* test */ SELECT count(*) FROM messages WHERE looks IS NOT NULL"
        return not database.read(lambda connection: connection.scalar(text(looked_for)))

    try:
        wait_until(is_done, what="the looks are over")
    finally:
        database.close()


def test_a_mailbox_that_is_away_holds_no_mail_up(
    tmp_path: Path, sqlite_url: str, dovecot: Dovecot, smtpd: ScriptedSMTP
) -> None:
    dovecot.stop()
    with service(
        tmp_path, DATABASE_URL=sqlite_url, **settings(dovecot, smtpd.port, SMTP_AUTH="off")
    ) as running:
        running.upgrade()
        up = running.up("--deliver")
        id = running.post("/v1/messages")
        assert running.final(id)["status"] == "sent"
        up.says("the mailbox of account default cannot be read")
        # It is tried again after 5 s.
        dovecot.start()
        row(sqlite_url)
        dovecot.deliver(notice(running.message(id)["message_id"]))
        until_status(running, id, "bounced")
        assert up.text().count("cannot be read") == 1


@on_postgresql
def test_another_worker_takes_the_mailbox_of_one_that_died(
    tmp_path: Path, broker_url: str, database_url: str, dovecot: Dovecot, smtpd: ScriptedSMTP
) -> None:
    urls = {"BROKER_URL": broker_url, "DATABASE_URL": database_url}
    values = settings(dovecot, smtpd.port, SMTP_AUTH="off")
    with service(tmp_path, **urls, **values) as pair:
        pair.upgrade()
        pair.web()
        workers = [pair.worker(wait=False) for _ in range(2)]
        owner = row(database_url).owner
        for worker in workers:
            worker.says(" ready.")
        ids = [pair.post("/v1/messages") for _ in range(2)]
        message_ids = [pair.final(id)["message_id"] for id in ids]
        dovecot.deliver(notice(message_ids[0]))
        until_status(pair, ids[0], "bounced")
        [dead] = [worker for worker in workers if str(worker.pid) in name_of(database_url, owner)]
        # When the one that reads is killed
        dead.kill()
        dovecot.deliver(notice(message_ids[1]))
        # Then the other goes on where it was.
        told = until_status(pair, ids[1], "bounced")
        assert row(database_url).owner != owner
        assert [event["event"] for event in told["timeline"]].count("bounced") == 1
        database = Database(database_url)
        assert ignored(database) == 0
        database.close()


def name_of(url: str, owner: str) -> str:
    """Return the name of a worker, which has its process id."""
    database = Database(url)
    try:
        query = text("/* test */ SELECT name FROM workers WHERE id = :id")
        return str(database.read(lambda connection: connection.scalar(query, {"id": owner})))
    finally:
        database.close()


# The reader, in this process


@pytest.fixture
def claims(database: Database) -> Claims:
    Heartbeat(database, "worker-1", "worker-1@host", ["mail"]).beat()
    return Claims(database, "worker-1", LEASE_SECONDS)


@pytest.fixture(autouse=True)
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in this process: a reader tries again soon."""
    monkeypatch.setattr(reader_module, "PAUSE_MIN_SECONDS", 0.05)
    monkeypatch.setattr(reader_module, "PAUSE_MAX_SECONDS", 0.05)
    monkeypatch.setattr(reader_module, "LOGIN_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(reader_module, "CLAIM_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(reader_module, "LOOK_EVERY_SECONDS", 0.2)


@contextmanager
def reading(
    database: Database,
    dovecot: Dovecot,
    *,
    owner: str = "worker-1",
    every: float = NEVER,
    folder: str = "",
    **changes: Any,
) -> Iterator[MailboxReader]:
    """Read the mailbox in a thread; wait until it was read once, unless it cannot be."""
    server = server_of(dovecot, **changes)
    mailboxes = Mailboxes(database, owner, LEASE_SECONDS)
    reader = MailboxReader("default", server, mailboxes, every, folder)
    reader.start()
    try:
        yield reader
    finally:
        reader.stop()
        reader.join()


def is_bounced(database: Database, id: str) -> bool:
    return states(database, id)[0] == "bounced"


def bounce(database: Database, dovecot: Dovecot, id: str, **fields: str) -> None:
    dovecot.deliver(notice(f"{id}@example.org", **fields))


def trouble(database: Database) -> str:
    return str(next((row.trouble for row in mailbox_rows(database) if row.trouble), ""))


@on_sqlite
def test_trouble_is_told_once_and_what_came_meanwhile_is_read(
    database: Database, claims: Claims, dovecot: Dovecot, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [send(database, claims) for _ in range(3)]
    with reading(database, dovecot, timeout_seconds=0.5):
        row(database)
        for id, away, back in (
            (ids[0], dovecot.stop, dovecot.start),
            (ids[1], dovecot.pause, dovecot.resume),
        ):
            caplog.clear()
            away()
            wait_until(lambda: trouble(database), what="the trouble is on record")
            bounce(database, dovecot, id)
            back()
            wait_until(lambda id=id: is_bounced(database, id), what="it bounced")  # type: ignore[misc]
            assert len(caplog.records) <= 3
        wait_until(lambda: not trouble(database), what="no trouble is on record")
    password = dovecot.password
    with reading(database, dovecot, password="wrong"):
        wait_until(lambda: "refused the login" in trouble(database), what="the refusal is told")
    bounce(database, dovecot, ids[2])
    with reading(database, dovecot, password=password):
        wait_until(lambda: is_bounced(database, ids[2]), what="it bounced")


def test_mails_with_new_numbers_are_missed_never_and_applied_once(
    database: Database, claims: Claims, dovecot: Dovecot
) -> None:
    ids = [send(database, claims) for _ in range(3)]
    bounce(database, dovecot, ids[0])
    with reading(database, dovecot):
        row(database)
        bounce(database, dovecot, ids[1])
        bounce(database, dovecot, ids[2], action="delayed", status="4.4.1")
        wait_until(lambda: "delayed" in events(database, ids[2]), what="the delay is told")
    # What was there before the first reading is of no concern.
    assert states(database, ids[0])[0] == "sent"
    before = row(database).uid_validity
    bounce(database, dovecot, ids[2])
    dovecot.change_uidvalidity()
    with reading(database, dovecot):
        wait_until(lambda: is_bounced(database, ids[2]), what="it bounced")
        wait_until(lambda: row(database).uid_validity != before, what="it is read to the end")
    assert events(database, ids[1]) == ["sent", "bounced"]
    assert events(database, ids[2]) == ["sent", "delayed", "bounced"]


@on_sqlite
def test_a_large_mailbox_costs_no_more_than_a_small_one(
    database: Database, claims: Claims, dovecot: Dovecot
) -> None:
    costs = []
    for total in (10, 20_000):
        for _ in range(total):
            dovecot.deliver(mail())
        with ImapRelay(dovecot.ports["imap"]) as relay:
            id = send(database, claims)
            with reading(database, dovecot, security="none", port=relay.port):
                forget_reading(database)
                row(database)
                bounce(database, dovecot, id, status="5.2.2")
                wait_until(lambda id=id: is_bounced(database, id), what="it bounced")  # type: ignore[misc]
            costs.append(relay.bytes)
    # Numbers are longer by some digits, and IDLE is asked for again while Dovecot notes what came.
    assert costs[1] < 2 * costs[0]


def forget_reading(database: Database) -> None:
    def forget(connection: Connection) -> None:
        connection.execute(text("/* test */ UPDATE mailboxes SET uid = NULL, uid_validity = NULL"))

    database.transaction(forget)


HOSTILE = {
    "forged": notice("somebody@example.org"),
    "huge": notice("huge@example.org") + b"x" * 50_000_000,
    "deep": b"From: mailer-daemon@example.org\n"
    + b"".join(
        b"Content-Type: multipart/report; boundary=%d\n\n--%d\n" % (level, level)
        for level in range(20_000)
    ),
    "not MIME": b"From: MAILER-DAEMON\n\n\xff\x00\xfe<bob@example.org>: \x1b[2J gone\n" * 100,
    "empty": b"\n",
    "only a header": b"From: mailer-daemon@example.org\nX-Failed-Recipients: bob@example.org",
}


@on_sqlite
def test_hostile_mails_change_nothing_and_end_nothing(
    database: Database, claims: Claims, dovecot: Dovecot, caplog: pytest.LogCaptureFixture
) -> None:
    id, other = send(database, claims), send(database, claims)
    with reading(database, dovecot):
        row(database)
        for raw in HOSTILE.values():
            dovecot.deliver(raw)
        bounce(database, dovecot, id)
        wait_until(lambda: is_bounced(database, id), what="the real one is read")
    assert states(database, other) == ("sent", ["sent"])
    assert [record for record in caplog.records if record.levelname != "INFO"] == []
    assert dovecot.flags() == [""] * (len(HOSTILE) + 1)


def test_a_worker_that_cannot_reach_the_mailbox_leaves_it_to_another(
    database: Database, claims: Claims, dovecot: Dovecot
) -> None:
    id = send(database, claims)
    Heartbeat(database, "worker-2", "worker-2@host", ["mail"]).beat()
    with reading(database, dovecot, port=1):
        wait_until(lambda: trouble(database), what="the trouble is on record")
        with reading(database, dovecot, owner="worker-2"):
            row(database)
            bounce(database, dovecot, id)
            wait_until(lambda: is_bounced(database, id), what="it bounced")


@on_sqlite
def test_a_report_that_comes_before_the_reply_is_not_lost(
    database: Database, claims: Claims, dovecot: Dovecot
) -> None:
    other, id = send(database, claims), accept(database)
    attempt = claim(claims, id)
    assert claims.fence(attempt)
    with reading(database, dovecot):
        row(database)
        bounce(database, dovecot, id)
        bounce(database, dovecot, other)
        wait_until(lambda: is_bounced(database, other), what="the later one is read")
        assert claims.finish(attempt, SENT)
        wait_until(lambda: is_bounced(database, id), what="the earlier one is read again")


@on_sqlite
def test_mail_that_comes_while_the_sent_folder_is_searched_is_read(
    database: Database, claims: Claims, dovecot: Dovecot, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, lost = send(database, claims), lose_reply(database, claims, judge=judge())
    search = is_in_sent

    def search_later(connection: MailboxConnection, folder: str, message_id: str) -> bool:
        found = search(connection, folder, message_id)
        bounce(database, dovecot, id)
        # Dovecot notes it now, in a folder that nobody listens to.
        search(connection, "INBOX", message_id)
        return found

    monkeypatch.setattr(reader_module, "is_in_sent", search_later)
    dovecot.deliver(mail(f"{lost}@example.org"), dovecot.sent)
    with reading(database, dovecot):
        row(database)
        make_due(database)
        wait_until(lambda: states(database, lost)[0] == "sent", what="it is found")
        wait_until(lambda: is_bounced(database, id), what="it bounced")


@on_sqlite
def test_a_mail_that_the_server_does_not_give_out_is_skipped(
    database: Database, claims: Claims, dovecot: Dovecot
) -> None:
    ids = [send(database, claims) for _ in range(2)]
    with reading(database, dovecot):
        row(database)
    bounce(database, dovecot, ids[0])
    dovecot.deliver(mail())
    bounce(database, dovecot, ids[1])
    files = sorted((dovecot.maildir / "new").iterdir(), key=lambda file: file.name)
    files[1].chmod(0)
    with reading(database, dovecot):
        for id in ids:
            wait_until(lambda id=id: is_bounced(database, id), what="it is read")  # type: ignore[misc]


@on_sqlite
def test_a_folder_that_cannot_be_moved_to_holds_no_bounce_up(
    database: Database, claims: Claims, dovecot: Dovecot
) -> None:
    ids = [send(database, claims) for _ in range(2)]
    with reading(database, dovecot, folder="Bounces//x"):
        row(database)
        bounce(database, dovecot, ids[0], action="delayed", status="4.4.1")
        bounce(database, dovecot, ids[1])
        wait_until(lambda: is_bounced(database, ids[1]), what="it bounced")
    assert events(database, ids[0]) == ["sent", "delayed"]


@on_sqlite
def test_a_server_that_refuses_to_tell_of_mail_is_logged_once(
    database: Database, claims: Claims, dovecot: Dovecot, caplog: pytest.LogCaptureFixture
) -> None:
    def refusal(tag: bytes) -> list[bytes]:
        return [tag + b" NO not today\r\n"]

    with ScriptedIMAP({"IDLE": refusal}) as imap:
        with reading(database, dovecot, security="none", port=imap.port):
            wait_until(lambda: sum("LOGIN" in one for one in imap.commands) > 3, what="it goes on")
        assert len([one for one in caplog.records if "not today" in one.getMessage()]) == 1
