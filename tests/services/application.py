"""The application in this very process, for tests of what it answers."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from flask import Flask
from werkzeug.routing import Rule

import app as web
from mailroom.config.environment import load
from mailroom.worker import runtime
from tests.services.schema import ready


def _compiled_once(compile_builder: Callable[..., Any]) -> Callable[..., Any]:
    """Werkzeug compiles a function for each route of each application; the same ones take 30 ms each time."""
    known: dict[object, Any] = {}

    @wraps(compile_builder)
    def compiled(rule: Rule, append_unknown: bool = True) -> Any:
        key = rule.rule, rule.subdomain, repr(rule.defaults), append_unknown
        if key not in known:
            known[key] = compile_builder(rule, append_unknown)
        return known[key]

    return compiled


Rule._compile_builder = _compiled_once(Rule._compile_builder)  # type: ignore[method-assign]


def made(database_url: str, **settings: str) -> Iterator[Flask]:
    """Yield the application on this database, which is brought up to date, with a broker that nobody listens on."""
    given = {
        "ENV_FILE": "",
        "BROKER_URL": "pyamqp://guest@127.0.0.1:9//",
        "DATABASE_URL": database_url,
    } | settings
    read = load({f"MAILASYNC_{name}": value for name, value in given.items()})
    database = ready(database_url)
    served = web.create_app(read, database=database)
    yield served
    served.extensions["mailasync"].api_keys.close()
    runtime.stop_publisher()
    database.close()
