"""Tells open pages that something has happened, so that they look again: a stream of server-sent events (WHATWG HTML, 9.2).

A stream holds a thread of the server; so there are few, each ends after a while, and a page that gets none looks every few seconds.
"""

import threading
import time
from collections.abc import Callable, Iterator

from flask import Blueprint, Response

from mailroom.api.auth.guard import standing
from mailroom.api.http import prefer_wait
from mailroom.api.problems import problem
from mailroom.api.services import services
from mailroom.model.errors import StoreUnavailable
from mailroom.store.events.changes import pulse

blueprint = Blueprint("live", __name__)

STREAMS_MAX = 20
#: A browser connects anew by itself; and who has gone away unseen holds its thread no longer than this.
STREAM_SECONDS = 60.0
LOOK_SECONDS = 0.5
#: A line that says nothing, so that a link that is dead is noticed.
BEAT_SECONDS = 5.0
_places = threading.BoundedSemaphore(STREAMS_MAX)


@blueprint.get("/live")
def live() -> Response:
    """A word at once, and another one each time something has happened; 503 where too many listen."""
    if not _places.acquire(blocking=False):
        return problem(
            503,
            "too_many_streams",
            "Too many pages listen",
            f"expected at most {STREAMS_MAX} streams; look again now and then",
            headers={"Retry-After": "30"},
        )
    database, lease_seconds = services().outbox.database, services().settings.LEASE_SECONDS
    stream = _Stream(lambda: pulse(database, lease_seconds), standing())
    answer = Response(stream, content_type="text/event-stream")
    answer.call_on_close(stream.close)
    answer.headers["Cache-Control"] = "no-store"
    answer.headers["X-Accel-Buffering"] = "no"
    return answer


class _Stream:
    """The lines of one stream; it gives its place back when it has ended, however that came."""

    def __init__(self, look: Callable[[], str], is_served: Callable[[], bool]) -> None:
        self._lines = _lines(look, is_served)
        self._open = True
        self._turn = threading.Lock()

    def __iter__(self) -> Iterator[str]:
        try:
            yield from self._lines
        finally:
            self.close()

    def close(self) -> None:
        with self._turn:
            if self._open:
                self._open = False
                _places.release()


def _lines(look: Callable[[], str], is_served: Callable[[], bool]) -> Iterator[str]:
    ends, beats, told = time.monotonic() + STREAM_SECONDS, 0.0, ""
    yield "retry: 2000\n\n"
    while time.monotonic() < ends:
        try:
            if not is_served():
                return  # Who connects anew is refused.
            now = look()
        except StoreUnavailable:
            return  # The page looks by itself, and is told that.
        if now != told:
            yield f"data: {now}\n\n"
            told, beats = now, time.monotonic()
        elif time.monotonic() - beats > BEAT_SECONDS:
            yield ": \n\n"
            beats = time.monotonic()
        if prefer_wait.is_stopping(LOOK_SECONDS):
            return
