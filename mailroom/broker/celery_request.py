"""The request of a task, which shows nothing of a mail to events, and is not dropped by Celery when it has expired."""

from datetime import UTC, datetime
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.request import Request


class QuietRequest(Request):
    """Keeps to itself what `argsrepr` shows of a client's mail; events would tell it to whoever listens."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr, self._kwargsrepr = "()", "{}"
        _refuse_odd(self)
        # Celery drops a task that has expired. Its time is left to the task, which records that.
        request: Any = self
        request._request_dict["expires"] = request.expires and request.expires.isoformat()
        request.expires = None


def has_expired(expires: str | None) -> bool:
    """Tell whether this moment, as a QuietRequest has it for its task, has come."""
    return expires is not None and datetime.fromisoformat(expires) <= datetime.now(UTC)


def _refuse_odd(request: Any) -> None:
    """Stop at what Celery would stumble over later, where nobody records it."""
    if not isinstance(request.id, str | int):
        raise InvalidTaskError("no id")
    embedded = request._payload[2]
    if not isinstance(request.args, list | tuple) or not isinstance(request.kwargs, dict):
        raise InvalidTaskError("other arguments than a list and an object")
    if not isinstance(embedded, dict | None):
        raise InvalidTaskError("other options than an object")
