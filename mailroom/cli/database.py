"""Opens the database that a command is about: the one that was set, else the pair's, or that of `flask up` where only that runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click

from mailroom.config.settings import PREFIX, UP_FILE, Settings, database_url
from mailroom.model.errors import MailroomError, StoreUnavailable
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import check, upgrade
from mailroom.store.messages.outbox import Outbox


class NoDatabase(MailroomError):
    """The file that is ours by default is not there, and a command that looks at it shall not make it."""


@dataclass(frozen=True)
class Choice:
    """A database, and whose it is."""

    url: str
    is_ours: bool = False  #: a file in instance/, that nobody named
    is_up: bool = False  #: the one of `flask up`


def choose(settings: Settings) -> Choice:
    """The database of the settings. Where they name none: the pair's file; that of `flask up` while it works, and the pair does not."""
    ours, up = pair(settings), Choice(database_url(settings, file_name=UP_FILE), is_ours=True, is_up=True)
    return up if ours.is_ours and _works(up, settings) and not _works(ours, settings) else ours


def pair(settings: Settings) -> Choice:
    """The database of app.py and its workers, whoever runs."""
    return Choice(database_url(settings), is_ours=not settings.DATABASE_URL)


@contextmanager
def opened(settings: Settings, choice: Choice | None = None) -> Iterator[Database]:
    """The database, for a command. Without a choice that one is made, and is told where it is not the pair's."""
    if choice is None:
        choice = choose(settings)
    if choice.is_up:
        click.echo(
            f"(this is about flask up, which runs here while the pair does not: {_file(choice)}; "
            f"{PREFIX}DATABASE_URL names another)",
            err=True,
        )
    if choice.is_ours and not _file(choice).exists():
        raise NoDatabase(
            f"{_file(choice)} is not there yet: start app.py or a worker, which make it, or run `flask db upgrade`"
            + _hint(settings)
        )
    database = Database(choice.url)
    try:
        check(database)
        yield database
    finally:
        database.close()


def _hint(settings: Settings) -> str:
    url = database_url(settings, file_name=UP_FILE)
    there = _file(Choice(url)).exists()
    return (
        f". There is one of `flask up`, which does not run: start it, or set {PREFIX}DATABASE_URL={url}"
        if there
        else ""
    )


def _file(choice: Choice) -> Path:
    return Path(choice.url.removeprefix("sqlite:///"))


def _works(choice: Choice, settings: Settings) -> bool:
    """Tell whether a worker is alive on this file; one that cannot be read has none that we could help."""
    if not _file(choice).exists():
        return False
    database = Database(choice.url)
    try:
        seen = Outbox(database).worker_seen_ms_ago()
    except StoreUnavailable:
        return False
    finally:
        database.close()
    return seen is not None and seen <= settings.LEASE_SECONDS * 1000


def db_upgrade(settings: Settings) -> str:
    database = Database(database_url(settings))
    try:
        upgrade(database)
    finally:
        database.close()
    return f"{database} is up to date"
