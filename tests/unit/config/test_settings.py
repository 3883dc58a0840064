"""Settings: where they are read from, and what stops the start."""

from pathlib import Path

import pytest

import app as web
from mailroom.config.accounts import next_hop, sender
from mailroom.config.environment import hint_guessable, hint_unprefixed, kubernetes_variables, load
from mailroom.config.settings import Settings, SettingsError, database_url
from mailroom.server import serve
from mailroom.worker import runtime


def read(**variables: str) -> Settings:
    """The settings that this environment gives, without any .env file."""
    return load(
        {
            "MAILASYNC_ENV_FILE": "",
            **{f"MAILASYNC_{name}": value for name, value in variables.items()},
        }
    )


def test_nothing_set_gives_the_defaults() -> None:
    settings = read()
    assert (settings.PORT, settings.HOST, settings.SIMULATED_WORK_SECONDS) == (
        5000,
        "127.0.0.1",
        5.0,
    )
    assert settings.embedded


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    file = tmp_path / "my env"
    file.write_text("MAILASYNC_PORT=5001\nMAILASYNC_MAIL_FROM=alice@example.org\nOTHER=1\n")
    settings = load({"MAILASYNC_ENV_FILE": str(file), "MAILASYNC_PORT": "5002"})
    assert (settings.PORT, settings.MAIL_FROM) == (5002, "alice@example.org")


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    assert read(API_KEY_FILE=str(tmp_path / "key")).API_KEY == "s3cret"
    with pytest.raises(
        SettingsError, match=r"MAILASYNC_API_KEY_FILE: expected a readable file .* got '.*missing'"
    ):
        read(API_KEY_FILE=str(tmp_path / "missing"))
    with pytest.raises(SettingsError, match="both set"):
        read(API_KEY_FILE=str(tmp_path / "key"), API_KEY="other")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PORT", "http", "expected a whole number, got 'http'"),
        ("PORT", "-1", "expected a number from 0 up, got '-1'"),
        ("SIMULATED_WORK_SECONDS", "soon", "expected a number, got 'soon'"),
        ("SIMULATED_WORK_SECONDS", "nan", "expected a number from 0 up, got 'nan'"),
        ("SMTP_SECURITY", "tls", "expected one of ssl, starttls, none, got 'tls'"),
        ("SMTP_CONNECTIONS", "0", "expected at least 1, got 0"),
        (
            "MAIL_PASWORD",
            "x",
            "MAILASYNC_MAIL_PASWORD is no setting; did you mean MAILASYNC_MAIL_PASSWORD?",
        ),
        ("RETRY_SCHEDULE", "30s, soon", "got 'soon'"),
        ("BROKER_URL", "rabbit", "expected a URL"),
        ("DATABASE_URL", "mail.db", "expected a URL"),
        (
            "DATABASE_URL",
            "mysql://localhost/mail",
            "sqlite:// or postgresql://, got one with mysql://",
        ),
        (
            "DATABASE_URL",
            "sqlite+pysqlcipher:///x",
            "or postgresql://, got one with sqlite+pysqlcipher://",
        ),
        (
            "DATABASE_URL",
            "sqlite://",
            "expected a file, as in sqlite:////var/lib/mailasync/mail.sqlite3, got a database in",
        ),
        ("DATABASE_URL", "sqlite:///:memory:", "got a database in memory"),
        ("DATABASE_URL", "sqlite:///file:x?mode=memory&uri=true", "got a database in memory"),
        (
            "DATABASE_URL",
            "sqlite://mail.sqlite3",
            "expected three slashes before a relative path and four before",
        ),
        ("EHLO_NAME", "my_host", "expected a host name like mail.example.org, or [192.0.2.1]"),
        ("MAIL_FROM", "nobody", "expected an address, got"),
        ("MAIL_OAUTH2_FILE", "/nowhere.json", "expected a readable file, got '/nowhere.json'"),
        ("SMTP_CA_FILE", "/nowhere.pem", "expected a readable file, got '/nowhere.pem'"),
        ("JOBS", "no.such.module", "expected modules that can be imported, got 'no.such.module'"),
        ("PORT", "70000", "expected a port up to 65535, got 70000"),
    ],
)
def test_a_wrong_value_stops_the_start_and_is_named(name: str, value: str, expected: str) -> None:
    with pytest.raises(SettingsError, match="MAILASYNC_" + name) as e:
        runtime.configure(read(**{name: value}))
    assert expected in e.value.message


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("MAILASYNC_MAIL_PASWORD", "MAILASYNC_MAIL_PASSWORD"),
        ("MAILASYNC_SMTP_SECURE", "MAILASYNC_SMTP_SECURITY"),
    ],
)
def test_an_unknown_name_stops_the_start_and_names_the_nearest(variable: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable} is no setting; did you mean {nearest}?"):
        load({"MAILASYNC_ENV_FILE": "", variable: "x"})


