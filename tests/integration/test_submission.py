"""Programs hand in mail over SMTP to the running service, and it arrives as they wrote it, also over a kill -9."""

import shutil
import smtplib
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.message import EmailMessage
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import pytest

from tests.services import free_port, wait_until
from tests.services.processes import Service, service
from tests.services.smtpd import ScriptedSMTP
from tests.unit.api.test_raw_messages import MULTIPART

ALICE, BOB = "alice@example.org", "bob@example.org"


@pytest.fixture
def up(tmp_path: Path, sqlite_url: str, to_smtpd: dict[str, str]) -> Iterator[Service]:
    ports = {name: str(free_port()) for name in ("INBOX_SMTP_PORT", "SUBMISSION_PORT")}
    with service(tmp_path, **to_smtpd, **ports, DATABASE_URL=sqlite_url) as one:
        one.up("--deliver")
        yield one


def port(up: Service) -> int:
    return int(up.settings["SUBMISSION_PORT"])


def django_like() -> MIMEMultipart:
    """A mail as Django's EmailMultiAlternatives makes it."""
    mail = MIMEMultipart("mixed")
    both = MIMEMultipart("alternative")
    both.attach(MIMEText("Grüße aus 日本\n.\n", "plain", "utf-8"))
    both.attach(MIMEText("<p>Grüße aus 日本</p>", "html", "utf-8"))
    mail.attach(both)
    file = MIMEApplication(bytes(range(256)) * 50)
    file.add_header("Content-Disposition", "attachment", filename=("utf-8", "", "Grüße.pdf"))
    mail.attach(file)
    mail["Subject"] = "=?utf-8?q?Gr=C3=BC=C3=9Fe?="
    mail["From"], mail["To"] = ALICE, BOB
    mail["Message-ID"], mail["Date"] = "<django@example.org>", "Mon, 30 Nov 2026 12:00:00 -0000"
    return mail


def test_what_django_sends_arrives_byte_for_byte(up: Service, smtpd: ScriptedSMTP) -> None:
    data = django_like().as_bytes().replace(b"\n", b"\r\n")
    with smtplib.SMTP("127.0.0.1", port(up), timeout=60) as one:
        assert one.sendmail(ALICE, [BOB, "eve@example.org"], data) == {}
    wait_until(lambda: smtpd.messages)
    [delivery] = smtpd.messages
    assert (delivery.mail_from, delivery.rcpt_tos) == (ALICE, (BOB, "eve@example.org"))
    assert delivery.data.endswith(b"\r\n" + data)
    assert delivery.data.removesuffix(data).count(b"\r\n") == 3
    assert smtpd.violations == []


def test_what_curl_sends_arrives_byte_for_byte(
    up: Service, smtpd: ScriptedSMTP, tmp_path: Path
) -> None:
    file = tmp_path / "mail.eml"
    file.write_bytes(MULTIPART)
    curl = shutil.which("curl")
    assert curl, "install curl"
    url = f"smtp://127.0.0.1:{port(up)}/laptop.example.org"
    options = ["--mail-from", ALICE, "--mail-rcpt", BOB, "--upload-file", str(file)]
    subprocess.run([curl, "--silent", "--show-error", url, *options], check=True, timeout=60)
    wait_until(lambda: smtpd.messages)
    assert smtpd.messages[0].data.endswith(b"\r\n" + MULTIPART)
    assert smtpd.violations == []


def test_two_hundred_mails_over_twenty_connections_arrive_once(
    up: Service, smtpd: ScriptedSMTP
) -> None:
    def send(number: int) -> None:
        with smtplib.SMTP("127.0.0.1", port(up), timeout=60) as one:
            for each in range(10):
                one.sendmail(ALICE, [BOB], mail(f"{number}.{each}"))

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(send, range(20)))
    names = [f"<{number}.{each}@example.org>" for number in range(20) for each in range(10)]
    wait_until(lambda: len(smtpd.messages) >= 200)
    assert [smtpd.copies(name) for name in names] == [1] * 200


