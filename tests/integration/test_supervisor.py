"""Threads that end too early are restarted, and /readyz reports it."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from mailroom.process import supervisor
from mailroom.process.supervisor import SupervisedThread
from mailroom.store.workers import Heartbeat
from tests.services import free_port, wait_until
from tests.services.processes import Service, service

#: The threads of `flask up` that wake up by themselves; the last one takes some of the others with it.
LASTING = ("heartbeat", "jobs", "parent", "publisher", "sweeper", "worker")


class Loop:
    """A supervised loop that each of these errors cuts short, and that returns early for None; then it lasts."""

    def __init__(self, *errors: BaseException | None) -> None:
        self.errors = [*errors]
        self.lasts = threading.Event()
        self.stopping = threading.Event()
        self.thread = SupervisedThread("loop", self.run, self.stopping)

    def run(self) -> None:
        if not self.errors:
            self.lasts.set()
            self.stopping.wait()
        elif (error := self.errors.pop(0)) is not None:
            raise error


@pytest.fixture
def start() -> Iterator[Callable[..., Loop]]:
    """Starts loops, which end with the test."""
    started: list[Loop] = []

    def begin(*errors: BaseException | None) -> Loop:
        started.append(Loop(*errors))
        started[-1].thread.start()
        return started[-1]

    yield begin
    for loop in started:
        loop.errors.clear()
        loop.stopping.set()
        loop.thread.join(60)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), None])
def test_whatever_ends_a_thread_it_is_started_anew_and_told(
    start: Callable[..., Loop], client: FlaskClient, error: BaseException | None
) -> None:
    loop = start(error)
    assert loop.lasts.wait(60)
    assert loop.thread.is_alive() and not loop.thread.is_down
    answer = client.get("/readyz")
    assert answer.status_code == 200 and answer.json
    assert re.fullmatch(r"loop: restarted once, last \d+ s ago", answer.json["checks"]["threads"])
    loop.stopping.set()
    loop.thread.join(60)
    assert (client.get("/readyz").json or {})["checks"]["threads"] == "ok"


def test_while_one_is_down_nothing_is_ready(
    start: Callable[..., Loop], client: FlaskClient
) -> None:
    loop = start(*[ValueError("no")] * 100)
    wait_until(lambda: loop.thread.restarts > 1 and client.get("/readyz").status_code == 503, 60)
    wait_until(
        lambda: "loop: down, restarted" in client.get("/readyz").text,
        60,
        what="it names the thread",
    )


def test_one_that_is_cut_short_at_the_end_is_run_once_more_and_not_again() -> None:
    runs, stopping = threading.Semaphore(0), threading.Event()

    def run() -> None:
        runs.release()
        stopping.wait()
        raise ValueError("no")

    thread = SupervisedThread("loop", run, stopping)
    thread.start()
    stopping.set()
    thread.join(60)
    assert not thread.is_alive() and supervisor.troubles() == []
    assert (
        runs.acquire(blocking=False)
        and runs.acquire(blocking=False)
        and not runs.acquire(blocking=False)
    )


def test_one_that_was_never_started_is_not_missed() -> None:
    loop = Loop()
    loop.thread.join(0)
    assert not loop.thread.is_down and not supervisor.is_any_down()


def test_a_worker_tells_of_its_threads_with_its_heartbeat(client: FlaskClient, app: Flask) -> None:
    database, troubles = (
        app.extensions["mailasync"].outbox.database,
        ["jobs: down, restarted once so far"],
    )
    heartbeat = Heartbeat(database, "worker-1", "worker@there", ["mail"], threads=lambda: troubles)
    heartbeat.beat()
    answer = client.get("/readyz")
    assert (
        answer.json
        and answer.json["checks"]["threads"] == "worker@there: jobs: down, restarted once so far"
    )
    assert (answer.status_code, answer.json["checks"]["worker"]) == (200, "ok")
    troubles.clear()
    heartbeat.beat()
    assert (client.get("/readyz").json or {})["checks"]["threads"] == "ok"


def test_the_pair_tells_of_its_workers_threads(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]
) -> None:
    settings = {
        "BROKER_URL": broker_url,
        "DATABASE_URL": sqlite_url,
        "JOBS": "tests.jobs_for_tests",
    } | to_smtpd
    with service(tmp_path, **settings) as pair:
        pair.upgrade()
        pair.web()
        pair.worker()
        assert (
            pair.request("POST", "/v1/jobs", {"name": "end thread", "args": {"name": "heartbeat"}})[
                0
            ]
            == 202
        )
        wait_until(partial(was_restarted, pair, "heartbeat"), 60, what="it is reported")
        assert pair.final(pair.post(), timeout=60)["status"] == "sent"


@pytest.fixture(params=["memory", "rabbitmq"])
def alone(
    request: pytest.FixtureRequest, tmp_path: Path, sqlite_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    """Everything in one process, with a job that ends a thread of it."""
    settings = {
        "DATABASE_URL": sqlite_url,
        "INBOX_SMTP_PORT": str(free_port()),
        "JOBS": "tests.jobs_for_tests",
    }
    settings |= to_smtpd
    if request.param == "rabbitmq":
        settings["BROKER_URL"] = request.getfixturevalue("broker_url")
    with service(tmp_path, **settings) as made:
        made.upgrade()
        yield made


def was_restarted(alone: Service, name: str) -> bool:
    return f"{name}: restarted once" in alone.get("/readyz")["checks"]["threads"]


def test_each_thread_of_the_service_that_ends_is_started_anew_and_mail_goes_on(
    alone: Service,
) -> None:
    alone.up("--deliver")
    for names in (LASTING[:-1], LASTING[-1:]):
        for name in names:
            assert (
                alone.request("POST", "/v1/jobs", {"name": "end thread", "args": {"name": name}})[0]
                == 202
            )
        for name in names:
            wait_until(partial(was_restarted, alone, name), 60, what=f"{name} is reported")
    assert alone.final(alone.post(), timeout=60)["status"] == "sent"
    assert alone.get("/readyz")["status"] == "ok"


def test_the_thread_of_the_inbox_is_started_anew_too(alone: Service) -> None:
    alone.up("--deliver")
    assert (
        alone.request("POST", "/v1/jobs", {"name": "end thread", "args": {"name": "inbox"}})[0]
        == 202
    )
    wait_until(
        lambda: call_inbox(alone) and was_restarted(alone, "inbox"), 60, what="it is reported"
    )
    wait_until(lambda: call_inbox(alone).startswith("220 "), 60, what="it takes mail again")


def call_inbox(alone: Service) -> str:
    """Return the greeting of the inbox, or why there is none; a thread that is to end does so when it is called."""
    try:
        place = "127.0.0.1", int(alone.settings["INBOX_SMTP_PORT"])
        with socket.create_connection(place, timeout=60) as link:
            return link.recv(100).decode() or "hung up"
    except ConnectionError as e:
        return str(e)
