"""A RabbitMQ cluster of private nodes on loopback: distinct names and ports, one cookie, one epmd."""

import shutil
import signal
from pathlib import Path

from tests.services import free_port, wait_until
from tests.services.rabbitmq import RabbitMQ, find_rabbitmq

COOKIE = "mailasync-tests"


class ClusterNode(RabbitMQ):
    """A node that shares the cookie and the epmd of its cluster. Nodes in Docker cannot be clustered like this."""

    def __init__(self, directory: Path, programs: Path, *, epmd_port: int, seed: str = "") -> None:
        """`seed` is the name of the node to join; the first node of a cluster has none."""
        super().__init__(directory, programs)
        self._seed = seed
        self._choose_ports()
        state = self._state()
        self._write_state({**state, "ports": {**state["ports"], "epmd": epmd_port}})
        cookie = self.directory / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(COOKIE)
            cookie.chmod(0o400)

    @property
    def name(self) -> str:
        return self._environment()["RABBITMQ_NODENAME"]

    def _configure(self) -> None:
        super()._configure()
        if self._seed:
            with (self.directory / "rabbitmq.conf").open("a") as file:
                file.write(
                    "cluster_formation.peer_discovery_backend = classic_config\n"
                    f"cluster_formation.classic_config.nodes.1 = {self._seed}\n"
                    f"cluster_formation.classic_config.nodes.2 = {self.name}\n"
                )


class Cluster:
    """Some nodes as one broker: its URL names all, and `kill` kills one of them."""

    def __init__(self, directory: Path, size: int = 3) -> None:
        programs = find_rabbitmq()
        epmd_port = free_port()
        self.directory = directory
        self.nodes = [ClusterNode(directory / "node0", programs, epmd_port=epmd_port)]
        self.nodes += [
            ClusterNode(
                directory / f"node{n}", programs, epmd_port=epmd_port, seed=self.nodes[0].name
            )
            for n in range(1, size)
        ]

    def start(self) -> None:
        """Start the nodes one after the other, and return when all know each other."""
        for node in self.nodes:
            node.start()
        wait_until(
            lambda: self.running() == {node.name for node in self.nodes},
            what="the nodes are a cluster",
        )

    def running(self) -> set[str]:
        """The names of the nodes that run, as the first that answers sees it."""
        node = next(node for node in self.nodes if node.is_running())
        return {str(each["name"]) for each in node._api("GET", "/nodes") if each.get("running")}

    def url(self, vhost: str = "/") -> str:
        """The URLs of all nodes, as Celery takes them: it goes on to the next when one is gone."""
        return ";".join(node.url(vhost) for node in self.nodes)

    def close(self) -> None:
        for node in reversed(self.nodes):
            node._end("server", signal.SIGKILL)
        for node in self.nodes:
            node.close()
        shutil.rmtree(self.directory, ignore_errors=True)
