"""Remembers the mails that go to fewer recipients at a time, as a server hung up over all of them."""

import threading
from collections import OrderedDict
from collections.abc import Sequence

from mailroom.model.attempt import Claim

#: One that is forgotten is tried with all its recipients again.
MAILS_MAX = 10_000


class Groups:
    """The number of recipients of each mail that this worker asks for at a time."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[int, int]] = OrderedDict()  #: by id: how many, and the last
        self._lock = threading.Lock()

    def choose(self, claim: Claim) -> tuple[int, ...]:
        """Return whose turn it is of those who have no outcome yet; the last to be asked for come last."""
        with self._lock:
            size, last = self._known.get(claim.id, (len(claim.pending), -1))
            if size >= len(claim.pending):
                return claim.pending
            chosen = sorted(claim.pending, key=lambda position: (position <= last, position))[:size]
            self._known[claim.id] = (size, chosen[-1])
            return tuple(chosen)

    def narrow(self, id: str, asked: Sequence[int], answered: int) -> None:
        """Ask for fewer next time: the server hung up after it had answered for so many of them."""
        size = len(asked) // 2 if answered == len(asked) else answered - 1
        with self._lock:
            self._known[id] = (max(1, size), -1)
            self._known.move_to_end(id)
            while len(self._known) > MAILS_MAX:
                self._known.popitem(last=False)
