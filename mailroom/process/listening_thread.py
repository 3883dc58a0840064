"""A supervised thread whose event loop serves one port."""

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

from mailroom.process.supervisor import SupervisedThread

_CONNECTIONS_WAITING = 128


class ListeningThread:
    """Serves a port from `start` to `stop`; a restart after a crash listens on the same port again.

    `serving` takes the bound socket: on entering it clients are served, on leaving it all of them are cut.
    """

    def __init__(
        self,
        name: str,
        serving: Callable[[socket.socket], AbstractAsyncContextManager[None]],
        *,
        port_taken: Callable[[int], Exception],
    ) -> None:
        """`port_taken` returns the error for a port on which another program listens."""
        self.name = name
        self._serving = serving
        self._port_taken = port_taken
        self._address = ("", 0)
        self._bound: socket.socket | None = None  #: bound by start(), used by the next run
        self._stopping = threading.Event()
        self._ready = threading.Event()
        self._thread: SupervisedThread | None = None
        #: interrupts the event loop, so that it checks `_stopping`
        self._wake: Callable[[], object] = lambda: None

    def start(self, host: str, port: int) -> int:
        """Bind, and return the port once clients are served; with port 0 the system chooses it.

        Raises:
          OSError: this machine cannot listen on the address.
          Exception: what `port_taken` returns.
        """
        self._bound = self._bind(host, port)
        chosen: int = self._bound.getsockname()[1]
        self._address = (host, chosen)
        self._stopping.clear()
        self._ready.clear()
        self._thread = SupervisedThread(self.name, self._run, self._stopping)
        self._thread.start()
        self._ready.wait()
        return chosen

    def stop(self) -> None:
        """Close the port and what `serving` serves; returns at once if it was never started."""
        if self._thread is None:
            return
        self._stopping.set()
        with suppress(RuntimeError):
            # The event loop is closed: the thread has just ended by itself.
            self._wake()
        self._thread.join()
        self._thread = None

    def _run(self) -> None:
        bound, self._bound = self._bound or self._bind(*self._address), None
        try:
            asyncio.run(self._serve(bound))
        finally:
            bound.close()

    async def _serve(self, bound: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(woken.set)
        async with self._serving(bound):
            self._ready.set()
            if not self._stopping.is_set():
                # Checked after `_wake` is set, so that no stop() is missed.
                await woken.wait()

    def _bind(self, host: str, port: int) -> socket.socket:
        # asyncio turns off Nagle's algorithm only if the protocol number is IPPROTO_TCP;
        # socket.create_server leaves it 0, and pipelined commands then take 40 ms each.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if os.name == "posix":
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, port))
            bound.listen(_CONNECTIONS_WAITING)
        except OSError as e:
            bound.close()
            if e.errno == errno.EADDRINUSE:
                raise self._port_taken(port) from e
            raise
        return bound
