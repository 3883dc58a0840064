"""Access tokens: fetched once, from a real HTTP server, and never shown, prompted for or sent in clear."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailroom.model.account import NextHop
from mailroom.model.errors import NotTaken
from mailroom.smtp import oauth2
from mailroom.smtp.login import Login
from mailroom.smtp.oauth2 import TokenError, TokenSource
from mailroom.smtp.session import Session
from tests.services.certificates import Certificates, make_certificates
from tests.services.smtpd import ScriptedSMTP
from tests.services.token_server import SECRETS, TOKEN, TokenServer, token_server

ALICE = "alice@example.org"


@pytest.fixture
def endpoint() -> Iterator[TokenServer]:
    with token_server() as server:
        yield server


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "oauth2.json"
    made.write_text(json.dumps(SECRETS))
    return made


@pytest.fixture
def tokens(file: Path, endpoint: TokenServer) -> TokenSource:
    return TokenSource(str(file), 2, url=endpoint.url)


def session(
    smtpd: ScriptedSMTP, tokens: TokenSource, certificates: Certificates, security: str = "ssl"
) -> Session:
    return Session(
        NextHop(
            host=smtpd.host,
            port=smtpd.port,
            security=security,
            user=ALICE,
            oauth2_file="set",
            timeout_seconds=5,
            ca_file=str(certificates.ca_file),
        ),
        login=Login(ALICE, tokens=tokens),
    )


class TestTokens:
    def test_are_asked_for_with_the_refresh_token_and_kept(
        self, tokens: TokenSource, endpoint: TokenServer
    ) -> None:
        assert tokens.auth_string(ALICE) == tokens.auth_string(ALICE)
        assert endpoint.asked == [
            {
                "client_id": ["the-client"],
                "client_secret": ["the-client-secret"],
                "refresh_token": ["the-refresh-token"],
                "grant_type": ["refresh_token"],
            }
        ]

    def test_are_renewed_before_they_end(self, tokens: TokenSource, endpoint: TokenServer) -> None:
        endpoint.answer = (
            200,
            json.dumps({**TOKEN, "expires_in": oauth2.MARGIN_SECONDS - 1}).encode(),
        )
        tokens.auth_string(ALICE)
        tokens.auth_string(ALICE)
        assert len(endpoint.asked) == 2

    def test_that_were_refused_are_fetched_anew(
        self, tokens: TokenSource, endpoint: TokenServer
    ) -> None:
        tokens.auth_string(ALICE)
        tokens.forget()
        tokens.auth_string(ALICE)
        assert len(endpoint.asked) == 2

    def test_are_fetched_once_for_many_threads(
        self, tokens: TokenSource, endpoint: TokenServer
    ) -> None:
        threads = [threading.Thread(target=tokens.auth_string, args=(ALICE,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(endpoint.asked) == 1

    @pytest.mark.parametrize(
        ("answer", "said"),
        [
            (
                (400, b'{"error": "invalid_grant", "error_description": "Revoked."}'),
                "answered 400 without a token: invalid_grant",
            ),
            ((400, b'{"error": "<b>the-client-secret</b>"}'), "answered 400 without a token$"),
            ((503, b"<html>busy</html>"), "answered 503 without a token"),
            ((200, b""), "answered 200 without a token"),
            ((200, b"[]"), "without a token"),
            ((200, b"{}"), "without a token"),
            ((200, b'{"access_token": "x"}'), "without a token"),
            ((200, b'{"access_token": null, "expires_in": 5}'), "without a token"),
            ((200, b'{"access_token": "x", "expires_in": "soon"}'), "without a token"),
            ((200, '{"access_token": "ü", "expires_in": 5}'.encode()), "without a token"),
            ((302, b""), "answered 302 without a token"),
        ],
    )
    def test_that_cannot_be_had_are_told_without_a_secret(
        self, tokens: TokenSource, endpoint: TokenServer, answer: tuple[int, bytes], said: str
    ) -> None:
        endpoint.answer = answer
        with pytest.raises(TokenError, match=said) as told:
            tokens.auth_string(ALICE)
        assert not any(secret in str(told.value) for secret in SECRETS.values())
        assert len(endpoint.asked) == 1

    def test_of_an_endpoint_that_is_away_are_told(self, file: Path) -> None:
        with pytest.raises(TokenError, match="could not be reached: ConnectionError"):
            TokenSource(str(file), 2, url="http://127.0.0.1:1/").auth_string(ALICE)

    @pytest.mark.parametrize(
        "content",
        [
            None,
            "",
            "[]",
            "{}",
            '{"installed": {"client_id": "x", "client_secret": "y"}}',
            "null",
            "\0",
        ],
    )
    def test_without_a_right_file_are_told_and_nobody_is_asked_and_nothing_written(
        self,
        tmp_path: Path,
        endpoint: TokenServer,
        monkeypatch: pytest.MonkeyPatch,
        content: str | None,
    ) -> None:
        def prompt(*args: object) -> str:
            raise AssertionError("prompted")

        monkeypatch.setattr("builtins.input", prompt)
        monkeypatch.setattr("getpass.getpass", prompt)
        file = tmp_path / "oauth2.json"
        if content is not None:
            file.write_text(content)
        with pytest.raises(TokenError, match="expected a yagmail OAuth2 file at"):
            TokenSource(str(file), 2, url=endpoint.url).auth_string(ALICE)
        assert (file.read_text() if file.exists() else None) == content
        assert endpoint.asked == []

    def test_of_a_file_that_was_replaced_are_had_without_a_restart(
        self, file: Path, tokens: TokenSource
    ) -> None:
        file.write_text("")
        with pytest.raises(TokenError):
            tokens.auth_string(ALICE)
        file.write_text(json.dumps(SECRETS))
        assert tokens.auth_string(ALICE)


class TestLogin:
    @pytest.mark.parametrize("security", ["ssl", "starttls"])
    def test_by_token_goes_over_verified_tls(
        self, tokens: TokenSource, certificates: Certificates, security: Any
    ) -> None:
        with ScriptedSMTP(
            tls=security, certificate=certificates.valid, auth={ALICE: "the-access-token"}
        ) as smtpd:
            opened = session(smtpd, tokens, certificates, security)
            opened.open()
            opened.close()
            assert smtpd.logins == 1
            # yagmail says EHLO with it
            assert not any("the-client" in line for _, line in smtpd.commands)
            assert smtpd.violations == []

    def test_never_goes_in_clear(
        self, tokens: TokenSource, endpoint: TokenServer, certificates: Certificates
    ) -> None:
        with ScriptedSMTP(auth={ALICE: "the-access-token"}) as smtpd:
            with pytest.raises(NotTaken, match="over TLS only"):
                session(smtpd, tokens, certificates, "none").open()
            assert (smtpd.commands, endpoint.asked) == ([], [])

    def test_never_goes_in_clear_where_starttls_was_stripped(
        self, tokens: TokenSource, certificates: Certificates
    ) -> None:
        with ScriptedSMTP(auth={ALICE: "the-access-token"}) as smtpd:
            with pytest.raises(NotTaken, match="STARTTLS"):
                session(smtpd, tokens, certificates, "starttls").open()
            assert not any(line.startswith("AUTH") for _, line in smtpd.commands)

    def test_that_is_refused_is_told_and_the_token_is_not_used_again(
        self, tokens: TokenSource, endpoint: TokenServer, certificates: Certificates
    ) -> None:
        with ScriptedSMTP(
            tls="ssl", certificate=certificates.valid, auth={ALICE: "another"}
        ) as smtpd:
            for asked in (1, 2):
                with pytest.raises(NotTaken) as told:
                    session(smtpd, tokens, certificates).open()
                assert (told.value.code, told.value.permanent, len(endpoint.asked)) == (
                    535,
                    False,
                    asked,
                )
                assert "the-access-token" not in str(told.value)

    def test_without_a_token_counts_as_refused(
        self, tokens: TokenSource, endpoint: TokenServer, certificates: Certificates
    ) -> None:
        endpoint.answer = 400, b'{"error": "invalid_grant"}'
        with ScriptedSMTP(tls="ssl", certificate=certificates.valid, auth={ALICE: "x"}) as smtpd:
            with pytest.raises(
                NotTaken,
                match="no access token: the token endpoint answered 400 without a token: invalid_grant",
            ) as told:
                session(smtpd, tokens, certificates).open()
            assert (told.value.code, smtpd.connections) == (535, 0)

    def test_is_tried_again_soon_where_the_token_endpoint_is_only_busy(
        self, tokens: TokenSource, endpoint: TokenServer, certificates: Certificates
    ) -> None:
        endpoint.answer = 503, b"busy"
        with ScriptedSMTP(tls="ssl", certificate=certificates.valid, auth={ALICE: "x"}) as smtpd:
            with pytest.raises(NotTaken) as told:
                session(smtpd, tokens, certificates).open()
            assert told.value.code == 421

    def test_ends_when_the_token_endpoint_hangs(
        self, file: Path, certificates: Certificates
    ) -> None:
        with ScriptedSMTP() as silent:  # It waits for a greeting that HTTP does not have.
            hold = silent.hang("GREETING")
            with pytest.raises(TokenError, match="could not be reached: ReadTimeout"):
                TokenSource(str(file), 0.2, url=f"http://127.0.0.1:{silent.port}/").auth_string(
                    ALICE
                )
            hold.release()
