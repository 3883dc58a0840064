"""A mail server that answers as a far one does: TLS, AUTH, and a fixed delay before each group of replies. `python -m benchmarks.sink`.

It keeps nothing. Who connects to its second port gets what it has counted, as JSON. It is a process of its own, so that it takes no
turn from what is measured; on uvloop, whose TLS costs less than half, as it shares the machine with that.
"""

import argparse
import asyncio
import json
import ssl
import time
from typing import Any

import uvloop

_EHLO = (
    "250-sink\r\n250-PIPELINING\r\n250-SIZE 35882577\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-AUTH PLAIN LOGIN\r\n"
    "250 ENHANCEDSTATUSCODES\r\n"
)
_REPLIES = {
    "EHLO": _EHLO,
    "HELO": "250 sink\r\n",
    "MAIL": "250 2.1.0 ok\r\n",
    "RCPT": "250 2.1.5 ok\r\n",
    "RSET": "250 2.0.0 ok\r\n",
    "NOOP": "250 2.0.0 ok\r\n",
    "DATA": "354 go on\r\n",
    "QUIT": "221 2.0.0 bye\r\n",
}
_END = b"\r\n.\r\n"


class Counts:
    """The mails that came: how many, when the first and when the last."""

    def __init__(self) -> None:
        self.mails = self.connections = self.logins = 0
        self.first = self.last = 0.0

    def note(self) -> None:
        self.last = time.monotonic()
        self.first = self.first or self.last
        self.mails += 1


class Session(asyncio.Protocol):
    """A connection. What comes while a reply is on its way waits for that."""

    def __init__(self, counts: Counts, delay_seconds: float) -> None:
        self.counts = counts
        self.delay_seconds = delay_seconds
        self.buffer = bytearray()
        self.in_payload = self.answering = False
        self.asked_for: list[str] = []  #: what is left of a login that goes by question and answer

    def connection_made(self, transport: Any) -> None:  # uvloop's is of no class of asyncio's
        self.transport = transport
        self.counts.connections += 1
        self.say("220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.answering:
            self.take()

    def take(self) -> None:
        """Answer all that is there, as one group."""
        replies: list[str] = []
        while self.buffer and not self.answering:
            if self.in_payload:
                end = self.buffer.find(_END)
                if end < 0:
                    break
                del self.buffer[: end + len(_END)]
                self.in_payload = False
                self.counts.note()
                replies.append("250 2.0.0 ok\r\n")
                continue
            end = self.buffer.find(b"\r\n")
            if end < 0:
                break
            line = self.buffer[:end].decode("latin-1")
            del self.buffer[: end + 2]
            replies.append(self.answer(line))
            if self.in_payload:
                break
        if replies:
            self.say("".join(replies))

    def answer(self, line: str) -> str:
        if self.asked_for:
            return self.asked_for.pop(0)
        verb = line[:4].upper()
        if verb == "AUTH":
            self.counts.logins += 1
            _, mechanism, *given = line.upper().split()
            # LOGIN asks for the user's name, unless it came, and then for the password.
            questions = (
                ["334 VXNlcm5hbWU6\r\n", "334 UGFzc3dvcmQ6\r\n"][len(given) :]
                if mechanism == "LOGIN"
                else []
            )
            self.asked_for = [*questions, "235 2.7.0 welcome\r\n"]
            return self.asked_for.pop(0)
        self.in_payload = verb == "DATA"
        return _REPLIES.get(verb, "502 5.5.1 what?\r\n")

    def say(self, text: str) -> None:
        if not self.delay_seconds:
            self.transport.write(text.encode())
            return
        self.answering = True
        asyncio.get_running_loop().call_later(self.delay_seconds, self.say_now, text.encode())

    def say_now(self, text: bytes) -> None:
        self.answering = False
        self.transport.write(text)
        self.take()


async def serve(options: argparse.Namespace) -> None:
    counts = Counts()
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    loop = asyncio.get_running_loop()
    sink = await loop.create_server(
        lambda: Session(counts, options.delay / 1000),
        "127.0.0.1",
        options.port,
        ssl=context,
        backlog=200,
    )

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(json.dumps(vars(counts)).encode())
        writer.close()

    await asyncio.start_server(tell, "127.0.0.1", options.counts_port)
    async with sink:
        await sink.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--counts-port", type=int, required=True)
    parser.add_argument(
        "--delay", type=float, default=0, help="milliseconds before each group of replies"
    )
    parser.add_argument(
        "--certificate", help="a PEM file with key and chain: TLS from the first byte"
    )
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
