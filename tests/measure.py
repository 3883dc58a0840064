"""Compares work with other work of the same run: no test knows how fast the machine is, or what else it does."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Work = Callable[[], object]

#: What this thread alone has taken of the processor.
own_clock = time.thread_time

#: A shared machine is noisy; what the work itself costs is there at every try.
TRIES = 5


def hold_to(at_most: float, work: Work) -> None:
    """Do `work`, which may cost the processor no more than so many times what the reference does.

    Raises:
      AssertionError: it did in each try; only the time of this thread counts.
    """
    found = min_ratio(work, reference, enough=at_most, clock=own_clock)
    assert found <= at_most, (
        f"expected at most {at_most:g} times the cost of the reference, got {found:.1f}"
    )


def reference() -> None:
    """Do what takes plain Python some five milliseconds on a machine of 2025."""
    words: dict[int, str] = {}
    for number in range(50_000):
        words[number % 997] = f"{number}"


def min_ratio(
    work: Work, other: Work, *, enough: float, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return how many times as long as `other` the work takes, by the best of each; tries again until that is `enough`."""
    pace = Pace(clock)
    for _ in range(TRIES):
        with pace.lap("other"):
            other()
        with pace.lap("work"):
            work()
        if (found := pace.ratio("work", to="other", of=min)) <= enough:
            break
    return found


class Pace:
    """The laps of this run, by name: they are compared with one another only."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._laps: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        began = self._clock()
        yield
        self._laps[name].append(self._clock() - began)

    def ratio(
        self, name: str, *, to: str, of: Callable[[Sequence[float]], float] = statistics.fmean
    ) -> float:
        """Return how many times as long the laps of this name took as those `to` which they are compared."""
        return of(self._laps[name]) / of(self._laps[to])
