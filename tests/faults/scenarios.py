"""One fault at one moment each, chosen by what the mail server holds. A scenario leaves the rig for the judge."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults import ledger
from tests.faults.rig import Rig
from tests.services import let_pass, wait_until
from tests.services.lossy_link import LATE, LOST, PASSED, UNANSWERED, LossyLink
from tests.services.smtpd import Hold

#: What stands in the statements of fences, and of releases.
FENCE, RELEASE = b"FROM workers", b"given_back="

#: The moments of an attempt at which a worker can be caught, as the phase in which the mail server holds it.
MOMENTS = {
    "after RCPT": "RCPT",
    "before the fence": "DATA",
    "in the payload": "PAYLOAD",
    "after the dot": "DOT",
}


@contextmanager
def caught(rig: Rig, phase: str, *, mails: int) -> Iterator[Hold]:
    """Post mails, and go on when one of them is held in `phase` and the others are through, so that a fault meets that one alone."""
    held = rig.smtpd.hold(phase)
    rig.post(mails, f"caught at {phase}")
    wait_until(held.reached.is_set, what=f"a mail is at {phase}")
    wait_until(lambda: rig.unfinished() == 1, what="the others are through")
    try:
        yield held
    finally:
        held.release()


def worker_killed(rig: Rig, moment: str, mails: int = 20) -> None:
    """kill -9 of the worker that is at this moment of a mail; another one comes."""
    with caught(rig, MOMENTS[moment], mails=mails):
        rig.kill_worker(rig.workers[0])
    rig.add_workers()


def worker_killed_after_rcpt(rig: Rig) -> None:
    worker_killed(rig, "after RCPT")


def worker_killed_before_claim(rig: Rig, mails: int = 20) -> None:
    """Its nudges are with the worker, and it has claimed nothing: the database did not let it."""
    worker = rig.workers[0]
    with rig.frozen(worker):
        rig.post(mails, "killed before claim")
        rig.kill_worker(worker)
    rig.add_workers()


def worker_killed_before_commit(rig: Rig, mails: int = 20) -> None:
    """250 was read, and the database was away, so that the outcome died with the worker."""
    with caught(rig, "DOT", mails=mails):
        worker = rig.workers[0]
        with rig.database_away():
            rig.smtpd.release()
            worker.says("its outcome waits for the database", 60)
            rig.kill_worker(worker)
    rig.add_workers()


def worker_stopped(rig: Rig, mails: int = 20) -> None:
    """SIGTERM while a mail is past the fence; another worker is there."""
    with caught(rig, "DOT", mails=mails):
        first = rig.workers[0]
        first.process.terminate()
        first.says("shutdown")
        rig.add_workers()
    rig.stop_worker(first)


def worker_frozen_past_its_lease(rig: Rig, mails: int = 20) -> None:
    """SIGSTOP before the fence until others have sent what it had, then SIGCONT; the mail server asks for the payload only now."""
    first = rig.workers[0]
    with caught(rig, "DATA", mails=mails) as held:
        with rig.frozen(first):
            rig.add_workers()
            assert rig.settle(30), "the others have sent all"
        _wait_beat(rig, first.pid)
        _let_go_on(rig, held)


def worker_frozen_while_another_has_its_mail(rig: Rig, mails: int = 1) -> None:
    """Two workers are at DATA with the same mail. The one that lost it goes on first, and is slow: should it be at the dot, it is
    so while the other goes on."""
    first = rig.workers[0]
    with caught(rig, "DATA", mails=mails) as held:
        with rig.frozen(first):
            second = rig.smtpd.hold("DATA")
            rig.add_workers()
            wait_until(second.reached.is_set, what="another worker is at DATA with it")
        _wait_beat(rig, first.pid)
        dot = rig.smtpd.hold("DOT")
        _let_go_on(rig, held)
        second.release()
        wait_until(
            lambda: set(second.connections) & set(dot.connections) or not rig.unfinished(),
            what="the second has gone on",
        )
        dot.release()


def heartbeat_lost(rig: Rig) -> None:
    """The heartbeat of a worker is not kept any more, while it goes on to claim; the server is slow to answer its dot. Another comes."""
    ledger.silence_heartbeat(rig.engine, rig.workers[0].pid)
    let_pass(float(rig.service.settings["LEASE_SECONDS"]) + 0.5)
    with caught(rig, "DATA", mails=1) as asked:
        held = rig.smtpd.hold("DOT", times=None)
        _let_go_on(rig, asked)
        rig.add_workers()
        wait_until(held.reached.is_set, what="somebody is at the dot")
        rig.wait_lease()
        if rig.scalar("SELECT count(*) FROM messages WHERE uncertain_attempts > 0"):
            wait_until(lambda: len(held.connections) > 1, what="the mail is sent again")
        held.release()


def release_done_again(rig: Rig) -> None:
    """The link to the database is cut at a fence, and once more before the answer to the release that follows. Before the release is
    done again the same worker has the mail at the dot."""
    with contextlib.closing(LossyLink(rig.database_url)) as link:
        rig.stop_worker(rig.workers[0])
        rig.add_worker_with({"MAILASYNC_DATABASE_URL": link.url})
        held = rig.smtpd.hold("DOT")
        link.at_commit(LOST, having=FENCE)
        link.at_commit(UNANSWERED, LATE, PASSED, having=RELEASE)
        [post] = rig.post(1, "released")
        assert link.reached.wait(60), "it is released again"
        for action in (
            "hold",
            "release",
        ):  # So that it is claimed at once: the server ends a transaction that is idle for 5 s.
            assert rig.service.request("POST", f"/v1/messages/{post.id}/{action}")[0] == 200
        wait_until(held.reached.is_set, what="it is at the dot")
        link.go_on.set()
        wait_until(lambda: link.is_through, what="the release was done again")
        rig.post(1, "another")
        wait_until(lambda: rig.unfinished() == 1, what="another went through")
        if rig.scalar("SELECT count(*) FROM messages WHERE state <> 'sent' AND attempt = 1"):
            # The number is used again.
            wait_until(lambda: len(rig.smtpd.payloads) > 2, what="it is sent again")
        held.release()
        rig.settle(60)
        rig.stop_worker(rig.workers[0])
    rig.add_workers()


def database_away_after_the_dot(rig: Rig, mails: int = 5) -> None:
    """Replies are read while nothing can be committed."""
    held = rig.smtpd.hold("DOT", times=None)
    rig.post(mails, "database away")
    wait_until(lambda: len(rig.smtpd.payloads) >= mails, what="all are at the dot")
    with rig.database_away():
        held.release()
        rig.workers[0].says("its outcome waits for the database", 30)


def nudges_met_by_a_locked_database(rig: Rig, mails: int = 20) -> int:
    """The worker gets its nudges while it can claim nothing. Return how many the broker has not kept for it.

    As soon as the database is there again the sweeper may be faster than a nudge, and take it for lost.
    """
    worker = rig.workers[0]
    with contextlib.ExitStack() as stack:
        with rig.frozen(worker):
            rig.post(mails, "nudges and a locked database")
            _wait_published(rig)
            stack.enter_context(rig.database_away())
            before = _nudges_held(rig)
        worker.says("the message goes back to the queue", 60)
        return before - _nudges_held(rig)


def broker_killed_with_nudges_in_it(rig: Rig, mails: int = 100) -> None:
    """All was confirmed, and nobody has consumed it."""
    assert rig.broker
    for worker in list(rig.workers):
        rig.stop_worker(worker)
    rig.post(mails, "broker killed")
    _wait_published(rig)
    rig.broker.kill()  # type: ignore[union-attr]  # a single node
    rig.broker.start()
    rig.add_workers()


def queue_gone(rig: Rig, mails: int = 20) -> None:
    """The queue is deleted under a publisher that has declared it, and no worker is there to make it anew."""
    assert rig.broker
    rig.post(1, "before")
    rig.settle(30)
    for worker in list(rig.workers):
        rig.stop_worker(worker)
    rig.broker.delete_queue(rig.vhost, "mail")  # type: ignore[union-attr]  # a single node
    rig.post(mails, "queue gone")
    rig.add_workers()


def web_killed_before_publish(rig: Rig, mails: int = 20) -> None:
    """Accepted and not published: the broker was frozen out of the publisher's reach when the web process died."""
    assert rig.broker
    rig.broker.pause()  # type: ignore[union-attr]  # a single node
    try:
        rig.post(mails, "killed before publish")
        rig.webs[0].kill()
    finally:
        rig.broker.resume()  # type: ignore[union-attr]
    rig.restart_web()


