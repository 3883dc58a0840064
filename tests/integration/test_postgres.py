"""PostgreSQL in earnest: many processes on it, its restarts, its silence, and the server that takes its place."""

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from mailroom.model.attempt import Outcome
from mailroom.model.errors import StoreUnavailable
from mailroom.model.ids import new_id
from mailroom.model.message import Address, Message, State
from mailroom.store.db import postgresql
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import upgrade
from mailroom.store.db.postgresql import BoundedConnection
from mailroom.store.events.webhooks import Webhooks
from mailroom.store.jobs.jobs import Jobs
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.store.messages.suppressions import Suppressions, Unsubscribes
from mailroom.store.workers import Heartbeat
from tests.services import LEASE_SECONDS, application, wait_until
from tests.services.postgres import Postgres
from tests.services.processes import Service, service
from tests.services.smtpd import ScriptedSMTP
from tests.unit.api.test_messages import MAIL

SENT = Outcome(state=State.SENT, reason="250 ok", recipients={0: (State.SENT, "250 ok")})


@pytest.fixture(scope="module")
def own_cluster(run_directory: Path) -> Iterator[Postgres]:
    own = Postgres(run_directory / f"postgres-{secrets.token_hex(4)}")
    yield own
    own.close()


@pytest.fixture
def cluster(own_cluster: Postgres) -> Iterator[Postgres]:
    """A server to restart and to freeze, with an empty database "mail"."""
    if not own_cluster.is_running():
        own_cluster.start()
    own_cluster.create_database("mail")
    yield own_cluster
    if own_cluster.is_running():
        own_cluster.resume()
    else:
        own_cluster.start()
    own_cluster.drop_database("mail")


