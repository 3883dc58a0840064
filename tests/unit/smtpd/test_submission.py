"""Mail over SMTP: who may hand it in, what is replied, and that it is kept byte for byte."""

import smtplib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import func, select

from mailroom.api.auth import peer
from mailroom.api.services import Services
from mailroom.model.errors import CommitUnanswered, StoreUnavailable
from mailroom.server.submission import make_server
from mailroom.smtpd import connection as connection_module
from mailroom.smtpd import server as server_module
from mailroom.smtpd.server import SubmissionServer
from mailroom.store.db.schema import messages
from mailroom.store.keys.api_keys import Scope
from tests.services import wait_until
from tests.services.application import made
from tests.services.certificates import Certificates, make_certificates
from tests.unit.api.test_raw_messages import MULTIPART
from tests.unit.submission.test_raw_message import COMPLETE

ALICE, BOB = "alice@example.org", "bob@example.org"


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    yield from made(database_url)


@contextmanager
def listening(app: Flask) -> Iterator[SubmissionServer]:
    ours: Services = app.extensions["mailasync"]
    server = make_server(app, ours.settings, 0)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(app: Flask) -> Iterator[SubmissionServer]:
    with listening(app) as one:
        yield one


@contextmanager
def client(server: SubmissionServer) -> Iterator[smtplib.SMTP]:
    with smtplib.SMTP("127.0.0.1", server.port, timeout=60) as one:
        one.ehlo("laptop.example.org")
        yield one


@contextmanager
def raw_client(server: SubmissionServer) -> Iterator[Any]:
    """Lines as they are, for what no client says."""
    with closing(socket.create_connection(("127.0.0.1", server.port), 60)) as link:
        yield link.makefile("rwb", buffering=0)


def say(link: Any, *lines: bytes) -> list[bytes]:
    """Send all at once, and return a reply for each."""
    link.write(b"".join(lines))
    return [link.readline() for _ in lines]


def count(app: Flask) -> int:
    ours: Services = app.extensions["mailasync"]
    found = ours.outbox.database.read(
        lambda connection: connection.scalar(select(func.count()).select_from(messages))
    )
    return found or 0


def id_of(reply: tuple[int, bytes] | bytes) -> str:
    text = reply if isinstance(reply, bytes) else reply[1]
    return text.split()[-1].decode()


def hand_in(one: smtplib.SMTP, mail: bytes, sender: str = ALICE, *to: str) -> tuple[int, bytes]:
    code, reply = one.mail(sender)
    if code != 250:
        return code, reply
    for recipient in to or (BOB,):
        code, reply = one.rcpt(recipient)
        if code != 250:
            return code, reply
    return one.data(mail)


def kept(app: Flask, id: str) -> bytes:
    """The mail as it goes out."""
    return bytes(app.test_client().get(f"/v1/messages/{id}/raw").data)


# --- what is accepted ----------------------------------------------------------------------------------------------


def test_a_mail_is_committed_before_its_250_and_kept_byte_for_byte(
    app: Flask, server: SubmissionServer
) -> None:
    with client(server) as one:
        reply = hand_in(one, MULTIPART)
        assert reply[0] == 250
        mail = kept(app, id_of(reply))
    trace, _, rest = mail.partition(b"DKIM-")
    assert b"DKIM-" + rest == MULTIPART
    assert trace.startswith(
        b"Received: from laptop.example.org ([127.0.0.1])\r\n\tby localhost with ESMTP id "
    )
    message: Any = app.test_client().get(f"/v1/messages/{id_of(reply)}").json
    assert (message["subject"], message["status"]) == ("Grüße", "queued")


