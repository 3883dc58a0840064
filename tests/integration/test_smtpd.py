"""The judge is right: what the scripted SMTP server says, does, records and counts."""

from __future__ import annotations

import base64
import smtplib
import socket
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from tests.measure import min_ratio
from tests.services import wait_until
from tests.services.certificates import Certificates, make_certificates
from tests.services.smtpd import ScriptedSMTP

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"
PASSWORD = {ALICE: "correct horse"}
MAIL = b"Message-ID: <1@example.org>\r\nSubject: hello\r\n\r\nHello\r\n"
CONVERSATION = {
    "NOOP": b"NOOP\r\n",
    "EHLO": b"EHLO client\r\n",
    "RSET": b"RSET\r\n",
    "MAIL": b"MAIL FROM:<alice@example.org>\r\n",
    "RCPT": b"RCPT TO:<bob@example.org>\r\n",
    "DATA": b"DATA\r\n",
    "DOT": MAIL + b".\r\n",
    "QUIT": b"QUIT\r\n",
}
ENVELOPE = b"MAIL FROM:<alice@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"


@pytest.fixture
def smtpd() -> Iterator[ScriptedSMTP]:
    with ScriptedSMTP() as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


class Raw:
    """A client that writes what it is told to, and reads whole replies."""

    def __init__(self, smtpd: ScriptedSMTP, *, greeted: bool = True) -> None:
        self.link = socket.create_connection((smtpd.host, smtpd.port), timeout=60)
        self.file = self.link.makefile("rb")
        if greeted:
            assert self.read().startswith("220")
            assert self.say(b"EHLO client\r\n").startswith("250")

    def read(self) -> str:
        lines = [self.file.readline()]
        while lines[-1][3:4] == b"-":
            lines.append(self.file.readline())
        return b"".join(lines).decode()

    def say(self, data: bytes) -> str:
        self.link.sendall(data)
        return self.read()

    def begin(self) -> list[str]:
        """Pipeline an envelope; return the codes of its three replies."""
        self.link.sendall(ENVELOPE)
        return [self.read()[:3] for _ in range(3)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        self.link.close()


def client(smtpd: ScriptedSMTP) -> smtplib.SMTP:
    return smtplib.SMTP(smtpd.host, smtpd.port, timeout=60)


def send(smtpd: ScriptedSMTP, *recipients: str) -> dict[str, tuple[int, bytes]]:
    with client(smtpd) as smtp:
        return smtp.sendmail(ALICE, recipients or (BOB,), MAIL)


# What is delivered


def test_a_mail_is_taken_and_recorded(smtpd: ScriptedSMTP) -> None:
    send(smtpd, BOB, CAROL)
    (delivery,) = smtpd.messages
    assert smtpd.payloads == [delivery]
    assert delivery.message_id == "<1@example.org>"
    assert (delivery.mail_from, delivery.rcpt_tos) == (ALICE, (BOB, CAROL))
    assert (delivery.data, delivery.connection, delivery.user) == (MAIL, 1, None)
    assert delivery.reply == "250 2.0.0 ok"
    assert smtpd.copies("<1@example.org>") == smtpd.copies("1@example.org") == 1
    verbs = [line.split()[0].upper() for _, line in smtpd.commands]
    assert verbs == ["EHLO", "MAIL", "RCPT", "RCPT", "DATA", "QUIT"]
    assert smtpd.violations == []


def test_copies_count_every_final_dot(smtpd: ScriptedSMTP) -> None:
    smtpd.reply("DOT", "451 4.3.0 later")
    with pytest.raises(smtplib.SMTPDataError):
        send(smtpd)
    send(smtpd)
    send(smtpd)
    assert (len(smtpd.payloads), len(smtpd.messages)) == (3, 2)
    assert smtpd.copies("<1@example.org>") == 3
    assert smtpd.copies("<1@example.org>", refused=False) == 2
    assert smtpd.copies("<2@example.org>") == 0


@pytest.mark.parametrize(
    ("header", "message_id"),
    [
        (b"message-id:<a@b>\r\n", "<a@b>"),
        (b"Message-ID:\r\n <a@b>\r\n", "<a@b>"),
        (b"Message-ID:\r\nSubject: none\r\n", ""),
        (b"Subject: x\r\n\r\nMessage-ID: <in@the.body>\r\n", ""),
    ],
)
def test_message_id_is_that_of_the_header(
    smtpd: ScriptedSMTP, header: bytes, message_id: str
) -> None:
    with client(smtpd) as smtp:
        smtp.sendmail(ALICE, BOB, header + b"\r\nHello\r\n")
    assert smtpd.messages[0].message_id == message_id


@pytest.mark.parametrize(
    ("sent", "data"),
    [
        (b"..\r\n", b".\r\n"),
        (b"...a\r\n", b"..a\r\n"),
        (b"a\r\n..\r\n..\r\nb\r\n", b"a\r\n.\r\n.\r\nb\r\n"),
        (b"a.\r\nb .\r\n", b"a.\r\nb .\r\n"),
        (b"a\n.\nb\n.\r\nc\r\n", b"a\n.\nb\n.\r\nc\r\n"),
        (b"a\r.\rb\r\n", b"a\r.\rb\r\n"),
        (b"\r\n", b"\r\n"),
    ],
)
def test_dots_are_unstuffed_and_only_crlf_dot_crlf_ends(
    smtpd: ScriptedSMTP, sent: bytes, data: bytes
) -> None:
    with Raw(smtpd) as raw:
        raw.begin()
        assert raw.say(sent + b".\r\n").startswith("250")
    assert [delivery.data for delivery in smtpd.messages] == [data]


def test_all_may_come_byte_by_byte(smtpd: ScriptedSMTP) -> None:
    with Raw(smtpd) as raw:
        (session,) = smtpd.sessions

        def say_alone(byte: int) -> None:
            received = session.received
            raw.link.sendall(bytes([byte]))
            wait_until(lambda: session.received > received)

        for byte in ENVELOPE + b"..a\r\n.b\r\n.\r\n":
            say_alone(byte)
        assert [raw.read()[:3] for _ in range(4)] == ["250", "250", "354", "250"]
    assert smtpd.messages[0].data == b".a\r\nb\r\n"


def test_a_lone_dot_is_an_empty_payload_and_without_recipients_no_message(
    smtpd: ScriptedSMTP,
) -> None:
    smtpd.reply("RCPT", "550 5.1.1 no such user")
    smtpd.reply("DATA", "354 all the same")
    with Raw(smtpd) as raw:
        assert raw.begin() == ["250", "550", "354"]
        assert raw.say(b".\r\n").startswith("554")
        assert smtpd.messages == []
        assert (smtpd.payloads[0].rcpt_tos, smtpd.payloads[0].data) == ((), b"")
        raw.begin()
        assert raw.say(b".\r\n").startswith("250")
    assert smtpd.messages[0].data == b""


def test_data_is_refused_when_every_recipient_was(smtpd: ScriptedSMTP) -> None:
    smtpd.reply("RCPT", "550 5.1.1 no such user", times=None)
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(smtpd, BOB, CAROL)
    with Raw(smtpd) as raw:
        assert raw.begin() == ["250", "550", "554"]
    assert smtpd.payloads == []


def test_ten_megabytes_arrive_whole(smtpd: ScriptedSMTP) -> None:
    data = b"x" * 70 + b"\r\n.y\r\n"
    with client(smtpd) as smtp:
        smtp.sendmail(ALICE, BOB, data * 130_000)
    assert smtpd.messages[0].data == data * 130_000


# The script


@pytest.mark.parametrize("phase", CONVERSATION)
def test_each_phase_says_what_the_script_says_and_only_that_often(
    smtpd: ScriptedSMTP, phase: str
) -> None:
    smtpd.reply(phase, "471 4.9.9 scripted", times=2)
    replies = []
    for _ in range(3):
        with Raw(smtpd, greeted=False) as raw:
            raw.read()
            for name, data in CONVERSATION.items():
                reply = raw.say(data)
                if name == phase:
                    replies.append(reply[:4])
                    break
    assert replies[:2] == ["471 ", "471 "]
    assert replies[2].startswith(("2", "354"))
    assert len(smtpd.messages) == {"DOT": 1, "QUIT": 3}.get(phase, 0)


@pytest.mark.parametrize("reply", ["421 4.3.2 too busy", "554 5.3.2 no service"])
def test_a_greeting_can_refuse(smtpd: ScriptedSMTP, reply: str) -> None:
    smtpd.reply("GREETING", reply)
    with pytest.raises(smtplib.SMTPConnectError) as caught:
        client(smtpd)
    assert str(caught.value.smtp_code) == reply[:3]
    wait_until(lambda: smtpd.open_connections == 0)
    send(smtpd)
    assert smtpd.connections == 2


def test_who_ignores_a_refused_greeting_gets_nothing_done(smtpd: ScriptedSMTP) -> None:
    smtpd.reply("GREETING", "554 5.3.2 no service")
    with Raw(smtpd, greeted=False) as raw:
        assert raw.read().startswith("554")
        assert raw.say(b"EHLO client\r\n").startswith("503")
        assert raw.say(b"MAIL FROM:<alice@example.org>\r\n").startswith("503")


def test_replies_match_a_recipient_or_a_payload_in_the_order_of_the_script(
    smtpd: ScriptedSMTP,
) -> None:
    smtpd.reply("RCPT", "450 4.2.1 first", match=BOB)
    smtpd.reply("RCPT", "550 5.1.1 then", match=BOB, times=None)
    smtpd.reply("DOT", "552 5.2.3 never", match="Message-ID: <2@")
    assert send(smtpd, BOB, CAROL) == {BOB: (450, b"4.2.1 first")}
    assert send(smtpd, CAROL, BOB) == {BOB: (550, b"5.1.1 then")}
    assert send(smtpd, BOB, CAROL) == {BOB: (550, b"5.1.1 then")}
    assert [delivery.rcpt_tos for delivery in smtpd.messages] == [(CAROL,)] * 3


def test_replies_can_have_lines_and_be_no_smtp(smtpd: ScriptedSMTP) -> None:
    smtpd.reply("NOOP", "250-one\n250-two\n250 three")
    smtpd.reply("NOOP", b"\xff\x00 nonsense\r\n")
    smtpd.reply("DOT", b"\xff\x00 nonsense\r\n")
    with Raw(smtpd) as raw:
        assert raw.say(b"NOOP\r\n") == "250-one\r\n250-two\r\n250 three\r\n"
        raw.link.sendall(b"NOOP\r\n")
        assert raw.file.readline() == b"\xff\x00 nonsense\r\n"
        raw.begin()
        raw.link.sendall(MAIL + b".\r\n")
        assert raw.file.readline() == b"\xff\x00 nonsense\r\n"
    assert (len(smtpd.payloads), len(smtpd.messages)) == (1, 0)


def test_a_reply_can_break_off_in_its_middle_and_then_counts_as_none(smtpd: ScriptedSMTP) -> None:
    smtpd.reply("DOT", b"250 2.0", close=True)
    with Raw(smtpd) as raw:
        raw.begin()
        raw.link.sendall(MAIL + b".\r\n")
        assert raw.file.read() == b"250 2.0"
    assert (smtpd.messages, smtpd.payloads[0].reply) == ([], None)
    assert smtpd.copies("1@example.org", refused=False) == 1


def test_a_421_hangs_up(smtpd: ScriptedSMTP) -> None:
    smtpd.reply("RCPT", "421 4.7.0 slow down")
    with Raw(smtpd) as raw:
        assert raw.say(ENVELOPE).startswith("250")
        assert raw.read().startswith("421")
        assert raw.file.read() == b""


def test_a_reply_can_drip(smtpd: ScriptedSMTP) -> None:
    smtpd.reply("NOOP", "250 slow", drip_seconds=0.001)
    with Raw(smtpd) as raw:
        assert raw.say(b"NOOP\r\n") == "250 slow\r\n"
        assert raw.say(b"NOOP\r\n").startswith("250 2.0.0")


def test_an_unknown_phase_is_refused(smtpd: ScriptedSMTP) -> None:
    with pytest.raises(ValueError, match="got 'RCTP'"):
        smtpd.reply("RCTP", "250 ok")


# Links that break, and clients that are held


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("phase", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "PAYLOAD"])
def test_a_drop_closes_the_link_and_nothing_is_delivered(
    smtpd: ScriptedSMTP, phase: str, reset: bool
) -> None:
    smtpd.drop(phase, reset=reset)
    with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionResetError)):
        send(smtpd)
    assert smtpd.payloads == []
    wait_until(lambda: smtpd.open_connections == 0)
    send(smtpd)
    assert len(smtpd.messages) == 1


