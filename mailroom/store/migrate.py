"""Brings a database to the present schema, one process at a time."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from mailroom.mail.errors import MailroomError
from mailroom.store.database import Database

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
    found = database.read(lambda connection: MigrationContext.configure(connection).get_current_revision())
    wanted = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    if found != wanted:
        raise SchemaOutdated(f"{database}: expected schema {wanted}, found {found or 'none'}; run `flask db upgrade`")


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
