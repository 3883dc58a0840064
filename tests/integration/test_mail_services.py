"""The mail servers the tests rest on do what the tests take for granted."""

import imaplib
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.services import Unavailable, is_alive
from tests.services import dovecot as imap_server
from tests.services.dovecot import Dovecot, find_dovecot
from tests.services.groups import members

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


def test_token_is_taken_and_a_wrong_one_is_not(dovecot: Dovecot) -> None:
    answer = f"user={dovecot.user}\x01auth=Bearer {dovecot.token}\x01\x01"
    with session(dovecot) as connection:
        connection.authenticate("XOAUTH2", lambda _: answer.encode())
    dovecot.set_token("another")
    with session(dovecot) as connection, pytest.raises(imaplib.IMAP4.error):
        # The second turn answers the details of the refusal.
        connection.authenticate("XOAUTH2", lambda asked: b"" if asked else answer.encode())


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
    with pytest.raises(Unavailable, match="apt install dovecot-imapd"):
        find_dovecot()
