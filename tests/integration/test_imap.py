"""Our IMAP connection on a real Dovecot, and on servers that do what Dovecot never would."""

import json
import logging
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mailroom.mailbox.connection import MailboxConnection, MailboxError
from mailroom.mailbox.sent_folder import find_sent_folder, is_in_sent
from mailroom.model.account import MailboxServer
from mailroom.smtp.oauth2 import TokenSource
from tests.services.dovecot import Dovecot
from tests.services.imap import ImapRelay
from tests.services.token_server import SECRETS, TokenServer, token_server

ODD_IDS = [
    'a"b@example.org',
    "a\\b@example.org",
    "a(b){3}@example.org",
    "a*%b@example.org",
    "ä@example.org",
    "a b@example.org",
]


def server_of(dovecot: Dovecot, **changes: Any) -> MailboxServer:
    server = MailboxServer(
        host=dovecot.host,
        port=dovecot.port,
        security="ssl",
        user=dovecot.user,
        password=dovecot.password,
        ca_file=str(dovecot.certificates.ca_file),
    )
    return replace(server, **changes)


def mail(message_id: str = "", subject: str = "Hello") -> bytes:
    message_id = message_id or f"{secrets.token_hex(8)}@example.org"
    return f"Message-ID: <{message_id}>\nSubject: {subject}\n\nThe work is done.\n".encode()


def failure(act: Callable[[], object]) -> MailboxError:
    with pytest.raises(MailboxError) as raised:
        act()
    return raised.value


@pytest.fixture
def mailbox(dovecot: Dovecot) -> Iterator[MailboxConnection]:
    with MailboxConnection(server_of(dovecot)) as connection:
        connection.select_inbox()
        yield connection


@pytest.fixture
def endpoint() -> Iterator[TokenServer]:
    with token_server() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "oauth2.json"
    made.write_text(json.dumps(SECRETS))
    return made


@contextmanager
def hiding(dovecot: Dovecot, *hidden: bytes) -> Iterator[tuple[MailboxConnection, ImapRelay]]:
    """Yield a connection through a relay that hides what the server offers."""
    with ImapRelay(dovecot.ports["imap"], *hidden) as relay:
        server = server_of(dovecot, security="none", port=relay.port)
        with MailboxConnection(server) as connection:
            yield connection, relay


@pytest.mark.parametrize("security", ["ssl", "starttls", "none"])
def test_login_by_each_way_of_security(dovecot: Dovecot, security: str) -> None:
    port = dovecot.port if security == "ssl" else dovecot.ports["imap"]
    connection = MailboxConnection(server_of(dovecot, security=security, port=port))
    with connection:
        assert connection.can_idle
        assert connection.select_inbox().uid_next == 1
    assert not connection.is_open
    connection.close()


def test_wrong_password_is_told_in_the_servers_words(dovecot: Dovecot) -> None:
    error = failure(MailboxConnection(server_of(dovecot, password="wrong horse")).open)
    assert "refused the login: [AUTHENTICATIONFAILED] Authentication failed." in str(error)
    assert error.of_login


def test_password_may_have_any_letters(dovecot: Dovecot) -> None:
    dovecot.set_password('hörse "staple" \\')
    with MailboxConnection(server_of(dovecot)) as connection:
        assert connection.is_open


@pytest.mark.parametrize("kind", ["expired", "wrong_host", "self_signed", "unknown_ca"])
def test_certificate_that_is_not_right_is_refused(dovecot: Dovecot, kind: str) -> None:
    dovecot.stop()
    dovecot.start(getattr(dovecot.certificates, kind))
    for security, port in (("ssl", dovecot.port), ("starttls", dovecot.ports["imap"])):
        server = server_of(dovecot, security=security, port=port)
        error = failure(MailboxConnection(server).open)
        assert f"the certificate of 127.0.0.1:{port} is not to be trusted" in str(error)
        assert not error.of_login


def test_issuer_that_we_do_not_know_is_refused(dovecot: Dovecot) -> None:
    error = failure(MailboxConnection(server_of(dovecot, ca_file="")).open)
    assert "is not to be trusted" in str(error)


def test_server_that_is_down_is_told(dovecot: Dovecot) -> None:
    dovecot.stop()
    error = failure(MailboxConnection(server_of(dovecot)).open)
    assert str(error) == f"127.0.0.1:{dovecot.port} could not be reached: Connection refused"


