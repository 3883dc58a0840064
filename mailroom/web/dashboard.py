"""The dashboard: does mail flow, what needs a person's decision, and how the last hour or day went."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Any

from flask import Response, request

from mailroom.api.answers import AccountJson
from mailroom.api.http.serialize import message_summary_json
from mailroom.api.http.why import faults
from mailroom.api.routes import accounts
from mailroom.api.services import services
from mailroom.model.account import AccountState
from mailroom.model.message import State
from mailroom.model.times import timestamp
from mailroom.store.db.database import Database
from mailroom.store.events.counters import LATENCY_SECONDS, SENT_WITHIN, Counters, Depths
from mailroom.store.events.queue_history import WAITING, QueueHistory
from mailroom.store.events.webhook_events import ENABLED
from mailroom.store.messages.search import Search, listed, number
from mailroom.store.workers import alive
from mailroom.web.charts import Line, Times, chart
from mailroom.web.layout import done, page, pages

blueprint = pages("dashboard")

#: The time spans of the charts, and the minutes of one point of a line.
SPANS = {"hour": (60, 1), "day": (24 * 60, 10)}
#: Mail is late when a queued one waits longer than this for a worker.
LATE_SECONDS = 60
#: Messages listed for each state that needs a decision, and of the newest.
LISTED_MAX = 5
NEWEST_MAX = 8
#: Counting stops here: the page then says "1000 or more".
COUNTED_MAX = 1000
#: The events that the table counts.
COUNTS = (
    "accepted",
    "sent",
    "failed",
    "deferred",
    "uncertain",
    "bounced",
    "complained",
    "suppressed",
    "canceled",
    "expired",
)


@blueprint.get("/dashboard")
def dashboard() -> Response:
    """Show the dashboard; `?span=day` shows the last day instead of the last hour."""
    span = "day" if request.args.get("span") == "day" else "hour"
    database = services().outbox.database
    now, seen_at, beat_at = services().outbox.workers_seen()
    minute = now // 60_000
    depths = Counters(database).depths(services().settings.LEASE_SECONDS)
    day, hour = _over_time(database, "day", minute), _over_time(database, "hour", minute)
    charts = _charts(day if span == "day" else hour, depths, span, minute)
    newest = [message_summary_json(row) for row in listed(database, Search(limit=NEWEST_MAX)).rows]
    all_accounts = accounts.accounts_json()
    current_faults = _faults(now, seen_at, beat_at)
    return page(
        "dashboard.html",
        live=True,
        span=span,
        faults=current_faults,
        needs=_needs(all_accounts),
        depths=depths,
        accounts=all_accounts,
        verdict=_verdict(current_faults, all_accounts, depths, _sum(hour, "sent")),
        counts=[(name, _sum(hour, name), _sum(day, name)) for name in COUNTS],
        charts=list(charts),
        workers=_workers(),
        newest=newest,
    )


@blueprint.post("/dashboard/release-held")
def release_held() -> Response:
    """Release all held messages, as `flask release --all` does; the sweeper does it in the background."""
    services().actions.release_all()
    return done("/dashboard", "released")


@blueprint.post("/accounts/<path:account>/retry")
def retry_account(account: str) -> Response:
    """Try a halted account with one mail now."""
    accounts.retry_account(account)
    return done("/dashboard", "tried")


def _faults(now: int, seen_at: int | None, beat_at: int | None) -> list[str]:
    """Say, a sentence each, why no mail flows, from the heartbeats of workers and the state of the broker."""
    return faults(
        services().publisher(),
        now=now,
        seen_at=seen_at,
        beat_at=beat_at,
        lease_seconds=services().settings.LEASE_SECONDS,
        broker_trouble=services().broker_trouble,
    )


def _workers() -> list[dict[str, Any]]:
    workers = []
    for worker in alive(services().outbox.database, services().settings.LEASE_SECONDS):
        since, seen = timestamp(worker["started_at"]), timestamp(worker["seen_at"])
        workers.append(worker | {"since": since, "seen": seen})
    return workers


def _needs(all_accounts: list[AccountJson]) -> dict[str, Any]:
    """Return what does not continue without a person's decision."""
    database = services().outbox.database
    needs: dict[str, Any] = {}
    needs["accounts"] = [
        account for account in all_accounts if account["status"] == AccountState.HALTED
    ]
    for state in (State.HELD, State.UNCERTAIN):
        rows = listed(database, Search(status=state, limit=LISTED_MAX)).rows
        needs[state.value] = [message_summary_json(row) for row in rows]
        is_all = len(rows) < LISTED_MAX
        needs[f"{state}_count"] = len(rows) if is_all else number(database, state, COUNTED_MAX)
    needs["webhooks"] = []
    for hook in services().webhooks.all():
        if hook["state"] != ENABLED and hook["reason"] != "by request":
            needs["webhooks"].append(hook)
    needs["any"] = any(needs.values())
    return needs


