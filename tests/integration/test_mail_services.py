"""The mail servers the tests rest on do what the tests take for granted."""

import email
import imaplib
import os
import secrets
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.services import Unavailable, fakeroot, is_alive, wait_until
from tests.services import dovecot as imap_server
from tests.services import postfix as smtp_server
from tests.services.dovecot import Dovecot, find_dovecot
from tests.services.groups import members
from tests.services.postfix import Postfix, find_postfix
from tests.services.smtpd import ScriptedSMTP

MAIL = b"Subject: Hello\n\nThe work is done.\n"
SILENCE_SECONDS = 0.5


@contextmanager
def session(server: Dovecot, **options: Any) -> Iterator[imaplib.IMAP4]:
    """Yield a connection that trusts the server's issuer alone."""
    trust = server.certificates.client_context()
    connection = imaplib.IMAP4_SSL(server.host, server.port, ssl_context=trust, **options)
    try:
        yield connection
    finally:
        connection.shutdown()


@contextmanager
def logged_in(server: Dovecot) -> Iterator[imaplib.IMAP4]:
    with session(server) as connection:
        connection.login(server.user, server.password)
        yield connection


@contextmanager
def client(server: Postfix, mailbox: Dovecot, **options: Any) -> Iterator[smtplib.SMTP]:
    """Yield a connection of ops, who has logged in."""
    with smtplib.SMTP(server.host, server.port, **options) as connection:
        connection.starttls(context=mailbox.certificates.client_context())
        connection.login(mailbox.user, mailbox.password)
        yield connection


def mail(number: int = 1) -> bytes:
    return b"Message-ID: <%d@example.org>\n" % number + MAIL


def send(server: Postfix, mailbox: Dovecot, to: str) -> None:
    with client(server, mailbox) as connection:
        assert connection.sendmail(mailbox.user, [to], mail()) == {}


def fetched(connection: imaplib.IMAP4, number: int, part: str) -> bytes:
    answer: Any = connection.fetch(str(number), f"({part})")[1][0]
    return bytes(answer[1])


def uidvalidity(connection: imaplib.IMAP4) -> bytes:
    connection.select(readonly=True)
    value = connection.response("UIDVALIDITY")[1][0]
    assert isinstance(value, bytes)
    return value


def test_delivered_mail_is_read_and_stays_unread(dovecot: Dovecot) -> None:
    dovecot.deliver(MAIL)
    with logged_in(dovecot) as connection:
        connection.select(readonly=True)
        assert fetched(connection, 1, "BODY.PEEK[]") == MAIL.replace(b"\n", b"\r\n")
    assert dovecot.messages() == [MAIL]
    assert dovecot.flags() == [""]


def test_what_was_read_has_the_flag(dovecot: Dovecot) -> None:
    dovecot.deliver(MAIL)
    with logged_in(dovecot) as connection:
        connection.select()
        fetched(connection, 1, "BODY[]")
    assert dovecot.flags() == ["S"]


def test_idle_says_that_mail_came(dovecot: Dovecot) -> None:
    with logged_in(dovecot) as connection:
        connection.select()
        connection.send(b"A1 IDLE\r\n")
        assert connection.readline().startswith(b"+")
        dovecot.deliver(MAIL)
        assert connection.readline() == b"* 1 EXISTS\r\n"


@pytest.mark.parametrize("name", ["Gesendet", "Gesendete Elemente", "Éléments envoyés"])
def test_sent_has_a_name_of_its_own_and_the_mark(run_directory: Path, name: str) -> None:
    with Dovecot(run_directory / f"a mailbox {secrets.token_hex(4)}", sent=name) as server:
        server.deliver(MAIL, name)
        with logged_in(server) as connection:
            lines = [line for line in connection.list()[1] if isinstance(line, bytes)]
            marked = [line for line in lines if b"\\Sent" in line]
            assert len(marked) == 1
            quoted = marked[0].partition(b' "/" ')[2].decode()
            assert connection.select(quoted, readonly=True) == ("OK", [b"1"])
        assert server.messages(name) == [MAIL]


def test_changed_password_is_wrong_from_then_on(dovecot: Dovecot) -> None:
    old = dovecot.password
    dovecot.set_password("geheim")
    with (
        session(dovecot) as connection,
        pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"),
    ):
        connection.login(dovecot.user, old)
    with logged_in(dovecot) as connection:
        assert connection.state == "AUTH"


