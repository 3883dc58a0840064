"""Serves one client: its commands, its login and its limits."""

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from ipaddress import ip_address
from ssl import SSLContext
from typing import Any, TypeVar

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword, TLSSetupException
from aiosmtpd.smtp import Envelope as SMTPEnvelope
from aiosmtpd.smtp import Session as SMTPSession
from pydantic_core import PydanticCustomError

from mailroom.model.addresses import parse_address
from mailroom.model.errors import StoreUnavailable
from mailroom.model.host_names import literal
from mailroom.smtpd.auth import Access, Refused
from mailroom.smtpd.payload import CHUNK_BYTES, read_payload
from mailroom.smtpd.raw_message import Acceptance, SubmittedMail
from mailroom.store.keys.api_keys import ApiKey
from mailroom.submission.addresses import RECIPIENTS_MAX

log = logging.getLogger("mailasync.smtpd")
T = TypeVar("T")

#: Between two commands, and for each CHUNK_BYTES of a payload (RFC 5321, 4.5.3.2.7).
IDLE_SECONDS = 300.0
#: For a client from elsewhere to log in.
LOGIN_SECONDS = 60.0
#: For the database, after the final dot; the client waits as long (RFC 5321, 4.5.3.2.6).
COMMIT_SECONDS = 600.0
#: Refused commands in a row, after which the connection is closed.
ERRORS_MAX = 20
#: RFC 4954, 4 asks for 12,288 bytes; no API key is so long, and a command has an address of 320 characters.
COMMAND_MAX_BYTES = 2048
#: How often some commands may come on a connection; all others as often as there are mails.
CALLS_MAX = {
    "AUTH": 10,
    "EHLO": 20,
    "HELO": 20,
    "STARTTLS": 3,
    "VRFY": 20,
    "HELP": 20,
    "NOOP": 1000,
}
_ANY_NUMBER = 1_000_000_000

#: A name that a client gives itself and that may stand in a Received line.
_HOST_NAME = re.compile(r"[A-Za-z0-9.:\[\]_-]{1,255}", re.ASCII)
#: aiosmtpd's last reply to a client that says what is no command.
_BOGUS = "502 5.5.1 Too many"
_UNAVAILABLE = "451 4.3.0 the database is not available; try again"


@dataclass(frozen=True, kw_only=True)
class ServerParts:
    """The parts that all connections share."""

    host_name: str
    mail_max_bytes: int
    access: Access
    acceptance: Acceptance
    threads: Executor  #: for all that waits for the database
    starttls: SSLContext | None = None
    connections: "set[SubmissionConnection]" = field(default_factory=set)


