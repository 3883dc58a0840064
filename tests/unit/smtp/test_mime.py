"""What a mail reader reads is what was asked for, to the last character; what goes over the wire is plain."""

import email
import random
import re
from collections.abc import Callable
from dataclasses import replace
from email import policy
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses
from functools import partial
from typing import Any

import pytest

from mailroom.model.attempt import Claim, JobFacts
from mailroom.model.message import Address, Attachment, Message
from mailroom.smtp.mime import both_forms, compose
from mailroom.smtp.plaintext import plain_text
from mailroom.templating.job import filled_in
from tests.measure import hold_to, min_ratio, own_clock

ALICE = Address("alice@example.org")
CREATED_AT_MS = 1_790_000_000_123
#: What has broken a mail somewhere, sometime.
PIECES = (
    "hello",
    "Grüße",
    "日本語",
    "👩‍👩‍👧",
    "e\u0301",
    "\u2028",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\ufeff",
    "\u202e",
    ".",
    "..",
    ".\n",
    "\n.\n",
    "\n..\n",
    "\nFrom the sea",
    "From ",
    ">From ",
    "=?utf-8?q?no?=",
    "=?utf-8?b?4pyT?=",
    "=3D",
    "=",
    "=\n",
    " ",
    "  ",
    "   \n",
    "\t",
    "\t\n",
    "\n",
    "\r\n",
    "\r",
    "\n\n\n",
    "x" * 78,
    "y" * 998,
    "ü" * 700,
    "<b>",
    "</div>",
    "&amp;",
    "&",
    '"',
    "\\",
    ",",
    ";",
    "--",
    "\n--=_",
    "\nSubject: no",
    "a" * 5000,
    "Content-Type: text/html",
    "%s",
    "{}",
    "$x",
    "\x7f",
    "\x1b[0m",
    "/etc/passwd",
    "http://example.org/?a=b&c",
)
NAMES = (
    "",
    "Bob",
    "Doe, Bob",
    'Bob "the" Builder',
    "Bob \\ Bob",
    "Grüße, Müller",
    "日本" * 40,
    "=?utf-8?q?x?=",
    "a@b",
    "A  B",
    "(Bob)",
    "Bob;",
    "x" * 900,
    "long " * 30 + "name",
    "<Bob>",
    "O'Neil",
    "Bob:",
    "👩‍👩‍👧",
)


def claim(
    message: Message, *, id: str = "0198f6a0-0000-7000-8000-000000000001", attempt: int = 1
) -> Claim:
    return Claim(
        id=id,
        attempt=attempt,
        message_id=f"{id}@example.org",
        created_at_ms=CREATED_AT_MS,
        message=message,
        pending=tuple(range(len(message.to))),
    )


def with_file(
    file: Attachment,
    *,
    message: Message = Message(to=(ALICE,), subject="Done", text="Here it is."),
    status: str = "succeeded",
    message_id: str = "1@example.org",
) -> Claim:
    job = JobFacts(
        id="1",
        name="thumbnail",
        status=status,
        error="" if status == "succeeded" else "no such image",
        file=file,
    )
    return Claim(
        id="1",
        attempt=1,
        message_id=message_id,
        created_at_ms=CREATED_AT_MS,
        message=message,
        pending=(0,),
        job=job,
    )


def attached(data: bytes) -> EmailMessage:
    (part,) = read(data).iter_attachments()
    assert isinstance(part, EmailMessage)
    return part


def read(data: bytes) -> EmailMessage:
    return email.message_from_bytes(data, policy=policy.default)


def body(mail: EmailMessage, kind: str) -> str:
    part = mail.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def names(data: bytes) -> list[str]:
    """Return the display names in To, read by the part of the library that joins encoded words (RFC 2047, 6.2)."""
    unfolded = re.sub(r"\r?\n", "", email.message_from_bytes(data)["To"])
    return [str(make_header(decode_header(name))) for name, _ in getaddresses([unfolded])]


def lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def generated(seed: int) -> Message:
    """A message of random pieces; the same for the same seed."""
    dice = random.Random(seed)
    word = [piece for piece in PIECES if not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", piece)]
    text = "".join(dice.choices(PIECES, k=dice.choice((0, 1, 3, 10, 40))))
    to = tuple(
        Address(f"bob{n}@example.org", dice.choice(NAMES))
        for n in range(dice.choice((1, 1, 2, 5, 100)))
    )
    subject = "".join(dice.choices(word, k=dice.choice((0, 1, 2, 5))))[:998]
    return (
        Message(to=to, subject=subject, html=f"<p>{text}</p>")
        if dice.random() < 0.3
        else Message(to=to, subject=subject, text=text)
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_reader_gets_back_what_was_asked_for(seed: int) -> None:
    for message in map(generated, range(seed * 40, seed * 40 + 40)):
        data = compose(claim(message), sender=ALICE)
        mail = read(data)
        assert mail["Subject"] == message.subject
        assert [to.addr_spec for to in mail["To"].addresses] == [to.address for to in message.to]
        assert names(data) == [to.name for to in message.to]
        assert [(who.addr_spec, who.display_name) for who in mail["From"].addresses] == [
            (ALICE.address, "")
        ]
        text, html = both_forms(message)
        assert body(mail, "plain") == lines(text)
        assert body(mail, "html") == lines(html)
        assert [part for part in mail.walk() if part.defects] == []
        assert [part.get_content_type() for part in mail.walk()] == [
            "multipart/alternative",
            "text/plain",
            "text/html",
        ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_the_wire_carries_ascii_in_lines_that_every_server_takes(seed: int) -> None:
    for message in map(generated, range(seed * 40, seed * 40 + 40)):
        data = compose(claim(message), sender=ALICE)
        assert data.isascii() and b"\0" not in data
        assert data.count(b"\r") == data.count(b"\n") == data.count(b"\r\n")
        assert max(map(len, data.split(b"\r\n"))) <= 998
        header = data.partition(b"\r\n\r\n")[0]
        # RFC 2047, 2
        assert all(len(word) <= 75 for word in re.findall(rb"=\?utf-8\?.*?\?=", header))


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "News\nBcc: eve@example.org"},
        {"subject": "News\rBcc: eve@example.org"},
        {"subject": "News " * 20 + "\r\nBcc: eve@example.org"},
        {"to": (Address("bob@example.org", "Bob\nBcc: eve@example.org"),)},
        {"headers": (("X-Kind", "a\nBcc: eve@example.org"),)},
        {"headers": (("References", "<a@b>\nBcc: eve@example.org"),)},
    ],
)
def test_no_value_begins_a_header_of_its_own(change: dict[str, Any]) -> None:
    # Whoever reads requests has refused it; this is the last one who could.
    message = replace(
        Message(to=(Address("bob@example.org"),), subject="News", text="Hi"), **change
    )
    with pytest.raises((ValueError, HeaderParseError), match=r"embedded header|printable ASCII"):
        compose(claim(message), sender=ALICE)


@pytest.mark.parametrize("seed", range(4))
def test_each_attempt_writes_the_same_bytes(seed: int) -> None:
    message = generated(seed)
    first = compose(claim(message), sender=ALICE)
    assert compose(claim(message, attempt=2), sender=ALICE) == first


@pytest.mark.parametrize("seed", range(4))
def test_there_is_one_of_each_header_and_none_that_nobody_asked_for(seed: int) -> None:
    mail = read(compose(claim(generated(seed)), sender=ALICE))
    assert sorted(mail.keys()) == [
        "Content-Type",
        "Date",
        "From",
        "MIME-Version",
        "Message-ID",
        "Subject",
        "To",
    ]


def test_the_date_is_when_it_was_accepted() -> None:
    date = read(compose(claim(Message(to=(ALICE,))), sender=ALICE))["Date"].datetime
    assert int(date.timestamp()) == CREATED_AT_MS // 1000


def test_a_long_message_id_stays_on_its_line() -> None:
    message_id = "x" * 64 + "@" + ".".join(["y" * 60] * 4)
    long = Claim(
        id="1",
        attempt=1,
        message_id=message_id,
        created_at_ms=0,
        message=Message(to=(ALICE,)),
        pending=(0,),
    )
    assert f"\r\nMessage-ID: <{message_id}>\r\n".encode() in compose(long, sender=ALICE)


