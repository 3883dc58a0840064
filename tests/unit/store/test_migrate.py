"""The schema and the encoding of a database: what is brought up to date, and what stops the start."""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import make_url, text

import app as web
from mailroom.cli.doctor import Doctor
from mailroom.config.environment import load
from mailroom.config.settings import Settings
from mailroom.model.errors import MailroomError
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import NotUTF8, SchemaNewer, SchemaOutdated, check, head, upgrade
from mailroom.worker import runtime
from tests.services.postgres import Postgres

NEWER = (
    f"this database is newer than this mailasync (9999, known to {head()}): start the newer version"
)


def settings_of(url: str) -> Settings:
    return load({"MAILASYNC_ENV_FILE": "", "MAILASYNC_DATABASE_URL": url})


def start(url: str) -> None:
    """As app.py and a worker do."""
    runtime.open_database(settings_of(url)).close()


def bring_up(url: str) -> None:
    database = Database(url)
    try:
        upgrade(database)
    finally:
        database.close()


@pytest.fixture
def newer(database: Database) -> str:
    """The URL of a database that a newer version has changed."""
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    return database.url.render_as_string(hide_password=False)


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def not_utf8(postgres: Postgres, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty database that cannot hold every character."""
    name = f"test_{secrets.token_hex(4)}"
    postgres.create_database(name, encoding=request.param)
    yield postgres.url(name)
    postgres.drop_database(name)


def examined(url: str) -> tuple[bool, str]:
    """How the doctor finds this database."""
    database = Database(url)
    try:
        found = {one.what: one for one in Doctor(settings_of(url), database, [], None).examine()}
    finally:
        database.close()
    return found["database"].ok, found["database"].words


def upgraded_by_command(url: str) -> str:
    """What `flask db upgrade` prints where it fails."""
    done = web.create_app(settings_of(url)).test_cli_runner().invoke(args=["db", "upgrade"])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    return done.output


def test_an_empty_database_is_set_up_by_whoever_starts_first(database_url: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(start, [database_url] * 4))
    database = Database(database_url)
    check(database)
    database.close()


def test_an_older_schema_waits_for_the_command(database: Database) -> None:
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    with pytest.raises(
        SchemaOutdated, match=r"expected schema .*, found 0001; run `flask db upgrade`"
    ):
        start(database.url.render_as_string(hide_password=False))


def test_a_database_that_holds_something_else_waits_for_the_command(database_url: str) -> None:
    database = Database(database_url)
    with database.engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id integer)"))
    database.close()
    with pytest.raises(SchemaOutdated, match="found none; run `flask db upgrade`"):
        start(database_url)


def test_an_empty_database_where_we_may_make_no_table_waits_for_the_command(
    postgres_url: str,
) -> None:
    user = f"guest_{secrets.token_hex(4)}"
    owner = Database(postgres_url)
    try:
        with owner.engine.begin() as connection:
            connection.execute(text(f"CREATE ROLE {user} LOGIN"))
            connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
        guest = make_url(postgres_url).set(username=user)
        with pytest.raises(SchemaOutdated, match="found none; run `flask db upgrade`"):
            start(guest.render_as_string(hide_password=False))
    finally:
        with owner.engine.begin() as connection:
            connection.execute(text(f"DROP ROLE {user}"))
        owner.close()


@pytest.mark.parametrize("act", [start, bring_up])
def test_a_database_of_a_newer_version_is_left_alone(
    newer: str, act: Callable[[str], None]
) -> None:
    with pytest.raises(SchemaNewer) as e:
        act(newer)
    assert str(e.value) == NEWER


def test_a_newer_version_is_named_to_whoever_asks(newer: str) -> None:
    assert upgraded_by_command(newer) == f"Error: {NEWER}\n"
    assert examined(newer) == (False, NEWER)


@pytest.mark.parametrize("act", [start, bring_up])
def test_a_database_that_cannot_hold_every_character_is_refused(
    not_utf8: str, act: Callable[[str], None]
) -> None:
    with pytest.raises(
        NotUTF8,
        match=r"encoded in (LATIN1|SQL_ASCII), .*; create another with `CREATE DATABASE name ENCODING 'UTF8'",
    ):
        act(not_utf8)


def test_an_encoding_is_named_to_whoever_asks(not_utf8: str) -> None:
    is_well, words = examined(not_utf8)
    assert (is_well, words.startswith("this PostgreSQL database is encoded in ")) == (False, True)
    assert upgraded_by_command(not_utf8) == f"Error: {words}\n"


def test_the_environments_encoding_has_no_say(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    database = Database(postgres_url)
    upgrade(database)
    check(database)
    assert database.read(lambda connection: connection.scalar(text("SELECT '✓'"))) == "✓"
    database.close()


def test_a_database_that_is_away_is_one_sentence() -> None:
    url = "postgresql://postgres@127.0.0.1:9/mail"
    with pytest.raises(MailroomError, match="database: connection failed"):
        start(url)
    assert "connection failed" in upgraded_by_command(url)
