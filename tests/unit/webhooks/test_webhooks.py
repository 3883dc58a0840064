"""Webhooks: which events are delivered, how they are signed and repeated, and which URLs are never called."""

import json
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trustme
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, select, text
from standardwebhooks import Webhook

from mailroom.model.errors import StoreUnavailable
from mailroom.model.message import State
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import contents, deliveries, events, jobs, messages, tags, workers
from mailroom.store.events.deliveries import DeliveryResult, WebhookDeliveries
from mailroom.store.events.timeline import record
from mailroom.store.events.webhook_events import OWN, enqueue_webhooks, have_own
from mailroom.store.events.webhooks import Webhooks
from mailroom.store.jobs.jobs import JobEnd, JobState, let_go
from mailroom.store.keys.api_keys import Scope
from mailroom.store.maintenance.retention import Retention
from mailroom.store.workers import Heartbeat
from mailroom.webhooks.http import WebhookExchange, WebhookResponse
from mailroom.webhooks.notifier import SCHEDULE, Notifier, judge, retry_after_seconds
from mailroom.webhooks.ssrf import AddressGuard, ForbiddenURL, is_public
from tests.services import is_alive, wait_until
from tests.services.locked_file import kept_waiting
from tests.services.logs import broken_log
from tests.services.processes import PROJECT, Service
from tests.services.schema import on_postgresql, on_sqlite, ready
from tests.unit.api.test_messages import MAIL

LEASE_SECONDS = 20.0
PUBLIC = "https://a.example.org/hook"
HOST = "hooks.example.org"


def transact(database: Database, work: Callable[[Connection], object]) -> None:
    def run(connection: Connection) -> None:
        work(connection)

    database.transaction(run)


def lose(database: Database, owner: str) -> None:
    """Let the lease of a worker run out."""
    late = workers.update().values(seen_at=0).where(workers.c.id == owner)
    transact(database, lambda connection: connection.execute(late))


def message(
    database: Database,
    id: str,
    *,
    webhook: str | None = None,
    state: State = State.SENT,
    **more: Any,
) -> str:
    def work(connection: Connection) -> None:
        connection.execute(
            messages.insert().values(
                id=id,
                state=state,
                queue="mail",
                message_id=f"{id}@example.org",
                created_at=now_ms(),
                attempt=1,
                uncertain_attempts=0,
                crashes=0,
                webhook=webhook,
                **more,
            )
        )
        connection.execute(
            contents.insert().values(
                id=id, content=json.dumps({"subject": "x", "metadata": {"order": "4711"}})
            )
        )
        connection.execute(tags.insert(), [{"tag": tag, "id": id} for tag in ("b", "a")])

    transact(database, work)
    return id


def happened(database: Database, id: str, event: str = "sent", **more: Any) -> None:
    transact(database, lambda connection: record(connection, [{"id": id, "event": event, **more}]))


def rows(database: Database) -> list[Any]:
    return list(
        database.read(
            lambda connection: connection.execute(
                select(deliveries).order_by(deliveries.c.number)
            ).all()
        )
    )


def make_due(database: Database) -> None:
    transact(
        database,
        lambda connection: connection.execute(
            deliveries.update()
            .values(next_attempt_at=now_ms())
            .where(deliveries.c.next_attempt_at.is_not(None))
        ),
    )


def worker(
    database: Database, id: str = "worker-1", *, lease_seconds: float = LEASE_SECONDS
) -> WebhookDeliveries:
    Heartbeat(database, id, f"{id}@host", ["webhooks"]).beat()
    return WebhookDeliveries(database, id, lease_seconds)


# --- which events are delivered -----------------------------------------------------------------


def test_who_listens_is_told_what_it_wants_and_in_the_same_commit(database: Database) -> None:
    hooks = Webhooks(database)
    everything, sent = (
        hooks.create("https://a.example.org/"),
        hooks.create("https://b.example.org/", ["message.sent"]),
    )
    disabled = hooks.create("https://c.example.org/")
    assert hooks.change(disabled, enabled=False)
    message(database, "one")
    happened(database, "one", attempt=1, detail="250 OK")
    happened(database, "one", "deferred")
    found = [
        (row.webhook_id, row.event, row.status, row.message_attempt, row.detail, row.state)
        for row in rows(database)
    ]
    assert sorted(found, key=str) == sorted(
        [
            (everything, "message.sent", "sent", 1, "250 OK", "pending"),
            (sent, "message.sent", "sent", 1, "250 OK", "pending"),
            (everything, "message.deferred", "sent", None, None, "pending"),
        ],
        key=str,
    )

    def undone(connection: Connection) -> None:
        record(connection, [{"id": "one", "event": "failed"}])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        transact(database, undone)
    assert len(rows(database)) == 3


def test_without_webhooks_nothing_is_written(database: Database) -> None:
    message(database, "one")
    happened(database, "one")
    assert rows(database) == []


@pytest.mark.parametrize("event", ["job succeeded", "worker lost", "resent", "sending"])
def test_what_is_no_change_of_a_messages_state_is_not_told(database: Database, event: str) -> None:
    Webhooks(database).create("https://a.example.org/")
    message(database, "one")
    happened(database, "one", event)
    happened(database, "no message")
    assert rows(database) == []


