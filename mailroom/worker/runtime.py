"""The parts that a process works with: jobs that it knows, its database, and the reader of requests."""

import logging
from importlib import import_module

from mailroom.config.accounts import accounts
from mailroom.config.settings import Settings, SettingsError, database_url
from mailroom.jobs import registry
from mailroom.model.errors import MailroomError
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import check, upgrade
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.messages.suppressions import Unsubscribes
from mailroom.store.templates import Templates
from mailroom.submission.reader import SubmissionReader
from mailroom.webhooks.ssrf import AddressGuard

log = logging.getLogger("mailasync")


def load_jobs(settings: Settings) -> None:
    """Import the modules of JOBS, which registers the job types in them."""
    for name in registry.modules(settings.JOBS):
        try:
            import_module(name)
        except ImportError as e:
            raise SettingsError(
                f"MAILASYNC_JOBS: expected modules that can be imported, got {name!r}: {e}"
            ) from None


def orders(settings: Settings, database: Database) -> SubmissionReader:
    """Reads what clients order, over HTTP or over the queue."""
    known, links = accounts(settings), Unsubscribes(database, settings.PUBLIC_URL)
    return SubmissionReader(
        domain=known[0].sender.address.rpartition("@")[2],
        template=Templates(database).find,
        account_of=lambda address: next(
            (account.name for account in known if account.may_send_from(address)), None
        ),
        unsubscribe_url=lambda id: links.url(id, 0) if settings.PUBLIC_URL else "",
        webhook_problem=AddressGuard(settings.WEBHOOKS_TO_LOOPBACK == "on").problem,
    )


def open_database(settings: Settings, *, file_name: str = "mailasync.sqlite3") -> Database:
    """Open the outbox; the file that is ours by default is brought up to date, any other only by `flask db upgrade`."""
    database = Database(database_url(settings, file_name=file_name))
    try:
        if not settings.DATABASE_URL:
            upgrade(database)
        check(database)
    except MailroomError:
        database.close()
        raise
    log.debug("outbox %s", database.outbox_id)  # read here, so that a nudge needs no database
    return database


def sweeps_of(settings: Settings, database: Database) -> Sweeps:
    limited = frozenset(account.name for account in accounts(settings) if account.budget.is_limited)
    return Sweeps(database, settings.LEASE_SECONDS, settings.ON_UNCERTAIN, limited)
