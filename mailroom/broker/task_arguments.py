"""Reads the arguments of the tasks: a nudge of this service, or whatever another Celery client sent."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mailroom.model.ids import is_id

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Nudge(NamedTuple):
    """The arguments of a sendMail that this service published."""

    ids: list[str]
    outbox_id: str


def read_nudge(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Nudge | None:
    """Return the ids and the outbox that a nudge of ours names; None for a task of any other client."""
    if kwargs or len(args) != 2:
        return None
    ids, outbox_id = args
    if not is_uuid(outbox_id):
        return None
    if not isinstance(ids, list) or not all(map(_is_message_id, ids)):
        return None
    return Nudge(ids, outbox_id)


def read_mail(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Return the object of `POST /` in a task of another client: `{...}`, or `to=..., subject=...`."""
    if not args:
        return dict(kwargs)
    if len(args) == 1:
        return args[0]
    return list(args)


def read_job(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
    """Return the object of `POST /v1/jobs` in a task of another client.

    The arguments are `{...}`, or `"coffee"`, or `"coffee", {"cups": 2}`.
    """
    if kwargs or not args or not isinstance(args[0], str):
        return read_mail(args, kwargs)
    if len(args) == 1:
        return {"name": args[0], "args": {}}
    if len(args) == 2:
        return {"name": args[0], "args": args[1]}
    return read_mail(args, kwargs)


def is_uuid(value: object) -> bool:
    """Tell whether this is a UUID: the id in a nudge, and not the name of a job."""
    if not isinstance(value, str):
        return False
    return UUID.fullmatch(value) is not None


def _is_message_id(value: object) -> bool:
    return isinstance(value, str) and is_id(value)