@pytest.mark.parametrize(
    "id", ["1\r\nBcc: eve@example.org", "ü" * 100, "9" * 200, 'x"; boundary="y', "a b", "=_", "\0"]
)
def test_the_id_that_a_client_chose_reaches_no_header(id: str) -> None:
    named = Claim(
        id=id,
        attempt=1,
        message_id="1@example.org",
        created_at_ms=0,
        message=Message(to=(ALICE,), text="hello"),
        pending=(0,),
    )
    mail = read(compose(named, sender=ALICE))
    assert "Bcc" not in mail
    assert body(mail, "plain") == "hello"
    assert len(mail.get_boundary() or "") <= 70  # RFC 2046, 5.1.1


@pytest.mark.parametrize(
    "message_id", ["1@example.org>\r\nBcc: eve@example.org", "a b@example.org", "ü@example.org"]
)
def test_a_message_id_that_is_none_is_refused(message_id: str) -> None:
    odd = Claim(
        id="1",
        attempt=1,
        message_id=message_id,
        created_at_ms=0,
        message=Message(to=(ALICE,)),
        pending=(0,),
    )
    with pytest.raises(ValueError, match="printable ASCII"):
        compose(odd, sender=ALICE)


def test_a_text_that_looks_like_the_boundary_does_not_end_a_part() -> None:
    boundary = read(compose(claim(Message(to=(ALICE,), text="")), sender=ALICE)).get_boundary()
    for text in (f"--{boundary}--", f"\n--{boundary}\n", f"ü\n--{boundary}--\n" * 3):
        mail = read(compose(claim(Message(to=(ALICE,), text=text)), sender=ALICE))
        assert body(mail, "plain") == text
        assert mail.get_boundary() == boundary


def test_ascii_stays_readable_on_the_wire_and_other_scripts_stay_short() -> None:
    assert b"\r\nHello, it costs =3D 5\r\n" in compose(
        claim(Message(to=(ALICE,), text="Hello, it costs = 5")), sender=ALICE
    )
    japanese = compose(claim(Message(to=(ALICE,), text="日本語" * 1000)), sender=ALICE)
    assert len(japanese) < 2 * 1.5 * len("日本語".encode()) * 1000


def test_text_is_escaped_into_html_and_keeps_its_lines() -> None:
    assert (
        both_forms(Message(to=(ALICE,), text='<script>alert("&")</script>\n  two'))[1]
        == '<div dir="auto">&lt;script&gt;alert("&amp;")&lt;/script&gt;<br>\n&nbsp;&nbsp;two</div>'
    )


def test_text_and_html_that_were_both_given_are_both_kept() -> None:
    assert both_forms(Message(to=(ALICE,), text="a", html="<p>b</p>")) == ("a", "<p>b</p>")


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>Hello <b>Bob</b></p><p>Bye</p>", "Hello Bob\n\nBye"),
        (
            '<a href="https://example.org/?a=1&amp;b=2">Here</a>',
            "Here (https://example.org/?a=1&b=2)",
        ),
        ("<A HREF='https://example.org'>Here</A>", "Here (https://example.org)"),
        ("<a href=https://example.org>Here</a>", "Here (https://example.org)"),
        ('<a href="javascript:x()">Here</a>', "Here"),
        ("<ul><li>a</li><li>b</li></ul>", "  * a\n  * b"),
        ("<p>a<br>b<br/>c</p>", "a\nb\nc"),
        ("<style>p {color: red}</style><script>if (a<b) x('</p>')</script><p>seen</p>", "seen"),
        ("<html><head><title>x</title><body><p>Hello", "Hello"),
        ("<!DOCTYPE html><!-- no <p>no</p> --><p>yes</p><!--[if mso]>no<![endif]-->", "yes"),
        ("<![if !mso]>yes<![endif]>", "yes"),
        ("<![ yes", ""),
        ("a &lt; b &amp;&amp; c &gt; d &nbsp; &uuml; &#252; &#xfc;", "a < b && c > d ü ü ü"),
        ("<p>&#" + "9" * 5000 + ";x</p>", "\ufffdx"),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("<p>  spaces \n\t and lines </p>", "spaces and lines"),
        ("<p>a</p>" + "<div></div>" * 50 + "<p>b</p>", "a\n\nb"),
        ("<a>b", "b"),
        ("</a>b</p>", "b"),
        ("", ""),
        ("<>", "<>"),
        ("<", "<"),
    ],
)
def test_html_loses_its_tags_where_only_text_is_read(html: str, text: str) -> None:
    assert plain_text(html) == text


