"""Opens the database for a command.

That is the one that the settings name, or else the file of app.py and its workers ("the pair"), or the file
of `flask up` if only that runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from mailroom.config.settings import PREFIX, UP_FILE, Settings, database_url
from mailroom.model.errors import MailroomError, StoreUnavailable
from mailroom.process.installation import PROGRAM, WEB
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import check, upgrade
from mailroom.store.messages.outbox import Outbox


class NoDatabase(MailroomError):
    """The default database file does not exist, and a command that only reads it must not create it."""


@dataclass(frozen=True)
class Choice:
    """A database, and which service it belongs to."""

    url: str
    is_default_file: bool = False  #: a file in instance/, which no setting names
    is_up: bool = False  #: the file of `flask up`

    @property
    def file(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///"))


def choose_database(settings: Settings) -> Choice:
    """Return the database of the settings, or else the pair's file.

    The file of `flask up` is returned instead while that has a living worker and the pair has none.
    """
    pair = pair_database(settings)
    up = Choice(database_url(settings, file_name=UP_FILE), is_default_file=True, is_up=True)
    if pair.is_default_file and _has_worker(up, settings) and not _has_worker(pair, settings):
        return up
    return pair


def pair_database(settings: Settings) -> Choice:
    """Return the database of app.py and its workers, whether they run or not."""
    return Choice(database_url(settings), is_default_file=not settings.DATABASE_URL)


@contextmanager
def open_database(settings: Settings, choice: Choice | None = None) -> Iterator[Database]:
    """Open the chosen database, or else choose one; say on standard error if it is that of `flask up`.

    Raises:
      NoDatabase: it is the default file, and does not exist.
      MailroomError: it cannot be used, or has the schema of another version.
    """
    choice = choice or choose_database(settings)
    if choice.is_up:
        click.echo(
            f"(using the database of {PROGRAM} up, which is running here while {WEB} and its worker are not: "
            f"{choice.file}; set {PREFIX}DATABASE_URL to use another)",
            err=True,
        )
    if choice.is_default_file and not choice.file.exists():
        raise NoDatabase(
            f"{choice.file} is not there yet: start {WEB} or a worker, which create it, "
            f"or run `{PROGRAM} db upgrade`{_hint_at_up(settings)}"
        )
    database = Database(choice.url)
    try:
        check(database)
        yield database
    finally:
        database.close()


def _hint_at_up(settings: Settings) -> str:
    url = database_url(settings, file_name=UP_FILE)
    if not Choice(url).file.exists():
        return ""
    return f". `{PROGRAM} up` has a database, but is not running: start it, or set {PREFIX}DATABASE_URL={url}"


def _has_worker(choice: Choice, settings: Settings) -> bool:
    """Tell whether a worker is alive on this file; False also if the file cannot be read."""
    if not choice.file.exists():
        return False
    database = Database(choice.url)
    try:
        seen_ms_ago = Outbox(database).worker_seen_ms_ago()
    except StoreUnavailable:
        return False
    finally:
        database.close()
    return seen_ms_ago is not None and seen_ms_ago <= settings.LEASE_SECONDS * 1000


def db_upgrade(settings: Settings) -> str:
    """Upgrade the database of the settings; return a line that says so."""
    database = Database(database_url(settings))
    try:
        upgrade(database)
    finally:
        database.close()
    return f"{database} is up to date"
