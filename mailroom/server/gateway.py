"""Runs a request of granian's RSGI as one of WSGI (PEP 3333): its environment, and its response."""

import io
import logging
import sys
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from typing import Any

from werkzeug.exceptions import HTTPException

from mailroom.api import problems
from mailroom.server.body import Bodies, Body
from mailroom.server.limits import SHORT_BYTES

log = logging.getLogger("mailasync.web")

Environ = dict[str, Any]
Application = Callable[[Environ, Any], Iterable[bytes]]

_CONSTANT: Environ = {
    "SCRIPT_NAME": "",
    "SERVER_SOFTWARE": "granian",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.errors": sys.stderr,
    "wsgi.input_terminated": True,
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
}
#: Statuses whose response has no content, and so no Content-Length.
_EMPTY = frozenset({204, 304})


class Gateway:
    """Runs the application for each request, in the thread that granian calls it in."""

    def __init__(self, application: Application, bodies: Bodies) -> None:
        #: the clients whose request has no whole response yet, as "host:port"
        self.running: set[str] = set()
        self._application = application
        self._bodies = bodies

    def take(self, watcher: Any) -> None:
        """Run a request now, or free this thread until the body has arrived."""
        exchange = Exchange(watcher.proto)
        try:
            environ = exchange.environ = environment(watcher.scope)
            exchange.peer = watcher.scope.client
            del watcher
            self.running.add(exchange.peer)
            length = body_length(environ)
            if length == 0:
                self._run(exchange, BytesIO())
            else:
                self._with_body(exchange, length)
        except Exception:
            log.exception("a request could not be read")
            exchange.fail()

    def _with_body(self, exchange: "Exchange", length: int | None) -> None:
        body = Body(exchange.protocol, length, exchange.environ["REMOTE_ADDR"], self._bodies)
        if length is None or length <= SHORT_BYTES:
            body.collect(partial(self._run_with_body, exchange, body))
        else:  # The application may refuse a long body before it reads any of it.
            self._run(exchange, body)

    def _run_with_body(self, exchange: "Exchange", body: Body, error: HTTPException | None) -> None:
        if error is None:
            self._run(exchange, body.stream())
            return
        response = problems.http(error)
        headers = [*response.headers, ("Connection", "close")]
        exchange.protocol.response_bytes(response.status_code, headers, response.get_data())
        self._end(exchange, body)

    def _run(self, exchange: "Exchange", body: io.RawIOBase | BytesIO) -> None:
        exchange.environ["wsgi.input"] = body
        try:
            content = self._application(exchange.environ, exchange.start)
            try:
                exchange.respond(content)
            finally:
                getattr(content, "close", bool)()
        except Exception:
            log.exception("a request failed")
            exchange.fail()
        finally:
            self._end(exchange, body)

    def _end(self, exchange: "Exchange", body: io.RawIOBase | BytesIO) -> None:
        self.running.discard(exchange.peer)
        body.close()
        exchange.protocol = None


class Exchange:
    """A request and its response.

    granian closes a connection whose body was not read, as soon as its protocol object is freed. So only this
    object refers to it: a local variable could live on for long in the traceback of an error.
    """

    def __init__(self, protocol: Any) -> None:
        self.environ: Environ = {}
        self.peer = ""
        self.protocol = protocol
        self._status = 500
        self._headers: list[tuple[str, str]] = []

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
        """Take status and headers, as WSGI's `start_response`; they are sent together with the content."""
        self._status, self._headers = int(status[:3]), headers

    def respond(self, content: Iterable[bytes]) -> None:
        """Send the response: in one piece if its length is known, else part by part."""
        if self._status in _EMPTY or any(
            name.lower() == "content-length" for name, _ in self._headers
        ):
            self.protocol.response_bytes(self._status, self._headers, b"".join(content))
            return
        transport = self.protocol.response_stream(self._status, self._headers)
        for part in content:
            if not _was_taken(transport.send_bytes(part)):
                return

    def fail(self) -> None:
        """Respond with 500; does nothing once the request has ended."""
        if self.protocol is not None:
            self.protocol.response_empty(500, [])


def _was_taken(sent: Any) -> bool:
    """Tell whether the connection took what was sent; False once the client has gone.

    granian returns an awaitable, whose result is there at once.
    """
    try:
        next(sent)
    except StopIteration:
        return True
    except RuntimeError:
        return False
    return True


def environment(scope: Any) -> Environ:
    """Return the WSGI environment of a request, as granian's own WSGI makes it, and REMOTE_PORT."""
    environ = _CONSTANT.copy()
    environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = host_and_port(scope.client)
    environ["SERVER_NAME"], environ["SERVER_PORT"] = host_and_port(scope.server)
    environ["SERVER_PROTOCOL"] = "HTTP/1.1" if scope.http_version == "1.1" else "HTTP/1.0"
    environ["REQUEST_METHOD"] = scope.method
    environ["PATH_INFO"] = scope.path.encode().decode("latin-1")
    environ["QUERY_STRING"] = scope.query_string.encode().decode("latin-1")
    headers, others = scope.headers, len(environ)
    for name, value in headers.items():
        variable = _VARIABLES.get(name) or _variable(name)
        if variable not in environ:
            environ[variable] = value
        elif variable not in _SINGLE:
            environ[variable] += (";" if name == "cookie" else ",") + value
    if len(environ) - others < len(headers):
        # A value that is not ASCII is missing above; the application shall still see that the header was
        # sent.
        for name in headers:
            environ.setdefault(_VARIABLES.get(name) or _variable(name), "")
    if "HTTP_HOST" not in environ:
        environ["HTTP_HOST"] = scope.authority or ""
    return environ


def host_and_port(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), port


def body_length(environ: Environ) -> int | None:
    """Return the length of the body in bytes; None for a chunked one."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        return None
    length = environ.get("CONTENT_LENGTH", "")
    return int(length) if length.isdecimal() else 0


#: The environment variable of each header field seen so far.
_VARIABLES = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
_VARIABLES_MAX = 500
_SINGLE = frozenset(_VARIABLES.values())


def _variable(name: str) -> str:
    variable = "HTTP_" + name.upper().replace("-", "_")
    if len(_VARIABLES) < _VARIABLES_MAX:
        _VARIABLES[name] = variable
    return variable