def mail(name: str, *, key: bool = False) -> bytes:
    one = EmailMessage()
    one["From"], one["To"], one["Subject"] = ALICE, BOB, name
    one["Message-ID"] = f"<{name}@example.org>"
    if key:
        one["X-Mailasync-Idempotency-Key"] = name
    one.set_content("The work is done.")
    return one.as_bytes().replace(b"\n", b"\r\n")


def stored(up: Service) -> list[str]:
    """The names of the mails that were accepted, in order."""
    file = up.settings["DATABASE_URL"].removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT message_id FROM messages").fetchall()
    return sorted(row[0].partition("@")[0] for row in rows)


def test_killed_between_the_dot_and_the_250_it_has_accepted_a_mail_once_or_not_at_all(
    up: Service,
) -> None:
    """Told by the row: each 250 has one, and a mail that is handed in again with its key has one as well."""
    program = up._programs[0]
    accepted: list[str] = []
    enough = threading.Event()

    def send(number: int) -> None:
        try:
            with smtplib.SMTP("127.0.0.1", port(up), timeout=60) as one:
                for each in range(1000):
                    name = f"{number}.{each}"
                    one.sendmail(ALICE, [BOB], mail(name, key=True))
                    accepted.append(name)
                    if len(accepted) > 100:
                        enough.set()
        except (OSError, smtplib.SMTPException):
            begun[number] = name

    begun: dict[int, str] = {}
    with ThreadPoolExecutor(8) as threads:
        sent = threads.map(send, range(8))
        enough.wait(60)
        program.kill()
        list(sent)
    kept = stored(up)
    assert len(kept) == len(set(kept))
    assert set(accepted) <= set(kept) <= {*accepted, *begun.values()}
    up.up("--deliver")
    with smtplib.SMTP("127.0.0.1", port(up), timeout=60) as one:
        for name in begun.values():
            assert one.sendmail(ALICE, [BOB], mail(name, key=True)) == {}
    assert stored(up) == sorted({*accepted, *begun.values()})


def test_killed_while_the_commit_waits_nothing_is_accepted(up: Service) -> None:
    file = up.settings["DATABASE_URL"].removeprefix("sqlite:///")
    program = up._programs[0]
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with smtplib.SMTP("127.0.0.1", port(up), timeout=60) as one:
            one.ehlo()
            one.mail(ALICE)
            one.rcpt(BOB)
            assert one.docmd("DATA")[0] == 354
            one.send(mail("lost") + b".\r\n")
            program.kill()
            with pytest.raises((OSError, smtplib.SMTPServerDisconnected)):
                one.getreply()
            one.close()
        other.execute("ROLLBACK")
    assert stored(up) == []


def test_a_port_that_is_named_and_taken_stops_the_start(tmp_path: Path, sqlite_url: str) -> None:
    with closing(socket.create_server(("127.0.0.1", free_port()))) as other:
        taken = str(other.getsockname()[1])
        settings = {"DATABASE_URL": sqlite_url, "INBOX_SMTP_PORT": str(free_port())}
        with service(tmp_path, **settings, SUBMISSION_PORT=taken) as one:
            program = one.run("-m", "flask", "up", name="up")
            assert program.process.wait(60) == 1
            assert f"port {taken} is taken; set MAILASYNC_SUBMISSION_PORT" in program.text()


def test_a_certificate_that_cannot_be_used_stops_the_start(tmp_path: Path, sqlite_url: str) -> None:
    settings = {
        "DATABASE_URL": sqlite_url,
        "INBOX_SMTP_PORT": str(free_port()),
        "SUBMISSION_CERT_FILE": __file__,
    }
    with service(tmp_path, **settings) as one:
        program = one.run("-m", "flask", "up", name="up")
        assert program.process.wait(60) == 1
        assert "SUBMISSION_CERT_FILE: expected a certificate with its key in PEM" in program.text()


def test_the_web_half_of_the_pair_takes_mail_too(pair: Service, smtpd: ScriptedSMTP) -> None:
    pair.settings["SUBMISSION_PORT"] = str(free_port())
    pair.web()
    with smtplib.SMTP("127.0.0.1", port(pair), timeout=60) as one:
        one.sendmail(ALICE, [BOB], MULTIPART)
    pair.worker()
    wait_until(lambda: smtpd.messages)
    assert smtpd.messages[0].data.endswith(b"\r\n" + MULTIPART)
