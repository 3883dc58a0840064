"""Reports are understood whoever writes them, in whatever language; nothing else is taken for one, however hostile."""

import random
import re
import subprocess
import sys
from functools import partial

import pytest

from mailroom.mailbox.bounces import (
    HEADERS_WANTED,
    WORDS_MAX_CHARACTERS,
    may_be_report,
    read_report,
)
from mailroom.mailbox.parts import MAIL_MAX_BYTES
from mailroom.model.report import Report, ReportedRecipient, ReportKind
from tests.measure import hold_to
from tests.services.processes import PROJECT

FAILED, DELAYED = ReportKind.FAILED, ReportKind.DELAYED
LIMIT, COMPLAINT = ReportKind.LIMIT, ReportKind.COMPLAINT
SAMPLES = {
    file.stem: file.read_bytes()
    for file in sorted((PROJECT / "tests/unit/mailbox/samples").glob("*.eml"))
}
ORDER, BOB = "order-1@example.org", "bob@example.net"

#: Each report on one recipient: its kind, its status, and how the server's words begin.
REPORTS = {
    "amazon_ses": (FAILED, "5.1.1", "550 5.1.1 user unknown"),
    "arf_abuse": (COMPLAINT, "", "abuse"),
    "exchange_mailbox_full_french": (FAILED, "5.2.2", "554 5.2.2 mailbox full; STOREDRV"),
    "exchange_unknown_user": (FAILED, "5.1.1", "550 5.1.1 RESOLVER.ADR.RecipNotFound; not found"),
    "exim": (FAILED, "5.1.1", "550 5.1.1 No such user here"),
    # Anybody can mail us such a report; only Gmail's is safe from that, as Gmail sorts out forged ones.
    "exim_cpanel_limit": (FAILED, "", "Domain example.org has exceeded the max emails per hour"),
    "exim_old": (FAILED, "5.1.1", "SMTP error from remote mail server after RCPT TO:"),
    "exim_old_delayed": (DELAYED, "", "Delay reason: Connection timed out"),
    "gmail_blocked_japanese": (FAILED, "5.7.1", "550 5.7.1 Message rejected as spam"),
    "gmail_delayed_french": (DELAYED, "4.4.1", "The recipient server did not accept"),
    "gmail_limit": (LIMIT, "5.4.5", "You have reached a limit for sending mail."),
    "gmail_limit_german": (LIMIT, "5.0.0", "Message rejected"),
    "gmail_no_domain_german": (FAILED, "5.1.2", "DNS Error: DNS type 'mx' lookup"),
    "gmail_quotes_a_limit_of_a_remote_server": (FAILED, "5.4.5", "550 5.4.5 You have reached"),
    "gmail_unknown_user": (FAILED, "5.1.1", "550-5.1.1 The email account that you tried"),
    "microsoft365_limit": (FAILED, "5.1.90", "550 5.1.90 Your message can't be sent because"),
    "microsoft365_unknown_user_german": (FAILED, "5.1.10", "550 5.1.10 RESOLVER.ADR.Recipient"),
    "opensmtpd": (FAILED, "5.0.0", "550 Invalid recipient"),
    "outlook_unknown_user": (FAILED, "5.5.0", "550 5.5.0 Requested action not taken"),
    "postfix_delayed": (DELAYED, "4.4.1", "connect to mx.example.net[192.0.2.25]:25"),
    "postfix_expired": (FAILED, "4.4.1", "connect to mx.example.net[192.0.2.25]:25"),
    "postfix_german": (FAILED, "5.7.1", "554 5.7.1 Service unavailable"),
    "qmail": (FAILED, "5.1.1", "192.0.2.25 does not like recipient. Remote host said: 550 5.1.1"),
    "qmail_spanish": (FAILED, "5.1.1", "Lo siento, no existe ningún buzón con ese nombre."),
    "yahoo": (FAILED, "5.2.1", "554: 30: Sorry, your message to bob@example.net cannot"),
    "yahoo_report": (FAILED, "5.4.4", "No mx record found for domain=example.net"),
}
#: Reports that have tests of their own.
OTHER_REPORTS = {
    "arf_not_spam",
    "arf_without_recipient",
    "postfix_delivered",
    "postfix_several",
    "postfix_unknown_user",
    "qmail_several",
}
NO_REPORTS = SAMPLES.keys() - REPORTS.keys() - OTHER_REPORTS
AUTO_REPLIES = {name for name in SAMPLES if name.startswith("autoreply_")}

