"""A log on which no line can be written."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


class BrokenHandler(logging.Handler):
    """Fails before it has begun, where logging itself would catch nothing."""

    def handle(self, record: logging.LogRecord) -> bool:
        raise OSError("no line can be written")


@contextmanager
def broken_log() -> Iterator[None]:
    """Have every line that the service logs raise."""
    handler, logger = BrokenHandler(), logging.getLogger("mailasync")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