def authenticate(connection: imaplib.IMAP4, user: str, token: str) -> None:
    answer = f"user={user}\x01auth=Bearer {token}\x01\x01"
    # The second turn answers the details of a refusal.
    connection.authenticate("XOAUTH2", lambda told: b"" if told else answer.encode())


def test_token_is_taken_and_an_expired_one_is_not(dovecot: Dovecot) -> None:
    with session(dovecot) as connection:
        authenticate(connection, dovecot.user, dovecot.token)
        assert connection.select() == ("OK", [b"0"])
    for wrong in (dovecot.expired_token, dovecot.token[:-2]):
        with session(dovecot) as connection, pytest.raises(imaplib.IMAP4.error):
            authenticate(connection, dovecot.user, wrong)


def test_uidvalidity_changes_each_time(dovecot: Dovecot) -> None:
    dovecot.deliver(MAIL)
    seen = set()
    for _ in range(3):
        with logged_in(dovecot) as connection:
            seen.add(uidvalidity(connection))
        dovecot.change_uidvalidity()
    assert len(seen) == 3


def test_paused_server_is_silent_until_it_is_resumed(dovecot: Dovecot) -> None:
    dovecot.pause()
    with pytest.raises(TimeoutError), session(dovecot, timeout=SILENCE_SECONDS):
        pass
    dovecot.resume()
    with logged_in(dovecot) as connection:
        assert connection.noop()[0] == "OK"


def test_mail_password_and_ports_survive_a_stop(dovecot: Dovecot) -> None:
    dovecot.deliver(MAIL)
    with logged_in(dovecot) as connection:
        connection.select()
        dovecot.stop()
        with pytest.raises(imaplib.IMAP4.abort):
            connection.noop()
    with pytest.raises(ConnectionRefusedError), session(dovecot):
        pass
    dovecot.start()
    with logged_in(dovecot) as connection:
        assert connection.select() == ("OK", [b"1"])


def test_certificate_is_verified(dovecot: Dovecot) -> None:
    dovecot.stop()
    dovecot.start(dovecot.certificates.expired)
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"), session(dovecot):
        pass


def test_many_mails_are_delivered_one_by_one(dovecot: Dovecot) -> None:
    for number in range(2_000):
        dovecot.deliver(MAIL.replace(b"Hello", b"%d" % number))
    with logged_in(dovecot) as connection:
        assert connection.select() == ("OK", [b"2000"])
        assert b"Subject: 1999" in fetched(connection, 2_000, "BODY.PEEK[HEADER]")


def test_close_leaves_no_process_and_no_file(run_directory: Path) -> None:
    server = Dovecot(run_directory / f"closed-{secrets.token_hex(4)}")
    server.start()
    group, home = server.pids["server"], server.home
    with logged_in(server) as connection:
        connection.select()
        assert len(members(group)) > 1
        server.close()
    assert not is_alive(group)
    assert members(group) == {}
    assert not home.exists()


def test_another_process_finds_the_same_server(dovecot: Dovecot) -> None:
    same = Dovecot(dovecot.directory)
    same.deliver(MAIL)
    assert same.password == dovecot.password
    assert dovecot.messages() == [MAIL]
    same.stop()
    assert not dovecot.is_running()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TEST_SERVERS_CACHE", str(tmp_path))
    monkeypatch.setattr(imap_server, "PLACES", ())
    monkeypatch.setattr(smtp_server, "PLACES", ())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(Unavailable, match="apt install dovecot-imapd"):
        find_dovecot()
    with pytest.raises(Unavailable, match="apt install postfix"):
        find_postfix()


def test_postfix_needs_fakeroot_without_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(fakeroot, "LIBRARIES", "nowhere")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="apt install fakeroot"):
        find_postfix()


