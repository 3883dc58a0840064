"""Delivers webhooks: signed POSTs (Standard Webhooks) that report what happened to messages.

The threads are its own, so that slow receivers never delay mail.
"""

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
from mailroom.webhooks.http import TIMEOUT_SECONDS, WebhookExchange, WebhookResponse
from mailroom.webhooks.ssrf import AddressGuard

log = logging.getLogger("mailasync.webhook")

QUEUE = "webhooks"
THREADS = 8
#: The most threads for one webhook, so that one that hangs leaves threads for the others.
THREADS_PER_WEBHOOK = 4
SCHEDULE = Schedule.parse("5s, 5m, 30m, 2h, 5h, 10h, 14h, 20h, 24h")
RETRY_AFTER_MAX_SECONDS = 86_400.0
GONE = 410
#: How long close() waits for the threads after their connections were aborted.
STOP_SECONDS = 2.0
#: The pause after an error, such as an unreachable database.
PAUSE_SECONDS = 1.0


class Notifier:
    """Delivers due webhook deliveries in threads of its own."""

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
        self._wakes = 1  #: counts the calls of wake(), and the start
        self._stopping = threading.Event()
        self._threads: list[SupervisedThread] = []
        for number in range(threads):
            self._threads.append(SupervisedThread(f"webhook-{number}", self._work, self._stopping))
        self._open: set[WebhookExchange] = set()
        self._busy: Counter[str] = Counter()  #: attempts under way, by webhook

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Make the threads look for due deliveries."""
        with self._changed:
            self._wakes += 1
            self._changed.notify_all()

    def watch(self) -> None:
        """Release the deliveries of dead workers, and wake the threads if any is due; for the sweeper."""
        if count := self._deliveries.give_back():
            log.warning("%d deliveries of dead threads or workers were released", count)
        if self._deliveries.is_due():
            self.wake()

    def stop(self) -> None:
        """Start no more deliveries and abort those under way, which are then repeated elsewhere."""
        self._stopping.set()
        self.wake()
        for exchange in list(self._open):
            exchange.abort()

    def close(self) -> None:
        """Stop, wait for the threads, and release the deliveries that are not finished."""
        self.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        try:
            self._deliveries.release()
        except StoreUnavailable as e:
            log.error("%s", e)

    def _work(self) -> None:
        seen = 0
        while (seen := self._wait(seen)) and not self._stopping.is_set():
            try:
                while not self._stopping.is_set() and self._deliver_one():
                    pass
            except StoreUnavailable as e:
                log.error("%s", e)
                self._stopping.wait(PAUSE_SECONDS)
            except Exception:
                log.exception("a delivery failed")
                self._stopping.wait(PAUSE_SECONDS)

    def _wait(self, seen: int) -> int:
        """Wait for a call of wake() after `seen` of them; return how many there were."""
        with self._changed:
            self._changed.wait_for(lambda: self._wakes > seen)
            return self._wakes

    def _deliver_one(self) -> bool:
        """Deliver the delivery that has been due longest; return False if there is none."""
        with self._claiming:
            # One thread at a time, so that no webhook gets more than THREADS_PER_WEBHOOK.
            full = [id for id, count in list(self._busy.items()) if count >= THREADS_PER_WEBHOOK]
            due_delivery = self._deliveries.claim(busy=full)
            if due_delivery is None:
                return False
            self._count(due_delivery, +1)
        try:
            self._deliver(due_delivery)
        finally:
            self._count(due_delivery, -1)
        return True

    def _count(self, due_delivery: DueDelivery, change: int) -> None:
        id = due_delivery.webhook_id
        with self._changed:
            self._busy[id] += change
            if not self._busy[id]:
                del self._busy[id]

    def _deliver(self, due_delivery: DueDelivery) -> None:
        if due_delivery.url:
            response = self._post(due_delivery)
            attempt = due_delivery.counted
        else:
            response = WebhookResponse(None, "there is no longer a URL to call")
            attempt = len(SCHEDULE.waits) + 1  # The last one, so that there is no other.
        if self._stopping.is_set():
            return  # close() releases the delivery: whether it arrived or not, it is repeated.
        self._deliveries.finish(due_delivery, judge(response, attempt))
        log.info(
            "delivery %d to webhook %s attempt %d: %s",
            due_delivery.number,
            due_delivery.webhook_id,
            due_delivery.attempt,
            response.code or "no answer",
        )

    def _post(self, due_delivery: DueDelivery) -> WebhookResponse:
        exchange = self._exchange()
        # Before `_stopping` is checked, so that stop() either aborts it or is seen.
        self._open.add(exchange)
        try:
            if self._stopping.is_set():
                return WebhookResponse(None, "")
            return exchange.post(due_delivery.url, *signed(due_delivery))
        finally:
            self._open.discard(exchange)


def signed(due_delivery: DueDelivery) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a POST: the body is the same in every attempt, the signature is of now."""
    payload = {
        "type": due_delivery.event,
        "timestamp": timestamp(due_delivery.at),
        "data": due_delivery.data,
    }
    body = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    now = datetime.now(UTC)  # Aware, as the library reads naive times as local ones.
    return body.encode(), {
        "Content-Type": "application/json",
        "User-Agent": "mailasync",
        "webhook-id": due_delivery.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(due_delivery.secret).sign(due_delivery.id, now, body),
    }


def judge(
    response: WebhookResponse, attempt: int, *, schedule: Schedule = SCHEDULE
) -> DeliveryResult:
    """Decide what this response to attempt 1, 2, … means: delivered, tried again, or given up."""
    code = response.code
    if code is not None and 200 <= code < 300:
        return DeliveryResult(delivered=True, code=code, reply=response.text)
    wait = None if code == GONE else schedule.wait_seconds(attempt)
    if wait is not None and code in (429, 503):
        wait = max(wait, retry_after_seconds(response.retry_after))
    return DeliveryResult(code=code, reply=response.text, wait_seconds=wait, gone=code == GONE)


def retry_after_seconds(text: str, *, now: Callable[[], float] = time.time) -> float:
    """Parse Retry-After (RFC 9110, 10.2.3): seconds, a day at most; 0 if it is missing or malformed."""
    if text.isascii() and text.isdigit():
        return min(RETRY_AFTER_MAX_SECONDS, float(text[:9]))
    try:
        seconds = parsedate_to_datetime(text).timestamp() - now()
    except (ValueError, OverflowError):
        return 0.0
    return min(RETRY_AFTER_MAX_SECONDS, max(0.0, seconds))


@cache
def default_context() -> ssl.SSLContext:
    """Return the context that verifies certificates by the system's authorities, or by SSL_CERT_FILE."""
    return ssl.create_default_context()