@pytest.fixture
def on_cluster(
    tmp_path: Path, cluster: Postgres, broker_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    """Web and worker on that server."""
    with service(
        tmp_path, BROKER_URL=broker_url, DATABASE_URL=cluster.url("mail"), **to_smtpd
    ) as made:
        made.upgrade()
        yield made


@pytest.fixture
def shared(postgres_url: str) -> Iterator[Database]:
    """An empty database on the cluster that all tests share."""
    made = Database(postgres_url)
    upgrade(made)
    yield made
    made.close()


def suppress_one(database: Database) -> None:
    Suppressions(database).add("bob@example.org")


def unsuppress_one(database: Database) -> None:
    Suppressions(database).remove("bob@example.org")


def unsubscribe_one(database: Database) -> None:
    links = Unsubscribes(database, "https://mail.example.org")
    links.unsubscribe(links.url("any", 0).rpartition("/")[2])


def cancel_job(database: Database) -> None:
    Jobs(database, 20).cancel("any")


@pytest.mark.parametrize("write", [suppress_one, unsuppress_one, unsubscribe_one, cancel_job])
def test_what_locks_rows_that_workers_hold_shares_no_commit_with_acceptances(
    shared: Database, write: Callable[[Database], None]
) -> None:
    # An acceptance holds the rate of its key until then: together they were undone by deadlocks, a second each.
    begun, go_on = threading.Event(), threading.Event()

    def slow(connection: Connection, items: list[None]) -> list[None]:
        begun.set()
        assert go_on.wait(60)
        return items

    with ThreadPoolExecutor(2) as threads:
        accepting = threads.submit(shared.write, slow, None)
        assert begun.wait(60)
        try:
            threads.submit(write, shared).result(60)
        finally:
            go_on.set()
        accepting.result(60)


def test_a_webhook_is_disabled_and_deleted_beside_whoever_delivers_to_it(shared: Database) -> None:
    webhooks = Webhooks(shared)
    id = webhooks.create("https://hook.example.org/")
    for _ in range(2):
        webhooks.test(id)
    with shared.engine.begin() as other:
        # As a worker that claims one; it may want another of these rows next.
        other.execute(
            text("UPDATE deliveries SET owner = 'other', next_attempt_at = NULL WHERE number = 1")
        )
        assert webhooks.change(id, enabled=False)
        assert [row["state"] for row in webhooks.page(id, limit=9)] == ["failed", "pending"]
        assert webhooks.delete(id)
    assert [row["number"] for row in webhooks.page(id, limit=9)] == [1]


def one(connection: Connection) -> int:
    return int(connection.scalar(text("SELECT 1")) or 0)


def insert(connection: Connection, ids: list[str]) -> list[str]:
    connection.execute(
        text("INSERT INTO identity (outbox_id) VALUES (:id)"), [{"id": id} for id in ids]
    )
    return ids


def accept(outbox: Outbox, id: str = "") -> str:
    id = id or new_id()
    assert outbox.accept(
        NewMessage(
            id=id,
            message=Message(to=(Address("bob@example.org"),), text="Hi"),
            message_id=f"{id}@example.org",
        )
    )
    return id


# --- many at once ---------------------------------------------------------------------------------------------------


def test_several_web_and_worker_processes_send_each_mail_once(
    tmp_path: Path,
    cluster: Postgres,
    broker_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    settings = {**to_smtpd, "BROKER_URL": broker_url, "DATABASE_URL": cluster.url("mail")}
    with service(tmp_path, **settings) as first, service(tmp_path, **settings) as second:
        first.upgrade()
        workers = [first.worker(wait=False) for _ in range(3)]
        with ThreadPoolExecutor(12) as threads:
            webs = list(threads.map(Service.web, (first, second)))
            ids = list(
                threads.map(
                    lambda n: (first, second)[n % 2].post("/v1/messages", subject=f"mail {n}"),
                    range(300),
                )
            )
        wait_until(lambda: len(smtpd.payloads) >= 300, what="all were sent")
        told = [second.final(id) for id in ids]
        assert {mail["status"] for mail in told} == {"sent"}
        assert {smtpd.copies(mail["message_id"]) for mail in told} == {1}
        for program in (*webs, *workers):
            assert "ERROR" not in program.text(), program.text()
    assert "deadlock" not in cluster.log_tail(10_000)


def test_transactions_that_lock_the_same_rows_in_another_order_both_succeed(
    postgres_url: str,
) -> None:
    databases = [Database(postgres_url) for _ in range(2)]
    upgrade(databases[0])
    outbox = Outbox(databases[0])
    ids = [accept(outbox) for _ in range(2)]
    both_have_one = threading.Barrier(2)

    def lock(connection: Connection, asked: list[list[str]]) -> list[None]:
        for first, second in asked:
            connection.execute(
                text("UPDATE messages SET attempt = attempt + 1 WHERE id = :id"), {"id": first}
            )
            with suppress(threading.BrokenBarrierError):
                # The one that is undone comes here a second time.
                both_have_one.wait(1)
            connection.execute(
                text("UPDATE messages SET attempt = attempt + 1 WHERE id = :id"), {"id": second}
            )
        return [None] * len(asked)

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(databases[n].write, lock, ids[:: 1 - 2 * n]) for n in range(2)]:
            done.result(60)
    for id in ids:
        standing = outbox.details(id)
        assert standing and standing.row["attempt"] == 2
    for database in databases:
        database.close()


def test_claims_marks_ends_and_sweeps_of_the_same_rows_disturb_nobody(postgres_url: str) -> None:
    """Each is asked in another order, as duplicates of nudges and sweepers make them; nobody waits for who waits for him."""
    databases = [Database(postgres_url) for _ in range(4)]
    upgrade(databases[0])
    errors: list[Any] = []
    for database in databases:
        event.listen(
            database.engine,
            "handle_error",
            lambda context: errors.append(context.original_exception),
        )
    outbox = Outbox(databases[0])
    ids = [accept(outbox) for _ in range(120)]
    for n, database in enumerate(databases):
        Heartbeat(database, f"worker-{n}", "", ["mail"]).beat()
    sent: list[str] = []

    def work(number: int) -> None:
        claims, turned = (
            Claims(databases[number], f"worker-{number}", LEASE_SECONDS),
            ids[number * 30 :] + ids[: number * 30],
        )
        for start in range(0, 120, 40):
            chunk = turned[start : start + 40][:: 1 if number % 2 else -1]
            Outbox(databases[number]).mark_published(chunk)
            for claim in claims.claim(chunk):
                if claims.fence(claim) and claims.finish(claim, SENT):
                    sent.append(claim.id)
            Sweeps(databases[number], LEASE_SECONDS, "resend").abandoned(claims)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert sorted(sent) == ids
    assert errors == []
    for database in databases:
        database.close()


def test_marks_of_the_same_mails_in_opposite_orders_do_not_deadlock(postgres_url: str) -> None:
    # One server plans as it likes; here one of two looks at the rows by their ids, and one as they lie in the table.
    plans = ("seqscan", "indexscan")
    urls = [
        f"{postgres_url}?options=-cenable_bitmapscan%3Doff%20-cenable_{plan}%3Doff"
        for plan in plans
    ]
    databases = [Database(url) for url in urls]
    upgrade(databases[0])
    ids = [accept(Outbox(databases[0]), f"mail-{n}") for n in range(99, 49, -1)]
    errors: list[Any] = []
    for database in databases:
        event.listen(
            database.engine,
            "handle_error",
            lambda context: errors.append(context.original_exception),
        )
    together = threading.Barrier(2)

    def mark(number: int) -> None:
        outbox, sweeps = (
            Outbox(databases[number]),
            Sweeps(databases[number], LEASE_SECONDS, "resend"),
        )
        for _ in range(40):
            together.wait(60)
            outbox.mark_published(ids[:: 1 - 2 * number])
            sweeps.unpublish(ids[:: 2 * number - 1])

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(mark, range(2)))
    assert errors == []
    for database in databases:
        database.close()