@pytest.mark.parametrize("reset", [False, True])
def test_after_a_drop_at_the_dot_the_payload_counts_but_no_message(
    smtpd: ScriptedSMTP, reset: bool
) -> None:
    smtpd.drop("DOT", reset=reset)
    with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionResetError)):
        send(smtpd)
    assert (len(smtpd.payloads), len(smtpd.messages)) == (1, 0)
    send(smtpd)
    assert smtpd.copies("1@example.org") == smtpd.copies("1@example.org", refused=False) == 2
    assert [delivery.reply for delivery in smtpd.payloads] == [None, "250 2.0.0 ok"]


def test_fin_and_rst_differ(smtpd: ScriptedSMTP) -> None:
    smtpd.drop("NOOP")
    smtpd.drop("NOOP", reset=True)
    with Raw(smtpd) as raw:
        assert raw.say(b"NOOP\r\n") == ""
    with Raw(smtpd) as raw, pytest.raises(ConnectionResetError):
        raw.say(b"NOOP\r\n")


def test_a_payload_can_be_dropped_after_so_many_bytes(smtpd: ScriptedSMTP) -> None:
    smtpd.drop("PAYLOAD", after=1000)
    with Raw(smtpd) as raw:
        raw.begin()
        assert raw.say(b"x" * 900 + b"\r\n.\r\n").startswith("250")
        raw.begin()
        raw.link.sendall(b"x" * 900)
        assert raw.say(b"x" * 100) == ""
    assert len(smtpd.payloads) == 1


