"""Speaks SMTP over yagmail's sessions, and works around what yagmail would do to a mail.

yagmail connects, with TLS; smtp/login.py logs in. We override what reads input as paths (`prepare_send`),
retries by itself and hides replies (`send`), leaves certificates unchecked, waits for ever, or prompts. One
call is one attempt, and every reply is returned.
"""

import logging
import smtplib
import time
from collections.abc import Iterable
from typing import Any, NoReturn

import yagmail

from mailroom.model.account import NextHop
from mailroom.model.errors import ConnectionRefused, NotTaken, Unanswered
from mailroom.model.host_names import default_ehlo_name
from mailroom.smtp.connect_errors import not_taken
from mailroom.smtp.connection import Connection, Reply, TLSConnection, describe
from mailroom.smtp.envelope import Envelope, send_envelope
from mailroom.smtp.login import Login, NoMechanism
from mailroom.smtp.oauth2 import TokenError, TokenSource
from mailroom.smtp.pipelining import Pipelining
from mailroom.smtp.poller import FENCE, Dialogue
from mailroom.smtp.receipt import FenceRefused, PipeliningDoubted, Receipt, SessionLost
from mailroom.smtp.replies import is_about_session, says_too_many_connections
from mailroom.smtp.tls import tls_context

#: RFC 5321, 4.5.3.2.6: if we hung up earlier, mails that were accepted would be sent twice.
AFTER_DOT_TIMEOUT_SECONDS = 600
SESSION_AGE_MAX_SECONDS = 300
QUIT_TIMEOUT_SECONDS = 1
#: Our own reply in the server's place, with the code that it would use (RFC 6531, 3.1 and 5).
NO_SMTPUTF8 = Reply(
    550,
    "5.6.7 the mail server takes no address with letters beyond ASCII before the @ "
    "(it does not offer SMTPUTF8)",
)

_quiet = logging.getLogger("mailroom.yagmail")
_quiet.setLevel(logging.CRITICAL + 1)


