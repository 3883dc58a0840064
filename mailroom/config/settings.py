"""Reads the settings: environment, then `.env`, then default_settings.py; what is wrong stops the start with a sentence."""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin
from urllib.parse import parse_qsl, urlsplit

import click
from dotenv import dotenv_values

import default_settings

PREFIX = "MAILASYNC_"
PROJECT = Path(default_settings.__file__).resolve().parent
#: Of so many random letters and digits there are 10^28: nobody has them all tried.
API_KEY_MIN_CHARACTERS = 16
SECRETS = frozenset({"MAIL_PASSWORD", "API_KEY", "BROKER_URL", "DATABASE_URL"})
PAIR_BROKER_URL = "pyamqp://guest@localhost//"
#: What may follow the `?` of its URL, and is heeded.
BROKER_OPTIONS = ("heartbeat", "login_method")
#: Where an IPv6 address may be in brackets, as a URL has it.
_HOSTS = ("SMTP_HOST", "HOST", "INBOX_HOST")
#: The database of `flask up`, beside the pair's: what that accepted is not sent from here.
UP_FILE = "up.sqlite3"

#: What others call the databases that we speak to, by the driver that they use.
_DATABASES = {
    "postgres": "postgresql",
    "postgresql+psycopg": "postgresql",
    "postgresql+psycopg2": "postgresql",
    "postgresql+asyncpg": "postgresql",
    "sqlite+pysqlite": "sqlite",
    "sqlite+aiosqlite": "sqlite",
}

#: What Kubernetes adds to every pod for a service called "mailasync" or "mailasync-…".
_KUBERNETES = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)$")

