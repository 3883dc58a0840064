"""The application in this very process, for tests of what it answers."""

from collections.abc import Iterator

from flask import Flask

import app as web
import mailasync
from mailroom.settings import load
from tests.services.schema import ready


def made(database_url: str, **settings: str) -> Iterator[Flask]:
    """Yield the application on this database, which is brought up to date, with a broker that nobody listens on."""
    given = {"ENV_FILE": "", "BROKER_URL": "pyamqp://guest@127.0.0.1:9//", "DATABASE_URL": database_url} | settings
    read = load({f"MAILASYNC_{name}": value for name, value in given.items()})
    database = ready(database_url)
    served = web.create_app(read, database=database)
    yield served
    served.extensions["mailasync"].api_keys.close()
    mailasync.stop_relay()
    database.close()
