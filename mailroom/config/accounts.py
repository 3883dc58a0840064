"""Derives the sending accounts from the settings: sender, next hop, sending limits, retry schedule."""

import hashlib
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mailroom.config.checks import check_contradictions
from mailroom.config.mailboxes import mailbox_server
from mailroom.config.settings import Settings, SettingsError
from mailroom.model.account import DEFAULT_ACCOUNT, MailboxServer, NextHop, SendingLimit
from mailroom.model.addresses import parse_address
from mailroom.model.host_names import parse_ehlo_name
from mailroom.model.message import Address
from mailroom.model.retry import Schedule


def sender(settings: Settings) -> Address:
    """Return the address in From and in the envelope; Gmail's user names may lack the domain."""
    username = settings.MAIL_USERNAME
    if username and "@" not in username and not settings.SMTP_HOST:
        username = f"{username}@gmail.com"
    text = settings.MAIL_FROM or username
    if not text:
        return Address("mailasync@localhost")
    try:
        address = parse_address(text)
    except ValueError as e:
        raise SettingsError(
            f"MAILASYNC_MAIL_FROM: {e}; set it if MAILASYNC_MAIL_USERNAME is no address"
        ) from None
    if not address.is_ascii:  # Every mail would need a server with SMTPUTF8.
        raise SettingsError(
            "MAILASYNC_MAIL_FROM: expected an address with ASCII letters before the @-sign"
        )
    return address


def schedule(settings: Settings) -> Schedule:
    """Return the parsed RETRY_SCHEDULE."""
    try:
        return Schedule.parse(settings.RETRY_SCHEDULE)
    except ValueError as e:
        raise SettingsError(f"MAILASYNC_RETRY_SCHEDULE: {e}") from None


#: Exim delivers only 10 mails of one connection at once, and queues the rest
#: (smtp_accept_queue_per_connection); no server is known that minds fewer.
MAILS_PER_CONNECTION = 10
#: Gmail has been seen to drop a session after 80 to 100 mails; the inbox takes any number.
MAILS_PER_CONNECTION_KNOWN = 80
_GMAIL = (".gmail.com", ".googlemail.com")


def next_hop(settings: Settings) -> NextHop:
    """Return the next hop: SMTP_HOST, else Gmail if there is an account, else the disposable inbox."""
    return replace(
        _server(settings),
        ehlo_name=_ehlo_name(settings),
        pipelining=settings.SMTP_PIPELINING == "auto",
        sender_domain=sender(settings).address.rpartition("@")[2],
    )


def _ehlo_name(settings: Settings) -> str:
    try:
        return parse_ehlo_name(settings.EHLO_NAME) if settings.EHLO_NAME else ""
    except ValueError as e:
        raise SettingsError(f"MAILASYNC_EHLO_NAME: {e}") from None


def _server(settings: Settings) -> NextHop:
    has_secret = bool(settings.MAIL_PASSWORD or settings.MAIL_OAUTH2_FILE)
    account = has_secret and settings.MAIL_USERNAME != ""
    if not account and not settings.SMTP_HOST:
        return _inbox(settings)
    host = settings.SMTP_HOST or "smtp.gmail.com"
    is_gmail = host.lower().endswith(_GMAIL)
    most = MAILS_PER_CONNECTION_KNOWN if is_gmail else MAILS_PER_CONNECTION
    hop = NextHop(
        host=host,
        mails_per_connection=settings.SMTP_MAILS_PER_CONNECTION or most,
        port=settings.SMTP_PORT
        or {"ssl": 465, "starttls": 587, "none": 25}[settings.SMTP_SECURITY],
        security=settings.SMTP_SECURITY,
        ca_file=settings.SMTP_CA_FILE,
        timeout_seconds=settings.SMTP_TIMEOUT_SECONDS,
    )
    if not account or settings.SMTP_AUTH == "off":
        return hop
    return replace(
        hop,
        user=settings.MAIL_USERNAME,
        password=settings.MAIL_PASSWORD,
        oauth2_file=settings.MAIL_OAUTH2_FILE,
    )