FROM_DAEMON = b"Return-Path: <>\nFrom: MAILER-DAEMON@mail.example.org\n"
REPORT_OF_B = FROM_DAEMON + b"Content-Type: multipart/report; boundary=b\n\n"
STATUS_OF_BOB = b"Final-Recipient: rfc822; bob@example.net\nAction: failed\nStatus: 5.1.1\n\n"
#: Lines that each make flufl.bounce look for addresses by another expression.
OPENINGS = b"""here is your list of failed recipients
the following addresses had
failed addresses follow:
The following addresses did NOT receive a copy of your message:
Intended recipient:
A message that you sent could not be delivered
Your message could not be delivered to
Your message to:
not yet been delivered
This is the deliver program at
This Message was undeliverable due to the following reason:
"""
HOSTILE = {
    "nothing": b"",
    "zeros": FROM_DAEMON + b"\0" * 300_000,
    "noise": random.Random(17).randbytes(300_000),
    "noise of a daemon": FROM_DAEMON + b"\n" + random.Random(17).randbytes(300_000),
    "nested 5,000 deep": FROM_DAEMON
    + b"Content-Type: multipart/report; boundary=b0\n\n"
    + b"".join(
        b"--b%d\nContent-Type: multipart/mixed; boundary=b%d\n\n" % (level, level + 1)
        for level in range(5_000)
    ),
    "one boundary 6,000 times": REPORT_OF_B
    + b"--b\nContent-Type: multipart/mixed; boundary=b\n\n" * 6_000,
    "100,000 parts": REPORT_OF_B + b"--b\n\nx\n" * 100_000,
    "mails in mails": REPORT_OF_B + b"--b\n" + b"Content-Type: message/rfc822\n\n" * 5_000,
    "100,000 fields": FROM_DAEMON + b"a:\n" * 100_000 + b"\n",
    "100,000 folds": FROM_DAEMON + b"X:" + b"\n a" * 100_000 + b"\n\n",
    "parameters": FROM_DAEMON + b"Content-Type: multipart/report; " + b";boundary " * 20_000,
    "blank lines": FROM_DAEMON + b"\n" * 300_000,
    "spaces": REPORT_OF_B + b"\n--b" + b" " * 300_000,
    "long lines": FROM_DAEMON + b"\n" + OPENINGS + b"a" * 300_000,
    "many long lines": FROM_DAEMON + b"\n" + OPENINGS + (b"a" * 199 + b"\n") * 1_000,
    "commas": FROM_DAEMON + b"\n" + (b"," * 199 + b"\n") * 1_000,
    "brackets": REPORT_OF_B + b"--b\n\n" + OPENINGS + (b"<" * 199 + b"\n") * 1_000 + b"--b\n\nx",
    "comments": FROM_DAEMON + b"X-Failed-Recipients: " + b"(" * 100_000 + b"\n\n",
    "slow codec": FROM_DAEMON
    + b"Content-Type: text/plain; charset=punycode\n\n"
    + b"a-"
    + b"9" * 200_000,
    "no such charset": FROM_DAEMON + b"Content-Type: text/plain; charset=gb99999\n\n\xff\xfe",
    "broken base64": FROM_DAEMON + b"Content-Transfer-Encoding: base64\n\n" + b"=A=\n" * 50_000,
    "broken quoted-printable": FROM_DAEMON
    + b"Content-Transfer-Encoding: quoted-printable\n\n"
    + b"=\n=Z" * 50_000,
    "Message-IDs": FROM_DAEMON + b"X-Failed-Recipients: a@b.c\n\n" + b"message-id: <" * 20_000,
    "no address": REPORT_OF_B
    + b"--b\nContent-Type: message/delivery-status\n\nAction: failed\nFinal-Recipient: rfc822;\xff@\n",
}


def only(report: Report | None) -> ReportedRecipient:
    assert report
    (recipient,) = report.recipients
    return recipient


