"""What stock yagmail 0.16 does (research/reliability.md, 3), proved on the same server on which ours is shown not to do it.

Each class is a trap by its number there. Not reachable through our code: 2, 3, 5 (its `send` is closed off, see test_transport.py),
18, 19, 21 (we have no dict of aliases, no bcc, no attachments).
"""

import builtins
import contextlib
import email
import email.errors
import http.server
import json
import logging
import smtplib
import threading
from collections.abc import Callable, Iterator
from email import policy
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yagmail
from yagmail import oauth2 as stock_oauth2

from mailroom.model.account import NextHop
from mailroom.model.attempt import Claim
from mailroom.model.errors import InvalidMessage, NotTaken, Unanswered
from mailroom.model.message import Address
from mailroom.smtp.mime import compose
from mailroom.smtp.poller import run
from mailroom.smtp.pool import Sessions
from mailroom.smtp.receipt import Receipt
from mailroom.smtp.session import Session
from mailroom.submission.message import message_from
from tests.measure import hold_to
from tests.services import wait_until
from tests.services.certificates import Certificates, make_certificates
from tests.services.smtpd import ScriptedSMTP

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"
PASSWORD = {ALICE: "correct horse"}


@pytest.fixture
def smtpd() -> Iterator[ScriptedSMTP]:
    with ScriptedSMTP(auth=PASSWORD) as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock yagmail sleeps 18 s between its three tries; the sleeps are not what is shown here."""
    monkeypatch.setattr("yagmail.sender.time.sleep", lambda seconds: None)


@pytest.fixture(autouse=True)
def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whom somebody asked for something; as a worker has nobody who could answer, the answer is EOFError."""
    asked: list[str] = []

    def prompt(question: str = "") -> str:
        asked.append(question)
        raise EOFError

    monkeypatch.setattr(builtins, "input", prompt)
    monkeypatch.setattr("getpass.getpass", prompt)
    return asked


class Stock:
    """Stock yagmail, set up as its README says."""

    def __init__(self, smtpd: ScriptedSMTP, **settings: Any) -> None:
        made = {
            "user": ALICE,
            "password": PASSWORD[ALICE],
            "host": smtpd.host,
            "port": smtpd.port,
            "smtp_ssl": False,
            "smtp_starttls": False,
            **settings,
        }
        self.smtp = yagmail.SMTP(**made)
        self.left: list[smtplib.SMTP] = []  # links that it drops without closing them

    def __call__(self, contents: str = "Hello", *, subject: str = "Hello", to: Any = BOB) -> Any:
        if self.smtp.smtp is not None:
            self.left.append(self.smtp.smtp)
        return self.smtp.send(to, subject, contents)

    def end(self) -> None:
        self.smtp.is_closed = True
        for link in (*self.left, self.smtp.smtp):
            if link is not None:
                link.close()


class Ours:
    """Our own road, from the JSON object to the wire."""

    def __init__(self, smtpd: ScriptedSMTP, **settings: Any) -> None:
        made = {
            "host": smtpd.host,
            "port": smtpd.port,
            "security": "none",
            "user": ALICE,
            "password": PASSWORD[ALICE],
            "timeout_seconds": 5,
            **settings,
        }
        self.sessions = Sessions(NextHop(**made))
        self.number = 0

    def __call__(
        self, contents: str = "Hello", *, subject: str = "Hello", to: Any = BOB
    ) -> Receipt:
        self.number += 1
        message = message_from({"to": to, "subject": subject, "contents": contents})
        claim = Claim(
            id=str(self.number),
            attempt=1,
            message_id=f"{self.number}@example.org",
            created_at_ms=1_790_000_000_000,
            message=message,
            pending=tuple(range(len(message.to))),
        )
        recipients = {position: address.address for position, address in enumerate(message.to)}
        return run(
            self.sessions.attempt(ALICE, recipients, compose(claim, sender=Address(ALICE))),
            lambda: True,
        )

    def end(self) -> None:
        self.sessions.close()


