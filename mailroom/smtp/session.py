"""Speaks SMTP over yagmail's sessions, and tames what yagmail makes of it.

yagmail connects, with TLS; smtp/login.py logs in. Overridden is what reads input as paths (`prepare_send`), retries
by itself and hides replies (`send`), leaves certificates unchecked, waits for ever, or prompts. One call is one attempt, and
every reply is told.
"""

import logging
import smtplib
import ssl
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import yagmail

from mailroom.model.account import NextHop
from mailroom.model.errors import ConnectionRefused, NotTaken, Unanswered
from mailroom.model.host_names import default_name
from mailroom.smtp.connection import Link, Reply, TLSLink, words_of
from mailroom.smtp.envelope import Envelope, hand_over
from mailroom.smtp.login import Login, NoMechanism
from mailroom.smtp.oauth2 import TokenError, TokenSource
from mailroom.smtp.pipelining import Pipelining
from mailroom.smtp.poller import FENCE, Dialogue
from mailroom.smtp.replies import is_of_session, may_be_of_connections, says_too_many_connections

#: RFC 5321, 4.5.3.2.6: hanging up earlier would make copies of mails that were taken.
AFTER_DOT_TIMEOUT_SECONDS = 600
SESSION_AGE_MAX_SECONDS = 300
QUIT_TIMEOUT_SECONDS = 1
#: How long the certificates that we trust are kept, of which a system's file takes 10 ms to read.
TLS_AGE_MAX_SECONDS = 300
#: Said in the server's place, in its terms (RFC 6531, 3.1 and 5).
NO_SMTPUTF8 = Reply(
    550,
    "5.6.7 the mail server takes no address with letters beyond ASCII before the @ (it does not offer SMTPUTF8)",
)

_quiet = logging.getLogger("mailroom.yagmail")
_quiet.setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """All replies of one attempt. `final` answers the last step that was reached: MAIL, DATA or the dot.

    `refused` has the recipients (by position) whose RCPT was refused; `final` is None where that was all of them,
    or where the server hung up over them.
    """

    refused: dict[int, Reply]
    final: Reply | None
    end: Reply | None = None  #: how it hung up after it had answered for some; nobody has the mail
    answered: int = 0  #: for how many that was


class FenceRefused(Exception):
    """The row is no longer ours, or we are stopping: the session was closed before the payload, and nobody has the mail."""


class SessionLost(NotTaken):
    """A session that was kept turned out to be closed by the server; nobody has the mail, and a new session may take it at once."""


class PipeliningDoubted(SessionLost):
    """Commands that came in one write may have been lost or garbled; a new session may take them one by one."""


