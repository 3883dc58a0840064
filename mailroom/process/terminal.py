"""Keeps a closed standard output or error, or a pipe without a reader, from ending the service."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO


class _Unbreakable:
    """A stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed.
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_open() -> None:
    """Replace the standard streams of this process by ones that can always be written to.

    A descriptor that was closed before the start is opened on /dev/null. Otherwise the next socket or file
    would get its number, and everything that some library prints.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):  # Celery writes to the latter.
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115  # as long as the process lasts
        if not isinstance(stream, _Unbreakable):
            setattr(sys, name, _Unbreakable(stream))


def complain(line: str) -> None:
    """Write a line to standard error, if that is open."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(f"mailasync: {line}", file=sys.stderr, flush=True)