@pytest.mark.parametrize("phase", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "PAYLOAD", "DOT"])
def test_a_held_client_waits_until_released(smtpd: ScriptedSMTP, phase: str) -> None:
    hold = smtpd.hold(phase)
    sender = threading.Thread(target=send, args=(smtpd,))
    sender.start()
    assert hold.reached.wait(60)
    assert smtpd.messages == []
    assert len(smtpd.payloads) == (1 if phase == "DOT" else 0)
    send(smtpd)  # Only the first client is held.
    hold.release()
    sender.join(60)
    assert len(smtpd.messages) == 2


def test_a_hold_comes_before_a_scripted_reply(smtpd: ScriptedSMTP) -> None:
    smtpd.drop("DOT")
    hold = smtpd.hold("DOT")
    with Raw(smtpd) as raw:
        raw.begin()
        raw.link.sendall(MAIL + b".\r\n")
        assert hold.reached.wait(60)
        hold.release()
        assert raw.read() == ""


def test_a_client_that_dies_while_held_is_gone(smtpd: ScriptedSMTP) -> None:
    hold = smtpd.hold("DOT")
    with Raw(smtpd) as raw:
        raw.begin()
        raw.link.sendall(MAIL + b".\r\n")
        assert hold.reached.wait(60)
        assert smtpd.open_connections == 1
    wait_until(lambda: smtpd.open_connections == 0)
    assert (len(smtpd.payloads), len(smtpd.messages)) == (1, 0)