def test_a_message_tells_its_own_url_and_the_others(database: Database) -> None:
    message(database, "plain")
    message(database, "own", webhook="https://me.example.org/")
    transact(
        database,
        lambda connection: enqueue_webhooks(
            connection,
            [
                {"id": "plain", "event": "accepted", "webhook": None},
                {"id": "own", "event": "accepted", "webhook": "https://me.example.org/"},
            ],
        ),
    )
    happened(database, "plain")
    happened(database, "own")
    assert [(row.message_id, row.webhook_id, row.event) for row in rows(database)] == [
        ("own", OWN, "message.accepted"),
        ("own", OWN, "message.sent"),
    ]
    due = worker(database).claim()
    assert (
        due
        and due.url == "https://me.example.org/"
        and due.secret == (Webhooks(database).get(OWN) or {})["secret"]
    )
    Webhooks(database).create("https://a.example.org/")
    happened(database, "own", "failed")
    assert len(rows(database)) == 4


@pytest.mark.parametrize(
    ("end", "event"),
    [
        (JobState.SUCCEEDED, "message.queued"),
        (JobState.FAILED, "message.failed"),
        (JobState.CANCELED, "message.canceled"),
    ],
)
def test_the_end_of_a_job_is_told_as_what_it_means_for_the_message(
    database: Database, end: JobState, event: str
) -> None:
    Webhooks(database).create("https://a.example.org/")
    transact(
        database,
        lambda connection: connection.execute(
            jobs.insert().values(
                id="job",
                name="simulate",
                args="{}",
                queue="jobs",
                state="running",
                progress=0,
                timeout_ms=1,
                attempt=1,
                max_attempts=1,
                created_at=now_ms(),
            )
        ),
    )
    message(database, "one", state=State.WAITING, job_id="job")
    transact(
        database,
        lambda connection: let_go(connection, "job", JobEnd(state=end, error="no"), attempt=1),
    )
    assert [(row.message_id, row.event, row.status) for row in rows(database)] == [
        ("one", event, event.removeprefix("message."))
    ]


def test_a_thousand_at_once_are_told_of(database: Database) -> None:
    Webhooks(database).create("https://a.example.org/")
    ids = [f"m-{n}" for n in range(2100)]
    transact(
        database,
        lambda connection: connection.execute(
            messages.insert().values(
                state="sent",
                queue="mail",
                message_id="m",
                created_at=now_ms(),
                attempt=1,
                uncertain_attempts=0,
                crashes=0,
            ),
            [{"id": id} for id in ids],
        ),
    )
    transact(
        database,
        lambda connection: enqueue_webhooks(
            connection, [{"id": id, "event": "accepted"} for id in ids]
        ),
    )
    assert [row.message_id for row in rows(database)] == ids


def test_what_was_told_goes_with_its_message(database: Database) -> None:
    hooks = Webhooks(database)
    test = hooks.test(hooks.create("https://a.example.org/"))["number"]
    for id in ("old", "new"):
        happened(database, message(database, id))
    day = 24 * 3600_000
    old = (
        (messages, messages.c.id == "old", "created_at"),
        (events, events.c.id == "old", "at"),
        (deliveries, deliveries.c.number == test, "at"),
    )
    transact(
        database,
        lambda connection: [
            connection.execute(table.update().where(which).values({column: now_ms() - 40 * day}))
            for table, which, column in old
        ],
    )
    Retention(database, 30).purge()
    assert [row.message_id for row in rows(database)] == ["new"]


# --- who has it ----------------------------------------------------------------------------------------------------


def test_a_delivery_has_one_owner_and_a_failed_one_waits(database: Database) -> None:
    hook = Webhooks(database).create("https://a.example.org/")
    happened(database, message(database, "one"))
    one, two = worker(database, "one"), worker(database, "two")
    assert one.is_due()
    due = one.claim()
    assert due and (due.attempt, due.webhook_id, due.url) == (1, hook, "https://a.example.org/")
    assert due.data == {
        "id": "one",
        "status": "sent",
        "tags": ["a", "b"],
        "metadata": {"order": "4711"},
    }
    assert two.claim() is None and not two.is_due()
    assert one.finish(due, DeliveryResult(code=500, reply="no", wait_seconds=60))
    assert not one.finish(due, DeliveryResult(delivered=True))
    assert two.claim() is None
    make_due(database)
    assert two.claim(busy=[hook]) is None
    again = two.claim()
    assert again and (again.attempt, again.id) == (2, due.id)
    assert two.finish(again, DeliveryResult(delivered=True, code=204))
    [row] = rows(database)
    assert (row.state, row.code, row.attempt, row.owner, row.next_attempt_at) == (
        "delivered",
        204,
        2,
        None,
        None,
    )


def test_stopping_gives_back_and_the_attempt_does_not_count(database: Database) -> None:
    Webhooks(database).create("https://a.example.org/")
    happened(database, message(database, "one"))
    one = worker(database)
    due = one.claim()
    assert due and one.release() == 1
    assert not one.finish(due, DeliveryResult(delivered=True))
    again = worker(database, "two").claim()
    assert again and (again.attempt, again.counted) == (2, 1)


def test_what_a_dead_worker_had_is_given_back(database: Database) -> None:
    Webhooks(database).create("https://a.example.org/")
    happened(database, message(database, "one"))
    assert worker(database, "dead").claim()
    alive = worker(database, "alive")
    assert alive.give_back() == 0
    lose(database, "dead")
    assert alive.give_back() == 1
    again = alive.claim()
    assert again and again.attempt == 2


