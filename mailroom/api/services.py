"""Holds what the HTTP side needs of the rest; app.py puts it together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flask import current_app

from mailroom.broker.publisher import Publisher
from mailroom.config.accounts import Account
from mailroom.config.settings import Settings
from mailroom.store.accounts import Accounts
from mailroom.store.events.webhooks import Webhooks
from mailroom.store.jobs.jobs import Jobs, NewJob
from mailroom.store.keys.api_keys import ApiKeys
from mailroom.store.maintenance.health import Readiness
from mailroom.store.messages.actions import Actions
from mailroom.store.messages.idempotency import Keys
from mailroom.store.messages.outbox import Outbox
from mailroom.store.messages.suppressions import Suppressions, Unsubscribes
from mailroom.store.templates import Templates
from mailroom.store.workers import broker_trouble
from mailroom.submission.reader import SubmissionReader


@dataclass(frozen=True, kw_only=True)
class Services:
    settings: Settings
    outbox: Outbox
    readiness: Readiness
    actions: Actions
    jobs: Jobs
    keys: Keys
    api_keys: ApiKeys
    orders: SubmissionReader
    webhooks: Webhooks
    accounts: Accounts
    known_accounts: list[Account]  #: as the settings have them
    suppressions: Suppressions
    unsubscribes: Unsubscribes
    templates: Templates
    publisher: Callable[[], Publisher | None]  #: the publisher of this process, once it serves
    send: Callable[[Sequence[str], str], object]  #: sendMail, of ids on a queue
    run: Callable[[NewJob], object]  #: runJob, on the queue of the job

    def broker_trouble(self) -> str:
        """Name what keeps every worker from its queues; "" where nothing does. Raises StoreUnavailable."""
        return broker_trouble(self.outbox.database, self.settings.LEASE_SECONDS)


def services() -> Services:
    found: Services = current_app.extensions["mailasync"]
    return found
