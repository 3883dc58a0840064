"""The mailbox of each account: which server it is on, and which settings stop the start."""

from pathlib import Path

import pytest

from mailroom.config.accounts import Account, accounts
from mailroom.config.settings import Settings, SettingsError
from mailroom.model.account import MailboxServer
from tests.unit.config.test_settings import read

LOGIN = {"MAIL_USERNAME": "ops@example.org", "MAIL_PASSWORD": "secret"}


def mailbox(settings: Settings) -> MailboxServer | None:
    [account] = accounts(settings)
    return account.mailbox


def from_file(directory: Path, text: str, **variables: str) -> list[Account]:
    file = directory / "accounts.toml"
    file.write_text(text)
    return accounts(read(ACCOUNTS_FILE=str(file), **variables))


@pytest.mark.parametrize(
    ("smtp_host", "imap_host"),
    [
        ("", "imap.gmail.com"),
        ("smtp.gmail.com", "imap.gmail.com"),
        ("SMTP.Gmail.com", "imap.gmail.com"),
        ("smtp.office365.com", "outlook.office365.com"),
    ],
)
def test_gmail_and_microsoft_have_a_mailbox_by_themselves(smtp_host: str, imap_host: str) -> None:
    found = mailbox(read(SMTP_HOST=smtp_host, **LOGIN))
    assert found
    assert (found.host, found.port, found.security) == (imap_host, 993, "ssl")
    assert (found.user, found.password) == ("ops@example.org", "secret")


def test_no_account_and_no_known_server_have_no_mailbox() -> None:
    assert mailbox(read()) is None
    assert mailbox(read(SMTP_HOST="smtp.gmail.com")) is None
    assert mailbox(read(SMTP_HOST="smtp.gmail.com", MAIL_USERNAME="ops@example.org")) is None
    assert mailbox(read(SMTP_HOST="mail.example.org", **LOGIN)) is None


def test_a_mailbox_can_be_left_alone() -> None:
    assert mailbox(read(IMAP_HOST="off", **LOGIN)) is None
    assert mailbox(read(IMAP_HOST="off", IMAP_SECURITY="none", **LOGIN)) is None


@pytest.mark.parametrize(
    ("security", "port", "expected"),
    [("ssl", "0", 993), ("starttls", "0", 143), ("starttls", "1143", 1143)],
)
def test_another_server_is_named_with_its_port(security: str, port: str, expected: int) -> None:
    settings = read(
        SMTP_HOST="mail.example.org",
        IMAP_HOST="imap.example.org",
        IMAP_SECURITY=security,
        IMAP_PORT=port,
        SMTP_TIMEOUT_SECONDS="7",
        **LOGIN,
    )
    found = mailbox(settings)
    assert found
    assert (found.host, found.port, found.security) == ("imap.example.org", expected, security)
    assert found.timeout_seconds == 7


def test_an_account_that_logs_in_by_token_reads_its_mailbox_by_it(tmp_path: Path) -> None:
    token = tmp_path / "token.json"
    token.write_text("{}")
    found = mailbox(read(MAIL_USERNAME="ops@example.org", MAIL_OAUTH2_FILE=str(token)))
    assert found
    assert (found.host, found.password, found.oauth2_file) == ("imap.gmail.com", "", str(token))


@pytest.mark.parametrize("host", ["", "imap.example.org"])
def test_a_password_is_sent_unencrypted_to_this_machine_only(host: str) -> None:
    with pytest.raises(SettingsError, match="IMAP_SECURITY=none would send the password unencrypt"):
        mailbox(read(IMAP_HOST=host, IMAP_SECURITY="none", **LOGIN))
    found = mailbox(read(IMAP_HOST="127.0.0.1", IMAP_SECURITY="none", **LOGIN))
    assert found and found.port == 143


@pytest.mark.parametrize("login", [{}, {"MAIL_USERNAME": "ops"}, {"MAIL_PASSWORD": "secret"}])
def test_a_mailbox_without_a_login_stops_the_start(login: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="IMAP_HOST is set, but there is no login for it"):
        read(IMAP_HOST="imap.example.org", SMTP_HOST="mail.example.org", **login)


def test_a_port_that_is_none_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="IMAP_PORT: expected a port up to 65535"):
        read(IMAP_PORT="65536")


def test_each_account_of_a_file_has_a_mailbox_of_its_own(tmp_path: Path) -> None:
    gmail, relay, other, left = from_file(
        tmp_path,
        """
        [[account]]
        username = "one@gmail.com"
        password = "secret"
        [[account]]
        name = "relay"
        from = "news@example.org"
        smtp_host = "relay.example.org"
        smtp_auth = "off"
        [[account]]
        username = "ops@example.org"
        password = "other"
        smtp_host = "mail.example.org"
        imap_host = "imap.example.org"
        imap_port = 1143
        imap_security = "starttls"
        [[account]]
        username = "two@gmail.com"
        password = "secret"
        imap_host = "off"
        """,
        IMAP_HOST="imap.elsewhere.example",
        **LOGIN,
    )
    assert gmail.mailbox and gmail.mailbox.host == "imap.gmail.com"
    assert relay.mailbox is None and left.mailbox is None
    assert other.mailbox == MailboxServer(
        host="imap.example.org",
        port=1143,
        security="starttls",
        user="ops@example.org",
        password="other",
    )


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ('imap_port = "993"', "expected imap_port to be a number"),
        ('imap_security = "tls"', "expected one of ssl, starttls, none, got 'tls'"),
        ('imap_security = "none"', "would send the password unencrypted to imap.gmail.com"),
        ("imap_host = true", "expected imap_host to be a text"),
    ],
)
def test_a_wrong_field_of_an_account_is_named(tmp_path: Path, field: str, words: str) -> None:
    account = f'[[account]]\nusername = "one@gmail.com"\npassword = "secret"\n{field}\n'
    with pytest.raises(SettingsError, match=f"account 1: .*{words}"):
        from_file(tmp_path, account)
