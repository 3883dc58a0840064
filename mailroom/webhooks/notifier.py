"""Tells clients what happened to their messages: signed POSTs (Standard Webhooks) from threads of its own, never one of mail's."""

import json
import logging
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache

from standardwebhooks import Webhook

from mailroom.model.errors import StoreUnavailable
from mailroom.model.retry import Schedule
from mailroom.model.times import timestamp
from mailroom.process.supervisor import SupervisedThread
from mailroom.store.events.deliveries import DeliveryResult, DueDelivery, WebhookDeliveries
from mailroom.webhooks.http import TIMEOUT_SECONDS, WebhookAnswer, WebhookExchange
from mailroom.webhooks.ssrf import AddressGuard

log = logging.getLogger("mailasync.webhook")

QUEUE = "webhooks"
THREADS = 8
#: … of which one webhook has so many at most: one that hangs leaves the others to the rest.
THREADS_PER_WEBHOOK = 4
SCHEDULE = Schedule.parse("5s, 5m, 30m, 2h, 5h, 10h, 14h, 20h, 24h")
RETRY_AFTER_MAX_SECONDS = 86_400.0
GONE = 410
#: How long stopping waits for threads whose connections were just ended.
STOP_SECONDS = 2.0
#: Between two claims while the database is away.
PAUSE_SECONDS = 1.0


class Notifier:
    """Delivers what is due, in threads of its own."""

    def __init__(
        self,
        deliveries: WebhookDeliveries,
        guard: AddressGuard,
        *,
        threads: int = THREADS,
        context: ssl.SSLContext | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
    ) -> None:
        self._deliveries = deliveries
        self._exchange: Callable[[], WebhookExchange] = lambda: WebhookExchange(
            guard, context or default_context(), timeout_seconds
        )
        self._changed = threading.Condition()
        self._claiming = threading.Lock()
        self._looks = 1  #: how often it was said that there may be something to do
        self._stopping = threading.Event()
        self._threads = [
            SupervisedThread(f"webhook-{number}", self._work, self._stopping) for number in range(threads)
        ]
        self._open: set[WebhookExchange] = set()
        self._busy: Counter[str] = Counter()  #: attempts under way, by webhook

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look for something to do."""
        with self._changed:
            self._looks += 1
            self._changed.notify_all()

    def watch(self) -> None:
        """Do a sweeper's part for us: take up what nobody has in hand, and look at the clock."""
        if count := self._deliveries.give_back():
            log.warning("%d deliveries that nobody works on were given back", count)
        if self._deliveries.is_due():
            self.wake()

    def stop(self) -> None:
        """Begin nothing any more, and break off what is under way: others tell it again."""
        self._stopping.set()
        self.wake()
        for exchange in list(self._open):
            exchange.abort()

    def close(self) -> None:
        """Stop, and give back what we have."""
        self.stop()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        try:
            self._deliveries.release()
        except StoreUnavailable as e:
            log.error("%s", e)

    def _work(self) -> None:
        seen = 0
        while (seen := self._awaited(seen)) and not self._stopping.is_set():
            try:
                while not self._stopping.is_set() and self._deliver_one():
                    pass
            except StoreUnavailable as e:
                log.error("%s", e)
                self._stopping.wait(PAUSE_SECONDS)
            except Exception:
                log.exception("a delivery failed")
                self._stopping.wait(PAUSE_SECONDS)

    def _awaited(self, seen: int) -> int:
        """Wait for something to do, more than was seen."""
        with self._changed:
            self._changed.wait_for(lambda: self._looks > seen)
            return self._looks

    def _deliver_one(self) -> bool:
        """Deliver what has been due longest; False if there is nothing for us."""
        with self._claiming:  # One at a time, so that no webhook gets more threads than it may have.
            due = self._deliveries.claim(
                busy=[id for id, count in list(self._busy.items()) if count >= THREADS_PER_WEBHOOK]
            )
            if due is None:
                return False
            self._count(due, +1)
        try:
            self._tell(due)
        finally:
            self._count(due, -1)
        return True

    def _count(self, due: DueDelivery, change: int) -> None:
        with self._changed:
            self._busy[due.webhook_id] += change
            if not self._busy[due.webhook_id]:
                del self._busy[due.webhook_id]

    def _tell(self, due: DueDelivery) -> None:
        answer = WebhookAnswer(None, "nobody is to be told any more")
        if due.url:
            exchange = self._exchange()
            self._open.add(exchange)
            try:
                if not self._stopping.is_set():
                    answer = exchange.post(due.url, *signed(due))
            finally:
                self._open.discard(exchange)
        if self._stopping.is_set():
            return  # close() gives it back: whether it arrived or not, it is told again.
        told = judge(answer, due.counted if due.url else len(SCHEDULE.waits) + 1)
        self._deliveries.finish(due, told)
        log.info(
            "delivery %d to webhook %s attempt %d: %s",
            due.number,
            due.webhook_id,
            due.attempt,
            answer.code or "no answer",
        )


def signed(due: DueDelivery) -> tuple[bytes, dict[str, str]]:
    """The body, the same in every attempt, and the headers of one that is made now."""
    told = {"type": due.event, "timestamp": timestamp(due.at), "data": due.data}
    body = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    now = datetime.now(UTC)  # Aware: the library takes what is not for UTC.
    return body.encode(), {
        "Content-Type": "application/json",
        "User-Agent": "mailasync",
        "webhook-id": due.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(due.secret).sign(due.id, now, body),
    }


def judge(answer: WebhookAnswer, attempt: int, *, schedule: Schedule = SCHEDULE) -> DeliveryResult:
    """Return what becomes of a delivery after this answer to attempt 1, 2, …"""
    if answer.code is not None and 200 <= answer.code < 300:
        return DeliveryResult(delivered=True, code=answer.code, reply=answer.words)
    wait = None if answer.code == GONE else schedule.wait_seconds(attempt)
    if wait is not None and answer.code in (429, 503):
        wait = max(wait, retry_after_seconds(answer.retry_after))
    return DeliveryResult(code=answer.code, reply=answer.words, wait_seconds=wait, gone=answer.code == GONE)


def retry_after_seconds(text: str, *, now: Callable[[], float] = time.time) -> float:
    """Return how long a server asks us to wait (RFC 9110, 10.2.3), a day at most; 0 where it does not say."""
    if text.isascii() and text.isdigit():
        return min(RETRY_AFTER_MAX_SECONDS, float(text[:9]))
    try:
        return min(RETRY_AFTER_MAX_SECONDS, max(0.0, parsedate_to_datetime(text).timestamp() - now()))
    except (ValueError, OverflowError):
        return 0.0


@cache
def default_context() -> ssl.SSLContext:
    """Verifies chain and name by the system's authorities, or those that SSL_CERT_FILE names."""
    return ssl.create_default_context()
