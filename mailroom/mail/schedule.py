"""When to try again."""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STEP = re.compile(r"(\d+)([smhd])(?:\*(\d+))?")

#: Each wait is varied by this part of it, so that mails that failed together do not come back together.
JITTER = 0.2


@dataclass(frozen=True)
class Schedule:
    """Waits in seconds after attempt 1, 2, …; when they are used up, the mail fails."""

    waits: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "30s, 2m, 10m, 1h*3".

        Raises:
          ValueError: with what was expected and what came.
        """
        waits: list[int] = []
        for step in text.split(","):
            match = _STEP.fullmatch(step.strip())
            if not match:
                raise ValueError(f"expected waits like '30s, 2m, 1h*3', got {step.strip()!r}")
            waits += [int(match[1]) * _UNITS[match[2]]] * int(match[3] or 1)
        return cls(tuple(waits))

    def wait_seconds(self, attempt: int, *, vary: Callable[[float, float], float] = random.uniform) -> float | None:
        """How long to wait after `attempt` (from 1), jitter included; None when it was the last."""
        if attempt > len(self.waits):
            return None
        return self.waits[attempt - 1] * vary(1 - JITTER, 1 + JITTER)

    def last_wait_seconds(self, *, vary: Callable[[float, float], float] = random.uniform) -> float:
        """For trouble that no number of attempts should end, such as a wrong password."""
        return self.waits[-1] * vary(1 - JITTER, 1 + JITTER)
