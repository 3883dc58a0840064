"""Logging in: by a mechanism that the server takes, with few wrong logins, and its reply if it takes none."""

import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailroom.model.account import NextHop
from mailroom.model.errors import NotTaken
from mailroom.smtp.pool import Sessions
from tests.services import wait_until
from tests.services.smtpd import ScriptedSMTP

ALICE = "alice@example.org"


@contextmanager
def server(
    mechanisms: str = "PLAIN LOGIN", *, user: str = ALICE, password: str = "secret"
) -> Iterator[ScriptedSMTP]:
    with ScriptedSMTP(auth={user: password}, mechanisms=mechanisms) as smtpd:
        yield smtpd
        assert smtpd.violations == []


def at(
    smtpd: ScriptedSMTP, *, user: str = ALICE, password: str = "secret", timeout_seconds: float = 60
) -> Sessions:
    return Sessions(
        NextHop(
            host=smtpd.host,
            port=smtpd.port,
            security="none",
            user=user,
            password=password,
            timeout_seconds=timeout_seconds,
        )
    )


def log_in(sessions: Sessions) -> None:
    """On a new session, which is closed then."""
    with sessions.borrow():
        pass
    sessions.close()


def refusal(sessions: Sessions) -> NotTaken:
    with pytest.raises(NotTaken) as told:
        log_in(sessions)
    assert not told.value.of_message
    return told.value


def tried(smtpd: ScriptedSMTP) -> list[str]:
    """The mechanisms that were tried, in order, each with a + where something follows in its line."""
    said = [
        line.upper().split(" ") for _, line in smtpd.commands if line.upper().startswith("AUTH ")
    ]
    return [words[1] + "+" * (len(words) > 2) for words in said]


class TestMechanisms:
    @pytest.mark.parametrize(
        ("offered", "first"),
        [
            ("CRAM-MD5 LOGIN PLAIN", "PLAIN+"),
            ("CRAM-MD5 LOGIN", "LOGIN"),
            ("CRAM-MD5 NTLM", "CRAM-MD5"),
            ("plain", "PLAIN+"),
            ("XOAUTH2 LOGIN", "LOGIN"),
        ],
    )
    def test_the_first_that_both_know_is_taken(self, offered: str, first: str) -> None:
        with server(offered) as smtpd:
            log_in(at(smtpd))
            assert (tried(smtpd), smtpd.logins) == ([first], 1)

    @pytest.mark.parametrize(
        "reply",
        [
            "501 5.5.4 no",
            "504 5.5.4 unknown",
            "534 5.7.9 too weak",
            "535 5.7.8 no",
            "538 5.7.11 encrypt",
            "550 no",
        ],
    )
    @pytest.mark.parametrize("close", [False, True])
    def test_one_that_is_refused_is_followed_by_the_next(self, reply: str, close: bool) -> None:
        with server("CRAM-MD5 PLAIN LOGIN") as smtpd:
            smtpd.reply("MECHANISM", reply, match="AUTH PLAIN", close=close)
            log_in(at(smtpd))
            assert (tried(smtpd), smtpd.logins) == (["PLAIN+", "LOGIN"], 1)

    def test_all_are_tried_where_the_server_hangs_up_with_each_refusal(self) -> None:
        with server("CRAM-MD5 LOGIN PLAIN") as smtpd:
            for mechanism in ("PLAIN", "LOGIN"):
                smtpd.reply("AUTH", "535 5.7.8 no", match=f"AUTH {mechanism}", close=True)
            log_in(at(smtpd))
            assert (tried(smtpd), smtpd.logins, smtpd.connections) == (
                ["PLAIN+", "LOGIN", "CRAM-MD5"],
                1,
                3,
            )

    def test_one_at_which_the_server_hangs_up_without_a_word_is_followed_by_the_next(self) -> None:
        with server() as smtpd:
            smtpd.drop("AUTH", match="AUTH PLAIN")
            log_in(at(smtpd))
            assert (tried(smtpd), smtpd.logins) == (["PLAIN+", "LOGIN"], 1)

    def test_a_challenge_that_is_none_is_a_refusal(self) -> None:
        with server("CRAM-MD5") as smtpd:
            smtpd.reply("MECHANISM", "334 abcde")
            assert refusal(at(smtpd)).reply == "the server's reply to AUTH CRAM-MD5 makes no sense"

    def test_challenges_have_an_end(self) -> None:
        with server() as smtpd:
            smtpd.reply("MECHANISM", "334 ", times=None)
            smtpd.reply("OTHER", "334 ", times=None)
            assert refusal(at(smtpd)).reply == "334"
            assert tried(smtpd) == ["PLAIN+", "LOGIN"]


