"""What strangers leave half done: headers and bodies that never end, and connections that ask for nothing.

One web process with few threads is shared; whoever is to be served meanwhile comes from the same address, and from another one.
"""

import http.client
import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mailroom.server.gateway import environment
from mailroom.server.limits import LIMITS, SHORT_BYTES, Limits, raise_files_limit
from mailroom.store.messages.suppressions import Unsubscribes
from tests.services import wait_until
from tests.services.processes import Program, Service, service
from tests.services.schema import ready

KEY = "s3cret"
PATIENCE = 60.0
STRANGER = "127.0.0.1"
#: On a Mac: sudo ifconfig lo0 alias 127.0.0.2
NEIGHBOUR = "127.0.0.2"
#: app.py, with a patience of its own.
SERVE = """
import app
from functools import partial
from mailroom.server.gateway import environment
from mailroom.server.limits import Limits
from mailroom.server.serve import serve, web_app
settings = app.load()
serve(settings, loader=partial(web_app, app.create_app, settings), limits=Limits(header_seconds=600, body_seconds={body_seconds}))
"""
MAIL = {"to": "bob@example.org", "subject": "Hello", "contents": "The work is done."}
CLOSE = "Connection: close"
JSON = "Content-Type: application/json"


@contextmanager
def served(directory: Path, body_seconds: float = 600) -> Iterator[tuple[Service, Program]]:
    """A web process with eight threads and a key, without broker and worker; half-sent requests time out late."""
    settings = {
        "DATABASE_URL": f"sqlite:///{directory}/mailasync.sqlite3",
        "BROKER_URL": "pyamqp://guest@127.0.0.1:9//",
    }
    with service(
        directory, API_KEY=KEY, WEB_THREADS="8", SIMULATED_WORK_SECONDS="0", **settings
    ) as made:
        made.upgrade()
        yield made, made.web("-c", SERVE.format(body_seconds=body_seconds))


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    raise_files_limit(4096)
    with served(tmp_path_factory.mktemp("web")) as (made, _):
        yield made


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    """Holds connections open until the test ends."""
    with ExitStack() as stack:
        yield stack


def connect(
    web: Service, opened: ExitStack, data: bytes = b"", address: str = STRANGER
) -> socket.socket:
    connection = socket.create_connection(
        ("127.0.0.1", web.port), timeout=PATIENCE, source_address=(address, 0)
    )
    connection.sendall(data)
    return opened.enter_context(connection)


def head(method: str, path: str, *fields: str) -> bytes:
    return "\r\n".join(
        [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {KEY}",
            *fields,
            "",
            "",
        ]
    ).encode()


def half(path: str, length: int = 100) -> bytes:
    return head("POST", path, JSON, f"Content-Length: {length}") + b'{"to": '


def posted(**more: str) -> bytes:
    body = json.dumps(MAIL | more).encode()
    return head("POST", "/v1/messages", CLOSE, JSON, f"Content-Length: {len(body)}") + body


