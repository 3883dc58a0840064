"""What mail readers and webmails show of a mail: names, headers, dates and both forms of its text."""

import email
import re
from email import policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.message import Message as Parsed

import pytest

from mailroom.model.attempt import Claim
from mailroom.model.message import Address, Attachment, Message
from mailroom.smtp.mime import both_forms, compose
from mailroom.smtp.plaintext import plain_text
from mailroom.submission.message import mail_from

BOB = Address("bob@example.org")
DAY_MS = 86_400_000


def composed(message: Message, *, first_attempt_at_ms: int | None = None) -> bytes:
    claim = Claim(
        id="1",
        attempt=1,
        message_id="1@example.org",
        created_at_ms=DAY_MS,
        message=message,
        pending=(0,),
        first_attempt_at_ms=first_attempt_at_ms,
    )
    return compose(claim, sender=Address("alice@example.org"))


def read(data: bytes) -> EmailMessage:
    return email.message_from_bytes(data, policy=policy.default)


def with_header(name: str, value: str) -> bytes:
    return composed(Message(to=(BOB,), text="Hello", headers=((name, value),)))


def file_of(attachment: Attachment) -> Parsed:
    """The part of a file, as a program reads it that knows no RFC 2231."""
    return email.message_from_bytes(
        composed(Message(to=(BOB,), attachments=(attachment,)))
    ).get_payload(1)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "name", ["Grüße.pdf", "2023年06月30日.zip", "👍.png", "ü" * 120 + ".pdf", 'the "best".pdf']
)
def test_a_file_name_is_written_in_both_ways_that_readers_know(name: str) -> None:
    part = file_of(Attachment(name, "application/pdf", b"x"))
    old = re.search(r'name="([^"]*)"', part["Content-Type"])
    assert old
    assert str(make_header(decode_header(re.sub(r"\r?\n", "", old[1])))) == name
    assert part.get_filename() == name
    assert all(len(line) <= 76 for line in part["Content-Type"].splitlines())


def test_a_plain_file_name_is_written_once() -> None:
    assert (
        file_of(Attachment("report.pdf", "application/pdf", b"x"))["Content-Type"]
        == "application/pdf"
    )


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("text/csv; charset=utf-8", "text/csv; charset=utf-8"),
        (
            "Text/Calendar; METHOD=REQUEST; charset=UTF-8",
            "text/calendar; method=REQUEST; charset=UTF-8",
        ),
        ("application/pdf; name*=utf-8''x.exe", "application/pdf"),
        ("image/png; Name*0*=a; NAME*1=b", "image/png"),
        ('text/plain;format="flowed"', 'text/plain; format="flowed"'),
        ('application/pdf; name="x.pdf"', "application/pdf"),
    ],
)
def test_a_media_type_keeps_its_parameters(given: str, written: str) -> None:
    attachments = [{"filename": "a", "content": "eA==", "content_type": given}]
    (file,) = mail_from({"to": "bob@example.org", "attachments": attachments}).message.attachments
    assert file.content_type == written
    assert re.sub(r"\s+", " ", file_of(file)["Content-Type"]) == written


@pytest.mark.parametrize(
    "value",
    ['{"to": ["a b"],  "category": "' + "x" * 90 + '"}', "y" * 900, " ".join(["tag=1234567"] * 60)],
)
@pytest.mark.parametrize(
    "name", ["X-SMTPAPI", "X-Mailgun-Variables", "Feedback-ID", "X-SES-MESSAGE-TAGS"]
)
def test_a_header_for_machines_goes_as_it_is(name: str, value: str) -> None:
    head = with_header(name, value).partition(b"\r\n\r\n")[0].decode()
    assert f"{name}: {value}" in re.sub(r"\r\n(?= )", "", head)
    assert all(len(line) <= 998 and line.strip() for line in head.split("\r\n"))


def test_a_header_for_people_is_in_encoded_words_where_it_has_to_be() -> None:
    assert read(with_header("X-Note", "Grüße " * 40 + "!"))["X-Note"] == "Grüße " * 40 + "!"


def ids(count: int) -> str:
    return " ".join(f"<{n:03}.{'x' * 60}@mail.example.org>" for n in range(count))


def test_a_long_list_of_references_is_folded_and_complete() -> None:
    given = ids(12)
    asked = mail_from({"to": "bob@example.org", "headers": {"References": given}}).message
    data = composed(asked)
    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert read(data)["References"].split() == given.split()


def test_of_too_many_references_the_first_and_the_newest_are_kept() -> None:
    given = ids(150)
    kept = read(
        composed(mail_from({"to": "bob@example.org", "headers": {"References": given}}).message)
    )["References"].split()
    assert kept[0] == given.split()[0]
    assert 10 < len(kept) < 100
    assert kept[1:] == given.split()[-len(kept) + 1 :]


