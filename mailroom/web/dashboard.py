"""The first thing to look at: does mail flow, what needs a person, and how it went."""

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
from mailroom.store.events.counters import LATENCY_SECONDS, SENT_WITHIN, Depths, Tallies
from mailroom.store.events.deliveries import ENABLED
from mailroom.store.events.queue_history import WAITING, Samples
from mailroom.store.messages.search import Search, listed, number
from mailroom.store.workers import alive
from mailroom.web.charts import Line, Times, chart
from mailroom.web.layout import done, page, pages

blueprint = pages("dashboard")

#: The stretches of time that are shown, and how many minutes each point of a line stands for.
SPANS = {"hour": (60, 1), "day": (24 * 60, 10)}
#: A queued mail that waits longer for a worker, in seconds, is late.
LATE_SECONDS = 60
SHOWN = 5
NEWEST = 8
COUNTED_MAX = 1000
#: What a dashboard counts: the name, and the counts that are summed.
COUNTS = ("accepted", "sent", "failed", "deferred", "uncertain", "suppressed", "canceled", "expired")


@blueprint.get("/dashboard")
def dashboard() -> Response:
    """Show whether mail flows, what needs a person, and how it went over the last hour or day."""
    span = "day" if request.args.get("span") == "day" else "hour"
    database, lease_seconds = services().outbox.database, services().settings.LEASE_SECONDS
    now, seen_at, beat_at = services().outbox.workers_seen()
    minute = now // 60_000
    depths = Tallies(database).depths(lease_seconds)
    day = Tallies(database).over_time(minute - SPANS["day"][0] + 1, stretch=10)
    hour = Tallies(database).over_time(minute - SPANS["hour"][0] + 1)
    known = accounts.accounts_json()
    broken = faults(
        services().publisher(),
        now=now,
        seen_at=seen_at,
        beat_at=beat_at,
        lease_seconds=lease_seconds,
        broker_trouble=services().broker_trouble,
    )
    return page(
        "dashboard.html",
        live=True,
        span=span,
        faults=broken,
        needs=_needs(known),
        depths=depths,
        accounts=known,
        verdict=_verdict(broken, known, depths, _sum(hour, "sent")),
        counts=[(name, _sum(hour, name), _sum(day, name)) for name in COUNTS],
        charts=[*_charts(day if span == "day" else hour, depths, span, minute)],
        workers=[
            worker | {"since": timestamp(worker["started_at"]), "seen": timestamp(worker["seen_at"])}
            for worker in alive(database, lease_seconds)
        ],
        newest=[message_summary_json(row) for row in listed(database, Search(limit=NEWEST)).rows],
    )


@blueprint.post("/dashboard/release-held")
def release_held() -> Response:
    """Let go all that is held, as `flask release --all` does; the sweeper sees to it."""
    services().actions.release_all()
    return done("/dashboard", "released")


@blueprint.post("/accounts/<path:account>/retry")
def retry_account(account: str) -> Response:
    """Have one mail try the account at once."""
    accounts.retry_account(account)
    return done("/dashboard", "tried")


def _needs(known: list[AccountJson]) -> dict[str, Any]:
    """Return what does not go on by itself."""
    database = services().outbox.database
    found: dict[str, Any] = {
        "accounts": [account for account in known if account["status"] == AccountState.HALTED]
    }
    for state in (State.HELD, State.UNCERTAIN):
        rows = listed(database, Search(status=state, limit=SHOWN)).rows
        found[state.value] = [message_summary_json(row) for row in rows]
        found[f"{state}_count"] = number(database, state, COUNTED_MAX) if len(rows) == SHOWN else len(rows)
    found["webhooks"] = [
        hook
        for hook in services().webhooks.all()
        if hook["state"] != ENABLED and hook["reason"] != "by request"
    ]
    found["any"] = any(found.values())
    return found


def _verdict(broken: list[str], known: list[AccountJson], depths: Depths, sent: int) -> tuple[str, str]:
    """Say how things look, in one word and one sentence."""
    stopped = [account["name"] for account in known if account["status"] != AccountState.OK]
    if broken or len(stopped) == len(known):
        return (
            "bad",
            "Mail does not flow. It is accepted and kept, and goes on when this is mended."
            if broken
            else "Mail does not flow: no account can send. It is accepted and kept, and goes on when one can.",
        )
    if stopped:
        return "late", f"Mail flows, but not by {' or '.join(stopped)}."
    if depths.oldest_seconds > LATE_SECONDS:
        return "late", "Mail is late: there is more than the workers can take just now."
    words = f"{sent:,} sent in the last hour" if sent else "none was sent in the last hour"
    return "good", f"Mail flows; {words}."


def _charts(counts: Mapping[str, Mapping[int, int]], depths: Depths, span: str, minute: int) -> Iterator[Any]:
    minutes, stretch = SPANS[span]
    last = minute // stretch
    places = range(last - minutes // stretch + 1, last + 1)
    times = Times(first=places[0] * stretch, stretch=stretch, count=len(places))
    yield chart(
        "Throughput, mails a minute",
        [
            Line(
                name=name,
                look=name,
                values=[
                    counts.get(name, {}).get(place, 0) / (stretch if place < last else minute % stretch + 1)
                    for place in places
                ],
                is_area=name == "sent",
            )
            for name in ("sent", "accepted", "failed")
        ],
        times,
    )
    within = [[counts.get(name, {}).get(place, 0) for name in SENT_WITHIN] for place in places]
    yield chart(
        "Latency, from POST to the server's 250",
        [
            Line(name=f"{part:.0%} within", look=look, values=[_within(one, part) for one in within])
            for part, look in ((0.95, "slow"), (0.5, "sent"))
        ],
        times,
        unit=" s",
    )
    samples = _sampled(places, stretch, depths)
    yield chart(
        "Waiting to be sent",
        [Line(name="messages", look="accepted", values=[one and one[0] for one in samples], is_area=True)],
        times,
    )
    yield chart(
        "Age of the oldest that waits for a worker",
        [Line(name="seconds", look="slow", values=[one and one[1] for one in samples])],
        times,
        unit=" s",
    )


def _within(counts: list[int], part: float) -> float | None:
    """The bound within which this part of the mails went; of those that took longer than the last one, that one."""
    total = sum(counts)
    if not total:
        return None
    place = next(n for n, reached in enumerate(accumulate(counts)) if reached >= part * total)
    return LATENCY_SECONDS[min(place, len(LATENCY_SECONDS) - 1)]


def _sampled(places: range, stretch: int, depths: Depths) -> list[tuple[float, float] | None]:
    """The most of each stretch, just now included."""
    found: dict[int, tuple[float, float]] = {}
    samples = Samples(services().outbox.database, services().settings.LEASE_SECONDS).since(
        places[0] * stretch
    )
    seen = [(sample.minute // stretch, sample.waiting, sample.oldest_ms / 1000) for sample in samples]
    for place, waiting, oldest in (
        *seen,
        (places[-1], sum(depths.messages[state] for state in WAITING), depths.oldest_seconds),
    ):
        most = found.get(place, (0, 0))
        found[place] = max(most[0], waiting), max(most[1], oldest)
    return [found.get(place) for place in places]


def _sum(counts: Mapping[str, Mapping[int, int]], name: str) -> int:
    return sum(counts.get(name, {}).values())
