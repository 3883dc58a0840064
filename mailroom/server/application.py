"""Sets up the Flask application: its services, its hooks, and the routes that are not in app.py."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from flask import Blueprint, Flask

from mailroom import web
from mailroom.api import problems
from mailroom.api.auth import guard, rate_limits
from mailroom.api.auth.sessions import BrowserSessions
from mailroom.api.openapi import document, queries
from mailroom.api.routes import (
    accounts,
    actions,
    health,
    jobs,
    messages,
    metrics,
    raw_messages,
    suppressions,
    templates,
    unsubscribe,
    webhooks,
)
from mailroom.api.services import Services
from mailroom.store.keys.sign_outs import SignOuts
from mailroom.store.keys.signing import secret

API = (
    problems,
    queries,
    rate_limits,
    messages,
    raw_messages,
    actions,
    jobs,
    accounts,
    health,
    metrics,
    suppressions,
    templates,
    unsubscribe,
    webhooks,
    document,
)


class Application(Flask):
    """Saves Flask the check, in each request, whether a hook or view is a coroutine; none of ours is."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func


def set_up(app: Flask, services: Services, blueprints: Sequence[Blueprint] = ()) -> None:
    """Give the application its services, its hooks and its routes."""
    database = services.outbox.database
    # Flask itself has no limit.
    app.config["MAX_CONTENT_LENGTH"] = services.settings.REQUEST_MAX_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]  # of the default provider
    app.extensions["mailasync"] = services
    BrowserSessions(partial(secret, database, "session"), SignOuts(database)).attach(app)
    metrics.watch(app)  # The first of all hooks, so that a refused request has an id too.
    app.before_request(guard.check)

    @app.before_request
    def start_publisher() -> None:
        # At the first request, as only the process that serves needs it.
        services.publisher()

    for blueprint in (*(module.blueprint for module in API), *web.BLUEPRINTS, *blueprints):
        app.register_blueprint(blueprint)
