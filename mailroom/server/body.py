"""Receives the body of a request, which may be late, cut off, or one of too many at a time."""

import io
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from werkzeug.exceptions import (
    ClientDisconnected,
    HTTPException,
    RequestTimeout,
    ServiceUnavailable,
    TooManyRequests,
)

from mailroom.api.auth.wrong_keys import network
from mailroom.server.limits import LONG_BODIES_MAX, SHORT_BYTES, Limits

#: The Retry-After of a refusal.
RETRY_SECONDS = 5
#: A body is not counted as half sent before this long.
PROMPT_SECONDS = 1.0


class Bodies:
    """All bodies that this process is still receiving."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        self.is_stopping = False
        self.collected: set[Body] = set()
        self._read: dict[Body, str] = {}
        self._lock = threading.Lock()

    def enter(self, body: "Body") -> None:
        """Count a long body, which is read in a thread. Raises TooManyRequests."""
        address = network(body.address)
        with self._lock:
            if (
                sum(other == address for other in self._read.values())
                >= self.limits.bodies_per_address
            ):
                raise self._too_many()
            if len(self._read) >= LONG_BODIES_MAX:
                raise TooManyRequests(
                    f"expected at most {LONG_BODIES_MAX} long bodies at a time, got one more; send it again",
                    retry_after=RETRY_SECONDS,
                )
            self._read[body] = address

    def leave(self, body: "Body") -> None:
        with self._lock:
            self._read.pop(body, None)

    def give_up_late(self) -> int:
        """Stop collecting late bodies, and the slowest ones of an address with too many; return how many."""
        now = self.clock()
        late = [body for body in [*self.collected] if now >= body.due]
        count = sum(body.give_up(body.timeout()) for body in late)
        return count + sum(body.give_up(self._too_many()) for body in self._surplus(now))

    def stop(self) -> None:
        """Stop receiving all bodies, and those that begin from now on, as this process is to end."""
        self.is_stopping = True
        for body in [*self.collected]:
            body.give_up(body.timeout())
        with self._lock:
            for body in self._read:
                body.interrupt()

    def _too_many(self) -> TooManyRequests:
        return TooManyRequests(
            f"expected at most {self.limits.bodies_per_address} half-sent bodies of one address, "
            "got one more; send it again",
            retry_after=RETRY_SECONDS,
        )

    def _surplus(self, now: float) -> list["Body"]:
        """Return the slowest bodies of each address that has too many."""
        pending = [body for body in [*self.collected] if now - body.began >= PROMPT_SECONDS]
        pending.sort(key=lambda body: body.received / (now - body.began), reverse=True)
        counts: Counter[str] = Counter()
        surplus = []
        for body in pending:
            address = network(body.address)
            counts[address] += 1
            if counts[address] > self.limits.bodies_per_address:
                surplus.append(body)
        return surplus


class Body(io.RawIOBase):
    """The body of a request, as a stream that WSGI reads; `length` is None for a chunked one.

    granian receives it in a task of its own, and hands over each chunk by a call from a thread of its pool.
    """

    def __init__(self, protocol: Any, length: int | None, address: str, bodies: Bodies) -> None:
        self.address = address
        self.began = bodies.clock()
        self.received = 0
        self._length = length
        self._bodies = bodies
        self._ask = protocol.__aiter__().__anext__
        self._kept = bytearray()
        self._is_whole = False
        self._error: HTTPException | None = None
        self._pending: Any = None
        self._on_collected: Callable[[HTTPException | None], None] | None = None
        self._is_entered = False

    @property
    def due(self) -> float:
        return self._bodies.limits.body_due(self.began, self.received)

    def timeout(self) -> HTTPException:
        """Return the error for a body that is late, or that comes while this process is to end."""
        if self._bodies.is_stopping:
            return ServiceUnavailable(
                "this service is being stopped; send it again", retry_after=RETRY_SECONDS
            )
        limits = self._bodies.limits
        expected = "the whole body" if self._length is None else f"{self._length} bytes"
        return RequestTimeout(
            f"expected {expected} within {limits.body_seconds:g} s, or at "
            f"{limits.body_bytes_per_second} bytes a second, got {self.received} bytes; send it again"
        )

    def collect(self, on_collected: Callable[[HTTPException | None], None]) -> None:
        """Receive the whole body, or SHORT_BYTES of it, without a thread; then call `on_collected`.

        It may be called in another thread, and gets an error if the body was late.
        """
        self._on_collected = on_collected
        self._bodies.collected.add(self)
        self._collect_more()
        if self._bodies.is_stopping:
            self.give_up(self.timeout())

    def stream(self) -> io.RawIOBase | io.BytesIO:
        """Return the body for WSGI to read, after it was collected."""
        return io.BytesIO(self._kept) if self._is_whole else self

    def give_up(self, error: HTTPException) -> bool:
        """Stop collecting with this error; return False if collecting has just ended by itself."""
        if not self.interrupt():
            return False
        self._end_collecting(error)
        return True

    def interrupt(self) -> bool:
        """Stop waiting for the next chunk; return False if nobody waits for one."""
        pending = self._pending
        return pending is not None and bool(pending.cancel())

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for the next chunk, and copy what fits.

        Raises:
          HTTPException: the body is late or was cut off, or too many are being read already.
        """
        while not self._kept and not self._is_whole:
            if self._error:
                raise self._error
            self._wait()
        size = min(len(buffer), len(self._kept))
        buffer[:size] = self._kept[:size]
        del self._kept[:size]
        return size

    def close(self) -> None:
        """Drop granian's protocol, and the error, whose traceback refers to it."""
        self._leave()
        self._ask = self._error = None
        super().close()

    def _wait(self) -> None:
        """Wait for the next chunk in this thread."""
        if not self._is_entered:
            self._bodies.enter(self)
            self._is_entered = True
        arrived = threading.Lock()
        arrived.acquire()
        self._pending = pending = self._ask()
        pending.add_done_callback(lambda future: arrived.release())
        if self._bodies.is_stopping or not arrived.acquire(
            timeout=max(0.0, self.due - self._bodies.clock())
        ):
            pending.cancel()
        self._pending = None
        if pending.cancelled():
            self._error = self.timeout()
        else:
            self._take(pending.result())
        if self._is_whole or self._error:
            self._leave()

    def _leave(self) -> None:
        if self._is_entered:
            self._is_entered = False
            self._bodies.leave(self)

    def _collect_more(self) -> None:
        self._pending = pending = self._ask()
        pending.add_done_callback(self._arrived)

    def _arrived(self, future: Any) -> None:
        if future.cancelled():
            return  # `give_up` goes on from there.
        self._pending = None
        self._take(future.result())
        if self._is_whole or self._error or len(self._kept) >= SHORT_BYTES:
            self._end_collecting(None)
        else:
            self._collect_more()

    def _end_collecting(self, error: HTTPException | None) -> None:
        self._pending = None
        self._bodies.collected.discard(self)
        # The function refers to this body, and this body to it: a circle, which would not be freed at once.
        on_collected, self._on_collected = self._on_collected, None
        if on_collected:
            on_collected(error)

    def _take(self, chunk: bytes) -> None:
        """Keep a chunk. An empty one means that the last one was the end, or that the client has gone."""
        self._kept += chunk
        self.received += len(chunk)
        if self._length is not None and self.received >= self._length:
            self._is_whole = True
        elif not chunk:
            self._end()

    def _end(self) -> None:
        if self._length is None:
            try:
                self._ask()
            except StopAsyncIteration:  # Not raised where the body was cut off, or has trailers.
                self._is_whole = True
                return
            expected = "its last chunk"
        else:
            expected = f"{self._length} bytes, as Content-Length says"
        self._error = ClientDisconnected(
            f"expected {expected}, got {self.received} bytes and then no more"
        )
