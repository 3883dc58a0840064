"""The servers the tests rest on do what the tests take for granted."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import kombu
import psycopg
import pytest

from tests.services import Unavailable, free_port, is_alive, rabbitmq, wait_until
from tests.services import postgres as postgresql
from tests.services.postgres import Postgres, find_postgres
from tests.services.rabbitmq import RabbitMQ, find_rabbitmq, rabbitmq_node


@pytest.fixture(scope="module")
def node(run_directory: Path) -> Iterator[RabbitMQ]:
    """A node for the tests of this module, in a directory with spaces in its name."""
    node = rabbitmq_node(run_directory / f"rabbitmq of a test {secrets.token_hex(4)}")
    node.start()
    yield node
    node.close()


@pytest.fixture
def cluster(run_directory: Path) -> Iterator[Postgres]:
    cluster = Postgres(run_directory / f"a cluster {secrets.token_hex(4)}")
    cluster.start()
    yield cluster
    cluster.close()


def publish(url: str, queue: str, body: str) -> None:
    """Publish a persistent message, and return when the node confirmed it."""
    options = {"confirm_publish": True}
    with kombu.Connection(url, transport_options=options) as connection:
        simple = connection.SimpleQueue(queue)
        simple.put(body)
        simple.close()


def consume(url: str, queue: str) -> str:
    with kombu.Connection(url) as connection:
        simple = connection.SimpleQueue(queue)
        message = simple.get(timeout=60)
        message.ack()
        simple.close()
        return str(message.payload)


def connect(url: str, *, timeout: float) -> None:
    with kombu.Connection(url, connect_timeout=timeout) as connection:
        connection.connect()


def rows(url: str) -> list[tuple[int]]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT number FROM numbers").fetchall()


def keep(url: str, number: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE numbers (number integer)")
        connection.execute("INSERT INTO numbers VALUES (%s)", [number])


def test_what_was_published_is_consumed(broker_url: str) -> None:
    publish(broker_url, "mail", "hello")
    assert consume(broker_url, "mail") == "hello"


def test_vhosts_know_nothing_of_each_other(rabbitmq: RabbitMQ, broker_url: str) -> None:
    vhost = f"other {secrets.token_hex(4)}/with a slash"
    rabbitmq.add_vhost(vhost)
    publish(rabbitmq.url(vhost), "mail", "hello")
    assert list(rabbitmq.queues(vhost)) == ["mail"]
    assert rabbitmq.queues(broker_url.rpartition("/")[2]) == {}
    rabbitmq.delete_vhost(vhost)


def test_confirmed_message_survives_a_kill(private_rabbitmq: RabbitMQ) -> None:
    publish(private_rabbitmq.url(), "mail", "hello")
    private_rabbitmq.kill()
    assert not private_rabbitmq.is_running()
    with pytest.raises(ConnectionRefusedError):
        connect(private_rabbitmq.url(), timeout=1)
    private_rabbitmq.start()
    assert consume(private_rabbitmq.url(), "mail") == "hello"


def test_message_and_ports_survive_a_restart(node: RabbitMQ) -> None:
    url = node.url()
    publish(url, "restarted", "hello")
    node.restart()
    assert consume(url, "restarted") == "hello"


def test_paused_node_is_silent_until_it_is_resumed(node: RabbitMQ) -> None:
    node.pause()
    with pytest.raises(TimeoutError):
        connect(node.url(), timeout=0.5)
    node.resume()
    connect(node.url(), timeout=60)


def test_queues_are_counted_and_deleted(node: RabbitMQ) -> None:
    publish(node.url(), "counted", "hello")
    wait_until(lambda: node.queues()["counted"]["messages"] == 1, what="one message was counted")
    node.delete_queue("/", "counted")
    assert "counted" not in node.queues()


def test_closed_connection_is_told_to_the_client(node: RabbitMQ) -> None:
    with kombu.Connection(node.url()) as connection:
        connection.connect()
        node.close_connections()
        with pytest.raises(connection.recoverable_connection_errors):
            connection.drain_events(timeout=60)


def test_memory_alarm_blocks_publishers_until_it_is_cleared(node: RabbitMQ) -> None:
    told: list[str] = []
    options = {
        "on_blocked": lambda reason: told.append(reason),
        "on_unblocked": lambda: told.append("unblocked"),
    }
    with kombu.Connection(node.url(), transport_options=options) as connection:
        producer = connection.Producer()
        node.set_memory_alarm(True)
        producer.publish("hello", routing_key="nowhere")
        connection.drain_events(timeout=60)
        node.set_memory_alarm(False)
        connection.drain_events(timeout=60)
    assert len(told) == 2
    assert told[1] == "unblocked"


def test_committed_row_survives_a_kill_and_a_restart(cluster: Postgres) -> None:
    cluster.create_database("kept")
    url = cluster.url("kept")
    keep(url, 42)
    cluster.kill()
    with pytest.raises(psycopg.OperationalError):
        rows(url)
    cluster.start()
    assert rows(url) == [(42,)]
    cluster.restart()
    assert rows(url) == [(42,)]


def test_database_is_dropped_while_a_client_is_connected(postgres: Postgres) -> None:
    name = f"dropped_{secrets.token_hex(4)}"
    postgres.create_database(name)
    with psycopg.connect(postgres.url(name)) as connection:
        postgres.drop_database(name)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_cluster_runs_where_only_its_owner_may_look(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    cluster = Postgres(tmp_path, fsync=False)
    cluster.start()
    keep(cluster.url(), 42)
    assert rows(cluster.url()) == [(42,)]
    cluster.close()
    assert not cluster.is_running()


def test_every_database_is_fresh(database_url: str) -> None:
    if database_url.startswith("postgresql:"):
        keep(database_url, 42)
        assert rows(database_url) == [(42,)]
    else:
        assert not Path(database_url.removeprefix("sqlite:///")).exists()


def test_nothing_listens_beyond_this_machine(node: RabbitMQ, cluster: Postgres) -> None:
    for pid in (*node.pids.values(), *cluster.pids.values()):
        hosts = listening_hosts(pid)
        assert hosts
        assert hosts <= {"127.0.0.1", "[::1]"}


def test_close_leaves_no_process(run_directory: Path) -> None:
    server = rabbitmq_node(run_directory / f"rabbitmq-{secrets.token_hex(4)}")
    server.start()
    pids = server.pids
    assert server.is_running()
    server.close()
    assert not server.is_running()
    assert not any(is_alive(pid) for pid in pids.values())


def test_another_rabbitmq_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("erl", "rabbitmq-defaults"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TEST_RABBITMQ", str(tmp_path))
    assert find_rabbitmq() == tmp_path.resolve()
    monkeypatch.setenv("TEST_RABBITMQ", str(tmp_path / "nowhere"))
    with pytest.raises(
        Unavailable, match=r"expected RabbitMQ's directory sbin, and erl on PATH, got .*nowhere"
    ):
        find_rabbitmq()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TEST_RABBITMQ", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("TEST_SERVERS_CACHE", str(tmp_path))
    monkeypatch.setattr(rabbitmq, "INSTALLED", ("nowhere",))
    monkeypatch.setattr(postgresql, "INSTALLED", ("nowhere",))
    with pytest.raises(Unavailable, match="brew install rabbitmq"):
        find_rabbitmq()
    with pytest.raises(Unavailable, match="brew install postgresql"):
        find_postgres()


def test_free_ports_are_not_those_of_outgoing_connections() -> None:
    assert all(20_000 <= free_port() < 32_768 for _ in range(100))


def test_wait_says_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match=r"waited 0.05 s in vain until the mail came"):
        wait_until(lambda: False, timeout=0.05, what="the mail came")


def listening_hosts(pid: int) -> set[str]:
    """Return the addresses on which a process accepts TCP connections."""
    try:
        sockets = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except FileNotFoundError:
        lsof = ["lsof", "-nP", "-a", "-p", str(pid), "-iTCP", "-sTCP:LISTEN", "-Fn"]
        names = subprocess.run(lsof, check=True, capture_output=True, text=True).stdout
        return {line[1:].rpartition(":")[0] for line in names.splitlines() if line[0] == "n"}
    loopback = {"0100007F": "127.0.0.1", "00000000000000000000000001000000": "[::1]"}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                host = local.rpartition(":")[0]
                found.add(loopback.get(host, host))
    return found
