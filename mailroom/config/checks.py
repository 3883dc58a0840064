"""Refuses settings that have the right type and still cannot work, or would send mail or secrets astray."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from mailroom.config.settings import (
    PAIR_BROKER_URL,
    PREFIX,
    PUBLIC_URL,
    Settings,
    SettingsError,
    database_url,
    is_loopback,
    with_our_driver,
)

#: Options after the `?` of a broker's URL that have an effect.
BROKER_OPTIONS = ("heartbeat", "login_method")
#: Settings of which 0 makes no sense.
_AT_LEAST_ONE = (
    "SMTP_CONNECTIONS",
    "WEB_THREADS",
    "JOB_SLOTS",
    "JOB_PROCESSES",
    "REQUEST_MAX_BYTES",
    "LEASE_SECONDS",
    "SMTP_TIMEOUT_SECONDS",
    "BOUNCES_EVERY_SECONDS",
)
_PORTS = ("PORT", "SMTP_PORT", "IMAP_PORT", "INBOX_PORT", "INBOX_SMTP_PORT", "SUBMISSION_PORT")
_FILES = (
    "MAIL_OAUTH2_FILE",
    "SMTP_CA_FILE",
    "BROKER_CA_FILE",
    "SUBMISSION_CERT_FILE",
    "SUBMISSION_KEY_FILE",
)


def check_settings(settings: Settings, variables: Mapping[str, str]) -> None:
    """Raise SettingsError for the first problem; `variables` is the environment, Celery's own included."""
    check_numbers(settings)
    check_files(settings)
    check_scheme("BROKER_URL", settings.BROKER_URL, ("amqp", "pyamqp", "amqps", "memory"))
    check_scheme("DATABASE_URL", with_our_driver(settings.DATABASE_URL), ("sqlite", "postgresql"))
    check_sqlite_file(settings.DATABASE_URL)
    check_brokers(settings)
    check_public_url(settings)
    check_submission(settings)
    check_contradictions(settings, variables)


def check_numbers(settings: Settings) -> None:
    for name in _AT_LEAST_ONE:
        value = getattr(settings, name)
        if value < 1:
            raise SettingsError(f"{PREFIX}{name}: expected at least 1, got {value!r}")
    per_connection = settings.SMTP_MAILS_PER_CONNECTION
    if per_connection < 0:
        raise SettingsError(
            f"{PREFIX}SMTP_MAILS_PER_CONNECTION: expected a number from 0 up (0: what suits the server), "
            f"got {per_connection}"
        )
    for name in _PORTS:
        port = getattr(settings, name)
        if port > 65535:
            raise SettingsError(f"{PREFIX}{name}: expected a port up to 65535, got {port}")


def check_files(settings: Settings) -> None:
    for name in _FILES:
        path = getattr(settings, name)
        if path and not Path(path).expanduser().is_file():
            raise SettingsError(f"{PREFIX}{name}: expected a readable file, got {path!r}")
    log_file = settings.LOG_FILE
    if not log_file:
        return
    try:
        Path(log_file).expanduser().open("ab").close()
    except OSError as e:
        message = (
            f"{PREFIX}LOG_FILE: expected a file that can be written, got {log_file!r}: {e.strerror}"
        )
        raise SettingsError(message) from None


def check_scheme(name: str, value: str, schemes: Sequence[str]) -> None:
    """Refuse a URL with another scheme; the message does not repeat it, as it may hold a password."""
    scheme = value.partition(":")[0]
    if not value or (scheme in schemes and "://" in value):
        return
    expected = " or ".join(f"{known}://" for known in schemes)
    got = f"one with {scheme}://" if "://" in value else "none"
    raise SettingsError(f"{PREFIX}{name}: expected a URL that begins with {expected}, got {got}")


def check_sqlite_file(url: str) -> None:
    """Refuse an SQLite URL that names no file: each process would have a database in memory of its own."""
    scheme, _, rest = with_our_driver(url).partition("://")
    if scheme != "sqlite":
        return
    path, _, query = rest.partition("?")
    if path in ("", "/", "/:memory:", "/file::memory:") or "mode=memory" in query:
        raise SettingsError(
            f"{PREFIX}DATABASE_URL: expected a file, as in sqlite:////var/lib/mailasync/mail.sqlite3, got a "
            "database in memory, which no other process can see and which is lost when its process ends"
        )
    if not path.startswith("/"):
        raise SettingsError(
            f"{PREFIX}DATABASE_URL: expected three slashes before a relative path and four before an "
            f"absolute one, got {url!r}"
        )


