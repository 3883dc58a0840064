"""Keeps what was received: the newest letters, in memory, until the process ends."""

import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from mailroom.inbox.parser import Head, MailContent, read_body, read_head, read_headers, scrub

LETTERS_MAX_COUNT = 500
LETTERS_MAX_BYTES = 200_000_000
#: Each one who waits holds a thread of the server.
WAITERS_MAX = 16
#: Between two looks whether somebody who waits is to go on.
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class ReceivedMail:
    """A mail as it came: the envelope, and the bytes; nothing is parsed until somebody asks."""

    id: str
    received_at: datetime
    sender: str
    recipients: tuple[str, ...]
    raw: bytes = field(repr=False)

    @cached_property
    def head(self) -> Head:
        """Its main headers, decoded."""
        return read_head(self.raw)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers in their order, decoded."""
        return read_headers(self.raw)

    # Not kept: decoded text is up to four times as big as the bytes, which alone are bounded.
    @property
    def body(self) -> MailContent:
        """Text, HTML and attachments, taken apart anew at each call."""
        return read_body(self.raw)

    def has(self, words: str) -> bool:
        """Tell whether the words are in the subject, a name or an address, or the Message-ID.

        The case of letters does not matter.
        """
        head = self.head
        people = self.sender, *self.recipients, *self.addresses
        return (
            words.casefold()
            in "\n".join((head.subject, head.author, head.to, head.message_id, *people)).casefold()
        )

    @cached_property
    def addresses(self) -> frozenset[str]:
        """The recipients as they are compared."""
        return frozenset(map(_compared, self.recipients))


def _compared(address: str) -> str:
    """Return it in one case, and without quotes: "bob"@example.org is bob@example.org (RFC 5321, 4.1.2)."""
    local, at, domain = address.casefold().rpartition("@")
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return f"{local}{at}{domain}"


class Letters:
    """The newest letters; the oldest go when there are too many or they take too many bytes.

    All methods may be called from any thread.
    """

    def __init__(
        self,
        *,
        max_count: int = LETTERS_MAX_COUNT,
        max_bytes: int = LETTERS_MAX_BYTES,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._now = now
        self._letters: dict[str, ReceivedMail] = {}
        self._bytes = 0
        self._version = 0
        self._waiters = 0
        self._stopping = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._letters)

    @property
    def waiters(self) -> int:
        """The number of callers inside `wait` now."""
        return self._waiters

    @property
    def version(self) -> int:
        """Another number after each change."""
        return self._version

    def add(self, sender: str, recipients: Sequence[str], raw: bytes) -> ReceivedMail:
        """Keep a mail, wake those who wait for it, and drop the oldest that no longer fit."""
        to = tuple(scrub(address) for address in recipients)
        with self._changed:
            id = secrets.token_hex(5)
            while id in self._letters:
                id = secrets.token_hex(5)
            letter = self._letters[id] = ReceivedMail(id, self._now(), scrub(sender), to, raw)
            self._bytes += len(raw)
            self._prune()
            self._note_change()
        return letter

    def get(self, id: str) -> ReceivedMail | None:
        """Return one letter, or None if it never was here or is gone."""
        return self._letters.get(id)

    def newest(self, to: str | None = None, words: str = "") -> list[ReceivedMail]:
        """Return the letters to that envelope recipient (any case) with these words, or all; the newest first."""
        with self._changed:
            letters = list(self._letters.values())
        letters.reverse()
        if to is not None:
            address = _compared(to)
            letters = [letter for letter in letters if address in letter.addresses]
        return [letter for letter in letters if letter.has(words)] if words else letters

    def wait_for_change(self, known: int, timeout: float) -> int:
        """Return the version as soon as it is another one than `known`, or `timeout` seconds are over."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._version != known, timeout)
            return self._version

    @property
    def is_stopping(self) -> bool:
        """Tell whether everybody who waits is to end."""
        return self._stopping

    def wait(
        self, to: str | None, timeout: float, goes_on: Callable[[], bool] = lambda: True
    ) -> list[ReceivedMail]:
        """Return what `newest` does, as soon as that is not empty or `timeout` seconds are over.

        It returns at once when WAITERS_MAX others wait, and within LOOK_SECONDS when `goes_on` says no.
        """
        until = time.monotonic() + timeout
        with self._changed:
            if self._waiters >= WAITERS_MAX:
                return self.newest(to)
            self._waiters += 1
        try:
            while not self._is_over(to, until) and goes_on():
                pass
            return self.newest(to)
        finally:
            with self._changed:
                self._waiters -= 1

    def _is_over(self, to: str | None, until: float) -> bool:
        """Wait a moment for a change; whether there is something to return, or it is too late."""
        with self._changed:
            if self._stopping or self.newest(to):
                return True
            self._changed.wait(min(LOOK_SECONDS, max(0.0, until - time.monotonic())))
            return time.monotonic() >= until

    def stop(self) -> None:
        """Answer all who wait: the server is asked to end, and would be killed if it kept them."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def forget(self, id: str) -> bool:
        """Forget one letter; False if it is not here."""
        with self._changed:
            letter = self._letters.pop(id, None)
            if letter is None:
                return False
            self._bytes -= len(letter.raw)
            self._note_change()
        return True

    def clear(self) -> None:
        """Forget all letters."""
        with self._changed:
            self._letters.clear()
            self._bytes = 0
            self._note_change()

    def _note_change(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _prune(self) -> None:
        # The one that has just come stays, however big it is.
        while len(self._letters) > self._max_count or (
            self._bytes > self._max_bytes and len(self._letters) > 1
        ):
            oldest = self._letters.pop(next(iter(self._letters)))
            self._bytes -= len(oldest.raw)


def address_asked(to: str | None) -> str | None:
    """Return the address that a query string asks for, or None if it asks for none."""
    # Who writes ?to=bob+tag@example.org means the plus, which a query string reads as a space.
    return to.strip().replace(" ", "+") or None if to else None
