"""What RabbitMQ refuses, is named in one sentence; and no more is needed than docs/operations.md says."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from tests.services import wait_until
from tests.services.processes import PROJECT, Service, service
from tests.services.rabbitmq import RabbitMQ
from tests.services.smtpd import ScriptedSMTP

#: User, configure, write and read, as docs/operations.md tells an operator.
COMMAND = re.compile(r"rabbitmqctl set_permissions -p mail (\w+) '(\^.*)' '(.*)' '(.*)'\n")
LISTED = {
    user: rights for user, *rights in COMMAND.findall((PROJECT / "docs/operations.md").read_text())
}

MakeUser = Callable[..., str]


@pytest.fixture
def vhost(broker_url: str) -> str:
    return broker_url.rpartition("/")[2]


@pytest.fixture
def user(rabbitmq: RabbitMQ, vhost: str) -> Iterator[MakeUser]:
    """Makes a user of the vhost with these rights, or changes one's; returns its URL."""
    made: set[str] = set()

    def make(name: str, configure: str = ".*", write: str = ".*", read: str = ".*") -> str:
        made.add(f"{vhost}-{name}")
        return rabbitmq.add_user(
            vhost, f"{vhost}-{name}", configure=configure, write=write, read=read
        )

    yield make
    for name in made:
        rabbitmq.delete_user(name)


@pytest.fixture
def stack(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    with service(
        tmp_path, **{**to_smtpd, "BROKER_URL": broker_url, "DATABASE_URL": sqlite_url}
    ) as made:
        made.upgrade()
        yield made


def worker_of(stack: Service, url: str, *, wait: bool = False) -> Any:
    """A worker with another URL than the web process."""
    stack.settings["BROKER_URL"] = url
    return stack.worker(wait=wait)


def test_the_rights_that_are_listed_are_enough(
    stack: Service, user: MakeUser, smtpd: ScriptedSMTP
) -> None:
    # Given queues that somebody else has made
    stack.worker().stop()
    # When web and worker have the rights of docs/operations.md, and no other
    stack.settings["BROKER_URL"] = user("web", *LISTED["web"])
    web = stack.web()
    worker = worker_of(stack, user("worker", *LISTED["worker"]), wait=True)
    # Then mail of each kind goes, and jobs run
    ids = [stack.post(), stack.post("/v1/messages"), stack.post("/v1/messages", priority="low")]
    job = stack.request("POST", "/v1/jobs", {"name": "simulate", "args": {"seconds": 0}})[1]["id"]
    assert [stack.final(id)["status"] for id in ids] == ["sent"] * 3
    wait_until(
        lambda: stack.get(f"/v1/jobs/{job}")["status"] == "succeeded", 60, what="the job has run"
    )
    # And only what Flower would see is missed, once
    assert "refuses" not in web.text()
    told = [line for line in worker.text().splitlines() if "refuses" in line]
    assert len(told) == 1
    assert "Flower will see nothing of this worker" in told[0]
    assert worker.stop() == 0


def test_a_user_who_may_not_make_the_queues_is_told_once_and_goes_on_when_he_may(
    stack: Service, user: MakeUser, smtpd: ScriptedSMTP
) -> None:
    stack.settings["BROKER_URL"] = user("alice", configure="^$")
    web, worker = stack.web(), stack.worker(wait=False)
    id = stack.post("/v1/messages")
    worker.says("no mail is taken from the queues: RabbitMQ refuses user")
    right = "the right to configure exchange 'mail' in vhost"
    wait_until(lambda: right in stack.message(id)["why"], 60, what="why tells")
    wait_until(lambda: worker.text().count("Connected to amqp") >= 3, 60, what="it is tried again")
    for program in (web, worker):  # of the publisher that each has, of the consumer, and of events
        told = re.findall(r"([\w ]+): RabbitMQ refuses", program.text())
        assert len(told) == len(set(told)) <= 3
    assert "Traceback" not in worker.text()
    user("alice")
    assert stack.final(id, timeout=60)["status"] == "sent"


def test_a_worker_that_may_not_read_is_told_of_by_web_and_doctor(
    stack: Service, user: MakeUser, smtpd: ScriptedSMTP
) -> None:
    stack.web()
    worker = worker_of(stack, user("alice", read="^(mail|mail\\.bulk|jobs|webhooks)$"), wait=True)
    worker.says(
        "the queue celery is not consumed until this worker is restarted, as RabbitMQ refuses user"
    )
    assert stack.final(stack.post("/v1/messages"))["status"] == "sent"
    worker.stop()
    worker = worker_of(stack, user("bob", read="^(mail\\.bulk|jobs|webhooks)$"))
    id = stack.post("/v1/messages")
    refusal = f"RabbitMQ refuses user '{user_of(stack)}' the right to read queue 'mail' in vhost"
    wait_until(
        lambda: f"no worker can take it: {refusal}" in stack.message(id)["why"],
        60,
        what="why tells",
    )
    assert stack.get("/readyz")["checks"]["worker"].startswith(f"cannot take mail: {refusal}")
    stack.run("-m", "flask", "doctor", name="doctor").says(f"cannot take mail: {refusal}")
    assert worker.stop() == 0


def user_of(stack: Service) -> str:
    return stack.settings["BROKER_URL"].partition("//")[2].partition(":")[0]


def test_a_wrong_password_is_told_where_nothing_is_sent(stack: Service, user: MakeUser) -> None:
    right = user("alice")
    stack.web()
    worker = worker_of(stack, right.replace("geheim", "wrong"))
    refusal = (
        "RabbitMQ does not let us in, correct user, password and vhost in MAILASYNC_BROKER_URL"
    )
    wait_until(
        lambda: refusal in stack.get("/readyz")["checks"]["worker"],
        60,
        what="readyz tells of the worker",
    )
    assert f"no worker can take it: {refusal}" in stack.message(stack.post("/v1/messages"))["why"]
    worker.says(f"no mail is taken from the queues: {refusal}")
    assert worker.stop() == 0
    other = Service(stack.directory, stack.settings)
    web = other.web()
    try:
        wait_until(
            lambda: refusal in other.get("/readyz")["checks"]["broker"], 60, what="readyz tells"
        )
        assert web.text().count(refusal) == 1
    finally:
        other.close()


def test_a_shared_queue_with_other_arguments_keeps_no_mail(
    stack: Service, broker_url: str, smtpd: ScriptedSMTP
) -> None:
    with Connection(broker_url) as connection:
        channel: Any = connection.channel()
        channel.queue_declare(
            "celery", durable=True, auto_delete=False, arguments={"x-max-length": 9}
        )
    stack.web()
    worker = stack.worker()
    worker.says(
        "is not consumed until this worker is restarted, as a queue exists with other arguments"
    )
    assert stack.final(stack.post("/v1/messages"))["status"] == "sent"
