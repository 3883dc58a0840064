"""A whole mail in bytes: what of its header is read, what is left out, and that nothing else changes."""

from typing import Any

import pytest

from mailroom.model.attempt import Claim
from mailroom.model.errors import InvalidMessage
from mailroom.model.header import HEADER_MAX_BYTES, split_header
from mailroom.model.message import Address, Message
from mailroom.smtp.mime import compose
from mailroom.submission.raw_message import (
    HOPS_MAX,
    RawEnvelope,
    RawSubmission,
    read_raw,
    received,
    with_crlf,
)

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"
COMPLETE = (
    b"From: Alice <alice@example.org>\r\nTo: Bob <bob@example.org>\r\nSubject: Hello\r\n"
    b"Date: Mon, 30 Nov 2026 12:00:00 +0000\r\nMessage-ID: <own@example.org>\r\n\r\nHi.\r\n"
)


def read(mail: bytes, *to: str, **envelope: Any) -> RawSubmission:
    return read_raw(mail, RawEnvelope(recipients=to or (BOB,), **envelope))


def message(mail: bytes, *to: str, **envelope: Any) -> Message:
    return read(mail, *to, **envelope).submission.message


def sent(one: Message) -> bytes:
    claim = Claim(
        id="1",
        attempt=1,
        message_id="1@example.org",
        created_at_ms=1_790_000_000_123,
        message=one,
        pending=(),
    )
    return compose(claim, sender=Address("ops@example.org", "Ops"))


def problem(mail: bytes, *to: str, **envelope: Any) -> str:
    with pytest.raises(InvalidMessage) as refused:
        read(mail, *to, **envelope)
    return str(refused.value)


def test_a_complete_mail_goes_out_byte_for_byte() -> None:
    assert sent(message(COMPLETE)) == COMPLETE


@pytest.mark.parametrize(
    "mail",
    [
        b"From: a@example.org\r\nDate: x\r\nMessage-ID: y\r\n\r\n",
        b"from :a@example.org\r\nDATE: x\r\nmessage-id:\r\n <y@example.org>\r\nX-Odd:\t \r\n\r\n.\r\n..\r\n",
        "From: a@example.org\r\nDate: x\r\nMessage-ID: y\r\nSubject: Grüße\r\n\r\n日本\r\n".encode(),
        b"From: a@example.org\r\nDate: x\r\nMessage-ID: y\r\n\r\n\xff\xfe latin \xe4\r\n \r\n\r\n\r\n",
    ],
)
def test_whatever_is_in_it(mail: bytes) -> None:
    assert sent(message(mail)) == mail


def test_what_it_lacks_is_added_after_its_own_fields() -> None:
    mail = b"Subject: Hello\r\n\r\nHi.\r\n"
    assert sent(message(mail)) == (
        b"Subject: Hello\r\nFrom: Ops <ops@example.org>\r\nDate: Mon, 21 Sep 2026 14:13:20 +0000\r\n"
        b"Message-ID: <1@example.org>\r\n\r\nHi.\r\n"
    )
    assert b"From: carol@example.org\r\n" in sent(message(mail, sender=CAROL))


@pytest.mark.parametrize("text", [b"Just text.\r\n", b"\r\nJust text.\r\n", b"Just text."])
def test_a_mail_without_a_header_is_all_text(text: bytes) -> None:
    header, _, body = sent(message(text)).partition(b"\r\n\r\n")
    assert header.startswith(b"From: Ops")
    assert body == b"Just text.\r\n"


def test_the_header_ends_at_the_first_line_that_is_no_field() -> None:
    mail = b"Subject: Hello\r\nno field\r\nBcc: dave@example.org\r\n"
    fields, rest = split_header(mail)
    assert [field.name for field in fields] == ["subject"]
    assert rest == b"\r\nno field\r\nBcc: dave@example.org\r\n"


@pytest.mark.parametrize(
    "mail",
    [
        COMPLETE.replace(b"Date:", b"no field\r\nBcc: dave@example.org\r\nDate:"),
        b"From alice Mon Nov 30 12:00:00 2026\r\nBcc: dave@example.org\r\n" + COMPLETE,
        b">From alice Mon Nov 30 12:00:00 2026\r\n" + COMPLETE,
        b" \r\nSubject: Hello\r\nbcc : dave@example.org\r\n\r\nHi.\r\n",
    ],
)
def test_a_mail_whose_header_breaks_off_is_refused_as_a_bcc_may_come_after(mail: bytes) -> None:
    assert "expected header fields up to an empty line" in problem(mail)