# --- restarts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("immediate", [False, True], ids=["fast", "immediate"])
def test_a_restart_loses_and_doubles_nothing(
    on_cluster: Service, cluster: Postgres, smtpd: ScriptedSMTP, immediate: bool
) -> None:
    # Given mails in flight, past the fence
    on_cluster.web()
    worker = on_cluster.worker()
    held = smtpd.hold("DOT", times=None)
    ids = [on_cluster.post("/v1/messages", subject=f"mail {n}") for n in range(12)]
    wait_until(held.reached.is_set, what="mails are at the dot")
    # When PostgreSQL is stopped, and the mail server answers
    cluster.stop(immediate=immediate)
    held.release()
    worker.says("its outcome waits for the database")
    # Then the web says so at once, and all goes on by itself when it is back: a reply that was read is not forgotten
    status, told = on_cluster.request("POST", "/v1/messages", {"to": "bob@example.org"})
    assert (status, told["code"]) == (503, "store_unavailable")
    cluster.start()
    ids.append(on_cluster.post("/v1/messages", subject="after"))
    for id in ids:
        told = on_cluster.final(id)
        assert (told["status"], told["uncertain_attempts"], smtpd.copies(told["message_id"])) == (
            "sent",
            0,
            1,
        )


def test_no_idle_connection_of_before_a_restart_costs_an_error(cluster: Postgres) -> None:
    database = Database(cluster.url("mail"))
    together = threading.Barrier(10)

    def look(connection: Connection) -> int:
        together.wait(60)
        return one(connection)

    with ThreadPoolExecutor(10) as threads:
        for _ in range(2):
            for immediate in (False, True):
                assert list(threads.map(lambda _: database.read(look), range(10))) == [1] * 10
                cluster.restart(immediate=immediate)
        assert list(threads.map(lambda _: database.read(look), range(10))) == [1] * 10
    database.close()


# --- silence --------------------------------------------------------------------------------------------------------


def test_a_frozen_server_is_given_up_and_used_again_when_it_answers(
    cluster: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedConnection, "answer_seconds", 1.0)
    database = Database(cluster.url("mail"))
    upgrade(database)
    assert database.read(one) == 1
    cluster.pause()
    with pytest.raises(StoreUnavailable, match="no answer within 1 s"):
        database.write(insert, "during")
    with pytest.raises(StoreUnavailable, match="timeout"):
        # A new connection has a limit of its own.
        database.read(one)
    cluster.resume()
    assert database.write(insert, "after") == "after"
    database.close()


def test_a_frozen_server_hangs_no_request_and_no_heartbeat(
    on_cluster: Service, cluster: Postgres, smtpd: ScriptedSMTP
) -> None:
    on_cluster.web()
    worker = on_cluster.worker()
    on_cluster.final(on_cluster.post("/v1/messages", subject="before"))
    cluster.pause()
    with ThreadPoolExecutor(4) as threads:
        asked = [
            threads.submit(
                on_cluster.request, "POST", "/v1/messages", {"to": "bob@example.org"}, timeout=60
            ),
            threads.submit(on_cluster.request, "GET", f"/v1/messages/{new_id()}", timeout=60),
        ]
        assert [answer.result()[0] for answer in asked] == [503, 503]
    worker.says("database: no answer within 10 s")
    cluster.resume()
    told = on_cluster.final(on_cluster.post("/v1/messages", subject="after"))
    assert (told["status"], smtpd.copies(told["message_id"])) == ("sent", 1)


