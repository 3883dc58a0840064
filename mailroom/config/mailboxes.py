"""Derives the server of an account's own mailbox from the settings."""

from mailroom.config.settings import Settings, SettingsError, is_loopback
from mailroom.model.account import MailboxServer, NextHop

#: The IMAP servers of providers that keep each mail that they take in the Sent folder, by the SMTP server.
_KNOWN = {
    "smtp.gmail.com": "imap.gmail.com",
    "smtp.googlemail.com": "imap.gmail.com",
    "smtp.office365.com": "outlook.office365.com",
    "smtp-mail.outlook.com": "outlook.office365.com",
}
_PORTS = {"ssl": 993, "starttls": 143, "none": 143}
OFF = "off"


def mailbox_server(settings: Settings, hop: NextHop) -> MailboxServer | None:
    """Return the IMAP server of the account that sends by `hop`; None if it has no mailbox to read.

    Raises:
      SettingsError: the password would go to another machine unencrypted.
    """
    host = settings.IMAP_HOST or _KNOWN.get(hop.host.lower(), OFF)
    has_secret = settings.MAIL_PASSWORD or settings.MAIL_OAUTH2_FILE
    if host == OFF or not (settings.MAIL_USERNAME and has_secret):
        return None
    if settings.IMAP_SECURITY == "none" and not is_loopback(host):
        raise SettingsError(
            f"MAILASYNC_IMAP_SECURITY=none would send the password unencrypted to {host}; "
            "use ssl or starttls"
        )
    return MailboxServer(
        host=host,
        port=settings.IMAP_PORT or _PORTS[settings.IMAP_SECURITY],
        security=settings.IMAP_SECURITY,
        user=settings.MAIL_USERNAME,
        password=settings.MAIL_PASSWORD,
        oauth2_file=settings.MAIL_OAUTH2_FILE,
        ca_file=settings.SMTP_CA_FILE,
        timeout_seconds=settings.SMTP_TIMEOUT_SECONDS,
    )