def test_a_wrong_secret_is_not_shown() -> None:
    with pytest.raises(SettingsError) as e:
        read(BROKER_URL="s3cret")
    assert "s3cret" not in e.value.message
    assert "s3cret" not in repr(
        read(MAIL_PASSWORD="s3cret", API_KEY="s3cret", MAIL_USERNAME="alice@gmail.com")
    )


def test_variables_of_kubernetes_are_passed_over() -> None:
    made = {
        "MAILASYNC_PORT": "tcp://10.0.0.1:5000",
        "MAILASYNC_SERVICE_HOST": "10.0.0.1",
        "MAILASYNC_SERVICE_PORT": "5000",
        "MAILASYNC_SERVICE_PORT_HTTP": "5000",
        "MAILASYNC_PORT_5000_TCP": "tcp://10.0.0.1:5000",
        "MAILASYNC_PORT_5000_TCP_PROTO": "tcp",
        "MAILASYNC_INBOX_SMTP_PORT": "tcp://10.0.0.2:1025",
    }
    settings = load({"MAILASYNC_ENV_FILE": "", **made})
    assert (settings.PORT, settings.INBOX_SMTP_PORT) == (5000, 1025)
    assert kubernetes_variables(made) == sorted(made)
    assert kubernetes_variables({"MAILASYNC_SMTP_PORT": "2525", "MAILASYNC_PORT": "5001"}) == []


@pytest.mark.parametrize(
    ("key", "is_hinted"), [("", False), ("s3cret", True), ("x" * 15, True), ("x" * 16, False)]
)
def test_a_key_that_can_be_guessed_gets_a_hint_that_does_not_show_it(
    key: str, is_hinted: bool
) -> None:
    hints = hint_guessable(read(API_KEY=key))
    assert bool(hints) is is_hinted
    assert not is_hinted or key not in hints[0]


def test_an_unprefixed_password_gets_a_hint() -> None:
    assert hint_unprefixed({"MAIL_PASSWORD": "x"}) == ["MAIL_PASSWORD"]
    assert hint_unprefixed({"MAIL_PASSWORD": "x", "MAILASYNC_MAIL_PASSWORD": "x"}) == []


@pytest.mark.parametrize(
    "variable", ["CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL"]
)
def test_a_celery_variable_that_names_another_broker_stops_the_start(variable: str) -> None:
    with pytest.raises(SettingsError, match=f"{variable} differs"):
        load({"MAILASYNC_ENV_FILE": "", variable: "redis://localhost"})
    url = "pyamqp://guest@localhost:5673//"
    assert (
        url
        == load({"MAILASYNC_ENV_FILE": "", variable: url, "MAILASYNC_BROKER_URL": url}).BROKER_URL
    )


def test_an_inbox_that_others_can_reach_needs_a_key() -> None:
    with pytest.raises(
        SettingsError,
        match=r"MAILASYNC_INBOX_HOST='0\.0\.0\.0' can be reached .* set MAILASYNC_API_KEY",
    ):
        read(INBOX_HOST="0.0.0.0")
    assert read(INBOX_HOST="0.0.0.0", API_KEY="k").INBOX_HOST == "0.0.0.0"
    assert read(INBOX_HOST="::1").INBOX_HOST == "::1"


def test_a_password_never_goes_out_in_clear() -> None:
    account = {
        "MAIL_USERNAME": "alice",
        "MAIL_PASSWORD": "x",
        "SMTP_HOST": "mail.example.org",
        "MAIL_FROM": "alice@example.org",
    }
    with pytest.raises(SettingsError, match="unencrypted"):
        read(**account, SMTP_SECURITY="none")
    assert next_hop(read(**account, SMTP_SECURITY="none", SMTP_AUTH="off")).password == ""


@pytest.mark.parametrize(
    ("value", "host"),
    [
        ("[::1]", "::1"),
        ("::1", "::1"),
        (" [2001:db8::25] ", "2001:db8::25"),
        ("[127.0.0.1]", "127.0.0.1"),
        ("[fe80::1%eth0]", "fe80::1%eth0"),
        ("[mail.example.org]", "[mail.example.org]"),
        ("[]", "[]"),
        ("[::1", "[::1"),
        ("mail.example.org", "mail.example.org"),
    ],
)
@pytest.mark.parametrize("name", ["SMTP_HOST", "HOST", "INBOX_HOST"])
def test_an_address_may_be_in_brackets_as_in_a_url(name: str, value: str, host: str) -> None:
    assert getattr(read(**{name: value}, API_KEY="k"), name) == host


