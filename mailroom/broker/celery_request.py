"""A Celery request that keeps mails out of Celery's events, and that Celery does not drop when it expires."""

from datetime import UTC, datetime
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request


class QuietRequest(Request):
    """Hides the arguments of the task, which may be a client's mail, from the events that Flower reads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = "()"
        self._kwargsrepr = "{}"
        _refuse_malformed(self)
        # Celery would drop a task that has expired. The time is left to the task, which records it as failed.
        request: Any = self
        expires = request.expires
        request._request_dict["expires"] = expires and expires.isoformat()
        request.expires = None


def has_expired(expires: str | None) -> bool:
    """Tell whether the `expires` of a QuietRequest is in the past."""
    if expires is None:
        return False
    return datetime.fromisoformat(expires) <= datetime.now(UTC)


def _refuse_malformed(request: Any) -> None:
    """Raise InvalidTaskError for what Celery would fail at later, where nothing records it."""
    if not isinstance(request.id, str | int):
        raise InvalidTaskError("no id")
    embedded = request._payload[2]
    has_list = isinstance(request.args, list | tuple)
    has_object = isinstance(request.kwargs, dict)
    if not has_list or not has_object:
        raise InvalidTaskError("other arguments than a list and an object")
    if not isinstance(embedded, dict | None):
        raise InvalidTaskError("other options than an object")
