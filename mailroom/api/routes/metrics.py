"""Shows operators how the service does: `/metrics` for Prometheus, and a log line and an id for each request.

The id is in the response and in all log lines of the request.
"""

import logging
import platform
import re
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate

from flask import Blueprint, Flask, Response, g, request
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from mailroom.api.services import Services, services
from mailroom.config.logs import request_id
from mailroom.model.account import AccountState
from mailroom.model.errors import StoreUnavailable
from mailroom.model.ids import random_id
from mailroom.store.events.counters import (
    DEPTH_MAX,
    LATENCY_SECONDS,
    SENT_MS,
    SENT_WITHIN,
    Counters,
    Depths,
)
from mailroom.store.messages.bounces import IGNORED
from mailroom.store.messages.lookups import FOUND, NOT_FOUND

access_log = logging.getLogger("mailasync.access")
log = logging.getLogger("mailasync.api")
blueprint = Blueprint("metrics", __name__)

ID_HEADER = "X-Request-Id"

#: The description of each counter, by its name in the store.
MESSAGES = {
    "accepted": "Messages that were accepted, and kept",
    "sent": "Messages that the next hop took",
    "failed": "Messages that failed for good",
    "deferred": "Attempts that are to be made again",
    "uncertain": "Attempts whose payload went out and got no answer",
    "suppressed": "Messages that were not sent, as their recipients want none",
    "canceled": "Messages that were taken back",
    "expired": "Messages that were not sent in time",
    "held": "Messages that a person stopped",
    "bounced": "Recipients from whom a message came back after the next hop had taken it",
    "complained": "Recipients who called a message spam",
}
#: The description of each counter of what was read in mailboxes.
MAILBOXES = {
    FOUND: "Attempts without an answer whose message was found in the Sent folder",
    NOT_FOUND: "Attempts without an answer whose message was not found in the Sent folder",
    IGNORED: "Reports in mailboxes that changed nothing: of others' mail, forged, or known already",
}
JOBS = {
    "accepted": "Jobs that were accepted",
    "succeeded": "Jobs that succeeded",
    "failed": "Jobs that failed for good",
    "timed_out": "Jobs that were killed at their timeout, for good",
    "canceled": "Jobs that were taken back",
}


@blueprint.get("/metrics")
def metrics() -> Response:
    """Return the metrics, in Prometheus' text format or as OpenMetrics, as the Accept header asks."""
    registry = CollectorRegistry()
    registry.register(_Service(services()))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(registry), content_type=content_type)


