"""Nudges on the wire: what a plain consumer gets for a POST, on a real RabbitMQ."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from tests.services import wait_until
from tests.services.processes import Service, service
from tests.services.smtpd import ScriptedSMTP


@pytest.fixture
def stack(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    """Web and worker, to be started, with the tutorial's five seconds of work before a mail of `POST /`."""
    settings = to_smtpd | {"SIMULATED_WORK_SECONDS": "5"}
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=sqlite_url, **settings) as made:
        made.upgrade()
        yield made


@pytest.fixture
def wire(broker_url: str) -> Iterator[Connection]:
    with Connection(broker_url) as connection:
        yield connection


def next_task(wire: Connection, queue: str) -> tuple[str, list[Any]]:
    """Take the next message off a queue, and return its task and arguments."""
    with wire.SimpleQueue(queue) as waiting:
        message = waiting.get(timeout=60)
        message.ack()
        return str(message.headers["task"]), message.payload[0]


def steps(stack: Service, id: str) -> list[str]:
    return [step["event"] for step in stack.get(f"/v1/messages/{id}")["timeline"]]


def test_a_mail_that_waits_for_its_work_is_a_send_mail_at_once(
    stack: Service, wire: Connection
) -> None:
    for queue in ("mail", "mail.bulk"):
        wire.SimpleQueue(queue).close()
    stack.web()
    waiting = stack.post("/")
    task, (ids, outbox_id) = next_task(wire, "mail")
    assert (task, ids, len(outbox_id)) == ("mailasync.sendMail", [waiting], 36)
    assert stack.get(f"/v1/messages/{waiting}")["status"] == "waiting"
    # And bulk mail goes on the queue for it
    bulk = stack.post("/", priority="low")
    assert next_task(wire, "mail.bulk") == ("mailasync.sendMail", [[bulk], outbox_id])
    # And the outbox notes the nudge of a mail that can go, but not of one that waits
    ready = stack.post("/v1/messages")
    wait_until(lambda: "queued" in steps(stack, ready), 60, what="the nudge is noted")
    assert "queued" not in steps(stack, waiting) + steps(stack, bulk)


def test_a_worker_that_runs_no_jobs_passes_the_nudge_on(
    stack: Service, wire: Connection, smtpd: ScriptedSMTP
) -> None:
    wire.SimpleQueue("jobs").close()
    stack.web()
    stack.worker("--loglevel=INFO", "-Q", "mail,mail.bulk")
    id = stack.post("/")
    assert next_task(wire, "jobs")[0] == "mailasync.runJob"
    assert (stack.get(f"/v1/messages/{id}")["status"], smtpd.messages) == ("waiting", [])
    stack.worker("--loglevel=INFO", "-Q", "jobs")
    assert stack.final(id, timeout=60)["status"] == "sent"
