"""Keeps a worker's heartbeat, and brings back what nobody would come back to by himself."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mailroom.mail.errors import StoreUnavailable
from mailroom.relay import Relay
from mailroom.store.claims import Claims
from mailroom.store.jobs import Jobs
from mailroom.store.sweeps import BATCH_MAX, Nudge, Sweeps
from mailroom.store.workers import Worker

log = logging.getLogger("mailasync.sweeper")

INTERVAL_SECONDS = 1.0
#: How often what may have been lost in the broker is looked for.
LOST_INTERVAL_SECONDS = 5.0


@dataclass
class Sweeper:
    """Two threads: the heartbeat, which nothing may delay, and the sweep."""

    sweeps: Sweeps
    claims: Claims
    worker: Worker
    jobs: Jobs
    relay: Relay
    wake_jobs: Callable[[], None]
    lease_seconds: float
    _stopping: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.worker.beat()
        rounds = (("heartbeat", self.lease_seconds / 5, self.worker.beat), ("sweeper", INTERVAL_SECONDS, self.sweep))
        self._threads = [threading.Thread(target=self._every, args=(seconds, act), name=name, daemon=True) for name, seconds, act in rounds]
        self._lost_at = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)

    def sweep(self) -> None:
        """One round; each step stands for itself, and what a broken database leaves undone comes with the next."""
        if given_back := self.sweeps.orphans():
            log.warning("%d messages of a lost worker were given back", given_back)
        if abandoned := self.claims.abandoned():
            log.warning("%d messages that no thread works on were given back", abandoned)
        for id in self.jobs.orphans():
            self.relay.offer(id, queue="mail")
        # While the broker is away one row at a time is enough to notice that it is back.
        limit = BATCH_MAX if self.relay.down is None else 1
        self._publish(self.sweeps.due(limit))
        self._publish(self.sweeps.unpublished(limit))
        if self.relay.queue is not None and time.monotonic() - self._lost_at > LOST_INTERVAL_SECONDS:
            self._lost_at = time.monotonic()
            self._publish(self.sweeps.lost(limit, queue_is_empty=self.relay.queue[0] == 0))
        self.wake_jobs()

    def _publish(self, nudges: list[Nudge]) -> None:
        for nudge in nudges:
            self.relay.offer(nudge.id, queue=nudge.queue, alone=nudge.alone)

    def _every(self, seconds: float, act: Callable[[], None]) -> None:
        down = False
        while not self._stopping.wait(seconds):
            try:
                act()
                down = False
            except StoreUnavailable as e:
                if not down:
                    log.error("%s", e)
                down = True
            except Exception:
                log.exception("%s failed", threading.current_thread().name)
