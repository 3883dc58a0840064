"""Logs in by a mechanism that the server takes, and remembers which one that was (RFC 4954)."""

import base64
import hmac
import smtplib
import threading
import time
import unicodedata
from collections.abc import Callable

from mailroom.smtp.connection import Link, Reply, reply_text
from mailroom.smtp.oauth2 import TokenError, TokenSource
from mailroom.smtp.replies import may_be_of_connections

#: In this order. CRAM-MD5 needs a server that can read its passwords: it is often offered, and then refuses all.
MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
#: LOGIN with the user in its first line, for a server that takes no LOGIN without.
LOGIN_AT_ONCE = "LOGIN at once"
#: These say nothing of user or password (RFC 5321, 4.2.2; RFC 4954, 4 and 6). 0: the server hung up without a word.
_OF_MECHANISM = frozenset({0, 500, 501, 502, 503, 504, 538})
#: Without its CRLF (RFC 5321, 4.5.3.1.4); what is longer has to wait for 334 (RFC 4954, 4).
COMMAND_MAX_BYTES = 510

Said = tuple[int, bytes]


class NoMechanism(Exception):
    """There is no way to log in that both we and the server know; the text says which it offers."""


class Login:
    """The login of one account at its next hop, by all its sessions and threads.

    Until it has worked, one session tries it at a time, and a mail that was claimed before a refusal takes that for
    its own: ten wrong logins in a row get an account locked, or us banned.
    """

    def __init__(self, user: str, password: str = "", tokens: TokenSource | None = None) -> None:
        self.user = user
        self.tokens = tokens
        self._user, self._password = prepared(user).encode(), prepared(password).encode()
        self._taken = ""  #: the mechanism that let us in last
        self._works = False
        self._turn = threading.Lock()
        self._failed_at = 0.0
        self._failure: Exception = NoMechanism()

    def log_in(self, connect: Callable[[], Link], *, since: float) -> None:
        """Log in on what `connect` returns; a new connection for each mechanism, as servers hang up with a refusal.

        `since`: when the mail was claimed that this is for, on time.monotonic.

        Raises:
          NoMechanism: there is none to try.
          SMTPAuthenticationError: they were refused; has the words that say most.
          TokenError: there is no access token.
        """
        if not self._works:
            with self._turn:
                if not self._works and self._failed_at > since:
                    raise self._failure.with_traceback(None)
                if not self._works:
                    return self._try(connect)
        self._try(connect)

    def _try(self, connect: Callable[[], Link]) -> None:
        try:
            self._try_each(connect)
        except Exception as e:
            if not self._works or _is_of_login(e):
                self._works, self._failure, self._failed_at = False, e, time.monotonic()
            raise
        self._works = True

    def _try_each(self, connect: Callable[[], Link]) -> None:
        token = self.tokens.auth_string(self.user) if self.tokens else ""
        link = connect()
        left = self._mechanisms(link)
        refusals: list[Said] = []
        while left:
            mechanism = left.pop(0)
            code, text = self._attempt(link, mechanism, token)
            if code == 235:
                self._taken = mechanism
                return
            refusals.append((code, text))
            if 400 <= code < 500 or (mechanism == self._taken and code not in _OF_MECHANISM):
                break  # It cannot do so now, or the password is no longer right.
            if mechanism == "LOGIN" and code in _OF_MECHANISM:
                left.insert(0, LOGIN_AT_ONCE)
            try:
                link = connect() if left else link
            except (OSError, smtplib.SMTPException):
                break  # The refusal says more.
        if self.tokens:
            self.tokens.forget()
        raise smtplib.SMTPAuthenticationError(*_most_telling(refusals))

    def _mechanisms(self, link: Link) -> list[str]:
        """Return the mechanisms that both sides know; first the one that was taken before."""
        offered = reply_text(link.esmtp_features.get("auth", "")).upper().split()
        known = ("XOAUTH2",) if self.tokens else MECHANISMS
        both = [mechanism for mechanism in known if mechanism in offered]
        if not both:
            none = "none before STARTTLS" if link.has_extn("starttls") else "none"
            raise NoMechanism(
                f"offers no way to log in that we know (it offers {', '.join(offered) or none})"
            )
        if self._taken.split(" ")[0] in both:
            both.remove(self._taken.split(" ")[0])
            both.insert(0, self._taken)
        return both

    def _attempt(self, link: Link, mechanism: str, token: str) -> Said:
        """Make one AUTH; return the last reply to it. Code 0: there was none."""
        try:
            if mechanism == "PLAIN":
                return self._plain(link)
            if mechanism == "LOGIN":
                return _dialog(link, "AUTH LOGIN", self._user, self._password)
            if mechanism == LOGIN_AT_ONCE:
                return _dialog(link, f"AUTH LOGIN {_base64(self._user)}", self._password)
            if mechanism == "CRAM-MD5":
                return self._cram_md5(link)
            return _dialog(
                link, f"AUTH XOAUTH2 {token}", b""
            )  # Gmail says why in a 334; the code comes after it.
        except smtplib.SMTPServerDisconnected as e:
            if isinstance(e.__cause__, TimeoutError):
                raise
            return 0, f"the server hung up at AUTH {mechanism}".encode()
        except ValueError:  # Its challenge is not in base64.
            return 0, f"the server's reply to AUTH {mechanism} makes no sense".encode()

    def _plain(self, link: Link) -> Said:
        answer = b"\0".join((b"", self._user, self._password))
        command = f"AUTH PLAIN {_base64(answer)}"
        return _dialog(link, command if len(command) <= COMMAND_MAX_BYTES else "AUTH PLAIN", answer)

    def _cram_md5(self, link: Link) -> Said:
        """RFC 2195."""
        code, challenge = link.docmd("AUTH CRAM-MD5")
        if code != 334:
            return code, challenge
        digest = hmac.new(self._password, base64.b64decode(challenge), "md5").hexdigest()
        return link.docmd(_base64(self._user + b" " + digest.encode()))


def _is_of_login(error: Exception) -> bool:
    """Tell a login that no longer works from a session too many."""
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return not may_be_of_connections(Reply(error.smtp_code, reply_text(error.smtp_error)))
    return isinstance(error, (NoMechanism, TokenError))


def _dialog(link: Link, command: str, *answers: bytes) -> Said:
    """Say it, and an answer for each 334; return the reply that follows."""
    code, text = link.docmd(command)
    for answer in answers:
        if code != 334:
            break
        code, text = link.docmd(_base64(answer))
    return code, text


def _most_telling(refusals: list[Said]) -> Said:
    return next((said for said in refusals if said[0] not in _OF_MECHANISM), refusals[0])


def _base64(text: bytes) -> str:
    return base64.b64encode(text).decode()


def prepared(text: str) -> str:
    """A user or password as it is sent, in UTF-8: composed, with plain spaces (OpaqueString, RFC 8265, 4.2).

    SASLprep (RFC 4013) is left to the server, which compares (RFC 4616, 2). Where it compares bytes, a µ or ² in a
    password would no longer be the same.
    """
    spaced = "".join(" " if unicodedata.category(letter) == "Zs" else letter for letter in text)
    return unicodedata.normalize("NFC", spaced)
