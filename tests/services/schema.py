"""Empty databases of this version, made in no time: copies of one that was brought up to date."""

import contextlib
import sqlite3
import tempfile
from functools import cache
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import URL, make_url

from mailroom.store.db.database import Database
from mailroom.store.db.migrate import upgrade
from tests.services.postgres import create_database

#: For a test that runs on one kind of database only: what makes the difference is tested on both, below it.
on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

#: On each server of PostgreSQL, the one that is copied.
TEMPLATE = "mailasync_template"


def ready(url: str) -> Database:
    """Open this database, with the present schema."""
    at = make_url(url)
    if at.drivername == "sqlite" and at.database and not Path(at.database).exists():
        _copy_file(Path(at.database))
    elif at.drivername == "postgresql" and _is_empty(url):
        _copy_database(at)
    else:
        bring_up(url)
    return Database(url)


def bring_up(url: str) -> None:
    database = Database(url)
    upgrade(database)
    database.close()


def _copy_file(file: Path) -> None:
    file.write_bytes(_brought_up())
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as link:
        link.execute("UPDATE identity SET outbox_id = ?", (str(uuid4()),))


@cache
def _brought_up() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "template.sqlite3"
        bring_up(f"sqlite:///{file}")
        return file.read_bytes()


def _is_empty(url: str) -> bool:
    with psycopg.connect(url) as link:
        return link.execute("SELECT to_regclass('alembic_version')").fetchone() == (None,)


def _copy_database(at: URL) -> None:
    server = at.set(database="postgres").render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as link:
        link.execute("SELECT pg_advisory_lock(1)")  # until this link ends
        if not link.execute("SELECT 1 FROM pg_database WHERE datname = %s", [TEMPLATE]).fetchone():
            create_database(server, TEMPLATE)
            bring_up(at.set(database=TEMPLATE).render_as_string(hide_password=False))
    with psycopg.connect(server, autocommit=True) as link:
        link.execute(
            psycopg.sql.SQL("DROP DATABASE {}").format(psycopg.sql.Identifier(str(at.database)))
        )
    create_database(server, str(at.database), template=TEMPLATE)
    with psycopg.connect(at.render_as_string(hide_password=False), autocommit=True) as link:
        link.execute("UPDATE identity SET outbox_id = %s", [str(uuid4())])
