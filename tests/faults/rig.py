"""One run's web processes, workers, broker, database and mail server, all private to it."""

import contextlib
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from tests.faults import ledger
from tests.faults.judge import Verdict, judge
from tests.faults.load import REFUSED, Load, Post
from tests.services import freeze, send_signal, wait_until
from tests.services.cluster import Cluster
from tests.services.postgres import Postgres
from tests.services.processes import FINAL, PROJECT, Program, Service
from tests.services.rabbitmq import RabbitMQ, rabbitmq_node
from tests.services.smtpd import ScriptedSMTP

#: So that a fault's end, and not a wait of the product's, decides how long a run takes.
QUICK = {
    "SMTP_SECURITY": "none",
    "SMTP_AUTH": "off",
    "MAIL_FROM": "alice@example.org",
    "SIMULATED_WORK_SECONDS": "0",
    "RETRY_SCHEDULE": "1s*60",
    "LEASE_SECONDS": "3",
}


@dataclass
class Rig:
    """Started by `start`. `workers` and `webs` hold what runs now; `broker`, `vhost` and `postgres` are there to be harmed."""

    directory: Path
    smtpd: ScriptedSMTP
    database_url: str
    broker_url: str
    broker: RabbitMQ | Cluster | None = None
    vhost: str = "/"
    postgres: Postgres | None = None
    settings: dict[str, str] = field(default_factory=dict)
    project: Path = PROJECT
    worker_count: int = 1
    web_count: int = 1
    rate: float = 50.0
    workers: list[Program] = field(default_factory=list)
    webs: list[Program] = field(default_factory=list)

    def __post_init__(self) -> None:
        hop = {"SMTP_HOST": self.smtpd.host, "SMTP_PORT": str(self.smtpd.port)}
        urls = {"BROKER_URL": self.broker_url, "DATABASE_URL": self.database_url}
        self.services = [
            Service(self.directory, QUICK | hop | urls | self.settings, project=self.project)
            for _ in range(self.web_count)
        ]
        url = make_url(self.database_url).set(
            drivername="sqlite" if self.is_sqlite else "postgresql+psycopg"
        )
        self.engine: Engine = create_engine(url, poolclass=NullPool)
        self.load = Load([service.port for service in self.services], self.rate)
        self.smtpd.reply("RCPT", "550 5.1.1 no such user", match=REFUSED, times=None)

    @property
    def service(self) -> Service:
        return self.services[0]

    @property
    def is_sqlite(self) -> bool:
        return self.database_url.startswith("sqlite")

    def start(self) -> None:
        self.service.upgrade()
        ledger.install(self.engine)
        self.webs = [service.web() for service in self.services]
        self.add_workers(self.worker_count)

    def add_workers(self, count: int = 1) -> list[Program]:
        """Start workers, together, and wait until they are ready."""
        started = [self.service.worker(wait=False) for _ in range(count)]
        self.workers += started
        for worker in started:
            worker.says(" ready.", 60)
        return started

    def add_worker_with_clock(self, shift_seconds: float) -> Program:
        """Start a worker on a host whose clock is wrong by so much."""
        return self.add_worker_with(
            {
                "PYTHONPATH": str(Path(__file__).with_name("clock")),
                "CLOCK_SHIFT_SECONDS": str(shift_seconds),
            }
        )

    def add_worker_with(self, environment: dict[str, str]) -> Program:
        worker = self.service.run(
            "-m",
            "celery",
            "-A",
            "mailasync",
            "worker",
            "--loglevel=INFO",
            name="worker",
            env=environment,
        )
        self.workers.append(worker)
        worker.says(" ready.", 60)
        return worker

    def kill_worker(self, worker: Program) -> None:
        worker.kill()
        self.workers.remove(worker)

    def stop_worker(self, worker: Program, timeout: float = 60) -> None:
        """SIGTERM; it has to end by itself."""
        self.workers.remove(worker)
        assert worker.stop(timeout) == 0, worker.text()[-2000:]

    def restart_web(self, number: int = 0) -> None:
        self.webs[number] = self.services[number].web()

    def post(self, count: int, label: str = "") -> list[Post]:
        """Post `count` mails as fast as the rate allows, and wait for the answers."""
        self.load.begin(count, label)
        return self.load.end()

    def unfinished(self) -> int:
        """How many messages are not final; while the database is away, one at least."""
        states = ", ".join(f"'{state}'" for state in FINAL)
        try:
            return int(self.scalar(f"SELECT count(*) FROM messages WHERE state NOT IN ({states})"))
        except SQLAlchemyError:
            return 1

    def scalar(self, query: str) -> Any:
        with self.engine.connect() as connection:
            return connection.execute(text(query)).scalar()

    def settle(self, timeout: float) -> bool:
        """Wait until every message is final; False if they were not in time."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.unfinished(), timeout=timeout, what="all is final")
        return not self.unfinished()

    def verdict(self, timeout: float = 60) -> Verdict:
        """Wait until every message is final, or time is up, and judge."""
        self.settle(timeout)
        return judge(self.service.port, self.load.posts, self.smtpd)

    @property
    def nudges_recovered(self) -> dict[str, int]:
        return dict(ledger.recovered(self.engine))

    # Harm that needs to know where things are.

    def pids(self, *programs: Program) -> list[int]:
        """Every process of these, or of all, granian's child too."""
        groups = {program.pid for program in programs or (*self.webs, *self.workers)}
        told = subprocess.run(
            ["ps", "-eo", "pid=,pgid="], capture_output=True, text=True, check=True
        ).stdout.split("\n")
        return [
            int(pid)
            for pid, group in (line.split() for line in told if line)
            if int(group) in groups
        ]

    @contextmanager
    def disk_full(self) -> Iterator[None]:
        """No process of ours can make a file longer than 64 kB (RLIMIT_FSIZE): SQLite's log and file are, so nothing is committed.

        It needs no root, as a small file system would; the error is EFBIG where a full disk's is ENOSPC.
        """
        pids = self.pids()
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (65_536, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    resource.prlimit(
                        pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                    )

    def is_locked(self) -> bool:
        """Whether some process holds SQLite's write lock for longer than a commit takes."""
        with contextlib.closing(
            sqlite3.connect(
                str(make_url(self.database_url).database), isolation_level=None, timeout=0.5
            )
        ) as probe:
            try:
                probe.execute("BEGIN IMMEDIATE")
                probe.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return True
        return False

    @contextmanager
    def database_away(self) -> Iterator[None]:
        """Nothing can be committed: SQLite is locked by another process, PostgreSQL is stopped."""
        if self.postgres:
            self.postgres.kill()
            yield
            self.postgres.start()
            return
        lock = sqlite3.connect(
            str(make_url(self.database_url).database), isolation_level=None, timeout=60
        )
        lock.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            lock.execute("ROLLBACK")
            lock.close()

    @contextmanager
    def frozen(self, program: Program, *, anywhere: bool = False) -> Iterator[None]:
        """SIGSTOP to every process of it, and SIGCONT at the end; not in the middle of a transaction on SQLite, unless `anywhere`."""
        pids = self.pids(program)
        for pid in pids:
            freeze(pid)
        while not anywhere and self.is_sqlite and self.is_locked():
            for pid in pids:
                send_signal(pid, signal.SIGCONT)
            wait_until(lambda: not self.is_locked(), what="the lock is released")
            for pid in pids:
                freeze(pid)
        try:
            yield
        finally:
            for pid in pids:
                send_signal(pid, signal.SIGCONT)

    def wait_lease(self) -> None:
        """Wait until no worker that is not seen owns a row."""
        lease_ms = int(float(self.service.settings["LEASE_SECONDS"]) * 1000)
        now = (
            "(julianday('now') - 2440587.5) * 86400000"
            if self.is_sqlite
            else "extract(epoch FROM clock_timestamp()) * 1000"
        )
        alive = f"SELECT id FROM workers WHERE stopped_at IS NULL AND seen_at > {now} - {lease_ms}"
        wait_until(
            lambda: (
                not self.scalar(
                    f"SELECT count(*) FROM messages WHERE owner IS NOT NULL AND owner NOT IN ({alive})"
                )
            ),
            what="what lost workers owned was given back",
        )

    def close(self) -> None:
        for service in self.services:
            service.close()
        self.engine.dispose()


@contextmanager
def running(rig: Rig, *, start: bool = True) -> Iterator[Rig]:
    try:
        if start:
            rig.start()
        yield rig
    finally:
        rig.close()


def end_on_sigterm() -> None:
    """So that `kill` ends the servers as Ctrl-C does, also where a shell has set that aside."""
    for which in (signal.SIGTERM, signal.SIGINT):
        signal.signal(which, signal.default_int_handler)


def _started(directory: Path, nodes: int, stack: contextlib.ExitStack) -> RabbitMQ | Cluster:
    broker = (
        rabbitmq_node(directory / "rabbitmq")
        if nodes == 1
        else Cluster(directory / "rabbitmq", nodes)
    )
    stack.callback(broker.close)
    broker.start()
    return broker


@contextmanager
def private_servers(
    directory: Path,
    *,
    database: str,
    rabbitmq: int = 1,
    node: RabbitMQ | None = None,
    fsync: bool = True,
) -> Iterator[dict[str, Any]]:
    """Start a database and a broker for one run, unless that is `node`; yields what a Rig needs to know of them."""
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        postgres = None
        url = f"sqlite:///{directory}/mailasync.sqlite3"
        if database == "postgresql":
            postgres = Postgres(directory / "postgres", fsync=fsync)
            stack.callback(postgres.close)
            postgres.start()
            postgres.create_database("mail")
            url = postgres.url("mail")
        broker = node or _started(directory, rabbitmq, stack)
        smtpd = stack.enter_context(ScriptedSMTP())
        yield {
            "directory": directory,
            "smtpd": smtpd,
            "database_url": url,
            "broker_url": broker.url(),
            "broker": broker,
            "postgres": postgres,
        }
