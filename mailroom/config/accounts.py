"""Reads from the settings where mail goes, who it is from, how much of it, and when it is tried again."""

import hashlib
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mailroom.config.settings import Settings, SettingsError, refuse_contradictions
from mailroom.model.account import DEFAULT_ACCOUNT, Budget, NextHop
from mailroom.model.addresses import parse_address
from mailroom.model.host_names import given_name
from mailroom.model.message import Address
from mailroom.model.retry import Schedule


def sender(settings: Settings) -> Address:
    """Return who our mails are from."""
    account = settings.MAIL_USERNAME
    address = settings.MAIL_FROM or (
        f"{account}@gmail.com" if account and "@" not in account and not settings.SMTP_HOST else account
    )
    if not address:
        return Address("mailasync@localhost")
    try:
        found = parse_address(address)
    except ValueError as e:
        raise SettingsError(
            f"MAILASYNC_MAIL_FROM: {e}; set it where MAILASYNC_MAIL_USERNAME is no address"
        ) from None
    if not found.is_ascii:  # Every mail would need a server with SMTPUTF8.
        raise SettingsError("MAILASYNC_MAIL_FROM: expected an address with ASCII letters before the @-sign")
    return found


def schedule(settings: Settings) -> Schedule:
    try:
        return Schedule.parse(settings.RETRY_SCHEDULE)
    except ValueError as e:
        raise SettingsError(f"MAILASYNC_RETRY_SCHEDULE: {e}") from None


#: Exim delivers no more than that of one connection, and leaves the rest to its next queue run
#: (smtp_accept_queue_per_connection); no server is known that minds fewer.
MAILS_PER_CONNECTION = 10
#: Gmail has been seen to drop a session after 80 to 100 mails; the inbox takes any number.
MAILS_PER_CONNECTION_KNOWN = 80
_GMAIL = (".gmail.com", ".googlemail.com")


def next_hop(settings: Settings) -> NextHop:
    """Return our next hop: the server set, Gmail if there is an account, else the disposable inbox."""
    return replace(
        _server(settings),
        ehlo_name=_ehlo_name(settings),
        pipelining=settings.SMTP_PIPELINING == "auto",
        sender_domain=sender(settings).address.rpartition("@")[2],
    )


def _ehlo_name(settings: Settings) -> str:
    try:
        return given_name(settings.EHLO_NAME) if settings.EHLO_NAME else ""
    except ValueError as e:
        raise SettingsError(f"MAILASYNC_EHLO_NAME: {e}") from None


def _server(settings: Settings) -> NextHop:
    account = bool(settings.MAIL_USERNAME and (settings.MAIL_PASSWORD or settings.MAIL_OAUTH2_FILE))
    if not account and not settings.SMTP_HOST:
        return NextHop(
            host="127.0.0.1",
            port=settings.INBOX_SMTP_PORT,
            security="none",
            timeout_seconds=settings.SMTP_TIMEOUT_SECONDS,
            mails_per_connection=settings.SMTP_MAILS_PER_CONNECTION or MAILS_PER_CONNECTION_KNOWN,
        )
    known = account and settings.SMTP_AUTH == "on"
    host = settings.SMTP_HOST or "smtp.gmail.com"
    most = MAILS_PER_CONNECTION_KNOWN if host.lower().endswith(_GMAIL) else MAILS_PER_CONNECTION
    return NextHop(
        host=host,
        mails_per_connection=settings.SMTP_MAILS_PER_CONNECTION or most,
        port=settings.SMTP_PORT or {"ssl": 465, "starttls": 587, "none": 25}[settings.SMTP_SECURITY],
        security=settings.SMTP_SECURITY,
        ca_file=settings.SMTP_CA_FILE,
        timeout_seconds=settings.SMTP_TIMEOUT_SECONDS,
        user=settings.MAIL_USERNAME if known else "",
        password=settings.MAIL_PASSWORD if known else "",
        oauth2_file=settings.MAIL_OAUTH2_FILE if known else "",
    )


@dataclass(frozen=True, kw_only=True)
class Account:
    """A sending account: an address, the server that takes its mails, and how many of them."""

    name: str
    sender: Address
    hop: NextHop
    messages_per_day: int
    recipients_per_day: int
    aliases: tuple[
        str, ...
    ] = ()  #: further addresses that it may send from, and "@example.org" for all of a domain

    def may_send_from(self, address: str) -> bool:
        """Tell whether a mail may name this address as its From.

        Without a login, on this very machine, it may name any.
        """
        if not self.hop.user and self.hop.host in _LOOPBACK and not self.aliases:
            return True
        given = address.lower()
        return (
            given in (self.sender.address.lower(), *self.aliases)
            or f"@{given.rpartition('@')[2]}" in self.aliases
        )

    @property
    def budget(self) -> Budget:
        hop = self.hop
        known = "\0".join(
            (
                hop.host,
                str(hop.port),
                hop.security,
                hop.ca_file,
                hop.ehlo_name,
                hop.user,
                hop.password,
                _contents(hop.oauth2_file),
            )
        )
        return Budget(
            account=self.name,
            messages=self.messages_per_day,
            recipients=self.recipients_per_day,
            credentials=hashlib.sha256(known.encode()).hexdigest(),
        )


