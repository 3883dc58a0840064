"""Checks everything that a mail needs on its way; each finding says ok, or what to do."""

import platform
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mailroom.api.auth import peer
from mailroom.broker.queues import broker_error
from mailroom.config.accounts import Account
from mailroom.config.settings import Settings
from mailroom.mailbox.connection import MailboxConnection, MailboxError
from mailroom.mailbox.sent_folder import find_sent_folder
from mailroom.model.account import AccountState, MailboxServer
from mailroom.model.errors import MailroomError, NotTaken
from mailroom.process.installation import PROGRAM, START_WORKER, WEB
from mailroom.smtp.session import Session
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import check
from mailroom.store.events.counters import Counters
from mailroom.store.keys.api_keys import ApiKeys
from mailroom.store.maintenance.health import database_info, durability
from mailroom.store.messages.outbox import Outbox
from mailroom.store.workers import alive

#: A certificate that expires sooner than this is a finding.
CERTIFICATE_MIN_DAYS = 14
#: A mail that has been queued for longer than this needs somebody's attention.
QUEUED_MAX_SECONDS = 300
#: The limit of one check, and of each step of it that can hang.
CHECK_SECONDS = 12.0
STEP_SECONDS = 5.0
#: What to do if a worker takes nothing from the queue `celery`.
CELERY_QUEUE = (
    'set MAILASYNC_SERVE_CELERY_QUEUE=off and have clients name queue="mail", or move the other application '
    "to a vhost or queue of its own and restart the worker"
)
#: What to do, by the code of the server's reply; 0 where there was none.
ADVICE = {
    534: "Gmail wants an app password: myaccount.google.com/apppasswords",
    535: (
        "user or password is wrong; for Gmail it has to be an app password: myaccount.google.com/apppasswords"
    ),
    530: "the server wants a login: set MAILASYNC_MAIL_USERNAME and MAILASYNC_MAIL_PASSWORD",
    504: (
        "try MAILASYNC_SMTP_SECURITY=ssl or starttls; for XOAUTH2 set MAILASYNC_MAIL_OAUTH2_FILE; "
        "for a server that wants no login, MAILASYNC_SMTP_AUTH=off"
    ),
    454: "too many logins, or the server is out of order: wait a quarter of an hour",
    0: f"check MAILASYNC_SMTP_HOST, _PORT and _SECURITY; without an account, start `{PROGRAM} inbox`",
}
#: What to do if the mailbox cannot be read, by whether the login was refused.
MAILBOX_ADVICE = {
    True: (
        "check user and password, and allow IMAP for the account; to read no bounces, "
        "set MAILASYNC_IMAP_HOST=off"
    ),
    False: (
        "check MAILASYNC_IMAP_HOST, _PORT and _SECURITY; to read no bounces, set MAILASYNC_IMAP_HOST=off"
    ),
}
PACKAGES = ("celery", "kombu", "flask", "yagmail", "sqlalchemy", "granian")


