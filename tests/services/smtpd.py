"""A real SMTP server whose replies a test scripts, and the judge of what was delivered.

    with ScriptedSMTP() as smtpd:
        smtpd.reply("RCPT", "550 5.1.1 no such user", match="bob@example.org")
        …
        assert smtpd.copies(message_id) == 1

It runs in a thread with its own event loop; what it recorded are lists that only grow.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import re
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn, Self, TypeVar

#: A step of the script applies at one of these: when its command line has come (MECHANISM: that of
#: AUTH; AUTH: when the credentials have), when the final dot has (DOT), or within the payload
#: (PAYLOAD).
PHASES = {
    *(
        "GREETING",
        "EHLO",
        "STARTTLS",
        "MECHANISM",
        "AUTH",
        "MAIL",
        "RCPT",
        "DATA",
        "PAYLOAD",
        "DOT",
    ),
    *("RSET", "NOOP", "QUIT", "OTHER"),
}
#: Before these replies nothing more may come, whatever was offered (RFC 2920, 3.1).
WAIT_FOR = PHASES - {"MAIL", "RCPT", "PAYLOAD", "DOT", "RSET"}
VERBS = ("EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT")

SIZE_MAX_BYTES = 35_882_577  # Gmail's
PATH = rb'(?i:%s):[ ]?<((?:"(?:[^"\\]|\\.)+"@)?[^<>\s"]*)>((?: [^ ]+)*)[ ]?'
MAIL = re.compile(PATH % rb"MAIL FROM")
RCPT = re.compile(PATH % rb"RCPT TO")
MESSAGE_ID = re.compile(rb"^message-id:[ \t]*(?:\r\n[ \t]+)?(\S+)", re.IGNORECASE | re.MULTILINE)
STUFFED = re.compile(rb"(\A|\r\n)\.")
XOAUTH2 = re.compile(r"user=([^\x01]*)\x01auth=Bearer ([^\x01]*)\x01\x01")


@dataclass(eq=False)
class Delivery:
    """A payload whose final dot was received."""

    message_id: str  #: of its header, with the angle brackets; "" where there is none
    mail_from: str
    rcpt_tos: tuple[str, ...]  #: those answered 2xx
    data: bytes  #: dots unstuffed, the last CRLF kept
    connection: int  #: counted from 1
    user: str | None
    received_at: float  #: time.monotonic()
    reply: str | None = None  #: None while there is none, and for ever when the link was dropped

    @property
    def refused(self) -> bool:
        """Whether a 4xx or 5xx told the client that this was not taken."""
        return self.reply is not None and self.reply[:1] in ("4", "5")


@dataclass(eq=False)
class Step:
    """One line of the script; `times` None is always."""

    phase: str
    match: bytes = b""
    times: int | None = 1
    after: int = 0  #: bytes of the payload that have to be there (PAYLOAD)


@dataclass(eq=False)
class Answer(Step):
    """What to say instead of the right reply."""

    reply: bytes = b""
    close: bool = False
    reset: bool = False
    drip_seconds: float = 0.0


@dataclass(eq=False)
class Hold(Step):
    """Keeps the clients that reach its phase there, until released; `connections` are the numbers of those it has kept."""

    connections: list[int] = field(default_factory=list)
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    wake: Callable[[], None] = lambda: None

    def release(self) -> None:
        """Let go whom it holds, and whoever comes later."""
        self.released.set()
        self.wake()


AnyStep = TypeVar("AnyStep", bound=Step)


class Script:
    """What to answer; of the steps for a phase the first that matches applies.

    A scripted reply replaces the right one, and counts: after "550" for a RCPT that recipient is
    not in the envelope, after "354" for a DATA a payload is read. A hold comes before the reply
    that it delays.
    """

    def __init__(self) -> None:
        self.limit: tuple[int, str, Answer | None] = (0, "", None)
        self.errors_max: tuple[int, bytes] = (0, b"")  #: those of a session; 0: any number
        self.recipients_max: tuple[str, int, bytes] = ("", 0, b"")
        self._steps: list[Step] = []
        self._holds: list[Hold] = []
        self._lock = threading.Lock()

    def reply(
        self,
        phase: str,
        reply: str | bytes,
        *,
        match: str = "",
        times: int | None = 1,
        close: bool | None = None,
        reset: bool = False,
        drip_seconds: float = 0.0,
    ) -> None:
        r"""Answer `reply` at `phase`: text gets its CRLF ("\n" parts lines), bytes go as they are.

        `close` hangs up after it, which a 421 does by itself.
        """
        if isinstance(reply, str):
            reply = b"".join(line.encode() + b"\r\n" for line in reply.splitlines())
        close = reply.startswith(b"421") if close is None else close
        step = Answer(phase, match.encode(), times, 0, reply, close, reset, drip_seconds)
        self._add(step)

    def drop(
        self,
        phase: str,
        *,
        match: str = "",
        times: int | None = 1,
        after: int = 1,
        reset: bool = False,
    ) -> None:
        """Close the link instead of answering: with FIN, or RST when `reset`.

        "PAYLOAD" closes it as soon as `after` bytes of a payload have come; not even a final dot
        among them makes it a payload then.
        """
        self._add(Answer(phase, match.encode(), times, after, b"", close=True, reset=reset))

    def hold(self, phase: str, *, match: str = "", times: int | None = 1, after: int = 1) -> Hold:
        """Stop the next client at `phase`; `.reached` is set when one is there.

        A client that hangs up meanwhile is gone, without an answer. In "PAYLOAD" nothing more is
        read, so there it is missed only at release.
        """
        hold = Hold(phase, match.encode(), times, after, wake=self.wake)
        self._add(hold)
        self._holds.append(hold)
        return hold

    def hang(self, phase: str, *, match: str = "") -> Hold:
        """Never answer at `phase`, to anybody, until release()."""
        return self.hold(phase, match=match, times=None)

    def limit_connections(
        self,
        limit: int,
        reply: str = "",
        *,
        at: str = "GREETING",
        close: bool = True,
        reset: bool = False,
    ) -> None:
        """Take so many sessions at a time; a further one is answered `reply`, or nothing."""
        said = f"{reply}\r\n".encode() if reply else b""
        self.limit = (limit, at, Answer(at, reply=said, close=close, reset=reset))

    def hang_up_after(
        self, count: int, phase: str, reply: str, *, match: str = "", last: str = ""
    ) -> None:
        """Answer `reply` always, and after so many of them in a session say `last` and close it."""
        self.reply(phase, reply, match=match, times=None)
        self.errors_max = (count, f"{last}\r\n".encode())

    def end_sessions(self, phase: str, *, recipients: int, reply: str) -> None:
        """Say `reply`, or nothing, and close at `phase` of a mail with so many recipients."""
        self.recipients_max = (phase, recipients, f"{reply}\r\n".encode() if reply else b"")

    def release(self) -> None:
        """Release every hold."""
        for hold in self._holds:
            hold.release()

    def _add(self, step: Step) -> None:
        if step.phase not in PHASES:
            raise ValueError(f"expected one of {sorted(PHASES)}, got {step.phase!r}")
        with self._lock:
            self._steps.append(step)

    def wake(self) -> None:
        """Make those who wait look again whether they are released."""

    def take(self, kind: type[AnyStep], phase: str, text: bytes | bytearray) -> AnyStep | None:
        """Return the step that applies now, and count it."""
        if not self._steps:
            return None
        with self._lock:
            for step in self._steps:
                if not isinstance(step, kind) or step.phase != phase or step.match not in text:
                    continue
                if phase == "PAYLOAD" and len(text) < step.after:
                    continue
                if step.times is not None:
                    step.times -= 1
                    if step.times <= 0:
                        self._steps.remove(step)
                return step
        return None


class Judge:
    """What clients said and sent, in lists that only grow."""

    def __init__(self) -> None:
        self.payloads: list[Delivery] = []  #: whatever was answered
        self.messages: list[Delivery] = []  #: those answered 250
        self.commands: list[tuple[int, str]] = []  #: (connection, line), AUTH as received
        self.batches: list[list[str]] = []  #: lines that came in one read; "." is a payload's end
        self.violations: list[tuple[int, str]] = []  #: (connection, what RFC 5321 or 2920 forbids)
        self.connections = self.max_open_connections = self.logins = self.tls_failures = 0
        self._by_id: dict[str, list[Delivery]] = {}

    def copies(self, message_id: str, *, refused: bool = True) -> int:
        """Return how many payloads with this Message-ID were received up to the final dot.

        Without `refused`: only those that may have been delivered, answered 250 or not at all.
        """
        found = self._by_id.get(message_id.strip("<>"), [])
        return len(found) if refused else sum(not delivery.refused for delivery in found)

    def record(self, delivery: Delivery) -> None:
        self.payloads.append(delivery)
        self._by_id.setdefault(delivery.message_id.strip("<>"), []).append(delivery)


class Gone(Exception):
    """The link is closed, by either side."""


class Session(asyncio.Protocol):
    """One connection: its bytes, and the conversation as a coroutine that reads from them."""

    def __init__(self, smtpd: ScriptedSMTP) -> None:
        self.smtpd, self.news, self.gone = smtpd, asyncio.Event(), False
        self.buffer, self.out, self.closing = bytearray(), bytearray(), False
        self.reset_link, self.drip_seconds = False, 0.0
        self.received = self.consumed = 0  # bytes; `edges` are the values of `received` per read
        self.edges: deque[int] = deque()
        self.batch: list[str] | None = None
        self.welcome = self.helo = self.extended = self.secure = False
        self.user: str | None = None
        self.errors = 0  #: refusals so far
        self.mail_from: str | None = None
        self.mail_options: list[str] = []
        self.rcpt_tos: list[str] = []

    # The link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport: asyncio.Transport = transport
        self._socket_transport = transport
        self.smtpd.connections += 1
        self.number = self.smtpd.connections
        self.smtpd.sessions.add(self)
        self.smtpd.transports.add(transport)
        self.smtpd.max_open_connections = max(
            self.smtpd.max_open_connections, len(self.smtpd.sessions)
        )
        if self.smtpd.tls == "ssl":
            transport.pause_reading()  # The ClientHello is start_tls's to read.
        self.task = asyncio.get_running_loop().create_task(self.talk())
        self.task.add_done_callback(self.ended)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.received += len(data)
        self.edges.append(self.received)
        self.news.set()

    def eof_received(self) -> bool:
        self.gone = True
        self.news.set()
        return not self.secure  # What came before it is still answered; TLS cannot do that.

    def connection_lost(self, exc: Exception | None) -> None:
        self.smtpd.transports.discard(self._socket_transport)
        self.gone = True
        self.news.set()

    def ended(self, task: asyncio.Task[None]) -> None:
        self.smtpd.sessions.discard(self)
        self.smtpd.taken.discard(self)
        self.transport.close()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Gone):
            self.smtpd.errors.append(error)  # A judge that stumbles says so: stop() raises it.

    async def die(self) -> None:
        self.task.cancel()
        self.transport.abort()
        await asyncio.wait([self.task])

    def cut(self) -> NoReturn:
        """Close without a TLS goodbye, so that it looks like the lost link it is."""
        if self.reset_link:
            link = self.transport.get_extra_info("socket")
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
        raise Gone

    async def handshake(self) -> None:
        assert self.smtpd.context is not None
        loop = asyncio.get_running_loop()
        try:
            transport = await loop.start_tls(
                self.transport, self, self.smtpd.context, server_side=True, ssl_shutdown_timeout=1
            )
        except OSError as error:
            self.smtpd.tls_failures += 1
            raise Gone from error
        assert transport is not None
        self.transport, self.secure = transport, True

    async def more(self) -> None:
        """Send what is to be sent, then wait for bytes."""
        received = self.received
        await self.flush()
        while self.received == received:
            if self.gone:
                raise Gone
            self.news.clear()
            await self.news.wait()

    async def flush(self) -> None:
        if self.out:
            if self.smtpd.delay_seconds:
                await asyncio.sleep(self.smtpd.delay_seconds)
            if self.transport.is_closing():
                raise Gone
            await self.write(bytes(self.out))
            self.out.clear()
        if self.closing:
            self.cut()

    async def write(self, data: bytes) -> None:
        if not self.drip_seconds:
            self.transport.write(data)
            return
        for byte in data:
            self.transport.write(bytes([byte]))
            await asyncio.sleep(self.drip_seconds)
        self.drip_seconds = 0.0

    def consume(self, size: int, shown: str = "") -> bytes:
        """Take bytes off the buffer; `shown` joins the batch of the read that completed them."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        self.consumed += size
        while self.edges and self.edges[0] < self.consumed:
            self.edges.popleft()
            self.batch = None
        if shown and self.batch is None:
            self.batch = []
            self.smtpd.batches.append(self.batch)
        if shown and self.batch is not None:
            self.batch.append(shown)
        return data

    async def line(self) -> bytes:
        if self.closing:
            await self.flush()
        while (end := self.buffer.find(b"\r\n")) < 0:
            await self.more()
        text = self.buffer[:end].decode(errors="surrogateescape")
        self.smtpd.commands.append((self.number, text))
        line = self.consume(end + 2, text or "\r\n")[:-2]
        self.spoil(line)
        return line

    def spoil(self, line: bytes) -> None:
        """Lose or garble what came in one read with a MAIL or RSET."""
        if line[:4].upper() not in (b"MAIL", b"RSET") or not self.buffer:
            return
        if self.smtpd.pipelining == "loses":
            self.consume(len(self.buffer))
        elif self.smtpd.pipelining == "garbles":
            self.buffer[:4] = b"XXXX"

    # The conversation

    async def talk(self) -> None:
        if self.smtpd.tls == "ssl":
            await self.handshake()
        reply = await self.answer("GREETING", b"", "220 mx.example.org ESMTP")
        self.welcome = reply.startswith("2")
        await self.flush()
        verbs = {name: getattr(self, f"do_{name.lower()}") for name in VERBS}
        while True:
            line = await self.line()
            verb = line.split(b" ", 1)[0].split(b":", 1)[0].upper().decode("latin-1")
            await verbs.get(verb, self.do_other)(line)

    async def answer(self, phase: str, text: bytes | bytearray, right: str) -> str:
        """Say what the script has for `phase`, or else `right`; return what counts as said."""
        if hold := self.smtpd.take(Hold, phase, text):
            await self.wait_for(hold)
        if self.buffer and (phase in WAIT_FOR or not self.pipelines):
            self.violation(f"bytes came before the reply to {phase}")
        step = self.smtpd.take(Answer, phase, text) or self.surplus(phase) or self.excess(phase)
        if step is None:
            self.out += right.encode() + b"\r\n"
            return right
        self.say(step)
        whole = step.reply.endswith(b"\r\n") and step.reply[:3].isdigit()
        return step.reply.decode(errors="replace").rstrip() if whole else ""

    def surplus(self, phase: str) -> Answer | None:
        """Return what a session too many is told, or note that it is none."""
        limit, phase_of_limit, refusal = self.smtpd.limit
        if phase != phase_of_limit:
            return None
        if len(self.smtpd.taken | {self}) > limit:
            self.smtpd.refused += 1
            return refusal
        self.smtpd.taken.add(self)
        return None

    def excess(self, phase: str) -> Answer | None:
        """Return the end of a session whose mail has too many recipients."""
        at, most, reply = self.smtpd.recipients_max
        count = len(self.rcpt_tos) + (phase == "RCPT")
        return Answer(phase, reply=reply, close=True) if phase == at and count >= most else None

    def say(self, step: Answer) -> None:
        self.errors += step.reply[:1] in (b"4", b"5")
        if self.errors == self.smtpd.errors_max[0] > 0:
            step = Answer(step.phase, reply=step.reply + self.smtpd.errors_max[1], close=True)
        self.out += step.reply
        self.closing, self.reset_link = step.close, step.reset
        self.drip_seconds = step.drip_seconds

    async def wait_for(self, hold: Hold) -> None:
        await self.flush()
        if hold.phase == "PAYLOAD":
            self.transport.pause_reading()
        hold.connections.append(self.number)
        hold.reached.set()
        while not hold.released.is_set():
            if self.gone:
                raise Gone
            self.news.clear()
            await self.news.wait()
        self.transport.resume_reading()

    @property
    def pipelines(self) -> bool:
        return bool(self.smtpd.pipelining) and self.extended

    def violation(self, what: str) -> None:
        self.smtpd.violations.append((self.number, what))

    async def do_ehlo(self, line: bytes) -> None:
        self.forget()
        self.extended = line[:4].upper() == b"EHLO"
        right = "250 mx.example.org" if self.welcome else "503 5.5.1 go away"
        if self.welcome and self.extended:
            *most, last = "mx.example.org", *self.extensions()
            right = "".join(f"250-{each}\r\n" for each in most) + f"250 {last}"
        self.helo = (await self.answer("EHLO", line, right)).startswith("250")

    do_helo = do_ehlo

    def extensions(self) -> Iterator[str]:
        if self.smtpd.pipelining:
            yield "PIPELINING"
        if self.smtpd.smtputf8:
            yield "SMTPUTF8"
        if self.must_encrypt:
            yield "STARTTLS"
        elif self.smtpd.auth is not None:
            yield f"AUTH {self.smtpd.mechanisms}".rstrip()
        yield f"SIZE {self.smtpd.size_max_bytes}"
        yield "8BITMIME"
        yield "ENHANCEDSTATUSCODES"

    @property
    def must_encrypt(self) -> bool:
        return self.smtpd.tls == "starttls" and not self.secure

    async def do_starttls(self, line: bytes) -> None:
        right = "220 2.0.0 go ahead" if self.must_encrypt else "503 5.5.1 not now"
        reply = await self.answer("STARTTLS", line, right)
        await self.flush()
        if reply.startswith("220") and self.must_encrypt:
            self.consume(len(self.buffer))  # Nothing said in the clear counts behind TLS.
            self.helo = False
            self.forget()
            await self.handshake()

    async def do_auth(self, line: bytes) -> None:
        words = line.decode("latin-1").split(" ")
        if self.smtpd.auth is None or not self.helo or self.must_encrypt or self.user is not None:
            await self.answer("AUTH", line, "503 5.5.1 not now")
            return
        mechanism = words[1].upper() if len(words) > 1 else ""
        if step := self.smtpd.take(Answer, "MECHANISM", line):
            self.say(step)
            return
        try:
            user, secret = await self.credentials(mechanism, words[2] if len(words) > 2 else None)
        except ValueError:
            await self.answer("AUTH", line, "501 5.5.2 cannot decode this")
            return
        good = self.smtpd.auth.get(user) == secret
        if not good and mechanism == "XOAUTH2":
            await self.ask(b'{"status":"400"}')
        right = "235 2.7.0 accepted" if good else "535 5.7.8 user name and password not accepted"
        reply = await self.answer("AUTH", line + b" " + user.encode(), right)
        if reply.startswith("235"):
            self.user = user
            self.smtpd.logins += 1

    async def credentials(self, mechanism: str, initial: str | None) -> tuple[str, str]:
        first = unbase64(initial) if initial is not None else None
        if mechanism == "LOGIN":
            user = first if first is not None else unbase64(await self.ask(b"Username:"))
            return user, unbase64(await self.ask(b"Password:"))
        if mechanism == "CRAM-MD5":
            return await self.cram_md5()
        if first is None:
            first = unbase64(await self.ask(b""))
        if mechanism == "PLAIN":
            _, user, secret = first.split("\0")
            return user, secret
        if found := XOAUTH2.fullmatch(first):
            return found[1], found[2]
        raise ValueError(mechanism)

    async def cram_md5(self) -> tuple[str, str]:
        challenge = b"<1896.697170952@mx.example.org>"
        user, _, digest = unbase64(await self.ask(challenge)).rpartition(" ")
        secret = (self.smtpd.auth or {}).get(user, "")
        right = hmac.new(secret.encode(), challenge, "md5").hexdigest()
        return user, secret if digest == right else ""

    async def ask(self, challenge: bytes) -> str:
        self.out += b"334 " + base64.b64encode(challenge) + b"\r\n"
        return (await self.line()).decode("latin-1")

    async def do_mail(self, line: bytes) -> None:
        found = MAIL.fullmatch(line)
        options = found[2].decode().upper().split() if found else []
        right = "250 2.1.0 ok"
        if found is None:
            right = "501 5.5.4 expected MAIL FROM:<address>"
        elif not self.helo or self.mail_from is not None:
            right = "503 5.5.1 not now"
        elif self.must_encrypt:
            right = "530 5.7.0 STARTTLS first"
        elif self.smtpd.auth is not None and self.user is None:
            right = "530 5.7.0 authentication required"
        else:
            right = self.objection(found[1], options) or right
        if (await self.answer("MAIL", line, right)).startswith("250") and found:
            self.mail_from, self.mail_options = found[1].decode(errors="replace"), options

    def objection(self, address: bytes, options: list[str]) -> str | None:
        if "SMTPUTF8" in options and not (self.smtpd.smtputf8 and self.extended):
            return "555 5.5.4 SMTPUTF8 was not offered"
        if not address.isascii() and "SMTPUTF8" not in options:
            return "553 5.6.7 SMTPUTF8 needed"
        sizes = [int(each[5:]) for each in options if re.fullmatch(r"SIZE=\d{1,20}", each)]
        return "552 5.3.4 too big" if max(sizes, default=0) > self.smtpd.size_max_bytes else None

    async def do_rcpt(self, line: bytes) -> None:
        found = RCPT.fullmatch(line)
        if found is None or not found[1]:
            right = "501 5.5.4 expected RCPT TO:<address>"
        elif self.mail_from is None:
            right = "503 5.5.1 MAIL first"
        else:
            right = self.objection(found[1], self.mail_options) or "250 2.1.5 ok"
        if (await self.answer("RCPT", line, right)).startswith("25") and found:
            self.rcpt_tos.append(found[1].decode(errors="replace"))

    async def do_data(self, line: bytes) -> None:
        right = "354 go ahead" if self.rcpt_tos else "554 5.5.1 no valid recipients"
        if self.mail_from is None:
            right = "503 5.5.1 MAIL first"
        reply = await self.answer("DATA", line, right)
        await self.flush()
        if not reply.startswith("354"):
            return
        raw = await self.payload()
        self.inspect(raw)
        found = MESSAGE_ID.search(raw.partition(b"\r\n\r\n")[0])
        delivery = Delivery(
            found[1].decode(errors="replace") if found else "",
            self.mail_from or "",
            tuple(self.rcpt_tos),
            unstuff(raw),
            self.number,
            self.user,
            time.monotonic(),
        )
        await self.judge(delivery, raw)

    async def judge(self, delivery: Delivery, raw: bytes) -> None:
        self.smtpd.record(delivery)
        self.forget()
        right = "250 2.0.0 ok"
        if not delivery.rcpt_tos:
            right = "554 5.5.1 no valid recipients"
        elif len(raw) > self.smtpd.size_max_bytes:
            right = "552 5.3.4 too big"
        delivery.reply = await self.answer("DOT", raw, right) or None
        if delivery.reply is not None and delivery.reply.startswith("250"):
            self.smtpd.messages.append(delivery)

    async def payload(self) -> bytes:
        """Return what came before the final dot, still stuffed."""
        sought = 0
        while True:
            if self.buffer:
                await self.interrupt()
            if self.buffer.startswith(b".\r\n"):
                return self.consume(3, ".")[:0]
            end = self.buffer.find(b"\r\n.\r\n", max(0, sought - 4))
            if end >= 0:
                return self.consume(end + 5, ".")[:-3]
            sought = len(self.buffer)
            await self.more()

    async def interrupt(self) -> None:
        """Do what the script wants done within a payload."""
        if hold := self.smtpd.take(Hold, "PAYLOAD", self.buffer):
            await self.wait_for(hold)
        if step := self.smtpd.take(Answer, "PAYLOAD", self.buffer):
            self.say(step)
            await self.flush()

    def inspect(self, raw: bytes) -> None:
        if not raw.count(b"\r") == raw.count(b"\n") == raw.count(b"\r\n"):
            self.violation("CR or LF alone in a payload")
        if max(map(len, raw.split(b"\r\n"))) > 998:
            self.violation("a line of more than 998 bytes")
        if not raw.isascii() and "BODY=8BITMIME" not in self.mail_options:
            self.violation("8-bit payload without BODY=8BITMIME")

    async def do_rset(self, line: bytes) -> None:
        self.forget()
        await self.answer("RSET", line, "250 2.0.0 ok")

    def forget(self) -> None:
        self.mail_from, self.mail_options, self.rcpt_tos = None, [], []

    async def do_noop(self, line: bytes) -> None:
        await self.answer("NOOP", line, "250 2.0.0 ok")

    async def do_quit(self, line: bytes) -> None:
        await self.answer("QUIT", line, "221 2.0.0 bye")
        await self.flush()
        raise Gone

    async def do_other(self, line: bytes) -> None:
        await self.answer("OTHER", line, "502 5.5.1 not known here")


