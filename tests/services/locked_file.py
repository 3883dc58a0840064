"""An SQLite file that another process has locked for a while."""

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mailroom.store.db.database import Database
from tests.services import let_pass

R = TypeVar("R")


def kept_waiting(database: Database, act: Callable[[], R], *, seconds: float) -> R:
    """Return what `act`, which writes, returns after it had to wait so long for the file."""
    with (
        sqlite3.connect(str(database.url.database), isolation_level=None) as other,
        ThreadPoolExecutor(1) as threads,
    ):
        other.execute("BEGIN IMMEDIATE")
        acting = threads.submit(act)
        let_pass(seconds)
        other.execute("ROLLBACK")
        return acting.result()
