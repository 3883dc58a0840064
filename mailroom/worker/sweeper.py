"""Keeps a worker's heartbeat, and brings back mail and jobs that nobody else would go on with."""

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
from mailroom.store.messages.lookups import GIVE_UP_AFTER_MS
from mailroom.store.workers import Heartbeat

log = logging.getLogger("mailasync.sweeper")

INTERVAL_SECONDS = 1.0
BEATS_PER_LEASE = 5
#: How often the sweeper looks for nudges that the broker may have lost.
LOST_INTERVAL_SECONDS = 5.0
#: The interval of sweeps while rows are left over.
BEHIND_INTERVAL_SECONDS = 0.2
#: Rows that a sweep may publish even while the workers have as many as they can take.
PUBLISH_MIN = 10
#: The interval of looking for rows that are older than RETENTION_DAYS.
PURGE_INTERVAL_SECONDS = 300.0


@dataclass
class Sweeper:
    """Runs two threads: the heartbeat, which nothing may delay, and the sweep."""

    clock: Clock
    sweeps: Sweeps
    claims: Claims
    heartbeat: Heartbeat
    job_claims: JobClaims
    accounts: Accounts
    expiry: Expiry
    retention: Retention
    publisher: Publisher
    watch_jobs: Callable[[], None]
    watch_webhooks: Callable[[], None]
    lease_seconds: float
    #: Mails that one worker may be sending, or that may wait for it, so that a new one still finds a free
    #: thread.
    appetite: int
    _stopping: threading.Event = field(default_factory=threading.Event)
    _trusts_from: float = float("-inf")
    _gives_up_from: float = float("-inf")
    _lost_at: float = field(default_factory=time.monotonic)
    _purged_at: float = float("-inf")  #: the first purge is at the start
    #: the last sweep, by the database's clock, which goes on while a machine sleeps
    _last_ms: int | None = None
    _is_behind: bool = False  #: the last sweep left rows over that workers could take

    def start(self) -> None:
        self.heartbeat.beat()
        self.clock.watch()  # Notes the time, as a clock that is set back shows only against an earlier time.
        self._distrust()
        rounds = (
            ("heartbeat", lambda: self.lease_seconds / BEATS_PER_LEASE, self.heartbeat.beat),
            ("sweeper", self._interval_seconds, self.sweep),
        )
        self._threads = [
            SupervisedThread(name, partial(self._repeat, interval_seconds, act), self._stopping)
            for name, interval_seconds, act in rounds
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(10)

    def sweep(self) -> None:
        """Make one round of all steps; one that fails stops no other, and is tried again next time."""
        steps = (
            self._watch_clock,
            self._give_back_abandoned,
            self._give_back_orphans,
            self._give_up_looks,
            self.expiry.expire,
            self._publish_due,
            self._publish_lost,
            self._purge,
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
        """Judge no worker after a leap in time: this machine was paused, or the clock was set."""
        now_ms = self.clock.watch()
        if self._last_ms is not None and now_ms - self._last_ms > self.lease_seconds / 2 * 1000:
            self._distrust()
        self._last_ms = now_ms

    def _give_back_abandoned(self) -> None:
        if count := self.sweeps.abandoned(self.claims) + self.job_claims.give_back_abandoned():
            log.warning("%d messages or jobs that no thread works on were given back", count)

    def _give_back_orphans(self) -> None:
        if time.monotonic() < self._trusts_from:
            return
        if count := self.sweeps.orphans(besides=self.claims.owner):
            log.warning("%d messages of a lost worker were given back", count)
        for id in self.job_claims.orphans():
            self.publisher.offer(id, queue="mail")

    def _give_up_looks(self) -> None:
        if time.monotonic() >= self._gives_up_from:
            self.sweeps.give_up_looks()

    def _publish_due(self) -> None:
        limit = self._publish_limit()
        share = -(-limit // 3)  # So that a million rows of one kind do not hold up the others.
        batches = (
            self.sweeps.due(share),
            self.sweeps.unparked(share, self.accounts.capacity()),
            self.sweeps.unpublished(share),
        )
        self._is_behind = limit > PUBLISH_MIN and any(len(batch) == share for batch in batches)
        for batch in batches:
            self._publish(batch)

    def _publish_limit(self) -> int:
        """Return how many rows to publish now.

        They keep all workers busy, and are few enough that a new mail does not wait behind them.
        """
        if self.publisher.down is not None:
            return 1  # One row is enough to notice that the broker is back.
        self.publisher.poll_soon()
        _, consumers = self.publisher.queue or (0, 0)
        appetite = max(1, consumers) * self.appetite
        return max(PUBLISH_MIN, min(BATCH_MAX, appetite - self.sweeps.under_way(appetite)))

    def _publish_lost(self) -> None:
        if self.publisher.queues and time.monotonic() - self._lost_at > LOST_INTERVAL_SECONDS:
            self._lost_at = time.monotonic()
            self._publish(self.sweeps.lost(self._limit, empty_queues=self.publisher.empty_queues))

    def _purge(self) -> None:
        """Delete a batch of old rows each second while there are any; else look every few minutes."""
        if time.monotonic() - self._purged_at > PURGE_INTERVAL_SECONDS or not self.retention.done:
            self._purged_at = time.monotonic()
            self.retention.purge()

    @property
    def _limit(self) -> int:
        """The rows to publish at a time; while the broker is away, one shows when it is back."""
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
        """Take no worker for dead for half a lease, and no nudge for lost for a few seconds.

        After an outage of the database all workers look dead until their next heartbeat, and the queues may
        have changed meanwhile. What is looked for in a mailbox is overdue although nobody was there to look.
        """
        self._trusts_from = time.monotonic() + self.lease_seconds / 2
        self._gives_up_from = time.monotonic() + GIVE_UP_AFTER_MS / 1000
        self._lost_at = time.monotonic()

    def _interval_seconds(self) -> float:
        return BEHIND_INTERVAL_SECONDS if self._is_behind else INTERVAL_SECONDS

    def _repeat(self, interval_seconds: Callable[[], float], act: Callable[[], None]) -> None:
        is_down = False
        while not self._stopping.wait(interval_seconds()):
            try:
                act()
                is_down = False
            except StoreUnavailable as e:
                self._distrust()
                if not is_down:
                    log.error("%s", e)
                is_down = True
            except Exception:
                log.exception("%s failed", threading.current_thread().name)
