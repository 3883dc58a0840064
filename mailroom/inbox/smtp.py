"""Speaks SMTP with whoever sends: takes every mail for everyone, and has no way to send one on."""

import asyncio
import errno
import logging
import os
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from aiosmtpd.smtp import SMTP, Envelope, Session

from mailroom.inbox.chaos import Chaos, Failure
from mailroom.inbox.storage import Letters
from mailroom.process.supervisor import SupervisedThread

#: What Gmail announces as SIZE, so that what fits here fits there.
MAIL_MAX_BYTES = 35_882_577
_CHUNK_BYTES = 262_144
_CONNECTIONS_WAITING = 128

#: What a mail gets that the dial makes fail.
_REPLIES = {
    Failure.DEFER: "451 4.3.0 not now, says the failure dial",
    Failure.REFUSE: "550 5.7.1 never, says the failure dial",
}
#: No reply at all.
_CUT = "421 4.3.2 cut"

_LONE_DOT = b".\r\n"
_END = b"\r\n" + _LONE_DOT
_STARTS_OF_END = tuple(_END[:n] for n in range(1, len(_END)))
#: With its quotes, which the library's parser takes away.
_PLAIN_ADDRESS = re.compile(r"""<((?:[\w.!#$%&'*+/=?^`{|}~-]+|"(?:[^"\\]|\\.)+")@[\w.-]+)>(.*)""", re.ASCII)


class PortTaken(OSError):
    """Another program listens where the inbox was to."""

    def __init__(self, port: int) -> None:
        way_out = "set MAILASYNC_INBOX_SMTP_PORT or stop the other program"
        super().__init__(errno.EADDRINUSE, f"port {port} is taken; {way_out}")

    def __str__(self) -> str:
        return str(self.strerror)


class Inbox:
    """The SMTP server, in a supervised thread of its own; what it takes goes to `letters`.

    With port 0 the system chooses, and `port` tells which after `start()`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 1025,
        *,
        letters: Letters | None = None,
        dial: Chaos | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.letters = Letters() if letters is None else letters
        self.dial = Chaos() if dial is None else dial
        self._listener: socket.socket | None = None  #: for the next run
        self._stopping = threading.Event()
        self._thread: SupervisedThread | None = None
        self._wake: Callable[[], object] = lambda: None  #: has a run look at `_stopping`
        self._ready = threading.Event()

    def start(self) -> None:
        """Listen and return; from then on mail is taken.

        Raises:
          PortTaken: another program listens there.
          OSError: the address cannot be used at all.
        """
        # aiosmtpd logs addresses at INFO and every line of a mail at DEBUG.
        logging.getLogger("mail.log").setLevel(logging.ERROR)
        self._listener = _listen(self.host, self.port)
        self.port = self._listener.getsockname()[1]
        self._stopping.clear()
        self._ready.clear()
        self._thread = SupervisedThread("inbox", self._run, self._stopping)
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Close the port and all connections; a mail without its 250 is not kept."""
        if self._thread is None:
            return
        self._stopping.set()
        with suppress(RuntimeError):  # Its loop is closed: a run has just ended by itself.
            self._wake()
        self._thread.join()
        self._thread = None

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

    def _run(self) -> None:
        """Take mail until stop(); a run after one that ended early listens again, on the same port."""
        listener, self._listener = self._listener or _listen(self.host, self.port), None
        try:
            asyncio.run(self._serve(listener))
        finally:
            listener.close()

    async def _serve(self, listener: socket.socket) -> None:
        loop, asked, transports = asyncio.get_running_loop(), asyncio.Event(), set[asyncio.Transport]()
        self._wake = lambda: loop.call_soon_threadsafe(asked.set)
        handler = _Keeper(self.letters, self.dial)
        server = await loop.create_server(lambda: _Conversation(handler, transports), sock=listener)
        try:
            self._ready.set()
            if not self._stopping.is_set():  # After `_wake` is there, so that no stop() is missed.
                await asked.wait()
        finally:
            server.close()
            for transport in list(transports):
                transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks)


class _Keeper:
    """The hooks that aiosmtpd calls."""

    def __init__(self, letters: Letters, dial: Chaos) -> None:
        self._letters = letters
        self._dial = dial

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, host: str, replies: list[str]
    ) -> list[str]:
        """Announce PIPELINING: commands are read one by one from a buffer and answered in order."""
        session.host_name = host
        return [*replies[:-1], "250-PIPELINING", replies[-1]]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keep the mail, unless it is to fail."""
        failure = self._dial.take()
        if failure in _REPLIES:
            return _REPLIES[failure]
        sender = envelope.mail_from or ""
        raw = envelope.original_content or b""
        letter = self._letters.add(sender.removeprefix("<>"), envelope.rcpt_tos, raw)
        return _CUT if failure else f"250 2.0.0 kept as {letter.id}"


class _Conversation(SMTP):
    """A connection. Takes lines of any length, and the payload in big pieces instead of lines."""

    line_length_limit = _CHUNK_BYTES

    def __init__(self, handler: _Keeper, transports: set[asyncio.Transport]) -> None:
        super().__init__(
            handler,
            data_size_limit=MAIL_MAX_BYTES,
            enable_SMTPUTF8=True,
            hostname="localhost",  # Else each connection asks the DNS for this machine's name.
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
        """Take the payload whole; aiosmtpd goes line by line, which takes five times as long."""
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
            reply = f"552 5.3.4 a mail may have {MAIL_MAX_BYTES} bytes"
        else:
            self.envelope.content = self.envelope.original_content = raw
            reply = await self._call_handler_hook("DATA")
        self.envelope = self._create_envelope()
        if reply is _CUT and isinstance(self.transport, asyncio.Transport):
            self.transport.abort()
            return
        await self.push(reply)

    async def _read_payload(self) -> bytes | None:
        """Return the mail without its transparent dots (RFC 5321, 4.5.2); None if it is too big."""
        # The end may begin in the very first bytes, where there is no line end before it yet, and
        # no byte after it may be read: the next command can be there already.
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
                chunks.clear()  # And read on: the reply may come only after the last dot.
            else:
                chunks.append(chunk)
        if not chunks:
            return None
        payload = b"".join(chunks).removesuffix(_LONE_DOT)
        return payload.removeprefix(b".").replace(b"\r\n.", b"\r\n")

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        # The parser behind it takes as long as the rest of the command.
        plain = _PLAIN_ADDRESS.fullmatch(arg)
        return (plain[1], plain[2]) if plain else super()._getaddr(arg)


def _listen(host: str, port: int) -> socket.socket:
    # The protocol number is there because asyncio turns Nagle's algorithm off only where it sees
    # it; socket.create_server leaves it 0, and pipelined commands then take 40 ms each.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_CONNECTIONS_WAITING)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(port) from error
        raise
    return listener
