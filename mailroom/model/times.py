"""Writes and reads times: as RFC 3339 for programs, and more readable for people; always in UTC."""

from datetime import UTC, datetime
from typing import overload


@overload
def timestamp(ms: int) -> str: ...
@overload
def timestamp(ms: int | None) -> str | None: ...
def timestamp(ms: int | None) -> str | None:
    """Write milliseconds since 1970 as 2026-01-31T12:00:00.000Z; None stays None."""
    return None if ms is None else _iso(ms, "milliseconds")


@overload
def timestamp_seconds(ms: int) -> str: ...
@overload
def timestamp_seconds(ms: int | None) -> str | None: ...
def timestamp_seconds(ms: int | None) -> str | None:
    """Write milliseconds since 1970 as 2026-01-31T12:00:00Z, cut to the second; None stays None."""
    return None if ms is None else _iso(ms, "seconds")


def readable_time(ms: int) -> str:
    """Write milliseconds since 1970 for a sentence: 2026-01-31 12:00:00Z."""
    return timestamp_seconds(ms).replace("T", " ")


def parse_timestamp(text: str) -> datetime:
    """Read a time as `timestamp` writes it, or any other of ISO 8601.

    Raises:
      ValueError: it is not a time.
    """
    return datetime.fromisoformat(text)


def _iso(ms: int, precision: str) -> str:
    return (
        datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec=precision).replace("+00:00", "Z")
    )
