"""Makes and checks ids that nobody can guess."""

import os
import re
import struct
import time
from collections import deque
from typing import Self

#: Random 64-bit numbers to read at once: at each system call another thread may take the interpreter.
_BATCH = 512
_numbers: deque[int] = deque()
# Otherwise two processes would make the same ids.
os.register_at_fork(after_in_child=_numbers.clear)


class MailId(str):
    """The id of an accepted mail with the queue of its nudge, so that `sendMail.delay(id)` needs no more."""

    queue: str
    is_queued: bool  #: False for a mail that waits, whose nudge need not be remembered

    def __new__(cls, id: str, *, queue: str, is_queued: bool = True) -> Self:
        made = super().__new__(cls, id)
        made.queue, made.is_queued = queue, is_queued
        return made


def new_id() -> str:
    """Return a UUID of version 7 (RFC 9562, 5.7), which sorts by time: new rows are neighbours in an index.

    The 12 bits after the milliseconds are their fraction (6.2, method 3), so ids of one process sort in the
    order they were made.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = rest_ns * 4096 // 1_000_000
    time_bits = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | fraction << 64
    return _uuid_text(time_bits | 0b10 << 62 | _random() >> 2)


def random_id() -> str:
    """Return a UUID of version 4 (RFC 9562, 5.4)."""
    version_bits = 0xF << 76 | 0b11 << 62
    random_bits = (_random() << 64 | _random()) & ~version_bits
    return _uuid_text(random_bits | 0x4 << 76 | 0b10 << 62)


def _random() -> int:
    """Return 64 random bits from the operating system."""
    while True:
        try:
            return _numbers.popleft()
        except IndexError:
            _numbers.extend(struct.unpack(f"{_BATCH}Q", os.urandom(8 * _BATCH)))


def _uuid_text(value: int) -> str:
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def is_id(text: str) -> bool:
    """Tell whether `text` can be an id: ours, or a Celery client's, which is any printable ASCII."""
    return re.fullmatch(r"[\x20-\x7e]{1,200}", text) is not None
