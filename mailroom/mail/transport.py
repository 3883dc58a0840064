"""Speaks SMTP over yagmail's sessions, and tames what yagmail makes of it.

yagmail logs in: TLS, password, OAuth2. Overridden is what reads input as paths (`prepare_send`), retries by itself and hides
replies (`send`), leaves certificates unchecked, waits for ever, or prompts. One call is one attempt, and every reply is told.
"""

import logging
import selectors
import smtplib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, NoReturn

import yagmail

from mailroom.mail.errors import NotTaken, Unanswered
from mailroom.mail.oauth2 import TokenError, TokenSource

#: RFC 5321, 4.5.3.2.6: hanging up earlier would make copies of mails that were taken.
AFTER_DOT_TIMEOUT_SECONDS = 600
#: Gmail has been seen to drop a session after 80 to 100 mails; a session is cheap to renew before that.
MAILS_PER_SESSION = 80
SESSION_AGE_MAX_SECONDS = 300
QUIT_TIMEOUT_SECONDS = 1
REPLY_LINES_MAX = 100

_quiet = logging.getLogger("mailroom.yagmail")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


class Reply(NamedTuple):
    """What the server said: its code, and its text on one line."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip()

    @property
    def accepts(self) -> bool:
        return 200 <= self.code < 300


@dataclass(frozen=True, kw_only=True)
class NextHop:
    """The server that takes our mail, and how we make ourselves known to it."""

    host: str
    port: int
    security: str  #: ssl, starttls or none
    user: str = ""  #: "": no login
    password: str = field(default="", repr=False)
    oauth2_file: str = ""
    ca_file: str = ""
    timeout_seconds: float = 60.0

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """All replies of one attempt. `final` answers the last step that was reached: MAIL, DATA or the dot.

    `refused` has the recipients (by position) whose RCPT was refused; `final` is None where that was all of them.
    """

    refused: dict[int, Reply]
    final: Reply | None


class FenceRefused(Exception):
    """The row is no longer ours, or we are stopping: the session was closed before the payload, and nobody has the mail."""


class _Link(smtplib.SMTP):
    """What our links add to smtplib: a reply has an end, so that a server cannot hold us with an endless one."""

    sock: socket.socket

    def getreply(self) -> tuple[int, bytes]:
        deadline = time.monotonic() + (self.sock.gettimeout() or 0)
        texts: list[bytes] = []
        while len(texts) < REPLY_LINES_MAX and time.monotonic() <= deadline:
            line = self._readline()
            texts.append(line[4:].strip())
            if not line[:3].isdigit() or not line.endswith(b"\n"):
                return -1, line.strip()[:200]
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(texts)
        self.close()
        raise smtplib.SMTPServerDisconnected("the reply had no end")

    def _readline(self) -> bytes:
        try:
            if self.file is None:
                self.file = self.sock.makefile("rb")
            line: bytes = self.file.readline(8192)
        except OSError as e:
            self.close()
            raise smtplib.SMTPServerDisconnected(f"connection lost: {_words(e)}") from e
        if not line:
            self.close()
            raise smtplib.SMTPServerDisconnected("connection closed by the server")
        return line


class _TLSLink(_Link, smtplib.SMTP_SSL): ...


class Session(yagmail.SMTP):  # type: ignore[misc]  # yagmail ships no types
    """One connection to the next hop, logged in, for many mails one after the other. Not for two threads at once."""

    def __init__(self, hop: NextHop, *, tokens: TokenSource | None = None) -> None:
        context = ssl.create_default_context(cafile=hop.ca_file or None)  # stock yagmail verifies no certificate
        tls: dict[str, Any] = {"context": context}
        super().__init__(
            user=hop.user or "nobody@localhost", password=hop.password, host=hop.host, port=hop.port,
            smtp_ssl=hop.security == "ssl", smtp_starttls=tls if hop.security == "starttls" else False,
            smtp_skip_login=not hop.user, soft_email_validation=False,
            timeout=hop.timeout_seconds, local_hostname=_host_name(), **(tls if hop.security == "ssl" else {}))
        self.user = hop.user  # yagmail appends @gmail.com to a name without @, which is no other server's user.
        self.hop = hop
        self.tokens = tokens
        self.born = time.monotonic()

    def set_logging(self, log_level: int | None = None, file_path_name: str | None = None) -> None:
        """Say nothing: yagmail logs addresses, and has just replaced the handlers of its logger."""
        logging.getLogger("yagmail.log").handlers.clear()
        self.log = _quiet

    @property
    def connection(self) -> type[smtplib.SMTP]:
        return _TLSLink if self.ssl else _Link

    def open(self) -> None:
        """Connect and log in.

        Raises:
          NotTaken: with `of_message` False: refused, unreachable, not who it should be, or wrong credentials.
        """
        try:
            if self.tokens is None:
                self._login(self.credentials)
            else:
                self._login_oauth2(self.tokens)
            self.smtp.ehlo_or_helo_if_needed()
        except (OSError, smtplib.SMTPException, TokenError, ValueError) as e:
            self.drop()
            raise _as_not_taken(e, self.hop) from e

    def _login_oauth2(self, tokens: TokenSource) -> None:
        """As yagmail's, but the bearer token goes only over verified TLS, and the server's answer is looked at."""
        auth_string = tokens.auth_string(self.user)
        self.smtp_skip_login = True
        self._login("")
        code, text = self.smtp.docmd("AUTH", "XOAUTH2 " + auth_string)
        if code == 334:  # Gmail puts the reason into a challenge, and gives the code after an empty answer.
            code, text = self.smtp.docmd("")
        if code != 235:
            tokens.forget()
            raise smtplib.SMTPAuthenticationError(code, text)

    def send(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError("yagmail's send() may send three times and reads bodies as paths; use attempt()")

    def attempt(self, sender: str, recipients: dict[int, str], payload: bytes, *, fence: Callable[[], bool]) -> Receipt:
        """Hand one mail over, once. `fence` is asked after 354 and before the payload; False ends it there.

        Raises:
          NotTaken: the link was lost before the final dot; nobody has the mail.
          Unanswered: the link was lost after it.
          FenceRefused: `fence` said no.
        """
        try:
            mail, refused, data = self._envelope(sender, recipients, len(payload))
        except (OSError, smtplib.SMTPException) as e:
            self.drop()
            raise NotTaken(_words(e), of_message=False) from e
        if not mail.accepts or len(refused) == len(recipients):
            if data is not None and data.code == 354:
                self._end_empty()
            self._clean_after(mail, *refused.values())
            return Receipt(refused=refused, final=None) if mail.accepts else Receipt(refused={}, final=mail)
        if data is None or data.code != 354:
            return Receipt(refused=refused, final=self._clean_after(data or Reply(0, "no reply to DATA")))
        return Receipt(refused=refused, final=self._payload(payload, fence))

    def _envelope(self, sender: str, recipients: dict[int, str], size: int) -> tuple[Reply, dict[int, Reply], Reply | None]:
        """MAIL, RCPT for each, DATA; in one write where the server takes that (PIPELINING, RFC 2920)."""
        limit = f" SIZE={size}" if self.smtp.has_extn("size") else ""
        commands = [f"MAIL FROM:<{sender}>{limit}", *(f"RCPT TO:<{address}>" for address in recipients.values()), "DATA"]
        pipelined = self.smtp.has_extn("pipelining")
        if pipelined:
            self.smtp.send("".join(f"{command}\r\n" for command in commands))
        replies: list[Reply] = []
        for command in commands:
            refused_all = len(replies) > 1 and not any(reply.accepts for reply in replies[1:])
            if not pipelined and replies and (not replies[0].accepts or (command == "DATA" and refused_all)):
                break
            if not pipelined:
                self.smtp.send(f"{command}\r\n")
            replies.append(self._reply())
        rcpt = dict(zip(recipients, replies[1:len(recipients) + 1], strict=False))
        return (replies[0], {position: reply for position, reply in rcpt.items() if not reply.accepts},
                replies[-1] if len(replies) == len(commands) else None)

    def _payload(self, payload: bytes, fence: Callable[[], bool]) -> Reply:
        try:
            if not fence():
                raise FenceRefused
        except BaseException:
            self.drop()  # After 354 there is no other way to take a mail back.
            raise
        stuffed = payload.replace(b"\r\n.", b"\r\n..")
        stuffed = (b"." + stuffed if stuffed.startswith(b".") else stuffed) + (b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n")
        try:
            self.smtp.send(stuffed)  # The dot comes last: what fails here was not handed over.
        except (OSError, smtplib.SMTPException) as e:
            self.drop()
            raise NotTaken(_words(e), of_message=False) from e
        try:
            self.smtp.sock.settimeout(AFTER_DOT_TIMEOUT_SECONDS)
            final = self._reply()
            self.smtp.sock.settimeout(self.hop.timeout_seconds)
        except (OSError, smtplib.SMTPException) as e:
            self.drop()
            raise Unanswered(f"no reply after the final dot: {_words(e)}") from e
        if not 200 <= final.code < 600 or 300 <= final.code < 400:
            self.drop()
            raise Unanswered(f"no SMTP reply after the final dot: {final.text!r}")
        self.num_mail_sent += 1
        return self._clean_after(final)

    def _reply(self) -> Reply:
        code, text = self.smtp.getreply()
        return Reply(code, " ".join(text.decode("utf-8", "replace").split()))

    def _end_empty(self) -> None:
        """A server that said 354 with nobody to write to gets an empty mail, which it has to refuse (RFC 2920, 3.1)."""
        try:
            self.smtp.send(".\r\n")
            self._reply()
        except (OSError, smtplib.SMTPException):
            self.drop()

    def _clean_after(self, *replies: Reply) -> Reply:
        """Bring the session back to its start after a refusal; return the first of `replies`."""
        if any(reply.code == 421 or reply.code < 200 for reply in replies):
            self.drop()
        elif self.smtp.sock and not all(reply.accepts for reply in replies):
            try:
                if self.smtp.docmd("RSET")[0] != 250:
                    self.drop()
            except (OSError, smtplib.SMTPException):
                self.drop()
        return replies[0]

    @property
    def reusable(self) -> bool:
        """Whether the next mail may take this session: open, not worn, and the server has not said anything unasked (421)."""
        if self.smtp is None or self.smtp.sock is None or self.num_mail_sent >= MAILS_PER_SESSION:
            return False
        if time.monotonic() - self.born > SESSION_AGE_MAX_SECONDS:
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(self.smtp.sock, selectors.EVENT_READ)
            return not selector.select(0)

    def close(self) -> None:
        """Say QUIT and hang up."""
        if self.smtp is not None and self.smtp.sock is not None:
            try:
                self.smtp.sock.settimeout(QUIT_TIMEOUT_SECONDS)
                self.smtp.docmd("QUIT")
            except (OSError, smtplib.SMTPException):
                pass
        self.drop()

    def drop(self) -> None:
        """Hang up without a word."""
        self.is_closed = True
        if self.smtp is not None:
            self.smtp.close()

    def __del__(self) -> None:
        """Nothing: yagmail would speak to the network here."""


class Sessions:
    """The sessions of one worker, at most as many as threads borrow at the same time; each is kept for the next mail."""

    def __init__(self, hop: NextHop) -> None:
        self.hop = hop
        self._tokens = TokenSource(hop.oauth2_file, hop.timeout_seconds) if hop.oauth2_file else None
        self._idle: list[Session] = []

    @contextmanager
    def borrow(self) -> Iterator[Session]:
        """Lend an open session; it comes back by itself. Raises NotTaken if none can be opened."""
        session = self._reuse() or self._new()
        try:
            yield session
        finally:
            if session.reusable:
                self._idle.append(session)
            else:
                session.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _reuse(self) -> Session | None:
        while True:
            try:
                session = self._idle.pop()  # The last one in: the others may grow old and be closed.
            except IndexError:
                return None
            if session.reusable:
                return session
            session.drop()

    def _new(self) -> Session:
        session = Session(self.hop, tokens=self._tokens)
        session.open()
        return session


def _as_not_taken(error: Exception, hop: NextHop) -> NotTaken:
    if isinstance(error, smtplib.SMTPResponseException):
        code = error.smtp_code if error.smtp_code > 0 else 0
        return NotTaken(str(Reply(code, _words(error))), code=code, of_message=False)
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotTaken(f"the certificate of {hop} is not to be trusted: {error.verify_message}", of_message=False)
    return NotTaken(f"{hop} could not be reached: {_words(error)}", of_message=False)


def _words(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        text = error.smtp_error
        return " ".join((text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).split())
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


@cache
def _host_name() -> str:
    """What we call ourselves in EHLO (RFC 5321, 4.1.4); looked up once, where smtplib would ask DNS for each connection."""
    name = socket.getfqdn()
    return name if "." in name else "[127.0.0.1]"
