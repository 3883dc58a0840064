"""Ids that nobody can guess."""

import os
import re
import struct
import time
from collections import deque
from typing import Self

#: Random numbers of 64 bits at a time: for each call for some the system lets another thread take the interpreter.
_AT_ONCE = 512
_numbers: deque[int] = deque()
os.register_at_fork(after_in_child=_numbers.clear)  # Else two processes would make the same ids.


class MailId(str):
    """Id of an accepted mail, which knows the queue of its nudge: `sendMail.delay(id)` need not be told."""

    queue: str
    is_queued: bool  #: False for a mail that waits, so that nobody has to remember its nudge

    def __new__(cls, id: str, *, queue: str, is_queued: bool = True) -> Self:
        made = super().__new__(cls, id)
        made.queue, made.is_queued = queue, is_queued
        return made


def new_id() -> str:
    """A UUID of version 7 (RFC 9562, 5.7): ids sort by time, so that new rows are neighbours in the index.

    The 12 bits after the millisecond are its fraction (6.2, method 3), so that ids of one process are in the order they were made.
    """
    milliseconds, rest_ns = divmod(time.time_ns(), 1_000_000)
    fraction = rest_ns * 4096 // 1_000_000
    return _written(
        (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | _random() >> 2
    )


def random_id() -> str:
    """A UUID of version 4 (RFC 9562, 5.4)."""
    return _written((_random() << 64 | _random()) & ~(0xF << 76 | 0b11 << 62) | 0x4 << 76 | 0b10 << 62)


def _random() -> int:
    """64 bits from the system's source."""
    while True:
        try:
            return _numbers.popleft()
        except IndexError:
            _numbers.extend(struct.unpack(f"{_AT_ONCE}Q", os.urandom(8 * _AT_ONCE)))


def _written(value: int) -> str:
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def is_id(text: str) -> bool:
    """Tell whether `text` can be the id of a message: a client chose it where it is the id of a task."""
    return re.fullmatch(r"[\x20-\x7e]{1,200}", text) is not None
