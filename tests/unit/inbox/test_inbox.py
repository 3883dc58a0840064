"""The disposable inbox: real SMTP into a real server, the pages, and the API that tests wait on."""

import base64
import ctypes
import json
import logging
import smtplib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from email.message import EmailMessage
from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mailroom.inbox import AppHooks, Inbox, InboxStorage, PortTaken, api, create_blueprint
from mailroom.inbox.pages import IMAGES_MAX_CHARS, local_time, size_in_words, with_images
from mailroom.inbox.parser import Image, read_body, read_head
from mailroom.inbox.smtp import MAIL_MAX_BYTES
from mailroom.inbox.storage import WAITERS_MAX
from mailroom.process.supervisor import troubles
from tests.measure import hold_to, min_ratio
from tests.services import wait_until

ALICE, BOB = "alice@example.org", "bob@example.org"
HINT = """curl -d '{"to": "bob@example.org"}' http://127.0.0.1:5000/"""
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def storage() -> InboxStorage:
    return InboxStorage()


@pytest.fixture
def inbox(storage: InboxStorage) -> Iterator[Inbox]:
    with Inbox(port=0, storage=storage) as running:
        yield running


@pytest.fixture
def client(storage: InboxStorage) -> FlaskClient:
    app = Flask(__name__)
    app.register_blueprint(create_blueprint(storage, hooks=AppHooks(hint=HINT)))
    app.testing = True  # An exception in a view reaches the test and does not become a 500.
    return app.test_client()


