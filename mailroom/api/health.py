"""Whether the service lives and is ready."""

from flask import Blueprint, Response, jsonify

from mailroom.api.guard import refusal
from mailroom.api.services import services
from mailroom.mail.errors import StoreUnavailable
from mailroom.supervisor import is_any_down, troubles

blueprint = Blueprint("health", __name__)


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
    """200 if a mail would be accepted and could be sent. A broker that is away is told, and is no reason to refuse mail.

    A broker with workers of which this outbox has seen none is one: they read another database.
    """
    checks: dict[str, str] = {}
    relay = services().relay()
    seen_ms = None
    try:
        seen_ms = services().outbox.worker_seen_ms_ago()
        checks["database"] = "ok"
    except StoreUnavailable as e:
        checks["database"] = str(e)
    checks["broker"] = "not looked at yet" if relay is None or (relay.queue is None and not relay.down) else \
        "ok" if not relay.down else f"unreachable: {relay.down[1]}"
    fresh = seen_ms is not None and seen_ms <= services().settings.LEASE_SECONDS * 1000
    checks["worker"] = "ok" if fresh else "none is running" if seen_ms is None else f"none seen for {seen_ms / 1000:.0f} s"
    ready = checks["database"] == "ok"
    if ready and not fresh and relay and relay.queue and relay.queue[1] and not relay.down:
        checks["worker"] += f", but {relay.queue[1]} consume the queue: they read another database"
        ready = False
    checks["threads"] = "; ".join(troubles()) or "ok"
    ready = ready and not is_any_down()
    if refusal() is not None:  # To strangers no host, no port and no server's words.
        checks = {name: "ok" if said == "ok" else "not ok" for name, said in checks.items()}
    answer = jsonify({"status": "ok" if ready else "unready", "checks": checks})
    answer.status_code = 200 if ready else 503
    return answer
