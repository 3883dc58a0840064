"""Looks at everything a mail needs on its road, one line each: well, or what to do."""

import platform
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mailroom.mail.errors import MailroomError, NotTaken
from mailroom.mail.message import AccountState
from mailroom.mail.oauth2 import TokenSource
from mailroom.mail.transport import Session
from mailroom.route import Account
from mailroom.settings import Settings
from mailroom.store.accounts import Accounts
from mailroom.store.database import Database
from mailroom.store.migrate import check
from mailroom.store.outbox import Outbox

#: A certificate that ends sooner is worth a word.
CERTIFICATE_MIN_DAYS = 14
PACKAGES = ("celery", "kombu", "flask", "yagmail", "sqlalchemy", "granian")


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is well, and in words how it is, or what to do."""

    what: str
    ok: bool
    words: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.what}: {self.words}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Doctor:
    """Changes nothing and sends nothing; every look ends within seconds."""

    settings: Settings
    database: Database
    accounts: list[Account]
    connect: Callable[[], Any]  #: a kombu connection to the broker, open

    def examine(self) -> Iterator[Finding]:
        yield self._versions()
        database = self._database()
        yield database
        yield self._broker()
        if database.ok:
            yield self._worker()
        for account in self.accounts:
            yield self._login(account)
            if database.ok:
                yield self._account(account)

    def _versions(self) -> Finding:
        found = [f"{name} {version(name)}" for name in PACKAGES]
        return Finding("versions", True, ", ".join([f"Python {platform.python_version()}", *found]))

    def _database(self) -> Finding:
        file = self.database.url.database if self.database.url.get_backend_name() == "sqlite" else None
        if not self.settings.DATABASE_URL and file and not Path(file).exists():
            return Finding("database", False, f"{file} is not there yet; it is made when app.py or a worker first starts")
        try:
            check(self.database)
        except MailroomError as e:
            return Finding("database", False, str(e))
        return Finding("database", True, f"{self.database!r} answers, and has the schema of this version")

    def _broker(self) -> Finding:
        try:
            connection = self.connect()
        except Exception as e:  # kombu's errors have no common base.
            return Finding("broker", False, f"cannot be reached ({type(e).__name__}: {' '.join(str(e).split())[:200]}); start RabbitMQ, or "
                                            "correct MAILASYNC_BROKER_URL. Mail is accepted and kept meanwhile; `flask up` needs no broker")
        try:
            shown: str = connection.as_uri()
            return Finding("broker", True, f"{shown} answers")
        finally:
            connection.collect()

    def _worker(self) -> Finding:
        ms = Outbox(self.database).worker_seen_ms_ago()
        start = "start one: celery -A mailasync worker --loglevel=INFO"
        if ms is None:
            return Finding("worker", False, f"none is running on this database; {start}")
        ok = ms <= self.settings.LEASE_SECONDS * 1000
        return Finding("worker", ok, f"seen {ms / 1000:.0f} s ago" + ("" if ok else f"; {start}"))

    def _login(self, account: Account) -> Finding:
        what, hop = f"login of account {account.name}", account.hop
        tokens = TokenSource(hop.oauth2_file, timeout_seconds=hop.timeout_seconds) if hop.oauth2_file else None
        session = Session(hop, tokens=tokens)
        try:
            session.open()
            certificate = _certificate_words(session.smtp.sock)
        except NotTaken as e:
            return Finding(what, False, f"{e.reply}; {_what_to_do(e.code)}")
        finally:
            session.close()
        user = f"lets us in as {hop.user}" if hop.user else "takes us without a login"
        return Finding(what, True, f"{hop} {user}{certificate}")

    def _account(self, account: Account) -> Finding:
        [row] = Accounts(self.database, [account.budget]).standing()
        left = [f"{limit - row[name]} of {limit} {name}" for name, limit in
                (("messages", account.messages_per_day), ("recipients", account.recipients_per_day)) if limit]
        budget = f"{' and '.join(left)} left for these 24 hours" if left else "no limit"
        if row["state"] == AccountState.OK:
            return Finding(f"budget of account {account.name}", True, budget)
        return Finding(f"budget of account {account.name}", False,
                       f"{row['state']}: {row['reason']}; its mails wait, and go on by themselves; {budget}")


def _certificate_words(sock: Any) -> str:
    if not isinstance(sock, ssl.SSLSocket):
        return ", without TLS"
    certificate: Any = sock.getpeercert() or {}
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86400
    return f"; {sock.version()}, certificate valid for {days:.0f} days" + (": renew it" if days < CERTIFICATE_MIN_DAYS else "")


def _what_to_do(code: int) -> str:
    return {
        534: "Gmail wants an app password: myaccount.google.com/apppasswords",
        535: "user or password is wrong; for Gmail it has to be an app password: myaccount.google.com/apppasswords",
        530: "the server wants a login: set MAILASYNC_MAIL_USERNAME and MAILASYNC_MAIL_PASSWORD",
        454: "too many logins, or the server is out of order: wait a quarter of an hour",
        0: "check MAILASYNC_SMTP_HOST, _PORT and _SECURITY; without an account, start `flask inbox`",
    }.get(code, "ask who runs that server")