def test_the_date_is_that_of_the_first_attempt() -> None:
    date = read(composed(Message(to=(BOB,)), first_attempt_at_ms=5 * DAY_MS))["Date"].datetime
    assert int(date.timestamp() * 1000) == 5 * DAY_MS


@pytest.mark.parametrize(
    "text",
    [
        "From the sea",
        "a\nFrom b\nFrom c",
        "From " * 40,
        "From " + "x" * 71,
        "From " + "x" * 300,
        "From =\n",
        "From \nx",
        "From ü",
    ],
)
def test_no_line_of_a_body_begins_with_from(text: str) -> None:
    data = composed(Message(to=(BOB,), text=text, html=f"<p>{text}</p>"))
    assert not re.search(rb"^From ", data, re.MULTILINE)
    assert max(map(len, data.partition(b"\r\n\r\n")[2].split(b"\r\n"))) <= 76
    part = read(data).get_body(("plain",))
    assert part
    assert part.get_content().replace("\r\n", "\n").rstrip("\n") == text.rstrip("\n")


def test_text_made_into_html_is_readable_without_css() -> None:
    html = both_forms(Message(to=(BOB,), text="Dear Bob,\n\n  2 x  coffee\n\ttea\r\nBye <b>"))[1]
    assert html == (
        '<div dir="auto">Dear Bob,<br>\n<br>\n&nbsp;&nbsp;2 x&nbsp; coffee<br>\n'
        + "&nbsp;" * 8
        + "tea<br>\nBye &lt;b&gt;</div>"
    )


@pytest.mark.parametrize("text", ["שלום", "مرحبا"])
def test_text_that_is_read_from_the_right_begins_there(text: str) -> None:
    assert both_forms(Message(to=(BOB,), text=text))[1] == f'<div dir="auto">{text}</div>'


@pytest.mark.parametrize(
    "contents", ["\ufeff<p>Hello</p>", "\u3000<p>Hello</p>\n", "\xa0\ufeff<p>Hello</p>"]
)
def test_a_byte_order_mark_and_odd_spaces_hide_no_html(contents: str) -> None:
    message = mail_from({"to": "bob@example.org", "contents": contents}).message
    assert message.text is None
    assert plain_text(message.html or "") == "Hello"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ('<p><img src="x.png" alt="Our logo"> Hi</p>', "Our logo Hi"),
        (
            '<a href="https://example.org"><img src="x" alt="Shop"></a>',
            "Shop (https://example.org)",
        ),
        ('<a href="https://example.org">https://example.org</a>', "https://example.org"),
        ('<p title="a > b">text</p>', "text"),
        ("<select><option>S<option selected>M</select>", "S\nM"),
        ('<a href="tel:+49123">Call</a>', "Call (tel:+49123)"),
        (
            "<ul><li>a<ul><li>b</ul><li>c</ul><ol><li>x<li>y</ol>",
            "  * a\n      + b\n  * c\n 1. x\n 2. y",
        ),
        ("<table><tr><th>Item<th>Price<tr><td>Coffee<td>3</table>", "Item    Price\nCoffee  3"),
        ("<pre>a  b\n  c</pre>", "a  b\n  c"),
        ("<h1>Title</h1><p>x</p>", "Title\n\nx"),
        ("a<hr>b", "a\n\n" + "-" * 40 + "\n\nb"),
        ("a<blockquote>q<br>r</blockquote>b", "a\n\n  q\n  r\n\nb"),
        ("<dl><dt>a<dd>b</dl>", "a\nb"),
        ('<div style="display:none">preview</div>x', "x"),
        ('<div style="display: none !important; mso-hide:all">preview</div>x', "x"),
        ("<p hidden>no</p>yes", "yes"),
        ('<span style="display:none;display:block">seen</span>x', "seen\nx"),
        ('<div style="display:flex">a</div><div style="display:inline-block">b</div>c', "a\nb\nc"),
        ('<a style="DISPLAY:Block!important">a</a><b style="display:inline-block">b</b>c', "a\nbc"),
        ('<?xml version="1.0" encoding="utf-16"?><p>ü</p>', "ü"),
        ('<meta charset="latin1"><p>ü</p>', "ü"),
        (
            "<table>"
            + "<tr><td>a<td>"
            + "b" * 5000
            + "</tr>" * 1
            + "<tr><td>c" * 20_000
            + "</table>",
            "a\n" + "b" * 5000 + "\nc" * 20_000,
        ),
    ],
)
def test_html_made_into_text_says_what_a_reader_sees(html: str, text: str) -> None:
    assert plain_text(html) == text


def test_tags_in_tags_in_tags_are_read_all_the_same() -> None:
    assert plain_text("<div>" * 1500 + "deep" + "</div>" * 1500 + "<p>end</p>") == "deep\nend"