def _inbox(settings: Settings) -> NextHop:
    return NextHop(
        host="127.0.0.1",
        port=settings.INBOX_SMTP_PORT,
        security="none",
        timeout_seconds=settings.SMTP_TIMEOUT_SECONDS,
        mails_per_connection=settings.SMTP_MAILS_PER_CONNECTION or MAILS_PER_CONNECTION_KNOWN,
    )


@dataclass(frozen=True, kw_only=True)
class Account:
    """A sending account: an address, the server that takes its mails, and how many of them."""

    name: str
    sender: Address
    hop: NextHop
    messages_per_day: int
    recipients_per_day: int
    #: further addresses that it may send from, in lower case; "@example.org" stands for all of a domain
    aliases: tuple[str, ...] = ()
    mailbox: MailboxServer | None = None  #: where its bounces come and its sent mails are kept

    def may_send_from(self, address: str) -> bool:
        """Tell whether a mail may have this address in From.

        Without a login, and with the next hop on this machine, it may have any.
        """
        if not self.hop.user and self.hop.host in _LOOPBACK and not self.aliases:
            return True
        address = address.lower()
        domain = address.rpartition("@")[2]
        return (
            address in (self.sender.address.lower(), *self.aliases) or f"@{domain}" in self.aliases
        )

    @property
    def sending_limit(self) -> SendingLimit:
        """The sending limits; `credentials` changes with whatever could end a halt of the account."""
        hop = self.hop
        parts = (
            hop.host,
            str(hop.port),
            hop.security,
            hop.ca_file,
            hop.ehlo_name,
            hop.user,
            hop.password,
            _contents(hop.oauth2_file),
        )
        return SendingLimit(
            account=self.name,
            messages=self.messages_per_day,
            recipients=self.recipients_per_day,
            credentials=hashlib.sha256("\0".join(parts).encode()).hexdigest(),
        )


_LOOPBACK = ("127.0.0.1", "localhost", "::1")

#: The fields of an [[account]] in ACCOUNTS_FILE, and the setting that each overrides.
_FILE_FIELDS = {
    "username": "MAIL_USERNAME",
    "password": "MAIL_PASSWORD",
    "from": "MAIL_FROM",
    "oauth2_file": "MAIL_OAUTH2_FILE",
    "smtp_host": "SMTP_HOST",
    "smtp_port": "SMTP_PORT",
    "smtp_security": "SMTP_SECURITY",
    "smtp_auth": "SMTP_AUTH",
    "smtp_pipelining": "SMTP_PIPELINING",
    "smtp_ca_file": "SMTP_CA_FILE",
    "ehlo_name": "EHLO_NAME",
    "imap_host": "IMAP_HOST",
    "imap_port": "IMAP_PORT",
    "imap_security": "IMAP_SECURITY",
    "aliases": "MAIL_ALIASES",
}
_LIMITS = ("messages_per_day", "recipients_per_day")
_FIELDS = frozenset({"name", "password_file", *_FILE_FIELDS, *_LIMITS})
#: Settings that belong to the default account only: another account does not inherit them.
_NOT_INHERITED = (
    "MAIL_USERNAME",
    "MAIL_PASSWORD",
    "MAIL_FROM",
    "MAIL_OAUTH2_FILE",
    "MAIL_ALIASES",
    "IMAP_HOST",
)


def accounts(settings: Settings) -> list[Account]:
    """Return the accounts of ACCOUNTS_FILE, or without it the one account that the settings describe.

    Raises:
      SettingsError: the file cannot be read, or a field is wrong; names the account and the field.
    """
    if not settings.ACCOUNTS_FILE:
        return [_account(DEFAULT_ACCOUNT, settings, {})]
    path = Path(settings.ACCOUNTS_FILE).expanduser()
    try:
        tables = tomllib.loads(path.read_text()).get("account")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise SettingsError(
            f"MAILASYNC_ACCOUNTS_FILE: expected a readable TOML file, got {settings.ACCOUNTS_FILE!r}: {e}"
        ) from None
    if not isinstance(tables, list) or not tables:
        raise SettingsError(
            "MAILASYNC_ACCOUNTS_FILE: expected one [[account]] or more "
            f"in {settings.ACCOUNTS_FILE!r}, got none"
        )
    listed = [
        _read_account(number, table, settings, path.parent)
        for number, table in enumerate(tables, 1)
    ]
    if len({account.name for account in listed}) < len(listed):
        raise SettingsError(
            "MAILASYNC_ACCOUNTS_FILE: expected another name for each account, got one twice"
        )
    return listed