def test_nobody_sees_who_is_in_bcc() -> None:
    mail = COMPLETE.replace(
        b"Subject", b"Bcc: dave@example.org,\r\n eve@example.org\r\nResent-BCC: x@y.org\r\nSubject"
    )
    assert sent(message(mail)) == COMPLETE


def test_a_received_line_comes_first() -> None:
    line = received(
        by="mail.example.org", protocol="ESMTPSA", id="7", source="client ([192.0.2.1])"
    )
    mail = sent(message(COMPLETE, received=line))
    assert mail.endswith(COMPLETE)
    assert mail.startswith(
        b"Received: from client ([192.0.2.1])\r\n\tby mail.example.org with ESMTPSA id 7;\r\n\t"
    )


def test_people_and_subject_are_known_by_the_header() -> None:
    mail = (
        b"From: alice@example.org\r\nTo: =?utf-8?q?B=C3=B6b?= <BOB@Example.org>, dave@example.org\r\n"
        b"Cc: Carol\r\n <carol@example.org>\r\nSubject: =?utf-8?b?R3LDvMOfZQ==?=\r\n =?utf-8?q?_an_alle?=\r\n\r\n"
    )
    read_mail = message(mail, "BOB@example.org", CAROL, "eve@example.org")
    assert read_mail.to == (Address("BOB@example.org", "Böb"),)
    assert read_mail.cc == (Address(CAROL, "Carol"),)
    assert read_mail.bcc == (Address("eve@example.org"),)
    assert read_mail.subject == "Grüße an alle"
    assert read_mail.sender == Address(ALICE)


def test_without_an_envelope_the_header_says_who_gets_it() -> None:
    mail = b"From: alice@example.org\r\nTo: bob@example.org, Carol <carol@example.org>\r\nBcc: eve@example.org\r\n\r\n"
    submission = read_raw(mail, RawEnvelope())
    assert [to.address for to in submission.submission.message.everyone] == [
        BOB,
        CAROL,
        "eve@example.org",
    ]
    assert b"eve@" not in sent(submission.submission.message)


def test_a_recipient_gets_it_once() -> None:
    assert len(message(COMPLETE, BOB, BOB, "bob@EXAMPLE.org").everyone) == 1


def test_fields_that_steer_are_taken_out() -> None:
    mail = COMPLETE.replace(
        b"Date:",
        b"X-Mailasync-Tag: orders, eu\r\nx-mailasync-tag: eu\r\nX-MAILASYNC-Idempotency-Key: order 42\r\n"
        b"X-Mailasync-Scheduled-At:\r\n 2027-01-31T12:00:00Z\r\nDate:",
    )
    submission = read(mail)
    assert submission.idempotency_key == "order 42"
    assert submission.submission.message.tags == ("orders", "eu")
    assert submission.submission.options.scheduled_at == 1_801_396_800_000
    assert sent(submission.submission.message) == COMPLETE


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (b"X-Mailasync-Tags: a", "did you mean X-Mailasync-Tag"),
        (b"X-Mailasync-Template: receipt", "expected a header field that is known"),
        (b"X-Mailasync-Scheduled-At: tomorrow", "expected a time"),
        (b"X-Mailasync-Scheduled-At: 2001-01-01T00:00:00Z", "in the future"),
        (b"X-Mailasync-Idempotency-Key: a\r\nX-Mailasync-Idempotency-Key: b", "got it 2 times"),
        (b"X-Mailasync-Idempotency-Key: " + b"a" * 257, "1 to 256"),
        (b"X-Mailasync-Tag: " + b",".join(b"%d" % n for n in range(11)), "at most 10 tags"),
    ],
)
def test_fields_that_steer_are_checked(fields: bytes, words: str) -> None:
    assert words in problem(fields + b"\r\n" + COMPLETE)


