"""Reads the arguments of our tasks: a nudge of our own, or whatever a Celery client sent."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mailroom.model.ids import is_id


def read_nudge(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[str], str] | None:
    """Return the ids and the outbox that a nudge of ours names; None for what any other client sent."""
    if kwargs or len(args) != 2 or not isinstance(args[0], list) or not isinstance(args[1], str):
        return None
    ids, outbox_id = args
    return (
        (ids, outbox_id)
        if is_uuid(outbox_id) and all(isinstance(id, str) and is_id(id) for id in ids)
        else None
    )


def read_mail(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Return the object of `POST /` in what a Celery client sent: `{...}`, or `to=..., subject=...`."""
    return (args[0] if len(args) == 1 else list(args)) if args else dict(kwargs)


def read_job(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Return the object of `POST /v1/jobs` in what a Celery client sent.

    That is `{...}`, or `"coffee"`, or `"coffee", {"cups": 2}`.
    """
    if args and isinstance(args[0], str) and len(args) <= 2 and not kwargs:
        return {"name": args[0], "args": args[1] if len(args) == 2 else {}}
    return read_mail(args, kwargs)


def is_uuid(value: object) -> bool:
    """Tell whether it is the id of an outbox, or of a row and nothing else that a client may send."""
    return (
        isinstance(value, str)
        and re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value) is not None
    )
