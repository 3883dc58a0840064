"""Finds the messages that still belong to their owner."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, tuple_

from mailroom.store.db.schema import messages


def mine(owner: str, claims: Sequence[Any]) -> list[Any]:
    """Return the conditions on the rows of `claims` that they still have this owner and this attempt.

    Each claim is anything with an id and an attempt.
    """
    attempts = [(claim.id, claim.attempt) for claim in claims]
    return [
        messages.c.id.in_([id for id, _ in attempts]),
        tuple_(messages.c.id, messages.c.attempt).in_(attempts),
        # coalesce keeps SQLite from choosing the index on owner, which has all rows of the worker.
        func.coalesce(messages.c.owner, "") == owner,
    ]