@on_sqlite
def test_no_worker_is_taken_for_dead_after_a_wait_for_the_database(database: Database) -> None:
    Webhooks(database).create("https://a.example.org/")
    happened(database, message(database, "one"))
    assert worker(database, "late").claim()
    one = worker(database, "one")
    hasty = replace(one, lease_seconds=0.2)
    lose(database, "late")
    with pytest.raises(StoreUnavailable, match="was away"):
        kept_waiting(database, hasty.give_back, seconds=0.2)
    assert [row.owner for row in rows(database)] == ["late"]


def test_a_claim_whose_word_got_lost_is_given_back_at_the_second_look(database: Database) -> None:
    Webhooks(database).create("https://a.example.org/")
    happened(database, message(database, "one"))
    one = worker(database)
    assert one.claim() and (one.give_back(), one.give_back()) == (0, 0)
    one._in_hand.clear()
    assert (one.give_back(), one.give_back()) == (0, 1)


def told_and_recorded(database: Database, reply: str) -> tuple[str, str | None]:
    """Deliver an event, to which the receiver gives this answer; return how that is recorded."""
    Webhooks(database).create("https://a.example.org/")
    happened(database, message(database, "one"))
    one = worker(database)
    due = one.claim()
    assert due and one.finish(due, DeliveryResult(delivered=True, code=200, reply=reply))
    assert (one.give_back(), one.give_back(), one.claim()) == (0, 0, None)
    [row] = rows(database)
    return row.state, row.reply


def test_an_answer_that_cannot_be_stored_ends_its_delivery_all_the_same(database: Database) -> None:
    assert told_and_recorded(database, "✓ half \ud800") == ("delivered", "? half ?")


def test_an_answer_beyond_the_databases_encoding_ends_its_delivery_all_the_same(
    postgres_url: str,
) -> None:
    database = ready(postgres_url)
    transact(
        database,
        lambda connection: connection.execute(
            text(
                "UPDATE pg_database SET encoding = pg_char_to_encoding('LATIN1') WHERE datname = current_database()"
            )
        ),
    )
    database.engine.dispose()  # What is connected already keeps the encoding that was.
    assert told_and_recorded(database, "✓ naïve") == ("delivered", "? na?ve")
    database.close()


def test_a_webhook_that_was_disabled_or_deleted_is_told_nothing_more(database: Database) -> None:
    hooks = Webhooks(database)
    hook = hooks.create("https://a.example.org/")
    happened(database, message(database, "one"))
    hooks.change(hook, enabled=False)
    assert [(row.state, row.reply) for row in rows(database)] == [
        ("failed", "the webhook was disabled")
    ]
    assert not hooks.replay(hook, rows(database)[0].number)
    hooks.change(hook, enabled=True)
    assert hooks.replay(hook, rows(database)[0].number)
    assert hooks.delete(hook) and rows(database) == []


# --- the judgement -------------------------------------------------------------------------------------------------


def test_the_schedule_ends_after_ten_attempts() -> None:
    waits = [judge(WebhookResponse(500, "no"), attempt).wait_seconds for attempt in range(1, 11)]
    assert waits[-1] is None
    for wait, expected in zip(
        waits, (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400), strict=False
    ):
        assert wait is not None and 0.8 * expected <= wait <= 1.2 * expected
    assert len(SCHEDULE.waits) == 9


@pytest.mark.parametrize("code", [301, 302, 400, 404, 500, None])
def test_only_2xx_is_delivered(code: int | None) -> None:
    assert judge(WebhookResponse(code, ""), 1).wait_seconds is not None
    assert judge(WebhookResponse(204, ""), 1) == DeliveryResult(delivered=True, code=204)


def test_retry_after_is_honoured_and_bounded() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
    waits = [
        judge(WebhookResponse(code, "", retry_after), 1).wait_seconds
        for code, retry_after in (
            (429, "120"),
            (503, later),
            (429, "9999999999999"),
            (503, "soon"),
            (500, "120"),
            (429, "1"),
        )
    ]
    assert waits[0] == 120 and 590 < (waits[1] or 0) <= 600 and waits[2] == 86_400
    assert all(wait is not None and 4 <= wait <= 6 for wait in waits[3:])
    assert retry_after_seconds("٣") == retry_after_seconds("-5") == 0


# --- what is never called ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "0.1.2.3",
        "100.64.0.1",
        "192.0.0.8",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "2002:7f00:1::",
        "2001::1",
        "2001:db8::1",
        "100::1",
        "fec0::1",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(ip_address(address))
    guard = AddressGuard(resolve=resolving("93.184.215.14", address))
    target = guard.read(f"https://{HOST}/")
    with pytest.raises(
        ForbiddenURL, match=r"^expected hooks\.example\.org to have public addresses only$"
    ):
        guard.addresses(target)


@pytest.mark.parametrize(
    "address",
    ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"],
)
def test_addresses_that_are_public(address: str) -> None:
    guard = AddressGuard(resolve=resolving(address))
    assert guard.addresses(guard.read(f"https://{HOST}/")) == [address]


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example.org/",
        "ftp://a.example.org/",
        "//a.example.org/",
        "https:a.example.org",
        "https://",
        "https:///path",
        "a.example.org",
        "https://user:secret@a.example.org/",
        "https://user@a.example.org/",
        "https://a.example.org:0/",
        "https://a.example.org:65536/",
        "https://a.example.org:port/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest",
        "https://localhost/",
        "https://a.localhost./",
        "https://exa mple.org/",
        "https://a.example.org/\r\nX: y",
        "https://a.example.org\\@b/",
        "https://a.example.org/#fragment",
        "https://bücher.example/",
        "https://a..example.org/",
        "https://[::1/",
        "https://[v1.x]/",
        "https://a.example.org/" + "a" * 2000,
        " https://a.example.org/",
        "https://%31%32%37.0.0.1/",
        "",
    ],
)
def test_urls_that_may_not_be_named(url: str) -> None:
    with pytest.raises(ForbiddenURL, match=r"^expected ") as caught:
        AddressGuard().read(url)
    assert "secret" not in str(caught.value)


