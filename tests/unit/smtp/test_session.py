"""One attempt is one conversation: every reply is told, and nothing is handed over twice or by mistake."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailroom.model.account import NextHop
from mailroom.model.errors import NotTaken, Unanswered
from mailroom.smtp import session as session_module
from mailroom.smtp.connection import LINE_MAX_BYTES, REPLY_LINES_MAX, REPLY_MAX_CHARACTERS, Reply
from mailroom.smtp.poller import run
from mailroom.smtp.pool import Sessions
from mailroom.smtp.receipt import FenceRefused, Receipt
from mailroom.smtp.session import Session
from tests.services import wait_until
from tests.services.certificates import Certificates, make_certificates
from tests.services.smtpd import ScriptedSMTP

ALICE, BOB, CAROL = "alice@example.org", "bob@example.org", "carol@example.org"
MAIL = b"Message-ID: <1@example.org>\r\nSubject: hello\r\n\r\nHello\r\n"
ENVELOPE = ["MAIL FROM:<alice@example.org> SIZE=54", "RCPT TO:<bob@example.org>", "DATA"]


@pytest.fixture
def smtpd() -> Iterator[ScriptedSMTP]:
    """A server that must not find anything to complain about."""
    with ScriptedSMTP() as server:
        yield server
        assert server.violations == []


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def sessions(smtpd: ScriptedSMTP) -> Iterator[Sessions]:
    made = Sessions(hop(smtpd))
    yield made
    made.close()
    wait_until(lambda: smtpd.open_connections == 0)


def hop(smtpd: ScriptedSMTP, **more: Any) -> NextHop:
    return NextHop(
        host=smtpd.host, port=smtpd.port, **{"security": "none", "timeout_seconds": 5, **more}
    )


def attempt(sessions: Sessions, *to: str, payload: bytes = MAIL) -> Receipt:
    return run(sessions.attempt(ALICE, dict(enumerate(to or (BOB,))), payload), lambda: True)


def verbs(smtpd: ScriptedSMTP) -> list[str]:
    return [line.split()[0].upper() for _, line in smtpd.commands]


class TestPipelining:
    def test_the_envelope_is_one_write_so_that_a_mail_costs_two_round_trips(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        attempt(sessions, BOB, CAROL)
        attempt(sessions, BOB)
        assert smtpd.batches[1:] == [
            [ENVELOPE[0], ENVELOPE[1], "RCPT TO:<carol@example.org>", "DATA"],
            ["."],
            ENVELOPE,
            ["."],
        ]

    def test_where_it_is_not_offered_each_command_waits_for_its_reply(self) -> None:
        with ScriptedSMTP(pipelining=False) as smtpd:
            sessions = Sessions(hop(smtpd))
            attempt(sessions)
            sessions.close()
            assert smtpd.batches[1:5] == [[command] for command in (*ENVELOPE, ".")]
            assert smtpd.violations == []

    @pytest.mark.parametrize("phase", ["MAIL", "RCPT", "DATA"])
    def test_where_it_is_not_offered_nothing_is_said_after_a_refusal_of_all(
        self, phase: str
    ) -> None:
        with ScriptedSMTP(pipelining=False) as smtpd:
            smtpd.reply(phase, "550 5.7.1 no")
            sessions = Sessions(hop(smtpd))
            attempt(sessions)
            commands = ["MAIL", "RCPT", "DATA"]
            assert verbs(smtpd)[1:] == [*commands[: commands.index(phase) + 1], "RSET"]
            attempt(sessions)
            sessions.close()
            assert len(smtpd.messages) == 1
            assert smtpd.violations == []


class TestReplies:
    def test_the_receipt_has_the_final_reply(self, sessions: Sessions) -> None:
        assert attempt(sessions) == Receipt(refused={}, final=Reply(250, "2.0.0 ok"))

    def test_a_refused_mail_is_told_and_the_next_one_goes_on_the_same_session(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.reply("MAIL", "550 5.7.1 not from you")
        assert attempt(sessions) == Receipt(refused={}, final=Reply(550, "5.7.1 not from you"))
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert smtpd.connections == 1
        assert "RSET" in verbs(smtpd)

    def test_refused_recipients_are_told_and_the_others_get_the_mail(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.reply("RCPT", "550 5.1.1 no such user", match="bob@")
        receipt = run(sessions.attempt(ALICE, {3: BOB, 7: CAROL}, MAIL), lambda: True)
        assert receipt == Receipt(
            refused={3: Reply(550, "5.1.1 no such user")}, final=Reply(250, "2.0.0 ok")
        )
        assert [delivery.rcpt_tos for delivery in smtpd.payloads] == [(CAROL,)]

    def test_when_all_recipients_are_refused_each_has_its_reply(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.reply("RCPT", "550 5.1.1 no such user", match="bob@")
        smtpd.reply("RCPT", "450 4.2.1 later", match="carol@")
        refused = {0: Reply(550, "5.1.1 no such user"), 1: Reply(450, "4.2.1 later")}
        assert attempt(sessions, BOB, CAROL) == Receipt(refused=refused, final=None)
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert smtpd.connections == 1

    @pytest.mark.parametrize("phase", ["DATA", "DOT"])
    def test_a_refused_payload_is_told_and_the_next_mail_goes_on_the_same_session(
        self, smtpd: ScriptedSMTP, sessions: Sessions, phase: str
    ) -> None:
        smtpd.reply(phase, "554 5.6.0 no")
        assert attempt(sessions).final == Reply(554, "5.6.0 no")
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert smtpd.connections == 1

    def test_354_with_nobody_to_write_to_gets_a_lone_dot_and_the_fence_is_never_asked(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.reply("RCPT", "550 5.1.1 no such user")
        smtpd.reply("DATA", "354 go ahead")

        def fence() -> bool:
            raise AssertionError("asked")

        receipt = run(sessions.attempt(ALICE, {0: BOB}, MAIL), fence)
        assert receipt == Receipt(refused={0: Reply(550, "5.1.1 no such user")}, final=None)
        assert [delivery.data for delivery in smtpd.payloads] == [b""]
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert smtpd.connections == 1

    def test_a_server_that_contradicts_itself_is_given_no_empty_mail(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        for phase, reply in (
            ("MAIL", "450 4.3.2 no"),
            ("RCPT", "250 ok"),
            ("DATA", "354 go ahead"),
        ):
            smtpd.reply(phase, reply)
        assert attempt(sessions).final == Reply(450, "4.3.2 no")
        wait_until(lambda: smtpd.open_connections == 0)
        assert smtpd.payloads == []

    def test_250_to_data_is_not_taken_for_a_mail_that_was_sent(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.reply("DATA", "250 ok")
        with pytest.raises(NotTaken, match="expected 354"):
            attempt(sessions)
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert len(smtpd.payloads) == 1

    def test_a_reply_of_many_lines_is_one_line_without_what_a_terminal_or_a_database_chokes_on(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.reply("DOT", b"250-2.0.0 all\r\n250-\x1b[31mis\x00\xff\r\n250 well\r\n")
        assert attempt(sessions).final == Reply(250, "2.0.0 all [31mis � well")

    def test_a_very_long_reply_is_cut(self, smtpd: ScriptedSMTP, sessions: Sessions) -> None:
        smtpd.reply("DOT", "550 " + "x" * 5000)
        final = attempt(sessions).final
        assert final is not None and len(final.text) == REPLY_MAX_CHARACTERS


class TestFence:
    def test_refused_closes_the_session_and_sends_nothing_of_the_payload(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        with pytest.raises(FenceRefused):
            run(sessions.attempt(ALICE, {0: BOB}, MAIL), lambda: False)
        wait_until(lambda: smtpd.open_connections == 0)
        assert verbs(smtpd) == ["EHLO", "MAIL", "RCPT", "DATA"]
        assert smtpd.payloads == []

    def test_that_raises_closes_the_session_too(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        def fence() -> bool:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(sessions.attempt(ALICE, {0: BOB}, MAIL), fence)
        wait_until(lambda: smtpd.open_connections == 0)
        assert smtpd.payloads == []

    def test_is_asked_once_and_only_after_354(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        said: list[list[str]] = []

        def fence() -> bool:
            said.append(verbs(smtpd))
            return True

        run(sessions.attempt(ALICE, {0: BOB}, MAIL), fence)
        assert said == [["EHLO", "MAIL", "RCPT", "DATA"]]

    def test_a_server_that_hangs_up_meanwhile_is_not_sent_the_payload(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.reply("DATA", "354 go ahead", close=True)

        def fence() -> bool:
            wait_until(lambda: smtpd.open_connections == 0)
            return True

        with pytest.raises(NotTaken):  # and not Unanswered, as which it would count as uncertain
            run(sessions.attempt(ALICE, {0: BOB}, MAIL), fence)


class TestLostLinks:
    @pytest.mark.parametrize("reset", [False, True])
    @pytest.mark.parametrize("phase", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
    def test_before_the_payload_nobody_has_the_mail(
        self, smtpd: ScriptedSMTP, sessions: Sessions, phase: str, reset: bool
    ) -> None:
        smtpd.drop(phase, reset=reset)
        with pytest.raises(NotTaken) as told:
            attempt(sessions)
        assert not told.value.permanent
        assert smtpd.payloads == []

    def test_within_the_payload_nobody_has_the_mail(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.drop("PAYLOAD", after=1000)
        with pytest.raises(NotTaken):
            attempt(sessions, payload=MAIL + b"x\r\n" * 10_000_000)
        assert smtpd.payloads == []

    @pytest.mark.parametrize("reset", [False, True])
    def test_after_the_dot_nobody_knows(
        self, smtpd: ScriptedSMTP, sessions: Sessions, reset: bool
    ) -> None:
        smtpd.drop("DOT", reset=reset)
        with pytest.raises(Unanswered, match="after the final dot"):
            attempt(sessions)
        assert smtpd.copies("1@example.org") == 1

    @pytest.mark.parametrize(
        "reply",
        [
            b"what?\r\n",
            b"\r\n",
            b"250\xff\r\n",
            b"2500 ok\r\n",
            b"199 hm\r\n",
            b"600 hm\r\n",
            b"\x00\x01\r\n",
        ],
    )
    @pytest.mark.parametrize("phase", ["GREETING", "MAIL", "RCPT", "DATA"])
    def test_a_reply_that_is_none_closes_the_session(
        self, smtpd: ScriptedSMTP, sessions: Sessions, phase: str, reply: bytes
    ) -> None:
        smtpd.reply(phase, reply)
        with pytest.raises(NotTaken):
            attempt(sessions)
        wait_until(lambda: smtpd.open_connections == 0)
        assert smtpd.payloads == []

    @pytest.mark.parametrize(
        "reply",
        [b"what?\r\n", b"250 o", b"354 go on\r\n", b"250-and\r\n", b"199 hm\r\n", b"999 hm\r\n"],
    )
    def test_a_reply_to_the_dot_that_is_none_leaves_it_unanswered(
        self, smtpd: ScriptedSMTP, sessions: Sessions, reply: bytes
    ) -> None:
        smtpd.reply("DOT", reply, close=True)
        with pytest.raises(Unanswered):
            attempt(sessions)
        assert smtpd.copies("1@example.org") == 1

    @pytest.mark.parametrize(
        "reply", [b"250-and\r\n" * (REPLY_LINES_MAX + 1), b"250 " + b"x" * (LINE_MAX_BYTES + 5000)]
    )
    def test_a_reply_has_an_end_in_size(
        self, smtpd: ScriptedSMTP, sessions: Sessions, reply: bytes
    ) -> None:
        smtpd.reply("MAIL", reply)
        with pytest.raises(NotTaken, match="had no end"):
            attempt(sessions)

    @pytest.mark.parametrize("phase", ["MAIL", "RCPT", "DATA"])
    def test_421_is_told_in_the_words_of_the_server(
        self, smtpd: ScriptedSMTP, sessions: Sessions, phase: str
    ) -> None:
        smtpd.reply(phase, "421 4.7.0 too many of you")
        with pytest.raises(NotTaken) as told:
            attempt(sessions)
        assert (told.value.code, told.value.reply) == (421, "421 4.7.0 too many of you")

    def test_421_to_the_dot_is_an_answer(self, smtpd: ScriptedSMTP, sessions: Sessions) -> None:
        smtpd.reply("DOT", "421 4.3.2 shutting down")
        assert attempt(sessions).final == Reply(421, "4.3.2 shutting down")
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert smtpd.connections == 2


class TestPatience:
    @pytest.mark.parametrize("phase", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA"])
    def test_a_server_that_hangs_is_left(self, smtpd: ScriptedSMTP, phase: str) -> None:
        hold = smtpd.hang(phase)
        with pytest.raises(NotTaken, match="timed out"):
            attempt(Sessions(hop(smtpd, timeout_seconds=0.2)))
        hold.release()

    @pytest.mark.parametrize("phase", ["GREETING", "MAIL"])
    def test_a_reply_that_trickles_in_is_left_too(self, smtpd: ScriptedSMTP, phase: str) -> None:
        smtpd.reply(phase, "250-and so on\n" * 20, drip_seconds=0.1)
        with pytest.raises(NotTaken, match="timed out"):
            attempt(Sessions(hop(smtpd, timeout_seconds=0.3)))

    def test_after_the_dot_it_is_ten_minutes(
        self, smtpd: ScriptedSMTP, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert session_module.AFTER_DOT_TIMEOUT_SECONDS == 600
        monkeypatch.setattr(session_module, "AFTER_DOT_TIMEOUT_SECONDS", 0.2)
        hold = smtpd.hold("DOT")
        with pytest.raises(Unanswered, match="timed out"):
            attempt(sessions)
        hold.release()
        assert smtpd.copies("1@example.org") == 1

    def test_after_the_dot_it_is_longer_than_for_other_replies(self, smtpd: ScriptedSMTP) -> None:
        sessions = Sessions(hop(smtpd, timeout_seconds=0.2))
        smtpd.reply("DOT", "250 2.0.0 ok", drip_seconds=0.05)
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        sessions.close()

    def test_a_server_that_does_not_answer_quit_is_left(self, smtpd: ScriptedSMTP) -> None:
        sessions = Sessions(hop(smtpd))
        attempt(sessions)
        hold = smtpd.hang("QUIT")
        sessions.close()
        assert hold.reached.is_set()
        smtpd.release()

    def test_a_server_that_refuses_connections_is_told(self, smtpd: ScriptedSMTP) -> None:
        smtpd.stop()
        with pytest.raises(NotTaken, match="could not be reached: Connection refused"):
            attempt(Sessions(hop(smtpd)))

    def test_a_name_that_nobody_has_is_told(self) -> None:
        with pytest.raises(NotTaken, match="could not be reached"):
            attempt(
                Sessions(NextHop(host="mx.invalid", port=25, security="none", timeout_seconds=2))
            )

    def test_a_refusal_in_the_greeting_is_told_and_is_not_of_the_mail(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.reply("GREETING", "554 5.7.1 go away")
        with pytest.raises(NotTaken) as told:
            attempt(sessions)
        assert (told.value.reply, told.value.permanent) == ("554 5.7.1 go away", False)


class TestReuse:
    def test_many_mails_go_over_one_session(self, smtpd: ScriptedSMTP, sessions: Sessions) -> None:
        for _ in range(10):
            attempt(sessions)
        assert (smtpd.connections, len(smtpd.messages)) == (1, 10)

    def test_a_session_is_renewed_before_the_server_would_end_it(self, smtpd: ScriptedSMTP) -> None:
        sessions = Sessions(hop(smtpd, mails_per_connection=3))
        for _ in range(7):
            attempt(sessions)
        assert (smtpd.connections, verbs(smtpd).count("QUIT")) == (3, 2)
        sessions.close()

    def test_an_old_session_is_not_used_again(
        self, smtpd: ScriptedSMTP, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session_module, "SESSION_AGE_MAX_SECONDS", -1)
        attempt(sessions)
        attempt(sessions)
        assert smtpd.connections == 2

    def test_a_session_that_the_server_closed_while_idle_is_not_used_again(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        attempt(sessions)
        smtpd.stop()
        smtpd.start()
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert verbs(smtpd).count("MAIL") == 2

    def test_a_session_on_which_the_server_said_too_much_is_not_used_again(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        smtpd.reply("DOT", b"250 2.0.0 ok\r\n250 2.0.0 and another\r\n")
        attempt(sessions)
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert smtpd.connections == 2

    @pytest.mark.parametrize("reset", [False, True])
    def test_a_kept_session_that_is_found_dead_at_mail_is_replaced_at_once(
        self, smtpd: ScriptedSMTP, sessions: Sessions, reset: bool
    ) -> None:
        attempt(sessions)
        smtpd.drop("MAIL", reset=reset)
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert (smtpd.connections, len(smtpd.payloads)) == (2, 2)

    def test_a_kept_session_that_is_answered_421_is_replaced_at_once(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        attempt(sessions)
        smtpd.reply("MAIL", "421 4.4.2 you were idle")
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert (smtpd.connections, len(smtpd.payloads)) == (2, 2)

    def test_it_is_replaced_only_once(self, smtpd: ScriptedSMTP, sessions: Sessions) -> None:
        attempt(sessions)
        smtpd.drop("MAIL", times=None)
        with pytest.raises(NotTaken):
            attempt(sessions)
        assert smtpd.connections == 2

    def test_it_is_replaced_by_a_new_one_and_not_by_another_that_was_kept(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        with sessions.borrow(), sessions.borrow():
            pass
        smtpd.drop("MAIL")
        assert attempt(sessions).final == Reply(250, "2.0.0 ok")
        assert smtpd.connections == 3

    def test_a_kept_session_that_is_lost_after_the_dot_is_not_replaced(
        self, smtpd: ScriptedSMTP, sessions: Sessions
    ) -> None:
        attempt(sessions)
        smtpd.drop("DOT")
        with pytest.raises(Unanswered):
            attempt(sessions)
        assert (smtpd.connections, len(smtpd.payloads)) == (1, 2)

    def test_a_session_on_which_we_failed_half_way_is_not_used_again(
        self, sessions: Sessions
    ) -> None:
        with pytest.raises(ZeroDivisionError), sessions.borrow() as session:
            _ = 1 / 0
        with sessions.borrow() as another:
            assert another is not session

    def test_each_of_two_threads_has_its_own(self, smtpd: ScriptedSMTP, sessions: Sessions) -> None:
        smtpd.hang("DOT")
        threads = [threading.Thread(target=attempt, args=(sessions,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(smtpd.payloads) == 2)
        smtpd.release()
        for thread in threads:
            thread.join()
        assert (smtpd.connections, len(smtpd.messages)) == (2, 2)


class TestPayload:
    @pytest.mark.parametrize(
        "body",
        [
            b".",
            b".\r\n",
            b"..\r\n",
            b".\r\n.\r\n",
            b"a\r\n.b\r\n..c\r\n.\r\n.\r\nd",
            b"\r\n.\r\n",
            b"a\r\n",
            b"a",
            b"\r\n",
            b"a.\r\nb.",
            b"",
        ],
    )
    def test_arrives_as_it_was_whatever_its_dots(
        self, smtpd: ScriptedSMTP, sessions: Sessions, body: bytes
    ) -> None:
        for payload in (body, MAIL + body):
            attempt(sessions, payload=payload)
            assert smtpd.payloads[-1].data.removesuffix(b"\r\n") == payload.removesuffix(b"\r\n")
        assert len(smtpd.payloads) == 2

    def test_of_a_megabyte_arrives_whole(self, smtpd: ScriptedSMTP, sessions: Sessions) -> None:
        payload = MAIL + b"".join(b"%d\r\n" % n for n in range(150_000))
        attempt(sessions, payload=payload)
        assert smtpd.payloads[0].data == payload


class TestLogin:
    @pytest.mark.parametrize("security", ["ssl", "starttls"])
    def test_over_verified_tls_is_done_once_for_many_mails(
        self, certificates: Certificates, security: str
    ) -> None:
        with ScriptedSMTP(
            tls=security,  # type: ignore[arg-type]
            certificate=certificates.valid,
            auth={ALICE: "pass word"},
        ) as smtpd:
            sessions = Sessions(
                hop(
                    smtpd,
                    security=security,
                    user=ALICE,
                    password="pass word",
                    ca_file=str(certificates.ca_file),
                )
            )
            for _ in range(5):
                assert attempt(sessions).final == Reply(250, "2.0.0 ok")
            sessions.close()
            assert (
                smtpd.logins,
                smtpd.connections,
                {delivery.user for delivery in smtpd.messages},
            ) == (
                1,
                1,
                {ALICE},
            )
            assert smtpd.violations == []

    def test_a_tls_session_that_the_server_closed_while_idle_is_not_used_again(
        self, certificates: Certificates
    ) -> None:
        with ScriptedSMTP(tls="ssl", certificate=certificates.valid) as smtpd:
            sessions = Sessions(hop(smtpd, security="ssl", ca_file=str(certificates.ca_file)))
            attempt(sessions)
            smtpd.stop()
            smtpd.start()
            assert attempt(sessions).final == Reply(250, "2.0.0 ok")
            sessions.close()

    @pytest.mark.parametrize(
        "reply",
        [
            "535 5.7.8 no",
            "534 5.7.9 app password needed",
            "454 4.7.0 too many logins",
            "421 4.7.0 busy",
        ],
    )
    def test_a_refusal_is_of_the_account_and_not_of_the_mail(self, reply: str) -> None:
        with ScriptedSMTP(auth={ALICE: "secret"}) as smtpd:
            smtpd.reply("AUTH", reply, times=None)
            with pytest.raises(NotTaken) as told:
                attempt(Sessions(hop(smtpd, user=ALICE, password="secret")))
            assert (told.value.code, told.value.reply, told.value.permanent) == (
                int(reply[:3]),
                reply,
                False,
            )
            assert "secret" not in str(told.value)

    def test_a_file_of_certificates_that_is_none_is_told(self, tmp_path: Path) -> None:
        for file in (tmp_path / "none.pem", tmp_path):
            with pytest.raises(NotTaken, match="no file of certificates"):
                attempt(
                    Sessions(
                        NextHop(
                            host="127.0.0.1",
                            port=1,
                            security="ssl",
                            ca_file=str(file),
                            timeout_seconds=5,
                        )
                    )
                )

    def test_what_was_said_before_starttls_does_not_count(self, certificates: Certificates) -> None:
        with ScriptedSMTP(
            tls="starttls", certificate=certificates.valid, auth={ALICE: "secret"}
        ) as smtpd:
            smtpd.reply("STARTTLS", b"220 go ahead\r\n250 I have no AUTH\r\n")
            sessions = Sessions(
                hop(
                    smtpd,
                    security="starttls",
                    user=ALICE,
                    password="secret",
                    ca_file=str(certificates.ca_file),
                )
            )
            assert attempt(sessions).final == Reply(250, "2.0.0 ok")
            sessions.close()
            assert smtpd.logins == 1

    def test_a_refusal_is_told_also_when_the_server_hangs_up_with_it(self) -> None:
        with ScriptedSMTP(auth={ALICE: "secret"}) as smtpd:
            smtpd.reply("AUTH", "535 5.7.8 no", close=True)
            with pytest.raises(NotTaken) as told:
                attempt(Sessions(hop(smtpd, user=ALICE, password="wrong")))
            assert (told.value.code, told.value.reply) == (535, "535 5.7.8 no")


def test_yagmails_own_send_is_not_to_be_used(smtpd: ScriptedSMTP) -> None:
    with pytest.raises(NotImplementedError):
        Session(hop(smtpd)).send(BOB, "subject", "contents")


def test_the_password_is_not_in_the_repr_of_the_hop() -> None:
    assert "secret" not in repr(
        NextHop(host="mx", port=1, security="ssl", user=ALICE, password="secret")
    )
