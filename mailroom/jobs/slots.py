"""Limits how many jobs of one worker run at once.

Its queues share the slots, so that a long queue leaves room for the others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Slots:
    """The `total` slots of a worker, shared by the jobs of `queues`.

    One slot is reserved for each queue with no running job, if there are at least two slots for each queue.
    """

    total: int
    queues: Sequence[str]
    _used: Counter[str] = field(default_factory=Counter)

    def free(self, queue: str) -> int:
        """Return how many more jobs of this queue may begin now."""
        unused = self.total - self._used.total()
        if self.total >= 2 * len(self.queues):
            others = (other for other in self.queues if other != queue)
            unused -= sum(1 for other in others if not self._used[other])
        return max(0, unused)

    def acquire(self, queue: str) -> None:
        self._used[queue] += 1

    def release(self, queue: str) -> None:
        self._used[queue] -= 1