class Session(yagmail.SMTP):  # type: ignore[misc]  # yagmail ships no types
    """A connection to the next hop, logged in, for many mails one after the other.

    Not for two threads at once.
    """

    def __init__(
        self, hop: NextHop, *, login: Login | None = None, pipelining: Pipelining | None = None
    ) -> None:
        tls: dict[str, Any] = {}
        if hop.security != "none":  # yagmail alone would verify no certificate.
            tls["context"] = tls_context(hop.ca_file)
        super().__init__(
            user=hop.user or "nobody@localhost",
            host=hop.host,
            port=hop.port,
            smtp_ssl=hop.security == "ssl",
            smtp_starttls=hop.security == "starttls" and tls,
            smtp_skip_login=True,
            soft_email_validation=False,
            timeout=hop.timeout_seconds,
            local_hostname=hop.ehlo_name or default_ehlo_name(hop.sender_domain),
            **(tls if hop.security == "ssl" else {}),
        )
        self.hop = hop
        self.auth = login or login_for(hop)  #: None: the server wants no login
        self.pipelining = pipelining or pipelining_for(hop)
        self.opened_at = time.monotonic()
        #: True after the first mail: the server may have closed the session meanwhile
        self.was_idle = False

    def set_logging(self, log_level: int | None = None, file_path_name: str | None = None) -> None:
        """Log nothing: yagmail logs addresses, and has just replaced the handlers of its logger."""
        logging.getLogger("yagmail.log").handlers.clear()
        self.log = _quiet

    @property
    def connection(self) -> type[smtplib.SMTP]:
        return TLSConnection if self.ssl else Connection

    def open(self, *, since: float | None = None) -> None:
        """Connect and log in. `since`: when the mail was claimed, on time.monotonic; by default now.

        Raises:
          NotTaken: with `of_message` False: refused, unreachable, not who it should be, or wrong credentials;
            a ConnectionRefused if we may have too many connections.
        """
        try:
            if self.auth is None:
                self._connect()
            elif self.auth.tokens and self.hop.security == "none":
                raise TokenError(
                    "an access token goes over TLS only: set SMTP_SECURITY to ssl or starttls"
                )
            else:
                self.auth.log_in(self._connect, since=time.monotonic() if since is None else since)
        except (OSError, smtplib.SMTPException, TokenError, NoMechanism, ValueError) as e:
            self.drop()
            raise not_taken(e, self.hop) from e

    def _connect(self) -> Connection:
        """Connect as yagmail does, with TLS; first hang up the connection on which a login was refused."""
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
        one_by_one: bool = False,
    ) -> Dialogue[Receipt]:
        """Hand one mail over, once. Yields FENCE between 354 and the payload; False ends the attempt there.

        `smtputf8`: an address is not ASCII; a server without SMTPUTF8 is not asked (RFC 6531, 3.1).
        `one_by_one`: use no pipelining.

        Raises:
          NotTaken: the connection was lost before the final dot; nobody has the mail. A PipeliningDoubted if
            the mail is to be tried again `one_by_one`.
          Unanswered: the connection was lost after the final dot.
          FenceRefused: the fence said no.
        """
        if smtputf8 and not self.smtp.has_extn("smtputf8"):
            return Receipt(refused={}, final=NO_SMTPUTF8)
        about = (sender, recipients, payload, smtputf8, one_by_one)
        envelope = yield from self._send_envelope(*about)
        mail = envelope.mail
        if envelope.hangup is not None or mail is None:
            return self._judge_hangup(envelope)
        self._check_connection_limit(mail)
        self._check_session_limit(mail, envelope)
        return (yield from self._send_data(mail, envelope, payload))

    def _send_data(self, mail: Reply, envelope: Envelope, payload: bytes) -> Dialogue[Receipt]:
        """Send the payload if the server accepted a recipient and is ready for it (354)."""
        refused = envelope.refused
        data = envelope.data
        refuses_all = len(refused) == len(envelope.positions)
        if not mail.accepts or refuses_all:
            yield from self._end_refused(mail, refused.values(), data)
        if not mail.accepts:
            return Receipt(refused={}, final=mail)
        if refuses_all:
            return Receipt(refused=refused, final=None)
        if data is None or data.code != 354:
            refusal = self._data_refusal(data)
            final = yield from self._reset_after(refusal)
        else:
            try:
                final = yield from self._send_payload(payload)
            except Unanswered as e:
                e.refused = refused
                raise
        return Receipt(refused=refused, final=final)

    def _send_envelope(
        self,
        sender: str,
        recipients: dict[int, str],
        payload: bytes,
        smtputf8: bool,
        one_by_one: bool,
    ) -> Dialogue[Envelope]:
        mail = f"MAIL FROM:<{sender}>"
        if self.smtp.has_extn("size"):
            mail += f" SIZE={len(payload)}"
        mail += self._body_parameter(payload, smtputf8=smtputf8)
        self.smtp.command_encoding = "utf-8" if smtputf8 else "ascii"
        pipelined = self.pipelining.is_used and not one_by_one
        pipelined = pipelined and self.smtp.has_extn("pipelining")
        envelope: Envelope = yield from send_envelope(
            self.smtp,
            mail,
            recipients,
            pipelined=pipelined,
        )
        if pipelined and self.pipelining.doubts(envelope):
            self.drop()
            last = envelope.hangup or envelope.replies[-1]
            raise PipeliningDoubted(str(last))
        return envelope

    def _body_parameter(self, payload: bytes, *, smtputf8: bool) -> str:
        """Return the parameters of MAIL that say what is not ASCII (RFC 6152, RFC 6531).

        A server without 8BITMIME gets the same bytes unannounced: to encode them would break signatures, and
        such servers pass them on.
        """
        if smtputf8:
            return " BODY=8BITMIME SMTPUTF8"
        is_announced = not payload.isascii() and self.smtp.has_extn("8bitmime")
        return " BODY=8BITMIME" if is_announced else ""

    def _judge_hangup(self, envelope: Envelope) -> Receipt:
        """Return the replies that came before the hangup; raise NotTaken if they settle nothing."""
        self.drop()
        mail = envelope.mail
        hangup = envelope.hangup or Reply(0, "no reply")
        if mail is not None:
            self._check_connection_limit(mail)
        self._check_connection_limit(hangup)
        if mail is not None and mail.refuses:
            return Receipt(refused={}, final=mail)
        answers = envelope.refused.items()
        refused = {position: reply for position, reply in answers if reply.refuses}
        if len(refused) == len(envelope.positions):
            return Receipt(refused=refused, final=None)
        answered = len(envelope.rcpt)
        has_several = len(envelope.positions) > 1
        if refused or (answered and has_several and not self.was_idle):
            return Receipt(refused=refused, final=None, hangup=hangup, answered=answered)
        if self.was_idle:
            raise SessionLost(str(hangup), code=hangup.code)
        # It may be about this very mail: some servers hang up on what they do not like.
        raise NotTaken(str(hangup), code=hangup.code, after_rcpt=answered > 0)

    def _check_connection_limit(self, reply: Reply) -> None:
        """Raise ConnectionRefused if the server says only now, at MAIL, that there are too many sessions."""
        if says_too_many_connections(reply):
            self.drop()
            raise ConnectionRefused(str(reply), code=reply.code, of_message=False)

    def _check_session_limit(self, mail: Reply, envelope: Envelope) -> None:
        """Raise SessionLost if the server takes no more mails on a session that has sent some."""
        replies = [mail]
        refused = envelope.refused
        if len(refused) == len(envelope.positions):
            replies += refused.values()
        if self.was_idle and any(map(is_about_session, replies)):
            self.drop()
            last = replies[-1]
            raise SessionLost(str(last), code=last.code)

    def _end_refused(
        self, mail: Reply, refused: Iterable[Reply], data: Reply | None
    ) -> Dialogue[None]:
        """Bring the session back to its start after MAIL, or all recipients, were refused."""
        if data is not None and data.code == 354:
            yield from self._send_empty_mail(mail, *refused)
        yield from self._reset_after(mail, *refused)

    def _send_payload(self, payload: bytes) -> Dialogue[Reply]:
        try:
            if not (yield FENCE):
                raise FenceRefused
        except BaseException:
            self.drop()  # After 354 there is no other way to take a mail back.
            raise
        if self.smtp.has_unexpected_data:
            return (
                yield from self._payload_refusal("the server spoke or hung up before the payload")
            )
        yield from self.smtp.write(_with_dot(payload))
        if self.smtp.broken:  # The dot goes out last, so the server does not have the whole mail.
            return (yield from self._payload_refusal("the server hung up within the payload"))
        try:
            self.smtp.reply_timeout_seconds = AFTER_DOT_TIMEOUT_SECONDS
            final = yield from self.smtp.read_reply()
            self.smtp.reply_timeout_seconds = self.hop.timeout_seconds
        except Exception as e:  # Whatever it is, the mail may have arrived.
            self.drop()
            raise Unanswered(f"no reply after the final dot: {describe(e)}") from e
        if not (final.accepts or final.refuses):
            self.drop()
            raise Unanswered(f"no such reply is right after the final dot: {final}")
        self.num_mail_sent += 1
        return (yield from self._reset_after(final))

    def _payload_refusal(self, otherwise: str) -> Dialogue[Reply]:
        """Return why the server refused the payload; raise NotTaken with `otherwise` if it does not say."""
        refusal: Reply | None = yield from self.smtp.read_refusal()
        self.drop()
        if refusal is None:
            raise NotTaken(otherwise)
        return refusal

    def _data_refusal(self, data: Reply | None) -> Reply:
        """Return the reply to DATA if it is a refusal; raise NotTaken for any other but 354, even 250."""
        if data is not None and data.refuses:
            return data
        self.drop()
        raise NotTaken(f"expected 354 or a refusal, got {data}")

    def _send_empty_mail(self, mail: Reply, *recipients: Reply) -> Dialogue[None]:
        """End a DATA that got 354 with no recipient: the server has to refuse the mail (RFC 2920, 3.1)."""
        if not mail.accepts or not all(reply.refuses for reply in recipients):
            # The replies contradict each other, so somebody might get the empty mail.
            return self.drop()
        try:
            yield from self.smtp.write(".\r\n")
            yield from self.smtp.read_reply()
        except (OSError, smtplib.SMTPException):
            self.drop()

    def _reset_after(self, *replies: Reply) -> Dialogue[Reply]:
        """Bring the session back to its start if one of `replies` is a refusal; return the first of them."""
        if any(reply.code == 421 or not (reply.accepts or reply.refuses) for reply in replies):
            self.drop()
        elif self.smtp.sock and not all(reply.accepts for reply in replies):
            try:
                yield from self.smtp.write("RSET\r\n")
                if (yield from self.smtp.read_raw_reply())[0] != 250:
                    self.drop()
            except (OSError, smtplib.SMTPException):
                self.drop()
        return replies[0]

    def pipelines(self) -> bool | None:
        """Test whether the server takes commands in one write; None: not offered. Ends the session."""
        if not self.smtp.has_extn("pipelining"):
            return None
        self.smtp.send("RSET\r\nRSET\r\nNOOP\r\n")
        try:
            codes = [self.smtp.getreply()[0] for _ in range(3)]
            return codes == [250] * 3
        except smtplib.SMTPException:
            return False

    @property
    def is_used_up(self) -> bool:
        """Tell whether the session is closed, has sent its share of mails, or is old."""
        return (
            self.smtp is None
            or self.smtp.sock is None
            or self.num_mail_sent >= self.hop.mails_per_connection
            or time.monotonic() - self.opened_at > SESSION_AGE_MAX_SECONDS
        )

    @property
    def is_reusable(self) -> bool:
        """Tell whether the next mail may take the session: not used up, no 421 from the server, no hangup."""
        return not self.is_used_up and not self.smtp.has_unexpected_data

    def close(self) -> None:
        """Send QUIT and hang up."""
        if self.smtp is not None and self.smtp.sock is not None:
            try:
                self.smtp.reply_timeout_seconds = QUIT_TIMEOUT_SECONDS
                self.smtp.docmd("QUIT")
            except (OSError, smtplib.SMTPException):
                pass
        self.drop()

    def drop(self) -> None:
        """Hang up without QUIT."""
        self.is_closed = True
        if self.smtp is not None:
            self.smtp.close()

    def __del__(self) -> None:
        """Do nothing: yagmail would use the network here."""


def login_for(hop: NextHop) -> Login | None:
    if not hop.user:
        return None
    tokens = None
    if hop.oauth2_file:
        tokens = TokenSource(hop.oauth2_file, hop.timeout_seconds)
    return Login(hop.user, hop.password, tokens)


def pipelining_for(hop: NextHop) -> Pipelining:
    return Pipelining(str(hop), is_used=hop.pipelining)


def _with_dot(payload: bytes) -> bytes:
    """Return the payload with dots doubled at line starts, and the final dot (RFC 5321, 4.5.2)."""
    stuffed = payload.replace(b"\r\n.", b"\r\n..")
    if stuffed.startswith(b"."):
        stuffed = b"." + stuffed
    if not stuffed.endswith(b"\r\n"):
        return stuffed + b"\r\n.\r\n"
    return stuffed + b".\r\n"
