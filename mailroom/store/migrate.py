"""Brings a database to the present schema, one process at a time."""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from mailroom.lazy import Lazy
from mailroom.mail.errors import MailroomError
from mailroom.store.database import Database

command, config = Lazy("alembic.command"), Lazy("alembic.config")

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"

#: Any number that nobody else takes for a PostgreSQL advisory lock in this database.
_LOCK = 7_263_501


class SchemaOutdated(MailroomError):
    """The database has not the schema of this version, and it is not ours to change it unasked."""


def upgrade(database: Database) -> None:
    """Apply what is missing. Two processes that start together do it one after the other, and the second finds nothing to do."""
    database.transaction(_upgrade)


def check(database: Database) -> None:
    """Raises SchemaOutdated if `flask db upgrade` has to be run first."""
    found = database.read(_revision)
    if found != head():
        raise SchemaOutdated(f"{database}: expected schema {head()}, found {found or 'none'}; run `flask db upgrade`")


def head() -> str:
    """The revision of this version: each migration's file begins with its own, and they are one after the other."""
    return max(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _revision(connection: Connection) -> str | None:
    has_any = inspect(connection).has_table("alembic_version")
    return connection.scalar(text("SELECT version_num FROM alembic_version")) if has_any else None


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if _revision(connection) == head():
        return
    how = config.Config()
    how.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    how.attributes["connection"] = connection
    command.upgrade(how, "head")
