"""Moments as we tell them."""

from datetime import UTC, datetime


def timestamp(ms: int | None) -> str | None:
    """RFC 3339, UTC."""
    return (
        None
        if ms is None
        else datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    )