class Session(yagmail.SMTP):  # type: ignore[misc]  # yagmail ships no types
    """A connection to the next hop, logged in, for many mails one after the other.

    Not for two threads at once.
    """

    def __init__(
        self, hop: NextHop, *, login: Login | None = None, pipelining: Pipelining | None = None
    ) -> None:
        tls: dict[str, Any] = {}
        if hop.security != "none":
            tls["context"] = _tls(
                hop.ca_file, int(time.monotonic() // TLS_AGE_MAX_SECONDS)
            )  # stock yagmail verifies no certificate
        super().__init__(
            user=hop.user or "nobody@localhost",
            host=hop.host,
            port=hop.port,
            smtp_ssl=hop.security == "ssl",
            smtp_starttls=tls if hop.security == "starttls" else False,
            smtp_skip_login=True,
            soft_email_validation=False,
            timeout=hop.timeout_seconds,
            local_hostname=hop.ehlo_name or default_name(hop.sender_domain),
            **(tls if hop.security == "ssl" else {}),
        )
        self.hop = hop
        self.auth = login or login_at(hop)  #: None: the server wants none
        self.pipelining = pipelining or pipelining_with(hop)
        self.born = time.monotonic()
        self.kept = False  #: whether it was idle since its last mail, so that the server may have closed it

    def set_logging(self, log_level: int | None = None, file_path_name: str | None = None) -> None:
        """Say nothing: yagmail logs addresses, and has just replaced the handlers of its logger."""
        logging.getLogger("yagmail.log").handlers.clear()
        self.log = _quiet

    @property
    def connection(self) -> type[smtplib.SMTP]:
        return TLSLink if self.ssl else Link

    def open(self, *, since: float | None = None) -> None:
        """Connect and log in. `since`: when the mail was claimed that this is for; by default now.

        Raises:
          NotTaken: with `of_message` False: refused, unreachable, not who it should be, or wrong credentials;
            a ConnectionRefused where that can be of the number of connections.
        """
        try:
            if self.auth is None:
                self._connect()
            elif self.auth.tokens and self.hop.security == "none":
                raise TokenError("an access token goes over TLS only: set SMTP_SECURITY to ssl or starttls")
            else:
                self.auth.log_in(self._connect, since=time.monotonic() if since is None else since)
        except (OSError, smtplib.SMTPException, TokenError, NoMechanism, ValueError) as e:
            self.drop()
            raise _as_not_taken(e, self.hop) from e

    def _connect(self) -> Link:
        """Connect, as yagmail does it, with TLS; hang up before that, where a login was refused."""
        self.close()
        self._login("")
        self.smtp.ehlo_or_helo_if_needed()
        return self.smtp  # type: ignore[no-any-return]  # yagmail ships no types

    def send(self, *args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            "yagmail's send() may send three times and reads bodies as paths; use attempt()"
        )

    def attempt(
        self,
        sender: str,
        recipients: dict[int, str],
        payload: bytes,
        *,
        smtputf8: bool = False,
        step_by_step: bool = False,
    ) -> Dialogue[Receipt]:
        """Hand one mail over, once. FENCE is asked for after 354 and before the payload; False ends it there.

        `smtputf8`: an address in it is not ASCII; a server that does not take such is not asked (RFC 6531, 3.1).

        Raises:
          NotTaken: the link was lost before the final dot; nobody has the mail. A PipeliningDoubted where the
            commands are to be said again, `step_by_step`.
          Unanswered: the link was lost after it.
          FenceRefused: the fence said no.
        """
        if smtputf8 and not self.smtp.has_extn("smtputf8"):
            return Receipt(refused={}, final=NO_SMTPUTF8)
        envelope = yield from self._envelope(sender, recipients, len(payload), smtputf8, step_by_step)
        if envelope.end is not None or envelope.mail is None:
            return self._cut_off(envelope)
        mail, refused, data = envelope.mail, envelope.refused, envelope.data
        self._check_welcome(mail)
        self._check_session(mail, refused, len(recipients))
        if not mail.accepts or len(refused) == len(recipients):
            if data is not None and data.code == 354:
                yield from self._end_empty(mail, *refused.values())
            yield from self._clean_after(mail, *refused.values())
            return Receipt(refused=refused, final=None) if mail.accepts else Receipt(refused={}, final=mail)
        if data is None or data.code != 354:
            return Receipt(refused=refused, final=(yield from self._clean_after(self._refusal(data))))
        return Receipt(refused=refused, final=(yield from self._payload(payload)))

    def _envelope(
        self, sender: str, recipients: dict[int, str], size: int, smtputf8: bool, step_by_step: bool
    ) -> Dialogue[Envelope]:
        options = f" SIZE={size}" if self.smtp.has_extn("size") else ""
        options += " BODY=8BITMIME SMTPUTF8" if smtputf8 else ""
        self.smtp.command_encoding = "utf-8" if smtputf8 else "ascii"
        pipelined = self.pipelining.is_used and self.smtp.has_extn("pipelining") and not step_by_step
        mail = f"MAIL FROM:<{sender}>{options}"
        envelope: Envelope = yield from hand_over(self.smtp, mail, recipients, pipelined=pipelined)
        if pipelined and self.pipelining.doubts(envelope):
            self.drop()
            raise PipeliningDoubted(str(envelope.end or envelope.replies[-1]))
        return envelope

    def _cut_off(self, envelope: Envelope) -> Receipt:
        """Return what was answered before the link ended; raise NotTaken where that is of no use."""
        self.drop()
        mail, end = envelope.mail, envelope.end or Reply(0, "no reply")
        for reply in (mail, end):
            if reply is not None:
                self._check_welcome(reply)
        if mail is not None and mail.refuses:
            return Receipt(refused={}, final=mail)
        refused = {position: reply for position, reply in envelope.refused.items() if reply.refuses}
        if len(refused) == len(envelope.positions):
            return Receipt(refused=refused, final=None)
        if refused or (not self.kept and envelope.rcpt and len(envelope.positions) > 1):
            return Receipt(refused=refused, final=None, end=end, answered=len(envelope.rcpt))
        if self.kept:
            raise SessionLost(str(end), code=end.code)
        # It may be about this very mail: there are servers that hang up at what they do not like.
        raise NotTaken(str(end), code=end.code, after_rcpt=bool(envelope.rcpt))

    def _check_welcome(self, reply: Reply) -> None:
        """Raise ConnectionRefused if the server says as late as at MAIL that there are too many sessions."""
        if says_too_many_connections(reply):
            self.drop()
            raise ConnectionRefused(str(reply), code=reply.code, of_message=False)

    def _check_session(self, mail: Reply, refused: dict[int, Reply], asked: int) -> None:
        """Raise SessionLost if a session that had mails before takes no more of them."""
        replies = [mail, *(refused.values() if len(refused) == asked else [])]
        if self.kept and any(map(is_of_session, replies)):
            self.drop()
            raise SessionLost(str(replies[-1]), code=replies[-1].code)

    def _payload(self, payload: bytes) -> Dialogue[Reply]:
        try:
            if not (yield FENCE):
                raise FenceRefused
        except BaseException:
            self.drop()  # After 354 there is no other way to take a mail back.
            raise
        if self.smtp.spoke_unasked:
            return (yield from self._last_words("the server spoke or hung up before the payload"))
        stuffed = payload.replace(b"\r\n.", b"\r\n..")
        stuffed = (b"." + stuffed if stuffed.startswith(b".") else stuffed) + (
            b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n"
        )
        yield from self.smtp.sending(stuffed)
        if self.smtp.broken:  # The dot comes last, so it was not handed over.
            return (yield from self._last_words("the server hung up within the payload"))
        try:
            self.smtp.patience = AFTER_DOT_TIMEOUT_SECONDS
            final = yield from self.smtp.replying()
            self.smtp.patience = self.hop.timeout_seconds
        except Exception as e:  # Whatever it is, the mail may have arrived.
            self.drop()
            raise Unanswered(f"no reply after the final dot: {words_of(e)}") from e
        if not (final.accepts or final.refuses):
            self.drop()
            raise Unanswered(f"no such reply is right after the final dot: {final}")
        self.num_mail_sent += 1
        return (yield from self._clean_after(final))

    def _last_words(self, otherwise: str) -> Dialogue[Reply]:
        """Return what a payload was refused with that did not arrive; raise NotTaken if that cannot be read."""
        refusal: Reply | None = yield from self.smtp.last_words()
        self.drop()
        if refusal is None:
            raise NotTaken(otherwise)
        return refusal

    def _refusal(self, data: Reply | None) -> Reply:
        """Return what DATA was answered with, if that is a refusal.

        Anything else but 354 is no answer to it, least of all a 250.
        """
        if data is not None and data.refuses:
            return data
        self.drop()
        raise NotTaken(f"expected 354 or a refusal, got {data}")

    def _end_empty(self, mail: Reply, *recipients: Reply) -> Dialogue[None]:
        """A server that said 354 with nobody to write to gets an empty mail, which it has to refuse (RFC 2920, 3.1)."""
        if not mail.accepts or not all(reply.refuses for reply in recipients):
            return self.drop()  # It contradicts itself, so it might give somebody that empty mail.
        try:
            yield from self.smtp.sending(".\r\n")
            yield from self.smtp.replying()
        except (OSError, smtplib.SMTPException):
            self.drop()

    def _clean_after(self, *replies: Reply) -> Dialogue[Reply]:
        """Bring the session back to its start after a refusal; return the first of `replies`."""
        if any(reply.code == 421 or not (reply.accepts or reply.refuses) for reply in replies):
            self.drop()
        elif self.smtp.sock and not all(reply.accepts for reply in replies):
            try:
                yield from self.smtp.sending("RSET\r\n")
                if (yield from self.smtp.reading())[0] != 250:
                    self.drop()
            except (OSError, smtplib.SMTPException):
                self.drop()
        return replies[0]

    def pipelines(self) -> bool | None:
        """Try whether the server takes commands in one write; None: it does not say so. Ends the session."""
        if not self.smtp.has_extn("pipelining"):
            return None
        self.smtp.send("RSET\r\nRSET\r\nNOOP\r\n")
        try:
            return [self.smtp.getreply()[0] for _ in range(3)] == [250] * 3
        except smtplib.SMTPException:
            return False

    @property
    def worn(self) -> bool:
        """Tell whether the session is closed, or has sent enough, or is old."""
        return (
            self.smtp is None
            or self.smtp.sock is None
            or self.num_mail_sent >= self.hop.mails_per_connection
            or time.monotonic() - self.born > SESSION_AGE_MAX_SECONDS
        )

    @property
    def reusable(self) -> bool:
        """Tell whether the next mail may take the session.

        It must not be worn, and the server must have said nothing unasked (421) and not hung up.
        """
        return not self.worn and not self.smtp.spoke_unasked

    def close(self) -> None:
        """Say QUIT and hang up."""
        if self.smtp is not None and self.smtp.sock is not None:
            try:
                self.smtp.patience = QUIT_TIMEOUT_SECONDS
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


def _as_not_taken(error: Exception, hop: NextHop) -> NotTaken:
    if isinstance(error, smtplib.SMTPResponseException):
        reply = Reply(max(error.smtp_code, 0), words_of(error))
        kind = ConnectionRefused if may_be_of_connections(reply) else NotTaken
        return kind(str(reply), code=reply.code, of_message=False)
    if isinstance(error, TokenError):
        return NotTaken(f"no access token: {error}", code=error.code, of_message=False)
    if isinstance(error, NoMechanism):
        return NotTaken(f"{hop} {error}", code=504, of_message=False)
    if isinstance(error, UnicodeError):
        return NotTaken(f"expected the name of a host, got {hop.host!r}", of_message=False)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return NotTaken(f"{hop} offers no STARTTLS", of_message=False)
    if isinstance(error, ssl.SSLCertVerificationError):
        return NotTaken(
            f"the certificate of {hop} is not to be trusted: {error.verify_message}", of_message=False
        )
    kind = ConnectionRefused if _hangs_up(error) else NotTaken
    return kind(f"{hop} could not be reached: {words_of(error)}", of_message=False)


def _hangs_up(error: Exception) -> bool:
    """Tell a server that refuses or ends a connection from one that does not answer, or cannot be found."""
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return not isinstance(error.__cause__, TimeoutError)
    return isinstance(error, (ConnectionError, ssl.SSLEOFError))


def login_at(hop: NextHop) -> Login | None:
    tokens = TokenSource(hop.oauth2_file, hop.timeout_seconds) if hop.oauth2_file else None
    return Login(hop.user, hop.password, tokens) if hop.user else None


def pipelining_with(hop: NextHop) -> Pipelining:
    return Pipelining(str(hop), is_used=hop.pipelining)


@lru_cache(maxsize=8)
def _tls(ca_file: str, stretch: int) -> ssl.SSLContext:
    """Return what is trusted in this stretch of time."""
    return ssl.create_default_context(cafile=ca_file or None)
