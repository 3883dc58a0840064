"""TLS in front of a server that speaks none, with a certificate of the test's choice."""

import asyncio
import ssl
import threading
from contextlib import suppress
from inspect import CORO_CREATED, getcoroutinestate
from pathlib import Path
from types import TracebackType

PIECE_BYTES = 65536


class TLSFront:
    """Listens on a port of its own, and passes on what comes; `received` is what clients said inside TLS."""

    def __init__(self, certificate: Path, port: int) -> None:
        """`port`: of the server behind it, on 127.0.0.1."""
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._behind = port
        self._loop = asyncio.new_event_loop()
        # A client that refuses the certificate is no fault here.
        self._loop.set_exception_handler(lambda loop, told: None)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0
        self.received = b""

    def __enter__(self) -> "TLSFront":
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def answer_with(self, certificate: Path) -> None:
        """End all connections, and show another certificate from now on; nothing was received yet."""
        asyncio.run_coroutine_threadsafe(self._answer_with(certificate), self._loop).result(60)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _end(self) -> None:
        self._server.close()
        await self._drop()

    async def _answer_with(self, certificate: Path) -> None:
        self._context.load_cert_chain(certificate)
        await self._drop()
        self.received = b""

    async def _drop(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        # One that is cancelled before its first step closes nothing of what it was given.
        while any(getcoroutinestate(task.get_coro()) == CORO_CREATED for task in others):  # type: ignore[arg-type]
            await asyncio.wait(others, timeout=0)
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        server, to_server = await asyncio.open_connection("127.0.0.1", self._behind)
        try:
            await asyncio.gather(
                self._pump(client, to_server, notes=True), self._pump(server, to_client)
            )
        finally:
            for writer in (to_client, to_server):
                writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, notes: bool = False
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(PIECE_BYTES):
                self.received += piece if notes else b""
                target.write(piece)
                await target.drain()
        target.close()
