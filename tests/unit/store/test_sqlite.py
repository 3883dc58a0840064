"""SQLite's file: whose it is, and what happens when it is moved or deleted while it is open."""

import json
import os
import pwd
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mailroom.model.errors import StoreUnavailable
from mailroom.store.db.database import Database
from mailroom.store.templates import Templates
from tests.services import free_port
from tests.services.processes import service
from tests.services.schema import ready
from tests.unit.api.test_messages import MAIL

NOBODY = 65_534


def add(database: Database, name: str) -> None:
    Templates(database).save(name, subject="Hello", text="Hi", html=None)


def names(database: Database) -> set[str]:
    return {row["name"] for row in Templates(database).page(limit=100)}


@pytest.fixture
def file(sqlite_url: str) -> Path:
    return Path(sqlite_url.removeprefix("sqlite:///"))


@pytest.fixture
def opened(sqlite_url: str) -> Iterator[Database]:
    """A database with one template, and connections that stay open."""
    database = ready(sqlite_url)
    add(database, "before")
    yield database
    database.close()


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user can enter; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="mailasync-test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@contextmanager
def as_an_ordinary_user() -> Iterator[None]:
    """Root may do everything: for a while this process is nobody."""
    if os.getuid():
        yield
        return
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_file_that_was_moved_takes_nothing_and_goes_on_when_it_is_back(
    opened: Database, file: Path
) -> None:
    file.rename(file.with_suffix(".away"))
    for act in (
        lambda: add(opened, "lost"),
        lambda: names(opened),
        lambda: opened.transaction(lambda connection: None),
    ):
        with pytest.raises(
            StoreUnavailable,
            match=re.escape(
                f"{file} was moved or deleted while it was open: put it back, or stop web"
            ),
        ):
            act()
    assert not file.exists()  # SQLite would have made a new one.
    file.with_suffix(".away").rename(file)
    add(opened, "after")
    assert names(opened) == {"before", "after"}


def test_another_file_in_its_place_is_not_taken_for_it(opened: Database, file: Path) -> None:
    shutil.copy(file, file.with_suffix(".copy"))
    file.with_suffix(".copy").replace(file)
    with pytest.raises(
        StoreUnavailable, match=re.escape(f"{file} was replaced by another file while it was open")
    ):
        add(opened, "lost")


def test_a_log_that_was_deleted_takes_nothing_and_is_saved_by_stopping(
    opened: Database, file: Path
) -> None:
    Path(f"{file}-wal").unlink()
    with pytest.raises(
        StoreUnavailable,
        match="-wal was moved or deleted while it was open: stop web and workers, which saves",
    ):
        add(opened, "lost")
    opened.close()
    again = Database(f"sqlite:///{file}")
    assert names(again) == {"before"}
    again.close()


def test_a_database_whose_connections_were_all_closed_is_opened_again(
    opened: Database, file: Path
) -> None:
    opened.engine.dispose()
    assert not Path(f"{file}-wal").exists()
    add(opened, "after")
    assert names(opened) == {"before", "after"}


def test_requests_and_readiness_tell_of_a_file_that_was_moved(
    app: Flask, client: FlaskClient, file: Path
) -> None:
    assert client.post("/v1/messages", json=MAIL).status_code == 202
    file.rename(file.with_suffix(".away"))
    assert client.post("/v1/messages", json=MAIL).status_code == 503
    ready = client.get("/readyz")
    assert (
        ready.status_code,
        "was moved or deleted" in json.loads(ready.data)["checks"]["database"],
    ) == (
        503,
        True,
    )


def test_web_and_worker_notice_within_seconds_and_go_on_when_it_is_back(
    tmp_path: Path, file: Path, sqlite_url: str
) -> None:
    with service(tmp_path, DATABASE_URL=sqlite_url, INBOX_SMTP_PORT=str(free_port())) as made:
        made.upgrade()
        up = made.up()
        made.post("/v1/messages")
        file.rename(file.with_suffix(".away"))
        up.says("ERROR mailasync.sweeper: database: ", timeout=60)
        assert made.request("POST", "/v1/messages", MAIL)[0] == 503
        assert "was moved or deleted" in made.get("/readyz")["checks"]["database"]
        file.with_suffix(".away").rename(file)
        assert made.final(made.post("/v1/messages"), timeout=60)["status"] == "sent"


# --- a file that cannot be opened ---------------------------------------------------------------------------


def refusal(url: str) -> str:
    """What is said of a database at its first use."""
    database = Database(url)
    try:
        with pytest.raises(StoreUnavailable) as e:
            names(database)
    finally:
        database.close()
    return str(e.value)


def test_a_file_of_another_user_is_named_with_both(reachable: Path) -> None:
    file = reachable / "mail.sqlite3"
    ready(f"sqlite:///{file}").close()
    file.chmod(0o444)
    with as_an_ordinary_user():
        said, me = refusal(f"sqlite:///{file}"), pwd.getpwuid(os.getuid()).pw_name
    assert said == (
        f"database: {file} cannot be opened: user {me} may not read and write {file}, which belongs to "
        f"user {pwd.getpwuid(os.getuid()).pw_name}"
    )


def test_a_directory_of_another_user_is_named(reachable: Path) -> None:
    closed = reachable / "closed"
    closed.mkdir(mode=0o555)
    with as_an_ordinary_user():
        assert f"may not read and write {closed}, which belongs to" in refusal(
            f"sqlite:///{closed}/mail.sqlite3"
        )
        assert f"{closed}/deep: Permission denied" in refusal(
            f"sqlite:///{closed}/deep/mail.sqlite3"
        )


def test_a_directory_and_a_text_are_no_database(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but a text of more than one hundred bytes" * 3)
    assert refusal(f"sqlite:///{tmp_path}") == f"database: {tmp_path}: unable to open database file"
    assert (
        refusal(f"sqlite:///{tmp_path}/text")
        == f"database: {tmp_path}/text: file is not a database"
    )
