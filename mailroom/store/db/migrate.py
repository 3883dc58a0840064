"""Upgrades a database to the schema of this version, one process at a time."""

import contextlib

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import ProgrammingError

from mailroom.model.errors import MailroomError
from mailroom.process.installation import PROGRAM, PROJECT
from mailroom.process.lazy_import import Lazy
from mailroom.store.db.database import Database

command, config = Lazy("alembic.command"), Lazy("alembic.config")

MIGRATIONS = PROJECT / "migrations"

#: Any number that nobody else takes for a PostgreSQL advisory lock in this database.
_LOCK = 7_263_501


class SchemaOutdated(MailroomError):
    """The database has an older schema than this version, and a person has to start the upgrade."""


class SchemaNewer(MailroomError):
    """A newer version has changed the schema, which this one would read and write wrongly."""


class NotUTF8(MailroomError):
    """The database cannot store every character of a mail or a reply."""


def upgrade(database: Database) -> None:
    """Apply the missing migrations. Of two processes that start together, the second waits and finds none.

    Raises:
      SchemaNewer, NotUTF8: nothing was changed.
    """
    database.transaction(_upgrade)


def upgrade_if_empty(database: Database) -> None:
    """Set up a database that has no table yet; one with any table is left as it is.

    So is one in which our user may make no table: `flask db upgrade` is run by another one then.
    """
    if database.read(_is_empty):
        with contextlib.suppress(ProgrammingError):
            upgrade(database)


def check(database: Database) -> None:
    """Check that this version can work with the database.

    Raises:
      SchemaOutdated: `flask db upgrade` has to be run first.
      SchemaNewer: a newer version has to be started.
      NotUTF8: another database is needed.
    """
    found = database.read(_fitting_revision)
    if found != head():
        raise SchemaOutdated(
            f"{database}: expected schema {head()}, found {found or 'none'}; run `{PROGRAM} db upgrade`"
        )


def head() -> str:
    """Return the revision of this version."""
    return max(_known())


def _known() -> set[str]:
    """Return every revision up to this version's, from the names of the migrations' files."""
    return {file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")}


def _fitting_revision(connection: Connection) -> str | None:
    """Return the revision of a database that this version can read or upgrade; None if it is empty."""
    _refuse_encoding(connection)
    found = _revision(connection)
    if found is not None and found not in _known():
        raise SchemaNewer(
            f"this database is newer than this mailasync ({found}, known to {head()}): "
            "start the newer version"
        )
    return found


def _refuse_encoding(connection: Connection) -> None:
    if connection.dialect.name != "postgresql":
        return
    encoding = connection.scalar(text("SHOW server_encoding"))
    if encoding != "UTF8":
        raise NotUTF8(
            f"this PostgreSQL database is encoded in {encoding}, which cannot hold every mail; "
            "create another with `CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0`"
        )


def _is_empty(connection: Connection) -> bool:
    return not inspect(connection).get_table_names()


def _revision(connection: Connection) -> str | None:
    has_any = inspect(connection).has_table("alembic_version")
    return connection.scalar(text("SELECT version_num FROM alembic_version")) if has_any else None


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if _fitting_revision(connection) == head():
        return
    how = config.Config()
    how.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    how.attributes["connection"] = connection
    command.upgrade(how, "head")
