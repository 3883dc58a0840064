"""Says who may deliver now: as many mails of an account as it has connections, or one that must be alone."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue

from mailroom.model.account import DEFAULT_ACCOUNT, Capacity
from mailroom.model.errors import TooManyConnections

log = logging.getLogger("mailasync.delivery")

#: An account hangs if all its connections are in use and none was released for so long. One whose last mail
#: took so long is slow.
HANGS_AFTER_SECONDS = 5.0
#: A server that refused a further connection is tried with one more after this.
ADD_CONNECTION_AFTER_SECONDS = 60.0
#: With several accounts, mails that may wait here for each connection of one.
WAITING_PER_CONNECTION = 50
#: While a mail waits to be alone, how often to check whether those before it hang.
EXCLUSIVE_CHECK_SECONDS = 0.5
#: The allowance of a sole account, whose mails wait in the broker.
UNLIMITED = 1_000_000_000


@dataclass(eq=False)
class ConnectionRequest:
    """A waiting request for connections.

    The callbacks get a number: of connections granted now, or of those that will never be granted.
    """

    remaining: int
    on_granted: Callable[[int], None]
    on_withdrawn: Callable[[int], None]


@dataclass(eq=False)
class _AccountShare:
    """The connections of one account, and the requests that wait for them.

    Single mails and batches wait in queues of their own, which take turns. So a single mail, for which
    somebody may be waiting, gets the next connection or the one after that.
    """

    connections_max: int  #: its part of the worker's connections
    server: str
    connected: int = 0  #: mails that use a connection
    unfinished: int = 0  #: mails that use a connection, or whose outcome is not on record yet
    singles: deque[ConnectionRequest] = field(default_factory=deque)
    batches: deque[ConnectionRequest] = field(default_factory=deque)
    single_was_last: bool = False  #: True if the last connection went to a single mail
    #: a connection was last taken or released
    progress_at: float = field(default_factory=time.monotonic)
    is_fast: bool = True  #: True if the last mail took less than HANGS_AFTER_SECONDS
    #: as many as the server takes, as far as we know; at most `connections_max`
    connections: int = 0
    limited_at: float = 0.0  #: `connections` last changed

    def __post_init__(self) -> None:
        self.connections = self.connections_max

    @property
    def waiting(self) -> int:
        return sum(request.remaining for request in (*self.singles, *self.batches))

    @property
    def hangs(self) -> bool:
        is_full = self.connected >= self.connections
        return is_full and time.monotonic() - self.progress_at > HANGS_AFTER_SECONDS

    @property
    def description(self) -> str:
        since = datetime.now(UTC) - timedelta(seconds=time.monotonic() - self.progress_at)
        return f"its server, {self.server}, has taken no mail since {since:%Y-%m-%d %H:%M:%SZ}"

    def limit_connections(self, refusal: TooManyConnections) -> None:
        """Use only as many connections as are open, until one more is tried after a while."""
        self.connections = min(self.connections, max(1, refusal.open_connections, self.connected))
        self.limited_at = time.monotonic()
        log.info(
            "%s takes no further connection (%s); at most %d are used now",
            self.server,
            refusal.code or "it hung up",
            self.connections,
        )

    def admit(self) -> None:
        """Grant as many connections as are free."""
        if self.singles or self.batches:
            self._add_connection()
        while self.connected < self.connections and (queue := self._next_queue()):
            request = queue[0]
            count = min(request.remaining, self.connections - self.connected)
            request.remaining -= count
            if not request.remaining:
                queue.popleft()
            self.single_was_last = queue is self.singles
            self.connected += count
            self.unfinished += count
            self.progress_at = time.monotonic()
            request.on_granted(count)

    def withdraw_requests(self) -> None:
        """End all waiting; the mails count as unfinished until their release is on record."""
        for queue in (self.singles, self.batches):
            while queue:
                request = queue.popleft()
                self.unfinished += request.remaining
                request.on_withdrawn(request.remaining)

    def _add_connection(self) -> None:
        """Allow one more connection if their number was limited a while ago."""
        waited_seconds = time.monotonic() - self.limited_at
        if (
            self.connections < self.connections_max
            and waited_seconds > ADD_CONNECTION_AFTER_SECONDS
        ):
            self.connections += 1
            self.limited_at = time.monotonic()

    def _next_queue(self) -> deque[ConnectionRequest]:
        return (
            self.batches or self.singles if self.single_was_last else self.singles or self.batches
        )


class Admission:
    """Divides a worker's connections among its accounts, so that one that hangs takes none from another.

    A mail that was admitted ends in two steps: `release_connection`, and `finish` once its outcome is on
    record. A mail that is to be alone waits until all others have finished.
    """

    def __init__(self, connections: int, servers: Mapping[str, str] | None = None) -> None:
        """Give each account an equal share, at least one connection; `servers` has the next hop of each."""
        servers = servers or {DEFAULT_ACCOUNT: "the mail server"}
        self.is_divided = len(servers) > 1
        share = max(1, connections // len(servers))
        self._shares = {name: _AccountShare(share, server) for name, server in servers.items()}
        self._exclusive: threading.Event | None = None  #: the mail that is alone now
        self._exclusive_waiting: deque[threading.Event] = deque()
        self._first_waits_since = 0.0  #: when the first of them became the first
        self._others_next = False  #: True if a mail was alone since others were last admitted
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def connections(self) -> int:
        """Return the number of connections of all accounts, even if their servers take fewer now."""
        return sum(share.connections_max for share in self._shares.values())

    @contextmanager
    def shared(self, account: str = DEFAULT_ACCOUNT, *, again: bool = False) -> Iterator[bool]:
        """Wait for a connection for a single mail; False: there will be none. `again`: see `request`."""
        answers: SimpleQueue[bool] = SimpleQueue()
        self.request(
            account,
            1,
            lambda count: answers.put(True),
            lambda count: answers.put(False),
            single=True,
            again=again,
        )
        is_admitted, started_at, refusal = answers.get(), time.monotonic(), None
        try:
            yield is_admitted
        except TooManyConnections as e:
            refusal = e
            raise
        finally:
            if is_admitted:
                self.release_connection(account, time.monotonic() - started_at, refusal=refusal)
            self.finish(account)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until all other mails have finished, and admit none meanwhile.

        Neither lasts longer than HANGS_AFTER_SECONDS: whatever takes longer waits for a mail server.
        """
        admitted = threading.Event()
        self._queue_exclusive(admitted)
        while not admitted.wait(EXCLUSIVE_CHECK_SECONDS):
            with self._lock:
                self._admit_all()
        timer = threading.Timer(HANGS_AFTER_SECONDS, self._end_exclusive, (admitted,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._end_exclusive(admitted)

    @contextmanager
    def without_waiting(self, account: str) -> Iterator[None]:
        """Take a connection at once, for a mail that is alone."""
        share = self._shares[account]
        with self._lock:
            share.connected += 1
            share.unfinished += 1
            share.progress_at = started_at = time.monotonic()
        try:
            yield
        finally:
            self.release_connection(account, time.monotonic() - started_at)
            self.finish(account)

    def request(
        self,
        account: str,
        count: int,
        on_granted: Callable[[int], None],
        on_withdrawn: Callable[[int], None],
        *,
        single: bool = False,
        again: bool = False,
    ) -> None:
        """Queue for `count` connections and return; the callbacks are called while the lock is held.

        `on_granted` gets a number whenever some are free, perhaps at once, until all are granted;
        `on_withdrawn` gets the number of the rest, if they will not be. `again`: before the others, as the
        last one granted was refused by the server.
        """
        share = self._shares[account]
        queue = share.singles if single else share.batches
        with self._lock:
            position = 0 if again else len(queue)
            queue.insert(position, ConnectionRequest(count, on_granted, on_withdrawn))
            self._admit(share)

    def release_connection(
        self,
        account: str = DEFAULT_ACCOUNT,
        seconds: float = 0.0,
        *,
        refusal: TooManyConnections | None = None,
    ) -> None:
        """Free the connection of a mail, which had it for `seconds`; `refusal`: the server gave it none."""
        share = self._shares[account]
        with self._lock:
            share.connected -= 1
            share.progress_at = time.monotonic()
            share.is_fast = seconds < HANGS_AFTER_SECONDS
            if refusal:
                share.limit_connections(refusal)
            self._admit(share)

    def finish(self, account: str = DEFAULT_ACCOUNT) -> None:
        """Note that the outcome of a mail is on record."""
        with self._lock:
            self._shares[account].unfinished -= 1
            if self._exclusive_waiting:
                self._admit_all()

    def withdraw_hanging(self) -> bool:
        """With several accounts, let no mail wait for one that hangs; return True if any mail waits."""
        if not self.is_divided:
            return False
        with self._lock:
            for share in self._shares.values():
                if share.hangs:
                    share.withdraw_requests()
            return any(share.batches or share.singles for share in self._shares.values())

    def close(self) -> None:
        """Withdraw all requests, now and later: nothing is begun any more."""
        with self._lock:
            self._is_closed = True
            for share in self._shares.values():
                share.withdraw_requests()
            for admitted in self._exclusive_waiting:
                admitted.set()

    def free(self, account: str) -> Capacity:
        """Return how many more mails of this account may be claimed.

        No mails wait here for an account that is slow or hangs: they stay in the outbox, where another worker
        may take them.
        """
        if not self.is_divided:
            return Capacity(UNLIMITED, "")
        reason = f"a free connection of account {account}"
        with self._lock:
            share = self._shares[account]
            most = share.connections
            if share.hangs:
                reason += f": {share.description}"
            elif share.is_fast:
                most += share.connections * WAITING_PER_CONNECTION
            return Capacity(max(0, most - share.unfinished - share.waiting), reason)

    def hanging(self) -> dict[str, str]:
        """Return the accounts that hang, each with a description for people."""
        with self._lock:
            return {
                account: share.description for account, share in self._shares.items() if share.hangs
            }

    def _admit(self, share: _AccountShare) -> None:
        if self._is_closed:
            share.withdraw_requests()
        elif self._exclusive or self._exclusive_waiting:
            self._admit_all()
        else:
            share.admit()

    def _admit_all(self) -> None:
        """Admit all that fit; if some are to be alone, do so once after each of them."""
        if self._exclusive:
            return
        if self._others_next or not self._exclusive_waiting:
            self._others_next = False
            for share in self._shares.values():
                share.admit()
        if self._exclusive_waiting and self._is_idle():
            self._exclusive = self._exclusive_waiting.popleft()
            self._exclusive.set()

    def _is_idle(self) -> bool:
        """Tell whether all mails have finished, except those of accounts that hang."""
        if time.monotonic() - self._first_waits_since > HANGS_AFTER_SECONDS:
            return True
        return not any(share.unfinished for share in self._shares.values() if not share.hangs)

    def _queue_exclusive(self, admitted: threading.Event) -> None:
        with self._lock:
            if not self._exclusive_waiting:
                self._first_waits_since = time.monotonic()
            self._exclusive_waiting.append(admitted)
            if self._is_closed:
                admitted.set()
            self._admit_all()

    def _end_exclusive(self, admitted: threading.Event) -> None:
        with self._lock:
            if self._exclusive is admitted:
                self._exclusive = None
                self._others_next, self._first_waits_since = True, time.monotonic()
                self._admit_all()