def check_brokers(settings: Settings) -> None:
    """Refuse broker settings that promise more TLS than there would be."""
    urls = settings.BROKER_URL.split(";")
    if settings.BROKER_CA_FILE and not all(url.startswith("amqps:") for url in urls):
        raise SettingsError(
            f"{PREFIX}BROKER_CA_FILE is for a broker at amqps://; with {PREFIX}BROKER_URL "
            "as it is nothing is encrypted"
        )
    for url in urls:
        check_broker_options(url)


def check_broker_options(broker_url: str) -> None:
    """Refuse options of a broker's URL that would be ignored, such as those about certificates."""
    query = urlsplit(broker_url).query
    if "@" in query:
        raise SettingsError(f"{PREFIX}BROKER_URL: write %3F for a question mark in the password")
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name not in BROKER_OPTIONS:
            raise SettingsError(
                f"{PREFIX}BROKER_URL: expected no option but {' or '.join(BROKER_OPTIONS)}, got {name!r}; "
                f"certificates are always verified, by {PREFIX}BROKER_CA_FILE"
            )


def check_public_url(settings: Settings) -> None:
    """Refuse a URL that recipients could not open, or that no header field could hold."""
    if not settings.PUBLIC_URL:
        return
    match = PUBLIC_URL.fullmatch(settings.PUBLIC_URL)
    if not match or (match["scheme"] != "https" and not is_loopback(match["host"])):
        raise SettingsError(
            f"{PREFIX}PUBLIC_URL: expected an address like https://mail.example.org, "
            f"got {settings.PUBLIC_URL!r}"
        )


def check_submission(settings: Settings) -> None:
    """Refuse TLS without a certificate, and a port at which the service would send mail to itself."""
    needs_certificate = settings.SUBMISSION_KEY_FILE or settings.SUBMISSION_SECURITY == "ssl"
    if needs_certificate and not settings.SUBMISSION_CERT_FILE:
        raise SettingsError(
            f"{PREFIX}SUBMISSION_KEY_FILE and {PREFIX}SUBMISSION_SECURITY=ssl are for a certificate; "
            f"set {PREFIX}SUBMISSION_CERT_FILE"
        )
    port = settings.SUBMISSION_PORT
    is_next_hop = port and port == settings.SMTP_PORT and is_loopback(settings.SMTP_HOST)
    if is_next_hop:
        raise SettingsError(
            f"{PREFIX}SUBMISSION_PORT={port} is {PREFIX}SMTP_PORT, too: mail would go in circles"
        )


def check_contradictions(settings: Settings, variables: Mapping[str, str]) -> None:
    """Refuse pairs of settings that together would send mail, a password or a task to the wrong place."""
    check_celery_urls(settings, variables)
    # A HOST that other machines reach may have its key in the database; the start checks that.
    if not is_loopback(settings.INBOX_HOST) and not settings.API_KEY:
        raise SettingsError(
            f"{PREFIX}INBOX_HOST={settings.INBOX_HOST!r} can be reached from other machines; "
            f"set {PREFIX}API_KEY as well"
        )
    has_secret = bool(settings.MAIL_PASSWORD or settings.MAIL_OAUTH2_FILE)
    logs_in = has_secret and settings.SMTP_AUTH == "on"
    if logs_in and settings.SMTP_SECURITY == "none" and not is_loopback(settings.SMTP_HOST):
        raise SettingsError(
            f"{PREFIX}SMTP_SECURITY=none would send the password unencrypted to "
            f"{settings.SMTP_HOST or 'Gmail'}; use ssl or starttls, or {PREFIX}SMTP_AUTH=off"
        )
    has_login = has_secret and settings.MAIL_USERNAME
    if settings.IMAP_HOST not in ("", "off") and not has_login:
        raise SettingsError(
            f"{PREFIX}IMAP_HOST is set, but there is no login for it: "
            f"set {PREFIX}MAIL_USERNAME and {PREFIX}MAIL_PASSWORD"
        )
    check_shared_database(settings)


def check_celery_urls(settings: Settings, variables: Mapping[str, str]) -> None:
    """Refuse another broker in Celery's own variables, which would silently win over ours."""
    broker = settings.BROKER_URL or PAIR_BROKER_URL
    for variable in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        if variables.get(variable, broker) != broker:
            raise SettingsError(
                f"{variable} differs from {PREFIX}BROKER_URL; unset it, or set both to the same broker"
            )


def check_shared_database(settings: Settings) -> None:
    """Refuse SQLite with a broker on another host, whose workers could not open the file."""
    host = urlsplit(settings.BROKER_URL or PAIR_BROKER_URL).hostname
    if database_url(settings).startswith("sqlite") and host and not is_loopback(host):
        raise SettingsError(
            f"{PREFIX}BROKER_URL is on another host ({host}), where a worker cannot read this machine's "
            f"SQLite file; set {PREFIX}DATABASE_URL to a PostgreSQL database"
        )