def test_a_dot_counts_though_its_sender_died_right_after(smtpd: ScriptedSMTP) -> None:
    with Raw(smtpd) as raw:
        raw.begin()
        raw.link.sendall(MAIL + b".\r\n")
    wait_until(lambda: smtpd.copies("1@example.org") == 1)


def test_half_a_payload_does_not_count(smtpd: ScriptedSMTP) -> None:
    with Raw(smtpd) as raw:
        raw.begin()
        raw.link.sendall(MAIL + b".\r")
    wait_until(lambda: smtpd.open_connections == 0)
    assert smtpd.payloads == []


def test_a_hang_never_answers_anybody_until_released(smtpd: ScriptedSMTP) -> None:
    smtpd.hang("NOOP")
    with Raw(smtpd) as one, Raw(smtpd) as two:
        for raw in (one, two):
            raw.link.settimeout(0.05)
            raw.link.sendall(b"NOOP\r\n")
            with pytest.raises(TimeoutError):
                raw.link.recv(1)
        smtpd.release()
        for raw in (one, two):
            raw.link.settimeout(60)
            assert raw.link.recv(100) == b"250 2.0.0 ok\r\n"


# Pipelining and what breaks the rules


def test_what_came_in_one_write_is_one_batch(smtpd: ScriptedSMTP) -> None:
    with Raw(smtpd) as raw:
        assert raw.begin() == ["250", "250", "354"]
        raw.link.sendall(MAIL + b".\r\n" + ENVELOPE)
        assert [raw.read()[:3] for _ in range(4)] == ["250", "250", "250", "354"]
        assert raw.say(MAIL + b".\r\n").startswith("250")
    envelope = ENVELOPE.decode().split("\r\n")[:3]
    assert smtpd.batches == [["EHLO client"], envelope, [".", *envelope], ["."]]
    assert smtpd.violations == []


