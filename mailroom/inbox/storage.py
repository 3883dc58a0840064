"""Keeps the newest received mails in memory until the process ends."""

import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from mailroom.inbox.parser import Head, MailContent, read_body, read_head, read_headers, scrub

MAILS_MAX_COUNT = 500
MAILS_MAX_BYTES = 200_000_000
#: The most requests that wait for mail; each occupies a thread of the web server.
WAITERS_MAX = 16
#: How often a waiting request checks whether its client may still read.
ACCESS_CHECK_SECONDS = 1.0


@dataclass(frozen=True)
class ReceivedMail:
    """A mail as SMTP delivered it: the envelope and the bytes, which are parsed only when they are read."""

    id: str
    received_at: datetime
    sender: str
    recipients: tuple[str, ...]
    raw: bytes = field(repr=False)

    @cached_property
    def head(self) -> Head:
        """The headers that a list shows, decoded."""
        return read_head(self.raw)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers in order, decoded."""
        return read_headers(self.raw)

    # Not cached: decoded text is up to four times as big as the bytes, and only the bytes are limited.
    @property
    def body(self) -> MailContent:
        """Text, HTML and attachments; parsed anew on each access."""
        return read_body(self.raw)

    def has(self, words: str) -> bool:
        """Tell whether the words are in the subject, a name, an address or the Message-ID, in any case."""
        head = self.head
        people = self.sender, *self.recipients, *self.addresses
        searched = "\n".join((head.subject, head.author, head.to, head.message_id, *people))
        return words.casefold() in searched.casefold()

    @cached_property
    def addresses(self) -> frozenset[str]:
        """The envelope recipients, normalized for comparison."""
        return frozenset(map(_normalized, self.recipients))


def _normalized(address: str) -> str:
    """Return the address in lower case, unquoted: "Bob"@example.org is bob@example.org (RFC 5321, 4.1.2)."""
    local, at, domain = address.casefold().rpartition("@")
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return f"{local}{at}{domain}"


class InboxStorage:
    """The newest mails; the oldest are dropped when there are too many or they take too many bytes.

    All methods are thread-safe.
    """

    def __init__(
        self,
        *,
        max_count: int = MAILS_MAX_COUNT,
        max_bytes: int = MAILS_MAX_BYTES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._now = now
        self._mails: dict[str, ReceivedMail] = {}
        self._bytes = 0
        self._version = 0
        self._waiters = 0
        self._stopping = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._mails)

    @property
    def waiters(self) -> int:
        """The number of callers inside `wait` now."""
        return self._waiters

    @property
    def version(self) -> int:
        """A number that changes with each mail that arrives or is deleted."""
        return self._version

    def add(self, sender: str, recipients: Sequence[str], raw: bytes) -> ReceivedMail:
        """Keep a mail, wake the requests that wait for one, and drop the oldest beyond the limits."""
        to = tuple(scrub(address) for address in recipients)
        with self._changed:
            id = secrets.token_hex(5)
            while id in self._mails:
                id = secrets.token_hex(5)
            mail = self._mails[id] = ReceivedMail(id, self._now(), scrub(sender), to, raw)
            self._bytes += len(raw)
            self._prune()
            self._note_change()
        return mail

    def get(self, id: str) -> ReceivedMail | None:
        """Return one mail; None if there is none with this id, or no longer."""
        return self._mails.get(id)

    def newest(self, to: str | None = None, words: str = "") -> list[ReceivedMail]:
        """Return the mails, newest first; only those to this envelope recipient, or with these words."""
        with self._changed:
            mails = list(self._mails.values())
        mails.reverse()
        if to is not None:
            address = _normalized(to)
            mails = [mail for mail in mails if address in mail.addresses]
        if words:
            mails = [mail for mail in mails if mail.has(words)]
        return mails

    def wait_for_change(self, known: int, timeout: float) -> int:
        """Wait until the version differs from `known`, at most `timeout` seconds; return the version."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._version != known, timeout)
            return self._version

    @property
    def is_stopping(self) -> bool:
        """Tell whether the server is stopping, so that all waiting ends."""
        return self._stopping

    def wait(
        self, to: str | None, timeout: float, may_read: Callable[[], bool] = lambda: True
    ) -> list[ReceivedMail]:
        """Return what `newest` does as soon as that is not empty, at the latest after `timeout` seconds.

        Return at once if WAITERS_MAX others wait, and within ACCESS_CHECK_SECONDS once `may_read` is False.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            if self._waiters >= WAITERS_MAX:
                return self.newest(to)
            self._waiters += 1
        try:
            while not self._wait_once(to, deadline) and may_read():
                pass
            return self.newest(to)
        finally:
            with self._changed:
                self._waiters -= 1

    def _wait_once(self, to: str | None, deadline: float) -> bool:
        """Wait up to ACCESS_CHECK_SECONDS for a change; return True if the waiting is over."""
        with self._changed:
            if self._stopping or self.newest(to):
                return True
            seconds_left = max(0.0, deadline - time.monotonic())
            self._changed.wait(min(ACCESS_CHECK_SECONDS, seconds_left))
            return time.monotonic() >= deadline

    def stop(self) -> None:
        """Let all waiting requests end now, as the server stops and would be killed while they wait."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def forget(self, id: str) -> bool:
        """Delete one mail; return False if there is none with this id."""
        with self._changed:
            mail = self._mails.pop(id, None)
            if mail is None:
                return False
            self._bytes -= len(mail.raw)
            self._note_change()
        return True

    def clear(self) -> None:
        """Delete all mails."""
        with self._changed:
            self._mails.clear()
            self._bytes = 0
            self._note_change()

    def _note_change(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _prune(self) -> None:
        # The mail that has just arrived stays, however big it is.
        while len(self._mails) > self._max_count or (
            self._bytes > self._max_bytes and len(self._mails) > 1
        ):
            oldest = self._mails.pop(next(iter(self._mails)))
            self._bytes -= len(oldest.raw)


def address_param(to: str | None) -> str | None:
    """Return the address in the query parameter `to`, or None without one."""
    # In ?to=bob+tag@example.org the plus is meant, although a query string reads it as a space.
    return to.strip().replace(" ", "+") or None if to else None