def unbase64(text: str) -> str:
    return base64.b64decode("" if text == "=" else text, validate=True).decode()


def unstuff(raw: bytes) -> bytes:
    if b"\r\n." in raw or raw.startswith(b"."):
        return STUFFED.sub(rb"\1", raw)
    return raw


class ScriptedSMTP(Script, Judge):
    """An SMTP server on a free port of 127.0.0.1; without a script it takes every mail."""

    host = "127.0.0.1"
    _stopping: asyncio.Event  # of the loop that runs
    _deaf: asyncio.Event

    def __init__(
        self,
        *,
        tls: Literal["ssl", "starttls"] | None = None,
        certificate: Path | None = None,
        auth: dict[str, str] | None = None,
        mechanisms: str = "PLAIN LOGIN XOAUTH2",
        pipelining: bool | Literal["loses", "garbles"] = True,
        smtputf8: bool = True,
        delay_seconds: float = 0.0,
        size_max_bytes: int = SIZE_MAX_BYTES,
        port: int = 0,
    ) -> None:
        """`auth`: user → password or, for XOAUTH2, token. `certificate`: a PEM with its key."""
        Script.__init__(self)
        Judge.__init__(self)
        self.tls, self.auth, self.pipelining = tls, auth, pipelining
        self.mechanisms = mechanisms  #: that it offers; it knows CRAM-MD5 as well
        self.smtputf8, self.size_max_bytes, self.port = smtputf8, size_max_bytes, port
        self.delay_seconds = delay_seconds  #: before each group of replies; may be changed
        self.context: ssl.SSLContext | None = None
        if tls is not None:
            if certificate is None:
                raise ValueError(f"expected a certificate for tls={tls!r}, got none")
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate)
        self.sessions: set[Session] = set()
        self.transports: set[asyncio.Transport] = set()  #: whose sockets are open
        self.taken: set[Session] = set()  #: those within the limit of connections
        self.refused = 0  #: how many were not
        self.errors: list[BaseException] = []  #: the server's own, raised by stop()
        self._accepting: set[asyncio.Task[object]] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reservation: socket.socket | None = None

    @property
    def open_connections(self) -> int:
        return len(self.sessions)

    def start(self) -> Self:
        """Listen: at first on a free port, after stop() on the same one."""
        if self._reservation is not None:
            self._reservation.close()
        listener = socket.create_server((self.host, self.port), backlog=1024)
        self.port = listener.getsockname()[1]
        ready, self._is_deaf = threading.Event(), threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listener, ready)), name="smtpd", daemon=True
        )
        self._thread.start()
        ready.wait()
        return self

    async def _serve(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping, self._deaf = asyncio.Event(), asyncio.Event()
        # asyncio's own server leaks a link that is accepted while it closes.
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept, listener)
        ready.set()
        await self._deaf.wait()
        self._loop.remove_reader(listener)
        listener.close()
        self._is_deaf.set()
        await self._stopping.wait()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await asyncio.gather(*(session.die() for session in list(self.sessions)))
        for transport in list(self.transports):  # Closed, and kept open by what nobody has read.
            transport.abort()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # It was there, and has hung up.
            link, _ = listener.accept()
            loop = asyncio.get_running_loop()
            task = loop.create_task(loop.connect_accepted_socket(lambda: Session(self), link))
            self._accepting.add(task)
            task.add_done_callback(self._accepting.discard)

    def stop_listening(self) -> None:
        """Refuse new connections, and go on with those that stand."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._deaf.set)
        self._is_deaf.wait()

    def stop(self) -> None:
        """Cut every link and stop listening; the port stays reserved for start().

        Raises:
          RuntimeError: the server itself had failed, so its verdict is worth nothing.
        """
        if self._thread is None or self._loop is None:
            return
        self.stop_listening()
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None
        # Bound but not listening: connections are refused, and nobody else is given the port.
        self._reservation = socket.socket()
        self._reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reservation.bind((self.host, self.port))
        if self.errors:
            raise RuntimeError("the SMTP server itself failed") from self.errors[0]

    def wake(self) -> None:
        """Make every session look again whether its hold was released."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
                self._loop.call_soon_threadsafe(self._look_again)

    def _look_again(self) -> None:
        for session in self.sessions:
            session.news.set()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            if self._reservation is not None:
                self._reservation.close()
