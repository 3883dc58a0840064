"""When to try again: what is written in a setting, in seconds, a little different for each mail."""

import pytest

from mailroom.model.retry import JITTER, Schedule


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        ("30s", (30,)),
        ("30s, 2m, 10m, 1h*3, 4h*2", (30, 120, 600, 3600, 3600, 3600, 14400, 14400)),
        ("1d", (86400,)),
        (" 1s ,2s", (1, 2)),
        ("0s", (0,)),
        ("30d", (30 * 86400,)),
        ("1s*999", (1,) * 999),
    ],
)
def test_waits_are_read_as_they_are_written(text: str, waits: tuple[int, ...]) -> None:
    assert Schedule.parse(text).waits == waits


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "30s,",
        "30",
        "s",
        "-1s",
        "1.5m",
        "1h*0",
        "1h*",
        "1h*-1",
        "1w",
        "1h*1000000000",
        "31d",
        "9999999d",
        "9" * 30 + "s",
        "٣s",
        "1s 2s",
    ],
)
def test_what_cannot_be_read_is_told_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected waits like '30s, 2m, 1h\*3'"):
        Schedule.parse(text)


def test_a_wait_follows_each_attempt_and_none_the_last() -> None:
    schedule = Schedule.parse("10s, 20s")
    assert [
        schedule.wait_seconds(attempt, vary=lambda low, high: 1) for attempt in (1, 2, 3, 99)
    ] == [
        10,
        20,
        None,
        None,
    ]


def test_waits_are_varied_so_that_mails_that_failed_together_come_back_apart() -> None:
    schedule = Schedule.parse("100s")
    found = {schedule.wait_seconds(1) for _ in range(100)}
    assert len(found) > 90
    assert all(
        wait is not None and 100 * (1 - JITTER) <= wait <= 100 * (1 + JITTER) for wait in found
    )
