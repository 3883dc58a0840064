"""The faults that `soak` draws from: each happens while mails are posted, and is over when its function returns."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.rig import Rig
from tests.services import let_pass, wait_until
from tests.services.cluster import Cluster
from tests.services.rabbitmq import RabbitMQ

Harm = Callable[[Rig, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """`kind` is what it harms; of a broker's fault no client may notice anything."""

    name: str
    kind: str  #: broker, worker, web, database or smtp
    weight: int
    harm: Harm
    needs: str = ""  #: sqlite, postgresql, single or cluster; "" is any

    def fits(self, rig: Rig) -> bool:
        facts = {
            "sqlite": rig.is_sqlite,
            "postgresql": not rig.is_sqlite,
            "single": isinstance(rig.broker, RabbitMQ),
            "cluster": isinstance(rig.broker, Cluster),
            "": True,
        }
        return facts[self.needs]


def kill_worker(rig: Rig, rng: random.Random) -> None:
    rig.kill_worker(rng.choice(rig.workers))
    rig.add_workers()


def kill_all_workers(rig: Rig, rng: random.Random) -> None:
    for worker in list(rig.workers):
        rig.kill_worker(worker)
    rig.load.wait_posted(10)
    rig.add_workers(rig.worker_count)


def kill_worker_at(phase: str) -> Harm:
    def harm(rig: Rig, rng: random.Random) -> None:
        """Kill all workers while one is held in this phase: nobody asks which."""
        held = rig.smtpd.hold(phase)
        wait_until(
            lambda: held.reached.is_set() or (rig.load.posted > 3 and not rig.unfinished()),
            what=f"a mail is at {phase}",
        )
        for worker in list(rig.workers):
            rig.kill_worker(worker)
        held.release()
        rig.add_workers(rig.worker_count)

    return harm


def stop_worker(rig: Rig, rng: random.Random) -> None:
    rig.stop_worker(rng.choice(rig.workers))
    rig.add_workers()


def freeze_worker(rig: Rig, rng: random.Random) -> None:
    with rig.frozen(rng.choice(rig.workers), anywhere=True):
        let_pass(float(rig.service.settings["LEASE_SECONDS"]) * rng.choice((0.5, 2)))


def kill_web(rig: Rig, rng: random.Random) -> None:
    number = rng.randrange(len(rig.webs))
    rig.webs[number].kill()
    rig.restart_web(number)


def stop_web(rig: Rig, rng: random.Random) -> None:
    number = rng.randrange(len(rig.webs))
    rig.webs[number].stop(60)
    rig.restart_web(number)


def freeze_web(rig: Rig, rng: random.Random) -> None:
    with rig.frozen(rng.choice(rig.webs), anywhere=True):
        let_pass(1)


def kill_broker(rig: Rig, rng: random.Random) -> None:
    node = _node(rig)
    node.kill()
    rig.load.wait_posted(20)
    node.start()


def restart_broker(rig: Rig, rng: random.Random) -> None:
    _node(rig).restart()


def freeze_broker(rig: Rig, rng: random.Random) -> None:
    node = _node(rig)
    node.pause()
    let_pass(rng.uniform(2, 8))
    node.resume()


def memory_alarm(rig: Rig, rng: random.Random) -> None:
    node = _node(rig)
    node.set_memory_alarm(True)
    rig.load.wait_posted(20)
    node.set_memory_alarm(False)


def disk_alarm(rig: Rig, rng: random.Random) -> None:
    node = _node(rig)
    node.set_disk_alarm(True)
    rig.load.wait_posted(20)
    node.set_disk_alarm(False)


def delete_queue(rig: Rig, rng: random.Random) -> None:
    _node(rig).delete_queue(rig.vhost, "mail")


def wipe_vhost(rig: Rig, rng: random.Random) -> None:
    _node(rig).wipe_vhost(rig.vhost)


def close_connections(rig: Rig, rng: random.Random) -> None:
    _node(rig).close_connections_of(rig.vhost)


def kill_node(rig: Rig, rng: random.Random) -> None:
    """kill -9 of one node of three; the other two go on, and it comes back."""
    assert isinstance(rig.broker, Cluster)
    node = rng.choice(rig.broker.nodes)
    node.kill()
    rig.load.wait_posted(30)
    node.start()


def lock_sqlite(rig: Rig, rng: random.Random) -> None:
    with rig.database_away():
        let_pass(rng.choice((2, 8)))


def disk_full(rig: Rig, rng: random.Random) -> None:
    with rig.disk_full():
        let_pass(rng.uniform(1, 4))


def restart_postgresql(rig: Rig, rng: random.Random) -> None:
    assert rig.postgres
    rig.postgres.restart()


def kill_postgresql(rig: Rig, rng: random.Random) -> None:
    with rig.database_away():
        let_pass(rng.choice((0.5, 5)))


