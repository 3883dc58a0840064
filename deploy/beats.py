"""Exits with 0 if a worker of this host is alive: `python -m deploy.beats`.

`celery inspect ping` gets no reply, as remote control is off; so this reads the heartbeat in the database.
"""

import socket
import sys

from sqlalchemy import Connection, func, select

from mailroom.config.environment import load
from mailroom.config.settings import database_url
from mailroom.model.errors import StoreUnavailable
from mailroom.store.db.database import Database
from mailroom.store.db.schema import workers
from mailroom.store.workers import is_alive


def living(host: str) -> int:
    """Return how many workers of this host have sent a heartbeat within their lease."""
    settings = load()
    database = Database(database_url(settings))

    def count(connection: Connection) -> int:
        ours = workers.c.name.endswith(f"@{host}", autoescape=True)
        return (
            connection.scalar(select(func.count()).where(is_alive(settings.LEASE_SECONDS), ours))
            or 0
        )

    try:
        return database.read(count)
    finally:
        database.close()


if __name__ == "__main__":
    try:
        sys.exit(None if living(socket.gethostname()) else "no worker of this host was seen lately")
    except StoreUnavailable as e:
        sys.exit(str(e))
