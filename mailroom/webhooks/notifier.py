"""Tells clients what happened to their messages: signed POSTs (Standard Webhooks) from threads of its own, never one of mail's."""

import http.client
import json
import logging
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache

from standardwebhooks import Webhook

from mailroom.model.errors import StoreUnavailable
from mailroom.model.retry import Schedule
from mailroom.process.supervisor import SupervisedThread
from mailroom.store.events.deliveries import Deliveries, Due, Told
from mailroom.webhooks.http import Answer, read_answer, words_of
from mailroom.webhooks.ssrf import AddressGuard, Forbidden, Target

log = logging.getLogger("mailasync.webhook")

QUEUE = "webhooks"
THREADS = 8
#: … of which one webhook has so many at most: one that hangs leaves the others to the rest.
THREADS_PER_WEBHOOK = 4
#: For the whole exchange, from looking up the name to the beginning of the answer.
TIMEOUT_SECONDS = 15.0
#: For each of the addresses that a name has.
CONNECT_SECONDS = 5.0
SCHEDULE = Schedule.parse("5s, 5m, 30m, 2h, 5h, 10h, 14h, 20h, 24h")
RETRY_AFTER_MAX_SECONDS = 86_400.0
GONE = 410
#: How long stopping waits for threads whose connections were just ended.
STOP_SECONDS = 2.0
#: Between two claims while the database is away.
PAUSE_SECONDS = 1.0