def test_a_client_of_the_standard_library_sends_what_it_has_written(
    app: Flask, server: SubmissionServer
) -> None:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Bcc"] = f"Alice <{ALICE}>", f"Böb <{BOB}>", "eve@example.org"
    mail["Subject"] = "Grüße"
    mail.set_content("日本 " * 40)
    mail.add_alternative("<p>日本</p>", subtype="html")
    mail.add_attachment(bytes(range(256)), maintype="image", subtype="png", filename="Grüße.png")
    with client(server) as one:
        assert one.send_message(mail) == {}
        one.noop()
    page: Any = app.test_client().get("/v1/messages").json
    [found] = page["data"]
    assert found["subject"] == "Grüße"
    details: Any = app.test_client().get(f"/v1/messages/{found['id']}").json
    assert [(who["email"], who["kind"]) for who in details["recipients"]] == [
        (BOB, "to"),
        ("eve@example.org", "bcc"),
    ]
    assert b"eve@" not in kept(app, found["id"])


def test_commands_may_come_in_one_write_and_dots_are_unstuffed(
    app: Flask, server: SubmissionServer
) -> None:
    with raw_client(server) as link:
        assert link.readline().startswith(b"220 ")
        assert say(link, b"HELO x\r\n")[0].startswith(b"250 ")
        replies = say(
            link,
            b"MAIL FROM:<alice@example.org>\r\n",
            b"RCPT TO:<bob@example.org>\r\n",
            b"DATA\r\n",
        )
        assert [reply[:3] for reply in replies] == [b"250", b"250", b"354"]
        replies = say(
            link, COMPLETE + b"..\r\n...\r\n.\r\n", b"MAIL FROM:<>\r\n", b"RSET\r\n", b"QUIT\r\n"
        )
        assert [reply[:3] for reply in replies] == [b"250", b"250", b"250", b"221"]
    assert kept(app, id_of(replies[0])).endswith(COMPLETE + b".\r\n..\r\n")
    assert b" with SMTP id " in kept(app, id_of(replies[0]))


@pytest.mark.parametrize("payload", [b"", b".", b"a", b".a\r\n", b"\r\n", b"\r\n\r\n", b"x" * 998])
def test_however_short_or_odd_it_is(app: Flask, server: SubmissionServer, payload: bytes) -> None:
    with client(server) as one:
        reply = hand_in(one, payload)
        assert reply[0] == 250
        _, _, body = kept(app, id_of(reply)).partition(b"\r\n\r\n")
        assert body.rstrip(b"\r\n") == payload.strip(b"\r\n")


def test_extensions_are_announced(server: SubmissionServer) -> None:
    with client(server) as one:
        assert one.esmtp_features.keys() >= {"pipelining", "8bitmime", "smtputf8", "auth"}
        assert one.esmtp_features["size"] == "36000000"
        assert sorted(one.esmtp_features["auth"].split()) == ["LOGIN", "PLAIN"]
        assert "starttls" not in one.esmtp_features


def test_addresses_beyond_ascii_need_smtputf8(app: Flask, server: SubmissionServer) -> None:
    with client(server) as one:
        assert one.docmd("MAIL FROM:<alice@example.org>")[0] == 250
        one.command_encoding = "utf-8"
        assert one.docmd("RCPT TO:<jörg@example.org>") == (
            553,
            b"5.6.7 an address beyond ASCII needs SMTPUTF8",
        )
        one.rset()
        one.command_encoding = "utf-8"
        assert one.docmd("MAIL FROM:<ölaf@example.org> BODY=8BITMIME SMTPUTF8")[0] == 250
        assert one.docmd("RCPT TO:<jörg@bücher.example>")[0] == 250
        reply = one.data("From: ölaf@example.org\r\nSubject: Grüße\r\n\r\nHi.\r\n".encode())
        assert reply[0] == 250
    assert b" with UTF8SMTP id " in kept(app, id_of(reply))
    message: Any = app.test_client().get(f"/v1/messages/{id_of(reply)}").json
    assert message["recipients"][0]["email"] == "jörg@xn--bcher-kva.example"


def test_a_hundred_recipients_are_taken_and_no_more(server: SubmissionServer) -> None:
    with client(server) as one:
        one.mail(ALICE)
        codes = [one.rcpt(f"b{number}@example.org")[0] for number in range(101)]
        assert codes == [250] * 100 + [452]
        assert one.data(COMPLETE)[0] == 250