def test_replies_of_a_batch_come_in_one_segment(smtpd: ScriptedSMTP) -> None:
    with Raw(smtpd) as raw:
        raw.link.sendall(ENVELOPE)
        assert raw.link.recv(1000).count(b"\r\n") == 3


def test_batches_are_told_apart_though_the_server_was_slow(smtpd: ScriptedSMTP) -> None:
    hold = smtpd.hold("MAIL")
    with Raw(smtpd) as raw:
        mail, rcpt, data = ENVELOPE.splitlines(keepends=True)
        raw.link.sendall(mail + rcpt)
        assert hold.reached.wait(60)
        raw.link.sendall(data)
        session = next(iter(smtpd.sessions))
        wait_until(lambda: len(session.edges) == 2)
        hold.release()
        raw.read(), raw.read(), raw.read()
    assert [len(batch) for batch in smtpd.batches] == [1, 2, 1]


def test_smtplib_does_not_pipeline(smtpd: ScriptedSMTP) -> None:
    send(smtpd)
    assert [len(batch) for batch in smtpd.batches] == [1] * 6


def test_pipelining_that_was_not_offered_is_recorded() -> None:
    with ScriptedSMTP(pipelining=False, smtputf8=False) as smtpd:
        with Raw(smtpd) as raw:
            offers = raw.say(b"EHLO client\r\n")
            raw.begin()
        assert "PIPELINING" not in offers
        assert "SMTPUTF8" not in offers
        assert [connection for connection, _ in smtpd.violations] == [1, 1]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"a\nb\r\n", "CR or LF alone"),
        (b"a\rb\r\n", "CR or LF alone"),
        (b"x" * 999 + b"\r\n", "more than 998"),
        ("ä\r\n".encode(), "8-bit"),
    ],
)
def test_a_payload_against_the_rules_is_taken_and_recorded(
    smtpd: ScriptedSMTP, data: bytes, what: str
) -> None:
    with Raw(smtpd) as raw:
        raw.begin()
        assert raw.say(data + b".\r\n").startswith("250")
    assert [what in violation for _, violation in smtpd.violations] == [True]