@pytest.fixture
def stock(smtpd: ScriptedSMTP) -> Iterator[Stock]:
    made = Stock(smtpd)
    yield made
    made.end()


@pytest.fixture
def ours(smtpd: ScriptedSMTP) -> Iterator[Ours]:
    made = Ours(smtpd)
    yield made
    made.end()


@pytest.fixture
def website() -> Iterator[tuple[str, list[str]]]:
    """A web server, and what was fetched from it."""
    fetched: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
        server.shutdown()
        thread.join()


def last(smtpd: ScriptedSMTP) -> EmailMessage:
    return email.message_from_bytes(smtpd.payloads[-1].data, policy=policy.default)


def texts(mail: EmailMessage) -> tuple[str, str]:
    plain, html = mail.get_body(("plain",)), mail.get_body(("html",))
    return str(plain.get_content()).rstrip("\r\n") if plain else "", str(html.get_content()).rstrip(
        "\r\n"
    ) if html else ""


def said(smtpd: ScriptedSMTP, verb: str) -> int:
    return sum(line.upper().startswith(verb) for _, line in list(smtpd.commands))


class Test1CopiesAfterALostLink:
    def test_stock_sends_three_and_says_that_it_sent_none(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        smtpd.drop("DOT", times=None)
        assert stock() is False
        assert len(smtpd.payloads) == 3

    def test_ours_sends_one_and_says_that_nobody_knows(
        self, smtpd: ScriptedSMTP, ours: Ours
    ) -> None:
        smtpd.drop("DOT", times=None)
        with pytest.raises(Unanswered):
            ours()
        assert len(smtpd.payloads) == 1


class Test2RepliesAreTold:
    def test_stock_gives_the_same_for_a_refusal_of_some_as_python_takes_for_success(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        assert not stock()  # {} is success, and falsy
        smtpd.reply("RCPT", "550 5.1.1 no", match="carol@")
        assert stock(to=[BOB, CAROL])  # a refusal is truthy

    def test_ours_tells_who_was_refused_and_why(self, smtpd: ScriptedSMTP, ours: Ours) -> None:
        smtpd.reply("RCPT", "550 5.1.1 no", match="carol@")
        receipt = ours(to=[BOB, CAROL])
        assert {position: str(reply) for position, reply in receipt.refused.items()} == {
            1: "550 5.1.1 no"
        }
        assert receipt.final is not None and receipt.final.accepts


class Test3And25NothingIsKeptOrSharedBetweenMails:
    def test_stock_keeps_each_mail_that_it_could_not_send(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        smtpd.drop("MAIL", times=None)
        stock()
        assert len(stock.smtp.unsent) == 1

    def test_ours_keeps_none(self, smtpd: ScriptedSMTP, ours: Ours) -> None:
        smtpd.drop("MAIL", times=None)
        with pytest.raises(NotTaken), ours.sessions.borrow() as session:
            run(session.attempt(ALICE, {0: BOB}, b""))
        assert session.unsent == []

    def test_ours_gives_each_thread_a_session_of_its_own(
        self, smtpd: ScriptedSMTP, ours: Ours
    ) -> None:
        smtpd.hang("DOT")
        threads = [threading.Thread(target=ours) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(smtpd.payloads) == 3)
        smtpd.release()
        for thread in threads:
            thread.join()
        assert len({delivery.connection for delivery in smtpd.messages}) == 3


class Test4Logins:
    def test_stock_logs_in_for_each_mail_and_never_says_quit(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        for _ in range(3):
            stock()
        assert (smtpd.connections, smtpd.logins, said(smtpd, "QUIT")) == (3, 3, 0)

    def test_ours_logs_in_once_for_many_mails(self, smtpd: ScriptedSMTP, ours: Ours) -> None:
        for _ in range(10):
            ours()
        ours.end()
        assert (smtpd.connections, smtpd.logins, said(smtpd, "QUIT"), len(smtpd.messages)) == (
            1,
            1,
            1,
            10,
        )


class Test5TheMailIsReadyBeforeTheLogin:
    def test_stock_logs_in_for_a_mail_that_it_cannot_write(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        with pytest.raises(Exception, match="header"):
            stock(subject="a\r\nBcc: eve@example.org")
        assert smtpd.logins == 1

    def test_ours_does_not(self, smtpd: ScriptedSMTP, ours: Ours) -> None:
        with pytest.raises(InvalidMessage):
            ours(subject="a\r\nBcc: eve@example.org")
        assert smtpd.connections == 0


@pytest.mark.parametrize("bad", ["self_signed", "unknown_ca", "expired", "wrong_host"])
class Test6Certificates:
    def test_stock_gives_the_password_to_anybody(
        self, certificates: Certificates, bad: str
    ) -> None:
        with ScriptedSMTP(
            tls="ssl", certificate=getattr(certificates, bad), auth=PASSWORD
        ) as smtpd:
            stock = Stock(smtpd, smtp_ssl=True)
            stock()
            stock.end()
            assert smtpd.logins == 1

    @pytest.mark.parametrize("security", ["ssl", "starttls"])
    def test_ours_says_nothing_to_a_server_that_is_not_who_it_should_be(
        self, certificates: Certificates, bad: str, security: Any
    ) -> None:
        with ScriptedSMTP(
            tls=security, certificate=getattr(certificates, bad), auth=PASSWORD
        ) as smtpd:
            with pytest.raises(NotTaken, match="is not to be trusted") as told:
                Ours(smtpd, security=security, ca_file=str(certificates.ca_file))()
            wait_until(lambda: smtpd.tls_failures == 1)
            assert (said(smtpd, "AUTH"), said(smtpd, "MAIL"), smtpd.logins) == (0, 0, 0)
            assert not told.value.permanent


class Test6StartTLSStripped:
    def test_ours_neither_logs_in_nor_hands_anything_over(self, smtpd: ScriptedSMTP) -> None:
        with pytest.raises(NotTaken, match="STARTTLS"):
            Ours(smtpd, security="starttls")()
        assert (said(smtpd, "AUTH"), said(smtpd, "MAIL")) == (0, 0)

    @pytest.mark.parametrize("reply", ["454 4.7.0 not available", "502 5.5.1 what?", "250 ok"])
    def test_ours_does_not_either_where_it_is_offered_and_refused(
        self, certificates: Certificates, reply: str
    ) -> None:
        with ScriptedSMTP(tls="starttls", certificate=certificates.valid, auth=PASSWORD) as smtpd:
            smtpd.reply("STARTTLS", reply)
            with pytest.raises(NotTaken):
                Ours(smtpd, security="starttls", ca_file=str(certificates.ca_file))()
            assert (said(smtpd, "AUTH"), said(smtpd, "MAIL")) == (0, 0)

    def test_ours_without_a_login_does_not_hand_over_either(self) -> None:
        with ScriptedSMTP() as smtpd:
            with pytest.raises(NotTaken, match="STARTTLS"):
                Ours(smtpd, security="starttls", user="", password="")()
            assert said(smtpd, "MAIL") == 0


class Test7Timeouts:
    def test_stock_has_none(self, smtpd: ScriptedSMTP, stock: Stock) -> None:
        stock()
        assert stock.smtp.smtp.sock.gettimeout() is None

    def test_ours_leaves_a_server_that_hangs(self, smtpd: ScriptedSMTP) -> None:
        smtpd.hang("GREETING")
        with pytest.raises(NotTaken, match="timed out"):
            Ours(smtpd, timeout_seconds=0.2)()
        smtpd.release()


class Test8OAuth2:
    """Ours is in test_oauth2.py."""

    def test_stock_sends_the_token_in_clear_and_does_not_look_at_the_answer(
        self, smtpd: ScriptedSMTP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "oauth2.json"
        file.write_text(
            json.dumps(
                {
                    "google_client_id": "the-client",
                    "google_client_secret": "x",
                    "google_refresh_token": "y",
                }
            )
        )
        monkeypatch.setattr(
            stock_oauth2, "refresh_authorization", lambda **secrets: ("the-token", 3600)
        )  # Google's endpoint
        stock = Stock(smtpd, oauth2_file=str(file), password=None, smtp_starttls={"context": None})
        stock.smtp.login()
        assert said(smtpd, "AUTH XOAUTH2") == 1  # in clear
        assert smtpd.logins == 0  # and refused, without anybody being told
        assert smtpd.commands[0] == (1, "ehlo the-client")
        stock.end()


class Test9Prompts:
    def test_stock_asks_for_the_oauth2_secrets(
        self,
        smtpd: ScriptedSMTP,
        tmp_path: Path,
        prompts: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with pytest.raises(EOFError):
            Stock(smtpd, oauth2_file=str(tmp_path / "none.json"))
        assert prompts

    def test_stock_wants_a_keyring_for_a_password(
        self, smtpd: ScriptedSMTP, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stock = Stock(smtpd, password=None)
        with pytest.raises(NameError):
            stock()
        stock.end()

    @pytest.mark.parametrize(
        "settings",
        [{"password": ""}, {"oauth2_file": "/nowhere", "security": "ssl"}, {"password": "wrong"}],
    )
    def test_ours_never_asks_anybody(
        self,
        smtpd: ScriptedSMTP,
        prompts: list[str],
        settings: dict[str, Any],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        with pytest.raises(NotTaken):
            Ours(smtpd, **settings)()
        assert (prompts, capsys.readouterr()) == ([], ("", ""))


class Test10FilesOfTheWorker:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        made = tmp_path / "passwd"
        made.write_text("root:x:0:0:the content\n")
        return made

    def test_stock_attaches_a_file_that_the_body_names(
        self, smtpd: ScriptedSMTP, stock: Stock, file: Path
    ) -> None:
        stock(str(file))
        assert any(
            "the content" in str(part.get_payload(decode=True)) for part in last(smtpd).walk()
        )

    def test_ours_sends_the_name_as_the_text_that_it_is(
        self, smtpd: ScriptedSMTP, ours: Ours, file: Path
    ) -> None:
        ours(str(file))
        assert texts(last(smtpd))[0] == str(file)
        assert [part.get_content_type() for part in last(smtpd).walk()] == [
            "multipart/alternative",
            "text/plain",
            "text/html",
        ]

    def test_ours_does_not_open_it(
        self, smtpd: ScriptedSMTP, ours: Ours, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours()
        opened: list[object] = []
        real: Callable[..., Any] = builtins.open

        def watched(path: object, *rest: Any, **more: Any) -> Any:
            opened.append(path)
            return real(path, *rest, **more)

        monkeypatch.setattr(builtins, "open", watched)
        ours(str(file))
        ours(f"<img src='file://{file}'>")
        assert opened == []


class Test11TextIsText:
    TEXT = "<script>alert(1)</script> is <test> & more\n  two  spaces"

    def test_stock_puts_it_into_html_as_it_stands_and_loses_some(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        stock(self.TEXT)
        assert "<script>alert(1)</script>" in texts(last(smtpd))[1]

    def test_ours_escapes_it_into_html_and_keeps_it_as_text(
        self, smtpd: ScriptedSMTP, ours: Ours
    ) -> None:
        ours(self.TEXT)
        text, html = texts(last(smtpd))
        assert text.replace("\r\n", "\n") == self.TEXT
        assert "&lt;script&gt;alert(1)&lt;/script&gt; is &lt;test&gt; &amp; more<br>" in html

    def test_stock_puts_the_tags_of_html_into_the_text(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        stock("<p>Hello <b>Bob</b></p>")
        assert "<b>" in texts(last(smtpd))[0]

    def test_ours_does_not(self, smtpd: ScriptedSMTP, ours: Ours) -> None:
        ours("<p>Hello <b>Bob</b></p>")
        assert texts(last(smtpd)) == ("Hello Bob", "<p>Hello <b>Bob</b></p>")


class Test12Fetching:
    def test_stock_fetches_what_a_body_names(
        self, smtpd: ScriptedSMTP, stock: Stock, website: tuple[str, list[str]]
    ) -> None:
        url, fetched = website
        stock(
            f'<html><head><link rel="stylesheet" href="{url}/inside.css"></head><body>Hello</body></html>'
        )
        assert fetched == ["/inside.css"]

    def test_ours_fetches_nothing(
        self, smtpd: ScriptedSMTP, ours: Ours, website: tuple[str, list[str]]
    ) -> None:
        url, fetched = website
        html = f'<html><link rel="stylesheet" href="{url}/a.css"><style>@import "{url}/b.css"</style><img src="{url}/c"></html>'
        ours(html)
        assert texts(last(smtpd))[1] == html
        ours(f"{url}/d")
        assert fetched == []


class Test13TimeToCompose:
    def test_ours_does_not_read_style_sheets(self) -> None:
        rules = "".join(f".c{n} {{color: red}}" for n in range(2000))
        html = f"<style>{rules}</style>" + "".join(f'<p class="c{n}">x</p>' for n in range(2000))
        claim = Claim(
            id="1",
            attempt=1,
            message_id="1@example.org",
            created_at_ms=0,
            message=message_from({"to": BOB, "contents": html}),
            pending=(0,),
        )
        # It costs some ten; what premailer does to it, 300.
        hold_to(100, partial(compose, claim, sender=Address(ALICE)))


class Test14MessageIds:
    def test_stock_gives_two_mails_the_same_so_that_gmail_hides_one(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        stock("one")
        stock("two")
        assert smtpd.messages[0].message_id == smtpd.messages[1].message_id

    def test_ours_has_one_for_each_mail(self, smtpd: ScriptedSMTP, ours: Ours) -> None:
        ours("one")
        ours("one")
        assert [delivery.message_id for delivery in smtpd.messages] == [
            "<1@example.org>",
            "<2@example.org>",
        ]


class Test15And16Headers:
    def test_stock_lets_a_header_name_add_headers(self, smtpd: ScriptedSMTP, stock: Stock) -> None:
        headers = {"X-A: 1\r\nBcc": "eve@example.org", "From": "eve@example.org"}
        with contextlib.suppress(email.errors.MessageError):  # Newer Pythons refuse it themselves.
            stock.smtp.send(BOB, "Hello", "Hello", headers=headers)
            assert b"\r\nBcc: eve@example.org" in smtpd.payloads[0].data
            assert len(last(smtpd).get_all("From", [])) == 2

    @pytest.mark.parametrize(
        "asked",
        [
            {"headers": {"Bcc": "eve@example.org"}},
            {"headers": {"From": "eve@example.org"}},
            {"message_id": "x"},
            {"headers": {"X-A: 1\r\nBcc": "eve@example.org"}},
            {"headers": {"X-A": "1\r\nBcc: eve@example.org"}},
            {"from": "a\r\nBcc: b@c.org"},
            {"subject": "a\nBcc: eve@example.org"},
            {"to": "Bob\r\nBcc: eve@example.org <bob@example.org>"},
        ],
    )
    def test_ours_takes_no_header_from_anybody(self, asked: dict[str, Any]) -> None:
        with pytest.raises(InvalidMessage):
            message_from({"to": BOB, **asked})


@pytest.mark.parametrize(
    "address", ["bob@example.org\n", "(x\r\n y)a@b.com", "a@[127.0.0.1]", "bob@intranet"]
)
class Test17Addresses:
    def test_stock_takes_it(self, address: str) -> None:
        if address != "bob@intranet":
            yagmail.validate.validate_email_with_regex(address)

    def test_ours_refuses_it_at_the_door(self, address: str) -> None:
        with pytest.raises(InvalidMessage):
            message_from({"to": address})


class Test18And20Addresses:
    def test_stock_shows_only_the_alias_so_that_anybody_can_be_named(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        stock(to={BOB: "Carol <carol@example.org>"})
        assert last(smtpd)["To"] == "Carol <carol@example.org>"

    def test_ours_shows_the_address_that_gets_the_mail(
        self, smtpd: ScriptedSMTP, ours: Ours
    ) -> None:
        ours(to='"Carol <carol@example.org>" <bob@example.org>')
        assert [to.addr_spec for to in last(smtpd)["To"].addresses] == [BOB]

    @pytest.mark.parametrize("to", ["bob@münchen.de", "Müller <bob@example.org>"])
    def test_stock_takes_no_name_or_domain_with_an_umlaut(
        self, smtpd: ScriptedSMTP, stock: Stock, to: str
    ) -> None:
        with pytest.raises(Exception):  # noqa: B017, PT011  # which one depends on the path it takes
            stock(to=to)

    def test_ours_does(self, smtpd: ScriptedSMTP, ours: Ours) -> None:
        ours(to=["bob@münchen.de", "Müller <bob@example.org>"])
        assert smtpd.messages[0].rcpt_tos == ("bob@xn--mnchen-3ya.de", BOB)
        assert last(smtpd)["To"].addresses[1].display_name == "Müller"


class Test19WhoGetsIt:
    def test_stock_mails_the_sender_when_there_is_only_a_bcc(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        stock.smtp.send(bcc=BOB, contents="Hello")
        assert smtpd.messages[0].rcpt_tos == (ALICE, BOB)

    def test_ours_mails_those_who_are_named_and_nobody_else(
        self, smtpd: ScriptedSMTP, ours: Ours
    ) -> None:
        ours(to=[BOB, CAROL])
        assert smtpd.messages[0].rcpt_tos == (BOB, CAROL)


class Test22Loggers:
    def test_stock_replaces_the_handlers_of_its_logger_and_writes_to_stderr(
        self, smtpd: ScriptedSMTP, stock: Stock
    ) -> None:
        assert [type(handler) for handler in logging.getLogger("yagmail.log").handlers] == [
            logging.StreamHandler
        ]

    def test_ours_adds_no_handler_and_says_nothing(
        self,
        smtpd: ScriptedSMTP,
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        caplog.set_level(logging.DEBUG)
        ours = Ours(smtpd)
        ours()
        smtpd.drop("DOT")
        with pytest.raises(Unanswered):
            ours()
        ours.end()
        assert logging.getLogger("yagmail.log").handlers == []
        assert [record for record in caplog.records if "yagmail" in record.name] == []
        assert capsys.readouterr() == ("", "")


class Test23TheEndOfASession:
    def test_stock_speaks_to_the_network_when_it_is_collected(self, smtpd: ScriptedSMTP) -> None:
        stock = Stock(smtpd)
        stock()
        stock.smtp.__del__()
        assert said(smtpd, "QUIT") == 1
        stock.end()

    def test_ours_does_not(self, smtpd: ScriptedSMTP) -> None:
        session = Session(
            NextHop(host=smtpd.host, port=smtpd.port, security="none", timeout_seconds=5)
        )
        session.open()
        session.__del__()
        assert session.smtp.noop()[0] == 250
        assert said(smtpd, "QUIT") == 0
        session.drop()


class Test24UserNames:
    def test_stock_takes_every_user_for_one_of_gmails(self, smtpd: ScriptedSMTP) -> None:
        stock = Stock(smtpd, user="apikey")
        assert stock.smtp.user == "apikey@gmail.com"
        with pytest.raises(smtplib.SMTPAuthenticationError):
            stock()
        stock.end()

    def test_ours_logs_in_as_who_it_was_told_to_be(self) -> None:
        with ScriptedSMTP(auth={"apikey": "secret"}) as smtpd:
            ours = Ours(smtpd, user="apikey", password="secret")
            ours()
            ours.end()
            assert [delivery.user for delivery in smtpd.messages] == ["apikey"]
