"""Runs what clients are given against `flask up`, as they would: the Postman collection, and each program of docs/clients.

`make check-clients` does it once without an API key and once with one. Each program is run twice, as by somebody who got no answer, and has
to have sent one mail.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.services import Unavailable, cache_directory, free_port, locked
from tests.services.processes import PROJECT, Service, service

CLIENTS = PROJECT / "docs" / "clients"
COLLECTION = PROJECT / "docs/postman/mailasync.postman_collection.json"
ENVIRONMENT = PROJECT / "docs/postman/run.postman_environment.json"
#: What a person puts in the place of these words.
URL, RECIPIENT, ORDER = "http://127.0.0.1:5000", "you@example.org", "order-4711"
RUN_SECONDS = 120
COLLECTION_SECONDS = 300


class Failed(Exception):
    """A client did not do what its reader expects; the message says what came instead."""


@dataclass(frozen=True)
class Client:
    """One program of docs/clients, and what runs it."""

    name: str
    file: str
    command: tuple[str, ...]
    program: str
    install: str
    #: Where it is False, it is left out, and said so, on a machine without the program.
    is_needed: bool = True
    #: A command that fails where the program is there and a part of it is not.
    probe: tuple[str, ...] = ()

    def is_here(self) -> bool:
        return bool(shutil.which(self.program)) and (
            not self.probe or subprocess.run(self.probe, capture_output=True).returncode == 0
        )


@dataclass(frozen=True)
class Runner:
    """A program of npm's that runs the Postman collection; it understands the options of newman."""

    name: str
    package: str
    version: str
    script: str  #: in the package
    command: tuple[str, ...]


NEWMAN = Runner("newman", "newman", "6.2.2", "bin/newman.js", ("run",))
#: Some 240 MB, as it comes with a runtime of its own.
POSTMAN = Runner("postman", "postman-cli", "1.34.0", "bin/postman.js", ("collection", "run"))
RUNNERS = (NEWMAN, POSTMAN)

ALL = (
    Client("curl", "send.sh", ("sh",), "curl", "curl 7.76 or newer"),
    Client("Python", "send.py", (sys.executable,), sys.executable, "Python"),
    Client("Node", "send.mjs", ("node",), "node", "Node.js 18 or newer, with npm"),
    Client("Go", "send.go", ("go", "run"), "go", "Go 1.18 or newer", is_needed=False),
    Client(
        "PHP",
        "send.php",
        ("php",),
        "php",
        "PHP 8 with its curl extension",
        is_needed=False,
        probe=("php", "-r", "exit(extension_loaded('curl') ? 0 : 1);"),
    ),
)


def run(client: Client, served: Service) -> str:
    """Run it twice, look at what it says and what arrived, and return that in words.

    Raises:
      Failed: it is not one mail, whole.
    """
    recipient = f"{client.name.lower()}@example.org"
    text = (CLIENTS / client.file).read_text()
    for theirs, ours in (
        (URL, served.url),
        (RECIPIENT, recipient),
        (ORDER, f"order-{client.name}"),
    ):
        if theirs not in text:
            raise Failed(f"{client.file} has no {theirs}")
        text = text.replace(theirs, ours)
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / client.file
        program.write_text(text)
        started = time.monotonic()
        first, second = (_output([*client.command, str(program)], served) for _ in range(2))
        seconds = time.monotonic() - started
    if "sent" not in first or first != second:
        raise Failed(f"expected twice the same mail as sent, got:\n{first}{second}")
    _arrived(recipient, served)
    return f"two runs and one mail in {seconds:.1f} s"


def _output(command: Sequence[str], served: Service, *, seconds: float = RUN_SECONDS) -> str:
    """What it prints; the environment holds the key alone of all settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MAILASYNC_")}
    kept |= (
        {"MAILASYNC_API_KEY": served.settings["API_KEY"]} if served.settings.get("API_KEY") else {}
    )
    try:
        done = subprocess.run(
            command,
            env=kept,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as e:
        raise Failed(f"it had not ended after {e.timeout:.0f} s") from e
    if done.returncode:
        raise Failed(f"it ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def _arrived(recipient: str, served: Service) -> None:
    mails = json_at(f"/inbox/api/messages?to={quote(recipient)}&wait=30", served)["data"]
    told = [(mail["subject"], mail["text"]) for mail in mails]
    if told != [("Order 4711", "It is on its way.")]:
        raise Failed(f"expected one mail for {recipient} in the inbox, got {told}")


def json_at(path: str, served: Service) -> dict[str, list[dict[str, str]]]:
    status, answer = served.request(
        "GET", path, headers={"X-API-Key": served.settings.get("API_KEY", "")}
    )
    if status != 200:
        raise Failed(f"{path} answered {status}: {answer}")
    found: dict[str, list[dict[str, str]]] = answer
    return found


def run_collection(runner: Runner, served: Service) -> str:
    """Run every request of the collection with its tests, and return in words how many.

    Raises:
      Failed: a test failed, or there was none.
    """
    told = collection_report(runner, served)["run"]
    if "summary" in told:  # of Postman's own command
        requests, tests = told["summary"]["executedRequests"], told["summary"]["tests"]
        counts = requests["executed"], requests["errors"], tests["executed"], tests["failed"]
    else:
        requests, tests = told["stats"]["requests"], told["stats"]["assertions"]
        counts = requests["total"], requests["failed"], tests["total"], tests["failed"]
    sent, unsent, tried, failed = counts
    if unsent or failed or not tried:
        raise Failed(f"{unsent} requests and {failed} of {tried} tests failed")
    return f"{sent} requests, {tried} tests"


def collection_report(runner: Runner, served: Service) -> dict[str, Any]:
    """Run every request of the collection, and return the runner's report.

    Raises:
      Failed: it says that something failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        _output(
            [
                "node",
                str(script_of(runner)),
                *runner.command,
                str(COLLECTION),
                "--environment",
                str(ENVIRONMENT),
                "--color",
                "off",
                "--env-var",
                f"baseUrl={served.url}",
                "--env-var",
                f"inboxUrl={served.url}",
                "--env-var",
                f"apiKey={served.settings.get('API_KEY', '')}",
                "--reporters",
                "cli,json",
                "--reporter-json-export",
                str(report),
            ],
            served,
            seconds=COLLECTION_SECONDS,
        )
        found: dict[str, Any] = json.loads(report.read_text())
        return found