class _Service(Collector):
    """Collects the metrics, without those it cannot read, so that no counter seems to start at 0 again."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._database = services.outbox.database

    def collect(self) -> Iterator[Metric]:
        try:
            counters = Counters(self._database)
            metrics = [
                *_counters(counters.totals()),
                *_gauges(counters.depths(self._services.settings.LEASE_SECONDS)),
                *self._accounts(),
                self._mailboxes(),
            ]
        except StoreUnavailable as e:
            log.error("%s", e)
            metrics = []
        is_up = bool(metrics) and not self._services.readiness.trouble()
        yield _gauge("up", "Whether mail is accepted", int(is_up))
        yield from metrics
        yield from self._broker()
        yield InfoMetricFamily(
            "mailasync_build",
            "What this process is made of",
            value={
                "python": platform.python_version(),
                "celery": version("celery"),
                "yagmail": version("yagmail"),
                "database": self._database.url.get_backend_name(),
            },
        )

    def _broker(self) -> Iterator[Metric]:
        publisher = self._services.publisher()
        if publisher is None or (publisher.queue is None and publisher.down is None):
            return  # Not known yet.
        yield _gauge(
            "broker_up", "Whether this process reaches the broker", int(publisher.down is None)
        )
        if publisher.queue is not None and publisher.down is None:
            yield _gauge(
                "broker_nudges",
                f"Nudges on the queue {publisher.polled_queues[0]}",
                publisher.queue[0],
            )
            yield _gauge(
                "broker_consumers",
                f"Consumers of the queue {publisher.polled_queues[0]}",
                publisher.queue[1],
            )

    def _mailboxes(self) -> Metric:
        ages = GaugeMetricFamily(
            "mailasync_mailbox_read_seconds",
            "How long ago all mails in the account's mailbox had been read",
            labels=["account"],
        )
        for account, row in self._services.mailboxes().items():
            if row.read_at is not None:
                ages.add_metric([account], max(0, row.now - row.read_at) / 1000)
        return ages

    def _accounts(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "mailasync_account_state",
            "1 for the state that the sender account is in",
            labels=["account", "state"],
        )
        sent = GaugeMetricFamily(
            "mailasync_account_sent_24h",
            "What counts against the account's limits",
            labels=["account", "of"],
        )
        limits = GaugeMetricFamily(
            "mailasync_account_budget_24h",
            "The account's limits for any 24 hours",
            labels=["account", "of"],
        )
        for row in self._services.accounts.details():
            for name in AccountState:
                state.add_metric([row["name"], name], int(row["state"] == name))
            for unit in ("messages", "recipients"):
                if limit := getattr(row["limit"], unit):  # Without a limit nothing is counted.
                    sent.add_metric([row["name"], unit], row[unit])
                    limits.add_metric([row["name"], unit], limit)
        yield from (state, sent, limits)


def _counters(totals: Mapping[str, int]) -> Iterator[Metric]:
    for name, meaning in MESSAGES.items():
        yield CounterMetricFamily(f"mailasync_messages_{name}", meaning, value=totals.get(name, 0))
    for name, meaning in JOBS.items():
        yield CounterMetricFamily(
            f"mailasync_jobs_{name}", meaning, value=totals.get(f"jobs_{name}", 0)
        )
    for name, meaning in MAILBOXES.items():
        yield CounterMetricFamily(f"mailasync_{name}", meaning, value=totals.get(name, 0))
    yield CounterMetricFamily(
        "mailasync_nudges_recovered",
        "Messages whose nudge got lost or was never published, and was made again",
        value=totals.get("recovered", 0),
    )
    yield CounterMetricFamily(
        "mailasync_tasks_dropped",
        value=totals.get("tasks_dropped", 0),
        documentation="Messages of Celery clients that cannot be read, and have no id to record them under",
    )
    limits = [str(float(seconds)) for seconds in LATENCY_SECONDS] + ["+Inf"]
    counts = accumulate(totals.get(name, 0) for name in SENT_WITHIN)
    yield HistogramMetricFamily(
        "mailasync_latency_seconds",
        "From a message's acceptance until the next hop took it, with all that it waited for",
        buckets=list(zip(limits, counts, strict=True)),
        sum_value=totals.get(SENT_MS, 0) / 1000,
    )


def _gauges(depths: Depths) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "mailasync_queue_depth",
        f"Messages that have not ended, by state; {DEPTH_MAX} at most",
        labels=["state"],
    )
    jobs = GaugeMetricFamily(
        "mailasync_jobs",
        f"Jobs that have not ended, by state; {DEPTH_MAX} at most",
        labels=["state"],
    )
    for family, counts in ((waiting, depths.messages), (jobs, depths.jobs)):
        for state, count in counts.items():
            family.add_metric([state], count)
    yield from (waiting, jobs)
    yield _gauge(
        "queue_oldest_seconds",
        "How long the queued message that waits longest for a worker has done so",
        depths.oldest_seconds,
    )
    yield _gauge("workers", "Workers that are alive", depths.workers)


def _gauge(name: str, meaning: str, value: float) -> Metric:
    return GaugeMetricFamily(f"mailasync_{name}", meaning, value=value)


def watch(app: Flask) -> None:
    """Give each request an id and a log line; other hooks are added later, so that they have the id."""
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(_forget)


def _begin() -> None:
    """Set the request's id: the client's own if it is safe in a header and in a log, else a random one."""
    id = request.headers.get(ID_HEADER, "")
    g.began = time.monotonic()
    request_id.set(id if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", id) else random_id())


def _end(response: Response) -> Response:
    """Log the request with its route, and not its path, which may contain an address or a secret."""
    response.headers[ID_HEADER] = request_id.get()
    rule = request.url_rule.rule if request.url_rule else "(no route)"
    message_id = None
    if rule.startswith("/v1/messages/"):
        message_id = (request.view_args or {}).get("id")
    access_log.log(
        logging.INFO if response.status_code >= 500 else logging.DEBUG,
        "%s %s %d in %.1f ms",
        request.method,
        rule,
        response.status_code,
        1000 * (time.monotonic() - g.began),
        extra={"message_id": message_id},
    )
    return response


def _forget(error: BaseException | None) -> None:
    request_id.set("")  # What this thread logs from here on belongs to no request.