def _read_account(
    number: int, table: dict[str, Any], settings: Settings, directory: Path
) -> Account:
    """Read one [[account]]; `number` counts from 1, and relative paths begin at `directory`."""
    try:
        _check_fields(table)
        if "password_file" in table:
            table = table | {"password": _read_password(directory / str(table["password_file"]))}
        name = _read_name(table)
        account_settings = replace(settings, **_overrides(table))
        check_contradictions(account_settings, {})
        return _account(name, account_settings, table)
    except SettingsError as e:
        raise SettingsError(f"MAILASYNC_ACCOUNTS_FILE: account {number}: {e.message}") from None


def _check_fields(table: dict[str, Any]) -> None:
    if unknown := sorted(table.keys() - _FIELDS):
        raise SettingsError(f"expected {', '.join(sorted(_FIELDS))}, got {', '.join(unknown)}")


def _read_password(file: Path) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(f"password_file: {e}") from None


def _read_name(table: dict[str, Any]) -> str:
    name = table.get("name", table.get("username"))
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= 100:
        raise SettingsError(f"expected a name of 1 to 100 characters, got {name!r}")
    return name


def _overrides(table: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of an account that differ from those of the process."""
    values: dict[str, Any] = dict.fromkeys(_NOT_INHERITED, "")
    for field, setting in _FILE_FIELDS.items():
        if field in table:
            values[setting] = table[field]
    for setting, value in values.items():
        is_number = setting in ("SMTP_PORT", "IMAP_PORT")
        if type(value) is not (int if is_number else str):
            kind = "a number" if is_number else "a text"
            raise SettingsError(f"expected {setting.lower()} to be {kind}")
    types = get_type_hints(Settings)
    for setting in ("SMTP_SECURITY", "SMTP_AUTH", "SMTP_PIPELINING", "IMAP_SECURITY"):
        choices = get_args(types[setting])
        if setting in values and values[setting] not in choices:
            raise SettingsError(f"expected one of {', '.join(choices)}, got {values[setting]!r}")
    return values


def _account(name: str, settings: Settings, table: dict[str, Any]) -> Account:
    limits = dict(zip(_LIMITS, _gmail_limits(settings), strict=True))
    for field in _LIMITS:
        limit = table.get(field, limits[field])
        if type(limit) is not int or limit < 0:
            raise SettingsError(
                f"expected {field} to be a whole number from 0 up (0: no limit), got {limit!r}"
            )
        limits[field] = limit
    return Account(
        name=name,
        sender=sender(settings),
        hop=next_hop(settings),
        aliases=_aliases(settings),
        mailbox=mailbox_server(settings, next_hop(settings)),
        **limits,
    )


def _aliases(settings: Settings) -> tuple[str, ...]:
    """Return MAIL_ALIASES in lower case."""
    return tuple(_alias(word.strip()) for word in settings.MAIL_ALIASES.split(",") if word.strip())


def _alias(word: str) -> str:
    of_domain = word.startswith("@")
    try:
        address = parse_address(f"a{word}" if of_domain else word).address.lower()
    except ValueError as e:
        raise SettingsError(f"MAILASYNC_MAIL_ALIASES: {e}") from None
    return address[1:] if of_domain else address


def _gmail_limits(settings: Settings) -> tuple[int, int]:
    """Return the messages and recipients that Gmail accepts in 24 hours; (0, 0) for any other server.

    Sources: support.google.com/a/answer/166852 for Workspace, support.google.com/mail/answer/22839 for Gmail.
    """
    if next_hop(settings).host != "smtp.gmail.com":
        return 0, 0
    if sender(settings).address.endswith(("@gmail.com", "@googlemail.com")):
        return 500, 500
    return 2000, 10_000


def _contents(file: str) -> str:
    """Return the text of a file; "" without a name, or if it cannot be read."""
    try:
        return Path(file).expanduser().read_text() if file else ""
    except (OSError, UnicodeDecodeError):
        return ""