def test_an_idempotency_key_makes_one_mail_of_two(app: Flask, server: SubmissionServer) -> None:
    mail = b"X-Mailasync-Idempotency-Key: order-42\r\n" + COMPLETE
    with client(server) as one, client(server) as other:
        first = hand_in(one, mail)
        assert hand_in(other, mail) == (250, f"2.0.0 accepted before as {id_of(first)}".encode())
        assert hand_in(other, mail, ALICE, "eve@example.org")[0] == 550
    assert count(app) == 1


def test_many_connections_lose_and_double_nothing(app: Flask, server: SubmissionServer) -> None:
    def send(number: int) -> list[str]:
        with client(server) as one:
            replies = [
                hand_in(one, MULTIPART + f"{number}.{each}\r\n".encode()) for each in range(10)
            ]
        assert {reply[0] for reply in replies} == {250}
        return [id_of(reply) for reply in replies]

    with ThreadPoolExecutor(20) as threads:
        ids = [id for found in threads.map(send, range(20)) for id in found]
    assert len(set(ids)) == 200 == count(app)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "smuggled",
    [
        b"\n.\r\n",
        b"\n.\n",
        b"\r.\r\n",
        b"\r.\r",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\n\r.\r\n",
        b"\r\r\n.\r\r\n",
        b"\r\n\0.\r\n",
    ],
)
def test_no_mail_hides_another_one(app: Flask, server: SubmissionServer, smuggled: bytes) -> None:
    """Ends the mail only at CRLF, dot, CRLF, and takes none that another server might end earlier."""
    inner = b"MAIL FROM:<eve@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nSpam\r\n"
    with raw_client(server) as link:
        link.readline()
        say(link, b"HELO x\r\n")
        say(
            link,
            b"MAIL FROM:<alice@example.org>\r\n",
            b"RCPT TO:<bob@example.org>\r\n",
            b"DATA\r\n",
        )
        [reply] = say(link, COMPLETE + b"a" + smuggled + inner + b".\r\n")
        assert reply.startswith(b"554 5.6.0 ")
        assert say(link, b"QUIT\r\n")[0].startswith(b"221")
    assert count(app) == 0


