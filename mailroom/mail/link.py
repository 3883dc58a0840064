"""Reads what a mail server says: whole replies, each with an end in size and in time."""

import re
import smtplib
import socket
import ssl
import time
from typing import Any, NamedTuple

REPLY_LINES_MAX = 100
LINE_MAX_BYTES = 8192
#: What is kept of a reply, as it is written into the timeline once for each recipient.
REPLY_MAX_CHARACTERS = 500

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class Reply(NamedTuple):
    """What the server said: its code, and its text on one line."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}".strip() if self.code > 0 else self.text

    @property
    def accepts(self) -> bool:
        return 200 <= self.code < 300

    @property
    def refuses(self) -> bool:
        return 400 <= self.code < 600


def one_line(text: bytes | str) -> str:
    """A server's words, fit for a log and a database: PostgreSQL takes no NUL, and a terminal obeys escapes."""
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return " ".join(_UNPRINTABLE.sub(" ", said).split())[:REPLY_MAX_CHARACTERS]


class Link(smtplib.SMTP):
    """What our links add to smtplib: no server can hold us with a reply that never ends or trickles in byte by byte."""

    sock: socket.socket
    _refused: smtplib.SMTPAuthenticationError | None = None

    def auth(self, *args: Any, **kwargs: Any) -> tuple[int, bytes]:
        """As smtplib's, which tries the next mechanism after a refusal, and forgets the refusal where the server hung up with it."""
        try:
            return super().auth(*args, **kwargs)
        except smtplib.SMTPAuthenticationError as e:
            self._refused = e
            raise
        except smtplib.SMTPServerDisconnected:
            if self._refused is None:
                raise
            raise self._refused from None

    def getreply(self) -> tuple[int, bytes]:
        """As smtplib's; the socket's timeout is for the whole reply. What is no reply has code -1."""
        patience = self.sock.gettimeout()
        try:
            reply = self._read_reply(float("inf") if patience is None else time.monotonic() + patience)
        except OSError as e:
            self.close()
            words = e.strerror or str(e)
            raise smtplib.SMTPServerDisconnected(f"connection lost: {words}") from e
        self.sock.settimeout(patience)
        return reply

    @property
    def spoke_unasked(self) -> bool:
        """Whether the server said something, or hung up, when it was not its turn."""
        if self.file is None:
            self.file = _Lines(self.sock)
        return self.file.spoke_unasked()

    def _read_reply(self, deadline: float) -> tuple[int, bytes]:
        if self.file is None:  # smtplib's sign for a new socket: at first, and after STARTTLS
            self.file = _Lines(self.sock)
        texts: list[bytes] = []
        while len(texts) < REPLY_LINES_MAX:
            line = self.file.next(deadline)
            if not line[:3].isdigit() or line[3:4] not in (b" ", b"-", b""):
                return -1, line[:200]
            texts.append(line[4:].strip())
            if line[3:4] != b"-":
                return int(line[:3]), b"\n".join(texts)
        raise ConnectionError("the reply had no end")


class TLSLink(Link, smtplib.SMTP_SSL): ...


class _Lines:
    """The lines that come over one socket; stands where smtplib keeps a file that knows no deadline."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._read = bytearray()

    def next(self, deadline: float) -> bytes:
        """Return a line without its end; raises OSError if it is not there at `deadline`, on the clock time.monotonic."""
        while (end := self._read.find(b"\n")) < 0:
            if len(self._read) > LINE_MAX_BYTES:
                raise ConnectionError("a line of the reply had no end")
            left = deadline - time.monotonic()
            self._link.settimeout(None if left == float("inf") else max(left, 0.001))
            self._more()
        line = bytes(self._read[:end])
        del self._read[:end + 1]
        return line.rstrip(b"\r")

    def spoke_unasked(self) -> bool:
        patience = self._link.gettimeout()
        try:
            self._link.settimeout(0)
            self._more()
        except (BlockingIOError, ssl.SSLWantReadError):
            return bool(self._read)
        except OSError:
            return True
        finally:
            self._link.settimeout(patience)
        return True

    def _more(self) -> None:
        data = self._link.recv(4096)
        if not data:
            raise ConnectionError("connection closed by the server")
        self._read += data

    def close(self) -> None:
        """Nothing: the socket is smtplib's to close."""