@dataclass(frozen=True)
class Finding:
    """The result of one check, which `flask doctor --json` prints with these names."""

    what: str  #: what was checked
    ok: bool
    words: str  #: how it is, or what to do

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.what}: {self.words}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Doctor:
    """All checks; none changes or sends anything, and each ends within seconds."""

    settings: Settings
    database: Database
    accounts: list[Account]
    #: Opens a kombu connection to the broker; None where the broker is inside of `flask up`.
    connect: Callable[[], Any] | None

    def examine(self) -> Iterator[Finding]:
        yield self._versions()
        database_findings = bounded("database", self._database)
        yield from database_findings
        yield from bounded("broker", self._broker)
        database_ok = all(finding.ok for finding in database_findings)
        if database_ok:
            yield from bounded("durability", self._durability)
            yield from bounded("worker", self._worker)
            yield from bounded("queue", self._queue)
            yield from bounded("keys", self._keys)
        yield self._public_url()
        for account in self.accounts:
            yield from bounded(f"login of account {account.name}", partial(self._login, account))
            if database_ok:
                yield from bounded(
                    f"budget of account {account.name}", partial(self._account, account)
                )
            if account.mailbox:
                what = f"mailbox of account {account.name}"
                yield from bounded(what, partial(_mailbox, what, account.mailbox))

    def _versions(self) -> Finding:
        packages = [f"{name} {version(name)}" for name in PACKAGES]
        return Finding(
            "versions", True, ", ".join([f"Python {platform.python_version()}", *packages])
        )

    def _database(self) -> Iterator[Finding]:
        is_sqlite = self.database.url.get_backend_name() == "sqlite"
        file = self.database.url.database if is_sqlite else None
        if not self.settings.DATABASE_URL and file and not Path(file).exists():
            words = f"{file} is not there yet; it is made when {WEB} or a worker first starts"
            yield Finding("database", False, words)
            return
        try:
            check(self.database)
            Outbox(self.database).rehearse()
            info = database_info(self.database)
        except MailroomError as e:
            yield Finding("database", False, str(e))
            return
        yield Finding(
            "database",
            True,
            f"{self.database} takes mail, and has the schema of this version; "
            f"{info.version}, {info.size_bytes / 1e6:,.1f} MB",
        )

    def _durability(self) -> Iterator[Finding]:
        settings = durability(self.database)
        dangers = settings.dangers() if settings else []
        yield Finding(
            "durability", not dangers, "; ".join(dangers) or "what is committed is on disk"
        )

    def _broker(self) -> Iterator[Finding]:
        if self.connect is None:
            yield Finding("broker", True, f"inside of `{PROGRAM} up`")
            return
        try:
            connection = self.connect()
        except Exception as e:  # kombu's errors have no common base.
            yield Finding(
                "broker",
                False,
                f"cannot be reached ({broker_error(e)}); start RabbitMQ, or correct MAILASYNC_BROKER_URL. "
                f"Mail is accepted and kept meanwhile; `{PROGRAM} up` needs no broker",
            )
            return
        try:
            server = getattr(connection.connection, "server_properties", {})
            version = f"{server.get('product', 'broker')} {server.get('version', 'of an unknown version')}"
            yield Finding("broker", True, f"{connection.as_uri()} answers; {version}")
        finally:
            connection.collect()

    def _queue(self) -> Iterator[Finding]:
        depths = Counters(self.database).depths(self.settings.LEASE_SECONDS)
        counts = [f"{count:,} {state}" for state, count in depths.messages.items() if count]
        words = ", ".join(counts) or "nothing waits"
        if depths.messages["queued"]:
            words += f"; the oldest of the queued waits for {depths.oldest_seconds:,.0f} s"
        is_late = depths.oldest_seconds > QUEUED_MAX_SECONDS
        if is_late:
            words += f": see what `{PROGRAM} status ID` says of it, or start more workers"
        yield Finding("queue", not is_late, words)

    def _keys(self) -> Iterator[Finding]:
        count = sum(row.revoked_at is None for row in ApiKeys(self.database).every())
        keys = [f"{count} in the database"] if count else []
        if self.settings.API_KEY:
            keys.append("API_KEY")
        host = self.settings.HOST
        if keys:
            yield Finding("keys", True, f"{' and '.join(keys)}; every request needs one")
        elif self.settings.listens_on_loopback:
            yield Finding("keys", True, _without_keys())
        else:
            words = (
                f"none, and HOST {host} can be reached from other machines: "
                f"run `{PROGRAM} keys create NAME`"
            )
            yield Finding("keys", False, words)

    def _public_url(self) -> Finding:
        url = self.settings.PUBLIC_URL
        if not url:
            words = "not set: mails cannot have a link to unsubscribe by"
        elif url.startswith("https:"):
            words = f"{url}; a proxy there has to pass /unsubscribe/ on"
        else:
            words = f"{url}, to try it out"
        return Finding("PUBLIC_URL", True, words)

    def _worker(self) -> Iterator[Finding]:
        ms = Outbox(self.database).worker_seen_ms_ago()
        start = f"start one: {START_WORKER}"
        if ms is None:
            yield Finding("worker", False, f"none is running on this database; {start}")
            return
        ok = ms <= self.settings.LEASE_SECONDS * 1000
        yield Finding("worker", ok, f"seen {ms / 1000:.0f} s ago" + ("" if ok else f"; {start}"))
        for row in alive(self.database, self.settings.LEASE_SECONDS):
            if trouble := row["broker_trouble"]:
                yield Finding("worker", False, f"{row['name']} cannot take mail: {trouble}")
            if reason := row["celery_queue_left"]:
                yield Finding(
                    "queue celery",
                    False,
                    f"{row['name']} takes nothing from it, as {reason}; {CELERY_QUEUE}",
                )

    def _login(self, account: Account) -> Iterator[Finding]:
        what = f"login of account {account.name}"
        hop = replace(account.hop, timeout_seconds=min(STEP_SECONDS, account.hop.timeout_seconds))
        session = Session(hop)
        try:
            session.open()
            sock = session.smtp.sock
            user = f"lets us in as {hop.user}" if hop.user else "takes us without a login"
            if isinstance(sock, ssl.SSLSocket):
                yield Finding(what, True, f"{hop} {user}; {sock.version()}")
                yield _certificate(f"certificate of account {account.name}", sock)
            else:
                yield Finding(what, True, f"{hop} {user}, without TLS")
            yield from _pipelining(account, session)
        except NotTaken as e:
            yield Finding(what, False, f"{e.reply}; {_advice(e.code)}")
        finally:
            session.close()

    def _account(self, account: Account) -> Iterator[Finding]:
        [row] = Accounts(self.database, [account.sending_limit]).details()
        limits = {"messages": account.messages_per_day, "recipients": account.recipients_per_day}
        left = [f"{limit - row[name]} of {limit} {name}" for name, limit in limits.items() if limit]
        words = f"{' and '.join(left)} left for these 24 hours" if left else "no limit"
        is_well = row["state"] == AccountState.OK
        if not is_well:
            words = (
                f"{row['state']}: {row['reason']}; its mails wait, and go on by themselves; {words}"
            )
        yield Finding(f"budget of account {account.name}", is_well, words)


