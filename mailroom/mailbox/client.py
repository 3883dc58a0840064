"""Has IMAPClient connect and log in within limits, and log nothing."""

import base64
import logging
import re

from imapclient import IMAPClient

from mailroom.mailbox.limited_imap import LimitedIMAP4
from mailroom.model.account import MailboxServer
from mailroom.smtp.login import NoMechanism, prepare
from mailroom.smtp.tls import tls_context

#: Most bytes of the response to a command that fetches no mail.
RESPONSE_MAX_BYTES = 2_000_000

#: At DEBUG it logs what it sends and gets.
logging.getLogger("imapclient").setLevel(logging.CRITICAL + 1)

_PRINTABLE_ASCII = re.compile(r"[ -~]*")


class ImapClient(IMAPClient):  # type: ignore[misc]  # ships no types
    """IMAPClient over a LimitedIMAP4; connects when it is made."""

    def __init__(self, server: MailboxServer) -> None:
        self.server = server
        self._secrets: list[str] = []
        is_tls = server.security == "ssl"
        super().__init__(server.host, server.port, ssl=is_tls, timeout=server.timeout_seconds)
        # IMAPClient sets 5, and every response would be written down for its log.
        self.imap.debug = 0

    @property
    def imap(self) -> LimitedIMAP4:
        imap: LimitedIMAP4 = self._imap
        return imap

    def _create_IMAP4(self) -> LimitedIMAP4:
        server = self.server
        return LimitedIMAP4(
            server.host,
            server.port,
            context=tls_context(server.ca_file) if server.security == "ssl" else None,
            seconds=server.timeout_seconds,
            most_bytes=RESPONSE_MAX_BYTES,
        )

    def start_tls(self) -> None:
        self.starttls(tls_context(self.server.ca_file))

    def log_in(self, token: bytes) -> None:
        """Log in by XOAUTH2 if there is a token, else by PLAIN or the command LOGIN, which is for ASCII only.

        Raises:
          NoMechanism: the server offers none that fits.
        """
        user, password = prepare(self.server.user), prepare(self.server.password)
        offered = self.imap.capabilities
        if token:
            # Gmail says why it refuses a token, and wants an empty answer before its NO.
            self._authenticate("XOAUTH2", token, b"")
        elif "AUTH=PLAIN" in offered:
            self._secrets.append(password)
            self._authenticate("PLAIN", f"\0{user}\0{password}".encode())
        elif "LOGINDISABLED" in offered:
            raise NoMechanism("offers no way to log in that we know")
        elif not _PRINTABLE_ASCII.fullmatch(user + password):
            raise NoMechanism("offers no way to log in with letters beyond ASCII")
        else:
            self._secrets.append(password)
            self.login(_quoted(user), password)

    def without_secrets(self, words: str) -> str:
        """Return the server's words without what we logged in with, which some servers repeat."""
        for secret in filter(None, self._secrets):
            words = words.replace(secret, "…")
        return words

    def _authenticate(self, mechanism: str, *answers: bytes) -> None:
        """Give one answer for each challenge of the server, and then none more."""
        self._secrets += [base64.b64encode(answer).decode() for answer in answers]
        remaining = iter(answers)
        self.sasl_login(mechanism, lambda _: next(remaining, None))


def _quoted(text: str) -> str:
    """Write printable ASCII as a quoted string (RFC 3501, 4.3)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
