"""Tells whether the service lives and is ready."""

from contextlib import suppress

from flask import Blueprint, Response, jsonify

from mailroom.api.auth.guard import refusal
from mailroom.api.services import services
from mailroom.broker.publisher import Publisher
from mailroom.model.errors import StoreUnavailable
from mailroom.process.supervisor import is_any_down, troubles
from mailroom.store.maintenance.clock import Clock
from mailroom.store.workers import thread_troubles

blueprint = Blueprint("health", __name__)

_NOT_KNOWN = "not known while the database is away"


@blueprint.get("/ping")
def ping() -> Response:
    """Something answers."""
    return jsonify({"status": "success", "message": "pong"})


@blueprint.get("/livez")
def livez() -> Response:
    """This process answers; nothing else is looked at."""
    return jsonify({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """200 if a mail would be accepted; a broker or a worker that is away is told, and refuses none.

    A broker with workers of which this outbox has seen none is one: they read another database.
    """
    trouble = services().readiness.trouble()
    publisher = services().publisher()
    worker, reads_another = _worker(publisher)
    checks = {
        "database": trouble or "ok",
        "clock": _clock(),
        "broker": _broker(publisher),
        "worker": worker,
        "threads": _threads(),
    }
    if refusal() is not None:  # To strangers no host, no port and no server's words.
        checks = {name: "ok" if said == "ok" else "not ok" for name, said in checks.items()}
    is_ready = not trouble and not reads_another and not is_any_down()
    answer = jsonify({"status": "ok" if is_ready else "unready", "checks": checks})
    answer.status_code = 200 if is_ready else 503
    return answer


def _clock() -> str:
    try:
        return Clock(services().outbox.database).trouble() or "ok"
    except StoreUnavailable:
        return _NOT_KNOWN


def _threads() -> str:
    """Say which threads have ended: of this process and, as their heartbeats tell, of workers elsewhere."""
    words = troubles()
    with suppress(StoreUnavailable):
        words += thread_troubles(services().outbox.database, services().settings.LEASE_SECONDS)
    return "; ".join(words) or "ok"


def _broker(publisher: Publisher | None) -> str:
    if publisher is not None and publisher.down:
        return f"unreachable: {publisher.down[1]}"
    return "ok" if publisher is not None and publisher.queue else "not looked at yet"


def _worker(publisher: Publisher | None) -> tuple[str, bool]:
    """Say when a worker was seen, and whether there are some that read another database."""
    try:
        seen_ms = services().outbox.worker_seen_ms_ago()
        trouble = services().broker_trouble()
    except StoreUnavailable:
        return _NOT_KNOWN, False
    if seen_ms is not None and seen_ms <= services().settings.LEASE_SECONDS * 1000:
        return f"cannot take mail: {trouble}" if trouble else "ok", False
    words = "none is running" if seen_ms is None else f"none seen for {seen_ms / 1000:.0f} s"
    if publisher is None or publisher.down or not publisher.queue or not publisher.queue[1]:
        return words, False
    return f"{words}, but {publisher.queue[1]} consume the queue: they read another database", True
