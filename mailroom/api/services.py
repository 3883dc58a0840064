"""What the HTTP side needs of the rest; app.py puts it together."""

from collections.abc import Callable
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
from mailroom.store.outbox import Outbox


@dataclass(frozen=True, kw_only=True)
class Services:
    settings: Settings
    outbox: Outbox
    actions: Actions
    jobs: Jobs
    keys: Keys
    orders: Orders
    accounts: Accounts
    known_accounts: list[Account]  #: as the settings have them
    relay: Callable[[], Relay | None]  #: the publisher of this process, once it serves
    send: Callable[[str], object]  #: sendMail.delay
    run: Callable[[NewJob], object]  #: runJob, on the queue of the job


def services() -> Services:
    found: Services = current_app.extensions["mailasync"]
    return found
