"""Listens for programs that hand in mail, in a supervised thread with an event loop of its own."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ssl import SSLContext

from mailroom.model.errors import MailroomError
from mailroom.process.listening_thread import ListeningThread
from mailroom.smtpd.auth import Access
from mailroom.smtpd.connection import ServerParts, SubmissionConnection
from mailroom.smtpd.raw_message import Acceptance

log = logging.getLogger("mailasync.smtpd")

CONNECTIONS_MAX = 500
#: Of one address that is not this machine's.
ADDRESS_CONNECTIONS_MAX = 50
#: Mails that wait for the database at the same time; their commits are one commit.
THREADS = 64
#: How long a stop waits for mails that are being committed.
STOP_SECONDS = 10.0
HANDSHAKE_SECONDS = 30.0


class SubmissionPortTaken(MailroomError):
    """Another program listens on the port."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """The address to listen on, and the certificate."""

    host: str
    port: int
    host_name: str  #: of the greeting
    mail_max_bytes: int
    tls: SSLContext | None = None
    tls_at_once: bool = False  #: TLS from the first byte, and not after STARTTLS


class SubmissionServer:
    """The SMTP server; with port 0 the system chooses one, and `port` has it after `start()`."""

    def __init__(self, listener: Listener, *, access: Access, acceptance: Acceptance) -> None:
        self.listener = listener
        self.port = listener.port
        self._access = access
        self._acceptance = acceptance
        self._thread = ListeningThread("submission", self._serving, port_taken=_port_taken)

    def start(self) -> None:
        """Start to listen, and return when mail is taken.

        Raises:
          SubmissionPortTaken: another program listens on the port.
          OSError: this machine cannot listen on the address.
        """
        # aiosmtpd logs addresses at INFO and every line of a mail at DEBUG.
        logging.getLogger("mail.log").setLevel(logging.ERROR)
        self.port = self._thread.start(self.listener.host, self.port)

    def stop(self) -> None:
        """Take no more mail; one that is being committed gets its reply."""
        self._thread.stop()

    def _submission(self, threads: ThreadPoolExecutor) -> ServerParts:
        return ServerParts(
            host_name=self.listener.host_name,
            mail_max_bytes=self.listener.mail_max_bytes,
            access=self._access,
            acceptance=self._acceptance,
            threads=threads,
            starttls=None if self.listener.tls_at_once else self.listener.tls,
        )

    @asynccontextmanager
    async def _serving(self, bound: socket.socket) -> AsyncIterator[None]:
        threads = ThreadPoolExecutor(THREADS, thread_name_prefix="submission")
        submission = self._submission(threads)
        at_once = self.listener.tls if self.listener.tls_at_once else None
        server = await asyncio.get_running_loop().create_server(
            lambda: _Doorkeeper(submission),
            sock=bound,
            ssl=at_once,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if at_once else None,
        )
        try:
            yield
        finally:
            server.close()
            try:
                await _end(submission)
            finally:
                threads.shutdown()


class _Doorkeeper(asyncio.Protocol):
    """Turns away a client that is one too many, and hands all others to a SubmissionConnection."""

    def __init__(self, submission: ServerParts) -> None:
        self._submission = submission

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        peer = transport.get_extra_info("peername") or ("", 0)
        if self._are_too_many(str(peer[0]).partition("%")[0]):
            transport.write(b"421 4.7.0 too many connections; try again later\r\n")
            transport.close()
            return
        connection = SubmissionConnection(self._submission)
        transport.set_protocol(connection)
        connection.connection_made(transport)

    def _are_too_many(self, address: str) -> bool:
        connections = self._submission.connections
        if len(connections) >= CONNECTIONS_MAX:
            return True
        others = [one for one in connections if one.address == address and not one.is_local]
        return len(others) >= ADDRESS_CONNECTIONS_MAX


async def _end(submission: ServerParts) -> None:
    """Let mails that are being committed get their replies, then cut all connections."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    _say_goodbye(submission)
    committing = [one for one in submission.connections if one.is_committing]
    deadline = asyncio.get_running_loop().time() + STOP_SECONDS
    while any(one.is_committing for one in committing):
        if asyncio.get_running_loop().time() > deadline:
            break
        await asyncio.sleep(0.02)
    _say_goodbye(submission)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for connection in list(submission.connections):
        # Inside of TLS, the client may not have agreed to the end yet.
        with suppress(Exception):
            connection.abort()


def _say_goodbye(submission: ServerParts) -> None:
    for connection in list(submission.connections):
        # One whose transport is broken must not keep the others from being told.
        with suppress(Exception):
            connection.say_goodbye()


def _port_taken(port: int) -> SubmissionPortTaken:
    return SubmissionPortTaken(
        f"port {port} is taken; set MAILASYNC_SUBMISSION_PORT or stop the other program"
    )