def freeze_postgresql(rig: Rig, rng: random.Random) -> None:
    assert rig.postgres
    rig.postgres.pause()
    let_pass(rng.choice((1, 5)))
    rig.postgres.resume()


def scripted(*steps: tuple[str, str], times: int = 5) -> Harm:
    """The mail server says these things the next `times` times; "" drops the link."""

    def harm(rig: Rig, rng: random.Random) -> None:
        phase, reply = rng.choice(steps)
        if reply:
            rig.smtpd.reply(phase, reply, times=times)
        else:
            rig.smtpd.drop(phase, times=times, reset=rng.random() < 0.5)
        rig.load.wait_posted(20)

    return harm


def stop_smtp(rig: Rig, rng: random.Random) -> None:
    rig.smtpd.stop()
    rig.load.wait_posted(20)
    rig.smtpd.start()


def hang_after_dot(rig: Rig, rng: random.Random) -> None:
    """No reply after the dot for a while, and then none for ever: the link is cut."""
    held = rig.smtpd.hold("DOT", times=3)
    rig.load.wait_posted(20)
    rig.smtpd.stop()
    held.release()
    rig.smtpd.start()


PHASES_BEFORE_DOT = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "PAYLOAD")
REPLIES = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT")
FAULTS = (
    Fault("worker kill -9", "worker", 6, kill_worker),
    Fault("all workers kill -9", "worker", 2, kill_all_workers),
    *(
        Fault(f"workers kill -9 at {phase}", "worker", 2, kill_worker_at(phase))
        for phase in ("RCPT", "DATA", "PAYLOAD", "DOT")
    ),
    Fault("worker SIGTERM", "worker", 4, stop_worker),
    Fault("worker frozen", "worker", 4, freeze_worker),
    Fault("web kill -9", "web", 4, kill_web),
    Fault("web SIGTERM", "web", 2, stop_web),
    Fault("web frozen", "web", 1, freeze_web),
    Fault("broker kill -9", "broker", 3, kill_broker, "single"),
    Fault("broker restarted", "broker", 2, restart_broker, "single"),
    Fault("broker frozen", "broker", 3, freeze_broker, "single"),
    Fault("broker memory alarm", "broker", 2, memory_alarm, "single"),
    Fault("broker disk alarm", "broker", 1, disk_alarm, "single"),
    Fault("queue deleted", "broker", 3, delete_queue),
    Fault("vhost wiped", "broker", 2, wipe_vhost),
    Fault("connections closed", "broker", 3, close_connections),
    Fault("cluster node kill -9", "broker", 20, kill_node, "cluster"),
    Fault("SQLite locked", "database", 4, lock_sqlite, "sqlite"),
    Fault("disk full", "database", 3, disk_full, "sqlite"),
    Fault("PostgreSQL restarted", "database", 3, restart_postgresql, "postgresql"),
    Fault("PostgreSQL kill -9", "database", 3, kill_postgresql, "postgresql"),
    Fault("PostgreSQL frozen", "database", 3, freeze_postgresql, "postgresql"),
    Fault("SMTP link dropped after the dot", "smtp", 3, scripted(("DOT", ""))),
    Fault(
        "SMTP link dropped before the dot",
        "smtp",
        3,
        scripted(*((phase, "") for phase in PHASES_BEFORE_DOT)),
    ),
    Fault("SMTP hangs after the dot", "smtp", 2, hang_after_dot),
    Fault(
        "SMTP 4xx",
        "smtp",
        3,
        scripted(
            ("RCPT", "450 4.2.1 busy"),
            ("RCPT", "451 4.3.0 later"),
            ("DATA", "452 4.2.2 full"),
            ("DOT", "451 4.3.0 later"),
            ("MAIL", "451 4.3.0 later"),
        ),
    ),
    Fault(
        "SMTP 421",
        "smtp",
        2,
        scripted(*((phase, "421 4.3.2 closing") for phase in REPLIES), times=2),
    ),
    Fault("SMTP garbage", "smtp", 2, scripted(*((phase, "\u20ac what?") for phase in REPLIES))),
    Fault("SMTP server gone", "smtp", 2, stop_smtp),
)


def draw(rig: Rig, count: int, rng: random.Random, *, only: str = "") -> list[Fault]:
    """`count` faults by weight, with `only` in their names; each that fits at least once if there is room."""
    fitting = [fault for fault in FAULTS if fault.fits(rig) and only in fault.name]
    drawn = fitting[:count] + rng.choices(
        fitting, [fault.weight for fault in fitting], k=max(0, count - len(fitting))
    )
    rng.shuffle(drawn)
    return drawn


def _node(rig: Rig) -> RabbitMQ:
    """The broker, or the first node of it that runs."""
    if isinstance(rig.broker, Cluster):
        return next(node for node in rig.broker.nodes if node.is_running())
    assert rig.broker
    return rig.broker
