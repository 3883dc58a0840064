"""The parts that all commands share: how they open the database, and say what came of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import click

from mailroom.model.errors import MailroomError
from mailroom.store.db.database import Database

Opened = Callable[[], AbstractContextManager[Database]]
AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object.")


@contextmanager
def told() -> Iterator[None]:
    """An error of ours as one sentence."""
    try:
        yield
    except MailroomError as e:
        raise click.ClickException(str(e)) from None
