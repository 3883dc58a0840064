"""Logs in by a mechanism that the server offers, and remembers which one worked (RFC 4954)."""

import base64
import hmac
import smtplib
import threading
import time
import unicodedata
from collections.abc import Callable

from mailroom.smtp.connection import Connection, RawReply, Reply, reply_text
from mailroom.smtp.oauth2 import TokenError, TokenSource
from mailroom.smtp.replies import may_be_about_connections

#: Tried in this order. CRAM-MD5 needs a server that can read its passwords: many offer it and refuse all.
MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
#: LOGIN with the user in the command itself, for servers that refuse it without.
LOGIN_WITH_USER = "LOGIN at once"
#: Replies about the mechanism, not about user or password (RFC 5321, 4.2.2; RFC 4954, 4 and 6).
#: 0: the server hung up.
_MECHANISM_CODES = frozenset({0, 500, 501, 502, 503, 504, 538})
#: Length without CRLF (RFC 5321, 4.5.3.1.4); a longer argument has to wait for 334 (RFC 4954, 4).
COMMAND_MAX_BYTES = 510


class NoMechanism(Exception):
    """Raised if we and the server know no common way to log in; the text says which ones it offers."""


class Login:
    """Logs in to one account, for all its sessions and threads.

    Until a login has worked, only one session tries at a time. A mail that was claimed before a refusal takes
    that refusal as its own: ten wrong logins in a row get an account locked, or our address banned.
    """

    def __init__(self, user: str, password: str = "", tokens: TokenSource | None = None) -> None:
        self.user = user
        self.tokens = tokens
        self._user = prepare(user).encode()
        self._password = prepare(password).encode()
        self._last_mechanism = ""  #: the one that worked last
        self._works = False
        self._lock = threading.Lock()
        self._failed_at = 0.0
        self._failure: Exception = NoMechanism()

    def log_in(self, connect: Callable[[], Connection], *, since: float) -> None:
        """Log in on what `connect` returns.

        Each mechanism gets a new connection, as servers hang up after a refusal.

        `since` is when the mail was claimed, on the clock of time.monotonic.

        Raises:
          NoMechanism: there is none to try.
          SMTPAuthenticationError: all were refused; has the reply that says most.
          TokenError: there is no access token.
        """
        if not self._works:
            with self._lock:
                if not self._works and self._failed_at > since:
                    raise self._failure.with_traceback(None)
                if not self._works:
                    return self._try(connect)
        self._try(connect)

    def _try(self, connect: Callable[[], Connection]) -> None:
        try:
            self._try_each(connect)
        except Exception as e:
            if not self._works or _is_about_login(e):
                self._works = False
                self._failure = e
                self._failed_at = time.monotonic()
            raise
        self._works = True

    def _try_each(self, connect: Callable[[], Connection]) -> None:
        token = self.tokens.auth_string(self.user) if self.tokens else ""
        connection = connect()
        untried = self._common_mechanisms(connection)
        refusals: list[RawReply] = []
        while untried:
            mechanism = untried.pop(0)
            code, text = self._authenticate(connection, mechanism, token)
            if code == 235:
                self._last_mechanism = mechanism
                return
            refusals.append((code, text))
            is_about_mechanism = code in _MECHANISM_CODES
            has_worked = mechanism == self._last_mechanism
            if 400 <= code < 500 or (has_worked and not is_about_mechanism):
                break  # The server cannot do it now, or the password is no longer right.
            if mechanism == "LOGIN" and is_about_mechanism:
                untried.insert(0, LOGIN_WITH_USER)
            try:
                connection = connect() if untried else connection
            except (OSError, smtplib.SMTPException):
                break  # The refusal says more than this error.
        if self.tokens:
            self.tokens.forget()
        raise smtplib.SMTPAuthenticationError(*_most_telling(refusals))

    def _common_mechanisms(self, connection: Connection) -> list[str]:
        """Return the mechanisms that both sides know, the one that worked last first."""
        announced = connection.esmtp_features.get("auth", "")
        offered = reply_text(announced).upper().split()
        known = ("XOAUTH2",) if self.tokens else MECHANISMS
        common = [mechanism for mechanism in known if mechanism in offered]
        if not common:
            offer = ", ".join(offered) or "none"
            if not offered and connection.has_extn("starttls"):
                offer = "none before STARTTLS"
            raise NoMechanism(f"offers no way to log in that we know (it offers {offer})")
        last = self._last_mechanism.split(" ")[0]
        if last in common:
            common.remove(last)
            common.insert(0, self._last_mechanism)
        return common

    def _authenticate(self, connection: Connection, mechanism: str, token: str) -> RawReply:
        """Try one mechanism and return the last reply; code 0: the server hung up, or makes no sense."""
        try:
            if mechanism == "PLAIN":
                return self._plain(connection)
            if mechanism == "LOGIN":
                return _exchange(connection, "AUTH LOGIN", self._user, self._password)
            if mechanism == LOGIN_WITH_USER:
                command = f"AUTH LOGIN {_base64(self._user)}"
                return _exchange(connection, command, self._password)
            if mechanism == "CRAM-MD5":
                return self._cram_md5(connection)
            # Gmail says in a 334 why it refuses a token; the code comes after an empty answer.
            return _exchange(connection, f"AUTH XOAUTH2 {token}", b"")
        except smtplib.SMTPServerDisconnected as e:
            if isinstance(e.__cause__, TimeoutError):
                raise
            return 0, f"the server hung up at AUTH {mechanism}".encode()
        except ValueError:  # The challenge is not base64.
            return 0, f"the server's reply to AUTH {mechanism} makes no sense".encode()

    def _plain(self, connection: Connection) -> RawReply:
        credentials = b"\0".join((b"", self._user, self._password))
        command = f"AUTH PLAIN {_base64(credentials)}"
        if len(command) > COMMAND_MAX_BYTES:
            command = "AUTH PLAIN"
        return _exchange(connection, command, credentials)

    def _cram_md5(self, connection: Connection) -> RawReply:
        """Answer the server's challenge (RFC 2195)."""
        code, challenge = connection.docmd("AUTH CRAM-MD5")
        if code != 334:
            return code, challenge
        text = base64.b64decode(challenge)
        digest = hmac.new(self._password, text, "md5").hexdigest()
        answer = self._user + b" " + digest.encode()
        return connection.docmd(_base64(answer))


