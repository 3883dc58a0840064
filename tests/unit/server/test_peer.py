"""Who is served where there is no key: processes of this service's user and of root, and nobody by a proxy of another one."""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from mailroom.api.auth import peer
from tests.services import accepts, free_port, wait_until
from tests.services.processes import Service, service

PATIENCE = 60.0
NOBODY = 65_534
#: Does what nginx does for `proxy_pass http://127.0.0.1:PORT;` and nothing more: another Host, and no header of its own.
PROXY = """
import os, socket, sys
port, upstream, user, version = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode()
listener = socket.create_server(("127.0.0.1", port))
if user:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
while True:
    client, _ = listener.accept()
    stream, head = client.makefile("rb"), b""
    while (line := stream.readline()) not in (b"", b"\\r\\n"):
        head += line
    if not head:
        continue
    length = [line.split(b":")[1] for line in head.splitlines() if line.lower().startswith(b"content-length:")]
    body = stream.read(int(length[0])) if length else b""
    fields = [line for line in head.splitlines()[1:] if not line.lower().startswith((b"host:", b"connection:"))]
    method, path, _ = head.splitlines()[0].split(b" ")
    first = [method + b" " + path + b" HTTP/" + version, b"Host: 127.0.0.1:%d" % upstream, b"Connection: close"]
    server = socket.socket()
    server.connect(("127.0.0.1", upstream))
    server.sendall(b"\\r\\n".join([*first, *fields]) + b"\\r\\n\\r\\n" + body)
    while data := server.recv(65536):
        client.sendall(data)
    client.close()
    server.close()
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """`flask up`, without a key: the API, the pages and the inbox."""
    directory = tmp_path_factory.mktemp("up")
    settings = {
        "DATABASE_URL": f"sqlite:///{directory}/up.sqlite3",
        "INBOX_SMTP_PORT": str(free_port()),
        "SIMULATED_WORK_SECONDS": "0",
    }
    with service(directory, **settings) as made:
        made.upgrade()
        made.up()
        yield made


@pytest.fixture(scope="module")
def inbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The inbox alone."""
    port = free_port()
    with service(
        tmp_path_factory.mktemp("inbox"), INBOX_PORT=str(port), INBOX_SMTP_PORT=str(free_port())
    ) as made:
        made.port = port
        made.web("-m", "flask", "inbox")
        yield made


@contextmanager
def proxied(port: int, *, user: int = 0, version: str = "1.1") -> Iterator[int]:
    """A proxy before this port, run by another user if one is named; yields its own port."""
    own = free_port()
    with subprocess.Popen(
        [sys.executable, "-c", PROXY, *map(str, (own, port, user)), version]
    ) as process:
        try:
            wait_until(lambda: accepts(own), PATIENCE, what="the proxy listens")
            yield own
        finally:
            process.kill()


def asked(port: int, method: str, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    body = json.dumps({"to": "bob@example.org"}) if method == "POST" else None
    connection.request(
        method,
        path,
        body,
        {"Host": "mail.example.org", "Content-Type": "application/json"} | headers,
    )
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


#: Root alone can run a process of another user; whoever else tests has the proxy that speaks HTTP/1.0.
PROXIES: list[dict[str, Any]] = [
    {"version": "1.0"},
    *([{"user": NOBODY}] if os.geteuid() == 0 else []),
]
ASKED = [
    ("GET", "/v1/messages"),
    ("POST", "/v1/messages"),
    ("POST", "/"),
    ("GET", "/dashboard"),
    ("GET", "/inbox/"),
    ("GET", "/inbox/api/messages"),
    ("DELETE", "/inbox/api/messages"),
]


@pytest.mark.parametrize("proxy", PROXIES)
def test_strangers_are_not_served_by_a_proxy_that_adds_nothing(
    up: Service, proxy: dict[str, Any]
) -> None:
    with proxied(up.port, **proxy) as port:
        for method, path in ASKED:
            status, text = asked(port, method, path)
            assert status == 401 and "prox" in text and "flask keys create" in text, (path, text)
            assert asked(up.port, method, path, Host="localhost")[0] in (200, 202, 204), path
        assert asked(port, "GET", "/livez")[0] == 200


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_inbox_alone_serves_no_proxy_either(inbox: Service, proxy: dict[str, Any]) -> None:
    with proxied(inbox.port, **proxy) as port:
        for path in ("/inbox/", "/inbox/api/messages"):
            assert asked(port, "GET", path)[0] == 401
            assert asked(inbox.port, "GET", path, Host="localhost")[0] == 200


def test_a_proxy_of_the_own_user_is_served(up: Service) -> None:
    with proxied(up.port) as port:
        assert asked(port, "GET", "/v1/messages")[0] == 200


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


IS_LINUX = sys.platform == "linux"
#: Where the server listens, and how the client calls: also by a socket of IPv6 to an address of IPv4.
WAYS = [
    (socket.AF_INET, "127.0.0.1", socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "::1", socket.AF_INET6, "::1"),
    (socket.AF_INET, "127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),
]


def connected(
    opened: ExitStack, way: tuple[int, str, int, str]
) -> tuple[socket.socket, socket.socket, dict[str, str]]:
    """A client's connection, the server's, and what a server tells an application of it."""
    family, host, client_family, called = way
    listener = opened.enter_context(socket.create_server((host, 0), family=family))
    client = opened.enter_context(socket.socket(client_family))
    client.connect((called, listener.getsockname()[1]))
    server, address = listener.accept()
    opened.enter_context(server)
    return (
        client,
        server,
        {
            "REMOTE_ADDR": address[0],
            "REMOTE_PORT": str(address[1]),
            "SERVER_NAME": host,
            "SERVER_PORT": str(listener.getsockname()[1]),
        },
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("look", peer.LOOKS)
def test_the_kernel_tells_whose_the_other_end_is(
    opened: ExitStack, look: peer.Look, way: tuple[int, str, int, str]
) -> None:
    client, server, environ = connected(opened, way)
    assert peer.is_own(environ, looks=(look,)) is (True if IS_LINUX else None)
    assert peer.is_own(environ, uids={os.geteuid() + 1}, looks=(look,)) is (
        False if IS_LINUX else None
    )
    client.close()
    assert peer.is_own(environ, looks=(look,)) is (False if IS_LINUX else None), (
        "what was closed has root's id"
    )
    server.close()
    assert peer.is_own(environ, looks=(look,)) is (False if IS_LINUX else None), (
        "a client that has gone is not served either"
    )


def test_where_nobody_can_tell_nothing_is_told(opened: ExitStack) -> None:
    _, _, environ = connected(opened, WAYS[0])
    assert (peer.working() is not None) is IS_LINUX
    assert peer.is_own(environ, looks=(lambda end, other: None,)) is None
    assert peer.is_own(environ | {"REMOTE_PORT": ""}) is None
    assert peer.is_own(environ | {"SERVER_NAME": "localhost"}) is None