class SubmissionConnection(SMTP):
    """A connection of a client.

    aiosmtpd reads the commands and calls the hooks of `_Hooks`; what it leaves open is bounded here.
    """

    line_length_limit = CHUNK_BYTES
    AuthLoginUsernameChallenge = "Username:"
    AuthLoginPasswordChallenge = "Password:"

    def __init__(self, submission: ServerParts) -> None:
        # Of this connection: aiosmtpd has one for all, which grows with each EHLO.
        self.command_size_limits = defaultdict(lambda: COMMAND_MAX_BYTES)
        self.command_size_limit = COMMAND_MAX_BYTES
        super().__init__(
            _Hooks(submission),
            data_size_limit=submission.mail_max_bytes,
            enable_SMTPUTF8=True,
            hostname=submission.host_name,
            ident="mailasync ESMTP",
            tls_context=submission.starttls,
            timeout=IDLE_SECONDS,
            command_call_limit={**CALLS_MAX, "*": _ANY_NUMBER},
            loop=asyncio.get_running_loop(),
        )
        self._submission = submission
        self.is_committing = False
        self._is_ending = False
        self._errors = 0
        self._login_timer: asyncio.TimerHandle | None = None

    # --- the connection ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or begin anew inside of TLS, where no login is known any more (RFC 3207, 4.2)."""
        super().connection_made(transport)
        self._submission.connections.add(self)
        is_secret = transport.get_extra_info("ssl_object") is not None
        self._auth_require_tls = not (is_secret or self.is_local)
        if not self.is_local and self._login_timer is None:
            self._login_timer = self.loop.call_later(LOGIN_SECONDS, self._close_without_login)

    def connection_lost(self, error: Exception | None) -> None:
        self._submission.connections.discard(self)
        if self._login_timer:
            self._login_timer.cancel()
        super().connection_lost(error)

    def _close_without_login(self) -> None:
        if self.key is None:
            self.close()

    def close(self) -> None:
        """Hang up, and take nothing more, although TLS ends only once the client agrees."""
        # The handler closes the transport as it ends; inside of TLS, a second close() breaks it.
        if self._handler_coroutine is not None:
            self._is_ending = True
            self._handler_coroutine.cancel()

    def _timeout_cb(self) -> None:
        self.close()

    def say_goodbye(self) -> None:
        """End a connection on which no mail is being committed, as the service stops."""
        if self._is_ending or self.is_committing:
            return
        if isinstance(self.transport, asyncio.Transport):
            self.transport.write(b"421 4.3.2 the service is stopping; try again\r\n")
            self.close()

    def abort(self) -> None:
        if isinstance(self.transport, asyncio.Transport):
            self.transport.abort()

    @property
    def key(self) -> ApiKey | None:
        """The API key with which the client logged in."""
        return self.session.auth_data if self.session else None

    @property
    def address(self) -> str:
        """The address of the client, without an IPv6 zone."""
        peer: Any = self.session.peer if self.session else None
        return str(peer[0]).partition("%")[0] if peer else ""

    @property
    def is_local(self) -> bool:
        try:
            return ip_address(self.address).is_loopback
        except ValueError:
            return False

    @property
    def ends(self) -> dict[str, Any]:
        """Return both ends of the connection, named as in the environment of WSGI."""
        info = self.transport.get_extra_info if self.transport else lambda name: None
        peer, ours = info("peername") or ("", 0), info("sockname") or ("", 0)
        return {
            "REMOTE_ADDR": peer[0],
            "REMOTE_PORT": str(peer[1]),
            "SERVER_NAME": ours[0],
            "SERVER_PORT": str(ours[1]),
        }

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Run what may wait for the database."""
        return await self.loop.run_in_executor(self._submission.threads, work, *args)

    # --- commands ---

    async def push(self, status: Any) -> None:
        """Send a reply; after too many refusals, 221 or 421, hang up.

        Raises:
          CancelledError: the connection is ending, and what else has come is not read.
        """
        if self._is_ending:
            raise asyncio.CancelledError
        text = status if isinstance(status, str) else status.decode("ascii", "replace")
        if text.startswith(_BOGUS):
            text = "421 4.7.0 too many commands that are not known"
        await super().push(text)
        code = text[:3]
        if code[:1] == "5":
            self._errors += 1
        if self._errors >= ERRORS_MAX and code != "421":
            await super().push("421 4.7.0 too many errors")
            code = "421"
        if code in ("221", "421"):
            self.close()
            raise asyncio.CancelledError

    async def handle_exception(self, error: Exception) -> str:
        """Word the reply to what should not happen; its text may hold a part of the mail."""
        if isinstance(error, TLSSetupException):
            return "454 4.7.0 TLS failed"
        self._errors += 1
        log.error("a connection failed: %s", type(error).__name__)
        return "451 4.3.0 this is our fault, and it is in the log"

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        """Return an address and what follows it; (None, None) if there is none."""
        try:
            return super()._getaddr(arg)
        except (
            Exception
        ):  # The standard library's parser raises anything, such as IndexError for "<".
            return None, None

    async def auth_PLAIN(self, _: Any, args: list[str]) -> AuthResult:
        return await self._verified(await super().auth_PLAIN(_, args))

    async def auth_LOGIN(self, _: Any, args: list[str]) -> AuthResult:
        return await self._verified(await super().auth_LOGIN(_, args))

    def _authenticate(self, mechanism: str, auth_data: Any) -> AuthResult:
        """Pass on what the client sent; `_verified` looks it up, which takes a thread."""
        return AuthResult(success=True, auth_data=auth_data)

    async def _verified(self, result: AuthResult) -> AuthResult:
        if not isinstance(result.auth_data, LoginPassword):
            return result
        secret = result.auth_data.password.decode("utf-8", "replace")
        try:
            key = await self.in_thread(self._submission.access.log_in, secret, self.address)
        except Refused as e:
            return AuthResult(success=False, handled=False, message=str(e))
        except StoreUnavailable as e:
            log.error("%s", e)
            return AuthResult(success=False, handled=False, message="454 4.7.0 try again later")
        return AuthResult(success=True, auth_data=key)

    async def smtp_VRFY(self, arg: str) -> None:
        """Tell nothing about addresses (RFC 5321, 7.3)."""
        await self.push("252 2.5.2 send a mail, and see")

    async def smtp_DATA(self, arg: str | None) -> None:
        """Receive a mail and accept it; aiosmtpd would read it line by line, and allow bare line feeds."""
        envelope = self.envelope
        if not isinstance(envelope, KeyedEnvelope) or not envelope.rcpt_tos:
            return await self.push("503 5.5.1 expected MAIL and RCPT first")
        if arg:
            return await self.push("501 5.5.4 Syntax: DATA")
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        content = await read_payload(
            self._reader, self._submission.mail_max_bytes, on_chunk=self._reset_timeout
        )
        if content is None:
            most = self._submission.mail_max_bytes
            reply = f"552 5.3.4 a mail may have at most {most} bytes"
        else:
            reply = await self._accept(envelope, content)
        self.envelope = self._create_envelope()
        self._reset_timeout()
        await self.push(reply)

    async def _accept(self, envelope: "KeyedEnvelope", content: bytes) -> str:
        self._reset_timeout(COMMIT_SECONDS)
        mail = SubmittedMail(
            content=content,
            sender=(envelope.mail_from or "").removeprefix("<>"),
            recipients=tuple(envelope.rcpt_tos),
            smtputf8=envelope.smtp_utf8,
            source=self._source(),
            protocol=self._protocol_name(envelope),
            key=envelope.key,
        )
        self.is_committing = True
        try:
            reply = await self.in_thread(self._commit, mail, self.ends)
        finally:
            self.is_committing = False
        if reply.startswith("250"):
            self._errors = 0
        return reply

    def _commit(self, mail: SubmittedMail, ends: dict[str, Any]) -> str:
        """Accept the mail unless its key was revoked while it came, which may take long."""
        try:
            self._submission.access.sender(mail.key, ends)
        except Refused as e:
            return str(e)
        except StoreUnavailable as e:
            log.error("%s", e)
            return _UNAVAILABLE
        return self._submission.acceptance.accept(mail)

    def _source(self) -> str:
        """Name the client for the Received line (RFC 5321, 4.4)."""
        name = self.session.host_name if self.session else None
        if not name or not _HOST_NAME.fullmatch(name):
            name = "unknown"
        return f"{name} ({literal(self.address)})"

    def _protocol_name(self, envelope: SMTPEnvelope) -> str:
        """Return the protocol as a Received line names it (RFC 3848, RFC 6531, 4.3)."""
        if self.session is None or not self.session.extended_smtp:
            return "SMTP"
        is_secret = self.transport and self.transport.get_extra_info("ssl_object")
        suffix = f"{'S' if is_secret else ''}{'A' if self.key else ''}"
        return f"{'UTF8SMTP' if envelope.smtp_utf8 else 'ESMTP'}{suffix}"

    def _create_envelope(self) -> SMTPEnvelope:
        return KeyedEnvelope()


class KeyedEnvelope(SMTPEnvelope):
    """The envelope of one mail, and the API key that it is accepted with."""

    key: ApiKey


async def _refuse_http(connection: SubmissionConnection, arg: str | None) -> None:
    """Hang up on a web browser: a page could have it send the commands of a mail in a POST."""
    await connection.push("421 4.7.0 expected SMTP, got HTTP")


for _method in ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"):
    setattr(SubmissionConnection, f"smtp_{_method}", _refuse_http)


class _Hooks:
    """The hooks that aiosmtpd calls."""

    def __init__(self, submission: ServerParts) -> None:
        self._submission = submission

    async def handle_EHLO(
        self,
        server: SubmissionConnection,
        session: SMTPSession,
        envelope: SMTPEnvelope,
        host: str,
        replies: list[str],
    ) -> list[str]:
        """Announce PIPELINING (RFC 2920): commands are read one by one and answered in order."""
        session.host_name = host
        return [*replies[:-1], "250-PIPELINING", replies[-1]]

    async def handle_MAIL(
        self,
        server: SubmissionConnection,
        session: SMTPSession,
        envelope: KeyedEnvelope,
        address: str,
        options: list[str],
    ) -> str:
        """Begin a mail, if the client may send it."""
        try:
            sender = "" if address == "<>" else parse_address(address).address
            envelope.key = await server.in_thread(
                self._submission.access.sender, server.key, server.ends
            )
        except PydanticCustomError:
            return "553 5.1.7 expected an address like <bob@example.org>"
        except Refused as e:
            return str(e)
        except StoreUnavailable as e:
            log.error("%s", e)
            return _UNAVAILABLE
        if not sender.isascii() and not envelope.smtp_utf8:
            return "550 5.6.7 an address beyond ASCII needs SMTPUTF8"
        if sender and (refusal := self._submission.acceptance.sender_refusal(envelope.key, sender)):
            return refusal
        envelope.mail_from = sender or "<>"
        envelope.mail_options.extend(options)
        return "250 2.1.0 OK"

    async def handle_RCPT(
        self,
        server: SubmissionConnection,
        session: SMTPSession,
        envelope: SMTPEnvelope,
        address: str,
        options: list[str],
    ) -> str:
        if len(envelope.rcpt_tos) >= RECIPIENTS_MAX:
            return f"452 4.5.3 a mail may have at most {RECIPIENTS_MAX} recipients"
        try:
            recipient = parse_address(address).address
        except PydanticCustomError:
            return "553 5.1.3 expected an address like <bob@example.org>"
        if not recipient.isascii() and not envelope.smtp_utf8:
            return "553 5.6.7 an address beyond ASCII needs SMTPUTF8"
        envelope.rcpt_tos.append(recipient)
        return "250 2.1.5 OK"