def test_a_payload_sent_before_354_is_recorded(smtpd: ScriptedSMTP) -> None:
    with Raw(smtpd) as raw:
        raw.say(ENVELOPE + MAIL + b".\r\n")
        raw.read(), raw.read(), raw.read()
    assert smtpd.violations == [(1, "bytes came before the reply to DATA")]


def test_order_and_syntax_of_commands_matter(smtpd: ScriptedSMTP) -> None:
    with Raw(smtpd, greeted=False) as raw:
        raw.read()
        mail, rcpt, data = ENVELOPE.splitlines(keepends=True)
        for line, code in [
            (mail, "503"),
            (b"EHLO client\r\n", "250"),
            (rcpt, "503"),
            (data, "503"),
            (b"MAIL FROM: alice@example.org\r\n", "501"),
            (b"MAIL FROM:<alice@example.org> SIZE=99999999\r\n", "552"),
            ("MAIL FROM:<älice@example.org>\r\n".encode(), "553"),
            (b"mail from:<> BODY=8BITMIME SMTPUTF8\r\n", "250"),
            (mail, "503"),
            (b"RCPT TO:<>\r\n", "501"),
            ("RCPT TO:<bøb@example.org>\r\n".encode(), "250"),
            (b"RSET\r\n", "250"),
            (rcpt, "503"),
            (b"VRFY bob\r\n", "502"),
            (b"STARTTLS\r\n", "503"),
            (b"AUTH PLAIN AGEAYg==\r\n", "503"),
            (b"\r\n", "502"),
            (b"QUIT\r\n", "221"),
        ]:
            assert raw.say(line).startswith(code), line
        assert raw.read() == ""


# TLS


def test_tls_from_the_first_byte(certificates: Certificates) -> None:
    with ScriptedSMTP(tls="ssl", certificate=certificates.valid) as smtpd:
        for host in ("127.0.0.1", "localhost"):
            with smtplib.SMTP_SSL(
                host, smtpd.port, timeout=60, context=certificates.client_context()
            ) as smtp:
                smtp.sendmail(ALICE, BOB, MAIL)
        assert len(smtpd.messages) == 2
        wait_until(lambda: smtpd.open_connections == 0)


def test_starttls_is_asked_for_and_resets(certificates: Certificates) -> None:
    with (
        ScriptedSMTP(tls="starttls", certificate=certificates.valid, auth=PASSWORD) as smtpd,
        client(smtpd) as smtp,
    ):
        smtp.ehlo()
        assert "auth" not in smtp.esmtp_features
        assert smtp.mail(ALICE)[0] == 530
        assert smtp.docmd("AUTH", "PLAIN AGEAYg==")[0] == 503
        smtp.starttls(context=certificates.client_context())
        assert smtp.mail(ALICE)[0] == 503
        smtp.ehlo()
        assert "starttls" not in smtp.esmtp_features
        smtp.login(ALICE, PASSWORD[ALICE])
        smtp.sendmail(ALICE, BOB, MAIL)
        assert smtpd.messages[0].user == ALICE


