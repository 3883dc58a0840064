"""Keeps a worker's heartbeat, and brings back what nobody would come back to by himself."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from mailroom.broker.publisher import Publisher
from mailroom.model.errors import StoreUnavailable
from mailroom.process.supervisor import SupervisedThread
from mailroom.store.accounts import Accounts
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.maintenance.clock import Clock
from mailroom.store.maintenance.expiry import Expiry
from mailroom.store.maintenance.rescue import BATCH_MAX, QueuedId, Sweeps
from mailroom.store.maintenance.retention import Retention
from mailroom.store.messages.claims import Claims
from mailroom.store.workers import Heartbeat

log = logging.getLogger("mailasync.sweeper")

INTERVAL_SECONDS = 1.0
BEATS_PER_LEASE = 5
#: How often what may have been lost in the broker is looked for.
LOST_INTERVAL_SECONDS = 5.0
#: … and between two sweeps while rows are left over.
BEHIND_INTERVAL_SECONDS = 0.2
#: Rows that a sweep may publish while workers have all that they can take at once.
ROOM_MIN = 10
#: Between two rounds of forgetting what RETENTION_DAYS lets go.
FORGET_INTERVAL_SECONDS = 300.0


@dataclass
class Sweeper:
    """Two threads: the heartbeat, which nothing may delay, and the sweep."""

    clock: Clock
    sweeps: Sweeps
    claims: Claims
    heartbeat: Heartbeat
    runs: JobClaims
    accounts: Accounts
    expiry: Expiry
    retention: Retention
    publisher: Publisher
    watch_jobs: Callable[[], None]
    watch_webhooks: Callable[[], None]
    lease_seconds: float
    #: Mails that one worker may have in hand, or waiting for it, while a new one shall find a free thread.
    appetite: int
    _stopping: threading.Event = field(default_factory=threading.Event)
    _trusts_from: float = float("-inf")
    _lost_at: float = field(default_factory=time.monotonic)
    _forgot_at: float = float("-inf")  #: the first look is at the start
    _looked_ms: int | None = None  #: by the database's clock, which goes on while a machine sleeps
    _behind: bool = False  #: whether the last sweep left rows over that workers could take

    def start(self) -> None:
        self.heartbeat.beat()
        self.clock.watch()  # A step back shows only beside a time that was noted before it.
        self._distrust()
        rounds = (
            ("heartbeat", lambda: self.lease_seconds / BEATS_PER_LEASE, self.heartbeat.beat),
            ("sweeper", lambda: BEHIND_INTERVAL_SECONDS if self._behind else INTERVAL_SECONDS, self.sweep),
        )
        self._threads = [
            SupervisedThread(name, partial(self._every, pause, act), self._stopping)
            for name, pause, act in rounds
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)

    def sweep(self) -> None:
        """Make one round.

        A step that fails is tried again with the next round, and keeps no other from its turn.
        """
        steps = (
            self._watch_clock,
            self._give_back_abandoned,
            self._give_back_orphans,
            self.expiry.expire,
            self._publish_due,
            self._publish_lost,
            self._forget,
            self.watch_jobs,
            self.watch_webhooks,
        )
        for step in steps:
            try:
                step()
            except StoreUnavailable:
                raise
            except Exception:
                log.exception("%s failed", step.__name__)

    def _watch_clock(self) -> None:
        """Judge nobody after a leap: we were paused, and perhaps all others here, or the clock was set."""
        now_ms = self.clock.watch()
        if self._looked_ms is not None and now_ms - self._looked_ms > self.lease_seconds / 2 * 1000:
            self._distrust()
        self._looked_ms = now_ms

    def _give_back_abandoned(self) -> None:
        if count := self.sweeps.abandoned(self.claims) + self.runs.give_back_abandoned():
            log.warning("%d messages or jobs that no thread works on were given back", count)

    def _give_back_orphans(self) -> None:
        if time.monotonic() < self._trusts_from:
            return
        if count := self.sweeps.orphans():
            log.warning("%d messages of a lost worker were given back", count)
        for id in self.runs.orphans():
            self.publisher.offer(id, queue="mail")

    def _publish_due(self) -> None:
        room = self._room()
        share = -(-room // 3)  # So that a million of one kind do not keep the others waiting.
        kinds = (
            self.sweeps.due(share),
            self.sweeps.unparked(share, self.accounts.capacity()),
            self.sweeps.unpublished(share),
        )
        self._behind = room > ROOM_MIN and any(len(found) == share for found in kinds)
        for found in kinds:
            self._publish(found)

    def _room(self) -> int:
        """Return how many rows to publish now.

        They are enough to keep all workers at it, and too few for a new mail to wait behind them.
        """
        if self.publisher.down is not None:
            return 1  # One row is enough to notice that the broker is back.
        self.publisher.look()
        _, consumers = self.publisher.queue or (0, 0)
        most = max(1, consumers) * self.appetite
        return max(ROOM_MIN, min(BATCH_MAX, most - self.sweeps.under_way(most)))

    def _publish_lost(self) -> None:
        if self.publisher.queues and time.monotonic() - self._lost_at > LOST_INTERVAL_SECONDS:
            self._lost_at = time.monotonic()
            self._publish(self.sweeps.lost(self._limit, empty_queues=self.publisher.empty_queues))

    def _forget(self) -> None:
        """A batch each second while there is something old; else a look every few minutes."""
        if time.monotonic() - self._forgot_at > FORGET_INTERVAL_SECONDS or not self.retention.done:
            self._forgot_at = time.monotonic()
            self.retention.purge()

    @property
    def _limit(self) -> int:
        """While the broker is away one row at a time is enough to notice that it is back."""
        return BATCH_MAX if self.publisher.down is None else 1

    def _publish(self, nudges: list[QueuedId]) -> None:
        refused = [
            nudge.id
            for nudge in nudges
            if not self.publisher.offer(nudge.id, queue=nudge.queue, alone=nudge.alone)
        ]
        if refused:
            self.sweeps.unpublish(refused)

    def _distrust(self) -> None:
        """Judge no worker for half a lease, and no nudge for a few seconds.

        After an outage of the database all look dead until they have had time to say otherwise, and what the
        queues held before it is not what they hold now.
        """
        self._trusts_from = time.monotonic() + self.lease_seconds / 2
        self._lost_at = time.monotonic()

    def _every(self, pause_seconds: Callable[[], float], act: Callable[[], None]) -> None:
        down = False
        while not self._stopping.wait(pause_seconds()):
            try:
                act()
                down = False
            except StoreUnavailable as e:
                self._distrust()
                if not down:
                    log.error("%s", e)
                down = True
            except Exception:
                log.exception("%s failed", threading.current_thread().name)
