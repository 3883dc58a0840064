"""What is forgotten and what is kept, on both databases; and what a restored backup must not send again."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, make_url, select, text

from mailroom.model.ids import new_id
from mailroom.model.message import FINAL, Address, Attachment, Message, State
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import upgrade
from mailroom.store.db.schema import messages, metadata, workers
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import JobEnd, Jobs, JobState, NewJob, NotifyOn
from mailroom.store.maintenance.restore import StillRunning, hold
from mailroom.store.maintenance.retention import Retention
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.store.workers import Heartbeat, is_alive
from tests.services import wait_until
from tests.services.postgres import Postgres
from tests.services.processes import Service
from tests.services.smtpd import ScriptedSMTP

DAY_SECONDS = 24 * 3600
LEASE_SECONDS = 20.0


@pytest.fixture
def retention(database: Database) -> Retention:
    return Retention(database, 30)


def run(database: Database, statement: str, **values: object) -> None:
    def execute(connection: Connection) -> None:
        connection.execute(text(statement), values)

    database.transaction(execute)


def accept(
    database: Database,
    state: State = State.SENT,
    *,
    days: float = 40,
    ended: float | None = None,
    job: NewJob | None = None,
) -> str:
    """A message in that state, accepted so many days ago, and with an event of its end so many days ago."""
    id = new_id()
    message = Message(to=(Address("bob@example.org"),), subject="Hello", text="Hi")
    assert Outbox(database).accept(
        NewMessage(id=id, message=message, message_id=f"{id}@example.org", job=job)
    )
    run(
        database,
        "UPDATE messages SET state = :state, created_at = created_at - CAST(:by AS BIGINT) WHERE id = :id",
        state=state,
        id=id,
        by=int(days * DAY_SECONDS * 1000),
    )
    if ended is not None:
        tell(database, id, days=ended)
    return id


def tell(database: Database, id: str, *, days: float) -> None:
    run(
        database,
        "INSERT INTO events (id, at, event) SELECT id, created_at + CAST(:by AS BIGINT), 'sent' FROM messages WHERE id = :id",
        id=id,
        by=int((40 - days) * DAY_SECONDS * 1000),
    )


def new_job(**more: Any) -> NewJob:
    return NewJob(
        **{
            "id": new_id(),
            "name": "simulate",
            "args": {},
            "queue": "jobs",
            "timeout_seconds": 10,
            **more,
        }
    )


def end_job(database: Database, id: str, *, days: float) -> None:
    """Run the job to its end, with a file; it ended so many days ago."""
    Heartbeat(database, "worker-1", "worker-1@host", ["jobs"]).beat()
    runs = JobClaims(database, "worker-1", LEASE_SECONDS)
    [claim] = runs.claim("jobs", ["simulate"], limit=1)
    assert claim.id == id
    runs.finish(
        claim, JobEnd(state=JobState.SUCCEEDED, file=Attachment("a.txt", "text/plain", b"made"))
    )
    by = int(days * DAY_SECONDS * 1000)
    run(
        database,
        "UPDATE jobs SET created_at = created_at - CAST(:by AS BIGINT), finished_at = finished_at - CAST(:by AS BIGINT) "
        "WHERE id = :id",
        id=id,
        by=by,
    )
    run(database, "UPDATE events SET at = at - CAST(:by AS BIGINT) WHERE id = :id", id=id, by=by)


def ids(database: Database, table: str = "messages") -> set[str]:
    return set(
        database.read(lambda connection: connection.scalars(text(f"SELECT id FROM {table}")))
    )


def everything(database: Database) -> dict[str, int]:
    """How many rows each table has, but the one that keeps its counts for ever."""

    def count(connection: Connection) -> dict[str, int]:
        return {
            table.name: connection.scalar(text(f"SELECT count(*) FROM {table.name}")) or 0
            for table in metadata.sorted_tables
            if table.name != "tallies"
        }

    return database.read(count)


def round_of(retention: Retention, limit: int = 200) -> int:
    count = retention.purge(limit)
    while not retention.done:
        count += retention.purge(limit)
    return count


# --- what goes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_only_what_is_final_is_ever_forgotten(sqlite_url: str, state: State) -> None:
    database = Database(sqlite_url)
    upgrade(database)
    id = accept(database, state, days=4000)
    round_of(Retention(database, 30))
    assert ids(database) == (set() if state in FINAL else {id})
    database.close()


def test_a_message_goes_with_all_that_is_its_own_and_leaves_nothing(
    database: Database, retention: Retention
) -> None:
    empty = everything(database)
    gone, kept = accept(database, ended=31), accept(database, ended=29)
    assert round_of(retention) == 1
    assert (
        ids(database)
        == ids(database, "contents")
        == ids(database, "recipients")
        == ids(database, "events")
        == {kept}
    )
    assert gone not in ids(database)
    run(database, "UPDATE events SET at = 0")
    assert round_of(retention) == 1
    assert everything(database) == empty


def test_its_age_counts_from_its_end_and_without_one_from_its_beginning(
    database: Database, retention: Retention
) -> None:
    accept(database, days=31)
    kept = {accept(database, days=29), accept(database, days=40, ended=1)}
    assert round_of(retention) == 1
    assert ids(database) == kept


def test_a_job_and_its_message_go_together(database: Database, retention: Retention) -> None:
    empty = everything(database)
    for job_days, ended, together in ((31, 31, 0), (1, 31, 1), (31, 1, 1)):
        job = new_job()
        accept(database, State.WAITING, ended=ended, job=job)
        end_job(database, job.id, days=job_days)
        run(database, "UPDATE messages SET state = 'sent'")
        round_of(retention)
        assert (
            len(ids(database))
            == len(ids(database, "jobs"))
            == len(ids(database, "files"))
            == together
        ), (
            job_days,
            ended,
        )
        for table in ("events", "files", "jobs", "messages", "workers"):
            run(database, f"DELETE FROM {table}")
    assert everything(database) == empty


def test_a_job_stays_while_its_message_does(database: Database, retention: Retention) -> None:
    job = new_job()
    held = accept(database, State.WAITING, job=job)
    end_job(database, job.id, days=40)
    run(database, "UPDATE messages SET state = 'held'")
    assert round_of(retention) == 0
    assert (ids(database), ids(database, "jobs")) == ({held}, {job.id})


def test_a_job_without_a_message_goes_by_itself_when_it_is_final(
    database: Database, retention: Retention
) -> None:
    for days in (31, 29):
        job = new_job()
        assert Jobs(database, LEASE_SECONDS).accept(job)
        end_job(database, job.id, days=days)
    waits = new_job()
    assert Jobs(database, LEASE_SECONDS).accept(waits)
    run(database, "UPDATE jobs SET created_at = 0 WHERE state = 'queued'")
    assert round_of(retention) == 1
    assert ids(database, "jobs") == {job.id, waits.id}
    assert ids(database, "files") == ids(database, "events") == {job.id}


def test_old_keys_usage_and_workers_go_whatever_is_kept(database: Database) -> None:
    for hours in (23, 25, 47, 49):
        run(
            database,
            "INSERT INTO workers (id, name, queues, started_at, seen_at) SELECT :id, '', '', 0, CAST(:now AS BIGINT)",
            id=f"w{hours}",
            now=ms_ago(database, hours),
        )
        run(
            database,
            "INSERT INTO idempotency VALUES ('', :id, '', '{}', CAST(:now AS BIGINT))",
            id=f"k{hours}",
            now=ms_ago(database, hours),
        )
        run(
            database,
            "INSERT INTO usage VALUES ('a', CAST(:now AS BIGINT), 1, 1)",
            now=ms_ago(database, hours) // 600_000,
        )
        run(
            database,
            "INSERT INTO signed_out VALUES (:id, CAST(:now AS BIGINT))",
            id=f"s{hours}",
            now=ms_ago(database, hours),
        )
    kept = accept(database)
    assert round_of(Retention(database, 0)) == 0  # 0 days: no message is forgotten
    assert ids(database) == {kept}
    assert ids(database, "workers") == {"w23"}
    assert ids(database, "signed_out") == {"s23"}
    assert everything(database)["idempotency"] == 1
    assert everything(database)["usage"] == 3


def ms_ago(database: Database, hours: float) -> int:
    now = database.read(
        lambda connection: connection.scalar(
            text(
                "SELECT CAST(extract(epoch FROM now()) * 1000 AS BIGINT)"
                if connection.dialect.name == "postgresql"
                else "SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
            )
        )
    )
    assert now
    return int(now - hours * 3600_000)


# --- how ------------------------------------------------------------------------------------------------------------


def test_what_stays_is_looked_at_once_a_round(database: Database, retention: Retention) -> None:
    for _ in range(30):
        accept(database, State.HELD)
    behind = [accept(database, days=39) for _ in range(5)]
    assert [retention.purge(10) for _ in range(3)] == [0, 0, 0]
    assert not retention.done
    assert retention.purge(10) == 5
    assert retention.done
    assert not {*behind} & ids(database)


def test_a_message_that_was_sent_again_after_the_look_stays(
    database: Database, retention: Retention
) -> None:
    id = accept(database)
    assert database.read(
        lambda connection: retention._look(messages, (0, ""), 10, connection)
    ).ids == [id]
    run(database, "UPDATE messages SET state = 'queued'")
    assert database.write(retention._delete_messages, [id]) == 0
    assert ids(database) == {id}


@pytest.mark.slow
def test_many_processes_forget_each_row_once(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4 if "postgres" in database_url else 1)]
    upgrade(databases[0])
    for _ in range(60):
        accept(databases[0])
    with ThreadPoolExecutor(4) as threads:
        counts = list(
            threads.map(
                lambda database: sum(Retention(database, 30).purge(20) for _ in range(8)), databases
            )
        )
    assert sum(counts) + round_of(Retention(databases[0], 30)) == 60
    assert ids(databases[0]) == set()
    for database in databases:
        database.close()


def test_nothing_is_done_while_another_process_is_at_it(postgres_url: str) -> None:
    database, other = Database(postgres_url), Database(postgres_url)
    upgrade(database)
    accept(database)
    with other.engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(7263502)"))
        assert Retention(database, 30).purge() == 0
        assert len(ids(database)) == 1
    assert Retention(database, 30).purge() == 1
    database.close()
    other.close()


def test_every_statement_finds_its_rows_by_an_index(
    database: Database, retention: Retention
) -> None:
    """Also where a million rows are younger than what goes."""
    job = new_job()
    accept(database, State.WAITING, job=job)
    end_job(database, job.id, days=40)
    run(database, "UPDATE messages SET state = 'sent'")
    alone = new_job()
    assert Jobs(database, LEASE_SECONDS).accept(alone)
    end_job(database, alone.id, days=40)
    is_sqlite = database.engine.dialect.name == "sqlite"
    if not is_sqlite:
        fill_up(database)
    seen: list[tuple[str, Any]] = []

    def note(
        connection: object,
        cursor: object,
        statement: str,
        parameters: Any,
        context: object,
        many: bool,
    ) -> None:
        seen.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    assert round_of(retention) == 2
    event.remove(database.engine, "before_cursor_execute", note)
    small = ("workers", "usage", "samples", "CONSTANT")
    looked = 0
    for statement, parameters in seen:
        if statement.split()[0] not in ("SELECT", "DELETE") or "advisory" in statement:
            continue
        with database.engine.connect() as connection:
            plan = connection.exec_driver_sql(
                f"EXPLAIN {'QUERY PLAN ' if is_sqlite else ''}{statement}", parameters
            ).all()
        steps = [step[3] if is_sqlite else step[0] for step in plan]
        whole = [
            step
            for step in steps
            if step.strip("-> ").startswith(("SCAN", "Seq Scan"))
            and not any(few in step for few in small)
        ]
        assert whole == [], (statement, plan)
        if not is_sqlite and "gone" in statement and "FROM messages" in statement:
            assert any("Index Cond" in step and "created_at <" in step for step in steps), plan
        looked += 1
    assert looked > 8


def fill_up(database: Database) -> None:
    """Rows that are too young to go, so many that PostgreSQL prefers an index."""
    numbers = "FROM generate_series(1, 20000) AS n"
    now = "CAST(extract(epoch FROM now()) * 1000 AS BIGINT)"
    run(
        database,
        f"INSERT INTO messages (id, state, queue, message_id, created_at, attempt, uncertain_attempts, crashes) "
        f"SELECT 'm' || n, 'sent', 'mail', 'm' || n, {now}, 1, 0, 0 {numbers}",
    )
    run(
        database,
        f"INSERT INTO jobs (id, name, args, queue, state, progress, timeout_ms, attempt, max_attempts, created_at) "
        f"SELECT 'j' || n, 'x', '', 'jobs', 'succeeded', 0, 1, 1, 1, {now} {numbers}",
    )
    for table in (
        "events (id, at, event)",
        "files (id, position, name, content_type, content)",
        "idempotency (key, owner, request_hash, answer, created_at)",
    ):
        values = {"e": f"{now}, 'sent'", "f": "0, '', '', ''", "i": f"'', '', '', {now}"}[table[0]]
        run(database, f"INSERT INTO {table} SELECT 'm' || n, {values} {numbers}")
    run(
        database,
        f"INSERT INTO deliveries (webhook_id, message_id, event, at) SELECT 'w', 'm' || n, 'message.sent', {now} {numbers}",
    )
    run(database, f"INSERT INTO tallies SELECT {now} / 60000, 'sent', 's' || n, 1 {numbers}")
    run(database, f"INSERT INTO signed_out SELECT 's' || n, {now} {numbers}")
    run(database, "ANALYZE")


# --- the command and the worker -------------------------------------------------------------------------------------


def flask(pair: Service, *arguments: str) -> Any:
    """What a command prints, as JSON."""
    program = pair.run("-m", "flask", *arguments, name="flask")
    assert program.process.wait(60) == 0, program.text()
    return json.loads(program.text().splitlines()[-1])


def test_a_person_can_have_it_done_now(tmp_path: Path, sqlite_url: str) -> None:
    database = Database(sqlite_url)
    upgrade(database)
    for _ in range(3):
        accept(database)
    young = accept(database, days=2)
    pair = Service(tmp_path, {"DATABASE_URL": sqlite_url})
    asks = pair.run("-m", "flask", "purge", name="asks")
    assert asks.process.wait(60) == 1
    assert (
        "Delete 3 messages and jobs that ended more than 30 days ago, 3 and 0? [y/N]" in asks.text()
    )
    assert len(ids(database)) == 4
    assert flask(pair, "purge", "--days=2.5", "--yes", "--json") == {
        "days": 2.5,
        "messages": 3,
        "jobs": 0,
    }
    assert ids(database) == {young}
    database.close()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_forgets_by_itself(pair: Service, smtpd: ScriptedSMTP) -> None:
    database = Database(pair.settings["DATABASE_URL"])
    for _ in range(3):
        accept(database)
    pair.worker()
    wait_until(lambda: ids(database) == set(), what="the old messages are gone")
    database.close()


# --- backup and restore ---------------------------------------------------------------------------------------------


@pytest.fixture
def backup(pair: Service, postgres: Postgres, tmp_path: Path) -> "Backup":
    return Backup(pair.settings["DATABASE_URL"], postgres, tmp_path / "backup")


class Backup:
    """What docs/operations.md tells an operator to do."""

    def __init__(self, url: str, postgres: Postgres, file: Path) -> None:
        self.url, self.postgres, self.file = make_url(url), postgres, file

    def take(self) -> None:
        """While all runs."""
        if self.url.get_backend_name() == "sqlite":
            connection = sqlite3.connect(str(self.url.database))
            connection.execute("VACUUM INTO ?", [str(self.file)])
            connection.close()
        else:
            self.postgres.run(
                "pg_dump", "--format=custom", f"--file={self.file}", self.url.render_as_string()
            )

    def restore(self) -> None:
        """While nothing runs."""
        if self.url.get_backend_name() == "sqlite":
            for rest in ("", "-wal", "-shm"):
                Path(f"{self.url.database}{rest}").unlink(missing_ok=True)
            Path(str(self.url.database)).write_bytes(self.file.read_bytes())
        else:
            self.postgres.run(
                "pg_restore",
                "--clean",
                "--if-exists",
                f"--dbname={self.url.render_as_string()}",
                str(self.file),
            )


def test_a_restored_backup_sends_nothing_twice(
    pair: Service, smtpd: ScriptedSMTP, backup: Backup
) -> None:
    # Given a backup with one mail sent and three on their way
    web, worker = pair.web(), pair.worker()
    sent = pair.post(subject="sent before")
    pair.final(sent)
    held = smtpd.hold("DOT", times=None)
    flying = [pair.post(subject=f"on its way {n}") for n in range(3)]
    wait_until(lambda: len(smtpd.payloads) == 4, what="all are past the fence")
    backup.take()
    # When these are sent, all is stopped, and the backup restored
    held.release()
    message_ids = [pair.final(id)["message_id"] for id in flying]
    assert worker.stop() == 0
    after = pair.post(subject="after the backup, and only on the broker")
    wait_until(lambda: published(pair, after), what="its nudge is on the broker")
    web.stop()
    backup.restore()
    database = Database(pair.settings["DATABASE_URL"])
    wait_until(
        lambda: (
            not database.read(
                lambda connection: connection.scalars(
                    select(workers.c.id).where(is_alive(3))
                ).first()
            )
        ),
        what="the worker that the backup knows is not taken for alive",
    )
    database.close()
    done = flask(pair, "db", "restored", "--json")
    assert (done["held"], done["jobs"]) == (3, 0)
    # Then nothing is sent twice, and what was on its way is held until a person lets it go
    pair.web()
    worker = pair.worker()
    worker.says("but the nudge is from outbox")
    assert pair.final(pair.post(subject="new"))["status"] == "sent"
    for id, message_id in zip(flying, message_ids, strict=True):
        told = pair.message(id)
        assert (told["status"], told["timeline"][-1]["event"], told["timeline"][-1]["detail"]) == (
            "held",
            "held",
            "restored from a backup",
        )
        assert smtpd.copies(message_id) == 1
    assert pair.message(sent)["status"] == "sent"
    assert pair.request("GET", f"/v1/messages/{after}")[0] == 404
    assert pair.request("POST", f"/v1/messages/{flying[0]}/release", {})[0] in (200, 202)
    assert pair.final(flying[0])["status"] == "sent"
    assert [smtpd.copies(message_id) for message_id in message_ids] == [2, 1, 1]


def published(pair: Service, id: str) -> bool:
    database = Database(pair.settings["DATABASE_URL"])
    message = Outbox(database).details(id)
    database.close()
    return bool(message and message.row["published_at"])


def test_every_state_that_moves_is_held_and_every_other_stays(database: Database) -> None:
    before = {state: accept(database, state, days=1) for state in State}
    run(
        database,
        "UPDATE messages SET owner = 'worker-1', next_attempt_at = 1, parked = 1 WHERE state IN ('sending', 'in_data')",
    )
    outbox_id = database.outbox_id
    done = hold(database, lease_seconds=LEASE_SECONDS)
    assert (done.held, done.failed, done.jobs) == (6, 0, 0)
    fresh = Database(database.url.render_as_string(hide_password=False))
    assert fresh.outbox_id == done.outbox_id != outbox_id
    for state, id in before.items():
        message = Outbox(fresh).details(id)
        assert message
        assert message.row["state"] == (state if state in FINAL else State.HELD)
        assert (message.row["owner"], message.row["next_attempt_at"], message.row["parked"]) == (
            None,
            None,
            None,
        )
    assert hold(fresh, lease_seconds=LEASE_SECONDS).held == 0
    fresh.close()


@pytest.mark.parametrize(
    ("notify_on", "state"),
    [(NotifyOn.SUCCESS, State.FAILED), (NotifyOn.FAILURE, State.HELD), (NotifyOn.BOTH, State.HELD)],
)
def test_a_job_that_had_not_ended_fails_and_its_mail_tells_nothing_untrue(
    database: Database, notify_on: NotifyOn, state: State
) -> None:
    job = new_job(notify_on=notify_on)
    id = accept(database, State.WAITING, days=0, job=job)
    done = hold(database, lease_seconds=LEASE_SECONDS)
    assert (done.held + done.failed, done.jobs) == (1, 1)
    details = Jobs(database, LEASE_SECONDS).details(job.id)
    assert details
    assert (details.row["state"], details.events[-1]["event"]) == (JobState.FAILED, "job failed")
    assert "start it again with retry" in details.row["error"]
    message = Outbox(database).details(id)
    assert message and message.row["state"] == state


def test_nothing_is_held_under_the_hands_of_a_worker(database: Database) -> None:
    Heartbeat(database, "worker-1", "worker-1@host", ["mail"]).beat()
    id = accept(database, State.QUEUED, days=0)
    with pytest.raises(
        StillRunning,
        match="worker worker-1@host was seen less than 20 s ago; stop every worker and web process",
    ):
        hold(database, lease_seconds=LEASE_SECONDS)
    message = Outbox(database).details(id)
    assert message and message.row["state"] == State.QUEUED