class TestLOGIN:
    """Servers differ on whether the user may stand in its first line."""

    def test_says_no_user_in_its_first_line_as_some_servers_refuse_that(self) -> None:
        with server("LOGIN") as smtpd:
            smtpd.reply("MECHANISM", "501 5.5.4 no", match="AUTH LOGIN ", times=None)
            log_in(at(smtpd))
            assert (tried(smtpd), smtpd.logins) == (["LOGIN"], 1)

    @pytest.mark.parametrize(
        "reply", ["501 5.5.2 argument expected", "502 5.5.1 no", "504 5.5.4 no"]
    )
    @pytest.mark.parametrize("close", [False, True])
    def test_says_the_user_where_the_server_wants_that(self, reply: str, close: bool) -> None:
        with server("LOGIN") as smtpd:
            smtpd.reply("MECHANISM", reply, close=close)
            sessions = at(smtpd)
            log_in(sessions)
            log_in(sessions)
            assert (tried(smtpd), smtpd.logins) == (["LOGIN", "LOGIN+", "LOGIN+"], 2)


class TestMemory:
    def test_the_next_session_begins_with_what_worked(self) -> None:
        with server("CRAM-MD5 PLAIN LOGIN") as smtpd:
            smtpd.reply("MECHANISM", "504 5.5.4 no", match="AUTH PLAIN", close=True, times=None)
            sessions = at(smtpd)
            for _ in range(3):
                log_in(sessions)
            assert (tried(smtpd), smtpd.connections) == (["PLAIN+", "LOGIN", "LOGIN", "LOGIN"], 4)

    def test_what_worked_is_refused_once_where_the_password_has_changed(self) -> None:
        with server("CRAM-MD5 PLAIN LOGIN") as smtpd:
            sessions = at(smtpd)
            log_in(sessions)
            smtpd.auth = {ALICE: "another"}
            assert refusal(sessions).code == 535
            assert tried(smtpd) == ["PLAIN+", "PLAIN+"]

    def test_what_worked_and_is_known_no_more_is_followed_by_the_next(self) -> None:
        with server() as smtpd:
            sessions = at(smtpd)
            log_in(sessions)
            smtpd.mechanisms = "LOGIN"
            log_in(sessions)
            smtpd.mechanisms = "LOGIN PLAIN"
            smtpd.reply("MECHANISM", "504 5.5.4 no", match="AUTH LOGIN")
            smtpd.reply("MECHANISM", "504 5.5.4 no", match="AUTH LOGIN ")
            log_in(sessions)
            assert tried(smtpd) == ["PLAIN+", "LOGIN", "LOGIN", "LOGIN+", "PLAIN+"]


class TestRefusals:
    @pytest.mark.parametrize(
        "reply",
        [
            "550 User has no permission",
            "550 5.7.30 Basic authentication is not supported for Client Submission",
            "553 5.3.0 no",
            "525 5.7.13 disabled",
            "538 5.7.11 encrypt",
            "554 5.7.1 suspended",
            "501 5.7.0 no",
            "535 5.7.8 no",
            "534 5.7.9 app password",
        ],
    )
    def test_for_good_are_told_after_all_were_tried(self, reply: str) -> None:
        with server("CRAM-MD5 PLAIN LOGIN") as smtpd:
            smtpd.reply("AUTH", reply, times=None, close=True)
            told = refusal(at(smtpd))
            assert (told.code, told.reply) == (int(reply[:3]), reply)
            assert sorted(set(tried(smtpd)) - {"LOGIN+"}) == ["CRAM-MD5", "LOGIN", "PLAIN+"]

    @pytest.mark.parametrize(
        "reply",
        [
            "451 Authentication failed: Maximum credits exceeded",
            "432 4.7.12 a password transition is needed",
            "454 4.7.0 too many logins",
            "421 4.7.0 busy",
        ],
    )
    def test_for_now_are_told_at_once(self, reply: str) -> None:
        with server("CRAM-MD5 PLAIN LOGIN") as smtpd:
            smtpd.reply("AUTH", reply, times=None)
            told = refusal(at(smtpd))
            assert (told.code, told.reply, tried(smtpd)) == (int(reply[:3]), reply, ["PLAIN+"])

    def test_of_the_password_say_more_than_those_of_mechanisms(self) -> None:
        with server("CRAM-MD5 PLAIN LOGIN") as smtpd:
            smtpd.reply("MECHANISM", "504 5.5.4 unknown", match="AUTH PLAIN")
            smtpd.reply("MECHANISM", "504 5.5.4 unknown", match="AUTH CRAM-MD5")
            assert refusal(at(smtpd, password="wrong")).code == 535

    def test_say_more_than_a_server_that_lets_us_not_try_again(self) -> None:
        with server() as smtpd:
            smtpd.reply("GREETING", "220 mx.example.org")
            smtpd.reply("GREETING", "421 4.7.0 too many connections")
            smtpd.reply("AUTH", "535 5.7.8 no", close=True)
            assert refusal(at(smtpd)).reply == "535 5.7.8 no"

    def test_a_server_that_hangs_is_left_and_no_other_mechanism_is_tried(self) -> None:
        with server() as smtpd:
            hold = smtpd.hang("AUTH")
            assert "timed out" in refusal(at(smtpd, timeout_seconds=0.2)).reply
            hold.release()
            assert tried(smtpd) == ["PLAIN+"]

    def test_a_wrong_password_shows_nowhere(self) -> None:
        with server(password="right") as smtpd:
            assert "secret" not in str(refusal(at(smtpd)))