def test_an_ipv6_address_is_shown_in_brackets() -> None:
    settings = read(HOST="[::1]", SMTP_HOST="[::1]", SMTP_PORT="2525")
    assert (next_hop(settings).host, str(next_hop(settings))) == ("::1", "[::1]:2525")
    assert serve.url(settings) == serve.url(read(HOST="::", API_KEY="k")) == "http://[::1]:5000"
    with pytest.raises(
        SystemExit, match=r"\[2001:db8::1\]:1025 cannot be used: .* set MAILASYNC_INBOX_"
    ):
        serve.refuse_taken_port("2001:db8::1", 1025, "INBOX_SMTP_PORT")


def test_sqlite_with_a_broker_elsewhere_stops_the_start() -> None:
    with pytest.raises(SettingsError, match="PostgreSQL"):
        read(BROKER_URL="pyamqp://rabbit.example.org//")
    assert read(
        BROKER_URL="pyamqp://rabbit.example.org//", DATABASE_URL="postgresql://db.example.org/mail"
    ).DATABASE_URL


def test_the_default_database_is_one_absolute_path() -> None:
    assert database_url(read()).startswith("sqlite:////")
    assert database_url(read()).endswith("/instance/mailasync.sqlite3")


@pytest.mark.parametrize(
    ("variables", "hop", "user", "address"),
    [
        ({}, "127.0.0.1:1025", "", "mailasync@localhost"),
        (
            {"MAIL_USERNAME": "alice@gmail.com", "MAIL_PASSWORD": "x"},
            "smtp.gmail.com:465",
            "alice@gmail.com",
            "alice@gmail.com",
        ),
        (
            {"MAIL_USERNAME": "alice", "MAIL_PASSWORD": "x"},
            "smtp.gmail.com:465",
            "alice",
            "alice@gmail.com",
        ),
        (
            {"SMTP_HOST": "mail.example.org", "SMTP_SECURITY": "starttls"},
            "mail.example.org:587",
            "",
            "mailasync@localhost",
        ),
        (
            {
                "SMTP_HOST": "mail.example.org",
                "MAIL_USERNAME": "bot",
                "MAIL_PASSWORD": "x",
                "MAIL_FROM": "bot@example.org",
            },
            "mail.example.org:465",
            "bot",
            "bot@example.org",
        ),
    ],
)
def test_where_mail_goes_and_who_it_is_from(
    variables: dict[str, str], hop: str, user: str, address: str
) -> None:
    settings = read(**variables)
    assert str(next_hop(settings)) == hop
    assert next_hop(settings).user == user
    assert sender(settings).address == address
    assert next_hop(settings).security == ("none" if not variables else settings.SMTP_SECURITY)


@pytest.mark.parametrize(
    ("url", "ours"),
    [
        ("postgres://u:p@h/n", "postgresql://u:p@h/n"),
        ("postgresql+psycopg2://h/n", "postgresql://h/n"),
        ("postgresql+asyncpg://h/n", "postgresql://h/n"),
        ("postgresql+psycopg://h/n", "postgresql://h/n"),
        ("postgresql://h/n", "postgresql://h/n"),
        ("sqlite+aiosqlite:////x", "sqlite:////x"),
    ],
)
def test_a_database_may_be_named_as_other_services_name_it(url: str, ours: str) -> None:
    assert database_url(read(DATABASE_URL=url)) == ours


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            "postgresql://u:geheim@h:port/n",
            "expected a URL like postgresql://user:password@host:5432/name, with",
        ),
        ("postgresql://u:geheim@one:1,two:2/n", "several hosts are ?host=one:5432&host=two:5432"),
        (
            "postgresql+asyncpg://u:geheim@h/n?ssl=require",
            'got one that it does not: invalid connection option "ssl"',
        ),
        ("sqlite:////nowhere?timeout=soon", "expected a URL like"),
    ],
)
def test_a_database_url_that_cannot_be_read_stops_the_start(url: str, words: str) -> None:
    with pytest.raises(SettingsError, match="MAILASYNC_DATABASE_URL: ") as e:
        web.create_app(read(DATABASE_URL=url))
    assert words in e.value.message and "geh" not in e.value.message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"SUBMISSION_PORT": "65536"}, "SUBMISSION_PORT: expected a port up to 65535"),
        ({"SUBMISSION_CERT_FILE": "/missing.pem"}, "SUBMISSION_CERT_FILE: expected a readable"),
        ({"SUBMISSION_SECURITY": "ssl"}, "set MAILASYNC_SUBMISSION_CERT_FILE"),
        ({"SUBMISSION_KEY_FILE": __file__}, "set MAILASYNC_SUBMISSION_CERT_FILE"),
        (
            {"SUBMISSION_PORT": "2525", "SMTP_PORT": "2525", "SMTP_HOST": "localhost"},
            "mail would go in circles",
        ),
    ],
)
def test_submission_that_cannot_work_stops_the_start(settings: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read(**settings)