def test_frozen_server_ends_each_call_in_time(dovecot: Dovecot) -> None:
    server = server_of(dovecot, timeout_seconds=0.5)
    with MailboxConnection(server) as connection:
        connection.select_inbox()
        dovecot.pause()
        error = failure(lambda: connection.new_uids(0, limit=10))
        assert "did not answer NOOP in time" in str(error)
        assert not connection.is_open
        assert "not connected" in str(failure(connection.select_inbox))
        assert "did not answer the connection in time" in str(failure(connection.open))
    dovecot.resume()


def test_close_does_not_wait_for_a_frozen_server(
    dovecot: Dovecot, mailbox: MailboxConnection
) -> None:
    dovecot.pause()
    mailbox.close()
    dovecot.resume()
    assert not mailbox.is_open


def test_new_uids_come_in_order_and_never_twice(
    dovecot: Dovecot, mailbox: MailboxConnection
) -> None:
    assert mailbox.new_uids(0, limit=10) == []
    for _ in range(5):
        dovecot.deliver(mail())
    assert mailbox.new_uids(0, limit=3) == [1, 2, 3]
    assert mailbox.new_uids(3, limit=3) == [4, 5]
    # "6:*" has mail 5, as it is the last.
    assert mailbox.new_uids(5, limit=3) == []
    assert mailbox.new_uids(2**32 - 2, limit=3) == mailbox.new_uids(2**32 - 1, limit=3) == []


def test_uids_after_an_expunge_stay_and_gaps_are_crossed(
    dovecot: Dovecot, mailbox: MailboxConnection
) -> None:
    for _ in range(8):
        dovecot.deliver(mail())
    assert mailbox.new_uids(0, limit=10) == [*range(1, 9)]
    dovecot.doveadm("expunge", "-u", dovecot.user, "mailbox", "INBOX", "uid", "2:6")
    assert mailbox.new_uids(0, limit=10) == [1, 7, 8]
    assert mailbox.new_uids(1, limit=2) == [7, 8]
    assert mailbox.headers([1, 2, 7], ["Subject"]).keys() == {1, 7}
    assert mailbox.fetch(2, 100) == b""


def test_mails_since_a_day(dovecot: Dovecot, mailbox: MailboxConnection) -> None:
    for _ in range(3):
        dovecot.deliver(mail())
    assert mailbox.new_uids(0, limit=10) == [1, 2, 3]
    assert mailbox.uids_since(date(2020, 1, 1), limit=2) == [2, 3]
    assert mailbox.uids_since(date(2100, 1, 1), limit=2) == []


def test_uidvalidity_that_changed_is_seen(dovecot: Dovecot, mailbox: MailboxConnection) -> None:
    before = mailbox.select_inbox()
    dovecot.change_uidvalidity()
    with MailboxConnection(server_of(dovecot)) as connection:
        assert connection.select_inbox().uid_validity != before.uid_validity


def test_headers_and_beginnings_of_mails_leave_them_unread(
    dovecot: Dovecot, mailbox: MailboxConnection
) -> None:
    for number in range(250):
        dovecot.deliver(mail(f"{number}@example.org"))
    uids = mailbox.new_uids(0, limit=1000)
    headers = mailbox.headers(uids, ["message-id", "In-Reply-To"])
    assert [headers[uid] for uid in uids] == [
        f"Message-ID: <{number}@example.org>\r\n\r\n".encode() for number in range(250)
    ]
    assert mailbox.fetch(1, 11) == b"Message-ID:"
    assert mailbox.fetch(1, 10_000).endswith(b"The work is done.\r\n")
    assert set(dovecot.flags()) == {""}


def test_headers_are_cut(dovecot: Dovecot, mailbox: MailboxConnection) -> None:
    dovecot.deliver(mail(subject="long " * 20_000))
    assert len(mailbox.headers(mailbox.new_uids(0, limit=1), ["Subject"])[1]) == 16_384


def test_names_of_header_fields_are_no_way_in(mailbox: MailboxConnection) -> None:
    with pytest.raises(ValueError, match="expected names of header fields"):
        mailbox.headers([1], ["Subject)] BODY[TEXT"])