def wanted_fields(raw: bytes) -> bytes:
    """Return the fields of a mail that the reader fetches first."""
    header = raw.partition(b"\n\n")[0]
    fields = re.split(rb"\n(?![ \t])", header)
    wanted = {name.lower().encode() for name in HEADERS_WANTED}
    return b"\r\n".join(field for field in fields if field.partition(b":")[0].lower() in wanted)


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_tells_who_why_and_about_which_mail(name: str) -> None:
    kind, status, words = REPORTS[name]
    report = read_report(SAMPLES[name])
    assert report and ORDER in report.message_ids[:2]
    recipient = only(report)
    assert (recipient.kind, recipient.status) == (kind, status)
    assert BOB in recipient.addresses
    assert recipient.words.startswith(words)


@pytest.mark.parametrize("name", SAMPLES)
def test_line_ends_of_the_wire_change_nothing(name: str) -> None:
    raw = SAMPLES[name]
    assert read_report(raw.replace(b"\n", b"\r\n")) == read_report(raw)


def test_each_recipient_of_a_report_has_an_outcome_of_its_own() -> None:
    report = read_report(SAMPLES["postfix_several"])
    assert report
    assert [(one.kind, one.addresses[0], one.status) for one in report.recipients] == [
        (FAILED, BOB, "5.1.1"),
        (FAILED, "carol@example.com", "5.2.2"),
        (DELAYED, "dave@example.edu", "4.4.1"),
    ]
    text_only = read_report(SAMPLES["qmail_several"])
    assert text_only
    assert [(one.addresses, one.status) for one in text_only.recipients] == [
        ((BOB,), "5.1.1"),
        (("carol@example.com",), "5.1.2"),
    ]


def test_an_address_is_named_as_it_came_and_as_it_was_meant() -> None:
    recipient = only(read_report(SAMPLES["postfix_unknown_user"]))
    assert recipient.addresses == ("bob+2Bnews@example.net", "bob+news@example.net")


def test_a_delivery_is_no_bounce() -> None:
    assert read_report(SAMPLES["postfix_delivered"]) is None


def test_a_complaint_may_hide_who_complains() -> None:
    recipient = only(read_report(SAMPLES["arf_without_recipient"]))
    assert (recipient.kind, recipient.addresses) == (COMPLAINT, ())
    assert read_report(SAMPLES["arf_not_spam"]) is None


def test_message_ids_of_the_returned_mail_come_first() -> None:
    raw = SAMPLES["gmail_unknown_user"].replace(
        b"References: <order-1@example.org>\nIn-Reply-To: <order-1@example.org>",
        b"References: <first@example.org> <second@example.org>\nIn-Reply-To: <second@example.org>",
    )
    report = read_report(raw)
    assert report
    assert report.message_ids == (ORDER,)
    # The mail that is returned is another one than those that it answers.
    other = raw.replace(ORDER.encode(), b"reply@example.org")
    foreign = read_report(other)
    assert foreign and foreign.message_ids == ("reply@example.org",)


def test_a_message_id_that_outlook_replaced_is_known() -> None:
    report = read_report(SAMPLES["outlook_unknown_user"])
    assert report and report.message_ids[1] == ORDER


def test_without_the_returned_mail_the_threading_tells() -> None:
    raw = SAMPLES["gmail_unknown_user"].partition(b"Content-Type: message/rfc822")[0]
    report = read_report(raw)
    assert report and report.message_ids == (ORDER,)
    assert only(report).status == "5.1.1"


def test_only_gmail_itself_tells_of_gmails_limit() -> None:
    raw = SAMPLES["gmail_limit_german"].replace(b"@googlemail.com>", b"@mail.example.com>")
    assert only(read_report(raw)).kind is FAILED


@pytest.mark.parametrize("name", sorted(NO_REPORTS))
def test_what_people_and_their_programs_send_is_no_report(name: str) -> None:
    assert read_report(SAMPLES[name]) is None


@pytest.mark.parametrize("name", sorted({*REPORTS, *OTHER_REPORTS}))
def test_a_report_is_seen_by_its_first_fields(name: str) -> None:
    header = wanted_fields(SAMPLES[name])
    assert may_be_report(header)
    assert may_be_report(header + b"\r\n\r\n")
    assert may_be_report(b"\r\n" + header)


def test_hardly_any_other_mail_is_fetched() -> None:
    fetched = {name for name in NO_REPORTS if may_be_report(wanted_fields(SAMPLES[name]))}
    assert fetched == {"autoreply_vacation_without_marks", "daemon_says_nothing_known"}
    assert len(AUTO_REPLIES) >= 10
    assert not may_be_report(b"") and not may_be_report(b"\0" * 1_000)


