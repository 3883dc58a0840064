"""Limits how many jobs of one worker run at once.

Its queues share the slots, so that a long queue leaves room for the others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Slots:
    """`total` places for the jobs of `queues`. While there is room for it, one is kept for each queue that has nothing running."""

    total: int
    queues: Sequence[str]
    _taken: Counter[str] = field(default_factory=Counter)

    def free(self, queue: str) -> int:
        """Return how many more jobs of this queue may begin now."""
        idle = sum(1 for other in self.queues if other != queue and not self._taken[other])
        kept = idle if self.total >= 2 * len(self.queues) else 0
        return max(0, self.total - self._taken.total() - kept)

    def take(self, queue: str) -> None:
        self._taken[queue] += 1

    def give_back(self, queue: str) -> None:
        self._taken[queue] -= 1
