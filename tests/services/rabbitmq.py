"""A RabbitMQ node of a test's own: on free loopback ports, without root, found or fetched."""

import base64
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.services import (
    Server,
    Unavailable,
    accepts,
    cache_directory,
    debian,
    freeze,
    is_alive,
    send_signal,
    spawn,
    wait_until,
)

INSTALLED = (
    "usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin",
    "opt/homebrew/opt/rabbitmq/sbin",
    "usr/local/opt/rabbitmq/sbin",
)
IMAGE = "rabbitmq:4-management"
#: Loopback for Erlang's own connections, and no busy-waiting: tests run on small machines.
ERLANG_ARGUMENTS = (
    "-noinput -kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none"
)
#: The limit of free disk space must not fire, and statistics shall be young: the default is 5 s.
CONFIGURATION = """\
management.tcp.ip = 127.0.0.1
management.tcp.port = {management}
collect_statistics_interval = 200
management.sample_retention_policies.global.minute = 1
management.sample_retention_policies.basic.minute = 1
management.sample_retention_policies.detailed.minute = 1
disk_free_limit.absolute = 1MB
"""


def find_rabbitmq() -> Path:
    """Return the directory of RabbitMQ's programs, fetched if need be, or else Docker's program.

    TEST_RABBITMQ names that directory, for another version than is found; its Erlang is the first `erl` on PATH.

    Raises:
      Unavailable: there is neither, or TEST_RABBITMQ names something else.
    """
    if named := os.environ.get("TEST_RABBITMQ"):
        if not _works(Path(named).resolve()):
            raise Unavailable(
                f"TEST_RABBITMQ: expected RabbitMQ's directory sbin, and erl on PATH, got {named}"
            )
        return Path(named).resolve()
    try:
        return debian.find_or_fetch(
            lambda: _installed() or _unpacked(),
            _fetch,
            way_out=(
                "RabbitMQ is not here. On Debian and Ubuntu: apt install rabbitmq-server. "
                "On a Mac: brew install rabbitmq. Elsewhere: start Docker, or install it from rabbitmq.com."
            ),
        )
    except Unavailable:
        docker = shutil.which("docker")
        if docker and not subprocess.run([docker, "info"], capture_output=True).returncode:
            return Path(docker)
        raise


def rabbitmq_node(directory: Path) -> "RabbitMQ":
    """Return the node that belongs to `directory`, not started."""
    programs = find_rabbitmq()
    if programs.name == "docker":
        return RabbitMQInDocker(directory, programs)
    return RabbitMQ(directory, programs)


