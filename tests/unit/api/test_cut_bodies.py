"""Bodies that end before they should, and look whole: nothing of them is accepted."""

import io
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder

from tests.services.processes import Service, service

PATIENCE = 60.0
MAIL = {"to": "bob@example.org", "subject": "Hello", "contents": "Hi"}
LONG = MAIL | {"contents": "x" * 200_000}
TYPE = "application/json"
URLENCODED = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("web")
    database_url = f"sqlite:///{directory}/mailasync.sqlite3"
    with service(
        directory, DATABASE_URL=database_url, BROKER_URL="pyamqp://guest@127.0.0.1:9//"
    ) as made:
        made.upgrade()
        made.web()
        yield made


def form(**fields: str) -> tuple[bytes, str]:
    data = {**fields, "attachments": (io.BytesIO(b"x" * 100_000), "a.txt")}
    made = EnvironBuilder(method="POST", data=data).get_environ()
    return made["wsgi.input"].read(), made["CONTENT_TYPE"]


def in_chunks(body: bytes, size: int | None = None) -> bytes:
    """One chunk, which says that it is so long."""
    return b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (
        len(body) if size is None else size,
        body,
    )


#: How the body is sent: all of it is there, and its end is not.
CUTS: dict[str, Callable[[bytes], bytes]] = {
    "inside a chunk": lambda body: in_chunks(body, len(body) + 100),
    "before the last chunk": lambda body: in_chunks(body) + b"\r\n",
    "in the last chunk": lambda body: in_chunks(body) + b"\r\n0\r\n",
    "at what is no chunk": lambda body: in_chunks(body) + b"\r\nzz\r\n",
    "before its length": lambda body: b"Content-Length: %d\r\n\r\n%s" % (len(body) + 100, body),
}
BODIES: dict[str, tuple[str, bytes, str]] = {
    "mail": ("/v1/messages", json.dumps(MAIL).encode(), TYPE),
    "mail after work": ("/", json.dumps(MAIL).encode(), TYPE),
    "long mail": ("/v1/messages", json.dumps(LONG).encode(), TYPE),
    "batch": ("/v1/messages/batch", json.dumps([MAIL, MAIL]).encode(), TYPE),
    "job": ("/v1/jobs", json.dumps({"name": "simulate", "args": {"seconds": 1}}).encode(), TYPE),
    "suppression": ("/v1/suppressions", b'{"address": "bob@example.org"}', TYPE),
    "form with a file": ("/v1/messages", *form(message=json.dumps(MAIL))),
    "form of a page": ("/compose", b"to=bob@example.org&contents=Hi", URLENCODED),
}


def sent(
    web: Service, path: str, rest: bytes, *fields: str, is_cut: bool = True
) -> tuple[int, Any]:
    """Status and JSON of the answer; to a request that is cut nothing is added."""
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *fields, ""]
    with socket.create_connection(("127.0.0.1", web.port), timeout=PATIENCE) as connection:
        connection.sendall("\r\n".join(head).encode() + rest)
        if is_cut:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while more := connection.recv(65_536):
            answer += more
    status = int(answer.split(b" ", 2)[1])
    return status, json.loads(answer.partition(b"\r\n\r\n")[2] or b"null")


def kept(web: Service) -> list[Any]:
    """All that was accepted."""
    return [
        row
        for path in ("messages", "jobs", "suppressions")
        for row in web.get(f"/v1/{path}")["data"]
    ]


@pytest.mark.parametrize("what", BODIES)
@pytest.mark.parametrize("where", CUTS)
def test_nothing_of_a_body_that_was_cut_is_accepted(web: Service, what: str, where: str) -> None:
    path, body, content_type = BODIES[what]
    status, told = sent(web, path, CUTS[where](body), f"Content-Type: {content_type}")
    assert status == 400
    assert told["status"] == 400 and f"got {len(body)} bytes" in told["detail"]
    assert kept(web) == []


def test_the_whole_body_is_accepted_afterwards_by_the_same_key(web: Service) -> None:
    body, fields = json.dumps(MAIL).encode(), (f"Content-Type: {TYPE}", "Idempotency-Key: cut")
    assert sent(web, "/v1/messages", CUTS["inside a chunk"](body), *fields)[0] == 400
    whole = in_chunks(body) + b"\r\n0\r\n\r\n"
    first, again = (sent(web, "/v1/messages", whole, *fields, is_cut=False) for _ in range(2))
    assert (first[0], first[1]["id"]) == (202, again[1]["id"])
    assert [row["id"] for row in kept(web)] == [first[1]["id"]]
