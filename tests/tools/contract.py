"""Holds the API against its own description: schemathesis makes requests of /openapi.json, right and wrong ones, and looks at each answer.

make contract                          thousands of requests; ARGS="--examples 20 --seed 1"
"""

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import schemathesis
from flask import Flask
from schemathesis.config import SchemathesisConfig
from schemathesis.core.failures import Failure
from schemathesis.engine import events, from_schema
from schemathesis.python import wsgi
from werkzeug.test import Client, TestResponse

import app as web
from mailroom.api.auth import wrong_keys
from mailroom.api.http import prefer_wait
from mailroom.cli import database as database_module
from mailroom.config.environment import load
from mailroom.inbox import InboxStorage, create_blueprint
from mailroom.store.db.database import Database
from mailroom.worker import runtime

schemathesis.serializer.alias("message/rfc822", "text/plain")

API_KEY = "the key of this run"
#: 422 to a request that the schemas allow: that a name is known, that an address exists in DNS' grammar, or that of two fields only one
#: is there, is more than they say. 400 is the same for depth and doubled names of JSON, 413 and 415 for its size and encoding.
REFUSED = ["2xx", "400", "401", "403", "404", "409", "413", "415", "422", "429"]


@dataclass
class Found:
    """What came of a run."""

    cases: Counter[str] = field(default_factory=Counter)
    answers: Counter[int] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


class _Client(Client):
    """Without what schemathesis' probes for keys hand on: it is for sockets, and this client does not know it.

    Each right Idempotency-Key is made another one: schemathesis takes few, and a second request with one is a 409, whatever it says.
    """

    numbers = count()

    def open(self, *args: Any, **given: Any) -> TestResponse:
        for name in ("max_redirects", "verify", "cert"):
            given.pop(name, None)
        headers = given.get("headers") or {}
        if re.fullmatch("[!#-~]{1,200}", headers.get("Idempotency-Key", "")):
            headers["Idempotency-Key"] += f".{next(self.numbers)}"
        return super().open(*args, **given)


@contextmanager
def served(directory: Path) -> Iterator[Flask]:
    """The application with its inbox, on a database of its own, where nobody waits, nor is held up."""
    given = {
        "ENV_FILE": "",
        "BROKER_URL": "pyamqp://guest@127.0.0.1:9//",
        "DATABASE_URL": f"sqlite:///{directory}/contract.sqlite3",
        "API_KEY": API_KEY,
        "PUBLIC_URL": "https://mail.example.org",
    }
    settings = load({f"MAILASYNC_{name}": value for name, value in given.items()})
    database_module.db_upgrade(settings)
    database, storage = Database(given["DATABASE_URL"]), InboxStorage()
    storage.stop()
    made = web.create_app(settings, database=database)
    made.register_blueprint(create_blueprint(storage))
    with (
        mock.patch.object(prefer_wait, "WAIT_MAX_SECONDS", 0),
        mock.patch.object(wsgi, "get_client", _Client),
        mock.patch.object(wrong_keys, "WRONG_MAX", 1_000_000),
    ):
        yield made
    runtime.stop_publisher()
    made.extensions["mailasync"].api_keys.close()
    database.close()


def run(
    app: Flask,
    *,
    examples: int,
    seconds: float | None = None,
    phases: tuple[str, ...],
    seed: int = 1,
) -> Found:
    """All checks, in process. `examples` are requests for each operation and phase."""
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": {"Authorization": f"Bearer {API_KEY}"},
            "continue-on-failure": True,
            "generation": {
                "max-examples": examples,
                "database": "none",
                "with-security-parameters": False,
            },
            "checks": {"positive_data_acceptance": {"expected-statuses": REFUSED}},
            # A message may have the id "batch" or "raw", as clients choose those of tasks: by another path GET is allowed.
            "operations": [
                {
                    "include-name": f"POST /v1/messages/{name}",
                    "checks": {"allow_header_conformance": {"enabled": False}},
                }
                for name in ("batch", "raw")
            ],
            "phases": {"enabled": False, **{phase: {"enabled": True} for phase in phases}},
        }
        | ({"max-time": seconds} if seconds else {})
    )
    schema = schemathesis.openapi.from_wsgi(
        "/openapi.json", app, config=config, headers={"X-API-Key": API_KEY}
    )
    found = Found()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _look(event, found)
        elif isinstance(event, events.NonFatalError | events.FatalError):
            found.errors.append(
                str(getattr(event, "value", None) or getattr(event, "exception", event))
            )
    return found


def _look(event: events.ScenarioFinished, found: Found) -> None:
    found.cases[event.phase.value] += len(event.recorder.interactions)
    found.answers.update(
        seen.response.status_code for seen in event.recorder.interactions.values() if seen.response
    )
    for id, checks in event.recorder.checks.items():
        for check in checks:
            if check.failure_info is not None:
                failure: Failure = check.failure_info.failure
                case: Any = event.recorder.cases[id].value
                key = f"{failure.operation}: {check.name}: {failure.title}"
                found.failures.setdefault(
                    key, f"{failure.message}\n{check.failure_info.code_sample}\n{case.body!r:.300}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=50, help="for each operation and phase")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--phases", default="examples,coverage,fuzzing,stateful")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, served(Path(directory)) as app:
        found = run(
            app, examples=asked.examples, phases=tuple(asked.phases.split(",")), seed=asked.seed
        )
    for what, how in found.failures.items():
        print(f"{what}\n{how}\n")
    for error in found.errors:
        print(error)
    print(
        f"answers: {', '.join(f'{times:,} times {status}' for status, times in sorted(found.answers.items()))}"
    )
    print(
        f"seed {asked.seed}: {sum(found.cases.values()):,} requests ({dict(found.cases)}), {len(found.failures)} failures, "
        f"{len(found.errors)} errors"
    )
    sys.exit(1 if found.failures or found.errors else 0)


if __name__ == "__main__":
    main()