def _is_about_login(error: Exception) -> bool:
    """Tell a login that no longer works from a server with too many sessions."""
    if isinstance(error, smtplib.SMTPAuthenticationError):
        text = reply_text(error.smtp_error)
        reply = Reply(error.smtp_code, text)
        return not may_be_about_connections(reply)
    return isinstance(error, (NoMechanism, TokenError))


def _exchange(connection: Connection, command: str, *answers: bytes) -> RawReply:
    """Send the command, and one answer for each 334; return the last reply."""
    code, text = connection.docmd(command)
    for answer in answers:
        if code != 334:
            break
        code, text = connection.docmd(_base64(answer))
    return code, text


def _most_telling(refusals: list[RawReply]) -> RawReply:
    """Return the first refusal that is about user or password, or else the first of all."""
    for code, text in refusals:
        if code not in _MECHANISM_CODES:
            return code, text
    return refusals[0]


def _base64(text: bytes) -> str:
    encoded = base64.b64encode(text)
    return encoded.decode()


def prepare(text: str) -> str:
    """Return a user or password as it is sent: composed, with plain spaces (OpaqueString, RFC 8265, 4.2).

    SASLprep (RFC 4013) is left to the server, which compares (RFC 4616, 2). For a server that compares bytes
    it would spoil a µ or ² in a password.
    """
    plain = "".join(map(_plain_space, text))
    return unicodedata.normalize("NFC", plain)


def _plain_space(letter: str) -> str:
    return " " if unicodedata.category(letter) == "Zs" else letter
