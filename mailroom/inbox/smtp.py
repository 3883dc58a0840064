"""The inbox's SMTP server: accepts every mail to anybody, and cannot relay any."""

import asyncio
import errno
import logging
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from aiosmtpd.smtp import SMTP, Envelope, Session

from mailroom.inbox.chaos import Chaos, Failure
from mailroom.inbox.storage import InboxStorage
from mailroom.process.listening_thread import ListeningThread

#: The SIZE that Gmail announces, so that a mail accepted here is not too big there.
MAIL_MAX_BYTES = 35_882_577
_CHUNK_BYTES = 262_144

#: Replies to mails that are made to fail.
_REPLIES = {
    Failure.DEFER: "451 4.3.0 deferred, as the inbox was told to",
    Failure.REFUSE: "550 5.7.1 refused, as the inbox was told to",
}
#: A marker, never sent: close the connection instead of replying.
_DROP = "421 4.3.2 dropped"

_LONE_DOT = b".\r\n"
_END = b"\r\n" + _LONE_DOT
_STARTS_OF_END = tuple(_END[:n] for n in range(1, len(_END)))
#: Keeps a quoted local part quoted; the parser of aiosmtpd removes the quotes.
_PLAIN_ADDRESS = re.compile(
    r"""<((?:[\w.!#$%&'*+/=?^`{|}~-]+|"(?:[^"\\]|\\.)+")@[\w.-]+)>(.*)""", re.ASCII
)


class PortTaken(OSError):
    """Another program listens on the inbox's SMTP port."""

    def __init__(self, port: int) -> None:
        way_out = "set MAILASYNC_INBOX_SMTP_PORT or stop the other program"
        super().__init__(errno.EADDRINUSE, f"port {port} is taken; {way_out}")

    def __str__(self) -> str:
        return str(self.strerror)


class Inbox:
    """The SMTP server, in a supervised thread of its own; received mails go to `storage`.

    With port 0 the system chooses one; `port` has it after `start()`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 1025,
        *,
        storage: InboxStorage | None = None,
        chaos: Chaos | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.storage = InboxStorage() if storage is None else storage
        self.chaos = Chaos() if chaos is None else chaos
        self._thread = ListeningThread("inbox", self._serving, port_taken=PortTaken)

    def start(self) -> None:
        """Start to listen, and return when mail is accepted.

        Raises:
          PortTaken: another program listens on the port.
          OSError: this machine cannot listen on the address.
        """
        # aiosmtpd logs addresses at INFO and every line of a mail at DEBUG.
        logging.getLogger("mail.log").setLevel(logging.ERROR)
        self.port = self._thread.start(self.host, self.port)

    def stop(self) -> None:
        """Close the port and all connections; a mail that has not been answered with 250 is not kept."""
        self._thread.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @asynccontextmanager
    async def _serving(self, bound: socket.socket) -> AsyncIterator[None]:
        transports: set[asyncio.Transport] = set()
        handler = _Handler(self.storage, self.chaos)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(handler, transports), sock=bound)
        try:
            yield
        finally:
            server.close()
            await _end(transports)


async def _end(transports: set[asyncio.Transport]) -> None:
    """Cut all connections, and those that are accepted meanwhile, and wait for what serves them."""
    while True:
        for transport in list(transports):
            transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            return
        await asyncio.wait(tasks)


class _Handler:
    """The hooks that aiosmtpd calls."""

    def __init__(self, storage: InboxStorage, chaos: Chaos) -> None:
        self._storage = storage
        self._chaos = chaos

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, host: str, replies: list[str]
    ) -> list[str]:
        """Announce PIPELINING (RFC 2920): commands are read one by one and answered in order."""
        session.host_name = host
        return [*replies[:-1], "250-PIPELINING", replies[-1]]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keep the mail, unless it was chosen to fail."""
        failure = self._chaos.take()
        if failure in _REPLIES:
            return _REPLIES[failure]
        sender = envelope.mail_from or ""
        raw = envelope.original_content or b""
        mail = self._storage.add(sender.removeprefix("<>"), envelope.rcpt_tos, raw)
        return _DROP if failure else f"250 2.0.0 kept as {mail.id}"


class _Connection(SMTP):
    """The SMTP connection of a client; reads the payload in big chunks instead of lines."""

    line_length_limit = _CHUNK_BYTES

    def __init__(self, handler: _Handler, transports: set[asyncio.Transport]) -> None:
        super().__init__(
            handler,
            data_size_limit=MAIL_MAX_BYTES,
            enable_SMTPUTF8=True,
            hostname="localhost",  # Otherwise each connection looks up this machine's name in the DNS.
            ident="mailasync inbox",
            loop=asyncio.get_running_loop(),
        )
        self._transports = transports

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transports.add(transport)
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if isinstance(self.transport, asyncio.Transport):
            self._transports.discard(self.transport)
        super().connection_lost(error)

    async def smtp_DATA(self, arg: str | None) -> None:
        """Receive the payload in chunks: aiosmtpd's own way, line by line, takes five times as long."""
        if await self.check_helo_needed():
            return
        if self.envelope is None or not self.envelope.rcpt_tos:
            await self.push("503 5.5.1 need RCPT command")
            return
        if arg:
            await self.push("501 5.5.4 Syntax: DATA")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        raw = await self._read_payload()
        if raw is None:
            reply = f"552 5.3.4 a mail may have at most {MAIL_MAX_BYTES} bytes"
        else:
            self.envelope.content = self.envelope.original_content = raw
            reply = await self._call_handler_hook("DATA")
        self.envelope = self._create_envelope()
        if reply is _DROP and isinstance(self.transport, asyncio.Transport):
            self.transport.abort()
            return
        await self.push(reply)

    async def _read_payload(self) -> bytes | None:
        """Return the mail without dot-stuffing (RFC 5321, 4.5.2); None if it is too big."""
        # The final dot may be the very first line, with no line end before it. No byte after the
        # final dot may be read: a pipelining client may already have sent its next command.
        chunk = await self._reader.readexactly(3)
        while chunk.endswith(_STARTS_OF_END) and chunk != _LONE_DOT and not chunk.endswith(_END):
            chunk += await self._reader.readexactly(1)
        chunks, size = [chunk], len(chunk)
        while not (chunk.endswith(_END) or chunk == _LONE_DOT):
            try:
                chunk = await self._reader.readuntil(_END)
            except asyncio.LimitOverrunError as error:
                chunk = await self._reader.readexactly(error.consumed)
            size += len(chunk)
            if size > MAIL_MAX_BYTES + len(_END):
                chunks.clear()  # Read on all the same: we may reply only after the final dot.
            else:
                chunks.append(chunk)
        if not chunks:
            return None
        payload = b"".join(chunks).removesuffix(_LONE_DOT)
        return payload.removeprefix(b".").replace(b"\r\n.", b"\r\n")

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        # A fast path: the parser of aiosmtpd takes as long as everything else about the command.
        plain = _PLAIN_ADDRESS.fullmatch(arg)
        return (plain[1], plain[2]) if plain else super()._getaddr(arg)