def test_urls_that_may_be_named() -> None:
    for url, target in {
        "https://a.example.org": ("https", "a.example.org", 443, "/"),
        "HTTPS://A.example.org:8443/x?y=1": ("https", "a.example.org", 8443, "/x?y=1"),
        "https://[2606:4700:4700::1111]:444/": ("https", "2606:4700:4700::1111", 444, "/"),
    }.items():
        assert AddressGuard().read(url) == target
    assert (
        AddressGuard().read("https://[2606:4700:4700::1111]:444/").authority
        == "[2606:4700:4700::1111]:444"
    )
    assert AddressGuard(to_loopback=True).read("http://localhost:8000/").port == 8000


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost"])
def test_other_ways_to_write_this_machine_are_found_out(host: str) -> None:
    guard = AddressGuard()

    def call() -> None:
        guard.addresses(guard.read(f"https://{host}/"))

    with pytest.raises((ForbiddenURL, OSError)):
        call()


def test_in_clear_only_this_machine_is_called_and_no_other_private_one() -> None:
    for url, address in (
        ("http://a.example.org/", "1.1.1.1"),
        ("https://a.example.org/", "10.0.0.1"),
    ):
        guard = AddressGuard(to_loopback=True, resolve=resolving(address))
        target = guard.read(url)
        with pytest.raises(ForbiddenURL):
            guard.addresses(target)


def resolving(*addresses: str) -> Callable[..., Any]:
    return lambda host, port, **more: [
        (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
        for one in addresses
    ]


# --- over the wire -------------------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """A client's HTTPS server for hooks.example.org, on 127.0.0.1; it answers as a test scripts, and 200 after that."""

    authority: trustme.CA = field(default_factory=trustme.CA)
    names: tuple[str, ...] = (HOST, "127.0.0.1")
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    script: list[Callable[[Any], None]] = field(default_factory=list)

    def __enter__(self) -> "Receiver":
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append(
                    (self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                )
                (receiver.script.pop(0) if receiver.script else partial(answer, status=200))(self)

            do_GET = do_POST

            def log_message(self, *arguments: object) -> None: ...

        class Server(ThreadingHTTPServer):
            def handle_error(self, *arguments: object) -> None:
                """A client that hung up is no trouble."""

        self.server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*self.names).configure_cert(context)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.05}
        )
        self.thread.start()
        return self

    def __exit__(self, *what: object) -> None:
        self.server.shutdown()
        self.thread.join(60)
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.server.server_port}/hook?a=1"

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def exchange(self, **more: Any) -> WebhookExchange:
        return WebhookExchange(self.guard, self.context, **more)

    @property
    def guard(self) -> AddressGuard:
        return AddressGuard(to_loopback=True, resolve=resolving("127.0.0.1"))