def test_words_are_one_short_line() -> None:
    said = b"Diagnostic-Code: smtp; 550 " + b"\x1b[31m\0no\xff " * 500 + b"\n"
    raw = REPORT_OF_B + b"--b\nContent-Type: message/delivery-status\n\n" + said + STATUS_OF_BOB
    recipient = only(read_report(raw))
    assert len(recipient.words) <= WORDS_MAX_CHARACTERS
    assert recipient.words.isprintable() and recipient.words.startswith("550 [31m no")


def test_a_huge_report_is_read_as_far_as_its_beginning() -> None:
    part = b"--b\nContent-Type: message/delivery-status\n\n"
    huge = REPORT_OF_B + part + STATUS_OF_BOB + b"--b\n\n" + b"x" * 50_000_000
    assert only(read_report(huge)).addresses == (BOB,)
    hold_to(20, partial(read_report, huge))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_mail_is_no_report_and_costs_little(name: str) -> None:
    raw = HOSTILE[name]
    report = read_report(raw)
    assert report is None or not report.message_ids
    hold_to(100, partial(read_report, raw))
    hold_to(20, partial(may_be_report, raw))


# That a remote server spoke is the last that a report says of it; it is far within what is fetched.
@pytest.mark.parametrize(
    "name", sorted(SAMPLES.keys() - {"gmail_quotes_a_limit_of_a_remote_server"})
)
def test_a_mail_that_was_cut_says_no_more_than_a_whole_one(name: str) -> None:
    raw = SAMPLES[name]
    whole = read_report(raw)
    outcomes = {one.kind for one in whole.recipients} if whole else set()
    for size in range(0, len(raw), 61):
        report = read_report(raw[:size])
        assert not report or {one.kind for one in report.recipients} <= outcomes | {FAILED}
        assert not report or whole


def test_damaged_reports_end_nothing_and_can_be_stored() -> None:
    chance = random.Random(17)
    for _ in range(3_000):
        report = read_report(damaged(chance))
        if report is None:
            continue
        assert report.recipients
        texts = [*report.message_ids, *(one.words for one in report.recipients)]
        texts += [address for one in report.recipients for address in one.addresses]
        assert all("\0" not in text and text.encode() for text in texts if text)


def damaged(chance: random.Random) -> bytes:
    """Return a sample with bytes lost, added and taken from another one."""
    raw = bytearray(chance.choice([*SAMPLES.values()]))
    other = chance.choice([*SAMPLES.values()])
    for _ in range(chance.randint(1, 9)):
        start = chance.randrange(len(raw))
        begin = chance.randrange(len(other))
        pieces = [b"\0\0", b"\xff", b"\n\n", b"<", b"--", b"\r", other[begin : begin + 200], b""]
        raw[start : start + chance.randint(0, 60)] = chance.choice(pieces)
    return bytes(raw)


def test_ten_thousand_reports_take_less_than_a_minute() -> None:
    reports = [SAMPLES[name] for name in REPORTS]

    def read_all() -> None:
        for raw in reports:
            read_report(raw)

    # 6 ms each would be 1.2 times the reference; they take a fiftieth of that.
    hold_to(0.1 * len(reports), read_all)


def test_a_report_with_a_large_mail_costs_no_more_than_ten() -> None:
    returned = b"Message-ID: <order-1@example.org>\n\n" + b"QUJD" * 19 + b"\n"
    large = SAMPLES["postfix_german"].replace(b"\nHello Bob,", returned * 4_000)
    assert len(large) > MAIL_MAX_BYTES
    assert only(read_report(large)).status == "5.7.1"
    hold_to(1.2, partial(read_report, large))


def test_the_fallback_is_loaded_only_where_it_is_needed() -> None:
    code = (
        "import sys; from mailroom.mailbox.bounces import read_report; "
        "from tests.unit.mailbox.test_bounces import SAMPLES; "
        "read_report(SAMPLES['postfix_several']); assert 'flufl.bounce' not in sys.modules; "
        "assert read_report(SAMPLES['qmail']); assert 'flufl.bounce' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, timeout=60)


def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    for raw in [*SAMPLES.values(), *HOSTILE.values()]:
        read_report(raw)
    assert caplog.records == []