@pytest.mark.parametrize(
    ("mail", "words"),
    [
        (COMPLETE + b"a\nb\r\n", "bare CR or LF"),
        (COMPLETE + b"\n.\r\n", "bare CR or LF"),
        (COMPLETE + b"\r.\r\n", "bare CR or LF"),
        (COMPLETE.replace(b"\r\n", b"\n\r"), "bare CR or LF"),
        (COMPLETE + b"\0\r\n", "NUL"),
        (COMPLETE + b"x" * 999 + b"\r\n", "at most 998 bytes"),
        (COMPLETE + b"x" * 999, "at most 998 bytes"),
        (b"Received: x\r\n" * (HOPS_MAX + 1) + COMPLETE, "in circles"),
        (b"X: y\r\n" * (HEADER_MAX_BYTES // 6 + 2) + COMPLETE, "expected a header of at most"),
        (COMPLETE.replace(b"Alice <alice@example.org>", b"root"), "#/From: expected an address"),
        (b"From: eve@example.org\r\n" + COMPLETE, "#/From: expected it once"),
    ],
)
def test_a_mail_that_cannot_be_sent_is_refused(mail: bytes, words: str) -> None:
    assert words in problem(mail)


def test_nested_comments_are_not_read() -> None:
    deep = b"\r\n ".join([b"(" * 900] * 3 + [b")" * 900] * 3)
    author = COMPLETE.replace(b"Alice", deep)
    assert "#/From: expected an address" in problem(author)
    read_mail = message(COMPLETE.replace(b"Bob", deep))
    assert (read_mail.to, read_mail.bcc) == ((), (Address(BOB),))


def test_a_long_from_is_refused() -> None:
    author = b",\r\n ".join([b"Alice <alice@example.org>"] * 3000)
    mail = COMPLETE.replace(b"Alice <alice@example.org>", author)
    assert "#/From: expected at most 65536 characters" in problem(mail)


def test_of_a_long_subject_only_the_start_is_decoded() -> None:
    words = b"\r\n ".join([b"=?utf-8?q?=C3=BC?="] * 3000)
    subject = message(COMPLETE.replace(b"Hello", words)).subject
    assert set(subject) == {"ü"}
    assert len(subject) < 200


@pytest.mark.parametrize("length", [0, 1, 76, 998])
def test_lines_of_any_length_are_measured_one_by_one(length: int) -> None:
    lines = (b"x" * length + b"\r\n") * 40
    assert sent(message(COMPLETE + lines)) == COMPLETE + lines
    assert "at most 998 bytes" in problem(COMPLETE + lines + b"x" * 999 + b"\r\n" + lines)


def test_a_header_that_was_taken_is_not_too_long_later() -> None:
    start = b"X: y\r\n" * ((HEADER_MAX_BYTES - len(COMPLETE)) // 6)
    line = received(by="d", protocol="ESMTP", id="7", source="h ([192.0.2.1])" + "x" * 400)
    assert sent(message(start + COMPLETE, received=line)) == line.encode() + start + COMPLETE


def test_an_envelope_that_cannot_be_is_refused() -> None:
    assert "?to: expected an address" in problem(COMPLETE, "bob")
    assert "?from: expected an address" in problem(COMPLETE, BOB, sender="nobody")
    assert "expected 1 to 100 addresses, got 101" in problem(
        COMPLETE, *(f"{n}@example.org" for n in range(101))
    )


def test_the_longest_line_is_taken() -> None:
    mail = COMPLETE + b"x" * 998 + b"\r\n"
    assert sent(message(mail)) == mail


def test_a_mail_may_have_no_sender() -> None:
    read_mail = message(COMPLETE, sender="")
    assert read_mail.sender == Address("")
    assert sent(read_mail) == COMPLETE


@pytest.mark.parametrize(
    ("subject", "says", "needs"),
    [
        ("Grüße".encode(), None, True),
        ("Grüße".encode(), True, True),
        ("Grüße".encode(), False, False),
        ("Grüße".encode("latin-1"), None, False),
        (b"Hello", True, False),
    ],
)
def test_a_header_in_utf_8_needs_smtputf8_unless_the_client_did_without(
    subject: bytes, says: bool | None, needs: bool
) -> None:
    mail = COMPLETE.replace(b"Hello", subject)
    assert message(mail, smtputf8=says).needs_smtputf8 is needs


def test_only_files_with_lf_get_crlf() -> None:
    assert with_crlf(b"a\nb\n") == b"a\r\nb\r\n"
    assert with_crlf(b"a\r\nb\n") == b"a\r\nb\n"
    assert with_crlf(b"a\rb\n") == b"a\rb\n"


def test_only_a_message_id_that_can_be_looked_for_is_noted() -> None:
    assert read(COMPLETE).message_id == "own@example.org"
    for value in (b"<a b@c>", b"a@b", b"<" + b"a" * 300 + b"@b>", "<ä@b>".encode(), b""):
        mail = COMPLETE.replace(b"<own@example.org>", value)
        assert read(mail).message_id == ""
        assert sent(message(mail)) == mail
