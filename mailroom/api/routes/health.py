"""Answers health checks: is the process alive, and is the service ready?"""

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

_UNKNOWN = "not known while the database is away"


@blueprint.get("/ping")
def ping() -> Response:
    """Return "pong"."""
    return jsonify({"status": "success", "message": "pong"})


@blueprint.get("/livez")
def livez() -> Response:
    """Return ok while this process answers; checks nothing else."""
    return jsonify({"status": "ok"})


@blueprint.get("/readyz")
def readyz() -> Response:
    """Return 200 if a mail would be accepted, else 503; a missing broker, worker or mailbox is only reported.

    Workers on the queue that this outbox has never seen do make it 503: they read another database.
    """
    trouble = services().readiness.trouble()
    publisher = services().publisher()
    worker, is_foreign = _worker(publisher)
    checks = {
        "database": trouble or "ok",
        "clock": _clock(),
        "broker": _broker(publisher),
        "worker": worker,
        "threads": _threads(),
        "mailboxes": _mailboxes(),
    }
    if refusal() is not None:  # Strangers see no host, no port and no server's reply.
        checks = {name: _without_details(text) for name, text in checks.items()}
    is_ready = not trouble and not is_foreign and not is_any_down()
    status = "ok" if is_ready else "unready"
    response = jsonify({"status": status, "checks": checks})
    response.status_code = 200 if is_ready else 503
    return response


def _without_details(text: str) -> str:
    return "ok" if text == "ok" else "not ok"


def _clock() -> str:
    try:
        return Clock(services().outbox.database).trouble() or "ok"
    except StoreUnavailable:
        return _UNKNOWN


def _threads() -> str:
    """Say which threads have died, in this process and, by their heartbeats, in workers elsewhere."""
    reasons = troubles()
    with suppress(StoreUnavailable):
        reasons += thread_troubles(services().outbox.database, services().settings.LEASE_SECONDS)
    return "; ".join(reasons) or "ok"


def _mailboxes() -> str:
    """Say which mailboxes of accounts cannot be read."""
    try:
        rows = services().mailboxes()
    except StoreUnavailable:
        return _UNKNOWN
    reasons = [f"{name}: {row.trouble}" for name, row in rows.items() if row.trouble]
    return "; ".join(reasons) or "ok"


def _broker(publisher: Publisher | None) -> str:
    if publisher is not None and publisher.down:
        return f"unreachable: {publisher.down[1]}"
    return "ok" if publisher is not None and publisher.queue else "not looked at yet"


def _worker(publisher: Publisher | None) -> tuple[str, bool]:
    """Say when a worker was last seen, and return True if those on the queue read another database."""
    try:
        seen_ms = services().outbox.worker_seen_ms_ago()
        trouble = services().broker_trouble()
    except StoreUnavailable:
        return _UNKNOWN, False
    if seen_ms is not None and seen_ms <= services().settings.LEASE_SECONDS * 1000:
        return f"cannot take mail: {trouble}" if trouble else "ok", False
    sentence = "none is running" if seen_ms is None else f"none seen for {seen_ms / 1000:.0f} s"
    if publisher is None or publisher.down or not publisher.queue or not publisher.queue[1]:
        return sentence, False
    return (
        f"{sentence}, but {publisher.queue[1]} consume the queue: they read another database",
        True,
    )
