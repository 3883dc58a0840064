"""Says who may deliver now: of each account as many side by side as its share, or one that must be alone."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue

from mailroom.model.account import DEFAULT_ACCOUNT, Free
from mailroom.model.errors import TooManyConnections

log = logging.getLogger("mailasync.delivery")

#: An account hangs when all its connections are taken, and none was given back for so long. One that has just
#: taken so long over a mail is slow.
HANGS_AFTER_SECONDS = 5.0
#: After so long a server that took no further connection is asked for one more.
WIDENS_AFTER_SECONDS = 60.0
#: Mails that may wait for each connection of an account where there are others.
WAITING_PER_CONNECTION = 50
#: How often one that is to be alone looks whether those before it hang.
ALONE_LOOK_SECONDS = 0.5
#: Where one account has all connections, and its mails wait in the broker.
PLENTY = 1_000_000_000


@dataclass(eq=False)
class Asked:
    """Somebody in line for turns; he is told how many he is given, or how many he is to wait for no more."""

    left: int
    given: Callable[[int], None]
    withdrawn: Callable[[int], None]


@dataclass(eq=False)
class _Share:
    """The connections of one account, and who waits for them.

    There are two lines, one for single mails and one for many at a time. The first of each is let in by
    turns: so a single mail, for which somebody may wait, gets the next turn or the one after that.
    """

    most: int  #: its part of the worker's connections
    server: str
    running: int = 0  #: turns that use a connection
    inside: int = 0  #: those, and those that are not on record yet
    singles: deque[Asked] = field(default_factory=deque)
    many: deque[Asked] = field(default_factory=deque)
    let_single_in: bool = False  #: whether that was the last thing done
    moved_at: float = field(default_factory=time.monotonic)  #: when a connection was last taken or given back
    flows: bool = True  #: whether the last mail took less than HANGS_AFTER_SECONDS
    connections: int = 0  #: those that the server takes, as far as we know: at most `most`
    changed_at: float = 0.0  #: when `connections` was

    def __post_init__(self) -> None:
        self.connections = self.most

    @property
    def waiting(self) -> int:
        return sum(asked.left for asked in (*self.singles, *self.many))

    @property
    def hangs(self) -> bool:
        return self.running >= self.connections and time.monotonic() - self.moved_at > HANGS_AFTER_SECONDS

    @property
    def words(self) -> str:
        since = datetime.now(UTC) - timedelta(seconds=time.monotonic() - self.moved_at)
        return f"its server, {self.server}, has taken no mail since {since:%Y-%m-%d %H:%M:%SZ}"

    def narrow(self, refused: TooManyConnections) -> None:
        """Use as many connections as there are, until one more is tried after a while."""
        self.connections = min(self.connections, max(1, refused.standing, self.running))
        self.changed_at = time.monotonic()
        log.info(
            "%s takes no further connection (%s); at most %d are used now",
            self.server,
            refused.code or "it hung up",
            self.connections,
        )

    def widen(self) -> None:
        """Try one more, where there were fewer for a while."""
        if self.connections < self.most and time.monotonic() - self.changed_at > WIDENS_AFTER_SECONDS:
            self.connections += 1
            self.changed_at = time.monotonic()

    def admit(self) -> None:
        if self.singles or self.many:
            self.widen()
        while self.running < self.connections and (line := self._next()):
            asked = line[0]
            count = min(asked.left, self.connections - self.running)
            asked.left -= count
            if not asked.left:
                line.popleft()
            self.let_single_in = line is self.singles
            self.running += count
            self.inside += count
            self.moved_at = time.monotonic()
            asked.given(count)

    def withdraw(self) -> None:
        """Let nobody wait any more; what each of them waited with is still to be put on record."""
        for line in (self.singles, self.many):
            while line:
                asked = line.popleft()
                self.inside += asked.left
                asked.withdrawn(asked.left)

    def _next(self) -> deque[Asked]:
        return self.many or self.singles if self.let_single_in else self.singles or self.many


class Admission:
    """The connections of a worker, divided among its accounts so that one that hangs keeps none from another.

    A turn has two ends: its connection is free for the next one, and all is on record, for which one that is
    to be alone waits.
    """

    def __init__(self, connections: int, servers: Mapping[str, str] | None = None) -> None:
        """Give each account its share, or one connection; `servers` says who takes the mails of each."""
        servers = servers or {DEFAULT_ACCOUNT: "the mail server"}
        self.is_divided = len(servers) > 1
        share = max(1, connections // len(servers))
        self._shares = {name: _Share(share, server) for name, server in servers.items()}
        self._alone: threading.Event | None = None  #: who is alone now
        self._to_be_alone: deque[threading.Event] = deque()
        self._head_since = 0.0  #: when the first of them came to be the first
        self._others_first = False  #: whether one was alone since others were let in
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def connections(self) -> int:
        """Count all of them together, whatever their servers take."""
        return sum(share.most for share in self._shares.values())

    @contextmanager
    def shared(self, account: str = DEFAULT_ACCOUNT, *, again: bool = False) -> Iterator[bool]:
        """Wait in the line of single mails. False: it was withdrawn. `again`: as for `ask`."""
        answer: SimpleQueue[bool] = SimpleQueue()
        self.ask(
            account,
            1,
            lambda count: answer.put(True),
            lambda count: answer.put(False),
            single=True,
            again=again,
        )
        is_given, began_at, refused = answer.get(), time.monotonic(), None
        try:
            yield is_given
        except TooManyConnections as e:
            refused = e
            raise
        finally:
            if is_given:
                self.give_back(account, time.monotonic() - began_at, refused=refused)
            self.leave(account)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until all others are on record, and keep new ones out.

        Neither is for longer than HANGS_AFTER_SECONDS: whatever takes longer waits for a mail server.
        """
        admitted = threading.Event()
        with self._lock:
            if not self._to_be_alone:
                self._head_since = time.monotonic()
            self._to_be_alone.append(admitted)
            if self._is_closed:
                admitted.set()
            self._admit_all()
        while not admitted.wait(ALONE_LOOK_SECONDS):
            with self._lock:
                self._admit_all()
        timer = threading.Timer(HANGS_AFTER_SECONDS, self._end_alone, (admitted,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._end_alone(admitted)

    @contextmanager
    def at_once(self, account: str) -> Iterator[None]:
        """Take a connection without waiting, for one that is alone."""
        share = self._shares[account]
        with self._lock:
            share.running += 1
            share.inside += 1
            share.moved_at = began_at = time.monotonic()
        try:
            yield
        finally:
            self.give_back(account, time.monotonic() - began_at)
            self.leave(account)

    def ask(
        self,
        account: str,
        most: int,
        given: Callable[[int], None],
        withdrawn: Callable[[int], None],
        *,
        single: bool = False,
        again: bool = False,
    ) -> None:
        """Line up for so many turns, and go on. `again`: before the others, for one whose turn was in vain.

        `given` is called with a number whenever some are free, perhaps at once, until it was so many; or
        `withdrawn` is with the rest of them. Both are called while others wait for the lock.
        """
        share = self._shares[account]
        line = share.singles if single else share.many
        with self._lock:
            line.insert(0 if again else len(line), Asked(most, given, withdrawn))
            self._admit(share)

    def give_back(
        self,
        account: str = DEFAULT_ACCOUNT,
        seconds: float = 0.0,
        *,
        refused: TooManyConnections | None = None,
    ) -> None:
        """Free the connection of a turn, which took so long; `refused`: it got none."""
        share = self._shares[account]
        with self._lock:
            share.running -= 1
            share.moved_at = time.monotonic()
            share.flows = seconds < HANGS_AFTER_SECONDS
            if refused:
                share.narrow(refused)
            self._admit(share)

    def leave(self, account: str = DEFAULT_ACCOUNT) -> None:
        """End a turn, as all is on record."""
        with self._lock:
            self._shares[account].inside -= 1
            if self._to_be_alone:
                self._admit_all()

    def withdraw_hanging(self) -> bool:
        """Let nobody wait for an account that hangs, where there are others; return whether anybody waits."""
        if not self.is_divided:
            return False
        with self._lock:
            for share in self._shares.values():
                if share.hangs:
                    share.withdraw()
            return any(share.many or share.singles for share in self._shares.values())

    def close(self) -> None:
        """Let nobody wait, now or later: nothing is begun any more."""
        with self._lock:
            self._is_closed = True
            for share in self._shares.values():
                share.withdraw()
            for admitted in self._to_be_alone:
                admitted.set()

    def free(self, account: str) -> Free:
        """Return how many more of this account may be claimed.

        One that is slow, or hangs, has no line: its mails wait in the outbox, and another may take them.
        """
        if not self.is_divided:
            return Free(PLENTY, "")
        words = f"a free connection of account {account}"
        with self._lock:
            share = self._shares[account]
            most = share.connections
            if share.hangs:
                words += f": {share.words}"
            elif share.flows:
                most += share.connections * WAITING_PER_CONNECTION
            return Free(max(0, most - share.inside - share.waiting), words)

    def hanging(self) -> dict[str, str]:
        """Return the accounts that hang, and what is to be said of each."""
        with self._lock:
            return {account: share.words for account, share in self._shares.items() if share.hangs}

    def _admit(self, share: _Share) -> None:
        if self._is_closed:
            share.withdraw()
        elif self._alone or self._to_be_alone:
            self._admit_all()
        else:
            share.admit()

    def _admit_all(self) -> None:
        """Let in all that fit; where some are to be alone, once after each of them."""
        if self._alone:
            return
        if self._others_first or not self._to_be_alone:
            self._others_first = False
            for share in self._shares.values():
                share.admit()
        if self._to_be_alone and self._is_empty():
            self._alone = self._to_be_alone.popleft()
            self._alone.set()

    def _is_empty(self) -> bool:
        """Return whether nobody is inside, but for those that hang."""
        if time.monotonic() - self._head_since > HANGS_AFTER_SECONDS:
            return True
        return not any(share.inside for share in self._shares.values() if not share.hangs)

    def _end_alone(self, whose: threading.Event) -> None:
        with self._lock:
            if self._alone is whose:
                self._alone, self._others_first, self._head_since = None, True, time.monotonic()
                self._admit_all()
