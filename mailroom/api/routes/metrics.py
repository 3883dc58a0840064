"""Shows the service to whoever runs it: `/metrics` for Prometheus, and an id for each request.

The id is in the request's answer and in the log.
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
from mailroom.store.events.counters import DEPTH_MAX, LATENCY_SECONDS, SENT_MS, SENT_WITHIN, Counters, Depths

access_log = logging.getLogger("mailasync.access")
log = logging.getLogger("mailasync.api")
blueprint = Blueprint("metrics", __name__)

ID_HEADER = "X-Request-Id"

#: The counters: what each counts, by the name it has in the tallies.
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
    """In Prometheus' text format, or as OpenMetrics for who asks for that."""
    registry = CollectorRegistry()
    registry.register(_Service(services()))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(registry), content_type=content_type)


class _Service(Collector):
    """All that is told. What is not known just now is left out, so that a counter never seems to begin anew."""

    def __init__(self, told_of: Services) -> None:
        self._services = told_of
        self._database = told_of.outbox.database

    def collect(self) -> Iterator[Metric]:
        try:
            tallies = Counters(self._database)
            found = [
                *_counters(tallies.totals()),
                *_gauges(tallies.depths(self._services.settings.LEASE_SECONDS)),
                *self._accounts(),
            ]
        except StoreUnavailable as e:
            log.error("%s", e)
            found = []
        is_up = bool(found) and not self._services.readiness.trouble()
        yield _gauge("up", "Whether mail is accepted", int(is_up))
        yield from found
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
            return  # Not looked at yet.
        yield _gauge("broker_up", "Whether this process reaches the broker", int(publisher.down is None))
        if publisher.queue is not None and publisher.down is None:
            yield _gauge(
                "broker_nudges", f"Nudges on the queue {publisher.polled_queues[0]}", publisher.queue[0]
            )
            yield _gauge(
                "broker_consumers", f"Consumers of the queue {publisher.polled_queues[0]}", publisher.queue[1]
            )

    def _accounts(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "mailasync_account_state",
            "1 for the state that the sender account is in",
            labels=["account", "state"],
        )
        sent = GaugeMetricFamily(
            "mailasync_account_sent_24h", "What counts against the account's limits", labels=["account", "of"]
        )
        limits = GaugeMetricFamily(
            "mailasync_account_budget_24h", "The account's limits for any 24 hours", labels=["account", "of"]
        )
        for row in self._services.accounts.details():
            for one in AccountState:
                state.add_metric([row["name"], one], int(row["state"] == one))
            for of in ("messages", "recipients"):
                if limit := getattr(row["limit"], of):  # Without a limit nothing is counted.
                    sent.add_metric([row["name"], of], row[of])
                    limits.add_metric([row["name"], of], limit)
        yield from (state, sent, limits)


def _counters(totals: Mapping[str, int]) -> Iterator[Metric]:
    for name, meaning in MESSAGES.items():
        yield CounterMetricFamily(f"mailasync_messages_{name}", meaning, value=totals.get(name, 0))
    for name, meaning in JOBS.items():
        yield CounterMetricFamily(f"mailasync_jobs_{name}", meaning, value=totals.get(f"jobs_{name}", 0))
    yield CounterMetricFamily(
        "mailasync_nudges_recovered",
        "Messages whose nudge got lost or was never published, and was made again",
        value=totals.get("recovered", 0),
    )
    yield CounterMetricFamily(
        "mailasync_tasks_dropped",
        value=totals.get("tasks_dropped", 0),
        documentation=("Messages of Celery clients that cannot be read, and have no id to record them under"),
    )
    limits = [*(str(float(seconds)) for seconds in LATENCY_SECONDS), "+Inf"]
    yield HistogramMetricFamily(
        "mailasync_latency_seconds",
        "From a message's acceptance until the next hop took it, with all that it waited for",
        buckets=list(zip(limits, accumulate(totals.get(name, 0) for name in SENT_WITHIN), strict=True)),
        sum_value=totals.get(SENT_MS, 0) / 1000,
    )


def _gauges(depths: Depths) -> Iterator[Metric]:
    waiting = GaugeMetricFamily(
        "mailasync_queue_depth",
        f"Messages that have not ended, by state; {DEPTH_MAX} at most",
        labels=["state"],
    )
    jobs = GaugeMetricFamily(
        "mailasync_jobs", f"Jobs that have not ended, by state; {DEPTH_MAX} at most", labels=["state"]
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
    """Give each request its id, and a line in the log. Before all other hooks, so that they know it."""
    app.before_request(_begin)
    app.after_request(_end)
    app.teardown_request(_forget)


def _begin() -> None:
    """The client's own id, if it is one that may stand in a header and in a log."""
    given = request.headers.get(ID_HEADER, "")
    g.began = time.monotonic()
    request_id.set(given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else random_id())


def _end(response: Response) -> Response:
    """The line has the route and not the path, as that may hold an address or a secret."""
    response.headers[ID_HEADER] = request_id.get()
    rule = request.url_rule.rule if request.url_rule else "(no route)"
    message_id = (request.view_args or {}).get("id") if rule.startswith("/v1/messages/") else None
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
    request_id.set("")  # What this thread logs from now on is about no request.
