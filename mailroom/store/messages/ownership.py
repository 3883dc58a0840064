"""Tells which messages are still an owner's."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, tuple_

from mailroom.store.db.schema import messages


def mine(owner: str, claims: Sequence[Any]) -> list[Any]:
    """The rows of `claims` (or of anything with an id and an attempt) that are still this owner's and this attempt's."""
    return [
        messages.c.id.in_([claim.id for claim in claims]),
        tuple_(messages.c.id, messages.c.attempt).in_([(claim.id, claim.attempt) for claim in claims]),
        # coalesce keeps SQLite from choosing the index on owner, which holds every row of the worker.
        func.coalesce(messages.c.owner, "") == owner,
    ]
