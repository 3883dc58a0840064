"""Carries nudges to the broker in a thread of its own, so that its faults slow no answer and no delivery."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from amqp.exceptions import AccessRefused, ChannelError
from kombu import Connection, Producer

from mailroom.broker.queues import broker_error
from mailroom.process.supervisor import SupervisedThread

log = logging.getLogger("mailasync.publisher")

#: Ids in one nudge: enough to share the cost of a confirm, few enough to share the work among workers.
CHUNK_MAX = 100
#: Ids that wait for the thread. Further ones are left to the sweeper, so that a long outage costs no memory.
WAITING_MAX = 10_000
#: How long the broker is left alone after a failure.
PAUSE_SECONDS = 2.0
#: How long ids are gathered for the next nudge, after one that was not full. So the first id is published at
#: once, and in a rush many share the cost.
GATHER_SECONDS = 0.02
#: How long confirmed ids are gathered before the rows are marked, unless there are NOTED_MAX. An id whose row
#: was not marked is published once more.
NOTE_SECONDS = 0.1
NOTED_MAX = 1000
#: How often the queues are polled while nothing is published, so that an outage is known before the next
#: mail.
IDLE_POLL_SECONDS = 5.0
#: … at the start, and while ids are published.
FIRST_POLL_SECONDS = 1.0
POLL_SECONDS = 1.0
#: Reasons of one outage that are logged, where it has more than one.
REASONS_MAX = 20
#: AMQP 0-9-1, 1.2
NOT_FOUND = "404"

#: Publishes one nudge and waits for its confirm: (producer, queue, ids).
Publish = Callable[[Producer, str, Sequence[str]], None]


class Publisher:
    """The publisher of one process.

    Losing what it holds costs time, never a mail: the rows say what was not published.
    """

    #: Since when the broker cannot be reached, in seconds since 1970, and why; None while it can be.
    down: tuple[float, str] | None = None
    _is_refused = False  #: we may not publish, so that a poll which succeeds proves nothing
    _confirmed_at = 0.0  #: when the first of the ids in `_confirmed` was sent
    _note_at = float("inf")  #: when they are to be noted
    _noted_at = float("-inf")
    _connection: Connection | None = None
    _producer: Producer | None = None

    def __init__(
        self,
        connect: Callable[[], Connection],
        publish: Publish,
        *,
        on_confirmed: Callable[[str, Sequence[str], float], None],
        on_unpublished: Callable[[Sequence[str]], None],
        polled_queues: Sequence[str],
        chunks: Mapping[str, int] | None = None,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        """Make a publisher; `connect` opens its connections, and `publish` publishes one nudge.

        `on_confirmed` gets the queue and the ids that the broker confirmed, and how many seconds ago they
        were sent; `on_unpublished` gets the ids that it did not take. `polled_queues` are the queues whose
        length is read; the first one's is reported. `chunks` gives the ids in one nudge for queues where
        that is not CHUNK_MAX. `on_poll` is called after each poll, whether the broker answered or not.
        """
        self._connect, self._publish, self._on_poll = connect, publish, on_poll
        self._on_confirmed, self._on_unpublished = on_confirmed, on_unpublished
        self.polled_queues = polled_queues
        #: The nudges on each polled queue and the workers that consume it, as they were at the last poll.
        self.queues: dict[str, tuple[int, int]] = {}
        self._chunks = chunks or {}
        self._waiting: deque[tuple[str, str, bool]] = deque()  #: (id, queue, alone)
        self._confirmed: list[tuple[str, str]] = []  #: (id, queue), not noted yet
        self._poll_at = time.monotonic() + FIRST_POLL_SECONDS
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread = SupervisedThread("publisher", self._run, self._stopping)
        self._reasons: set[str] = set()  #: the reasons of this outage that were logged

    @property
    def queue(self) -> tuple[int, int] | None:
        """The nudges on the first of the polled queues, and its consumers; None before the first poll."""
        return self.queues.get(self.polled_queues[0])

    @property
    def empty_queues(self) -> list[str]:
        return [name for name, (nudges, _) in self.queues.items() if not nudges]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Publish the waiting ids if the broker can be reached, and end; the broker's timeouts bound this."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(10)

    def offer(self, id: str, *, queue: str, alone: bool = False) -> bool:
        """Publish an id soon; returns at once, whatever the broker does, and False if too many wait.

        An id that is `alone` gets a nudge of its own.
        """
        if len(self._waiting) >= WAITING_MAX:
            return False
        self._waiting.append((id, queue, alone))
        if not self._wake.is_set():  # The thread clears it before it reads `_waiting`.
            self._wake.set()
        return True

    def poll_soon(self) -> None:
        """Have the queues polled now instead of at the next interval."""
        self._poll_at = 0.0
        self._wake.set()

    def _run(self) -> None:
        self._drop()
        while self._waiting or not self._stopping.is_set():
            if not self._waiting and self._wake.wait(self._rest_seconds()):
                self._wake.clear()
            if self._waiting:
                self._send_and_rest()
            if time.monotonic() >= self._note_at:
                self._note()
            if time.monotonic() >= self._poll_at and not self._stopping.is_set():
                self._poll_at = time.monotonic() + IDLE_POLL_SECONDS
                self._try(self._poll)
                with suppress(Exception):
                    self._on_poll()
        self._note()
        self._drop()

    def _send_and_rest(self) -> None:
        if not self._send(*self._next_chunk()):
            self._stopping.wait(PAUSE_SECONDS)
        elif len(self._waiting) < CHUNK_MAX:
            self._stopping.wait(GATHER_SECONDS)

    def _rest_seconds(self) -> float:
        until = min(self._note_at, self._poll_at)
        return max(0.0, until - time.monotonic())

    def _next_chunk(self) -> tuple[str, list[str]]:
        """Return the ids of the next nudge and their queue, in the order they were offered."""
        id, queue, alone = self._waiting.popleft()
        ids = [id]
        limit = self._chunks.get(queue, CHUNK_MAX)
        if alone:
            return queue, ids
        while self._waiting and len(ids) < limit:
            next_id, next_queue, next_alone = self._waiting[0]
            if next_alone or next_queue != queue:
                break
            self._waiting.popleft()
            ids.append(next_id)
        return queue, ids

    def _send(self, queue: str, ids: list[str]) -> bool:
        started = time.monotonic()
        if self._try(lambda producer: self._publish(producer, queue, ids), publishes=True):
            if not self._confirmed:
                self._confirmed_at = started
                self._note_at = self._noted_at + NOTE_SECONDS
            self._confirmed += [(id, queue) for id in ids]
            self._poll_at = min(self._poll_at, started + POLL_SECONDS)
            if len(self._confirmed) >= NOTED_MAX or time.monotonic() >= self._note_at:
                self._note()
            return True
        # The rows say that these were not published; a sweeper publishes them when the broker is back.
        while self._waiting:
            id, _, _ = self._waiting.popleft()
            ids.append(id)
        with suppress(Exception):
            self._on_unpublished(ids)
        return False

    def _note(self) -> None:
        """Report the confirmed ids, queue by queue."""
        confirmed, self._confirmed = self._confirmed, []
        self._note_at = float("inf")
        self._noted_at = time.monotonic()
        ids_by_queue: dict[str, list[str]] = {}
        for id, queue in confirmed:
            ids_by_queue.setdefault(queue, []).append(id)
        for queue, ids in ids_by_queue.items():
            seconds = time.monotonic() - self._confirmed_at
            # Ids that are not noted are published again; the worker finds them done.
            with suppress(Exception):
                self._on_confirmed(queue, ids, seconds)

    def _poll(self, producer: Producer) -> None:
        connection: Any = producer.connection
        for name in self.polled_queues:
            # For one queue: RabbitMQ closes it where the queue is missing.
            channel = connection.channel()
            try:
                declared = channel.queue_declare(name, passive=True)
            except ChannelError as e:
                if str(e.reply_code) != NOT_FOUND:
                    raise
                self.queues[name] = (0, 0)  # No worker has declared it yet.
            else:
                self.queues[name] = (declared.message_count, declared.consumer_count)
                channel.close()

    def _try(self, act: Callable[[Producer], None], *, publishes: bool = False) -> bool:
        """Call `act` with a producer on an open connection; return False if the broker failed or refused."""
        try:
            if self._producer is None:
                self._connection = self._connect()
                self._producer = Producer(self._connection)
            act(self._producer)
        except Exception as e:  # kombu's errors have no common base, and all are treated alike.
            is_connected = self._producer is not None
            self._is_refused = publishes and is_connected and isinstance(e, AccessRefused)
            self._note_outage(broker_error(e))
            self._drop()
            return False
        self._is_refused = self._is_refused and not publishes
        if self.down is not None and not self._is_refused:
            self.down = None
            self._reasons.clear()
            log.info("the broker is back")
        return True

    def _note_outage(self, reason: str) -> None:
        """Remember since when the outage lasts, and its latest reason; log each reason once."""
        since = self.down[0] if self.down else time.time()
        self.down = (since, reason)
        if reason in self._reasons or len(self._reasons) >= REASONS_MAX:
            return
        self._reasons.add(reason)
        log.warning(
            "the broker cannot be reached: %s; mail is kept, and goes on when it is back", reason
        )

    def _drop(self) -> None:
        """Drop the socket without an AMQP close, which would wait for a frozen broker for ever."""
        if self._connection is not None:
            with suppress(Exception):
                self._connection.collect()
        self._connection = None
        self._producer = None
