"""The parts of the service that views need, bundled and kept by the application."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import current_app

from mailroom.broker.publisher import Publisher
from mailroom.config.accounts import Account, accounts
from mailroom.config.settings import Settings
from mailroom.model.ids import MailId
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.events.webhooks import Webhooks
from mailroom.store.jobs.jobs import Jobs, NewJob
from mailroom.store.keys.api_keys import ApiKeys
from mailroom.store.mailboxes import mailbox_rows
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
    """The parts of the service; `on` makes them on a database, and reads and starts nothing."""

    settings: Settings
    outbox: Outbox
    readiness: Readiness
    actions: Actions
    jobs: Jobs
    keys: Keys
    api_keys: ApiKeys
    reader: SubmissionReader
    webhooks: Webhooks
    accounts: Accounts
    known_accounts: list[Account]  #: those of the settings, in their order
    suppressions: Suppressions
    unsubscribes: Unsubscribes
    templates: Templates
    #: returns the publisher of this process, None before it serves
    publisher: Callable[[], Publisher | None]
    send: Callable[[MailId], object]  #: publishes the task sendMail for one mail
    run: Callable[[NewJob], object]  #: publishes the task runJob on the job's queue

    @classmethod
    def on(
        cls,
        database: Database,
        settings: Settings,
        *,
        reader: SubmissionReader,
        publisher: Callable[[], Publisher | None],
        send: Callable[[MailId], object],
        run: Callable[[NewJob], object],
    ) -> "Services":
        known, outbox = accounts(settings), Outbox(database)
        return cls(
            settings=settings,
            outbox=outbox,
            readiness=Readiness(outbox),
            actions=Actions(database),
            jobs=Jobs(database, settings.LEASE_SECONDS),
            keys=Keys(database),
            api_keys=ApiKeys(database),
            reader=reader,
            webhooks=Webhooks(database),
            accounts=Accounts(database, [account.sending_limit for account in known]),
            known_accounts=known,
            suppressions=Suppressions(database),
            unsubscribes=Unsubscribes(database, settings.PUBLIC_URL),
            templates=Templates(database),
            publisher=publisher,
            send=send,
            run=run,
        )

    def mailboxes(self) -> dict[str, Any]:
        """Return the rows of the mailboxes that were read, or tried, by account. Raises StoreUnavailable."""
        names = {account.name for account in self.known_accounts if account.mailbox}
        rows = mailbox_rows(self.outbox.database)
        return {row.account: row for row in rows if row.account in names}

    def broker_trouble(self) -> str:
        """Say what keeps every worker from its queues; "" if nothing does. Raises StoreUnavailable."""
        return broker_trouble(self.outbox.database, self.settings.LEASE_SECONDS)


def services() -> Services:
    """Return the services of the current application."""
    attached: Services = current_app.extensions["mailasync"]
    return attached