def _verdict(
    current_faults: list[str], all_accounts: list[AccountJson], depths: Depths, sent: int
) -> tuple[str, str]:
    """Say whether mail flows: the CSS class good, late or bad, and a sentence."""
    stopped = [account["name"] for account in all_accounts if account["status"] != AccountState.OK]
    if current_faults:
        return (
            "bad",
            "Mail does not flow. It is accepted and kept, and will be sent once this is fixed.",
        )
    if len(stopped) == len(all_accounts):
        return (
            "bad",
            "Mail does not flow: no account can send. It is accepted and kept until one can.",
        )
    if stopped:
        return "late", f"Mail flows, but not by {' or '.join(stopped)}."
    if depths.oldest_seconds > LATE_SECONDS:
        return "late", "Mail is delayed: the workers can't keep up."
    summary_of_hour = (
        f"{sent:,} sent in the last hour" if sent else "none was sent in the last hour"
    )
    return "good", f"Mail flows; {summary_of_hour}."


def _over_time(database: Database, span: str, minute: int) -> dict[str, dict[int, int]]:
    """Count the events of the hour or day that ends with this minute, by the intervals of the charts."""
    minutes, stretch = SPANS[span]
    return Counters(database).over_time(minute - minutes + 1, stretch=stretch)


def _charts(
    counts: Mapping[str, Mapping[int, int]], depths: Depths, span: str, minute: int
) -> Iterator[Any]:
    """Yield the charts; `counts` are by event and interval."""
    minutes, stretch = SPANS[span]
    last = minute // stretch
    intervals = range(last - minutes // stretch + 1, last + 1)
    times = Times(first=intervals[0] * stretch, stretch=stretch, count=len(intervals))
    yield chart(
        "Throughput, mails a minute", [*_throughput(counts, intervals, stretch, minute)], times
    )
    yield chart(
        "Latency, from POST to the server's 250", [*_latency(counts, intervals)], times, unit=" s"
    )
    waiting, oldest = _queue_history(intervals, stretch, depths)
    yield chart(
        "Waiting to be sent",
        [Line(name="messages", look="accepted", values=waiting, is_area=True)],
        times,
    )
    yield chart(
        "Age of the oldest that waits for a worker",
        [Line(name="seconds", look="slow", values=oldest)],
        times,
        unit=" s",
    )


def _throughput(
    counts: Mapping[str, Mapping[int, int]], intervals: range, stretch: int, minute: int
) -> Iterator[Line]:
    """Yield lines of events a minute; the last interval has only the minutes up to now."""
    for name in ("sent", "accepted", "failed"):
        of_event = counts.get(name, {})
        values: list[float | None] = [of_event.get(interval, 0) / stretch for interval in intervals]
        values[-1] = of_event.get(intervals[-1], 0) / (minute % stretch + 1)
        yield Line(name=name, look=name, values=values, is_area=name == "sent")


def _latency(counts: Mapping[str, Mapping[int, int]], intervals: range) -> Iterator[Line]:
    """Yield lines of the 95th percentile and the median."""
    histograms = []
    for interval in intervals:
        histograms.append([counts.get(name, {}).get(interval, 0) for name in SENT_WITHIN])
    for share, look in ((0.95, "slow"), (0.5, "sent")):
        values = [_percentile(histogram, share) for histogram in histograms]
        yield Line(name=f"{share:.0%} within", look=look, values=values)


def _percentile(histogram: list[int], share: float) -> float | None:
    """Return the bound in LATENCY_SECONDS within which this share of mails was sent; None without mails.

    Mails that took longer than the last bound count as if they took just that long.
    """
    total = sum(histogram)
    if not total:
        return None
    bucket = next(n for n, reached in enumerate(accumulate(histogram)) if reached >= share * total)
    return LATENCY_SECONDS[min(bucket, len(LATENCY_SECONDS) - 1)]


def _queue_history(
    intervals: range, stretch: int, depths: Depths
) -> tuple[list[float | None], list[float | None]]:
    """Return the most mails that waited in each interval, and the age of the oldest, up to this moment."""
    history = QueueHistory(services().outbox.database, services().settings.LEASE_SECONDS)
    most_waiting: dict[int, float] = {}
    oldest_seconds: dict[int, float] = {}

    def note(interval: int, waiting: float, oldest: float) -> None:
        most_waiting[interval] = max(most_waiting.get(interval, 0), waiting)
        oldest_seconds[interval] = max(oldest_seconds.get(interval, 0), oldest)

    for sample in history.since(intervals[0] * stretch):
        note(sample.minute // stretch, sample.waiting, sample.oldest_ms / 1000)
    note(intervals[-1], sum(depths.messages[state] for state in WAITING), depths.oldest_seconds)
    waiting = [most_waiting.get(interval) for interval in intervals]
    return waiting, [oldest_seconds.get(interval) for interval in intervals]


def _sum(counts: Mapping[str, Mapping[int, int]], name: str) -> int:
    return sum(counts.get(name, {}).values())