#: RFC 8058 asks for https; this very machine may try it without.
_PUBLIC_URL = re.compile(r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?(/[A-Za-z0-9._~/-]*)?")


class SettingsError(click.ClickException):
    """A setting is wrong or unknown; the message says which one, what was expected and what came.

    It is a click exception so that `flask` and `celery`, which both run on click, print one sentence and no traceback.
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
    HOST: str
    PORT: int
    WEB_THREADS: int
    API_KEY: str
    PUBLIC_URL: str
    REQUEST_MAX_BYTES: int
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
        """Take the brackets off an IPv6 address: sockets know none."""
        for name in _HOSTS:
            object.__setattr__(self, name, without_brackets(getattr(self, name)))

    def __repr__(self) -> str:
        shown = {f.name: "***" if f.name in SECRETS and getattr(self, f.name) else getattr(self, f.name) for f in fields(self)}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def embedded(self) -> bool:
        """Tell whether `flask up` carries the mail by itself, as no broker was named."""
        return not self.BROKER_URL or self.BROKER_URL.startswith("memory:")

    @property
    def listens_on_loopback(self) -> bool:
        return is_loopback(self.HOST)


def load(environ: Mapping[str, str] | None = None, *, defaults: ModuleType = default_settings) -> Settings:
    """Return the settings in force.

    `.env` beside default_settings.py is read unless MAILASYNC_ENV_FILE names another file, or none ("").

    Raises:
      SettingsError: a value has the wrong form, a name is unknown, or two settings contradict each other.
    """
    environ = os.environ if environ is None else environ
    given = {**in_env_file(environ), **environ}
    types = dict(defaults.__annotations__)
    refuse_unknown(given, known=types)
    values = {name: parse(name, read(name, given), kind) if is_given(name, given) else getattr(defaults, name)
              for name, kind in types.items()}
    settings = Settings(**values)
    refuse_wrong_forms(settings)
    refuse_wrong_brokers(settings)
    refuse_wrong_public_url(settings)
    refuse_contradictions(settings, given)
    return settings


def in_env_file(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `.env`, or of the file that MAILASYNC_ENV_FILE names."""
    env_file = environ.get(f"{PREFIX}ENV_FILE", str(PROJECT / ".env"))
    return {name: value or "" for name, value in dotenv_values(env_file).items()} if env_file else {}


def origins(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Say where the value of each setting comes from, in words; as `load` reads them."""
    environ = os.environ if environ is None else environ
    env_file = in_env_file(environ)
    return {name: origin(name, environ, env_file) for name in default_settings.__annotations__}


def origin(name: str, environ: Mapping[str, str], env_file: Mapping[str, str]) -> str:
    given = {**env_file, **environ}
    if not is_given(name, given):
        return "default_settings.py"
    variable = file_variable(name) if file_variable(name) in given else f"{PREFIX}{name}"
    # flask copies `.env` into the environment before it runs a command: what is the same in both comes from the file.
    if env_file.get(variable) == given[variable]:
        return f"{variable} in {environ.get(f'{PREFIX}ENV_FILE', '.env')}"
    return f"{variable} in the environment" + (", before .env" if variable in env_file else "")


def is_given(name: str, given: Mapping[str, str]) -> bool:
    return (f"{PREFIX}{name}" in given and not is_kubernetes(f"{PREFIX}{name}", given)) or file_variable(name) in given


def file_variable(name: str) -> str:
    """The variable that names a file with the secret; a name no environment holds where the setting is no secret."""
    return f"{PREFIX}{name}_FILE" if name in SECRETS else ""


def read(name: str, given: Mapping[str, str]) -> str:
    variable, secret_file = f"{PREFIX}{name}", file_variable(name)
    if secret_file not in given:
        return given[variable]
    if variable in given:
        raise SettingsError(f"{variable} and {secret_file} are both set; keep one of them")
    try:
        return Path(given[secret_file]).read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(f"{secret_file}: expected a readable file with the secret, got {given[secret_file]!r}: {e}") from e


def parse(name: str, value: str, kind: Any) -> Any:
    """Turn the text of a variable into `kind`: str, int, float or a Literal of texts."""
    shown = "***" if name in SECRETS else repr(value)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise SettingsError(f"{PREFIX}{name}: expected one of {', '.join(get_args(kind))}, got {shown}")
        return value
    try:
        number = kind(value)
    except ValueError:
        raise SettingsError(f"{PREFIX}{name}: expected {'a whole number' if kind is int else 'a number'}, got {shown}") from None
    if kind is not str and not 0 <= number <= 10**12:
        raise SettingsError(f"{PREFIX}{name}: expected a number from 0 up, got {shown}")
    return number


def is_kubernetes(variable: str, given: Mapping[str, str]) -> bool:
    """Tell whether Kubernetes made `variable`.

    Its …_PORT is an address, "tcp://10.0.0.1:5000"; ours is a number.
    """
    return bool(_KUBERNETES.search(variable)) or (variable.endswith("_PORT") and "://" in given.get(variable, ""))


def kubernetes_variables(environ: Mapping[str, str]) -> list[str]:
    """The variables that were passed over because Kubernetes made them; the start says so in one line."""
    return sorted(name for name in environ if name.startswith(PREFIX) and is_kubernetes(name, environ))


def refuse_unknown(given: Mapping[str, str], *, known: Mapping[str, Any]) -> None:
    names = {f"{PREFIX}{name}" for name in known} | {file_variable(name) for name in SECRETS} | {f"{PREFIX}ENV_FILE"}
    for variable in sorted(given):
        if variable.startswith(PREFIX) and variable not in names and not is_kubernetes(variable, given):
            nearest = difflib.get_close_matches(variable, names, n=1, cutoff=0.5)
            raise SettingsError(f"{variable} is no setting" + (f"; did you mean {nearest[0]}?" if nearest else ";")
                                + " default_settings.py lists them all")


def refuse_wrong_forms(settings: Settings) -> None:
    """Stop at what has the right type and still cannot be used."""
    for name in ("SMTP_CONNECTIONS", "WEB_THREADS", "JOB_SLOTS", "JOB_PROCESSES", "REQUEST_MAX_BYTES", "LEASE_SECONDS",
                 "SMTP_TIMEOUT_SECONDS"):
        if getattr(settings, name) < 1:
            raise SettingsError(f"{PREFIX}{name}: expected at least 1, got {getattr(settings, name)!r}")
    if settings.SMTP_MAILS_PER_CONNECTION < 0:
        raise SettingsError(f"{PREFIX}SMTP_MAILS_PER_CONNECTION: expected a number from 0 up (0: what suits the server), "
                            f"got {settings.SMTP_MAILS_PER_CONNECTION}")
    for name in ("PORT", "SMTP_PORT", "INBOX_PORT", "INBOX_SMTP_PORT"):
        if getattr(settings, name) > 65535:
            raise SettingsError(f"{PREFIX}{name}: expected a port up to 65535, got {getattr(settings, name)}")
    for name in ("MAIL_OAUTH2_FILE", "SMTP_CA_FILE", "BROKER_CA_FILE"):
        path = getattr(settings, name)
        if path and not Path(path).expanduser().is_file():
            raise SettingsError(f"{PREFIX}{name}: expected a readable file, got {path!r}")
    try:
        if settings.LOG_FILE:
            Path(settings.LOG_FILE).expanduser().open("ab").close()
    except OSError as e:
        raise SettingsError(f"{PREFIX}LOG_FILE: expected a file that can be written, got {settings.LOG_FILE!r}: {e.strerror}") from None
    refuse_wrong_scheme("BROKER_URL", settings.BROKER_URL, ("amqp", "pyamqp", "amqps", "memory"))
    refuse_wrong_scheme("DATABASE_URL", _replace_driver(settings.DATABASE_URL), ("sqlite", "postgresql"))
    refuse_wrong_file(settings.DATABASE_URL)


def refuse_wrong_scheme(name: str, value: str, schemes: Sequence[str]) -> None:
    scheme = value.partition(":")[0]
    if value and (scheme not in schemes or "://" not in value):  # It is not shown, as it may hold a password.
        expected = " or ".join(f"{known}://" for known in schemes)
        got = f"one with {scheme}://" if "://" in value else "none"
        raise SettingsError(f"{PREFIX}{name}: expected a URL that begins with {expected}, got {got}")


def refuse_wrong_file(url: str) -> None:
    """Stop at an SQLite URL that names no file: in memory, each process would have a database of its own."""
    scheme, _, rest = _replace_driver(url).partition("://")
    if scheme != "sqlite":
        return
    path, _, query = rest.partition("?")
    if path in ("", "/", "/:memory:", "/file::memory:") or "mode=memory" in query:
        raise SettingsError(f"{PREFIX}DATABASE_URL: expected a file, as in sqlite:////var/lib/mailasync/mail.sqlite3, "
                            "got a database in memory, which no other process sees and which ends with its own")
    if not path.startswith("/"):
        raise SettingsError(f"{PREFIX}DATABASE_URL: expected three slashes before a path from here and four before "
                            f"one from the root, got {url!r}")


def refuse_wrong_brokers(settings: Settings) -> None:
    """Stop where TLS would not be what the URL, or BROKER_CA_FILE, makes one think."""
    urls = settings.BROKER_URL.split(";")
    if settings.BROKER_CA_FILE and not all(url.startswith("amqps:") for url in urls):
        raise SettingsError(f"{PREFIX}BROKER_CA_FILE is for a broker at amqps://; with {PREFIX}BROKER_URL "
                            "as it is nothing is encrypted")
    for url in urls:
        refuse_unread_options(url)


def refuse_unread_options(broker_url: str) -> None:
    query = urlsplit(broker_url).query
    if "@" in query:
        raise SettingsError(f"{PREFIX}BROKER_URL: write %3F for a question mark in the password")
    for name, _ in parse_qsl(query, keep_blank_values=True):
        if name not in BROKER_OPTIONS:
            raise SettingsError(f"{PREFIX}BROKER_URL: expected no option but {' or '.join(BROKER_OPTIONS)}, "
                                f"got {name!r}; certificates are always verified, by {PREFIX}BROKER_CA_FILE")


def refuse_wrong_public_url(settings: Settings) -> None:
    """Stop at what no recipient could follow, or no header field could hold."""
    found = _PUBLIC_URL.fullmatch(settings.PUBLIC_URL)
    if settings.PUBLIC_URL and not (found and (found["scheme"] == "https" or is_loopback(found["host"]))):
        raise SettingsError(f"{PREFIX}PUBLIC_URL: expected an address like https://mail.example.org, got {settings.PUBLIC_URL!r}")


def refuse_contradictions(settings: Settings, given: Mapping[str, str]) -> None:
    """Stop where two settings, each fine by itself, would send mail, a password or a task to the wrong place."""
    broker = settings.BROKER_URL or PAIR_BROKER_URL
    for variable in ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"):
        if given.get(variable, broker) != broker:  # Celery itself would let it win over ours, in silence.
            raise SettingsError(f"{variable} differs from {PREFIX}BROKER_URL; unset it, or set both to the same broker")
    if not is_loopback(settings.INBOX_HOST) and not settings.API_KEY:  # For HOST a key in the database will do; app.py looks.
        raise SettingsError(f"{PREFIX}INBOX_HOST={settings.INBOX_HOST!r} can be reached from other machines; set {PREFIX}API_KEY as well")
    logs_in = settings.MAIL_PASSWORD or settings.MAIL_OAUTH2_FILE
    if settings.SMTP_SECURITY == "none" and logs_in and settings.SMTP_AUTH == "on" and not is_loopback(settings.SMTP_HOST):
        raise SettingsError(f"{PREFIX}SMTP_SECURITY=none would send the password in clear to {settings.SMTP_HOST or 'Gmail'}; "
                            f"use ssl or starttls, or {PREFIX}SMTP_AUTH=off")
    broker_host = urlsplit(broker).hostname
    if database_url(settings).startswith("sqlite") and broker_host and not is_loopback(broker_host):
        raise SettingsError(f"{PREFIX}BROKER_URL is on another host ({broker_host}), where a worker cannot read this machine's "
                            f"SQLite file; set {PREFIX}DATABASE_URL to a PostgreSQL database")


def without_brackets(host: str) -> str:
    """Return "::1" for "[::1]" (RFC 3986, 3.2.2), and any other text as it came."""
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


def hint_unprefixed(environ: Mapping[str, str]) -> list[str]:
    """Variables that look like ours without the prefix, such as the tutorial's MAIL_PASSWORD; they are not read."""
    return [name for name in ("MAIL_USERNAME", "MAIL_PASSWORD") if name in environ and f"{PREFIX}{name}" not in environ]


def hint_guessable(settings: Settings) -> list[str]:
    """Say what to do about an API_KEY that can be guessed; wrong ones never lock the right one out."""
    length = len(settings.API_KEY)
    if not 0 < length < API_KEY_MIN_CHARACTERS:
        return []
    return [f"{PREFIX}API_KEY has {length} characters and can be guessed; take a random one of "
            f"{API_KEY_MIN_CHARACTERS} or more: openssl rand -hex 24"]


def notices(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Collect what is worth a line at the start."""
    passed_over = ", ".join(kubernetes_variables(environ))
    found = [f"passed over, as Kubernetes made them: {passed_over}"] if passed_over else []
    hints = [f"{name} is set and not read; did you mean {PREFIX}{name}?" for name in hint_unprefixed(environ)]
    return [*found, *hints, *hint_guessable(settings)]


def database_url(settings: Settings, *, file_name: str = "mailasync.sqlite3") -> str:
    """The SQLAlchemy URL of the outbox; the default is an absolute path, so that both terminals open the same file."""
    return _replace_driver(settings.DATABASE_URL) or f"sqlite:///{PROJECT / 'instance' / file_name}"


def _replace_driver(url: str) -> str:
    """The URL with the driver that is installed here, where it names the database as other services do."""
    scheme, separator, rest = url.partition("://")
    return f"{_DATABASES.get(scheme, scheme)}{separator}{rest}"