def test_bounce_of_a_mail_to_nobody_comes_home(postfix: Postfix, dovecot: Dovecot) -> None:
    with logged_in(dovecot) as connection:
        connection.select(readonly=True)
        connection.send(b"A1 IDLE\r\n")
        assert connection.readline().startswith(b"+")
        send(postfix, dovecot, "nobody@example.org")
        assert connection.readline() == b"* 1 EXISTS\r\n"
    with logged_in(dovecot) as connection:
        connection.select(readonly=True)
        bounce = email.message_from_bytes(fetched(connection, 1, "BODY.PEEK[]"))
    assert bounce.get_content_type() == "multipart/report"
    recipients = [part for part in bounce.walk() if "Action" in part]
    assert [(part["Action"], part["Status"]) for part in recipients] == [("failed", "5.1.1")]
    assert [*bounce.walk()][-1]["Message-ID"] == "<1@example.org>"


def test_copy_of_what_was_sent_is_in_sent(
    run_directory: Path, dovecot: Dovecot, smtpd: ScriptedSMTP
) -> None:
    directory = run_directory / f"postfix-{secrets.token_hex(4)}"
    with Postfix(directory, dovecot, relay=smtpd.port) as postfix:
        send(postfix, dovecot, "bob@example.net")
        wait_until(lambda: smtpd.copies("<1@example.org>"), what="the mail was passed on")
        wait_until(lambda: dovecot.messages(dovecot.sent), what="its copy is in Sent")
    with logged_in(dovecot) as connection:
        connection.select(dovecot.sent, readonly=True)
        query = ("HEADER", "Message-ID", "<1@example.org>")
        assert connection.search(None, *query) == ("OK", [b"1"])
    assert dovecot.messages() == []


def test_notice_of_a_delay_comes_before_the_bounce(
    run_directory: Path, dovecot: Dovecot, smtpd: ScriptedSMTP
) -> None:
    smtpd.reply("RCPT", "451 4.7.1 later", times=None)
    directory = run_directory / f"postfix-{secrets.token_hex(4)}"
    with Postfix(directory, dovecot, relay=smtpd.port, delay_warning_seconds=1) as postfix:
        send(postfix, dovecot, "bob@example.net")
        notice = wait_until(dovecot.messages, what="a notice came")[0]
        assert b"\nAction: delayed\n" in notice
        assert postfix.queued() == 1


def test_many_mails_leave_the_queue_and_lie_in_sent(postfix: Postfix, dovecot: Dovecot) -> None:
    with client(postfix, dovecot) as connection:
        for number in range(200):
            connection.sendmail(dovecot.user, ["bob@example.net"], mail(number))
    postfix.flush()
    assert len(dovecot.messages(dovecot.sent)) == 200


def test_sending_takes_a_login(postfix: Postfix, dovecot: Dovecot) -> None:
    with smtplib.SMTP(postfix.host, postfix.port) as connection:
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            connection.sendmail(dovecot.user, ["bob@example.net"], mail())
        connection.starttls(context=dovecot.certificates.client_context())
        with pytest.raises(smtplib.SMTPAuthenticationError):
            connection.login(dovecot.user, "wrong")


def test_mail_in_the_queue_survives_a_stop(
    run_directory: Path, dovecot: Dovecot, smtpd: ScriptedSMTP
) -> None:
    smtpd.reply("RCPT", "451 4.7.1 later")
    directory = run_directory / f"postfix-{secrets.token_hex(4)}"
    with Postfix(directory, dovecot, relay=smtpd.port) as postfix:
        send(postfix, dovecot, "bob@example.net")
        postfix.stop()
        with pytest.raises(ConnectionRefusedError):
            smtplib.SMTP(postfix.host, postfix.port)
        postfix.start()
        postfix.flush()
        assert smtpd.copies("<1@example.org>") == 1


def test_paused_postfix_is_silent_until_it_is_resumed(postfix: Postfix, dovecot: Dovecot) -> None:
    postfix.pause()
    with pytest.raises(smtplib.SMTPServerDisconnected, match="timed out"):
        smtplib.SMTP(postfix.host, postfix.port, timeout=SILENCE_SECONDS)
    postfix.resume()
    send(postfix, dovecot, "bob@example.net")


def test_closed_postfix_leaves_no_process_and_no_file(
    run_directory: Path, dovecot: Dovecot
) -> None:
    server = Postfix(run_directory / f"postfix-{secrets.token_hex(4)}", dovecot)
    server.start()
    send(server, dovecot, "nobody@example.org")
    group, home = server.pids["server"], server.home
    assert len(members(group)) > 1
    server.close()
    assert members(group) == {}
    assert not home.exists()