def test_large_mailbox_costs_no_more_than_a_small_one(dovecot: Dovecot) -> None:
    costs = []
    for count in (20, 20_000):
        for number in range(count):
            place = dovecot.maildir / "new" / f"{count}.{number}P1.test"
            place.write_bytes(b"Subject: Hello\n\nx\n")
        with hiding(dovecot) as (connection, relay):
            connection.select_inbox()
            # The second one has taken in what was delivered.
            total = connection.select_inbox().uid_next - 1
            before = relay.bytes
            assert connection.new_uids(total - 5, limit=500) == [*range(total - 4, total + 1)]
            assert connection.new_uids(total, limit=500) == []
            assert connection.new_uids(0, limit=10) == [*range(1, 11)]
            assert len(connection.headers([total], ["Subject"])) == 1
            costs.append(relay.bytes - before)
    # Numbers are longer by some digits.
    assert costs[1] <= costs[0] + 100


def test_idle_ends_as_soon_as_a_mail_comes(dovecot: Dovecot, mailbox: MailboxConnection) -> None:
    assert mailbox.wait_for_mail(0.1) is False
    threading.Timer(0.2, dovecot.deliver, [mail()]).start()
    # The test ends long before that, or not at all.
    assert mailbox.wait_for_mail(3600) is True
    assert mailbox.new_uids(0, limit=10) == [1]
    assert mailbox.wait_for_mail(0.1) is False


def test_link_that_is_lost_in_idle_is_told(dovecot: Dovecot, mailbox: MailboxConnection) -> None:
    threading.Timer(0.2, dovecot.kill).start()
    error = failure(lambda: mailbox.wait_for_mail(3600))
    assert "was lost" in str(error)
    assert not mailbox.is_open


def test_frozen_server_ends_idle_in_time(dovecot: Dovecot) -> None:
    with MailboxConnection(server_of(dovecot, timeout_seconds=0.5)) as connection:
        connection.select_inbox()
        dovecot.pause()
        assert "in time" in str(failure(lambda: connection.wait_for_mail(0.1)))
    dovecot.resume()


@pytest.mark.parametrize("hidden", [b" (no such)", b" MOVE"])
def test_moving_makes_the_folder_and_leaves_the_rest(dovecot: Dovecot, hidden: bytes) -> None:
    mails = [mail() for _ in range(3)]
    for raw in mails:
        dovecot.deliver(raw)
    with hiding(dovecot, hidden) as (mailbox, _):
        mailbox.select_inbox(writable=True)
        mailbox.move(mailbox.new_uids(0, limit=2), "Büro/Bounces read")
        assert dovecot.messages("Büro/Bounces read") == mails[:2]
        assert dovecot.messages() == mails[2:]
        mailbox.move([3], "Büro/Bounces read")
        assert dovecot.messages("Büro/Bounces read") == mails
        assert dovecot.flags() == []


def test_without_uidplus_a_mail_that_moved_is_marked_only(dovecot: Dovecot) -> None:
    dovecot.deliver(mail())
    with hiding(dovecot, b" MOVE", b" UIDPLUS") as (mailbox, _):
        mailbox.select_inbox(writable=True)
        mailbox.move(mailbox.new_uids(0, limit=2), "Bounces")
    assert len(dovecot.messages("Bounces")) == 1
    assert dovecot.flags() == ["T"]


def test_moving_needs_a_writable_inbox(dovecot: Dovecot, mailbox: MailboxConnection) -> None:
    dovecot.deliver(mail())
    mailbox.select_inbox(writable=True)
    assert mailbox.new_uids(0, limit=1) == [1]
    mailbox.select_inbox()
    assert "writable" in str(failure(lambda: mailbox.move([1], "Bounces")))
    assert len(dovecot.messages()) == 1


@pytest.mark.parametrize("name", ["Gesendet", "Éléments envoyés", "送信済み & more"])
def test_sent_folder_is_found_by_its_mark(run_directory: Path, name: str) -> None:
    place = run_directory / f"dovecot-{secrets.token_hex(4)}"
    with (
        Dovecot(place, sent=name) as dovecot,
        MailboxConnection(server_of(dovecot)) as connection,
    ):
        dovecot.deliver(mail("old@example.org"), "Sent")
        dovecot.deliver(mail("1@example.org"), name)
        assert find_sent_folder(connection) == name
        assert is_in_sent(connection, name, "<1@example.org>")


@pytest.mark.parametrize("name", ["Gesendet", "Archive/Sent Items", "Sent"])
def test_sent_folder_is_found_by_its_name_where_nothing_is_marked(
    dovecot: Dovecot, name: str
) -> None:
    dovecot.deliver(mail(), "Gesendete Objekte")
    dovecot.deliver(mail(), name)
    with hiding(dovecot, rb"\Sent") as (connection, _):
        assert find_sent_folder(connection) == name


