"""Delivers claimed mails: the protocol that makes "accepted is kept" and "once" true. Read `deliver` first.

The steps, in the order of the road: claim the rows, wait for a connection (admission.py), make the attempt
(attempt.py), pass the fence before the payload, record the outcome (recorder.py). One mail at a time runs in
the calling thread; more of them side by side in the thread of loop.py.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from mailroom.delivery.admission import HANGS_AFTER_SECONDS, Admission
from mailroom.delivery.attempt import AttemptRunner
from mailroom.delivery.claim_store import ClaimStore
from mailroom.delivery.loop import DeliveryLoop
from mailroom.delivery.recorder import Recorder
from mailroom.model.attempt import Claim
from mailroom.model.errors import StoreUnavailable, TooManyConnections
from mailroom.process.supervisor import SupervisedThread

log = logging.getLogger("mailasync.delivery")


class Delivery:
    """Hands the mails of one worker to the next hop, many at a time on sessions that stay open."""

    def __init__(
        self,
        claims: ClaimStore,
        runner: AttemptRunner,
        admission: Admission,
        *,
        on_unclaimed: Callable[[Sequence[str]], None] = lambda ids: None,
    ) -> None:
        """`on_unclaimed` gets the ids of a nudge if some cannot be claimed: they may wait for their jobs."""
        self.admission = admission
        self.on_unclaimed = on_unclaimed
        self._stopping = threading.Event()
        self.recorder = Recorder(claims, runner, self._stopping)
        # Two for each connection, so that a thread which waits for the database leaves the connection in use.
        self._threads = ThreadPoolExecutor(2 * admission.connections, thread_name_prefix="smtp")
        self._releasing = SupervisedThread("release", self._release_unsent, self._stopping)
        self._releasing.start()  # Now, as `stop` is called by a signal handler, which must wait for no lock.
        self._loop: DeliveryLoop | None = None
        self._lock = threading.Lock()

    def deliver(self, ids: Sequence[str]) -> bool:
        """Try each of `ids` that is queued, once, and record its outcome; False if some rows were released.

        With several accounts this returns before the mails are sent: otherwise all threads could come to wait
        for a server that hangs. The rows are ours then; one that is released later is found by the sweeper.
        """
        if self._stopping.is_set():
            return False
        claims = self.recorder.claims.claim(ids)
        if len(claims) < len(ids):
            self.on_unclaimed(ids)
        if not claims and len(ids) == 1 and self.recorder.claims.suspect(ids[0]):
            return self._deliver_alone(ids[0])
        if not claims:
            return True
        if self.admission.is_divided:
            self._start_loop().add(claims)
            return True
        if len(claims) == 1:
            return self._deliver_one(claims[0])
        return self._start_loop().add(claims).wait()

    def stop(self) -> None:
        """Begin no attempt and pass no fence any more; what is past it goes on, the rest is released."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for all attempts, and close the sessions."""
        if self._stopping.is_set():
            self._releasing.join()
        if self._loop:
            self._loop.close()
        self._threads.shutdown()
        self.recorder.runner.close()

    def _start_loop(self) -> DeliveryLoop:
        with self._lock:
            if self._loop is None:
                self._loop = DeliveryLoop(self.recorder, self.admission, self._threads)
            return self._loop

    def _deliver_one(self, claim: Claim) -> bool:
        """Deliver one mail in this thread, as soon as a connection is free."""
        again = False
        while True:
            try:
                with self.admission.shared(claim.account, again=again) as is_admitted:
                    if is_admitted:
                        return self.recorder.attempt_and_record(claim)
                    return self.recorder.release(claim)
            except TooManyConnections:
                again = True

    def _deliver_alone(self, id: str) -> bool:
        """Deliver a mail while no other is under way.

        Its last worker died while it had the mail; if this one does too, no other mail is affected.
        """
        with self.admission.exclusive():
            if self._stopping.is_set():
                return False
            claim = self.recorder.claims.claim_alone(id)
            if claim is None:
                return not self._stopping.is_set()
            settled = self._threads.submit(self._deliver_without_waiting, claim)
            timeout = HANGS_AFTER_SECONDS if self.admission.is_divided else None
            wait([settled], timeout)
        return not settled.done() or settled.result()

    def _deliver_without_waiting(self, claim: Claim) -> bool:
        try:
            with self.admission.without_waiting(claim.account):
                return self.recorder.attempt_and_record(claim)
        except TooManyConnections:
            return self.recorder.release(claim)

    def _release_unsent(self) -> None:
        """Once we stop, release the rows whose attempts wait for a server, as no fence is passed any more."""
        self._stopping.wait()
        self.admission.close()
        try:
            self.recorder.claims.release_unsent()
        except StoreUnavailable as e:
            log.error("%s; what was not sent is given back when its attempt ends", e)
