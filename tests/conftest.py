"""The fixtures every test may use; the servers behind them are real (see tests/services)."""

import inspect
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mailroom.store.db import postgresql
from mailroom.store.db.database import Database
from tests.services import Server, first_locked, locked, processes, scratch
from tests.services.application import made
from tests.services.dovecot import Dovecot
from tests.services.forks import Forks
from tests.services.locks import Locks
from tests.services.lossy_link import LossyLink
from tests.services.postfix import Postfix
from tests.services.postgres import Postgres
from tests.services.processes import Service, service
from tests.services.rabbitmq import RabbitMQ, rabbitmq_node
from tests.services.schema import ready
from tests.services.smtpd import ScriptedSMTP

RUN_DIRECTORY = pytest.StashKey[Path]()


PRIVATE_NODES = 3
#: What starts servers and processes, talks over sockets, or compares work with other work again and again. `--fast` leaves out
#: the tests whose code names one of these, or whose fixtures' or helpers' code does; and those marked `slow`.
SLOW = {
    "Asking",
    "Bench",
    "Children",
    "Cluster",
    "Dovecot",
    "Pace",
    "Popen",
    "Postfix",
    "Postgres",
    "ScriptedSMTP",
    "Service",
    "ThreadingHTTPServer",
    "create_connection",
    "create_server",
    "min_ratio",
    "private_servers",
    "ratio",
    "rabbitmq_node",
    "service",
    "socket",
    "subprocess",
    "sync_playwright",
}
#: Where every test is slow, or nearly so; these are not even imported.
SLOW_DIRECTORIES = {"acceptance", "faults", "integration"}
#: The values of parameters that stand for such a server.
SLOW_PARAMETERS = {"postgresql", "postgres_url", "rabbitmq"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help="only tests within one process, on SQLite and memory"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--fast"):
        return None
    return (
        collection_path.parent == Path(__file__).parent and collection_path.name in SLOW_DIRECTORIES
    ) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        found = [(item, is_slow(item)) for item in items]
        config.hook.pytest_deselected(items=[item for item, slow in found if slow])
        items[:] = [item for item, slow in found if not slow]


def is_slow(item: pytest.Item) -> bool:
    """Whether a test needs more than this process: by its mark, its parameters, or what it, its fixtures and helpers name."""
    assert isinstance(item, pytest.Function)
    if item.get_closest_marker("slow"):
        return True
    parameters = getattr(item, "callspec", None)
    if parameters and any(
        value in SLOW_PARAMETERS for value in parameters.params.values() if isinstance(value, str)
    ):
        return True
    fixtures = [
        definition.func
        for definitions in item._fixtureinfo.name2fixturedefs.values()
        for definition in definitions
    ]
    return any(names_slow(inspect.unwrap(function)) for function in (item.function, *fixtures))


@cache
def names_slow(function: Callable[..., Any]) -> bool:
    """Whether a function names something slow, or a function of the tests' that does."""
    seen: set[object] = set()
    left: list[object] = [function]
    while left:
        one = left.pop()
        if (
            one in seen
            or not isinstance(one, FunctionType)
            or not one.__module__.startswith("tests.")
        ):
            continue
        seen.add(one)
        names = {*names_of(one.__code__)}
        if SLOW & names:
            return True
        left += [
            value for name in names if isinstance(value := one.__globals__.get(name), FunctionType)
        ]
    return False


def names_of(code: CodeType) -> Iterator[str]:
    """Yield the names in a function, and in those that it defines."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_of(constant)


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory in which all processes of this run find the servers they share."""
    if worker := getattr(config, "workerinput", None):
        config.stash[RUN_DIRECTORY] = Path(worker["run_directory"])
        return
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(scratch())  # for tmp_path
    run = Path(tempfile.mkdtemp(prefix="mailasync-tests-", dir=scratch()))
    run.chmod(0o755)  # PostgreSQL, which refuses to run as root, has to reach its own.
    config.stash[RUN_DIRECTORY] = run
    # So that `kill` and a canceled CI job end the servers as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["run_directory"] = str(node.config.stash[RUN_DIRECTORY])


def pytest_unconfigure(config: pytest.Config) -> None:
    """End every server of the run, also those of a worker that crashed."""
    if hasattr(config, "workerinput") or RUN_DIRECTORY not in config.stash:
        return
    run = config.stash[RUN_DIRECTORY]
    for file in run.glob("*/server.json"):
        server_in(file.parent).close()
    shutil.rmtree(run, ignore_errors=True)


def server_in(directory: Path) -> Server:
    ports = Server(directory).ports
    if "imaps" in ports:
        return Dovecot(directory)
    if "smtps" in ports:
        return Postfix(directory)
    if "postgres" in ports:
        return Postgres(directory)
    return rabbitmq_node(directory)


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    """No setting of the machine reaches a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("MAILASYNC_", "CELERY_", "MAIL_")):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def server_limits() -> Iterator[str]:
    """Yield the limits that a connection asks of PostgreSQL in production, for a test to put them back.

    In a test's own process PostgreSQL bears with a thread that a busy machine holds up within a transaction.
    """
    real = postgresql.SERVER_LIMITS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(postgresql, "SERVER_LIMITS", real.replace("'5s'", "'60s'"))
        assert real != postgresql.SERVER_LIMITS
        yield real


@pytest.fixture(scope="session")
def locks() -> Iterator[Locks]:
    """What the store changes in PostgreSQL, in this process."""
    watched = Locks()
    with watched.watching():
        yield watched


@pytest.fixture(autouse=True)
def rows_are_locked_in_order(locks: Locks) -> Iterator[None]:
    """Whatever a test is about: what changes many rows locks them in the order of their keys, as tests/services/locks.py says."""
    yield
    assert locks.faults() == []


@pytest.fixture(scope="session", autouse=True)
def quick_starts() -> Iterator[None]:
    """Programs of ours are forks, see tests/services/forks.py."""
    processes.forks = Forks()
    yield
    processes.forks.close()


@pytest.fixture(scope="session")
def run_directory(request: pytest.FixtureRequest) -> Path:
    return request.config.stash[RUN_DIRECTORY]


@pytest.fixture(scope="session")
def rabbitmq(run_directory: Path) -> RabbitMQ:
    """The node all tests share: leave it running, and use a vhost of your own."""
    with locked(run_directory / "rabbitmq.lock"):
        node = rabbitmq_node(run_directory / "rabbitmq")
        if not node.is_running():
            node.start()
    return node


@pytest.fixture
def broker_url(rabbitmq: RabbitMQ) -> Iterator[str]:
    """The URL of a fresh vhost on the shared node."""
    vhost = f"test-{secrets.token_hex(4)}"
    rabbitmq.add_vhost(vhost)
    yield rabbitmq.url(vhost)
    rabbitmq.delete_vhost(vhost)


@pytest.fixture
def private_rabbitmq(run_directory: Path) -> Iterator[RabbitMQ]:
    """A node that nobody else uses meanwhile, empty and started: to stop, pause and kill. There are few, as a start takes seconds."""
    places = [run_directory / f"private-{number}" for number in range(PRIVATE_NODES)]
    with first_locked(places) as directory:
        node = rabbitmq_node(directory)
        if not node.is_running():
            node.start()
            node.wipe_vhost("/")  # A test that left it dead left its queues too.
        yield node
        if node.is_running():
            node.resume()
            node.wipe_vhost("/")


@pytest.fixture(scope="session")
def postgres(run_directory: Path) -> Postgres:
    """The cluster all tests share: leave it running, and use a database of your own."""
    with locked(run_directory / "postgres.lock"):
        cluster = Postgres(run_directory / "postgres")
        if not cluster.is_running():
            cluster.start()
    return cluster


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh database on the shared cluster."""
    database = f"test_{secrets.token_hex(4)}"
    postgres.create_database(database)
    yield postgres.url(database)
    postgres.drop_database(database)


@pytest.fixture
def link(postgres_url: str) -> Iterator[LossyLink]:
    """A link to that database, to be cut at a COMMIT."""
    made = LossyLink(postgres_url)
    yield made
    made.close()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mailasync.sqlite3"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh database; the test runs once for each kind."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(fixture)
    return url


@pytest.fixture
def dovecot(run_directory: Path) -> Iterator[Dovecot]:
    """A mailbox of a test's own, on an IMAP server that starts in a tenth of a second."""
    with Dovecot(run_directory / f"dovecot-{secrets.token_hex(4)}") as server:
        yield server


@pytest.fixture
def postfix(run_directory: Path, dovecot: Dovecot) -> Iterator[Postfix]:
    """A next hop that plays Gmail to the mailbox: bounces come to INBOX, and what ops sends is in Sent."""
    with Postfix(run_directory / f"postfix-{secrets.token_hex(4)}", dovecot) as server:
        yield server


@pytest.fixture
def smtpd() -> Iterator[ScriptedSMTP]:
    """A next hop that takes everything, until a test scripts otherwise."""
    with ScriptedSMTP() as server:
        yield server


@pytest.fixture
def to_smtpd(smtpd: ScriptedSMTP) -> dict[str, str]:
    """The settings that make `smtpd` the next hop, with no work before a mail and quick second attempts."""
    return {
        "SMTP_HOST": smtpd.host,
        "SMTP_PORT": str(smtpd.port),
        "SMTP_SECURITY": "none",
        "SMTP_AUTH": "off",
        "MAIL_FROM": "alice@example.org",
        "SIMULATED_WORK_SECONDS": "0",
        "RETRY_SCHEDULE": "1s*10",
        "LEASE_SECONDS": "3",
    }


@pytest.fixture
def pair(
    tmp_path: Path, broker_url: str, database_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    """Web and worker, to be started, on RabbitMQ and on each of the databases."""
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=database_url, **to_smtpd) as made:
        made.upgrade()
        yield made


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty outbox."""
    made = ready(database_url)
    yield made
    made.close()


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Flask]:
    """The application on a database of its own, with a broker that nobody listens on."""
    yield from made(sqlite_url)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()
