"""The settings of a process, and what is derived from them."""

import re
from dataclasses import dataclass, fields
from functools import lru_cache
from ipaddress import ip_address
from typing import Literal

import click

from mailroom.process.installation import data_directory

PREFIX = "MAILASYNC_"
SECRETS = frozenset({"MAIL_PASSWORD", "API_KEY", "BROKER_URL", "DATABASE_URL"})
#: The broker of the pair, `python3 app.py` and a Celery worker, unless BROKER_URL names another.
PAIR_BROKER_URL = "pyamqp://guest@localhost//"
#: Settings whose IPv6 address may be in brackets, as in a URL.
_HOSTS = ("SMTP_HOST", "HOST", "INBOX_HOST")
#: The database file of `flask up`; not the pair's, so that neither sends the other's mail.
UP_FILE = "up.sqlite3"

#: Other names for our databases, which name the driver that another program uses, and the name for ours.
_DATABASES = {
    "postgres": "postgresql",
    "postgresql+psycopg": "postgresql",
    "postgresql+psycopg2": "postgresql",
    "postgresql+asyncpg": "postgresql",
    "sqlite+pysqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
}

#: The form of PUBLIC_URL; http is only for this very machine, as RFC 8058 asks for https.
PUBLIC_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?(/[A-Za-z0-9._~/-]*)?"
)


class SettingsError(click.ClickException):
    """A setting is wrong or unknown; the message says which one, what was expected and what came.

    It is a click exception so that `flask` and `celery`, which both run on click, print one sentence and no
    traceback.
    """


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process; default_settings.py says what each one means and in which unit it is."""

    MAIL_USERNAME: str
    MAIL_PASSWORD: str
    MAIL_FROM: str
    MAIL_ALIASES: str
    MAIL_OAUTH2_FILE: str
    ACCOUNTS_FILE: str
    SMTP_HOST: str
    SMTP_PORT: int
    SMTP_SECURITY: Literal["ssl", "starttls", "none"]
    SMTP_AUTH: Literal["on", "off"]
    SMTP_CA_FILE: str
    EHLO_NAME: str
    SMTP_CONNECTIONS: int
    SMTP_MAILS_PER_CONNECTION: int
    SMTP_PIPELINING: Literal["auto", "off"]
    SMTP_TIMEOUT_SECONDS: float
    RETRY_SCHEDULE: str
    ON_UNCERTAIN: Literal["resend", "hold"]
    IMAP_HOST: str
    IMAP_PORT: int
    IMAP_SECURITY: Literal["ssl", "starttls", "none"]
    BOUNCES_EVERY_SECONDS: float
    BOUNCES_FOLDER: str
    HOST: str
    PORT: int
    WEB_THREADS: int
    API_KEY: str
    PUBLIC_URL: str
    REQUEST_MAX_BYTES: int
    SUBMISSION_PORT: int
    SUBMISSION_CERT_FILE: str
    SUBMISSION_KEY_FILE: str
    SUBMISSION_SECURITY: Literal["starttls", "ssl"]
    HOME: str
    BROKER_URL: str
    BROKER_CA_FILE: str
    QUEUE_TYPE: Literal["classic", "quorum"]
    SERVE_CELERY_QUEUE: Literal["on", "off"]
    DATABASE_URL: str
    LEASE_SECONDS: float
    RETENTION_DAYS: int
    WEBHOOKS_TO_LOOPBACK: Literal["on", "off"]
    SIMULATED_WORK_SECONDS: float
    JOBS: str
    JOB_SLOTS: int
    JOB_PROCESSES: int
    INBOX_HOST: str
    INBOX_SMTP_PORT: int
    INBOX_PORT: int
    LOG_FILE: str
    LOG_FORMAT: Literal["text", "json"]

    def __post_init__(self) -> None:
        """Remove the brackets around IPv6 addresses, which sockets do not accept."""
        for name in _HOSTS:
            object.__setattr__(self, name, without_brackets(getattr(self, name)))

    def __repr__(self) -> str:
        values = []
        for field in fields(self):
            value = getattr(self, field.name)
            is_secret = value and field.name in SECRETS
            values.append(f"{field.name}={'***' if is_secret else value!r}")
        return f"Settings({', '.join(values)})"

    @property
    def embedded(self) -> bool:
        """Tell whether `flask up` needs no broker and delivers the mail in its own process."""
        return not self.BROKER_URL or self.BROKER_URL.startswith("memory:")

    @property
    def listens_on_loopback(self) -> bool:
        return is_loopback(self.HOST)


def without_brackets(host: str) -> str:
    """Return "::1" for "[::1]" (RFC 3986, 3.2.2), and any other text unchanged."""
    bare = host.strip()[1:-1]
    return bare if host.strip() == f"[{bare}]" and _is_address(bare) else host


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


@lru_cache(64)
def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def database_url(settings: Settings, *, file_name: str = "mailasync.sqlite3") -> str:
    """Return the SQLAlchemy URL of the database.

    The default path is absolute, so that web and worker open the same file whatever directory they run in.
    """
    if settings.DATABASE_URL:
        return with_our_driver(settings.DATABASE_URL)
    return f"sqlite:///{data_directory(settings.HOME) / file_name}"


def with_our_driver(url: str) -> str:
    """Replace the driver that a URL names for another program by the one that is installed here."""
    scheme, separator, rest = url.partition("://")
    return f"{_DATABASES.get(scheme, scheme)}{separator}{rest}"