def bounded(what: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return the findings of a check, or one that says that it took too long.

    A check that hangs is left behind, in a thread that ends with the process.
    """
    findings: list[Finding] = []

    def run() -> None:
        try:
            findings.extend(check())
        except Exception as e:  # A check that fails is a finding, and the others go on.
            findings.append(Finding(what, False, f"{type(e).__name__}; this cannot be told now"))

    thread = threading.Thread(target=run, name=f"check-{what}", daemon=True)
    thread.start()
    thread.join(CHECK_SECONDS)
    if findings:
        return [*findings]
    words = f"no answer within {CHECK_SECONDS:g} s: is its host right, and not frozen?"
    return [Finding(what, False, words)]


def _without_keys() -> str:
    """Say who is served while there is no key, and what to do before a proxy is put in front."""
    if peer.working() is None:
        served = (
            "none: whoever works on this machine may do everything, and so may strangers behind a proxy here "
            "that adds no header, as this system does not say whose a connection is"
        )
    else:
        served = "none: whoever works on this machine as this user or as root may do everything"
    return f"{served}; before you put a proxy in front, run `{PROGRAM} keys create NAME`"


def _mailbox(what: str, server: MailboxServer) -> Iterator[Finding]:
    """Log in to a mailbox, and look for its folders."""
    limited = replace(server, timeout_seconds=min(STEP_SECONDS, server.timeout_seconds))
    try:
        with MailboxConnection(limited) as connection:
            connection.select_inbox()
            sent_folder = find_sent_folder(connection)
            is_told = connection.can_idle
    except MailboxError as e:
        yield Finding(what, False, f"{e}; {MAILBOX_ADVICE[e.of_login]}")
        return
    new_mail = "it tells of new mail at once" if is_told else "it is asked for new mail"
    sent = f"sent mails are in {sent_folder!r}"
    if not sent_folder:
        sent = "it has no Sent folder, so a mail whose reply is lost cannot be looked for"
    words = f"{connection} lets us in as {server.user}; {new_mail}; {sent}"
    yield Finding(what, True, words)


def _certificate(what: str, sock: ssl.SSLSocket) -> Finding:
    certificate: Any = sock.getpeercert() or {}
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86400
    ok = days >= CERTIFICATE_MIN_DAYS
    words = f"valid for {days:.0f} days"
    return Finding(what, ok, words if ok else f"{words}: whoever runs that server has to renew it")


def _pipelining(account: Account, session: Session) -> Iterator[Finding]:
    what = f"pipelining of account {account.name}"
    if not account.hop.pipelining:
        yield Finding(what, True, "off, as MAILASYNC_SMTP_PIPELINING says: commands go one by one")
        return
    works = session.pipelines()
    if works:
        yield Finding(what, True, "the server takes commands in one write")
    elif works is not None:
        yield Finding(
            what,
            False,
            "the server announces it, and loses or garbles commands; each worker finds that out with "
            "its first mails, and goes on one by one: set MAILASYNC_SMTP_PIPELINING=off",
        )


def _advice(code: int) -> str:
    return ADVICE.get(code, "ask who runs that server")
