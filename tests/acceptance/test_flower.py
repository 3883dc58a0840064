"""Flower, as `make flower` starts it, beside a real web and worker: whom it shows, and what it must not."""

import json
import re
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from tests.services import free_port, wait_until
from tests.services.processes import PROJECT, Program, Service, service

#: What `make flower` runs after `python -m`, without the port.
[COMMAND] = re.findall(
    r"\(RUN\) (celery -A mailasync flower .*) --port=5555 \$\(ARGS\)\n",
    (PROJECT / "Makefile").read_text(),
)
TASKS = "/tasks/datatable?draw=1&start=0&length=100&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"


class Flower:
    """A running one, and what its pages say."""

    def __init__(self, stack: Service, *arguments: str, **environment: str) -> None:
        self.port = free_port()
        self.program: Program = stack.run(
            "-m",
            *COMMAND.split(),
            f"--port={self.port}",
            *arguments,
            name="flower",
            env=environment,
        )
        self.program.says(f"Visit me at http://127.0.0.1:{self.port}")

    def ask(self, path: str, method: str = "GET", authorization: str = "") -> tuple[int, str]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=b"{}" if method == "POST" else None,
            headers={"Authorization": authorization} if authorization else {},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            with answer:
                return answer.code, answer.read().decode()

    def data(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.ask(path)[1])["data"]
        return found

    def told(self) -> str:
        """All that it shows of what happened here, and its log."""
        tasks = [f"/task/{one['uuid']}" for one in self.data(TASKS)]
        workers = [f"/worker/{one['hostname']}" for one in self.data("/workers?json=true")]
        paths = [
            "/",
            "/workers",
            "/workers?json=true&refresh=true",
            "/tasks",
            TASKS,
            "/broker",
            "/metrics",
            *tasks,
            *workers,
        ]
        return "\n".join([*(self.ask(path)[1] for path in paths), self.program.text()])


@pytest.fixture
def stack(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    with service(
        tmp_path,
        BROKER_URL=broker_url,
        DATABASE_URL=sqlite_url,
        **to_smtpd | {"SIMULATED_WORK_SECONDS": "0.1"},
    ) as made:
        made.upgrade()
        yield made


def test_flower_shows_workers_and_tasks_and_nobodys_mail(stack: Service) -> None:
    flower = Flower(stack)
    # Flower learns what happens while it runs; so it has to listen first.
    flower.program.says("Connected to")
    stack.web()
    worker = stack.worker()
    found = re.search(r"(mailasync-\S+@\S+) ready\.", worker.text())
    assert found
    sent = stack.post(subject="geheim-subject", contents="geheim-body")
    stock = Celery(broker=stack.settings["BROKER_URL"])
    direct = stock.send_task(
        "mailasync.sendMail", [{"to": "bob@example.org", "subject": "geheim", "contents": "geheim"}]
    ).id
    refused = stock.send_task(
        "mailasync.sendMail", [{"to": "geheim"}], {"geheim": "bob@example.org"}
    ).id
    stock.close()
    assert stack.final(sent)["status"] == "sent"

    wait_until(
        lambda: (
            [one["name"] for one in flower.data(TASKS) if one["state"] == "SUCCESS"].count(
                "mailasync.sendMail"
            )
            >= 4
        ),
        what="Flower has seen four tasks succeed: a POST's nudge, one of mails whose work is done, the client's two",
    )
    tasks = flower.data(TASKS)
    assert {one["name"] for one in tasks} == {"mailasync.sendMail"}
    assert {one["worker"] for one in tasks} == {found[1]}
    assert {direct, refused} < {one["uuid"] for one in tasks}
    assert all((one["args"], one["kwargs"]) == ("()", "{}") for one in tasks)
    [shown] = flower.data("/workers?json=true")
    assert (shown["hostname"], shown["status"]) == (found[1], True)
    assert shown["task-succeeded"] >= 4
    assert found[1] in flower.ask("/")[1]
    assert f'flower_worker_online{{worker="{found[1]}"}} 1.0' in flower.ask("/metrics")[1]

    told = flower.told()
    assert "mailasync.sendMail" in told
    assert "geheim" not in told
    assert "example.org" not in told
    assert "guest:guest" not in told

    worker.stop()
    wait_until(
        lambda: not flower.data("/workers?json=true")[0]["status"],
        what="the worker is shown as offline",
    )
    assert flower.program.stop() == 0


def test_a_worker_that_is_asked_and_cannot_answer_costs_no_second(stack: Service) -> None:
    flower = Flower(stack)
    worker = stack.worker()
    wait_until(lambda: flower.data("/workers?json=true"), what="Flower knows the worker")
    [shown] = flower.data("/workers?json=true")
    with urllib.request.urlopen(f"http://127.0.0.1:{flower.port}/workers", timeout=1) as page:
        assert shown["hostname"] in page.read().decode()
    assert flower.ask(f"/worker/{shown['hostname']}")[0] == 404
    assert worker.process.poll() is None


def test_the_api_is_closed_and_nothing_can_be_sent_through_it(stack: Service) -> None:
    flower = Flower(stack)
    for method, path in (
        ("GET", "/api/workers"),
        ("GET", "/api/tasks"),
        ("POST", "/api/task/send-task/mailasync.sendMail"),
        ("POST", "/api/task/async-apply/mailasync.sendMail"),
        ("POST", "/api/worker/shutdown/any"),
    ):
        status, said = flower.ask(path, method)
        assert (status, "FLOWER_UNAUTHENTICATED_API" in said) == (401, True), path


def test_a_password_closes_the_pages_and_the_environment_may_set_it(stack: Service) -> None:
    flower = Flower(stack, FLOWER_BASIC_AUTH="mailasync:s3cret")
    right, wrong = (
        f"Basic {b64encode(f'mailasync:{word}'.encode()).decode()}" for word in ("s3cret", "other")
    )
    for path in ("/", "/tasks", TASKS, "/broker", "/api/workers"):
        assert [flower.ask(path, authorization=given)[0] for given in ("", wrong)] == [401, 401]
        assert flower.ask(path, authorization=right)[0] == 200
    assert flower.ask("/healthcheck") == (200, "OK")
    assert "s3cret" not in flower.program.text()


def test_no_password_of_the_broker_is_told_when_it_is_refused(stack: Service) -> None:
    stack.settings["BROKER_URL"] = stack.settings["BROKER_URL"].replace(
        "guest:guest@", "guest:s3cret@"
    )
    flower = Flower(stack)
    flower.program.says("Failed to capture events")
    assert flower.ask("/broker")[0] == 200
    flower.program.says("management API call failed")
    assert "ACCESS_REFUSED" in flower.program.text()
    assert "s3cret" not in flower.told()


def test_a_wrong_setting_stops_flower_with_one_sentence(stack: Service) -> None:
    stack.settings["SMTP_SECURITY"] = "tls"
    program = stack.run("-m", *COMMAND.split(), f"--port={free_port()}", name="flower")
    assert program.process.wait(60) != 0
    assert (
        program.text().strip()
        == "mailasync: MAILASYNC_SMTP_SECURITY: expected one of ssl, starttls, none, got 'tls'"
    )
