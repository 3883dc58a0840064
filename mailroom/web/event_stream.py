"""Tells open pages to refresh, by a stream of server-sent events (WHATWG HTML, 9.2).

A stream occupies a thread of the server. So there are few, each ends after a while, and a page without one
refreshes every few seconds.
"""

import threading
import time
from collections.abc import Callable, Iterator

from flask import Blueprint, Response

from mailroom.api.auth.guard import access_check
from mailroom.api.http import prefer_wait
from mailroom.api.problems import problem
from mailroom.api.services import services
from mailroom.model.errors import StoreUnavailable
from mailroom.store.events.changes import pulse

blueprint = Blueprint("live", __name__)

STREAMS_MAX = 20
#: Duration of a stream, after which browsers reconnect; also how long a vanished client occupies a thread.
STREAM_SECONDS = 60.0
CHECK_SECONDS = 0.5
#: How often a stream without news sends a comment line, which shows that a connection is dead.
HEARTBEAT_SECONDS = 5.0
_slots = threading.BoundedSemaphore(STREAMS_MAX)


@blueprint.get("/live")
def live() -> Response:
    """Send an event at once, and another whenever something has happened; 503 if too many pages listen."""
    if not _slots.acquire(blocking=False):
        return problem(
            503,
            "too_many_streams",
            "Too many pages listen",
            f"expected at most {STREAMS_MAX} open streams; try again later",
            headers={"Retry-After": "30"},
        )
    database, lease_seconds = services().outbox.database, services().settings.LEASE_SECONDS
    stream = _Stream(lambda: pulse(database, lease_seconds), access_check())
    answer = Response(stream, content_type="text/event-stream")
    answer.call_on_close(stream.close)
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Accel-Buffering"] = "no"
    return answer


class _Stream:
    """The lines of one stream; however it ends, its slot is released once."""

    def __init__(self, version: Callable[[], str], may_read: Callable[[], bool]) -> None:
        self._lines = _lines(version, may_read)
        self._open = True
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._lines
        finally:
            self.close()

    def close(self) -> None:
        """Release the slot; the server calls this too if the client leaves before the first line."""
        with self._lock:
            if self._open:
                self._open = False
                _slots.release()


def _lines(version: Callable[[], str], may_read: Callable[[], bool]) -> Iterator[str]:
    """Yield an event whenever the version of the data changes; end if the client may no longer read."""
    deadline = time.monotonic() + STREAM_SECONDS
    sent, sent_at = "", 0.0
    yield "retry: 2000\n\n"
    while time.monotonic() < deadline:
        try:
            if not may_read():
                return  # When the browser reconnects, it is refused.
            current = version()
        except StoreUnavailable:
            return  # The page refreshes by itself, and shows the error.
        if current != sent:
            yield f"data: {current}\n\n"
            sent, sent_at = current, time.monotonic()
        elif time.monotonic() - sent_at > HEARTBEAT_SECONDS:
            yield ": \n\n"
            sent_at = time.monotonic()
        if prefer_wait.is_stopping(CHECK_SECONDS):
            return