class TestFewWrongLogins:
    """Servers lock accounts, and ban clients, after some."""

    def test_mails_that_were_claimed_before_a_refusal_share_it(self) -> None:
        with server() as smtpd:
            sessions, told, long_ago = at(smtpd, password="wrong"), [], 0.0

            def deliver() -> None:
                with pytest.raises(NotTaken) as refused, sessions.borrow(since=long_ago):
                    pass
                told.append(refused.value.code)

            threads = [threading.Thread(target=deliver) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert (told, tried(smtpd)) == ([535] * 8, ["PLAIN+", "LOGIN"])

    def test_who_comes_after_the_refusal_tries_again(self) -> None:
        with server() as smtpd:
            sessions = at(smtpd)
            smtpd.reply("AUTH", "535 5.7.8 no", times=2)
            assert refusal(sessions).code == 535
            log_in(sessions)

    def test_threads_log_in_side_by_side_once_a_login_has_worked(self) -> None:
        with server() as smtpd:
            sessions = at(smtpd)
            log_in(sessions)
            hold = smtpd.hold("AUTH", times=4)
            threads = [threading.Thread(target=log_in, args=(sessions,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            wait_until(lambda: len(hold.connections) == 4, 60)
            hold.release()
            for thread in threads:
                thread.join()
            assert smtpd.logins == 5


class TestNoMechanism:
    @pytest.mark.parametrize(
        ("offered", "words"),
        [("XOAUTH2", "XOAUTH2"), ("NTLM GSSAPI", "NTLM, GSSAPI"), ("", "none")],
    )
    def test_is_told_with_what_is_offered(self, offered: str, words: str) -> None:
        with server(offered) as smtpd:
            told = refusal(at(smtpd))
            assert told.reply == (
                f"127.0.0.1:{smtpd.port} offers no way to log in that we know (it offers {words})"
            )
            assert (told.code, tried(smtpd)) == (504, [])

    def test_is_told_where_the_server_has_no_login_at_all(self) -> None:
        with ScriptedSMTP() as smtpd:
            assert refusal(at(smtpd)).reply.endswith(
                "offers no way to log in that we know (it offers none)"
            )


class TestTexts:
    @pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
    @pytest.mark.parametrize("password", ["pässwörd", "пароль", "µ² €", "パスワード", "🔑"])
    def test_beyond_ascii_go_in_utf_8(self, mechanism: str, password: str) -> None:
        with server(mechanism, user="grüße", password=password) as smtpd:
            log_in(at(smtpd, user="grüße", password=password))
            assert smtpd.logins == 1

    @pytest.mark.parametrize(
        "typed", [unicodedata.normalize("NFD", "pässwörd 1"), "pässwörd\u00a01"]
    )
    def test_are_composed_and_have_plain_spaces(self, typed: str) -> None:
        with server(password="pässwörd 1") as smtpd:
            log_in(at(smtpd, password=typed))
            assert smtpd.logins == 1

    @pytest.mark.parametrize(("length", "first"), [(100, "PLAIN+"), (2000, "PLAIN")])
    def test_that_are_long_wait_to_be_asked_for(self, length: int, first: str) -> None:
        with server(password="x" * length) as smtpd:
            log_in(at(smtpd, password="x" * length))
            assert (tried(smtpd), smtpd.logins) == ([first], 1)