def test_what_is_said_in_the_clear_after_starttls_is_thrown_away(
    certificates: Certificates,
) -> None:
    with (
        ScriptedSMTP(tls="starttls", certificate=certificates.valid) as smtpd,
        Raw(smtpd) as raw,
    ):
        assert raw.say(b"STARTTLS\r\nEHLO injected\r\n").startswith("220")
        context = certificates.client_context()
        with context.wrap_socket(raw.link, server_hostname="localhost") as link:
            link.sendall(b"NOOP\r\n")
            assert link.recv(100).startswith(b"250")
        assert (1, "EHLO injected") not in smtpd.commands
        assert smtpd.violations == [(1, "bytes came before the reply to STARTTLS")]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("expired", "certificate has expired"),
        ("wrong_host", "IP address mismatch"),
        ("self_signed", "self-signed certificate"),
        ("unknown_ca", "unable to get local issuer certificate"),
    ],
)
@pytest.mark.parametrize("tls", ["ssl", "starttls"])
def test_a_client_that_verifies_refuses_bad_certificates(
    certificates: Certificates, tls: str, kind: str, error: str
) -> None:
    certificate: Path = getattr(certificates, kind)
    context = certificates.client_context()
    with ScriptedSMTP(tls="ssl" if tls == "ssl" else "starttls", certificate=certificate) as smtpd:
        with pytest.raises(ssl.SSLCertVerificationError, match=error):  # noqa: PT012  # two ways to the same error
            if tls == "ssl":
                smtplib.SMTP_SSL(smtpd.host, smtpd.port, timeout=60, context=context)
            else:
                with client(smtpd) as smtp:
                    smtp.starttls(context=context)
        wait_until(lambda: smtpd.tls_failures == 1)
        assert [line for _, line in smtpd.commands if not line.startswith("ehlo")] in (
            [],
            ["STARTTLS"],
        )


def test_starttls_can_be_refused_dropped_or_not_offered(certificates: Certificates) -> None:
    with ScriptedSMTP(tls="starttls", certificate=certificates.valid) as smtpd:
        smtpd.reply("STARTTLS", "454 4.7.0 not available")
        smtpd.drop("STARTTLS")
        with client(smtpd) as smtp:
            with pytest.raises(smtplib.SMTPResponseException, match="454"):
                smtp.starttls()
            with pytest.raises(smtplib.SMTPServerDisconnected):
                smtp.starttls()
    error = smtplib.SMTPNotSupportedError
    with ScriptedSMTP() as smtpd, client(smtpd) as smtp, pytest.raises(error):
        smtp.starttls()


@pytest.mark.parametrize("reset", [False, True])
def test_a_tls_link_is_cut_without_a_goodbye(certificates: Certificates, reset: bool) -> None:
    with ScriptedSMTP(tls="ssl", certificate=certificates.valid) as smtpd:
        smtpd.drop("DOT", reset=reset)
        smtp = smtplib.SMTP_SSL(
            smtpd.host, smtpd.port, timeout=60, context=certificates.client_context()
        )
        with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
            smtp.sendmail(ALICE, BOB, MAIL)
        smtp.close()
        assert (len(smtpd.payloads), len(smtpd.messages)) == (1, 0)


def test_tls_needs_a_certificate() -> None:
    with pytest.raises(ValueError, match="expected a certificate"):
        ScriptedSMTP(tls="ssl")


# AUTH


def xoauth2(token: str) -> str:
    return f"user={ALICE}\x01auth=Bearer {token}\x01\x01"


@pytest.mark.parametrize("mechanism", ["auth_plain", "auth_login"])
@pytest.mark.parametrize("initial_response_ok", [True, False])
def test_the_right_password_logs_in(mechanism: str, initial_response_ok: bool) -> None:
    with ScriptedSMTP(auth=PASSWORD) as smtpd, client(smtpd) as smtp:
        smtp.ehlo()
        assert smtp.mail(ALICE)[0] == 530
        smtp.user, smtp.password = ALICE, PASSWORD[ALICE]
        name, answer = mechanism.removeprefix("auth_"), getattr(smtp, mechanism)
        assert smtp.auth(name, answer, initial_response_ok=initial_response_ok)[0] == 235
        smtp.sendmail(ALICE, BOB, MAIL)
        assert smtpd.messages[0].user == ALICE
        assert smtpd.logins == 1


def test_a_wrong_password_is_refused_and_kept_as_received() -> None:
    with ScriptedSMTP(auth=PASSWORD) as smtpd, client(smtpd) as smtp:
        with pytest.raises(smtplib.SMTPAuthenticationError, match="535"):
            smtp.login(ALICE, "wrong")
        secret = base64.b64encode(f"\0{ALICE}\0wrong".encode()).decode()
        assert (1, f"AUTH PLAIN {secret}") in smtpd.commands
        assert smtpd.logins == 0


