"""The database: many writes in one commit, each with its own result; migrations; what it says when it is away."""

import resource
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, literal, select, text
from sqlalchemy.exc import IntegrityError

from mailroom.model.errors import CommitUnanswered, StoreUnavailable
from mailroom.model.ids import new_id
from mailroom.model.message import Message
from mailroom.store.db.database import BATCH_MAX, Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.migrate import MIGRATIONS, SchemaOutdated, check, head, upgrade
from mailroom.store.db.schema import events, metadata
from mailroom.store.db.statements import CHARACTERS_MAX, inserted
from mailroom.store.messages.search import Search, listed
from tests.services import wait_until
from tests.services.postgres import Postgres


@pytest.fixture
def commits(database: Database) -> Iterator[list[Connection]]:
    """A list that grows with each commit."""
    seen: list[Connection] = []

    def note(connection: Connection) -> None:
        seen.append(connection)

    event.listen(database.engine, "commit", note)
    yield seen
    event.remove(database.engine, "commit", note)


class Held:
    """A write whose commit is on its way until it is told to go on."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, connection: Connection, items: list[None]) -> list[None]:
        self.begun.set()
        assert self.go_on.wait(60)
        return items


def insert(connection: Connection, ids: list[str]) -> list[str]:
    connection.execute(
        text("INSERT INTO identity (outbox_id) VALUES (:id)"), [{"id": id} for id in ids]
    )
    return [id.upper() for id in ids]


def waiting(database: Database, count: int) -> bool:
    return len(database._waiting) == count


def stored(database: Database) -> set[str]:
    return set(
        database.read(
            lambda connection: connection.scalars(text("SELECT outbox_id FROM identity")).all()
        )
    )


def test_writes_that_arrive_during_a_commit_share_the_next(
    database: Database, commits: list[Connection]
) -> None:
    # Given a commit that is on its way
    slow = Held()
    with ThreadPoolExecutor(51) as threads:
        first = threads.submit(database.write, slow, None)
        assert slow.begun.wait(60)
        # When fifty others arrive
        others = [threads.submit(database.write, insert, f"id-{n}") for n in range(50)]
        wait_until(lambda: len(database._waiting) == 50, what="all wait")
        slow.go_on.set()
        # Then they share one commit, and each gets its own result
        assert [other.result(60) for other in others] == [f"ID-{n}" for n in range(50)]
        first.result(60)
    assert len(commits) == 2
    assert {f"id-{n}" for n in range(50)} <= stored(database)


def test_what_is_alike_is_done_at_once_whatever_came_between(database: Database) -> None:
    # So that each kind of rows is locked once in a transaction, and in its order.
    slow, seen = Held(), list[list[str]]()

    def shout(connection: Connection, items: list[str]) -> list[str]:
        seen.append(items)
        return [item.upper() for item in items]

    def whisper(connection: Connection, items: list[str]) -> list[str]:
        seen.append(items)
        return [item.lower() for item in items]

    with ThreadPoolExecutor(5) as threads:
        threads.submit(database.write, slow, None)
        assert slow.begun.wait(60)
        others = []
        for number, (work, item) in enumerate(
            [(shout, "a"), (whisper, "B"), (shout, "c"), (whisper, "D")]
        ):
            others.append(threads.submit(database.write, work, item))
            wait_until(partial(waiting, database, number + 1), what="it waits")
        slow.go_on.set()
        assert [other.result(60) for other in others] == ["A", "b", "C", "d"]
    assert seen == [["a", "c"], ["B", "D"]]


def test_a_write_that_breaks_a_constraint_harms_no_other(database: Database) -> None:
    database.write(insert, "taken")
    slow = Held()
    with ThreadPoolExecutor(4) as threads:
        threads.submit(database.write, slow, None)
        assert slow.begun.wait(60)
        good, bad, better = (
            threads.submit(database.write, insert, id) for id in ("good", "taken", "better")
        )
        wait_until(lambda: len(database._waiting) == 3, what="all wait")
        slow.go_on.set()
        assert (good.result(60), better.result(60)) == ("GOOD", "BETTER")
        with pytest.raises(IntegrityError):
            bad.result(60)
    assert {"good", "better", "taken"} <= stored(database)


@pytest.mark.parametrize("wrong", ["half \ud800", object()])
def test_a_write_that_cannot_be_written_at_all_harms_no_other(
    database: Database, wrong: Any
) -> None:
    slow = Held()
    with ThreadPoolExecutor(4) as threads:
        threads.submit(database.write, slow, None)
        assert slow.begun.wait(60)
        good, bad, better = (
            threads.submit(database.write, insert, id) for id in ("good", wrong, "better")
        )
        wait_until(lambda: len(database._waiting) == 3, what="all wait")
        slow.go_on.set()
        assert (good.result(60), better.result(60)) == ("GOOD", "BETTER")
        with pytest.raises(
            Exception,
            match=r"surrogates|can't adapt|cannot adapt|not supported|attribute|type 'object'",
        ) as e:
            bad.result(60)
        assert not isinstance(e.value, AssertionError)


def test_a_writer_whose_commit_is_done_waits_for_nobody_elses(database: Database) -> None:
    first, second = Held(), Held()
    with ThreadPoolExecutor(3) as threads:
        # Given a write whose commit is on its way, and one that waits for the next
        done = threads.submit(database.write, first, None)
        assert first.begun.wait(60)
        threads.submit(database.write, second, None)
        wait_until(partial(waiting, database, 1), what="it waits")
        # When the first is committed and the second is not
        first.go_on.set()
        assert second.begun.wait(60)
        # Then the first goes on
        try:
            assert done.result(60) is None
        finally:
            second.go_on.set()


def test_many_writes_of_one_thread_are_done_together_each_with_its_own_result(
    database: Database, commits: list[Connection]
) -> None:
    many = [f"id-{n}" for n in range(BATCH_MAX + 50)]
    assert [result() for result in database.write_all((insert, many))[0]] == [
        id.upper() for id in many
    ]
    assert len(commits) == 2
    [[good, bad, better]] = database.write_all((insert, ["good", "id-7", "better"]))
    assert (good(), better()) == ("GOOD", "BETTER")
    with pytest.raises(IntegrityError):
        bad()
    assert database.write_all((insert, []), (insert, [])) == [[], []]


def test_many_writes_wait_for_a_commit_that_is_on_its_way_and_lead_the_next(
    database: Database, commits: list[Connection]
) -> None:
    slow = Held()
    with ThreadPoolExecutor(3) as threads:
        threads.submit(database.write, slow, None)
        assert slow.begun.wait(60)
        many = threads.submit(database.write_all, (insert, [f"id-{n}" for n in range(BATCH_MAX)]))
        wait_until(partial(waiting, database, BATCH_MAX), what="they wait")
        one = threads.submit(database.write, insert, "last")
        wait_until(partial(waiting, database, BATCH_MAX + 1), what="it waits behind them")
        slow.go_on.set()
        assert many.result(60)[0][-1]() == f"ID-{BATCH_MAX - 1}"
        assert one.result(60) == "LAST"
    assert len(commits) == 3


class _Stopped(BaseException):
    """What the handler of a signal raises."""


def test_a_writer_that_a_signal_stops_stops_nobody_else(database: Database) -> None:
    # Given a commit that is on its way, and this thread next in line to lead
    slow = Held()

    def stop(signum: int, frame: object) -> None:
        raise _Stopped

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with ThreadPoolExecutor(3) as threads:
            threads.submit(database.write, slow, None)
            assert slow.begun.wait(60)

            def stop_when_waiting() -> str:
                wait_until(partial(waiting, database, 1), what="it waits")
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                other = threads.submit(database.write, insert, "other")
                wait_until(partial(waiting, database, 2), what="both wait")
                slow.go_on.set()
                return other.result(60)

            other = threads.submit(stop_when_waiting)
            # When a signal stops it
            with pytest.raises(_Stopped):
                database.write(insert, "stopped")
            # Then both are written
            assert other.result(60) == "OTHER"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert {"stopped", "other"} <= stored(database)


def test_a_commit_that_was_interrupted_may_have_gone_through_and_is_not_done_again(
    database: Database,
) -> None:
    def stop_after_commit(connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        driver.commit()
        raise _Stopped

    event.listen(database.engine, "commit", stop_after_commit)
    [[one, two]] = database.write_all((insert, ["one", "two"]))
    event.remove(database.engine, "commit", stop_after_commit)
    for written in (one, two):
        with pytest.raises(CommitUnanswered):
            written()
    assert {"one", "two"} <= stored(database)


def test_a_disk_that_is_full_at_the_commit_is_told_and_nothing_is_written(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    upgrade(database)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(
        connection: Connection,
    ) -> None:  # SQLite's log can get no longer, and it writes there at the commit.
        length = Path(f"{database.url.database}-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (length, limits[1]))

    event.listen(database.engine, "commit", fill)
    try:
        with pytest.raises(StoreUnavailable, match="disk") as e:
            database.write(insert, "late")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        event.remove(database.engine, "commit", fill)
    assert not isinstance(e.value, CommitUnanswered)
    assert "late" not in stored(database)
    database.close()


def test_a_large_write_does_not_wait_for_its_turn(
    database: Database, commits: list[Connection]
) -> None:
    assert database.write(insert, "large", alone=True) == "LARGE"
    assert "large" in stored(database)


@pytest.mark.slow
def test_a_locked_file_is_told_and_nothing_is_written(sqlite_url: str) -> None:
    database = Database(f"{sqlite_url}?timeout=0.2")
    upgrade(database)
    with sqlite3.connect(str(database.url.database), isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="database is locked"):
            database.write(insert, "late")
        other.execute("ROLLBACK")
    other.close()
    assert "late" not in stored(database)
    database.close()


def test_a_restarted_postgresql_is_told_once_and_then_used_again(run_directory: Path) -> None:
    own = Postgres(run_directory / "postgres-restarted")
    own.start()
    try:
        own.create_database("mail")
        database = Database(own.url("mail"))
        upgrade(database)
        own.kill()
        with pytest.raises(StoreUnavailable):
            database.write(insert, "during")
        own.start()
        assert database.write(insert, "after") == "AFTER"
        database.close()
    finally:
        own.close()


def test_the_error_of_a_database_shows_no_value(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with pytest.raises(StoreUnavailable) as e:
        database.write(insert, "bob@example.org")
    assert "bob" not in str(e.value)
    assert "no such table" in str(e.value)
    database.close()


def test_a_migrated_database_is_what_the_schema_says(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    check(database)
    assert head() == ScriptDirectory(str(MIGRATIONS)).get_current_head()


def test_more_rows_than_one_statement_bears_go_in_several(database: Database) -> None:
    rows = [
        {
            "id": new_id(),
            "event": "accepted",
            "attempt": number,
            "detail": f"{number} " + "ä" * 1000,
        }
        for number in range(2500)
    ]
    rows += [{"id": new_id(), "event": "accepted", "detail": "x" * (CHARACTERS_MAX + 1)}]
    statements: list[str] = []
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, parameters, context, many: statements.append(
            statement
        ),
    )
    insert = inserted(events, ["id", "event", "attempt", "detail"], at=literal(1))
    with database.engine.begin() as connection:
        insert(connection, rows)
        insert(connection, [])
    assert len(set(statements)) == 1
    assert 4 <= len(statements) <= 20
    columns = (events.c.id, events.c.event, events.c.attempt, events.c.detail)
    found = database.read(
        lambda connection: (
            connection.execute(select(*columns).order_by(events.c.number)).mappings().all()
        )
    )
    assert [dict(row) for row in found] == [{"attempt": None} | row for row in rows]


def test_what_was_there_before_can_be_searched_after_an_upgrade(database_url: str) -> None:
    database = Database(database_url)

    def as_it_was(connection: Connection) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0004")
        connection.execute(
            text(
                "INSERT INTO messages (id, state, queue, message_id, created_at, attempt, uncertain_attempts, crashes) "
                "VALUES ('a', 'sent', 'mail', 'a@example.org', 1, 1, 0, 0)"
            )
        )
        connection.execute(
            text("INSERT INTO contents (id, content) VALUES ('a', :content)"),
            {"content": Message(to=(), subject='An "OLD" one').to_row()},
        )

    database.transaction(as_it_was)
    upgrade(database)
    assert [row["id"] for row in listed(database, Search(words='"old')).rows] == ["a"]
    database.close()


def test_processes_that_start_together_migrate_one_after_the_other(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(upgrade, databases))
    assert len({database.outbox_id for database in databases}) == 1
    for database in databases:
        check(database)
        database.close()


def test_a_database_without_the_schema_is_named_with_the_way_out(database_url: str) -> None:
    database = Database(database_url)
    with pytest.raises(
        SchemaOutdated, match="expected schema 0007, found none; run `flask db upgrade`"
    ):
        check(database)
    database.close()


def test_sqlite_commits_reach_the_disk(sqlite_url: str) -> None:
    database = Database(sqlite_url)

    def pragma(name: str) -> Any:
        return database.read(lambda connection: connection.scalar(text(f"PRAGMA {name}")))

    assert (pragma("journal_mode"), pragma("synchronous"), pragma("foreign_keys")) == ("wal", 2, 1)
    database.close()


def test_the_clock_is_the_databases_in_milliseconds(database: Database) -> None:
    before = int(time.time() * 1000)
    there = database.read(lambda connection: connection.scalar(now_ms().select()))
    assert there is not None
    # SQLite counts in days, as a float, which may be a millisecond less.
    assert before <= there + 1
    assert there <= time.time() * 1000


def test_a_password_in_the_url_is_not_shown() -> None:
    assert "s3cret" not in repr(Database("postgresql://mail:s3cret@localhost/mail"))
