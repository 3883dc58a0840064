"""What the HTTP side needs of the rest; app.py puts it together."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flask import current_app

from mailroom.order import Orders
from mailroom.relay import Relay
from mailroom.route import Account
from mailroom.settings import Settings
from mailroom.store.accounts import Accounts
from mailroom.store.actions import Actions
from mailroom.store.idempotency import Keys
from mailroom.store.jobs import Jobs, NewJob
from mailroom.store.keys import ApiKeys
from mailroom.store.outbox import Outbox
from mailroom.store.suppressions import Suppressions, Unsubscribes
from mailroom.store.templates import Templates
from mailroom.store.vitals import Readiness
from mailroom.store.webhooks import Webhooks
from mailroom.store.workers import broker_trouble


@dataclass(frozen=True, kw_only=True)
class Services:
    settings: Settings
    outbox: Outbox
    readiness: Readiness
    actions: Actions
    jobs: Jobs
    keys: Keys
    api_keys: ApiKeys
    orders: Orders
    webhooks: Webhooks
    accounts: Accounts
    known_accounts: list[Account]  #: as the settings have them
    suppressions: Suppressions
    unsubscribes: Unsubscribes
    templates: Templates
    relay: Callable[[], Relay | None]  #: the publisher of this process, once it serves
    send: Callable[[Sequence[str], str], object]  #: sendMail, of ids on a queue
    run: Callable[[NewJob], object]  #: runJob, on the queue of the job

    def broker_trouble(self) -> str:
        """Name what keeps every worker from its queues; "" where nothing does. Raises StoreUnavailable."""
        return broker_trouble(self.outbox.database, self.settings.LEASE_SECONDS)


def services() -> Services:
    found: Services = current_app.extensions["mailasync"]
    return found