@pytest.mark.parametrize(
    "piece",
    [
        "<",
        "<!",
        "<!--",
        "<a",
        "<a ",
        "<a x='",
        "</",
        "<?",
        "<![",
        "&",
        "&#",
        "<script>",
        "<a href=",
        "<p> ",
        "-->",
        '<a "',
    ],
)
def test_no_html_takes_long_to_read(piece: str) -> None:
    hold_to(600, partial(plain_text, piece * (1_000_000 // len(piece))))


def test_a_mail_is_composed_faster_than_the_standard_librarys_message_writes_the_same() -> None:
    mail = claim(
        Message(to=(Address("bob@example.org"),), subject="Your login code", text="It is 123456.\n")
    )
    text, html = both_forms(mail.message)

    def compose_stock() -> None:
        stock = EmailMessage(policy=policy.SMTP)
        stock["From"], stock["To"], stock["Subject"] = (
            ALICE.address,
            "bob@example.org",
            mail.message.subject,
        )
        stock.set_content(text)
        stock.add_alternative(html, subtype="html")
        stock.as_bytes()

    def compose_ours() -> None:
        compose(mail, sender=ALICE)

    assert (
        min_ratio(times(20, compose_ours), times(20, compose_stock), enough=0.2, clock=own_clock)
        <= 0.2
    )


def times(count: int, act: Callable[[], object]) -> Callable[[], object]:
    return lambda: [act() for _ in range(count)]


PDF = Attachment("report.pdf", "application/pdf", b"%PDF-1.7\r\n\0\xff")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a",
        b"a" * 57,
        b"a" * 58,
        bytes(range(256)) * 300,
        b"\r\n.\r\n",
        b"\n--=_file_x--\n",
        b"From x\n",
    ],
)
def test_a_file_arrives_as_it_was_made(content: bytes) -> None:
    data = compose(with_file(Attachment("a.bin", "image/png", content)), sender=ALICE)
    assert attached(data).get_payload(decode=True) == content
    assert attached(data).get_content_type() == "image/png"
    assert [part.get_content_type() for part in read(data).walk()] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "image/png",
    ]
    assert [part.defects for part in read(data).walk() if part.defects] == []
    assert body(read(data), "plain") == "Here it is."
    assert body(read(data), "html") == both_forms(Message(to=(ALICE,), text="Here it is."))[1]


def test_a_file_goes_over_the_wire_in_short_lines_of_ascii() -> None:
    data = compose(
        with_file(Attachment("ü" * 300, "image/png", bytes(range(256)) * 300)), sender=ALICE
    )
    assert data.isascii() and b"\0" not in data
    assert data.count(b"\r") == data.count(b"\n") == data.count(b"\r\n")
    assert max(map(len, data.split(b"\r\n"))) <= 998
    assert {
        len(line)
        for line in data.partition(b"base64")[2].partition(b"\r\n\r\n")[2].split(b"\r\n")[:-3]
    } == {76}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("report.pdf", "report.pdf"),
        ("my  report (1).pdf", "my  report (1).pdf"),
        ("Grüße.pdf", "Grüße.pdf"),
        ("日本語.pdf", "日本語.pdf"),
        ("👩‍👩‍👧.png", "👩‍👩‍👧.png"),
        ('the "best".pdf', 'the "best".pdf'),
        ("a;b=c, d'e%20f.txt", "a;b=c, d'e%20f.txt"),
        ("=?utf-8?q?x?=.txt", "=?utf-8?q?x?=.txt"),
        ("utf-8''x.txt", "utf-8''x.txt"),
        ("../../etc/passwd", "passwd"),
        ("/tmp/x/a.png", "a.png"),
        ("C:\\Users\\bob\\a.png", "a.png"),
        ("..\\..\\a.png", "a.png"),
        ("..", "file"),
        (".", "file"),
        ("", "file"),
        (" ", "file"),
        ("a/", "file"),
        ("\r\n", "file"),
        (".bashrc", ".bashrc"),
        ("a.txt\r\nBcc: eve@example.org", "a.txtBcc: eve@example.org"),
        ("a\0b.txt", "ab.txt"),
        ("a\ud800b.txt", "ab.txt"),
        ("\u202egpj.exe", "gpj.exe"),
        ("a\u2028b\x85.txt", "ab.txt"),
        ("x" * 300, "x" * 255),
        ("x" * 300 + ".pdf", "x" * 251 + ".pdf"),
        ("ü" * 300 + ".pdf", "ü" * 125 + ".pdf"),
        ("a." + "x" * 300, "a." + "x" * 253),
        ('"' * 300, '"' * 255),
    ],
)
def test_a_file_has_its_name_and_no_path(name: str, shown: str) -> None:
    data = compose(with_file(Attachment(name, "image/png", b"x")), sender=ALICE)
    # get_filename() takes quotes away.
    assert attached(data)["Content-Disposition"].params["filename"] == shown
    assert attached(data).get_content_disposition() == "attachment"
    assert attached(data).keys() == [
        "Content-Type",
        "MIME-Version",
        "Content-Transfer-Encoding",
        "Content-Disposition",
    ]
    assert attached(data).get_payload(decode=True) == b"x"
    assert "Bcc" not in read(data)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("image/png", "image/png"),
        ("image/svg+xml", "image/svg+xml"),
        ("application/vnd.ms-excel", "application/vnd.ms-excel"),
        ("", "application/octet-stream"),
        ("png", "application/octet-stream"),
        ("image/", "application/octet-stream"),
        ("image/png\r\nBcc: eve@example.org", "application/octet-stream"),
        ("image/png\n", "application/octet-stream"),
        ('text/html; name="x"', "text/html"),
        ("image/ü", "application/octet-stream"),
        ("a/b/c", "application/octet-stream"),
        ("message/rfc822", "application/octet-stream"),
        ("Message/RFC822", "application/octet-stream"),
        ("multipart/mixed", "application/octet-stream"),
        ("x" * 200 + "/y", "application/octet-stream"),
    ],
)
def test_a_file_is_of_a_plain_type_or_of_none(given: str, written: str) -> None:
    data = compose(with_file(Attachment("a", given, b"x")), sender=ALICE)
    assert attached(data)["Content-Type"] == written
    assert attached(data).keys() == [
        "Content-Type",
        "MIME-Version",
        "Content-Transfer-Encoding",
        "Content-Disposition",
    ]