def test_a_process_that_was_stopped_in_a_transaction_holds_nobody_up_for_long(
    postgres_url: str, server_limits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "SERVER_LIMITS", server_limits)
    stopped, other = Database(postgres_url), Database(postgres_url)
    upgrade(other)
    id = accept(Outbox(other))
    with stopped.engine.connect() as connection:
        connection.execute(text("UPDATE messages SET attempt = 1 WHERE id = :id"), {"id": id})
        [claim] = Claims(other, "worker-1", LEASE_SECONDS).claim([id])
        assert claim.attempt == 1
        with pytest.raises(StoreUnavailable):
            # What it then wants to do is told, and can be done again.
            stopped.write(
                lambda _, items: [connection.execute(text("SELECT 1")).rowcount for _ in items],
                None,
            )
    assert stopped.read(one) == 1
    stopped.close()
    other.close()


# --- another server in its place ------------------------------------------------------------------------------------


def test_a_stand_by_takes_over(cluster: Postgres, run_directory: Path) -> None:
    follower = cluster.stand_by(run_directory / f"postgres-{secrets.token_hex(4)}")
    try:
        ports = cluster.ports["postgres"], follower.ports["postgres"]
        database = Database(
            f"postgresql://postgres@/mail?host=127.0.0.1:{ports[1]}&host=127.0.0.1:{ports[0]}&target_session_attrs=read-write"
        )
        upgrade(database)
        assert database.write(insert, "before") == "before"
        wait_until(lambda: has(follower, "before"), what="the stand-by has it")
        cluster.stop(immediate=True)
        with pytest.raises(StoreUnavailable):
            database.write(insert, "during")
        follower.promote()
        wait_until(lambda: written(database, "after"), what="the stand-by takes writes")
        assert has(follower, "before") and has(follower, "after")
        database.close()
    finally:
        follower.close()


def test_what_a_frozen_stand_by_keeps_from_being_confirmed_may_have_been_accepted(
    cluster: Postgres, run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = cluster.stand_by(run_directory / f"postgres-{secrets.token_hex(4)}")
    try:
        with contextmanager(application.made)(cluster.url("mail")) as app:
            client = app.test_client()
            cluster.wait_for_stand_by(True)
            assert client.post("/v1/messages", json=MAIL).status_code == 202
            monkeypatch.setattr(BoundedConnection, "answer_seconds", 1.0)
            # When the stand-by does not say that it has it
            follower.pause()
            answer = client.post("/v1/messages", json=MAIL)
            told = json.loads(answer.data)
            assert (answer.status_code, told["code"]) == (503, "commit_unconfirmed")
            # Then it is there as soon as that goes on
            follower.resume()
            wait_until(
                lambda: client.get(answer.headers["Location"]).status_code == 200,
                what="it is accepted",
            )
            assert len(json.loads(client.get("/v1/messages").data)["data"]) == 2
            cluster.wait_for_stand_by(False)
    finally:
        follower.resume()
        cluster.wait_for_stand_by(False)
        follower.close()


def test_a_server_that_became_a_stand_by_is_left(cluster: Postgres) -> None:
    database = Database(cluster.url("mail"))
    upgrade(database)

    def work(connection: Connection, items: list[bool]) -> list[int]:
        # which is what a stand-by answers to every write
        connection.execute(text("SET TRANSACTION READ ONLY"))
        insert(connection, ["x"])
        return [1]

    pid = database.read(lambda connection: connection.scalar(text("SELECT pg_backend_pid()")))
    with pytest.raises(StoreUnavailable, match="read-only transaction"):
        database.write(work, True)
    assert (
        database.read(lambda connection: connection.scalar(text("SELECT pg_backend_pid()"))) != pid
    )
    database.close()


def written(database: Database, id: str) -> bool:
    with suppress(StoreUnavailable):
        return bool(database.write(insert, id))
    return False


def has(cluster: Postgres, id: str) -> bool:
    database = Database(cluster.url("mail"))
    found = False
    with suppress(Exception):
        found = bool(
            database.read(
                lambda connection: connection.scalar(
                    text("SELECT 1 FROM identity WHERE outbox_id = :id"), {"id": id}
                )
            )
        )
    database.close()
    return found


# --- PgBouncer ------------------------------------------------------------------------------------------------------


def test_no_statement_needs_the_session_of_the_one_before(postgres_url: str) -> None:
    """As PgBouncer asks for that pools by transaction: nothing is prepared, and no lock is a session's."""
    database = Database(postgres_url)
    upgrade(database)
    for _ in range(10):
        assert database.read(one) == 1
        accept(Outbox(database))
    with database.engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_prepared_statements")) == 0
        assert (
            connection.scalar(
                text(
                    "SELECT count(*) FROM pg_locks JOIN pg_database ON oid = database "
                    "WHERE locktype = 'advisory' AND datname = current_database()"
                )
            )
            == 0
        )
    database.close()