class Line:
    """A connection that says exactly what it is told to."""

    def __init__(self, inbox: Inbox) -> None:
        self._socket = socket.create_connection(("127.0.0.1", inbox.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")
        self.reply()

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def reply(self) -> str:
        """Read one reply, of one line or many."""
        lines = [self._replies.readline().decode()]
        while lines[-1][3:4] == "-":
            lines.append(self._replies.readline().decode())
        return "".join(lines)

    def say(self, data: bytes) -> str:
        self.write(data)
        return self.reply()

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


@pytest.fixture
def line(inbox: Inbox) -> Iterator[Line]:
    opened = Line(inbox)
    opened.say(b"EHLO client.example.org\r\n")
    yield opened
    opened.close()


def mail(
    subject: str = "Hello", text: str = "It works.\n", html: str | None = None
) -> EmailMessage:
    message = EmailMessage()
    message["From"] = f"Alice <{ALICE}>"
    message["To"] = BOB
    message["Subject"] = subject
    message["Message-ID"] = "<1@example.org>"
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message


def send(inbox: Inbox, message: EmailMessage | bytes, *recipients: str) -> None:
    raw = message if isinstance(message, bytes) else bytes(message)
    with smtplib.SMTP("127.0.0.1", inbox.port, timeout=60) as session:
        session.sendmail(ALICE, recipients or (BOB,), raw)


def messages(client: FlaskClient, query: str = "") -> list[dict[str, Any]]:
    response = client.get("/inbox/api/messages" + query)
    assert response.status_code == 200
    return list(response.get_json()["data"])


# Receiving


def test_a_mail_is_kept_as_it_came(inbox: Inbox, storage: InboxStorage) -> None:
    raw = b"Subject: dots\r\n\r\n.one\r\n..two\r\n\r\n...\r\nend without\nCRLF\r\n"
    send(inbox, raw, BOB, "carol@example.org")
    (mail,) = storage.newest()
    assert mail.raw == raw
    assert (mail.sender, mail.recipients) == (ALICE, (BOB, "carol@example.org"))
    assert mail.received_at.utcoffset() == timedelta(0)


def test_every_cut_of_the_payload_gives_the_same_mail(line: Line, storage: InboxStorage) -> None:
    for body in (b"|\r\n|\r\n\r\n|.\r\n|x|\r\n.x|\r|a\r\nb|..|\n.\n").split(b"|"):
        stuffed = (b"\r\n" + body).replace(b"\r\n.", b"\r\n..")[2:]
        ended = not body or body.endswith(b"\r\n")
        payload = stuffed + (b".\r\n" if ended else b"\r\n.\r\n")
        for cut in range(len(payload) + 1):
            line.say(b"MAIL FROM:<alice@example.org>\r\n")
            line.say(b"RCPT TO:<bob@example.org>\r\n")
            assert line.say(b"DATA\r\n").startswith("354")
            line.write(payload[:cut])
            assert line.say(payload[cut:] + b"NOOP\r\n").startswith("250 2.0.0 kept")
            assert line.reply() == "250 OK\r\n"
            kept = storage.newest()[0].raw
            assert kept == (body if ended else body + b"\r\n")


def test_pipelined_commands_are_answered_in_order(line: Line, storage: InboxStorage) -> None:
    assert "PIPELINING" in line.say(b"EHLO again\r\n")
    line.write(
        b"MAIL FROM:<alice@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n"
        b"Subject: one\r\n\r\n.\r\n"
        b"MAIL FROM:<>\r\nRCPT TO:<carol@example.org>\r\nRCPT TO:<x> NOTIFY=NEVER\r\nDATA\r\n"
        b"Subject: two\r\n\r\n.\r\nQUIT\r\n"
    )
    codes = [line.reply()[:3] for _ in range(10)]
    assert codes == ["250", "250", "354", "250", "250", "250", "555", "354", "250", "221"]
    assert [mail.head.subject for mail in storage.newest()] == ["two", "one"]
    assert storage.newest()[0].sender == ""


def test_pipelined_data_without_a_recipient_is_refused(line: Line, storage: InboxStorage) -> None:
    line.write(b"MAIL FROM:<alice@example.org>\r\nDATA\r\nRSET\r\n")
    assert [line.reply()[:3] for _ in range(3)] == ["250", "503", "250"]
    assert not storage.newest()


def test_pipelined_commands_do_not_wait_for_delayed_acknowledgements(line: Line) -> None:
    envelope = [b"MAIL FROM:<alice@example.org>\r\n", b"RCPT TO:<bob@example.org>\r\n", b"DATA\r\n"]

    def pipelined() -> None:
        for _ in range(20):
            line.write(b"".join(envelope))
            assert [line.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
            line.say(b"Subject: fast\r\n\r\n.\r\n")

    def one_by_one() -> None:
        for _ in range(20):
            assert [line.say(command)[:3] for command in envelope] == ["250", "250", "354"]
            line.say(b"Subject: fast\r\n\r\n.\r\n")

    # With Nagle's algorithm on each round waits 40 ms, and each command by itself does not.
    assert min_ratio(pipelined, one_by_one, enough=4) <= 4


def test_any_recipient_and_utf8_addresses_are_taken(inbox: Inbox, storage: InboxStorage) -> None:
    with smtplib.SMTP("127.0.0.1", inbox.port) as session:
        message = mail("Grüße")
        del message["To"]
        message["To"] = "jürgen@exämple.org"
        session.send_message(message)
        session.sendmail("", ['"odd one"@example.org'], b"Subject: odd\r\n\r\n")
    odd, utf8 = storage.newest()
    assert utf8.recipients == ("jürgen@exämple.org",)
    assert utf8.head.subject == "Grüße"
    assert odd.recipients == ('"odd one"@example.org',)


def test_nobody_is_asked_for_a_password_and_the_size_limit_is_announced(line: Line) -> None:
    reply = line.say(b"EHLO client.example.org\r\n")
    assert "AUTH" not in reply and "STARTTLS" not in reply
    assert f"SIZE {MAIL_MAX_BYTES}" in reply and "8BITMIME" in reply and "SMTPUTF8" in reply


def test_too_big_a_mail_is_refused_after_its_last_byte(line: Line, storage: InboxStorage) -> None:
    assert line.say(b"MAIL FROM:<a@example.org> SIZE=99999999\r\n").startswith("552")
    line.say(b"MAIL FROM:<a@example.org>\r\n")
    line.say(b"RCPT TO:<bob@example.org>\r\n")
    line.say(b"DATA\r\n")
    line.write(b"x" * (MAIL_MAX_BYTES + 1))
    assert line.say(b"\r\n.\r\n").startswith("552")
    assert line.say(b"NOOP\r\n").startswith("250")
    assert not storage.newest()


def test_a_mail_whose_connection_broke_is_not_kept(
    line: Line, inbox: Inbox, storage: InboxStorage
) -> None:
    line.write(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\nSubject: half")
    line.close()
    send(inbox, mail("whole"))
    assert [mail.head.subject for mail in storage.newest()] == ["whole"]


def test_fifty_connections_at_once(inbox: Inbox, storage: InboxStorage) -> None:
    lines = [Line(inbox) for _ in range(50)]
    for each in lines:
        each.write(b"HELO x\r\n")
        assert each.reply().startswith("250")
        each.write(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<bob@example.org>\r\nDATA\r\n")
    for each in lines:
        assert [each.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
        each.write(b"Subject: one of fifty\r\n\r\n.\r\n")
    assert all(each.reply().startswith("250") for each in lines)
    assert len(storage) == 50
    for each in lines:
        each.close()


def test_a_mail_for_a_real_host_stays_here(inbox: Inbox, client: FlaskClient) -> None:
    send(inbox, mail(), "somebody@localhost", "postmaster@[127.0.0.1]")
    assert messages(client)[0]["to"] == ["somebody@localhost", "postmaster@[127.0.0.1]"]


def test_a_taken_port_says_the_way_out(inbox: Inbox) -> None:
    with pytest.raises(PortTaken) as raised:
        Inbox(port=inbox.port).start()
    way_out = "set MAILASYNC_INBOX_SMTP_PORT or stop the other program"
    assert str(raised.value) == f"port {inbox.port} is taken; {way_out}"
    assert isinstance(raised.value, OSError)


def end_thread(inbox: Inbox) -> None:
    """End the thread that serves; it closes its connections."""
    line = Line(inbox)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "inbox"]
    number = ctypes.c_ulong(thread.ident or 0)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit)) == 1
    with suppress(ConnectionError):
        line.write(b"NOOP\r\n")  # It runs Python again, and ends.
        assert line.reply() == ""
    line.close()


def test_when_its_thread_ends_it_listens_again_on_the_same_port(
    inbox: Inbox, storage: InboxStorage
) -> None:
    send(inbox, mail("before"))
    end_thread(inbox)
    wait_until(lambda: any(words.startswith("inbox: restarted once") for words in troubles()))
    wait_until(partial(takes_mail, inbox))
    assert [mail.head.subject for mail in storage.newest()] == ["after", "before"]


def takes_mail(inbox: Inbox) -> bool:
    try:
        send(inbox, mail("after"))
    except ConnectionRefusedError:
        return False
    return True


def test_it_can_be_stopped_while_its_thread_is_down(storage: InboxStorage) -> None:
    inbox = Inbox(port=0, storage=storage)
    inbox.start()
    end_thread(inbox)
    inbox.stop()
    assert troubles() == []
    with Inbox(port=inbox.port):
        pass


def test_stop_frees_the_port_and_drops_who_is_connected(storage: InboxStorage) -> None:
    inbox = Inbox(port=0, storage=storage)
    inbox.start()
    line = Line(inbox)
    inbox.stop()
    assert line.reply() == ""
    line.close()
    inbox.stop()
    with Inbox(port=inbox.port, storage=storage) as again:
        send(again, mail())
    assert len(storage) == 1


def test_no_address_and_no_body_reaches_a_log(
    inbox: Inbox, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    send(inbox, mail("secret subject"))
    assert BOB not in caplog.text and "secret" not in caplog.text


# Keeping


def test_only_the_newest_are_kept() -> None:
    storage = InboxStorage(max_count=3, max_bytes=100)
    ids = [storage.add(ALICE, [BOB], b"x" * 10).id for _ in range(5)]
    assert [mail.id for mail in storage.newest()] == [ids[4], ids[3], ids[2]]
    storage.add(ALICE, [BOB], b"x" * 90)
    assert [len(mail.raw) for mail in storage.newest()] == [90, 10]
    storage.add(ALICE, [BOB], b"x" * 1000)
    assert [len(mail.raw) for mail in storage.newest()] == [1000]


def test_wait_returns_when_the_mail_arrives(
    inbox: Inbox, storage: InboxStorage, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "WAIT_MAX_SECONDS", 600)

    def deliver() -> None:
        wait_until(lambda: storage.waiters)
        send(inbox, mail("for carol"), "carol@example.org")
        send(inbox, mail("for bob"), "Bob@Example.org")

    sender = threading.Thread(target=deliver)
    sender.start()
    with ThreadPoolExecutor(1) as threads:
        (found,) = threads.submit(messages, client, "?to=bOB@example.ORG&wait=600").result(60)
    assert found["subject"] == "for bob"
    sender.join()
    assert storage.waiters == 0


def test_wait_ends_empty_when_nothing_comes(client: FlaskClient, storage: InboxStorage) -> None:
    storage.add(ALICE, ["carol@example.org"], b"")
    assert messages(client, "?to=bob@example.org&wait=0.2") == []


def test_who_waits_when_too_many_wait_is_answered_at_once(storage: InboxStorage) -> None:
    waiting = [threading.Thread(target=storage.wait, args=(BOB, 300)) for _ in range(WAITERS_MAX)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: storage.waiters == WAITERS_MAX)
    assert storage.wait(BOB, 300) == []
    assert storage.waiters == WAITERS_MAX
    storage.add(ALICE, [BOB], b"")
    for thread in waiting:
        thread.join(timeout=60)
    assert storage.waiters == 0


# The API


def test_a_test_can_assert_on_what_the_mail_says(inbox: Inbox, client: FlaskClient) -> None:
    message = mail("Grüße, 你好", "Hallo Böb\nline two\n", "<p>Hallo <b>Böb</b></p>\n")
    message.add_attachment(b"%PDF-1", maintype="application", subtype="pdf", filename="ü.pdf")
    message["X-Tag"] = "one"
    message["X-Tag"] = "two"
    send(inbox, message)
    (found,) = messages(client)
    assert found == client.get(f"/inbox/api/messages/{found['id']}").get_json()
    assert datetime.fromisoformat(found["received_at"]).utcoffset() == timedelta(0)
    assert found["from"] == f"Alice <{ALICE}>"
    assert (found["envelope_from"], found["to"]) == (ALICE, [BOB])
    assert (found["subject"], found["message_id"]) == ("Grüße, 你好", "<1@example.org>")
    assert found["text"] == "Hallo Böb\nline two\n"
    assert found["html"] == "<p>Hallo <b>Böb</b></p>\n"
    attachment = {"filename": "ü.pdf", "content_type": "application/pdf", "size": 6}
    assert found["attachments"] == [attachment]
    assert found["headers"]["X-Tag"] == ["one", "two"]


def test_what_is_not_there_is_null(client: FlaskClient, storage: InboxStorage) -> None:
    storage.add("", [BOB], b"Content-Type: text/html\r\n\r\n<p>only")
    (found,) = messages(client)
    assert (found["text"], found["html"], found["attachments"]) == (None, "<p>only", [])
    assert (found["subject"], found["from"], found["message_id"]) == ("", "", "")


@pytest.mark.parametrize(
    ("charset", "codec", "text"),
    [
        ("gb2312", "gb18030", "朱镕基 €"),
        ("GBK", "gb18030", "镕 𠮷"),
        ("x-gbk", "gbk", "朱镕基"),
        ("iso-8859-1", "cp1252", "“5 €” – done…"),
        ("latin1", "cp1252", "œuvre"),
        ("iso-8859-9", "cp1254", "“ığş”"),
        ("ks_c_5601-1987", "cp949", "똠방각하"),
        ("euc-kr", "cp949", "햏"),
        ("shift_jis", "cp932", "①㈱髙～"),
        ("x-sjis", "cp932", "①"),
        ("windows-874", "cp874", "“ไทย”"),
        ("big5", "big5hkscs", "嘅 香港"),
        ("iso-8859-8-i", "iso8859-8", "שלום"),
        ("utf-8", "utf-8-sig", "Grüße"),
        ("GB_2312-80", "gb18030", "朱镕基"),
        ("windows-31j", "cp932", "①"),
        ("koi8-ru", "koi8-u", "їжак"),
        ("us-ascii", "utf-8", "Grüße"),
        ("us-ascii", "cp1252", "Grüße “x”"),
        ("unknown-8bit", "utf-8", "日本"),
        ("klingon", "cp1252", "café"),
        (None, "utf-8", "Grüße"),
        (None, "cp1252", "Grüße"),
        ("utf-8", "utf-16", "Grüße"),
    ],
)
def test_text_is_decoded_as_what_its_label_means_in_practice(
    charset: str | None, codec: str, text: str
) -> None:
    label = f"; charset={charset}" if charset else ""
    head = f"Content-Transfer-Encoding: 8bit\r\nContent-Type: text/plain{label}\r\n\r\n".encode()
    assert read_body(head + text.encode(codec)).text == text
    assert read_body(head.replace(b"plain", b"html") + text.encode(codec)).html == text


@pytest.mark.parametrize(
    ("charset", "codec", "text"),
    [
        ("gb2312", "gb18030", "朱镕基"),
        ("iso-8859-1", "cp1252", "5 €"),
        ("ks_c_5601-1987*ko", "cp949", "똠"),
        ("us-ascii", "utf-8", "Grüße"),
        ("unknown", "utf-8", "Grüße"),
        ("shift_jis", "cp932", "①"),
    ],
)
def test_so_are_words_of_headers_and_names_of_files(charset: str, codec: str, text: str) -> None:
    word = f"=?{charset}?B?{base64.b64encode(text.encode(codec)).decode()}?="
    head = f"Subject: {word}\r\nFrom: {word} <{ALICE}>\r\n"
    name = quote(text.encode(codec))
    disposition = f"attachment; filename*={charset.partition('*')[0]}''{name}"
    raw = f"{head}Content-Type: text/plain\r\nContent-Disposition: {disposition}\r\n\r\nx".encode()
    assert (read_head(raw).subject, read_head(raw).author) == (text, f"{text} <{ALICE}>")
    assert read_body(raw).attachments[0].filename == text


@pytest.mark.parametrize(
    "meta",
    [
        '<meta charset="{}">',
        "<META CHARSET={} />",
        '<meta http-equiv="Content-Type" content="text/html; charset={}">',
    ],
)
@pytest.mark.parametrize(
    ("said", "label", "codec", "text"),
    [
        ("gb2312", "", "gbk", "朱镕基"),
        ("windows-1251", "", "cp1251", "Привет"),
        ("iso-8859-2", "us-ascii", "iso8859-2", "Łódź"),
        ("shift_jis", "klingon", "cp932", "①"),
        ("utf-16", "", "utf-8", "Grüße"),
        ("koi8-r", "utf-8", "utf-8", "Привет"),
        ("klingon", "", "utf-8", "Grüße"),
    ],
)
def test_html_is_decoded_by_its_own_meta_where_the_mail_names_no_charset(
    meta: str, said: str, label: str, codec: str, text: str
) -> None:
    html = f"<html><head>{meta.format(said)}</head><body>{text}</body></html>"
    label = f"; charset={label}" if label else ""
    head = f"Content-Type: text/html{label}\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
    assert read_body(head.encode() + html.encode(codec)).html == html


def parts(kind: str, *inside: str) -> str:
    between = f"{kind}{len(inside)}{sum(map(len, inside))}"
    head = f'Content-Type: multipart/{kind}; boundary="{between}"\n\n'
    return head + "".join(f"--{between}\n{part}\n" for part in inside) + f"--{between}--\n"


def plain(text: str) -> str:
    return f"Content-Type: text/plain\n\n{text}"


def html(text: str) -> str:
    return f"Content-Type: text/html\n\n{text}"


PDF = "Content-Type: application/pdf\nContent-Disposition: inline; filename=a.pdf\n\n%PDF"
LIST_PRE = '<pre style="white-space: pre-wrap">{}</pre>'


@pytest.mark.parametrize(
    ("raw", "text", "shown"),
    [
        (parts("mixed", plain("one"), PDF, plain("two")), "one\ntwo", None),
        (
            parts("mixed", plain("one"), PDF, plain("two"), PDF, plain("three")),
            "one\ntwo\nthree",
            None,
        ),
        (parts("mixed", html("<p>one"), PDF, html("<p>two")), None, "<p>one\n<p>two"),
        (
            parts(
                "alternative", plain("both"), parts("mixed", html("<p>one"), PDF, html("<p>two"))
            ),
            "both",
            "<p>one\n<p>two",
        ),
        (
            parts(
                "mixed", parts("alternative", plain("one"), html("<p>one")), PDF, plain("<list>")
            ),
            "one\n<list>",
            f"<p>one\n{LIST_PRE.format('&lt;list&gt;')}",
        ),
        (
            parts("mixed", plain("one"), PDF, html("<p>two"), plain("three")),
            "one\nthree",
            f"{LIST_PRE.format('one')}\n<p>two\n{LIST_PRE.format('three')}",
        ),
        (
            parts(
                "mixed",
                parts("alternative", plain("one"), html("<p>1")),
                PDF,
                parts("alternative", plain("two"), html("<p>2")),
            ),
            "one\ntwo",
            "<p>1\n<p>2",
        ),
        (parts("mixed", plain("one"), html("<p>one")), "one", "<p>one"),
        (parts("alternative", plain("one"), plain("other"), html("<p>one")), "one", "<p>one"),
    ],
)
def test_all_text_is_shown_whatever_stands_between(
    raw: str, text: str | None, shown: str | None
) -> None:
    body = read_body(raw.encode())
    assert (body.text, body.html) == (text, shown)
    assert [file.filename for file in body.attachments if file.filename] == ["a.pdf"] * raw.count(
        "%PDF"
    )


def test_messages_are_newest_first_and_filtered_by_recipient(
    client: FlaskClient, storage: InboxStorage
) -> None:
    for number, to in enumerate([BOB, "carol@example.org", BOB, "bob+tag@example.org"]):
        storage.add(ALICE, [to], b"Subject: %d\r\n\r\n" % number)
    assert [one["subject"] for one in messages(client)] == ["3", "2", "1", "0"]
    assert [one["subject"] for one in messages(client, "?to=BOB@example.org")] == ["2", "0"]
    assert [one["subject"] for one in messages(client, "?to=bob%2Btag@example.org")] == ["3"]
    assert [one["subject"] for one in messages(client, "?to=bob+tag@example.org")] == ["3"]


@pytest.mark.parametrize("to", ['"abc."@docomo.ne.jp', "abc.@docomo.ne.jp"])
def test_a_recipient_is_one_with_quotes_or_without(
    inbox: Inbox, client: FlaskClient, to: str
) -> None:
    send(inbox, mail("quoted"), '"abc."@docomo.ne.jp')
    found = messages(client, f"?to={to.upper()}")
    assert [(one["subject"], one["to"]) for one in found] == [("quoted", ['"abc."@docomo.ne.jp'])]
    assert "quoted" in client.get("/inbox/", query_string={"q": to}).text


@pytest.mark.parametrize("wait", ["soon", "-1", "61", "nan", "inf", "1e1", "", "٣", "1" * 5000])
def test_a_bad_wait_says_what_was_expected(client: FlaskClient, wait: str) -> None:
    response = client.get("/inbox/api/messages", query_string={"wait": wait})
    assert response.status_code == 422
    assert response.content_type == "application/problem+json"
    (error,) = response.get_json()["errors"]
    assert error["parameter"] == "wait"
    assert error["detail"] == f"expected seconds from 0 to 60, got {wait[:100]!r}"


def test_delete_empties_the_inbox(client: FlaskClient, storage: InboxStorage) -> None:
    id = storage.add(ALICE, [BOB], b"").id
    response = client.delete("/inbox/api/messages")
    assert (response.status_code, response.data) == (204, b"")
    assert messages(client) == []
    missing = client.get(f"/inbox/api/messages/{id}")
    assert missing.status_code == 404
    assert missing.content_type == "application/problem+json"


# The pages


def test_an_empty_inbox_tells_the_command_that_sends(client: FlaskClient) -> None:
    for address in ("/inbox", "/inbox/"):
        response = client.get(address)
        assert response.status_code == 200
        assert "No mail yet" in response.text and "curl -d &#39;{" in response.text


def test_the_list_refreshes_unless_somebody_chose(
    client: FlaskClient, storage: InboxStorage
) -> None:
    storage.add(ALICE, [BOB], b"Subject: Hello\r\nFrom: Alice <alice@example.org>\r\n\r\n")
    refresh = '<meta http-equiv="refresh" content="3">'
    assert refresh in client.get("/inbox/").text
    for query in ("?to=bob@example.org", "?still", "?page=2"):
        assert refresh not in client.get("/inbox/" + query).text
    page = client.get("/inbox/?to=BOB@example.org").text
    assert "Hello" in page and "Alice &lt;alice@example.org&gt;" in page
    assert "Hello" not in client.get("/inbox/?to=carol@example.org").text


def test_long_lists_come_a_page_at_a_time(client: FlaskClient, storage: InboxStorage) -> None:
    for number in range(250):
        storage.add(ALICE, [BOB], b"Subject: mail-%d-\r\n\r\n" % number)
    first, last = client.get("/inbox/").text, client.get("/inbox/?page=3").text
    assert "mail-249-" in first and "mail-150-" in first and "mail-149-" not in first
    assert "mail-49-" in last and "mail-0-" in last and "201 to 250 of 250" in last
    for page in ("99", "-1", "x"):
        assert client.get(f"/inbox/?page={page}").status_code == 200


def test_every_view_of_a_mail(client: FlaskClient, inbox: Inbox, storage: InboxStorage) -> None:
    message = mail("Views", "the text\n", "<p>the html</p>")
    message.add_attachment(b"12345", maintype="text", subtype="csv", filename="<b>.csv")
    send(inbox, message)
    at = f"/inbox/{storage.newest()[0].id}"
    page = client.get(at).text
    assert f'<iframe sandbox referrerpolicy="no-referrer" src="{at}/html"' in page
    attachments = client.get(at + "?view=attachments").text
    assert "&lt;b&gt;.csv" in attachments and "text/csv, 5 B" in attachments
    assert 'Attachments <span class="count">1</span>' in page and "Links" not in page
    saved = client.get(at + "/attachments/1")
    assert (saved.data, saved.content_type) == (b"12345", "application/octet-stream")
    assert saved.headers["Content-Disposition"] == 'attachment; filename="_b_.csv"'
    assert client.get(at + "/attachments/2").status_code == 404
    assert "the text" in client.get(at + "?view=text").text
    assert "&lt;1@example.org&gt;" in client.get(at + "?view=headers").text
    assert "MIME-Version: 1.0" in client.get(at + "?view=source").text
    assert client.get(at + "?view=nonsense").text == page
    assert client.get(at + "/html").text.strip() == "<p>the html</p>"
    source = client.get(at + "/source")
    assert source.content_type == "text/plain; charset=utf-8"
    assert source.data == storage.newest()[0].raw


def test_what_a_mail_brings_is_served_disarmed(client: FlaskClient, storage: InboxStorage) -> None:
    id = storage.add(ALICE, [BOB], b"Content-Type: text/html\r\n\r\n<script>1</script>").id
    policy = client.get(f"/inbox/{id}/html").headers["Content-Security-Policy"]
    assert policy.startswith(
        "sandbox; default-src 'none'; img-src data: cid:; style-src 'unsafe-inline'"
    )
    assert client.get(f"/inbox/{id}/source").headers["Content-Security-Policy"] == policy
    assert "<script" not in client.get(f"/inbox/{id}").text
    for address in ("/inbox/", f"/inbox/{id}", "/inbox/api/messages", "/inbox/static/inbox.css"):
        with client.get(address) as response:
            headers = response.headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_unknown_mails_are_404(client: FlaskClient, storage: InboxStorage) -> None:
    plain = storage.add(ALICE, [BOB], b"Subject: no html\r\n\r\ntext").id
    for address in ("/nothing", "/nothing/html", "/nothing/source", f"/{plain}/html"):
        response = client.get("/inbox" + address)
        assert response.status_code == 404 and "Mail not found" in response.text


def test_a_page_and_its_style_are_small(client: FlaskClient) -> None:
    page = client.get("/inbox/").data
    with client.get("/inbox/static/inbox.css") as style:
        assert len(page) + len(style.data) < 20_000
    assert b"<script" not in page


def test_pictures_of_the_mail_are_shown_and_bounded(
    client: FlaskClient, storage: InboxStorage
) -> None:
    message = mail(html='<img src="cid:logo"><img src="cid:other">')
    parts = message.get_payload()
    assert isinstance(parts, list) and isinstance(parts[1], EmailMessage)
    parts[1].add_related(PNG, "image", "png", cid="<logo>")
    id = storage.add(ALICE, [BOB], bytes(message)).id
    html = client.get(f"/inbox/{id}/html").text
    assert f'src="data:image/png;base64,{base64.b64encode(PNG).decode()}"' in html
    assert 'src="cid:other"' in html
    big = with_images("<img src=cid:a>" * 1000, {"a": Image("image/png", b"x" * 1_000_000)})
    assert len(big) < IMAGES_MAX_CHARS + 20_000


def test_sizes_and_times_are_told_in_words() -> None:
    sizes = [0, 999, 1_000, 9_949, 9_950, 999_499, 999_500, 35_000_000]
    assert [size_in_words(size) for size in sizes] == [
        "0 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "999 kB", "1.0 MB", "35 MB",
    ]  # fmt: skip
    now = datetime.now().astimezone()
    assert local_time(now) == f"{now:%H:%M:%S}"
    before = now - timedelta(days=400)
    assert local_time(before).startswith(f"{before:%Y-%m-%d} ")


# Hostile mail


def nested(depth: int) -> bytes:
    head = b"Subject: nested\r\nMIME-Version: 1.0\r\n"
    return head + b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n)
        for n in range(depth)
    )


HTML = b"""Content-Type: text/html\r\nSubject: <script>alert(1)</script>\r\n\r\n
<script>alert(1)</script><form action="https://evil.example/"><input></form>
<meta http-equiv="refresh" content="0;url=https://evil.example/"><base href="https://evil.example/">
<img src="https://evil.example/pixel.gif"><img src=x onerror=alert(1)>"""

HOSTILE = {
    "html": HTML,
    "empty": b"",
    "only line ends": b"\r\n" * 1000,
    "NULs": b"Subject: a\0b\r\nTo: \0\0\r\nContent-Type: text/plain; charset=\0\r\n\r\n\0\0",
    "unknown charset": b"Content-Type: text/plain; charset=klingon\r\n\r\n\xff\xfe\x80",
    "charset no text": b"Content-Type: text/html; charset=zlib\r\n\r\nabc",
    "charset surrogates": b"Content-Type: text/plain; charset=raw-unicode-escape\r\n\r\n\\ud800",
    "charset utf-7": b"Content-Type: text/plain; charset=utf-7\r\n\r\n+2AA- +ADw-script+AD4-",
    "charset slow": b"Content-Type: text/plain; charset=punycode\r\n\r\n" + b"a-b" * 100_000,
    "raw bytes": b"Subject: \xff\xfe\xf0\x9f\r\nFrom: \x80@\xff\r\n\xe9: x\r\n\r\n\xff" * 3,
    "encoded words": b"Subject: =?utf-8?q?=FF=00?= =?x?b?!!!?= =?utf-8?b?=?=\r\nFrom: =?\r\n\r\n",
    "encoded surrogate": b"Subject: =?utf-16?b?ANg=?= =?utf-7?q?+2AA-?=\r\n\r\n",
    "folding": b" leading\r\nSubject:\r\n \r\n\t\r\n x\r\n: no name\r\nno colon\r\n\r\n \r\n",
    "bare CR": b"Subject: a\rBcc: x\r\rTo:\r\r\n\r\n\r",
    "a million characters of header": b"Subject: " + b'(<["\\' * 250_000 + b"\r\n\r\n",
    "a hundred thousand headers": b"".join(b"X-%d: y\r\n" % n for n in range(100_000)),
    "comments": b"From: " + b"(" * 50_000 + b"\r\nContent-Type: " + b"(" * 50_000 + b"\r\n\r\n",
    "addresses": b"To: " + b"a@b," * 50_000 + b"\r\nFrom: " + b"<@" * 50_000 + b"\r\n\r\n",
    "parameters": b"Content-Type: text/plain" + b"; a*0*=''%41" * 20_000 + b"\r\n\r\nx",
    "bad base64": b"Content-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\n=A=\xff",
    "bad uuencode": b"Content-Transfer-Encoding: x-uuencode\r\n\r\nbegin 666 x\n\xff\xff\nend",
    "file names": b"Content-Type: a/b; name*=klingon''%FF%00\r\nContent-Disposition: "
    b'attachment; filename="../../etc\0/passwd\r\n X: y"\r\n\r\nx',
    "no boundary": b"Content-Type: multipart/mixed\r\n\r\n--\r\n",
    "empty boundary": b'Content-Type: multipart/mixed; boundary=""\r\n\r\n--\r\n--\r\n----\r\n',
    "no parts": b"Content-Type: multipart/alternative; boundary=b\r\n\r\n--b--\r\n",
    "mail in mail": b"Content-Type: message/rfc822\r\n\r\n" * 50 + b"Subject: in\r\n\r\n",
    "many parts": b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * 5000,
    "nested 90": nested(90),
    "nested 10,000": nested(10_000),
    "disguised nesting": nested(5_000).replace(b"multipart/", b"multipart(c)/"),
    "lone type": b"Content-Type: text\r\nContent-Disposition: ;;;\r\nContent-ID: <\r\n\r\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_mail_breaks_nothing(
    name: str, client: FlaskClient, storage: InboxStorage
) -> None:
    id = storage.add("\udcff@example.org", ["\udc80<script>@example.org"], HOSTILE[name]).id

    def look() -> None:
        assert client.get("/inbox/").status_code == 200
        for view in ("html", "text", "headers", "source"):
            page = client.get(f"/inbox/{id}?view={view}")
            assert page.status_code == 200
            assert "<script" not in page.text and "onerror=alert(1)>" not in page.text
        assert client.get(f"/inbox/{id}/html").status_code in (200, 404)
        assert client.get(f"/inbox/{id}/source").data == HOSTILE[name]
        (found,) = messages(client)
        json.dumps(found, ensure_ascii=False).encode("utf-8")  # No surrogate, in no field.

    hold_to(2000, look)


def test_a_mail_that_is_too_nested_is_shown_undivided(
    client: FlaskClient, storage: InboxStorage
) -> None:
    id = storage.add(ALICE, [BOB], nested(10_000)).id
    assert messages(client)[0]["subject"] == "nested"
    assert "could not be parsed" in client.get(f"/inbox/{id}?view=text").text


@pytest.mark.slow
def test_hostile_mail_over_the_wire(inbox: Inbox, client: FlaskClient) -> None:
    with smtplib.SMTP("127.0.0.1", inbox.port) as session:
        for raw in HOSTILE.values():
            session.sendmail(ALICE, [BOB], raw)
    assert len(messages(client)) == len(HOSTILE)
