"""Moments, always in UTC: for programs as RFC 3339, for people without the T."""

from datetime import UTC, datetime

import pytest

from mailroom.model.times import parse_timestamp, readable_time, timestamp, timestamp_seconds

MS = 1_769_860_800_999


def test_a_moment_is_written_in_utc() -> None:
    assert timestamp(MS) == "2026-01-31T12:00:00.999Z"
    assert timestamp_seconds(MS) == "2026-01-31T12:00:00Z"
    assert readable_time(MS) == "2026-01-31 12:00:00Z"


def test_none_stays_none() -> None:
    assert timestamp(None) is None and timestamp_seconds(None) is None


def test_a_moment_is_read_back() -> None:
    assert parse_timestamp(timestamp(MS)) == datetime(2026, 1, 31, 12, 0, 0, 999_000, UTC)
    with pytest.raises(ValueError, match="Invalid isoformat"):
        parse_timestamp("tomorrow")