def answer(handler: Any, *, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    with suppress(OSError):  # The other side need not read it all.
        handler.wfile.write(body)


def hang(go_on: threading.Event, handler: Any) -> None:
    go_on.wait(60)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture
def notifier(database: Database, receiver: Receiver) -> Iterator[Notifier]:
    made = Notifier(worker(database), receiver.guard, threads=2, context=receiver.context)
    made.start()
    yield made
    made.close()


def is_settled(database: Database, *states: str) -> bool:
    return [row.state for row in rows(database)] == list(states) and not any(
        row.owner for row in rows(database)
    )


def test_a_telling_is_signed_and_keeps_its_id_over_attempts(
    database: Database, receiver: Receiver, notifier: Notifier
) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    hook = Webhooks(database).get(Webhooks(database).create(receiver.url)) or {}
    receiver.script += [partial(answer, status=500, body=b"not\nnow"), partial(answer, status=204)]
    happened(database, message(database, "one"), attempt=1, detail="250 OK")
    notifier.watch()
    wait_until(
        lambda: is_settled(database, "pending") and rows(database)[0].code == 500,
        what="it was refused",
    )
    assert rows(database)[0].reply == "not now" and rows(database)[0].next_attempt_at is not None
    make_due(database)
    notifier.watch()
    wait_until(lambda: is_settled(database, "delivered"), what="it is told")
    (path, first, body), (_, second, again) = receiver.requests
    assert (
        path == "/hook?a=1"
        and first["host"] == f"{HOST}:{receiver.server.server_port}"
        and body == again
    )
    assert first["webhook-id"] == second["webhook-id"]
    payload = Webhook(hook["secret"]).verify(body, second)
    assert payload == {
        "type": "message.sent",
        "timestamp": payload["timestamp"],
        "data": {
            "id": "one",
            "status": "sent",
            "attempt": 1,
            "detail": "250 OK",
            "tags": ["a", "b"],
            "metadata": {"order": "4711"},
        },
    }
    assert began <= datetime.fromisoformat(payload["timestamp"]) <= datetime.now(UTC)
    row = rows(database)[0]
    assert (row.code, row.attempt, row.next_attempt_at) == (204, 2, None)


def test_410_disables_the_webhook(
    database: Database, receiver: Receiver, notifier: Notifier
) -> None:
    hook = Webhooks(database).create(receiver.url)
    receiver.script.append(partial(answer, status=410))
    happened(database, message(database, "one"))
    notifier.watch()
    wait_until(lambda: is_settled(database, "failed"), what="it is given up")
    row = Webhooks(database).get(hook) or {}
    assert (row["state"], row["reason"]) == ("disabled", "Gone")
    happened(database, "one", "failed")
    assert len(rows(database)) == 1


def test_410_of_a_messages_own_url_disables_no_other(
    database: Database, receiver: Receiver, notifier: Notifier
) -> None:
    transact(database, have_own)
    receiver.script.append(partial(answer, status=410))
    happened(database, message(database, "one", webhook=receiver.url))
    notifier.watch()
    wait_until(lambda: is_settled(database, "failed"), what="it is given up")
    assert (Webhooks(database).get(OWN) or {})["state"] == "enabled"


def now_of(database: Database) -> int:
    return database.read(lambda connection: connection.scalar(select(now_ms()))) or 0


def test_429_waits_as_long_as_the_server_asks(
    database: Database, receiver: Receiver, notifier: Notifier
) -> None:
    before = now_of(database)
    Webhooks(database).create(receiver.url)
    receiver.script.append(partial(answer, status=429, Retry_After="3000"))
    happened(database, message(database, "one"))
    notifier.watch()
    wait_until(lambda: rows(database)[0].code == 429, what="it was refused")
    assert before + 3_000_000 <= rows(database)[0].next_attempt_at <= now_of(database) + 3_000_000


def test_stopping_breaks_off_what_is_under_way_and_another_tells_it(
    database: Database, receiver: Receiver, notifier: Notifier
) -> None:
    Webhooks(database).create(receiver.url)
    go_on = threading.Event()
    receiver.script.append(partial(hang, go_on))
    happened(database, message(database, "one"))
    notifier.watch()
    wait_until(lambda: receiver.requests, what="it is under way")
    notifier.close()
    go_on.set()
    row = rows(database)[0]
    assert (row.state, row.owner, row.attempt - row.excused) == ("pending", None, 0)
    other = Notifier(worker(database, "other"), receiver.guard, threads=1, context=receiver.context)
    other.start()
    wait_until(lambda: is_settled(database, "delivered"), what="another has told it")
    other.close()


def test_a_webhook_that_hangs_leaves_threads_to_the_others(
    database: Database, receiver: Receiver
) -> None:
    go_on = threading.Event()
    receiver.script += [partial(hang, go_on)] * 4
    slow = Webhooks(database).create(receiver.url, ["message.sent"])
    for n in range(10):
        happened(database, message(database, f"slow-{n}"))
    made = Notifier(worker(database), receiver.guard, threads=5, context=receiver.context)
    made.start()
    wait_until(lambda: len(receiver.requests) == 4, what="it has all threads that it may have")
    Webhooks(database).create(receiver.url, ["message.failed"])
    happened(database, "slow-0", "failed")
    made.watch()
    wait_until(
        lambda: [row.state for row in rows(database) if row.webhook_id != slow] == ["delivered"],
        what="the other is told",
    )
    assert sum(bool(row.owner) for row in rows(database)) == 4
    go_on.set()
    made.close()


def test_threads_that_ended_are_started_anew(
    database: Database, receiver: Receiver, notifier: Notifier
) -> None:
    Webhooks(database).create(receiver.url)
    for n in range(3):
        happened(database, message(database, f"mail-{n}"))
    with broken_log():
        notifier.wake()
        wait_until(lambda: is_settled(database, *["delivered"] * 3), 60, what="all are told")


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.script.append(partial(answer, status=302, Location=receiver.url))
    assert receiver.exchange().post(receiver.url, b"{}", {}).code == 302
    assert len(receiver.requests) == 1


def test_no_proxy_of_the_environment_is_asked(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/")
    assert receiver.exchange().post(receiver.url, b"{}", {}).code == 200


def test_a_huge_answer_is_read_up_to_its_first_words(receiver: Receiver) -> None:
    taken: list[int] = []

    def without_end(handler: Any) -> None:
        handler.send_response(500)
        handler.send_header("Content-Length", str(10**9))
        handler.end_headers()
        with suppress(OSError):
            while True:
                taken.append(handler.wfile.write(b"x" * 100_000))

    receiver.script.append(without_end)
    got = receiver.exchange().post(receiver.url, b"{}", {})
    assert (got.code, got.text) == (500, "x" * 300)
    assert sum(taken) < 50_000_000, (
        "the rest was read, and not only what the system keeps between the two"
    )


def test_the_name_is_resolved_once_and_that_address_is_called(receiver: Receiver) -> None:
    resolved: list[str] = []

    def resolve(host: str, port: int, **more: Any) -> Any:
        # At the second time it would be another, as in DNS rebinding.
        resolved.append(host)
        return resolving("127.0.0.1" if len(resolved) == 1 else "127.0.0.9")(host, port)

    guard = AddressGuard(to_loopback=True, resolve=resolve)
    assert WebhookExchange(guard, receiver.context).post(receiver.url, b"{}", {}).code == 200
    assert resolved == [HOST] and len(receiver.requests) == 1


def test_a_private_address_is_not_even_connected_to(receiver: Receiver) -> None:
    guard = AddressGuard(resolve=resolving("127.0.0.1"))
    got = WebhookExchange(guard, receiver.context).post(receiver.url, b"{}", {})
    assert (got.code, got.text) == (
        None,
        f"not called: expected {HOST} to have public addresses only",
    )
    assert receiver.requests == []


@pytest.mark.parametrize("wrong", ["name", "authority"])
def test_a_certificate_is_verified(wrong: str) -> None:
    with Receiver(names=("mx.example.net" if wrong == "name" else HOST,)) as receiver:
        trusted = receiver.context if wrong == "name" else ssl.create_default_context()
        got = WebhookExchange(receiver.guard, trusted).post(receiver.url, b"{}", {})
        assert got.code is None and "certificate" in got.text.lower() and receiver.requests == []


@contextmanager
def speaking(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Yield the URL of a server that speaks so with whoever comes first, once it has the request."""

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            line, _ = listener.accept()
            with line:
                line.recv(10_000)
                serve(line)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        thread.join(60)


def response_to(raw: bytes, *, keeps_open: bool = False, resets: bool = False) -> WebhookResponse:
    """Read this from a server that then hangs up; or resets the connection, or waits for us to do so."""

    def serve(line: socket.socket) -> None:
        line.sendall(raw)
        if resets:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while keeps_open and line.recv(10_000):
            pass

    with speaking(serve) as url:
        return WebhookExchange(
            AddressGuard(to_loopback=True), ssl.create_default_context(), 30
        ).post(url, b"{}", {})


@pytest.mark.parametrize("drip", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_a_server_that_answers_byte_by_byte_is_given_up_in_time(drip: bytes) -> None:
    over = threading.Event()

    def serve(line: socket.socket) -> None:
        line.sendall(drip)
        while not over.wait(0.1):
            line.sendall(drip if b"100" in drip else b"x")

    with speaking(serve) as url:
        got = WebhookExchange(
            AddressGuard(to_loopback=True), ssl.create_default_context(), 1.0
        ).post(url, b"{}", {})
        over.set()
    assert got == WebhookResponse(None, "no answer in time")


def test_of_a_header_that_never_ends_the_status_counts() -> None:
    over = threading.Event()

    def serve(line: socket.socket) -> None:
        line.sendall(b"HTTP/1.1 200 Fine\r\nX: ")
        while not over.wait(0.05):
            line.sendall(b"x")

    with speaking(serve) as url:
        got = WebhookExchange(
            AddressGuard(to_loopback=True), ssl.create_default_context(), 1.0
        ).post(url, b"{}", {})
        over.set()
    assert got == WebhookResponse(200, "Fine")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00\xff" * 100,
        b"SSH-2.0-x\r\n",
        b"<html>It works!</html>",
        b"HTTP/1.1 2 0\r\n\r\n",
        b"HTTP/1.1 20",
        b"HTTP/1.1 200" + b"x" * 200_000,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 1000 + b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=[
        "nothing",
        "zeros",
        "ssh",
        "HTTP/0.9",
        "no code",
        "half a code",
        "a status line without end",
        "nothing after 103",
        "a thousand times 102",
    ],
)
def test_what_is_no_http_is_no_answer(raw: bytes) -> None:
    got = response_to(raw)
    assert got.code is None and got.text


@pytest.mark.parametrize(
    "interim", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"103", b"199 Wait"]
)
def test_the_answer_is_the_one_after_those_that_are_interim(interim: bytes) -> None:
    before = b"HTTP/1.1 " + interim + b"\r\nLink: </x>; rel=preload\r\n\r\n"
    for count in (1, 3):
        got = response_to(before * count + b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\nnot now")
        assert got == WebhookResponse(503, "not now", "7")


ANSWERED = {
    "200 header fields": (b"\r\n" + b"X: y\r\n" * 200 + b"Content-Length: 4\r\n\r\ndone", "done"),
    "a field of 100 kB": (
        b" OK\r\nX: " + b"x" * 100_000 + b"\r\nContent-Length: 4\r\n\r\ndone",
        "done",
    ),
    "2 MB of fields": (b" OK\r\n" + b"X: y\r\n" * 300_000, "OK"),
    "chunks, and a trailer": (
        b" OK\r\nTransfer-Encoding: chunked\r\n\r\n4;x=1\r\ndone\r\n0\r\nX: y\r\n\r\n",
        "done",
    ),
    "chunks that are none": (b" OK\r\nTransfer-Encoding: chunked\r\n\r\ndone", "OK"),
    "a length that is none": (b" OK\r\nContent-Length: many\r\n\r\ndone", "OK"),
    "half a header": (b" OK\r\nX", "OK"),
    "no header": (b" OK\n", "OK"),
    "lines without CR": (b" OK\nContent-Length: 4\n\ndone", "done"),
    "fields that are none": (b" OK\r\n\xff\r\n: \r\nX\r\n\r\ndone", "done"),
}


@pytest.mark.parametrize("name", ANSWERED)
@pytest.mark.parametrize("resets", [False, True], ids=["closed", "reset"])
def test_an_answer_whose_status_was_read_is_one_whatever_follows(name: str, resets: bool) -> None:
    rest, words = ANSWERED[name]
    got = response_to(b"HTTP/1.1 200" + rest, resets=resets)
    assert got.code == 200
    assert resets or got.text == words


@pytest.mark.parametrize(
    ("head", "code"),
    [
        (b"204 No Content\r\n\r\n", 204),
        (b"200 OK\r\nContent-Length: 0\r\n\r\n", 200),
        (b"304 As it was\r\n\r\n", 304),
        (b"101 Switching Protocols\r\nConnection: upgrade\r\n\r\nx", 101),
    ],
)
def test_a_server_that_keeps_the_connection_is_not_waited_for(head: bytes, code: int) -> None:
    assert response_to(b"HTTP/1.1 " + head, keeps_open=True).code == code


def test_a_name_that_there_is_not_and_a_closed_port_are_told() -> None:
    guard = AddressGuard(to_loopback=True)
    for url in ("https://nobody.invalid/", "http://127.0.0.1:9/"):
        got = WebhookExchange(guard, ssl.create_default_context(), 10).post(url, b"{}", {})
        assert (
            got.code is None
            and ("gaierror" if "nobody" in url else "ConnectionRefusedError") in got.text
        )


WORKER = """import sys, threading, ssl
from mailroom.webhooks.ssrf import AddressGuard
from mailroom.store.db.database import Database
from mailroom.store.events.deliveries import WebhookDeliveries
from mailroom.store.workers import Heartbeat
from mailroom.webhooks.notifier import Notifier
database = Database(sys.argv[1])
Heartbeat(database, sys.argv[2], "killed@host", ["webhooks"]).beat()
Notifier(WebhookDeliveries(database, sys.argv[2], 20), AddressGuard(to_loopback=True)).start()
threading.Event().wait()"""


def test_a_worker_killed_in_the_middle_has_it_told_again(
    database: Database, database_url: str, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    url = receiver.url.replace(HOST, "127.0.0.1")
    hook = Webhooks(database).create(url)
    happened(database, message(database, "one"))
    go_on = threading.Event()
    receiver.script.append(partial(hang, go_on))
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, database_url, "killed"],
        cwd=PROJECT,
        env={"SSL_CERT_FILE": str(tmp_path / "ca.pem"), "PATH": ""},
    ) as process:
        wait_until(lambda: receiver.requests, what="it is under way")
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    go_on.set()
    assert not is_alive(process.pid) and rows(database)[0].owner == "killed"
    transact(
        database,
        lambda connection: connection.execute(
            text("UPDATE workers SET seen_at = 0 WHERE id = 'killed'")
        ),
    )
    other = Notifier(worker(database), receiver.guard, threads=1, context=receiver.context)
    other.start()
    other.watch()
    wait_until(lambda: is_settled(database, "delivered"), what="another has told it")
    other.close()
    (_, first, _), (_, second, body) = receiver.requests
    assert first["webhook-id"] == second["webhook-id"]
    assert (
        Webhook((Webhooks(database).get(hook) or {})["secret"]).verify(body, second)["data"]["id"]
        == "one"
    )


# --- over HTTP -----------------------------------------------------------------------------------------------------


def create(client: FlaskClient, **body: Any) -> Any:
    answer = client.post("/v1/webhooks", json={"url": PUBLIC, **body})
    assert answer.status_code == 201, answer.data
    return answer.json


def test_a_webhook_is_made_shown_changed_and_deleted(client: FlaskClient) -> None:
    answer = client.post(
        "/v1/webhooks", json={"url": PUBLIC, "events": ["message.sent", "message.sent"]}
    )
    new = answer.json or {}
    path = f"/v1/webhooks/{new['id']}"
    assert (answer.status_code, answer.headers["Location"]) == (201, path)
    assert new["secret"].startswith("whsec_") and len(Webhook(new["secret"])._whsecret) == 32
    shown = {
        "id": new["id"],
        "url": PUBLIC,
        "events": ["message.sent"],
        "enabled": True,
        "reason": None,
        "created_at": new["created_at"],
    }
    assert new == shown | {"secret": new["secret"]} == client.get(path).json
    assert (client.get("/v1/webhooks").json or {})["data"] == [shown]
    assert client.patch(path, json={}).json == shown
    changed = client.patch(path, json={"enabled": False, "events": [], "url": PUBLIC + "2"}).json
    assert changed == shown | {
        "enabled": False,
        "reason": "by request",
        "events": [],
        "url": PUBLIC + "2",
    }
    assert client.post(f"{path}/test").status_code == 409
    assert (client.patch(path, json={"enabled": True}).json or {})["reason"] is None
    assert (
        client.delete(path).status_code,
        client.delete(path).status_code,
        client.get(path).status_code,
    ) == (204, 404, 404)


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({}, "#/url", "expected this field"),
        ({"url": "http://a.example.org/"}, "#/url", "expected an https URL"),
        ({"url": "https://10.0.0.1/"}, "#/url", "expected a public address"),
        ({"url": 17}, "#/url", "expected a string"),
        (
            {"url": PUBLIC, "events": ["message.read"]},
            "#/events/0",
            "expected one of message.accepted, ",
        ),
        ({"url": PUBLIC, "events": "message.sent"}, "#/events", "expected a valid list"),
        ({"url": PUBLIC, "secret": "x"}, "#/secret", "none of them"),
    ],
)
def test_what_is_no_webhook_is_422_and_says_why(
    client: FlaskClient, body: Any, pointer: str, words: str
) -> None:
    answer = client.post("/v1/webhooks", json=body)
    problem = json.loads(answer.data)
    assert (
        answer.status_code == 422
        and problem["errors"][0]["pointer"] == pointer
        and words in problem["errors"][0]["detail"]
    )
    assert (client.get("/v1/webhooks").json or {})["data"] == []


def test_only_so_many_webhooks_are_kept(client: FlaskClient) -> None:
    for _ in range(20):
        create(client)
    assert client.post("/v1/webhooks", json={"url": PUBLIC}).status_code == 409


def test_only_an_admin_sees_the_secret(client: FlaskClient, app: Flask) -> None:
    path = f"/v1/webhooks/{create(client)['id']}"
    keys = app.extensions["mailasync"].api_keys
    secrets = {
        scope: keys.create("test", scopes=[scope])[0]
        for scope in (Scope.ADMIN, Scope.READ, Scope.SEND)
    }
    wait_until(
        lambda: client.get(path).status_code == 401, what="the process has seen that there are keys"
    )
    seen = {
        scope: b"whsec_" in client.get(path, headers={"Authorization": f"Bearer {secret}"}).data
        for scope, secret in secrets.items()
    }
    assert seen == {Scope.ADMIN: True, Scope.READ: False, Scope.SEND: False}


def test_the_log_of_deliveries_comes_in_pages_and_each_can_be_replayed(
    client: FlaskClient, app: Flask
) -> None:
    path = f"/v1/webhooks/{create(client)['id']}"
    made = [(client.post(f"{path}/test").json or {})["number"] for _ in range(5)]
    first = client.get(f"{path}/deliveries?limit=3").json or {}
    rest = client.get(f"{path}/deliveries?after={first['next']}").json or {}
    assert [row["number"] for row in first["data"] + rest["data"]] == made[::-1]
    assert (first["has_more"], rest["has_more"], rest["next"]) == (True, False, None)
    times = {name: first["data"][0][name] for name in ("created_at", "next_attempt_at")}
    assert first["data"][0] == {
        "number": made[-1],
        "type": "webhook.test",
        "message_id": None,
        "status": "pending",
        "attempts": 0,
        "code": None,
        "reply": None,
        **times,
    }
    mine = worker(app.extensions["mailasync"].outbox.database)
    due = mine.claim()
    assert due and due.number == made[0] and due.data == {"id": due.webhook_id}
    assert client.post(f"{path}/deliveries/{due.number}/replay").status_code == 409
    mine.finish(due, DeliveryResult(code=500, reply="no"))
    answer = client.post(f"{path}/deliveries/{due.number}/replay")
    assert (answer.status_code, (answer.json or {})["status"], (answer.json or {})["attempts"]) == (
        202,
        "pending",
        0,
    )
    for wrong in ("0", "x", "999", "9" * 30, "-1"):
        assert client.post(f"{path}/deliveries/{wrong}/replay").status_code == 404
    for query in ("limit=0", "limit=101", "limit=x", "after=x", "after=-1"):
        assert client.get(f"{path}/deliveries?{query}").status_code == 422


def test_the_secret_of_messages_own_urls_is_there_before_the_first_of_them(
    client: FlaskClient,
) -> None:
    own = client.get("/v1/webhooks/own").json or {}
    assert own["secret"].startswith("whsec_") and own["url"] is None
    assert client.get("/v1/webhooks/own").json == own
    assert (
        client.patch("/v1/webhooks/own", json={"url": PUBLIC}).status_code
        == client.post("/v1/webhooks/own/test").status_code
        == 409
    )
    assert (client.patch("/v1/webhooks/own", json={"enabled": False}).json or {})[
        "enabled"
    ] is False


def test_accepting_a_mail_tells_of_it(client: FlaskClient, app: Flask) -> None:
    create(client)
    id = (client.post("/v1/messages", json=MAIL).json or {})["id"]
    found = rows(app.extensions["mailasync"].outbox.database)
    assert [(row.message_id, row.event, row.status) for row in found] == [
        (id, "message.accepted", "queued")
    ]


# --- real processes ------------------------------------------------------------------------------------------------


@on_postgresql
def test_web_and_worker_tell_a_client_what_became_of_its_mail(
    pair: Service, tmp_path: Path
) -> None:
    with Receiver() as receiver:
        receiver.authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        pair.settings["WEBHOOKS_TO_LOOPBACK"] = "on"
        pair.web()
        worker = pair.run(
            "-m",
            "celery",
            "-A",
            "mailasync",
            "worker",
            "--loglevel=INFO",
            name="worker",
            env={"SSL_CERT_FILE": str(tmp_path / "ca.pem")},
        )
        worker.says(" ready.")
        status, hook = pair.request(
            "POST", "/v1/webhooks", {"url": receiver.url.replace(HOST, "127.0.0.1")}
        )
        assert status == 201
        id = pair.post("/v1/messages")
        assert pair.request("POST", f"/v1/webhooks/{hook['id']}/test")[0] == 202
        wait_until(lambda: len(receiver.requests) == 3, what="all is told")
        payloads = [
            Webhook(hook["secret"]).verify(body, headers) for _, headers, body in receiver.requests
        ]
        assert sorted((one["type"], one["data"]["id"]) for one in payloads) == [
            ("message.accepted", id),
            ("message.sent", id),
            ("webhook.test", hook["id"]),
        ]
        wait_until(
            lambda: (
                {row["status"] for row in pair.get(f"/v1/webhooks/{hook['id']}/deliveries")["data"]}
                == {"delivered"}
            )
        )
        assert worker.stop() == 0