class RabbitMQ(Server):
    """One node; what it stored and its ports outlive `stop` and `kill`, for the next `start`."""

    port_names: tuple[str, ...] = ("amqp", "management", "dist", "epmd")

    def __init__(self, directory: Path, programs: Path | None = None) -> None:
        """`programs` is the directory that find_rabbitmq returned; without it, it is called."""
        self._sbin = programs or find_rabbitmq()
        super().__init__(directory)

    def start(self) -> None:
        """Start, and return when clients are served."""
        self._choose_ports()
        self._launch()
        try:
            wait_until(self._serves_or_died, timeout=90, what="RabbitMQ served clients")
            assert self.is_running(), "RabbitMQ ended while it started"
        except AssertionError as e:
            e.add_note(self.log_tail())
            self.close()
            raise

    def stop(self) -> None:
        """Stop as an operator would; connections are closed in order."""
        self._end("server", signal.SIGTERM)
        self.close()

    def kill(self) -> None:
        """Kill the node without a warning, as a power cut would."""
        self._end("server", signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze it: connections stay open and nobody answers."""
        freeze(self.pids["server"])

    def resume(self) -> None:
        send_signal(self.pids["server"], signal.SIGCONT)

    @property
    def version(self) -> str:
        return str(self._api("GET", "/overview")["rabbitmq_version"])

    def url(self, vhost: str = "/") -> str:
        return f"pyamqp://guest:guest@127.0.0.1:{self.ports['amqp']}/{quote(vhost, safe='')}"

    def add_vhost(self, name: str) -> None:
        path = f"/vhosts/{quote(name, safe='')}"
        self._api("PUT", path)
        wait_until(
            # RabbitMQ 4 says [] of a vhost that has not begun to start.
            lambda: set(dict(self._api("GET", path)["cluster_state"]).values()) == {"running"},
            what=f"vhost {name} runs",
        )

    def delete_vhost(self, name: str) -> None:
        self._api("DELETE", f"/vhosts/{quote(name, safe='')}")

    def queues(self, vhost: str = "/") -> dict[str, dict[str, Any]]:
        """Return what the node says of each queue; all but counts of messages may be 1 s old."""
        path = f"/queues/{quote(vhost, safe='')}"
        known = {queue["name"]: queue for queue in self._api("GET", path)}
        current = self._api("GET", f"{path}?disable_stats=true&enable_queue_totals=true")
        return {queue["name"]: known.get(queue["name"], {}) | queue for queue in current}

    def delete_queue(self, vhost: str, name: str) -> None:
        self._api("DELETE", f"/queues/{quote(vhost, safe='')}/{quote(name, safe='')}")

    def purge(self, vhost: str) -> None:
        """Empty every queue, as `celery purge` does."""
        for name in self.queues(vhost):
            self._api("DELETE", f"/queues/{quote(vhost, safe='')}/{quote(name, safe='')}/contents")

    def set_policy(self, vhost: str, pattern: str, **definition: Any) -> None:
        """Have queues of matching names behave so, like `max_length=1`, as an operator may."""
        values = {name.replace("_", "-"): value for name, value in definition.items()}
        self._api(
            "PUT",
            f"/policies/{quote(vhost, safe='')}/test",
            {"pattern": pattern, "definition": values, "apply-to": "queues"},
        )

    def add_user(
        self,
        vhost: str,
        name: str,
        *,
        password: str = "geheim",
        configure: str = ".*",
        write: str = ".*",
        read: str = ".*",
    ) -> str:
        """Make a user with these rights, patterns of names, or give them to one that is there; return its URL."""
        self._api("PUT", f"/users/{name}", {"password": password, "tags": ""})
        rights = {"configure": configure, "write": write, "read": read}
        self._api("PUT", f"/permissions/{quote(vhost, safe='')}/{name}", rights)
        return self.url(vhost).replace("guest:guest", f"{name}:{password}")

    def delete_user(self, name: str) -> None:
        self._api("DELETE", f"/users/{name}")

    def close_connections(self) -> None:
        """Close every client's connection in order (320 CONNECTION_FORCED), as an operator does."""
        self._ctl("close_all_connections", "closed by a test")

    def close_connections_of(self, vhost: str) -> None:
        """The same for one vhost, and at once: without rabbitmqctl, which takes seconds to start."""
        for connection in self._api("GET", f"/vhosts/{quote(vhost, safe='')}/connections"):
            self._api("DELETE", f"/connections/{quote(connection['name'], safe='')}")

    def wipe_vhost(self, name: str) -> None:
        """Delete it with all its queues and messages, and make it anew, empty; its clients lose their connections."""
        self.delete_vhost(name)
        self.add_vhost(name)

    def set_disk_alarm(self, on: bool) -> None:
        """As set_memory_alarm, for the disk: the limit of free space is put above what there is."""
        self._ctl("set_disk_free_limit", "900000GB" if on else "1MB")
        wait_until(lambda: self._has_alarm() is on, what=f"the disk alarm was {on}")

    def set_memory_alarm(self, on: bool) -> None:
        """Raise or clear the alarm at which the node stops reading from publishers."""
        self._ctl("set_vm_memory_high_watermark", "0.00001" if on else "0.6")
        wait_until(lambda: self._has_alarm() is on, what=f"the memory alarm was {on}")

    def set_consumer_timeout(self, seconds: float) -> None:
        """Have RabbitMQ close channels that owe it an acknowledgement for so long; half an hour is usual. It looks every second then."""
        self._ctl(
            "eval",
            f"application:set_env(rabbit, consumer_timeout, {int(seconds * 1000)}), "
            "application:set_env(rabbit, channel_tick_interval, 1000).",
        )

    def _has_alarm(self) -> bool:
        return self._request("GET", "/health/checks/local-alarms")[0] == 503

    def _serves_or_died(self) -> bool:
        if not self.is_running():
            return True
        if not accepts(self.ports["amqp"]):
            return False
        try:
            return self._request("GET", "/whoami")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def _launch(self) -> None:
        self._configure()
        environment = self._environment()
        log = self.directory / "console.log"
        if not is_alive(self.pids.get("epmd", 0)):
            # Erlang would start one as a daemon that nobody ends.
            epmd = _erl(self._sbin).resolve().with_name("epmd")
            self._record("epmd", spawn([epmd], log=log, env=environment))
            wait_until(lambda: accepts(self.ports["epmd"]), what="epmd listens")
        self._record("server", spawn([self._sbin / "rabbitmq-server"], log=log, env=environment))

    def _configure(self) -> None:
        (self.directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
        (self.directory / "rabbitmq.conf").write_text(CONFIGURATION.format(**self.ports))

    def _environment(self) -> dict[str, str]:
        """Return an environment in which the system's own RabbitMQ is neither read nor written."""
        ours = ("RABBITMQ_", "ERL_", "NOTIFY_SOCKET")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
        ports = self.ports
        if root := _unpacked_root(self._sbin):
            inherited |= debian.library_path(root)
        return inherited | {
            "HOME": str(self.directory),  # Erlang keeps its cookie there.
            "PATH": _search_path(self._sbin),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(ports["epmd"]),
            "RABBITMQ_ALLOW_INPUT": "1",  # The script becomes the server instead of its parent.
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CTL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_DIST_PORT": str(ports["dist"]),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_NODENAME": f"mailasync{ports['amqp']}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(ports["amqp"]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ERLANG_ARGUMENTS,
        }

    def _ctl(self, *arguments: str) -> None:
        """Run rabbitmqctl, which takes seconds: for what the HTTP API cannot do."""
        command = [self._sbin / "rabbitmqctl", *arguments]
        _check(command, self._environment())

    def _api(self, method: str, path: str, value: object = None) -> Any:
        """Call the management API; what to delete may be gone already."""
        status, body = self._request(method, path, value)
        if status >= 400 and (method, status) != ("DELETE", 404):
            raise RuntimeError(f"RabbitMQ answered {status} to {method} {path}: {body!r}")
        return json.loads(body) if body and status < 400 else None

    def _request(self, method: str, path: str, value: object = None) -> tuple[int, bytes]:
        # Not urllib, which would send even this through a proxy named in the environment.
        connection = http.client.HTTPConnection("127.0.0.1", self.ports["management"], timeout=60)
        login = base64.b64encode(b"guest:guest").decode()
        headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
        try:
            connection.request(
                method, f"/api{path}", None if value is None else json.dumps(value), headers
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


class RabbitMQInDocker(RabbitMQ):
    """One node in a container, for machines where only Docker can run it."""

    port_names = ("amqp", "management")

    def is_running(self) -> bool:
        shown = self._docker("ps", "--quiet", "--filter", f"name=^{self._container}$")
        return bool(shown.strip())

    def stop(self) -> None:
        self._docker("stop", self._container)

    def kill(self) -> None:
        self._docker("kill", self._container)

    def pause(self) -> None:
        self._docker("pause", self._container)

    def resume(self) -> None:
        self._docker("unpause", self._container)

    def close(self) -> None:
        self._docker("rm", "--force", "--volumes", self._container)

    @property
    def _container(self) -> str:
        return f"mailasync-tests-{self.ports['amqp']}"

    def _launch(self) -> None:
        if self._docker("ps", "--all", "--quiet", "--filter", f"name=^{self._container}$").strip():
            self._docker("start", self._container)
            return
        statistics = "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-rabbit collect_statistics_interval 500"
        self._docker(
            *("run", "--detach", "--name", self._container, "--env", statistics),
            *("--publish", f"127.0.0.1:{self.ports['amqp']}:5672"),
            *("--publish", f"127.0.0.1:{self.ports['management']}:15672"),
            IMAGE,
        )

    def _ctl(self, *arguments: str) -> None:
        self._docker("exec", self._container, "rabbitmqctl", *arguments)

    def _docker(self, *arguments: str) -> str:
        return _check([self._sbin, *arguments], dict(os.environ))


def _installed() -> Path | None:
    found = [sbin for pattern in INSTALLED for sbin in Path("/").glob(pattern)]
    if on_path := shutil.which("rabbitmq-server"):
        found.append(Path(on_path).resolve().parent)
    return next((sbin for sbin in sorted(found, key=_version, reverse=True) if _works(sbin)), None)


def _unpacked() -> Path | None:
    found = (cache_directory() / "rabbitmq-server").glob(INSTALLED[0])
    return next((sbin for sbin in found if _works(sbin)), None)


def _fetch() -> Path:
    return debian.unpack_or_install(
        "rabbitmq-server",
        family="erlang|rabbitmq",
        patch=_make_relocatable,
        find=lambda: _unpacked() or _installed(),
        failure="Debian's packages of RabbitMQ do not hold its programs where they used to",
    )


def _make_relocatable(root: Path) -> None:
    """Let the scripts work wherever `root` comes to lie, in a path with spaces too."""
    erl = root / "usr/lib/erlang/bin/erl"
    here = '"$(dirname "$(dirname "$(readlink -f "$0")")")"'
    erl.write_text(erl.read_text().replace("ROOTDIR=/usr/lib/erlang", f"ROOTDIR={here}"))
    for script in root.glob(f"{INSTALLED[0]}/rabbitmq-env"):
        text = script.read_text().replace("`dirname $SCRIPT_PATH`", '"$(dirname "$SCRIPT_PATH")"')
        script.write_text(re.sub(r"^\. (\$\{.*)$", r'. "\1"', text, flags=re.MULTILINE))


def _works(sbin: Path) -> bool:
    """Tell the real programs from Debian's wrappers of the same name, which insist on root."""
    return (sbin / "rabbitmq-defaults").exists() and bool(_which_erl(sbin))


def _erl(sbin: Path) -> Path:
    return Path(_which_erl(sbin) or "erl")


def _which_erl(sbin: Path) -> str | None:
    return shutil.which("erl", path=_search_path(sbin))


def _unpacked_root(sbin: Path) -> Path | None:
    """Return the directory that Debian's / became, or None for programs that are installed."""
    return sbin.parents[5] if sbin.is_relative_to(cache_directory()) else None


def _search_path(sbin: Path) -> str:
    root = _unpacked_root(sbin)
    first = [str(root / "usr/lib/erlang/bin")] if root else []
    return os.pathsep.join([*first, os.environ["PATH"], "/opt/homebrew/bin", "/usr/local/bin"])


def _version(sbin: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", sbin.parent.name)]


def _check(command: list[Any], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        words = " ".join(map(str, command))
        raise RuntimeError(f"{words} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
