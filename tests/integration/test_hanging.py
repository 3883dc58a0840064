"""One account whose server hangs keeps no connection, thread or row from another one."""

import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, text

from mailroom.api.http.why import why
from mailroom.delivery import admission as admission_module
from mailroom.delivery import delivery as delivery_module
from mailroom.delivery.admission import Admission
from mailroom.delivery.attempt import AttemptRunner, Sender
from mailroom.delivery.delivery import Delivery
from mailroom.model.account import NextHop, SendingLimit
from mailroom.model.ids import new_id
from mailroom.model.message import Address, Message
from mailroom.model.retry import Schedule
from mailroom.smtp.pool import Sessions
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.events.webhooks import Webhooks
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import MessageDetails, NewMessage, Outbox
from mailroom.store.workers import Heartbeat, hanging_accounts
from tests.services import LEASE_SECONDS, wait_until
from tests.services.processes import Service
from tests.services.schema import ready
from tests.services.smtpd import Hold, ScriptedSMTP

CONNECTIONS = 4
#: Of each of two accounts.
SHARE = CONNECTIONS // 2
HANGS = "has taken no mail since 20"

#: Port and security of a server, by the name of its account.
Servers = Mapping[str, tuple[int, str]]


class Bench:
    """A worker without a broker: threads like Celery's, which take nudges in order, and accounts."""

    def __init__(self, database: Database, servers: Servers, connections: int) -> None:
        hops = {
            name: NextHop(host="127.0.0.1", port=port, security=security, timeout_seconds=60)
            for name, (port, security) in servers.items()
        }
        limits = tuple(SendingLimit(account=name) for name in servers)
        self.admission = Admission(connections, {name: str(hop) for name, hop in hops.items()})
        self.accounts = Accounts(database, limits, self.admission.free)
        self.accounts.register()
        self.database, self.outbox, self.sweeps = (
            database,
            Outbox(database),
            Sweeps(database, LEASE_SECONDS, "resend"),
        )
        self.heartbeat = Heartbeat(
            database, new_id(), "worker@here", ["mail"], hanging=self.admission.hanging
        )
        self.heartbeat.beat()
        self.claims = Claims(
            database, self.heartbeat.id, LEASE_SECONDS, limits, self.admission.free
        )
        senders = {
            name: Sender(Address(f"{name}@example.org"), Sessions(hop))
            for name, hop in hops.items()
        }
        self.delivery = Delivery(
            self.claims, AttemptRunner(senders, Schedule.parse("10s*5"), "resend"), self.admission
        )
        self.threads = ThreadPoolExecutor(connections)

    def accept(
        self, count: int, account: str | None = None, to: str = "bob@example.org"
    ) -> list[str]:
        """Mails that `account` has to send; None: any."""
        ids = [new_id() for _ in range(count)]
        for id in ids:
            message = Message(to=(Address(to),), subject=id, text="x")
            message_id = f"{id}@example.org"
            self.outbox.accept(
                NewMessage(id=id, message=message, message_id=message_id, sender=account)
            )
        return ids

    def nudge(self, ids: list[str], size: int = 1) -> list[Future[bool]]:
        chunks = [ids[at : at + size] for at in range(0, len(ids), size)]
        return [self.threads.submit(self.delivery.deliver, chunk) for chunk in chunks]

    def sweep(self) -> list[str]:
        """Nudge what a sweeper finds in one round."""
        found = self.sweeps.unparked(1000, self.accounts.capacity()) + self.sweeps.unpublished(1000)
        ids = [nudge.id for nudge in found]
        self.nudge(ids)
        return ids

    def comes_to(self, state: str, ids: list[str], count: int) -> bool:
        """Sweep, and tell whether so many of these are in this state."""
        self.sweep()
        return self.states(ids).count(state) == count

    def states(self, ids: list[str]) -> list[str]:
        return [str(self.outbox.state(id)) for id in ids]

    def are_sent(self, ids: list[str]) -> bool:
        return set(self.states(ids)) == {"sent"}

    def details(self, id: str) -> MessageDetails:
        found = self.outbox.details(id)
        assert found
        return found

    def row(self, id: str) -> dict[str, Any]:
        return self.details(id).row

    def sql(self, statement: str) -> None:
        def run(connection: Connection) -> None:
            connection.execute(text(statement))

        self.database.transaction(run)

    def grow_old(self) -> None:
        """Have all messages be older than what a sweeper passes over."""
        self.sql("UPDATE messages SET created_at = created_at - 60000")

    def close(self) -> None:
        self.delivery.stop()
        self.threads.shutdown()
        self.delivery.close()


@contextmanager
def bench(
    database: Database, servers: Servers, *, connections: int = CONNECTIONS
) -> Iterator[Bench]:
    made = Bench(database, servers, connections)
    try:
        yield made
    finally:
        made.close()


