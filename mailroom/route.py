"""Where mail goes, who it is from and when it is tried again, as the settings say."""

from mailroom.mail.errors import InvalidMessage
from mailroom.mail.intake import message_from
from mailroom.mail.message import Address
from mailroom.mail.schedule import Schedule
from mailroom.mail.transport import NextHop
from mailroom.settings import Settings, SettingsError


def sender(settings: Settings) -> Address:
    """Who our mails are from."""
    account = settings.MAIL_USERNAME
    address = settings.MAIL_FROM or (f"{account}@gmail.com" if account and "@" not in account and not settings.SMTP_HOST else account)
    if not address:
        return Address("mailasync@localhost")
    try:
        return message_from({"to": address}).to[0]
    except InvalidMessage as e:
        raise SettingsError(f"MAILASYNC_MAIL_FROM: {e.errors[0].detail}; set it where MAILASYNC_MAIL_USERNAME is no address") from None


def schedule(settings: Settings) -> Schedule:
    try:
        return Schedule.parse(settings.RETRY_SCHEDULE)
    except ValueError as e:
        raise SettingsError(f"MAILASYNC_RETRY_SCHEDULE: {e}") from None


def next_hop(settings: Settings) -> NextHop:
    """Who takes our mail: the server that was set, Gmail if there is an account, else the disposable inbox."""
    account = bool(settings.MAIL_USERNAME and (settings.MAIL_PASSWORD or settings.MAIL_OAUTH2_FILE))
    if not account and not settings.SMTP_HOST:
        return NextHop(host="127.0.0.1", port=settings.INBOX_SMTP_PORT, security="none", timeout_seconds=settings.SMTP_TIMEOUT_SECONDS)
    known = account and settings.SMTP_AUTH == "on"
    return NextHop(
        host=settings.SMTP_HOST or "smtp.gmail.com",
        port=settings.SMTP_PORT or {"ssl": 465, "starttls": 587, "none": 25}[settings.SMTP_SECURITY],
        security=settings.SMTP_SECURITY, ca_file=settings.SMTP_CA_FILE, timeout_seconds=settings.SMTP_TIMEOUT_SECONDS,
        user=settings.MAIL_USERNAME if known else "", password=settings.MAIL_PASSWORD if known else "",
        oauth2_file=settings.MAIL_OAUTH2_FILE if known else "")