def test_xoauth2_accepts_its_token_and_explains_a_refusal() -> None:
    with ScriptedSMTP(auth={ALICE: "token"}) as smtpd:
        for token, code in [("token", 235), ("stale", 535)]:
            with client(smtpd) as smtp:
                smtp.ehlo()
                initial = base64.b64encode(xoauth2(token).encode()).decode()
                reply = smtp.docmd("AUTH", f"XOAUTH2 {initial}")
                if code == 535:
                    assert reply[0] == 334
                    assert base64.b64decode(reply[1]) == b'{"status":"400"}'
                    reply = smtp.docmd("")
                assert reply[0] == code
        assert smtpd.logins == 1


@pytest.mark.parametrize("words", ["", "PLAIN *", "PLAIN !!", "PLAIN YQ==", "XOAUTH2 YQ=="])
def test_broken_credentials_are_a_syntax_error(words: str) -> None:
    with ScriptedSMTP(auth=PASSWORD) as smtpd, Raw(smtpd) as raw:
        reply = raw.say(f"AUTH {words}".encode() + b"\r\n")
        reply = raw.say(b"*\r\n") if reply.startswith("334") else reply
        assert reply.startswith("501")
        assert smtpd.logins == 0


def test_auth_is_scripted_when_the_credentials_are_there() -> None:
    with ScriptedSMTP(auth=PASSWORD) as smtpd:
        # Twice, because smtplib tries LOGIN after PLAIN.
        smtpd.reply("AUTH", "454 4.7.0 too many login attempts", match=ALICE, times=2)
        smtpd.drop("AUTH")
        for error in (smtplib.SMTPAuthenticationError, smtplib.SMTPServerDisconnected):
            with client(smtpd) as smtp, pytest.raises(error):
                smtp.login(ALICE, PASSWORD[ALICE])
        with client(smtpd) as smtp:
            smtp.login(ALICE, PASSWORD[ALICE])
        assert smtpd.logins == 1


# Many connections, and none


def test_a_delay_does_not_serialize_connections() -> None:
    with ScriptedSMTP(delay_seconds=0.02) as smtpd:

        def many() -> None:
            senders = [threading.Thread(target=send, args=(smtpd,)) for _ in range(20)]
            for sender in senders:
                sender.start()
            for sender in senders:
                sender.join()

        # One after the other they would take twenty times as long as one.
        assert min_ratio(many, partial(send, smtpd), enough=10) <= 10
        assert len(smtpd.messages) == smtpd.connections
        wait_until(lambda: smtpd.open_connections == 0)


def test_dead_and_back_on_the_same_port(smtpd: ScriptedSMTP) -> None:
    port = smtpd.port
    smtpd.reply("RCPT", "550 5.1.1 still there afterwards")
    with Raw(smtpd) as raw:
        smtpd.stop()
        assert raw.read() == ""
    assert smtpd.open_connections == 0
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            client(smtpd)
    smtpd.start()
    assert smtpd.port == port
    with pytest.raises(smtplib.SMTPRecipientsRefused):
        send(smtpd)
    send(smtpd)
    assert (len(smtpd.messages), smtpd.messages[0].connection) == (1, 3)


def test_stopping_cuts_those_who_are_held(smtpd: ScriptedSMTP) -> None:
    hold = smtpd.hang("NOOP")
    with Raw(smtpd) as raw:
        raw.link.sendall(b"NOOP\r\n")
        assert hold.reached.wait(60)
        smtpd.stop()
        assert raw.read() == ""
    smtpd.stop()
    hold.release()


def test_a_judge_that_stumbles_says_so(smtpd: ScriptedSMTP) -> None:
    smtpd.delay_seconds = "broken"  # type: ignore[assignment]  # any bug of the server's own
    with Raw(smtpd, greeted=False) as raw:
        assert raw.read() == ""
    with pytest.raises(RuntimeError, match="itself failed"):
        smtpd.stop()
    smtpd.errors.clear()
