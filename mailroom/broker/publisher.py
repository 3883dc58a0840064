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

from mailroom.broker.queues import words
from mailroom.process.supervisor import SupervisedThread

log = logging.getLogger("mailasync.publisher")

#: Ids in one nudge: enough to share the cost of a confirm, few enough to share the work among workers.
CHUNK_MAX = 100
#: Ids that wait for the thread; past that the sweeper will find them, so that a long outage costs no memory.
WAITING_MAX = 10_000
#: After a failure the broker is left alone for this long.
PAUSE_SECONDS = 2.0
#: After a nudge that was not full the next one gathers ids for this long: the first is on its way at
#: once, and a rush shares the cost.
GATHER_SECONDS = 0.02
#: After a note the next one gathers confirmed ids for this long, or until there are so many; who forgets them
#: publishes them once more.
NOTED_MAX = 1000
NOTE_SECONDS = 0.1
#: How often the broker is looked at while nothing is published, so that an outage is known before the next
#: mail; and while something is.
WATCH_SECONDS = 5.0
FIRST_LOOK_SECONDS = 1.0
LOOK_SECONDS = 1.0
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

    def __init__(
        self,
        connect: Callable[[], Connection],
        publish: Publish,
        *,
        published: Callable[[str, Sequence[str], float], None],
        unpublished: Callable[[Sequence[str]], None],
        watched: Sequence[str],
        chunks: Mapping[str, int] | None = None,
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        """Make a publisher on the connections that `connect` opens, and whose nudges `publish` publishes.

        `published` is called with the queue and the ids that the broker confirmed, and how many seconds ago
        they were sent; `unpublished` with the ids that it did not take. `watched` names the queues to look
        at, first the one that is told of; `chunks` says for which queues a nudge is shorter. `looked` is
        called after each look, whatever the broker said.
        """
        self._connect = connect
        self._publish = publish
        self._published = published
        self._unpublished = unpublished
        self.watched = watched
        self._chunks = chunks or {}
        self._looked = looked
        self._waiting: deque[tuple[str, str, bool]] = deque()
        self._confirmed: list[tuple[str, str]] = []  #: (id, queue) that is not noted yet
        self._confirmed_at = (
            0.0  #: when the first of them was sent, when they are to be noted, and when others were
        )
        self._note_at = float("inf")
        self._noted_at = float("-inf")
        self._look_at = time.monotonic() + FIRST_LOOK_SECONDS  #: when the queues are to be looked at next
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = SupervisedThread("publisher", self._run, self._stopping)
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        #: Since when the broker could not be reached, in seconds since 1970, and what it said; or None.
        self.down: tuple[float, str] | None = None
        self._reasons: set[str] = set()  #: what it said since then
        self._is_refused = False  #: we may not publish, so that a look which succeeds proves nothing
        #: Nudges on each watched queue, and workers that consume it, when they were looked at last.
        self.queues: dict[str, tuple[int, int]] = {}

    @property
    def queue(self) -> tuple[int, int] | None:
        """Nudges on the first of the watched queues, and its consumers; None before it was looked at."""
        return self.queues.get(self.watched[0])

    @property
    def empty_queues(self) -> list[str]:
        return [name for name, (nudges, _) in self.queues.items() if not nudges]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Publish what waits if the broker is there, and end; bounded by the broker's timeouts."""
        self._stopping.set()
        self._wake.set()
        self._thread.join(10)

    def offer(self, id: str, *, queue: str, alone: bool = False) -> bool:
        """Take an id to publish soon; returns at once, whatever the broker does. False: too many wait.

        `alone`: it shares no nudge.
        """
        if len(self._waiting) >= WAITING_MAX:
            return False
        self._waiting.append((id, queue, alone))
        if not self._wake.is_set():  # Whoever clears it looks at what waits after that.
            self._wake.set()
        return True

    def look(self) -> None:
        """Look at the queues soon, and not only when it is time for that."""
        self._look_at = 0.0
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
            if time.monotonic() >= self._look_at and not self._stopping.is_set():
                self._look_at = time.monotonic() + WATCH_SECONDS
                self._try(self._watch)
                with suppress(Exception):
                    self._looked()
        self._note()
        self._drop()

    def _send_and_rest(self) -> None:
        if not self._send(*self._next_chunk()):
            self._stopping.wait(PAUSE_SECONDS)
        elif len(self._waiting) < CHUNK_MAX:
            self._stopping.wait(GATHER_SECONDS)

    def _rest_seconds(self) -> float:
        return max(0.0, min(self._note_at, self._look_at) - time.monotonic())

    def _next_chunk(self) -> tuple[str, list[str]]:
        """Ids for one queue, in the order they came."""
        id, queue, alone = self._waiting.popleft()
        ids = [id]
        most = self._chunks.get(queue, CHUNK_MAX)
        while not alone and self._waiting and len(ids) < most and self._waiting[0][1:] == (queue, False):
            ids.append(self._waiting.popleft()[0])
        return queue, ids

    def _send(self, queue: str, ids: list[str]) -> bool:
        started = time.monotonic()
        if self._try(lambda producer: self._publish(producer, queue, ids), publishes=True):
            if not self._confirmed:
                self._confirmed_at, self._note_at = started, self._noted_at + NOTE_SECONDS
            self._confirmed += [(id, queue) for id in ids]
            self._look_at = min(self._look_at, started + LOOK_SECONDS)
            if len(self._confirmed) >= NOTED_MAX or time.monotonic() >= self._note_at:
                self._note()
            return True
        # The rows tell that these were not published; a sweeper takes them up when the broker is back.
        while self._waiting:
            ids.append(self._waiting.popleft()[0])
        with suppress(Exception):
            self._unpublished(ids)
        return False

    def _note(self) -> None:
        """Have it written down which ids the broker has."""
        confirmed, self._confirmed, self._note_at, self._noted_at = (
            self._confirmed,
            [],
            float("inf"),
            time.monotonic(),
        )
        for queue in dict.fromkeys(queue for _, queue in confirmed):
            with suppress(
                Exception
            ):  # Not noted means published once more, and the second nudge finds nothing to do.
                self._published(
                    queue, [id for id, of in confirmed if of == queue], time.monotonic() - self._confirmed_at
                )

    def _watch(self, producer: Producer) -> None:
        connection: Any = producer.connection
        for name in self.watched:
            channel = connection.channel()  # For one look: RabbitMQ closes it where the queue is not there.
            try:
                found = channel.queue_declare(name, passive=True)
            except ChannelError as e:
                if str(e.reply_code) != NOT_FOUND:
                    raise
                self.queues[name] = (0, 0)  # No worker has ever declared it.
            else:
                self.queues[name] = (found.message_count, found.consumer_count)
                channel.close()

    def _try(self, act: Callable[[Producer], None], *, publishes: bool = False) -> bool:
        """Do it on a connection that is open; False if the broker did not let us."""
        try:
            if self._producer is None:
                self._connection = self._connect()
                self._producer = Producer(self._connection)
            act(self._producer)
        except (
            Exception
        ) as e:  # kombu's errors have no common base, and whatever it is, the answer is the same.
            self._is_refused = publishes and self._producer is not None and isinstance(e, AccessRefused)
            self._note_outage(words(e))
            self._drop()
            return False
        self._is_refused = self._is_refused and not publishes
        if self.down is not None and not self._is_refused:
            self.down = None
            self._reasons.clear()
            log.info("the broker is back")
        return True

    def _note_outage(self, reason: str) -> None:
        """Keep since when it lasts, and the reason of now; each reason of an outage is logged once."""
        self.down = (self.down[0] if self.down else time.time(), reason)
        if reason not in self._reasons and len(self._reasons) < REASONS_MAX:
            self._reasons.add(reason)
            log.warning("the broker cannot be reached: %s; mail is kept, and goes on when it is back", reason)

    def _drop(self) -> None:
        """Drop the socket without a word: a polite close waits for a frozen broker for ever."""
        if self._connection is not None:
            with suppress(Exception):
                self._connection.collect()
        self._connection = self._producer = None
