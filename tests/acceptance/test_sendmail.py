"""flask sendmail, as cron and PHP call it: what it takes from standard input, and its exit codes."""

import os
from pathlib import Path

import pytest

from tests.acceptance.test_commands import flask
from tests.services import free_port
from tests.services.processes import Done, Service, service
from tests.services.schema import ready
from tests.services.smtpd import ScriptedSMTP
from tests.unit.api.test_raw_messages import MULTIPART

CRON = (
    b"From: root (Cron Daemon)\nTo: ops@example.org\nSubject: Cron <root@host> backup\n"
    b"Content-Type: text/plain; charset=UTF-8\nX-Cron-Env: <SHELL=/bin/sh>\n\n"
)


@pytest.fixture
def outbox(tmp_path: Path, sqlite_url: str) -> Service:
    """An outbox without web, worker or broker."""
    ready(sqlite_url).close()
    broker = f"pyamqp://guest@127.0.0.1:{free_port()}//"
    return Service(tmp_path, {"DATABASE_URL": sqlite_url, "BROKER_URL": broker})


def sendmail(made: Service, *arguments: str, mail: bytes = CRON, **settings: str) -> Done:
    return flask(made, "sendmail", *arguments, stdin=mail, **settings)


def test_what_cron_and_php_say_arrives(
    tmp_path: Path, sqlite_url: str, to_smtpd: dict[str, str], smtpd: ScriptedSMTP
) -> None:
    settings = to_smtpd | {
        "DATABASE_URL": sqlite_url,
        "INBOX_SMTP_PORT": str(free_port()),
        "SUBMISSION_PORT": str(free_port()),
    }
    with service(tmp_path, **settings) as up:
        up.up("--deliver")
        cron = ("-FCronDaemon", "-i", "-B8BITMIME", "-odi", "-oem", "-f", "root", "ops@example.org")
        done = sendmail(up, *cron, mail=CRON + b"line\n.\n" + b"x" * 1500 + b"\n")
        assert (done.code, done.out) == (0, ""), done.err
        php = (
            b"To: bob@example.org\r\nSubject: Hi\nX-PHP: 1\r\nBcc: eve@example.org\n\nHi.\n.\nno\n"
        )
        assert sendmail(up, "-t", "-fshop@example.org", mail=php).code == 0
        assert sendmail(up, "-ti", "ops@example.org", mail=MULTIPART).code == 0
        rows = up.get("/v1/messages")["data"]
        assert {up.final(row["id"])["status"] for row in rows} == {"sent"}
    by_name = {delivery.rcpt_tos: delivery for delivery in smtpd.messages}
    by_cron = by_name[("ops@example.org",)]
    assert by_cron.mail_from == "alice@example.org"
    assert b"\r\nFrom: CronDaemon <alice@example.org>\r\nTo: ops@example.org\r\n" in by_cron.data
    assert b"root (Cron" not in by_cron.data
    assert by_cron.data.endswith(
        b"\r\nline\r\n.\r\n" + b"x" * 997 + b"\r\n " + b"x" * 503 + b"\r\n"
    )
    by_php = by_name[("bob@example.org", "eve@example.org")]
    assert by_php.mail_from == "shop@example.org"
    assert b"eve@" not in by_php.data
    assert by_php.data.endswith(b"\r\n\r\nHi.\r\n")
    whole = by_name[("bob@example.org", "ops@example.org")]
    assert whole.data.endswith(b"\r\n" + MULTIPART)
    assert smtpd.violations == []


@pytest.mark.parametrize(
    ("arguments", "mail", "code", "words"),
    [
        ((), CRON, os.EX_USAGE, "expected recipients"),
        (("-bp",), CRON, os.EX_USAGE, "the only mode"),
        (("--frobnicate",), CRON, os.EX_USAGE, "No such option"),
        (("-t",), b"Subject: x\n\nHi.\n", os.EX_USAGE, "got none"),
        (("root",), CRON, os.EX_DATAERR, "expected an address"),
        (("bob@example.org",), b"Subject: x\n\n10%\r20%\r\0\n", os.EX_OK, ""),
        (("bob@example.org",), b"Subject: x\nno field\nBcc: a@b.cc\n", os.EX_DATAERR, "a line"),
        (("bob@example.org",), b"From: a@b.c\n\n", os.EX_NOPERM, "no account here"),
        (("bob@example.org",), CRON, os.EX_OK, ""),
    ],
)
def test_exit_codes_are_those_of_sysexits(
    outbox: Service, arguments: tuple[str, ...], mail: bytes, code: int, words: str
) -> None:
    account = {"MAIL_USERNAME": "ops@example.org", "MAIL_PASSWORD": "s3cret"}
    done = sendmail(outbox, *arguments, mail=mail, **account, SMTP_HOST="smtp.example.org")
    assert done.code == code, done.err
    assert words in done.err


def test_the_null_sender_may_stand_in_angle_brackets(
    tmp_path: Path, sqlite_url: str, to_smtpd: dict[str, str], smtpd: ScriptedSMTP
) -> None:
    settings = to_smtpd | {
        "DATABASE_URL": sqlite_url,
        "INBOX_SMTP_PORT": str(free_port()),
        "SUBMISSION_PORT": str(free_port()),
    }
    mail = CRON + b"10%\r20%\0\n"
    with service(tmp_path, **settings) as up:
        up.up("--deliver")
        assert sendmail(up, "-f", "<>", "bob@example.org", mail=mail).code == 0
        [row] = up.get("/v1/messages")["data"]
        assert up.final(row["id"])["status"] == "sent"
    [delivery] = smtpd.messages
    assert delivery.mail_from == ""
    assert delivery.data.endswith(b"\r\n10%\r\n20%\r\n")


def test_without_a_database_it_says_so(outbox: Service, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/none/none.sqlite3"
    done = sendmail(outbox, "bob@example.org", DATABASE_URL=url)
    assert done.code in (os.EX_TEMPFAIL, os.EX_CONFIG)
    assert done.err.startswith("sendmail: ")