@pytest.mark.parametrize(
    ("mail", "reply"),
    [
        (COMPLETE + b"x" * 999, b"5.6.0 expected lines of at most 998 bytes"),
        (b"Received: x\r\n" * 51 + COMPLETE, b"5.4.6 Received: expected at most 50"),
        (
            COMPLETE.replace(b"Alice <alice@example.org>", b"root"),
            b"5.6.0 From: expected an address",
        ),
        (b"X-Mailasync-Tags: a\r\n" + COMPLETE, b"5.6.0 expected a header field that is known"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_words(
    server: SubmissionServer, mail: bytes, reply: bytes
) -> None:
    with client(server) as one:
        code, said = hand_in(one, mail)
        assert (code, said[: len(reply)]) == (554, reply)


def test_what_is_too_large_is_refused_before_and_after(sqlite_url: str) -> None:
    for app in made(sqlite_url, REQUEST_MAX_BYTES="400000"):
        with listening(app) as server, client(server) as one:
            assert one.docmd(f"MAIL FROM:<{ALICE}> SIZE=400001")[0] == 552
            code, said = hand_in(one, COMPLETE + b"a\r\n" * 200_000)
            assert (code, said) == (552, b"5.3.4 a mail may have at most 400000 bytes")
            assert hand_in(one, COMPLETE)[0] == 250


def test_an_account_sends_only_from_its_addresses(sqlite_url: str) -> None:
    account = {"MAIL_USERNAME": "ops@example.org", "MAIL_PASSWORD": "s3cret"}
    for app in made(sqlite_url, **account, SMTP_HOST="smtp.example.org"):
        own = COMPLETE.replace(b"alice@example.org", b"ops@example.org")
        with listening(app) as server, client(server) as one:
            refusal = (550, b"5.7.1 no account here may send from this address")
            assert hand_in(one, own, ALICE) == refusal
            one.rset()
            assert hand_in(one, COMPLETE, "ops@example.org") == refusal
            assert hand_in(one, own, "ops@example.org")[0] == 250
            assert hand_in(one, own, "")[0] == 250


def test_while_the_database_is_away_the_client_is_told_to_try_again(
    app: Flask, server: SubmissionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours: Services = app.extensions["mailasync"]

    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("away")

    with client(server) as one:
        monkeypatch.setattr(ours.outbox.database, "write", away)
        reply = (451, b"4.3.0 the database is not available; try again")
        assert hand_in(one, COMPLETE) == reply
        monkeypatch.undo()
        assert hand_in(one, COMPLETE)[0] == 250
    assert count(app) == 1


@pytest.mark.parametrize("key", [b"", b"X-Mailasync-Idempotency-Key: k\r\n"])
@pytest.mark.parametrize("is_committed", [True, False])
def test_a_commit_without_an_answer_ends_in_one_mail_and_250(
    app: Flask,
    server: SubmissionServer,
    monkeypatch: pytest.MonkeyPatch,
    key: bytes,
    is_committed: bool,
) -> None:
    database = app.extensions["mailasync"].outbox.database
    write, calls = database.write, []

    def lost(*args: Any, **more: Any) -> Any:
        calls.append(args)
        if len(calls) > 1:
            return write(*args, **more)
        if is_committed:
            write(*args, **more)
        raise CommitUnanswered("lost")

    with client(server) as one:
        monkeypatch.setattr(database, "write", lost)
        reply = hand_in(one, key + COMPLETE)
        monkeypatch.undo()
        assert reply[0] == 250
        assert kept(app, id_of(reply)).endswith(COMPLETE)
    assert count(app) == 1


# --- who may ------------------------------------------------------------------------------------------------------


def test_with_a_key_it_is_the_password_of_any_user(app: Flask, server: SubmissionServer) -> None:
    ours: Services = app.extensions["mailasync"]
    secret, key = ours.api_keys.create("shop", scopes=[Scope.SEND])
    for mechanism in ("auth_plain", "auth_login"):
        with client(server) as one:
            assert hand_in(one, COMPLETE)[0] == 530
            one.user, one.password = "anybody", secret
            code, _ = one.auth(mechanism[5:].upper(), getattr(one, mechanism))
            assert code == 235
            reply = hand_in(one, COMPLETE)
            assert reply[0] == 250
            details = ours.outbox.details(id_of(reply))
            assert details and details.row["key_id"] == key.id
    raw_mail = ours.outbox.content(id_of(reply))
    assert raw_mail and b" with ESMTPA id " in raw_mail.raw


def test_wrong_keys_are_slowed_down_together_with_those_over_http(
    app: Flask, server: SubmissionServer
) -> None:
    ours: Services = app.extensions["mailasync"]
    secret, _ = ours.api_keys.create("shop", scopes=[Scope.SEND])
    for _ in range(8):
        wrong = {"Authorization": "Bearer wrong"}
        assert app.test_client().get("/v1/messages", headers=wrong).status_code == 401
    with client(server) as one:
        wrong_login = [one.docmd("AUTH", "PLAIN AGEAYg==") for _ in range(3)]
        assert [code for code, _ in wrong_login] == [535, 535, 421]
        assert wrong_login[0][1] == b"5.7.8 expected an API key as the password of any user"
        one.close()
    with client(server) as one:
        one.login("anybody", secret)
        assert hand_in(one, COMPLETE)[0] == 250


def test_scopes_senders_and_rates_of_a_key_hold(app: Flask, server: SubmissionServer) -> None:
    ours: Services = app.extensions["mailasync"]
    viewer, _ = ours.api_keys.create("viewer", scopes=[Scope.READ])
    shop, _ = ours.api_keys.create(
        "shop", scopes=[Scope.SEND], senders=["alice@example.org"], per_minute=2
    )
    with client(server) as one, pytest.raises(smtplib.SMTPAuthenticationError, match="scope send"):
        one.login("anybody", viewer)
    with client(server) as one:
        one.login("anybody", shop)
        assert hand_in(one, COMPLETE, "eve@example.org")[1].startswith(b"5.7.1 the key ")
        one.rset()
        assert hand_in(one, COMPLETE.replace(b"alice@", b"eve@"))[1].startswith(b"5.7.1 the key ")
        assert hand_in(one, b"Subject: x\r\n\r\n", "")[1].startswith(b"5.7.1 the key ")
        assert [hand_in(one, COMPLETE)[0] for _ in range(2)] == [250, 250]
        code, said = hand_in(one, COMPLETE)
        assert (code, said[:6]) == (451, b"4.7.0 ")
    assert count(app) == 2


def test_a_key_that_is_revoked_sends_no_more(app: Flask, server: SubmissionServer) -> None:
    ours: Services = app.extensions["mailasync"]
    secret, key = ours.api_keys.create("shop", scopes=[Scope.SEND])
    with client(server) as one:
        one.login("anybody", secret)
        assert hand_in(one, COMPLETE)[0] == 250
        ours.api_keys.revoke(key.id)
        assert hand_in(one, COMPLETE)[0] == 530


def test_not_even_between_mail_and_the_final_dot(app: Flask, server: SubmissionServer) -> None:
    ours: Services = app.extensions["mailasync"]
    secret, key = ours.api_keys.create("shop", scopes=[Scope.SEND])
    with client(server) as one:
        one.login("anybody", secret)
        assert (one.mail(ALICE)[0], one.rcpt(BOB)[0]) == (250, 250)
        ours.api_keys.revoke(key.id)
        assert one.data(COMPLETE) == (530, b"5.7.0 the API key is not valid any more")
    assert count(app) == 0


def test_without_a_key_only_this_services_user_is_served(
    server: SubmissionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with client(server) as one:
        monkeypatch.setattr(peer, "is_own", lambda ends: False)
        assert hand_in(one, COMPLETE)[0] == 530
        monkeypatch.undo()
        assert hand_in(one, COMPLETE)[0] == 250


def test_other_machines_need_a_key_and_tls(
    server: SubmissionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connection_module.SubmissionConnection
    monkeypatch.setattr(connection, "address", property(lambda self: "192.0.2.1"))
    monkeypatch.setattr(
        connection, "ends", property(lambda self: {"REMOTE_ADDR": "192.0.2.1"}), raising=False
    )
    with client(server) as one:
        assert "auth" not in one.esmtp_features
        assert one.docmd("AUTH", "PLAIN AGEAYg==")[0] == 538
        assert hand_in(one, COMPLETE)[0] == 530


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_starttls_comes_before_the_login(sqlite_url: str, certificates: Certificates) -> None:
    for app in made(sqlite_url, SUBMISSION_CERT_FILE=str(certificates.valid)):
        with listening(app) as server, client(server) as one:
            one.starttls(context=certificates.client_context())
            one.ehlo("laptop.example.org")
            reply = hand_in(one, COMPLETE)
            assert reply[0] == 250
            assert b" with ESMTPS id " in kept(app, id_of(reply))


def test_a_command_before_tls_is_not_taken_for_one_inside(
    sqlite_url: str, certificates: Certificates
) -> None:
    for app in made(sqlite_url, SUBMISSION_CERT_FILE=str(certificates.valid)):
        with listening(app) as server:
            context = certificates.client_context()
            with socket.create_connection(("127.0.0.1", server.port), 60) as link:
                for command in (b"", b"HELO x\r\n", b"STARTTLS\r\nMAIL FROM:<eve@example.org>\r\n"):
                    link.sendall(command)
                    assert link.recv(1000)[:3] in (b"220", b"250")
                with context.wrap_socket(link, server_hostname="localhost") as inside:
                    inside.sendall(b"NOOP\r\nHELO x\r\nRCPT TO:<bob@example.org>\r\nQUIT\r\n")
                    replies = inside.makefile("rb").read().splitlines()
            assert [reply[:3] for reply in replies] == [b"250", b"250", b"503", b"221"]


def test_tls_may_be_there_from_the_first_byte(sqlite_url: str, certificates: Certificates) -> None:
    settings = {"SUBMISSION_CERT_FILE": str(certificates.valid), "SUBMISSION_SECURITY": "ssl"}
    for app in made(sqlite_url, **settings):
        context = certificates.client_context()
        with (
            listening(app) as server,
            smtplib.SMTP_SSL("127.0.0.1", server.port, context=context, timeout=60) as one,
        ):
            assert hand_in_after_ehlo(one)[0] == 250


def hand_in_after_ehlo(one: smtplib.SMTP) -> tuple[int, bytes]:
    one.ehlo()
    assert "starttls" not in one.esmtp_features
    return hand_in(one, COMPLETE)


# --- limits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"GET / HTTP/1.1", b"POST / HTTP/1.1", b"OPTIONS / HTTP/1.1"])
def test_a_browser_is_hung_up_on(server: SubmissionServer, method: bytes) -> None:
    with raw_client(server) as link:
        link.write(method + b"\r\nHost: localhost\r\n\r\nMAIL FROM:<a@b.c>\r\n")
        link.readline()
        assert link.readline() == b"421 4.7.0 expected SMTP, got HTTP\r\n"
        assert link.read() == b""


@pytest.mark.parametrize(
    "start",
    [b"POST / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 3 + b"\r\n", b"WHAT\r\n" * 6],
    ids=["HTTP", "bogus"],
)
def test_nothing_is_taken_after_the_last_reply_inside_of_tls(
    sqlite_url: str, certificates: Certificates, start: bytes
) -> None:
    """A client need not answer the end of TLS, and what it sent before is in a buffer."""
    settings = {"SUBMISSION_CERT_FILE": str(certificates.valid), "SUBMISSION_SECURITY": "ssl"}
    commands = b"HELO x\r\nMAIL FROM:<alice@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"
    context = certificates.client_context()
    for app in made(sqlite_url, **settings):
        with (
            listening(app) as server,
            socket.create_connection(("127.0.0.1", server.port), 60) as link,
            context.wrap_socket(link, server_hostname="localhost") as inside,
        ):
            inside.sendall(start + commands + COMPLETE + b".\r\n")
            replies = inside.makefile("rb").read().splitlines()
            server.stop()
            assert replies[-1][:3] == b"421"
        assert count(app) == 0


@pytest.mark.parametrize("address", [b"<", b'<"', b"<@", b"(" * 1500], ids=len)
def test_addresses_that_the_parser_stumbles_over_are_errors(
    server: SubmissionServer, address: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with raw_client(server) as link:
        link.readline()
        say(link, b"HELO x\r\n")
        lines = [b"MAIL FROM:" + address + b"\r\n"] * connection_module.ERRORS_MAX
        assert {reply[:3] for reply in say(link, *lines)} == {b"553"}
        assert link.readline() == b"421 4.7.0 too many errors\r\n"
    assert not [record for record in caplog.records if record.exc_info]


def test_what_should_not_happen_is_logged_in_a_word_and_counted(
    app: Flask,
    server: SubmissionServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("bob@example.org")

    monkeypatch.setattr(peer, "is_own", broken)
    with raw_client(server) as link:
        link.readline()
        say(link, b"HELO x\r\n")
        replies = say(link, *([b"MAIL FROM:<a@b.cc>\r\n"] * connection_module.ERRORS_MAX))
        assert {reply[:3] for reply in replies} == {b"451"}
        assert link.readline() == b"421 4.7.0 too many errors\r\n"
    assert "a connection failed: ZeroDivisionError" in caplog.text
    assert "bob@" not in caplog.text
    assert "Traceback" not in caplog.text


def test_a_client_that_makes_many_errors_is_hung_up_on(server: SubmissionServer) -> None:
    with raw_client(server) as link:
        link.readline()
        say(link, b"HELO x\r\n")
        replies = say(link, *([b"RCPT TO:<bob>\r\n"] * connection_module.ERRORS_MAX))
        assert {reply[:3] for reply in replies} == {b"503"}
        assert link.readline() == b"421 4.7.0 too many errors\r\n"
        assert link.read() == b""


def test_a_long_command_is_refused(server: SubmissionServer) -> None:
    with client(server) as one:
        for length in (2 * connection_module.COMMAND_MAX_BYTES, 600_000):
            assert one.docmd(f"MAIL FROM:<{'a' * length}@example.org>")[0] == 500
        assert hand_in(one, COMPLETE)[0] == 250


def test_a_client_that_says_nothing_is_hung_up_on(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "IDLE_SECONDS", 0.2)
    with listening(app) as server, raw_client(server) as link:
        link.readline()
        assert link.read() == b""


def test_and_so_is_one_from_elsewhere_that_does_not_log_in(
    app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "LOGIN_SECONDS", 0.2)
    monkeypatch.setattr(
        connection_module.SubmissionConnection, "is_local", property(lambda self: False)
    )
    with listening(app) as server, raw_client(server) as link:
        link.readline()
        assert link.read() == b""


def test_connections_are_bounded_and_become_free_again(
    server: SubmissionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CONNECTIONS_MAX", 2)
    with client(server), client(server), raw_client(server) as link:
        assert link.readline() == b"421 4.7.0 too many connections; try again later\r\n"

    def is_served() -> bool:
        with raw_client(server) as link:
            return bool(link.readline().startswith(b"220"))

    wait_until(is_served, what="there is room again")


def test_a_stop_waits_for_the_reply_to_a_mail(
    app: Flask, server: SubmissionServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = app.extensions["mailasync"].outbox.database
    write, began, may_go = database.write, threading.Event(), threading.Event()

    def slow(*args: Any, **more: Any) -> Any:
        began.set()
        may_go.wait(60)
        return write(*args, **more)

    with client(server) as one, client(server) as idle, ThreadPoolExecutor(2) as threads:
        monkeypatch.setattr(database, "write", slow)
        reply = threads.submit(hand_in, one, COMPLETE)
        began.wait(60)
        stopped = threads.submit(server.stop)
        assert idle.getreply()[0] == 421
        may_go.set()
        assert reply.result(60)[0] == 250
        stopped.result(60)
        monkeypatch.undo()
        one.close()
        idle.close()
    assert count(app) == 1


def test_a_stop_gets_past_a_client_that_does_not_end_tls(
    sqlite_url: str, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"SUBMISSION_CERT_FILE": str(certificates.valid), "SUBMISSION_SECURITY": "ssl"}
    context = certificates.client_context()
    for app in made(sqlite_url, **settings):
        with (
            listening(app) as server,
            socket.create_connection(("127.0.0.1", server.port), 60) as link,
            context.wrap_socket(link, server_hostname="localhost") as inside,
            smtplib.SMTP_SSL("127.0.0.1", server.port, context=context, timeout=60) as idle,
        ):
            inside.sendall(b"POST / HTTP/1.1\r\n\r\n")
            assert inside.makefile("rb").read().splitlines()[-1][:3] == b"421"
            server.stop()
            assert idle.getreply()[0] == 421
            idle.close()
    assert not [record for record in caplog.records if record.exc_info]


def test_no_address_and_no_secret_reaches_the_log(
    server: SubmissionServer, app: Flask, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("DEBUG")
    with client(server) as one:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            one.login("anybody", "ma_s3cret")
        hand_in(one, COMPLETE)
        hand_in(one, COMPLETE + b"\n")
    assert "s3cret" not in caplog.text
    assert "bob@" not in caplog.text