def answer(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, header fields, and what was read until the server closed."""
    data = b""
    while more := connection.recv(65_536):
        data += more
    first, _, rest = data.partition(b"\r\n")
    fields, _, body = rest.partition(b"\r\n\r\n")
    headers = dict(line.lower().split(": ", 1) for line in fields.decode().splitlines())
    return int(first.split()[1]), headers, body


def ask(web: Service, address: str, request: bytes) -> int:
    """The status of one whole request from this address."""
    with ExitStack() as opened:
        return answer(connect(web, opened, request, address))[0]


LIVEZ = head("GET", "/livez", CLOSE)
LONG = "x" * 2 * SHORT_BYTES


def all_is_well(web: Service) -> None:
    """A look, a mail and a long mail are answered, from the address of the strangers and from another one."""
    for address in (STRANGER, NEIGHBOUR):
        assert [
            ask(web, address, request) for request in (LIVEZ, posted(), posted(contents=LONG))
        ] == [
            200,
            202,
            202,
        ]


def unanswered(connections: list[socket.socket]) -> int:
    """How many have nothing to read, neither an answer nor an end."""
    count = 0
    for connection in connections:
        connection.setblocking(False)
        try:
            connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            count += 1
        connection.settimeout(PATIENCE)
    return count


def unsubscribe_path(web: Service) -> str:
    """A link that is valid."""
    database = ready(web.settings["DATABASE_URL"])
    id = web.request("POST", "/v1/messages", MAIL, headers={"Authorization": f"Bearer {KEY}"})[1][
        "id"
    ]
    path = Unsubscribes(database, "").url(id, 0)
    database.close()
    return path


@pytest.mark.parametrize("path", ["/sign-in", "/unsubscribe/", "/v1/messages"])
def test_half_bodies_hold_nobody_up(web: Service, opened: ExitStack, path: str) -> None:
    path = unsubscribe_path(web) if path == "/unsubscribe/" else path
    strangers = [connect(web, opened, half(path)) for _ in range(128)]
    all_is_well(web)
    wait_until(
        lambda: unanswered(strangers) == LIMITS.bodies_per_address,
        PATIENCE,
        what="as many are left as one address may have",
    )
    assert Counter(answer(stranger)[0] for stranger in strangers if not unanswered([stranger])) == {
        429: 128 - LIMITS.bodies_per_address
    }


def test_half_long_bodies_hold_nobody_up(web: Service, opened: ExitStack) -> None:
    strangers = [
        connect(web, opened, half("/v1/messages", 30_000_000), NEIGHBOUR) for _ in range(128)
    ]
    wait_until(
        lambda: unanswered(strangers) == LIMITS.bodies_per_address,
        PATIENCE,
        what="as many are left as one address may have",
    )
    assert [
        ask(web, NEIGHBOUR, request) for request in (LIVEZ, posted(), posted(contents=LONG))
    ] == [
        200,
        202,
        429,
    ]
    assert [
        ask(web, STRANGER, request) for request in (LIVEZ, posted(), posted(contents=LONG))
    ] == [
        200,
        202,
        202,
    ]


def test_bodies_that_do_not_end_are_given_up(tmp_path: Path, opened: ExitStack) -> None:
    chunked = head("POST", "/sign-in", "Transfer-Encoding: chunked") + b"5\r\nkey=x\r\n"
    with served(tmp_path, body_seconds=1) as (web, _):
        long = half("/v1/messages", 30_000_000)
        strangers = [
            connect(web, opened, request)
            for request in (chunked, half("/sign-in"), half("/v1/messages"), long) * 5
        ]
        answers = [answer(stranger) for stranger in strangers]
    assert {(status, headers["content-type"]) for status, headers, _ in answers} == {
        (408, "application/problem+json")
    }
    problem = json.loads(answers[2][2])
    assert (problem["status"], problem["code"], problem["title"]) == (
        408,
        "request_timeout",
        "Request Timeout",
    )
    assert (
        problem["detail"]
        == "expected 100 bytes within 1 s, or at 16384 bytes a second, got 7 bytes; send it again"
    )


def test_half_headers_and_silence_hold_nobody_up(web: Service, opened: ExitStack) -> None:
    strangers = [
        connect(web, opened, data)
        for data in (b"POST /v1/messages HTTP/1.1\r\nHost: local", b"") * 100
    ]
    all_is_well(web)
    assert unanswered(strangers) == 200


def test_more_idle_connections_than_there_are_places_hold_nobody_up(
    web: Service, opened: ExitStack
) -> None:
    strangers = [connect(web, opened) for _ in range(LIMITS.connections + 50)]
    assert ask(web, NEIGHBOUR, LIVEZ) == 200
    all_is_well(web)
    assert 0 < unanswered(strangers) < LIMITS.connections


def test_long_waits_hold_no_thread_that_others_need(web: Service, opened: ExitStack) -> None:
    id = web.request("POST", "/v1/messages", MAIL, headers={"Authorization": f"Bearer {KEY}"})[1][
        "id"
    ]
    waiting = [
        connect(web, opened, head("GET", f"/v1/messages/{id}", "Prefer: wait=60"))
        for _ in range(64)
    ]
    streams = [connect(web, opened, head("GET", "/live")) for _ in range(20)]
    assert all(stream.recv(12) == b"HTTP/1.1 200" for stream in streams)
    all_is_well(web)
    assert unanswered(waiting) == 64


def test_a_body_that_is_cut_off_is_refused(web: Service, opened: ExitStack) -> None:
    mail = json.dumps(MAIL).encode()
    chunk = b"%x\r\n%s\r\n" % (len(mail), mail)
    chunked = head("POST", "/v1/messages", CLOSE, JSON, "Transfer-Encoding: chunked") + chunk
    for request in (half("/v1/messages"), chunked):
        connection = connect(web, opened, request)
        connection.shutdown(socket.SHUT_WR)
        status, _, body = answer(connection)
        assert status == 400 and "and then no more" in json.loads(body)["detail"]
    assert ask(web, STRANGER, chunked + b"0\r\n\r\n") == 202


def test_who_may_not_ask_is_told_so_before_a_long_body(web: Service, opened: ExitStack) -> None:
    stranger = connect(
        web, opened, half("/v1/messages", 30_000_000).replace(KEY.encode(), b"another")
    )
    assert answer(stranger)[0] == 401
    for path, status in (("/sign-in", 413), (unsubscribe_path(web), 400)):
        form = (
            head(
                "POST",
                path,
                "Content-Type: application/x-www-form-urlencoded",
                "Content-Length: 30000000",
            )
            + b"key="
        )
        assert answer(connect(web, opened, form))[0] == status, path


def test_a_connection_carries_one_request_after_the_other(web: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=PATIENCE)
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    connection.connect()
    port = connection.sock.getsockname()
    for mail in (MAIL, MAIL | {"contents": LONG}, MAIL):
        connection.request("POST", "/v1/messages", json.dumps(mail), headers)
        accepted = connection.getresponse()
        assert accepted.status == 202 and accepted.read()
        connection.request("GET", accepted.headers["Location"], headers=headers)
        assert json.loads(connection.getresponse().read())["status"] == "queued"
        assert connection.sock.getsockname() == port
    connection.close()


def test_what_is_half_sent_is_told_so_when_the_service_ends(
    tmp_path: Path, opened: ExitStack
) -> None:
    with served(tmp_path) as (web, program):
        strangers = [
            connect(web, opened, request)
            for request in (half("/sign-in"), half("/v1/messages", 30_000_000))
        ]
        headless = connect(web, opened, b"POST /v1/messages HTTP/1.1\r\nHost: local")
        assert ask(web, STRANGER, LIVEZ) == 200
        assert program.stop(timeout=PATIENCE) == 0
        assert [answer(stranger)[0] for stranger in strangers] == [503, 503], "else it was killed"
        assert headless.recv(1) == b""


def test_a_body_has_so_much_time_as_its_bytes_take_at_the_least_rate() -> None:
    limits = Limits(body_seconds=20, body_bytes_per_second=1000)
    assert limits.body_due(100.0, 0) == 120.0
    assert limits.body_due(100.0, 30_000) == 150.0


class Fields:
    """Header fields as granian gives them: a value beyond ASCII is missing, and only its name is there."""

    def __init__(self, *fields: tuple[str, str]) -> None:
        self._fields = fields

    def __len__(self) -> int:
        return len({name for name, _ in self._fields})

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._fields))

    def items(self) -> list[tuple[str, str]]:
        return [field for field in self._fields if field[1].isascii()]


def test_a_request_has_the_variables_of_wsgi() -> None:
    fields = Fields(
        ("accept", "text/html"),
        ("accept", "*/*"),
        ("cookie", "a=1"),
        ("cookie", "b=2"),
        ("content-length", "5"),
        ("content-length", "5"),
        ("x-forwarded-for", "\xe9"),
    )
    scope = SimpleNamespace(
        client="[::1]:4711",
        server="127.0.0.1:5000",
        http_version="1",
        method="GET",
        path="/caf\xe9",
        query_string="q=1",
        headers=fields,
        authority="localhost",
    )
    made = environment(scope)
    expected = {
        "REMOTE_ADDR": "::1",
        "REMOTE_PORT": "4711",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "5000",
        "SERVER_PROTOCOL": "HTTP/1.0",
        "PATH_INFO": "/caf\xc3\xa9",
        "QUERY_STRING": "q=1",
        "HTTP_ACCEPT": "text/html,*/*",
        "HTTP_COOKIE": "a=1;b=2",
        "CONTENT_LENGTH": "5",
        "HTTP_X_FORWARDED_FOR": "",
        "HTTP_HOST": "localhost",
    }
    assert {name: made[name] for name in expected} == expected
