"""Computes when a mail is tried again."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STEP = re.compile(r"([0-9]{1,7})([smhd])(?:\*([1-9][0-9]{0,2}))?")
#: A longer wait is surely a typing error.
_WAIT_MAX_SECONDS = 30 * 86400

#: Waits vary by this fraction, up and down, so that mails that failed together do not come back together.
JITTER = 0.2

#: Waits before each look in the Sent folder, after an attempt that got no reply. A copy is mostly there at
#: once, but no provider says how soon it is there at the latest.
LOOK_WAITS_SECONDS = (2.0, 28.0, 90.0, 480.0)


@dataclass(frozen=True)
class Schedule:
    """Waits in seconds after attempt 1, 2, …; the attempt after the last wait is the last one."""

    waits: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "30s, 2m, 10m, 1h*3".

        Raises:
          ValueError: it cannot be read; the text says what was expected and what came.
        """
        waits: list[int] = []
        for step in text.split(","):
            match = _STEP.fullmatch(step.strip())
            seconds = int(match[1]) * _UNITS[match[2]] if match else _WAIT_MAX_SECONDS + 1
            if not match or seconds > _WAIT_MAX_SECONDS:
                raise ValueError(
                    f"expected waits like '30s, 2m, 1h*3', none longer than 30d, got {step.strip()!r}"
                )
            waits += [seconds] * int(match[3] or 1)
        return cls(tuple(waits))

    def wait_seconds(
        self, attempt: int, *, vary: Callable[[float, float], float] = random.uniform
    ) -> float | None:
        """Return how long to wait after `attempt` (from 1), jitter included; None if it was the last."""
        if attempt > len(self.waits):
            return None
        return self.waits[attempt - 1] * vary(1 - JITTER, 1 + JITTER)