def web_killed_at_work(rig: Rig, mails: int = 40) -> None:
    """kill -9 while requests are being answered: what the client did not hear of may arrive, what it heard of must."""
    rig.load.begin(mails, "web killed")
    for _ in range(2):
        rig.load.wait_posted(mails // 4)
        rig.webs[0].kill()
        rig.restart_web()
    rig.load.end()


def poison(rig: Rig, mails: int = 300) -> str:
    """One of so many mails, in the middle of them, kills whoever gets as far as its RCPT, for ever. Returns its id."""
    rig.load.rate = 300.0  # So that it meets its first victim while they are on their way.
    held = rig.smtpd.hold("RCPT", match="poison@", times=None)
    rig.load.begin(mails, "poison")
    rig.load.wait_posted(mails // 3)
    id = rig.load.post("poison@example.org", label="poison").id
    stopped = threading.Event()
    killer = threading.Thread(
        target=_kill_whoever_reaches, args=(rig, held, stopped, id), daemon=True
    )
    killer.start()
    try:
        rig.load.end()
        wait_until(
            lambda: rig.service.message(id)["status"] == "failed",
            timeout=120,
            what="the poison failed",
        )
    finally:
        stopped.set()
        killer.join()
    return id


def _kill_whoever_reaches(rig: Rig, held: Hold, stopped: threading.Event, id: str) -> None:
    while not stopped.is_set():
        if held.reached.wait(0.05):
            for worker in list(rig.workers):
                if stopped.is_set():
                    return
                if _owns(rig, worker.pid, id):
                    rig.kill_worker(worker)
                    held.reached.clear()
                    rig.add_workers()


def _owns(rig: Rig, pid: int, id: str) -> bool:
    return bool(
        rig.scalar(
            f"SELECT count(*) FROM messages JOIN workers ON workers.id = messages.owner "
            f"WHERE messages.id = '{id}' AND workers.name LIKE 'mailasync-{pid}-%'"
        )
    )


def _let_go_on(rig: Rig, held: Hold) -> None:
    """Release those that are held, and wait until they have sent their payload, or hung up."""
    before = len(rig.smtpd.payloads)
    held.release()

    def gone_on() -> bool:
        there = {session.number for session in list(rig.smtpd.sessions)} - {
            payload.connection for payload in rig.smtpd.payloads[before:]
        }
        return not there & set(held.connections)

    wait_until(gone_on, what="those that were held have gone on")


def _wait_beat(rig: Rig, pid: int) -> None:
    query = f"SELECT seen_at FROM workers WHERE name LIKE 'mailasync-{pid}-%'"
    before = rig.scalar(query)
    wait_until(lambda: rig.scalar(query) != before, what="its heart beats again")


def _nudges_held(rig: Rig) -> int:
    """Count those that wait and those that a worker has, and has not acknowledged."""
    assert rig.broker
    return int(rig.broker.queues(rig.vhost)["mail"]["messages"])  # type: ignore[union-attr]  # a single node


def _wait_published(rig: Rig) -> None:
    wait_until(
        lambda: not rig.scalar("SELECT count(*) FROM messages WHERE published_at IS NULL"),
        what="all nudges are confirmed",
    )
