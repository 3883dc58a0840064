"""IMAP servers that Dovecot cannot be: one that is scripted, and one that stands before it and hides what it offers."""

import itertools
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Self

from tests.services import let_pass

Reply = Callable[[bytes], Iterable[bytes]]  #: gets the tag of the command


class Listener:
    """Takes connections on a free port, each in a thread of its own, until it is closed."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for end in (self._listener, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(60)
        for end in (self._listener, *self._ends):
            end.close()

    def serve(self, client: socket.socket) -> None:
        raise NotImplementedError

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._ends.append(client)
            self._start(self._serve_quietly, client)

    def _serve_quietly(self, client: socket.socket) -> None:
        with suppress(OSError):
            self.serve(client)
            client.shutdown(socket.SHUT_RDWR)

    def _start(self, act: Callable[..., object], *arguments: object) -> None:
        thread = threading.Thread(target=act, args=arguments)
        self._threads.append(thread)
        thread.start()


class ScriptedIMAP(Listener):
    """Takes every login, and answers OK to whatever is not in `replies`.

    Commands are kept without their tags, in `commands`.
    """

    def __init__(
        self,
        replies: dict[str, Reply] | None = None,
        *,
        greeting: Iterable[bytes] = (b"* OK ready\r\n",),
        capabilities: str = "IMAP4rev1 IDLE",
    ) -> None:
        inbox = b"* 1 EXISTS\r\n* OK [UIDVALIDITY 1] .\r\n* OK [UIDNEXT 2] .\r\n"
        offer = f"* CAPABILITY {capabilities}\r\n".encode()
        self.replies: dict[str, Reply] = {
            "CAPABILITY": lambda tag: [offer, tag + b" OK done\r\n"],
            "EXAMINE": lambda tag: [inbox, tag + b" OK [READ-ONLY] done\r\n"],
            "SELECT": lambda tag: [inbox, tag + b" OK [READ-WRITE] done\r\n"],
            "IDLE": lambda tag: [b"+ idling\r\n"],
            "LOGOUT": lambda tag: [b"* BYE bye\r\n", tag + b" OK done\r\n"],
            **(replies or {}),
        }
        self.greeting = greeting
        self.commands: list[str] = []
        super().__init__()

    def serve(self, client: socket.socket) -> None:
        idle_tag = b""
        for piece in self.greeting:
            client.sendall(piece)
        with client.makefile("rb") as lines:
            for line in lines:
                tag, _, command = line.rstrip().partition(b" ")
                if line == b"DONE\r\n":
                    tag, command = idle_tag, tag
                self.commands.append(command.decode(errors="replace"))
                name = self.commands[-1].removeprefix("UID ").partition(" ")[0]
                if name == "IDLE":
                    idle_tag = tag
                for piece in self.replies.get(name, _ok)(tag):
                    client.sendall(piece)


class ImapRelay(Listener):
    """Stands before another server, leaves out `hidden` in what it says, and counts the bytes of both sides."""

    def __init__(self, port: int, *hidden: bytes) -> None:
        self._target = port
        self._hidden = hidden
        self.bytes = 0
        super().__init__()

    def serve(self, client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._target)) as server:
            self._ends.append(server)
            self._start(self._carry, client, server)
            with server.makefile("rb") as lines:
                for line in lines:
                    self.bytes += len(line)
                    for text in self._hidden:
                        line = line.replace(text, b"")
                    client.sendall(line)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                self.bytes += len(data)
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)


def _ok(tag: bytes) -> Iterable[bytes]:
    return [tag + b" OK done\r\n"]


def dripping(piece: bytes = b"x", seconds: float = 0.02) -> Iterator[bytes]:
    """Yield a little again and again, for ever."""
    while True:
        let_pass(seconds)
        yield piece


def endless(piece: bytes = b"x" * 65536) -> Iterator[bytes]:
    return itertools.repeat(piece)
