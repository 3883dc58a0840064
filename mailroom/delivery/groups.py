"""Remembers which mails go to fewer recipients at a time, as the server did not take all of them at once."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from mailroom.model.attempt import Claim

#: A mail that is forgotten is tried with all its recipients again.
MAILS_MAX = 10_000


class Groups:
    """The group sizes of this worker: how many recipients of each mail it tries at a time."""

    def __init__(self) -> None:
        #: by id: size, last position tried
        self._groups: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def choose(self, claim: Claim) -> tuple[int, ...]:
        """Return the positions of the next group among the pending recipients, in rounds over all of them."""
        with self._lock:
            group = self._groups.get(claim.id)
            if group is None:
                return claim.pending
            size, last = group
            if size >= len(claim.pending):
                return claim.pending
            untried_first = sorted(
                claim.pending,
                key=lambda position: (position <= last, position),
            )
            chosen = untried_first[:size]
            self._groups[claim.id] = (size, chosen[-1])
            return tuple(chosen)

    def shrink(self, id: str, positions: Sequence[int], *, answered: int) -> None:
        """Try fewer next time; `answered` of the recipients at `positions` had a reply before the end."""
        size = answered - 1
        if answered == len(positions):
            size = len(positions) // 2
        with self._lock:
            self._groups[id] = (max(1, size), -1)
            self._groups.move_to_end(id)
            while len(self._groups) > MAILS_MAX:
                self._groups.popitem(last=False)
