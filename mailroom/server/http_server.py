"""Runs granian, and in its child process an RSGI worker with each request in a thread of granian's pool.

granian itself would run each request in an event loop; here it runs at once, without a change of threads.
RSGI does not promise that this works: it depends on granian's internals, so pyproject.toml pins the versions
that were tried.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from granian._granian import CallbackScheduler, RSGIWorker
from granian._signals import set_sync_signals
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.log import logger as granian_log
from granian.server.common import WORKERS_METHODS
from granian.server.mp import MPServer, WorkerProcess

from mailroom.server.body import Bodies
from mailroom.server.connections import Connections
from mailroom.server.gateway import Gateway
from mailroom.server.limits import Limits, raise_files_limit
from mailroom.server.watch import watch

#: Files that a process needs besides its connections.
OTHER_FILES = 256


def serve(
    host: str,
    port: int,
    *,
    loader: Callable[[], Any],
    threads: int,
    limits: Limits,
    stop_seconds: int,
) -> None:
    """Serve until a signal; `loader` makes the application in the child process, and opens everything."""
    server = MPServer(
        "app",
        address=host,
        port=port,
        interface=Interfaces.WSGI,
        http=HTTPModes.http1,
        websockets=False,
        log_level=LogLevels.error,
        workers=1,
        blocking_threads=threads,
        backpressure=_connections_possible(limits),
        workers_kill_timeout=stop_seconds,
        http1_settings=HTTP1Settings(header_read_timeout=int(limits.header_seconds * 1000)),
    )
    granian_log.addFilter(partial(_is_news, server))
    server.serve(
        spawn_target=partial(run_worker, port=port, limits=limits),
        target_loader=loader,
        wrap_loader=False,
    )


def _connections_possible(limits: Limits) -> int:
    """Return how many connections the process may have at a time; raises its limit of open files."""
    files = raise_files_limit(limits.connections + OTHER_FILES)
    return max(1, min(limits.connections, files - OTHER_FILES))


def _is_news(server: MPServer, record: logging.LogRecord) -> bool:
    """Drop granian's "Unexpected exit" of a child process that ended with an error and has said why itself.

    One that a signal ended, such as the kernel's when memory runs out, could say nothing.
    """
    exit_codes = {worker.inner.exitcode for worker in server.wrks}
    return exit_codes != {1} or not record.getMessage().startswith("Unexpected exit")


class _Loop:
    """Takes the place of granian's event loop: calls back at once, in the thread that has the result."""

    def call_soon(
        self, call: Callable[..., object], *values: object, context: object = None
    ) -> None:
        call(*values)

    call_soon_threadsafe = call_soon


class GranianOptions(NamedTuple):
    """The rest of what granian gives to its run functions, in granian's order."""

    runtime_threads: int
    runtime_blocking_threads: int
    threads: int
    idle_seconds: int
    connections: int
    task_kind: Any
    http_mode: Any
    http1: Any
    http2: Any
    websockets: bool
    static_files: Any
    log_format: Any
    tls: tuple[Any, ...]
    scope_options: Any
    metrics: Any

    def for_worker(self) -> tuple[Any, ...]:
        """Return the further arguments of RSGIWorker; websockets are off."""
        return (
            self.runtime_threads,
            self.runtime_blocking_threads,
            self.threads,
            self.idle_seconds,
            self.connections,
            self.http_mode,
            self.http1,
            self.http2,
            False,
            self.static_files,
            *self.tls,
            self.metrics,
        )


class _Scheduler(CallbackScheduler):
    """Hands each request to `take`, where granian would make a task of it.

    The other arguments are for granian's tasks, and not used.
    """

    __slots__ = ()

    def __init__(
        self, loop: _Loop, take: Callable[[Any], None], task: None, enter: None, leave: None
    ) -> None:
        super().__init__()
        self._schedule_fn = take


#: RSGIWorker without its stub, which has the arguments of an older version.
_make_worker: Any = RSGIWorker


@WorkerProcess.wrap_target  # type: ignore[untyped-decorator]
def run_worker(
    worker_id: int,
    application: Any,
    listener: Any,
    metrics_pipe: Any,
    asyncio_loop: Any,
    runtime_mode: Any,
    *arguments: Any,
    port: int,
    limits: Limits,
) -> None:
    """Serve until a signal. The positional arguments are those of granian's own run functions."""
    options = GranianOptions(*arguments)
    bodies = Bodies(limits)
    gateway = Gateway(application, bodies)
    watch(gateway, bodies, Connections(port, options.connections))
    ended, loop = threading.Event(), _Loop()
    signals = set_sync_signals()  # type: ignore[no-untyped-call]
    signals.add_cb(ended.set)
    worker = _make_worker(worker_id, listener, metrics_pipe, *options.for_worker())
    serve = getattr(worker, WORKERS_METHODS[runtime_mode][False])
    serve(_Scheduler(loop, gateway.take, None, None, None), loop, signals)
    ended.wait()