def test_mailbox_may_have_no_sent_folder(run_directory: Path) -> None:
    place = run_directory / f"dovecot-{secrets.token_hex(4)}"
    with Dovecot(place, sent="Outgoing") as dovecot, hiding(dovecot, rb"\Sent") as (connection, _):
        assert find_sent_folder(connection) == ""


@pytest.mark.parametrize("message_id", ODD_IDS)
def test_mail_is_found_in_sent_by_its_whole_message_id(
    dovecot: Dovecot, mailbox: MailboxConnection, message_id: str
) -> None:
    dovecot.deliver(mail(), dovecot.sent)
    assert not is_in_sent(mailbox, dovecot.sent, message_id)
    dovecot.deliver(mail(message_id), dovecot.sent)
    assert is_in_sent(mailbox, dovecot.sent, message_id)
    assert is_in_sent(mailbox, dovecot.sent, f"<{message_id}>")
    assert not is_in_sent(mailbox, dovecot.sent, message_id[1:])
    assert not is_in_sent(mailbox, dovecot.sent, message_id[:-1])
    assert dovecot.flags(dovecot.sent) == ["", ""]


def test_letters_beyond_ascii_are_sent_to_a_server_without_literal_plus(dovecot: Dovecot) -> None:
    dovecot.deliver(mail("ä@example.org"), dovecot.sent)
    with hiding(dovecot, b" LITERAL+") as (connection, _):
        assert is_in_sent(connection, dovecot.sent, "ä@example.org")
        assert not is_in_sent(connection, dovecot.sent, "ö@example.org")


@pytest.mark.parametrize(
    "message_id",
    [
        'x" OR ALL "',
        'x" ALL',
        "x\\",
        "x\r\nA1 LOGOUT",
        'x"\r\nA1 DELETE INBOX\r\n',
        "{4+}",
        "",
        "<>",
        "\ud800",
    ],
)
def test_message_id_cannot_become_a_command(
    dovecot: Dovecot, mailbox: MailboxConnection, message_id: str
) -> None:
    dovecot.deliver(mail(), dovecot.sent)
    assert not is_in_sent(mailbox, dovecot.sent, message_id)
    assert mailbox.folders()


def test_folder_that_is_missing_is_told_and_the_connection_goes_on(
    mailbox: MailboxConnection,
) -> None:
    error = failure(lambda: is_in_sent(mailbox, "Nowhere", "1@example.org"))
    assert "refused EXAMINE: Mailbox doesn't exist: Nowhere" in str(error)
    mailbox.select_inbox()


def test_login_by_access_token(dovecot: Dovecot, file: Path, endpoint: TokenServer) -> None:
    endpoint.answer = 200, json.dumps({"access_token": dovecot.token, "expires_in": 3600}).encode()
    tokens = TokenSource(str(file), 60, url=endpoint.url)
    server = server_of(dovecot, password="", oauth2_file=str(file))
    for _ in range(2):
        with MailboxConnection(server, tokens=tokens) as connection:
            assert connection.is_open
    assert len(endpoint.asked) == 1


def test_access_token_that_is_refused_is_fetched_anew(
    dovecot: Dovecot, file: Path, endpoint: TokenServer
) -> None:
    endpoint.answer = 200, json.dumps({"access_token": "old", "expires_in": 3600}).encode()
    tokens = TokenSource(str(file), 60, url=endpoint.url)
    connection = MailboxConnection(server_of(dovecot, oauth2_file=str(file)), tokens=tokens)
    error = failure(connection.open)
    assert error.of_login and "refused the login: " in str(error)
    endpoint.answer = 200, json.dumps({"access_token": dovecot.token, "expires_in": 3600}).encode()
    connection.open()
    connection.close()


def test_access_token_goes_over_tls_only(dovecot: Dovecot, file: Path) -> None:
    server = server_of(dovecot, security="none", port=dovecot.ports["imap"], oauth2_file=str(file))
    assert "over TLS only" in str(failure(MailboxConnection(server).open))


def test_nothing_that_is_read_or_sent_is_logged(
    dovecot: Dovecot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    dovecot.deliver(mail("secret@example.org"))
    with MailboxConnection(server_of(dovecot)) as connection:
        connection.select_inbox()
        connection.fetch(1, 1000)
        is_in_sent(connection, dovecot.sent, "secret@example.org")
    failure(MailboxConnection(server_of(dovecot, password="wrong")).open)
    imap = [record for record in caplog.records if record.name.startswith(("imap", "mailroom"))]
    assert imap == []
    assert dovecot.password not in caplog.text