def test_a_mail_with_a_file_has_the_headers_of_any_other_and_the_same_bytes_in_each_attempt() -> (
    None
):
    data = compose(with_file(PDF), sender=ALICE)
    assert sorted(read(data).keys()) == [
        "Content-Type",
        "Date",
        "From",
        "MIME-Version",
        "Message-ID",
        "Subject",
        "To",
    ]
    assert compose(with_file(PDF), sender=ALICE) == data


def test_no_text_ends_a_part_of_a_mail_with_a_file() -> None:
    mail = read(compose(with_file(PDF), sender=ALICE))
    alternative = mail.get_payload(0)
    assert isinstance(alternative, EmailMessage)
    outer, inner = str(mail.get_boundary()), str(alternative.get_boundary())
    assert not outer.startswith(inner) and not inner.startswith(outer)
    text = f"--{outer}--\n--{inner}--\n--{outer}\n--{inner}\n"
    nasty = with_file(
        Attachment("a", "text/plain", text.encode()), message=Message(to=(ALICE,), text=text)
    )
    data = compose(nasty, sender=ALICE)
    assert body(read(data), "plain") == text
    assert attached(data).get_payload(decode=True) == text.encode()


@pytest.mark.parametrize("status", ["failed", "timed_out"])
def test_the_file_of_a_job_that_did_not_succeed_stays_here(status: str) -> None:
    data = compose(with_file(PDF, status=status), sender=ALICE)
    assert read(data).get_content_type() == "multipart/alternative"
    assert list(read(data).iter_attachments()) == []


def test_a_template_is_filled_in_and_a_message_that_is_none_is_not() -> None:
    braces = Message(to=(ALICE,), subject="{{ job.name }}", text="{{ job.id }}")
    told = read(
        compose(filled_in(with_file(PDF, message=replace(braces, template=True))), sender=ALICE)
    )
    assert (told["Subject"], body(told, "plain")) == ("thumbnail", "1")
    plain = read(compose(with_file(PDF, message=braces), sender=ALICE))
    assert (plain["Subject"], body(plain, "plain")) == ("{{ job.name }}", "{{ job.id }}")


def test_a_large_file_is_composed_in_a_fraction_of_a_second() -> None:
    large = with_file(Attachment("a.bin", "image/png", bytes(10_000_000)))
    hold_to(100, partial(compose, large, sender=ALICE))  # It takes a tenth of that.