class Exchange:
    """One POST to an address that was looked at before, and the beginning of the answer. No redirect, no proxy, no second try."""

    def __init__(self, guard: AddressGuard, context: ssl.SSLContext, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._guard = guard
        self._context = context
        self._until = time.monotonic() + timeout_seconds
        self._socket: socket.socket | None = None
        self._closing = threading.Lock()  #: a number of a socket that is closed may be another's in the next moment
        self._aborted = threading.Event()

    def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Never raises for what the other side does."""
        # Each wait on a socket begins anew with each byte that comes, so that somebody else has to look at the clock.
        watch = threading.Timer(max(0.0, self._until - time.monotonic()), self.abort)
        watch.daemon = True
        watch.start()
        try:
            target = self._guard.read(url)
            with self._connected(target) as connection:
                return self._ask(connection, target, body, headers)
        except Forbidden as e:
            return Answer(None, f"not called: {e}")
        except (OSError, http.client.HTTPException, ValueError) as e:
            return Answer(None, "no answer in time" if self._aborted.is_set() else words_of(f"{type(e).__name__} {e}"))
        finally:
            watch.cancel()

    def abort(self) -> None:
        """End it at once, from any thread."""
        self._aborted.set()
        with self._closing, suppress(OSError):
            if self._socket is not None:
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # Of an SSLSocket its own would first forget that it is one.

    @contextmanager
    def _connected(self, target: Target) -> Iterator[http.client.HTTPConnection]:
        line = self._connect(target)
        try:
            if target.scheme == "https":
                line = self._context.wrap_socket(line, server_hostname=target.host, do_handshake_on_connect=False)
                self._watch(line)
                line.do_handshake()
            connection = http.client.HTTPConnection(target.host, target.port)
            connection.sock = line
            yield connection
        finally:
            self._close(line)

    def _connect(self, target: Target) -> socket.socket:
        """A connection to the first of the addresses that takes it; the name is not looked up again."""
        error: OSError = OSError("no address")
        for address in self._guard.addresses(target):
            line = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            line.settimeout(max(0.1, min(CONNECT_SECONDS, self._until - time.monotonic())))
            try:
                self._watch(line)
                line.connect((address, target.port))
                line.settimeout(max(0.1, self._until - time.monotonic()))
                return line
            except OSError as e:
                self._close(line)
                error = e
        raise error

    def _close(self, line: socket.socket) -> None:
        with self._closing:
            self._socket = None
        line.close()

    def _watch(self, line: socket.socket) -> None:
        self._socket = line
        if self._aborted.is_set():
            raise TimeoutError

    def _ask(self, connection: http.client.HTTPConnection, target: Target, body: bytes, headers: dict[str, str]) -> Answer:
        connection.putrequest("POST", target.path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": target.authority, "Content-Length": str(len(body)), "Connection": "close", **headers}.items():
            connection.putheader(name, value)
        broken: OSError | None = None
        try:
            connection.endheaders(body)
        except OSError as e:
            broken = e  # There may be an answer all the same, to a request that was not read to its end.
        with connection.sock.makefile("rb") as source:
            try:
                return read_answer(source)
            except (OSError, http.client.HTTPException) as e:
                raise broken or e from None


class Notifier:
    """Delivers what is due, in threads of its own."""

    def __init__(self, deliveries: Deliveries, guard: AddressGuard, *, threads: int = THREADS, context: ssl.SSLContext | None = None,
                 timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._deliveries = deliveries
        self._exchange: Callable[[], Exchange] = lambda: Exchange(guard, context or default_context(), timeout_seconds)
        self._changed = threading.Condition()
        self._claiming = threading.Lock()
        self._looks = 1  #: how often it was said that there may be something to do
        self._stopping = threading.Event()
        self._threads = [SupervisedThread(f"webhook-{number}", self._work, self._stopping)
                         for number in range(threads)]
        self._open: set[Exchange] = set()
        self._busy: Counter[str] = Counter()  #: attempts under way, by webhook

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Look for something to do."""
        with self._changed:
            self._looks += 1
            self._changed.notify_all()

    def watch(self) -> None:
        """What a sweeper does for us: take up what nobody has in hand, and look at the clock."""
        if count := self._deliveries.give_back():
            log.warning("%d deliveries that nobody works on were given back", count)
        if self._deliveries.is_due():
            self.wake()

    def stop(self) -> None:
        """Begin nothing any more, and break off what is under way: others tell it again."""
        self._stopping.set()
        self.wake()
        for exchange in list(self._open):
            exchange.abort()

    def close(self) -> None:
        """Stop, and give back what we have."""
        self.stop()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        try:
            self._deliveries.release()
        except StoreUnavailable as e:
            log.error("%s", e)

    def _work(self) -> None:
        seen = 0
        while (seen := self._awaited(seen)) and not self._stopping.is_set():
            try:
                while not self._stopping.is_set() and self._deliver_one():
                    pass
            except StoreUnavailable as e:
                log.error("%s", e)
                self._stopping.wait(PAUSE_SECONDS)
            except Exception:
                log.exception("a delivery failed")
                self._stopping.wait(PAUSE_SECONDS)

    def _awaited(self, seen: int) -> int:
        """Wait for something to do, more than was seen."""
        with self._changed:
            self._changed.wait_for(lambda: self._looks > seen)
            return self._looks

    def _deliver_one(self) -> bool:
        """Deliver what has been due longest; False if there is nothing for us."""
        with self._claiming:  # One at a time, so that no webhook gets more threads than it may have.
            due = self._deliveries.claim(busy=[id for id, count in list(self._busy.items()) if count >= THREADS_PER_WEBHOOK])
            if due is None:
                return False
            self._count(due, +1)
        try:
            self._tell(due)
        finally:
            self._count(due, -1)
        return True

    def _count(self, due: Due, change: int) -> None:
        with self._changed:
            self._busy[due.webhook_id] += change
            if not self._busy[due.webhook_id]:
                del self._busy[due.webhook_id]

    def _tell(self, due: Due) -> None:
        answer = Answer(None, "nobody is to be told any more")
        if due.url:
            exchange = self._exchange()
            self._open.add(exchange)
            try:
                if not self._stopping.is_set():
                    answer = exchange.post(due.url, *signed(due))
            finally:
                self._open.discard(exchange)
        if self._stopping.is_set():
            return  # close() gives it back: whether it arrived or not, it is told again.
        told = judge(answer, due.counted if due.url else len(SCHEDULE.waits) + 1)
        self._deliveries.finish(due, told)
        log.info("delivery %d to webhook %s attempt %d: %s", due.number, due.webhook_id, due.attempt, answer.code or "no answer")


def signed(due: Due) -> tuple[bytes, dict[str, str]]:
    """The body, the same in every attempt, and the headers of one that is made now."""
    told = {"type": due.event, "timestamp": rfc3339(due.at), "data": due.data}
    body = json.dumps(told, ensure_ascii=False, separators=(",", ":"))
    now = datetime.now(UTC)  # Aware: the library takes what is not for UTC.
    return body.encode(), {
        "Content-Type": "application/json", "User-Agent": "mailasync", "webhook-id": due.id, "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(due.secret).sign(due.id, now, body)}


def judge(answer: Answer, attempt: int, *, schedule: Schedule = SCHEDULE) -> Told:
    """What becomes of a delivery after this answer to attempt 1, 2, …"""
    if answer.code is not None and 200 <= answer.code < 300:
        return Told(delivered=True, code=answer.code, reply=answer.words)
    wait = None if answer.code == GONE else schedule.wait_seconds(attempt)
    if wait is not None and answer.code in (429, 503):
        wait = max(wait, retry_after_seconds(answer.retry_after))
    return Told(code=answer.code, reply=answer.words, wait_seconds=wait, gone=answer.code == GONE)


def retry_after_seconds(text: str, *, now: Callable[[], float] = time.time) -> float:
    """How long a server asks us to wait (RFC 9110, 10.2.3), a day at most; 0 where it does not say."""
    if text.isascii() and text.isdigit():
        return min(RETRY_AFTER_MAX_SECONDS, float(text[:9]))
    try:
        return min(RETRY_AFTER_MAX_SECONDS, max(0.0, parsedate_to_datetime(text).timestamp() - now()))
    except (ValueError, OverflowError):
        return 0.0


def rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@cache
def default_context() -> ssl.SSLContext:
    """Verifies chain and name by the system's authorities, or those that SSL_CERT_FILE names."""
    return ssl.create_default_context()