_LOOPBACK = ("127.0.0.1", "localhost", "::1")

#: What one [[account]] of ACCOUNTS_FILE may say, and the setting that it stands for.
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
    "aliases": "MAIL_ALIASES",
}
_LIMITS = ("messages_per_day", "recipients_per_day")


def accounts(settings: Settings) -> list[Account]:
    """The accounts of ACCOUNTS_FILE, each with the settings for what it does not say; without one, the account of the settings.

    Raises:
      SettingsError: the file cannot be read, or says what nobody understands; names the account and the field.
    """
    if not settings.ACCOUNTS_FILE:
        return [_account(DEFAULT_ACCOUNT, settings, {})]
    path = Path(settings.ACCOUNTS_FILE).expanduser()
    try:
        listed = tomllib.loads(path.read_text()).get("account")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise SettingsError(
            f"MAILASYNC_ACCOUNTS_FILE: expected a readable TOML file, got {settings.ACCOUNTS_FILE!r}: {e}"
        ) from None
    if not isinstance(listed, list) or not listed:
        raise SettingsError(
            f"MAILASYNC_ACCOUNTS_FILE: expected one [[account]] or more in {settings.ACCOUNTS_FILE!r}, got none"
        )
    found = [_from_file(number, given, settings, path.parent) for number, given in enumerate(listed, 1)]
    if len({account.name for account in found}) < len(found):
        raise SettingsError("MAILASYNC_ACCOUNTS_FILE: expected another name for each account, got one twice")
    return found


def _from_file(number: int, given: dict[str, Any], settings: Settings, directory: Path) -> Account:
    where = f"MAILASYNC_ACCOUNTS_FILE: account {number}"
    known = {"name", "password_file", *_FILE_FIELDS, *_LIMITS}
    if unknown := sorted(given.keys() - known):
        raise SettingsError(f"{where}: expected {', '.join(sorted(known))}, got {', '.join(unknown)}")
    if "password_file" in given:
        try:
            given = given | {"password": (directory / str(given["password_file"])).read_text().strip()}
        except (OSError, UnicodeDecodeError) as e:
            raise SettingsError(f"{where}: password_file: {e}") from None
    name = given.get("name", given.get("username"))
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= 100:
        raise SettingsError(f"{where}: expected a name of 1 to 100 characters, got {name!r}")
    values: dict[str, Any] = {
        "MAIL_USERNAME": "",
        "MAIL_PASSWORD": "",
        "MAIL_FROM": "",
        "MAIL_OAUTH2_FILE": "",
        "MAIL_ALIASES": "",
    }
    values |= {setting: given[field] for field, setting in _FILE_FIELDS.items() if field in given}
    kinds = {field.name: int if field.name == "SMTP_PORT" else str for field in fields(settings)}
    for setting, value in values.items():
        if type(value) is not kinds[setting]:
            raise SettingsError(
                f"{where}: expected {setting.lower()} to be {'a number' if kinds[setting] is int else 'a text'}"
            )
    for setting in ("SMTP_SECURITY", "SMTP_AUTH", "SMTP_PIPELINING"):
        allowed = get_args(get_type_hints(Settings)[setting])
        if values.get(setting, allowed[0]) not in allowed:
            raise SettingsError(f"{where}: expected one of {', '.join(allowed)}, got {values[setting]!r}")
    try:
        own = replace(settings, **values)
        refuse_contradictions(own, {})
        return _account(name, own, given)
    except SettingsError as e:
        raise SettingsError(f"{where}: {e.message}") from None


def _account(name: str, settings: Settings, given: dict[str, Any]) -> Account:
    hop, limits = next_hop(settings), dict(zip(_LIMITS, _gmail_limits(settings), strict=True))
    for field in _LIMITS:
        limit = given.get(field, limits[field])
        if type(limit) is not int or limit < 0:
            raise SettingsError(
                f"expected {field} to be a whole number from 0 up (0: no limit), got {limit!r}"
            )
        limits[field] = limit
    return Account(name=name, sender=sender(settings), hop=hop, aliases=_aliases(settings), **limits)


def _aliases(settings: Settings) -> tuple[str, ...]:
    """MAIL_ALIASES as a mail's From is compared with them."""
    return tuple(_alias(word.strip()) for word in settings.MAIL_ALIASES.split(",") if word.strip())


def _alias(word: str) -> str:
    of_domain = word.startswith("@")
    try:
        address = parse_address(f"a{word}" if of_domain else word).address.lower()
    except ValueError as e:
        raise SettingsError(f"MAILASYNC_MAIL_ALIASES: {e}") from None
    return address[1:] if of_domain else address


def _gmail_limits(settings: Settings) -> tuple[int, int]:
    """Messages and recipients that Gmail takes in 24 hours (support.google.com/a/answer/166852 and mail/answer/22839); 0 elsewhere."""
    if next_hop(settings).host != "smtp.gmail.com":
        return 0, 0
    return (
        (500, 500) if sender(settings).address.endswith(("@gmail.com", "@googlemail.com")) else (2000, 10_000)
    )


def _contents(file: str) -> str:
    try:
        return Path(file).expanduser().read_text() if file else ""
    except (OSError, UnicodeDecodeError):
        return ""
