"""Clients that post mails at a bounded rate, and note every answer and how long it took."""

import contextlib
import http.client
import itertools
import json
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.services import wait_until

#: A mail to an address that begins so is always refused by the rig's mail server.
REFUSED = "refused-"
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Post:
    """One request and its answer. `status` is None where none came; `seconds` is how long it took."""

    subject: str
    to: tuple[str, ...]
    label: str  #: the fault during which it was made
    status: int | None
    id: str
    seconds: float

    @property
    def accepted(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass
class Load:
    """Posts to the ports in turn; `posts` is a list that only grows."""

    ports: Sequence[int]
    rate: float  #: posts per second, over all clients
    clients: int = 4
    path: str = "/v1/messages"
    people: Callable[[int], tuple[str, ...]] = field(default_factory=lambda: people)
    posts: list[Post] = field(default_factory=list)
    _token: str = field(default_factory=lambda: secrets.token_hex(3))
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _turn: threading.Lock = field(default_factory=threading.Lock)
    _next_at: float = 0.0
    _first: int = 0
    _wanted: int = 0
    _asked: int = 0  #: requests that have no answer yet
    _label: str = ""
    _threads: list[threading.Thread] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def begin(self, count: int, label: str) -> None:
        """Post until `count` were accepted, in threads of its own; `end` waits for them."""
        self._first, self._wanted, self._label = len(self.posts), count, label
        self._ended.clear()
        self._threads = [
            threading.Thread(target=self._post_until_done, name=f"client {n}", args=(n,))
            for n in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def posted(self) -> int:
        """Requests since `begin`, whatever was answered."""
        return len(self.posts) - self._first

    def wait_posted(self, count: int, timeout: float = 120) -> None:
        """Wait until so many more requests were answered, or all are."""
        goal = self.posted + count
        wait_until(
            lambda: self.posted >= goal or not any(thread.is_alive() for thread in self._threads),
            timeout=timeout,
            what=f"{count} more posts",
        )

    def end(self, timeout: float = 300) -> list[Post]:
        """Wait until all are accepted; return the round's posts."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._ended.set()
        for thread in self._threads:
            thread.join()
        return self.posts[self._first :]

    def post(self, *to: str, label: str = "", subject: str = "", port: int = 0) -> Post:
        """Post one mail, now."""
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", port or self.ports[0], timeout=TIMEOUT_SECONDS)
        ) as connection:
            made = _ask(
                connection,
                self.path,
                subject or f"mail {self._token}-{next(self._numbers)}",
                to or ("bob@example.org",),
                label,
            )
        self.posts.append(made)
        return made

    def _post_until_done(self, client: int) -> None:
        port = self.ports[client % len(self.ports)]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS)
        while (number := self._may_post()) is not None:
            made = _ask(
                connection,
                self.path,
                f"mail {self._token}-{number}",
                self.people(number),
                self._label,
            )
            with self._turn:
                self.posts.append(made)
                self._asked -= 1
        connection.close()

    def _may_post(self) -> int | None:
        """Wait for this client's turn; None when the round is over."""
        while True:
            with self._turn:
                now = time.monotonic()
                at = self._next_at = max(self._next_at + 1 / self.rate, now)
            if self._ended.wait(at - now):
                return None
            with self._turn:
                accepted = sum(post.accepted for post in self.posts[self._first :])
                if accepted >= self._wanted:
                    return None
                if accepted + self._asked < self._wanted:
                    self._asked += 1
                    return next(self._numbers)


def people(number: int) -> tuple[str, ...]:
    """Most mails go to one address; some to one that is refused, some to three of which one is."""
    bob = f"bob-{number}@example.org"
    if number % 20 == 7:
        return (bob, f"{REFUSED}{number}@example.org", f"carol-{number}@example.org")
    return (f"{REFUSED}{number}@example.org",) if number % 50 == 11 else (bob,)


def _ask(
    connection: http.client.HTTPConnection, path: str, subject: str, to: tuple[str, ...], label: str
) -> Post:
    body = json.dumps({"to": list(to), "subject": subject, "contents": "The work is done."})
    started = time.monotonic()
    status, id = None, ""
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        status, text = answer.status, answer.read()
        id = str(json.loads(text).get("id", "")) if 200 <= status < 300 else ""
    except (OSError, http.client.HTTPException, ValueError):
        connection.close()
        status = None
    return Post(subject, to, label, status, id, time.monotonic() - started)


def p99(posts: Sequence[Post], *, of: Callable[[Post], bool] = lambda post: post.accepted) -> float:
    """The 99th percentile of the answers' times in seconds; 0 where there was none."""
    took = sorted(post.seconds for post in posts if of(post))
    return took[math.ceil(len(took) * 0.99) - 1] if took else 0.0