def two(
    database: Database,
    smtpd: ScriptedSMTP,
    healthy: ScriptedSMTP,
    *,
    connections: int = CONNECTIONS,
) -> AbstractContextManager[Bench]:
    """Make a bench with the accounts "stuck", whose server is `smtpd`, and "well"."""
    servers = {"stuck": (smtpd.port, "none"), "well": (healthy.port, "none")}
    return bench(database, servers, connections=connections)


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    made = ready(sqlite_url)
    yield made
    made.close()


@pytest.fixture
def healthy() -> Iterator[ScriptedSMTP]:
    with ScriptedSMTP() as server:
        yield server


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An account is known to hang soon."""
    monkeypatch.setattr(admission_module, "HANGS_AFTER_SECONDS", 0.2)


@contextmanager
def hanging(smtpd: ScriptedSMTP, phase: str, match: str = "") -> Iterator[Hold]:
    hold = smtpd.hang(phase, match=match)
    try:
        yield hold
    finally:
        hold.release()


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """Whoever connects here is heard by nobody: no greeting, and no answer to a TLS handshake."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener


@pytest.mark.parametrize("size", [1, 12], ids=["single mails", "bulk"])
@pytest.mark.parametrize("phase", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT"])
def test_all_of_an_account_goes_while_the_server_of_another_hangs(
    sqlite_database: Database, smtpd: ScriptedSMTP, healthy: ScriptedSMTP, phase: str, size: int
) -> None:
    with two(sqlite_database, smtpd, healthy) as made, hanging(smtpd, phase) as hold:
        stuck = made.accept(24, "stuck")
        made.nudge(stuck, size)
        wait_until(
            lambda: len(hold.connections) == SHARE, 60, what="its share of the connections hangs"
        )
        ids = made.accept(20, "well")
        made.nudge(ids[:10], 10)
        made.nudge(ids[10:])
        wait_until(lambda: made.are_sent(ids), 60, what="the other account's mails are sent")
        assert not hold.released.is_set()
        assert smtpd.max_open_connections == SHARE
        hold.release()
        wait_until(
            lambda: made.comes_to("sent", stuck, 24), 60, what="its own are sent when it answers"
        )
    assert len(smtpd.payloads) == len({mail.message_id for mail in smtpd.payloads}) == 24


@pytest.mark.parametrize("size", [1, 12], ids=["single mails", "bulk"])
@pytest.mark.parametrize("security", ["none", "ssl", "starttls"])
def test_all_of_an_account_goes_while_nobody_speaks_where_another_connects(
    sqlite_database: Database, deaf: socket.socket, healthy: ScriptedSMTP, security: str, size: int
) -> None:
    servers = {"stuck": (deaf.getsockname()[1], security), "well": (healthy.port, "none")}
    with bench(sqlite_database, servers) as made:
        made.nudge(made.accept(24, "stuck"), size)
        ids = made.accept(10, "well")
        made.nudge(ids, size)
        wait_until(lambda: made.are_sent(ids), 60, what="the other account's mails are sent")
        deaf.close()


@pytest.mark.usefixtures("hasty")
def test_what_waits_for_a_server_that_hangs_says_so_and_goes_when_it_answers(
    database: Database, smtpd: ScriptedSMTP, healthy: ScriptedSMTP
) -> None:
    with two(database, smtpd, healthy) as made, hanging(smtpd, "DOT") as hold:
        ids = made.accept(12, "stuck")
        made.nudge(ids, 6)
        wait_until(lambda: made.states(ids).count("in_data") == SHARE, 60, what="its share hangs")
        wait_until(
            lambda: made.states(ids).count("queued") == 10,
            60,
            what="what was in line is given back",
        )
        made.grow_old()
        wait_until(lambda: made.comes_to("deferred", ids, 10), 60, what="it waits in the outbox")
        assert made.sweep() == []
        waiting = next(row for row in map(made.row, ids) if row["state"] == "deferred")
        words = why(made.details(waiting["id"]), None, lease_seconds=20, hanging={}, accounts=[])
        assert words.startswith(
            f"waits for a free connection of account stuck: {server_of(smtpd)}, {HANGS}"
        )
        assert (waiting["attempt"] - waiting["given_back"], waiting["next_attempt_at"]) == (0, None)
        hold.release()
        wait_until(lambda: made.comes_to("sent", ids, 12), 60, what="all are sent when it answers")
    assert sorted(mail.message_id for mail in smtpd.payloads) == sorted(
        f"<{id}@example.org>" for id in ids
    )


@pytest.mark.usefixtures("hasty")
def test_a_mail_that_any_account_may_send_goes_by_one_that_does_not_hang(
    database: Database, smtpd: ScriptedSMTP, healthy: ScriptedSMTP
) -> None:
    with two(database, smtpd, healthy) as made, hanging(smtpd, "RCPT") as hold:
        stuck, ids = made.accept(SHARE, "stuck"), made.accept(12)
        made.nudge(stuck)
        wait_until(lambda: len(hold.connections) == SHARE, 60, what="its share hangs")
        made.nudge(ids, 4)
        wait_until(lambda: made.comes_to("sent", ids, 12), 60, what="all are sent")
        assert len(healthy.payloads) == 12


def test_a_mail_with_no_connection_free_waits_in_the_outbox_and_no_client_is_told_of_that(
    database: Database, smtpd: ScriptedSMTP, healthy: ScriptedSMTP, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_module, "WAITING_PER_CONNECTION", 1)
    webhook = Webhooks(database).create("https://example.org/")
    with two(database, smtpd, healthy) as made, hanging(smtpd, "RCPT") as hold:
        ids = made.accept(12, "stuck")
        made.nudge(ids, 12)
        wait_until(
            lambda: made.states(ids).count("deferred") == 12 - 2 * SHARE, 60, what="the rest waits"
        )
        reasons = {row["reason"] for row in map(made.row, ids) if row["state"] == "deferred"}
        assert reasons == {"waits for a free connection of account stuck"}
        hold.release()
        wait_until(lambda: made.comes_to("sent", ids, 12), 60, what="all are sent")
    events = {event["event"] for event in Webhooks(database).page(webhook, limit=100)}
    assert events == {"message.accepted", "message.sent"}


@pytest.mark.parametrize("size", [1, 12], ids=["single mails", "bulk"])
@pytest.mark.parametrize("others", [0, 1], ids=["one account", "two accounts"])
def test_a_worker_that_stops_gives_back_at_once_what_was_not_sent_and_finishes_the_rest(
    database: Database, smtpd: ScriptedSMTP, healthy: ScriptedSMTP, others: int, size: int
) -> None:
    most = CONNECTIONS // (1 + others)
    servers = {"stuck": (smtpd.port, "none")}
    if others:
        servers["well"] = (healthy.port, "none")
    with (
        bench(database, servers) as made,
        hanging(smtpd, "RCPT", "carol@") as envelopes,
        hanging(smtpd, "DOT") as dot,
    ):
        sent, ids = made.accept(1, "stuck"), made.accept(11, "stuck", to="carol@example.org")
        first = sent + ids[: size - 1]
        nudges = made.nudge(first, size)
        wait_until(lambda: bool(dot.connections), 60, what="one is past its fence")
        nudges += made.nudge([id for id in ids if id not in first], size)
        wait_until(
            lambda: len(dot.connections + envelopes.connections) == most, 60, what="all hang"
        )
        made.delivery.stop()
        wait_until(
            lambda: made.states(ids) == ["queued"] * 11, 60, what="all others are given back"
        )
        assert made.states(sent) == ["in_data"]
        assert {made.row(id)["published_at"] for id in ids} == {None}
        dot.release()
        envelopes.release()
        wait_until(lambda: made.are_sent(sent), 60, what="what was past the fence is finished")
        assert others or not all(nudge.result(60) for nudge in nudges)
    assert (made.claims.not_in_hand(), made.states(ids)) == ([], ["queued"] * 11)
    assert [mail.message_id for mail in smtpd.payloads] == [f"<{sent[0]}@example.org>"]


@pytest.mark.usefixtures("hasty")
def test_one_that_must_be_alone_keeps_no_other_account_waiting_for_its_server(
    sqlite_database: Database, smtpd: ScriptedSMTP, healthy: ScriptedSMTP
) -> None:
    with two(sqlite_database, smtpd, healthy) as made, hanging(smtpd, "DOT") as hold:
        begun, suspect = made.accept(1, "stuck"), made.accept(1, "stuck")
        made.sql(f"UPDATE messages SET crashes = 1 WHERE id = '{suspect[0]}'")
        made.nudge(begun)
        wait_until(lambda: len(hold.connections) == 1, 60, what="one hangs that was there before")
        made.nudge(suspect)
        wait_until(
            lambda: len(hold.connections) == 2, 60, what="the one that has to be alone hangs"
        )
        ids = made.accept(10, "well")
        made.nudge(ids)
        wait_until(lambda: made.are_sent(ids), 60, what="the other account's mails are sent")
        hold.release()
        wait_until(
            lambda: made.are_sent(begun + suspect), 60, what="its own are sent when it answers"
        )


def test_one_that_must_be_alone_holds_the_only_thread_for_a_moment(
    sqlite_database: Database,
    smtpd: ScriptedSMTP,
    healthy: ScriptedSMTP,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery_module, "HANGS_AFTER_SECONDS", 0.2)
    monkeypatch.setattr(admission_module, "HANGS_AFTER_SECONDS", 0.2)
    with two(sqlite_database, smtpd, healthy, connections=1) as made, hanging(smtpd, "DOT") as hold:
        suspect, ids = made.accept(1, "stuck"), made.accept(3, "well")
        made.sql(f"UPDATE messages SET crashes = 1 WHERE id = '{suspect[0]}'")
        made.nudge(suspect + ids)
        wait_until(lambda: made.are_sent(ids), 60, what="the other account's mails are sent")
        assert made.states(suspect) == ["in_data"]
        hold.release()
        wait_until(lambda: made.are_sent(suspect), 60, what="its own is sent when it answers")


def test_the_pair_sends_all_of_one_account_while_the_server_of_another_hangs(
    pair: Service, smtpd: ScriptedSMTP, healthy: ScriptedSMTP
) -> None:
    accounts = pair.directory / "accounts.toml"
    accounts.write_text(
        "".join(
            f"""
        [[account]]
        name = "{name}"
        from = "{name}@example.org"
        aliases = "{name}@example.org"
        smtp_host = "{server.host}"
        smtp_port = {server.port}
        smtp_security = "none"
        smtp_auth = "off"
        """
            for name, server in (("stuck", smtpd), ("well", healthy))
        )
    )
    pair.settings |= {"ACCOUNTS_FILE": str(accounts), "SMTP_CONNECTIONS": str(CONNECTIONS)}
    pair.web()
    worker = pair.worker()
    with hanging(smtpd, "DOT") as hold:
        stuck = [
            pair.post("/v1/messages", **{"from": "stuck@example.org"})
            for _ in range(3 * CONNECTIONS)
        ]
        wait_until(lambda: len(hold.connections) == SHARE, 60, what="its share hangs")
        ids = [pair.post("/v1/messages", **{"from": "well@example.org"}) for _ in range(10)]
        assert {pair.final(id, 60)["status"] for id in ids} == {"sent"}
        words = f"waits for a free connection of account stuck: {server_of(smtpd)}, {HANGS}"
        wait_until(
            lambda: sum(words in pair.message(id)["why"] for id in stuck) == len(stuck) - SHARE,
            60,
            what="the rest says so",
        )
    assert {pair.final(id, 60)["status"] for id in stuck} == {"sent"}
    assert len(smtpd.payloads) == len(stuck)
    assert worker.stop(60) == 0


@pytest.mark.usefixtures("hasty")
def test_where_the_only_account_hangs_it_is_named_to_all_that_wait_until_it_answers(
    app: Flask, client: FlaskClient, smtpd: ScriptedSMTP
) -> None:
    database = app.extensions["mailasync"].outbox.database
    with bench(database, {"default": (smtpd.port, "none")}) as made, hanging(smtpd, "DOT") as hold:
        begun, waiting = made.accept(CONNECTIONS), made.accept(1)
        made.outbox.mark_published(waiting)
        made.nudge(begun)
        wait_until(made.admission.hanging, 60, what="all connections hang")
        assert told(client, waiting[0]) == "waits for a worker to take it"
        made.heartbeat.beat()
        words = f"{server_of(smtpd)}, {HANGS}"
        assert told(client, waiting[0]).startswith(
            f"waits for a free connection of account default: {words}"
        )
        assert f"a worker is handing it to the mail server, attempt 1; {words}" in told(
            client, begun[0]
        )
        assert f"all of a worker's connections are taken: {words}" in account(client)
        hold.release()
        wait_until(lambda: made.are_sent(begun), 60, what="they are sent")
        made.heartbeat.beat()
        assert told(client, waiting[0]) == "waits for a worker to take it"
        assert account(client) == "mail goes by this account"


def test_what_a_worker_says_of_an_account_is_forgotten_with_it(database: Database) -> None:
    for id in ("one", "two"):
        Heartbeat(
            database, id, f"{id}@here", ["mail"], hanging=lambda: {"ops": "its server hangs"}
        ).beat()
    assert hanging_accounts(database, 20) == {"ops": "its server hangs"}
    Heartbeat(database, "one", "one@here", ["mail"]).beat()
    assert hanging_accounts(database, 20) == {"ops": "its server hangs"}
    Heartbeat(database, "two", "two@here", ["mail"]).stop()
    assert hanging_accounts(database, 20) == {}


def told(client: FlaskClient, id: str) -> str:
    return str(client.get(f"/v1/messages/{id}").get_json()["why"])


def account(client: FlaskClient) -> str:
    return str(client.get("/v1/accounts").get_json()["data"][0]["why"])


def server_of(smtpd: ScriptedSMTP) -> str:
    return f"its server, {smtpd.host}:{smtpd.port}"