def script_of(runner: Runner) -> Path:
    """Return the program of a runner, fetched into the cache by npm the first time.

    Raises:
      Unavailable: npm is not here, or cannot fetch it.
    """
    target = cache_directory() / f"{runner.package}-{runner.version}"
    program = target / "node_modules" / runner.package / runner.script
    if program.exists():
        return program
    if not shutil.which("npm"):
        raise Unavailable(
            f"npm is not here, which fetches {runner.package}, which runs the Postman collection; install Node.js 18 or newer with npm "
            "(apt install npm, brew install node)"
        )
    try:
        with locked(target.with_suffix(".lock")):
            if not program.exists():
                _fetch(runner, target)
    except OSError as e:
        raise Unavailable(f"{target} cannot be written: {e}") from e
    return program


def _fetch(runner: Runner, target: Path) -> None:
    wanted = f"{runner.package}@{runner.version}"
    print(f"fetching {wanted} into {target} (once)", flush=True)
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        command = [
            "npm",
            "install",
            "--prefix",
            directory,
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            wanted,
        ]
        done = subprocess.run(
            command, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            raise Unavailable(f"npm could not fetch {wanted}:\n{done.stdout}{done.stderr}")
        # The name comes last: who sees it sees all of it.
        Path(directory).rename(target)
        Path(directory).mkdir()


def check(what: str, act: Callable[[], str]) -> bool:
    """Do it, say what came of it in a line, and return whether it did what it should."""
    try:
        print(f"ok      {what}: {act()}", flush=True)
    except Failed as e:
        print(f"FAILED  {what}: {e}", flush=True)
        return False
    return True


def check_all(clients: Sequence[Client], *, api_key: str) -> list[bool]:
    """Check the collection and these clients against a `flask up` of their own with a fresh database."""
    how = "with a key" if api_key else "without a key"
    settings = {"INBOX_SMTP_PORT": str(free_port()), "SIMULATED_WORK_SECONDS": "1"} | (
        {"API_KEY": api_key} if api_key else {}
    )
    with tempfile.TemporaryDirectory() as directory:
        settings["DATABASE_URL"] = f"sqlite:///{directory}/clients.sqlite3"
        with service(Path(directory), **settings) as served:
            if not check(f"flask up, {how}", partial(start, served)):
                return [False]
            collections = {
                f"Postman collection by {runner.name}": partial(run_collection, runner, served)
                for runner in RUNNERS
            }
            programs = {client.name: partial(run, client, served) for client in clients}
            everything = {**collections, **programs}
            return [check(f"{what}, {how}", act) for what, act in everything.items()]


def start(served: Service) -> str:
    """`flask up` with the database it was given.

    Raises:
      Failed: it ended.
    """
    try:
        served.upgrade_by_command()
        served.up()
    except AssertionError as e:
        raise Failed(str(e)) from e
    return "it answers"


def main() -> int:
    here = [client for client in ALL if client.is_here()]
    absent = [client for client in ALL if client not in here]
    try:
        if lacking := [client for client in absent if client.is_needed]:
            raise Unavailable(
                "\n".join(
                    f"{client.program} is not here; install {client.install}" for client in lacking
                )
            )
        for runner in RUNNERS:
            script_of(runner)
    except Unavailable as e:
        print(f"{e}\nnothing was checked", file=sys.stderr)
        return 1
    done = check_all(here, api_key="") + check_all(here, api_key=secrets.token_urlsafe())
    for client in absent:
        print(
            f"not run {client.name}: {client.program} is not here; install {client.install} to have docs/clients/{client.file} checked"
        )
    left_out = f", not run: {' and '.join(client.name for client in absent)}" if absent else ""
    print(f"clients: {done.count(True)} ok, {done.count(False)} failed{left_out}")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
