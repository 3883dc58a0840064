"""What Celery clients send: to us in a form that cannot be read, and to others on the queue that we share."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import amqp
import pytest
from celery import Celery
from kombu import Connection

from tests.services import free_port, wait_until
from tests.services.processes import Program, Service, service
from tests.services.rabbitmq import RabbitMQ
from tests.services.smtpd import ScriptedSMTP

MAIL = {"to": "bob@example.org", "subject": "from a script", "contents": "geheim"}
SEND = {"task": "mailasync.sendMail"}
JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


class Trap:
    """Makes a file, if somebody unpickles it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


#: Task id, headers, body and properties of messages that are no task of this service, and a part of the reason of each.
UNREADABLE: list[tuple[str, dict[str, Any], bytes, dict[str, Any], str]] = [
    (
        "name",
        {"task": "mailasync.sendmail"},
        b"[[], {}, {}]",
        JSON,
        "expected the task mailasync.sendMail",
    ),
    (
        "shop",
        {"task": "shop.tasks.charge_card"},
        b"[[], {}, {}]",
        JSON,
        "got 'shop.tasks.charge_card'",
    ),
    (
        "built-in",
        {"task": "celery.backend_cleanup"},
        b"[[], {}, {}]",
        JSON,
        "got 'celery.backend_cleanup'",
    ),
    ("ours", {"task": "mailasync.refuse"}, b'[["x", "y"], {}, {}]', JSON, "got 'mailasync.refuse'"),
    ("number", {"task": 17}, b"[[], {}, {}]", JSON, "names its task"),
    ("list", {"task": [17]}, b"[[], {}, {}]", JSON, "names its task"),
    (
        "yaml",
        SEND,
        b"[]",
        {**JSON, "content_type": "application/x-yaml"},
        "got 'application/x-yaml'",
    ),
    ("nothing", SEND, b"", {}, "as Celery's clients send it"),
    ("half", SEND, b"[[], {", JSON, "cannot be decoded as 'application/json', 'utf-8'"),
    ("bytes", SEND, b"\xff\xfe", JSON, "cannot be decoded"),
    ("deep", SEND, b"[" * 100_000, JSON, "cannot be decoded"),
    (
        "encoding",
        SEND,
        b"\xff[[], {}, {}]",
        {**JSON, "content_encoding": "klingon"},
        "cannot be decoded",
    ),
    ("compressed", {**SEND, "compression": "zlib"}, b"not zlib", JSON, "cannot be decoded"),
    ("compressor", {**SEND, "compression": "nobody's"}, b"[[], {}, {}]", JSON, "cannot be decoded"),
    ("scalar", SEND, b"17", JSON, "as Celery's clients send it"),
    ("object", SEND, b"{}", JSON, "as Celery's clients send it"),
    ("two", SEND, b"[[], {}]", JSON, "as Celery's clients send it"),
    ("nulls", SEND, b"[null, null, null]", JSON, "other arguments than a list and an object"),
    ("options", SEND, b"[[], {}, 5]", JSON, "other options than an object"),
    ("eta", {**SEND, "eta": "soon"}, b"[[], {}, {}]", JSON, "invalid ETA value 'soon'"),
    ("expiry", {**SEND, "expires": [1]}, b"[[], {}, {}]", JSON, "invalid expires value [1]"),
    ("limits", {**SEND, "timelimit": 5}, b"[[], {}, {}]", JSON, "as Celery's clients send it"),
    (
        "stamps",
        {**SEND, "stamped_headers": 5},
        b"[[], {}, {}]",
        JSON,
        "as Celery's clients send it",
    ),
    (
        "first",
        {},
        b'{"task": "mailasync.sendMail", "id": "first", "args": 5}',
        JSON,
        "other arguments",
    ),
]
#: Messages without an id.
NAMELESS: list[tuple[dict[str, Any], bytes]] = [
    (SEND, b"[[], {}, {}]"),
    ({}, b"17"),
    ({}, b"not JSON"),
    ({**SEND, "id": [1]}, b"[[], {}, {}]"),
    ({}, b'{"task": "mailasync.sendMail", "args": [], "kwargs": {}}'),
]


@contextmanager
def channel_to(url: str) -> Iterator[Any]:
    with Connection(url) as connection:
        yield connection.channel()


def put(channel: Any, queue: str, headers: dict[str, Any], body: bytes, **properties: Any) -> None:
    message = amqp.Message(body, application_headers=headers, **properties)
    channel.basic_publish(message, exchange="", routing_key=queue)


@pytest.fixture
def served(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    with service(
        tmp_path, **{**to_smtpd, "BROKER_URL": broker_url, "DATABASE_URL": sqlite_url}
    ) as made:
        made.upgrade()
        made.web()
        yield made


def why(made: Service, path: str) -> str:
    """Wait until it is there, and return why it is as it is."""
    body: list[Any] = [None]

    def is_there() -> bool:
        status, body[0] = made.request("GET", path)
        return status == 200

    wait_until(is_there, 60, what=f"{path} is there")
    return f"{body[0]['status']}: {body[0]['why']}"


def test_what_is_no_task_of_ours_is_recorded_with_the_reason_and_ends_no_worker(
    served: Service, smtpd: ScriptedSMTP, tmp_path: Path
) -> None:
    # Given a worker, and its queue full of what it cannot do
    worker = served.worker()
    pickled = {"content_type": "application/x-python-serialize", "content_encoding": "binary"}
    trap = pickle.dumps([[Trap(tmp_path / "sprung")], {}, {}])
    with channel_to(served.settings["BROKER_URL"]) as channel:
        for id, headers, body, properties, _ in UNREADABLE:
            put(channel, "mail", {**headers, "id": id} if headers else {}, body, **properties)
        for headers, body in NAMELESS:
            put(channel, "mail", headers, body, **JSON)
        put(channel, "mail", {**SEND, "id": "pickle"}, trap, **pickled)
        put(channel, "mail", {}, trap, correlation_id="old pickle", **pickled)
        put(channel, "mail", {"task": "mailasync.runJobs", "id": "job"}, b"[[], {}, {}]", **JSON)
        put(channel, "mail", {**SEND, "id": "good"}, json.dumps([[MAIL], {}, {}]).encode(), **JSON)
    # Then each is recorded under its id, those without one are counted, and the good one is sent
    for id, _, _, _, reason in UNREADABLE:
        answer = why(served, f"/v1/messages/{id}")
        assert answer.startswith("failed: failed: ") and reason in answer, (id, answer)
    assert "got 'application/x-python-serialize'" in why(served, "/v1/messages/pickle")
    assert "cannot be decoded" in why(served, "/v1/messages/old%20pickle")
    assert "expected the task mailasync.sendMail or mailasync.runJob" in why(served, "/v1/jobs/job")
    assert served.final("good")["status"] == "sent"
    dropped = f"mailasync_tasks_dropped_total {float(len(NAMELESS))}"
    wait_until(lambda: dropped in served.get("/metrics"), 60, what="the others are counted")
    assert worker.text().count("a task without an id cannot be read") == len(NAMELESS)
    assert not (tmp_path / "sprung").exists()
    assert "geheim" not in worker.text() and "Traceback" not in worker.text()
    assert worker.stop() == 0


def test_what_has_expired_is_recorded_as_failed(served: Service, smtpd: ScriptedSMTP) -> None:
    served.worker()
    stock = Celery(broker=served.settings["BROKER_URL"])
    past, future = (datetime.now(UTC) + timedelta(hours=hours) for hours in (-1, 1))
    late = stock.send_task("mailasync.sendMail", [MAIL], expires=past).id
    waits = stock.send_task("mailasync.sendMail", [MAIL], countdown=2, expires=1).id
    job = stock.send_task("mailasync.runJob", ["simulate"], expires=past).id
    good = stock.send_task("mailasync.sendMail", [MAIL], expires=future).id
    stock.close()
    assert served.final(good)["status"] == "sent"
    for path in (f"/v1/messages/{late}", f"/v1/messages/{waits}", f"/v1/jobs/{job}"):
        assert why(served, path).startswith("failed: failed: expired at 20")
    assert len(smtpd.payloads) == 1


def names_on(url: str, queue: str) -> list[str]:
    """Take all that is on the queue, as a worker of somebody else would."""
    names = []
    with channel_to(url) as channel:
        while message := channel.basic_get(queue, no_ack=True):
            names.append(str(message.headers["task"]))
    return names


def is_left(rabbitmq: RabbitMQ, url: str) -> bool:
    """Tell whether nobody consumes `celery` any more, or holds a message of it."""
    queue = rabbitmq.queues(url.rpartition("/")[2])["celery"]
    return (queue.get("consumers"), queue.get("messages_unacknowledged")) == (0, 0)


def shop_and_ours(url: str) -> list[str]:
    """Send tasks of a shop, and among them some for us, without naming a queue; return our ids."""
    stock = Celery(broker=url)
    ours = []
    for number in range(30):
        stock.send_task("shop.tasks.charge_card", [number])
        if number % 10 == 9:
            ours.append(stock.send_task("mailasync.sendMail", [MAIL]).id)
    stock.close()
    return ours


def assert_shop_is_left_alone(
    made: Service, rabbitmq: RabbitMQ, workers: list[Program], ours: list[str]
) -> None:
    url = made.settings["BROKER_URL"]
    for worker in workers:
        worker.says(
            "the queue celery is not consumed until this worker is restarted, as a task on it is"
        )
    wait_until(lambda: is_left(rabbitmq, url), 60, what="all is given back")
    assert [worker.text().count("Canceling queue celery") for worker in workers] == [1] * len(
        workers
    )
    # Our clients that name our queue are served as ever.
    stock = Celery(broker=url)
    named = stock.send_task("mailasync.sendMail", [MAIL], queue="mail").id
    stock.close()
    wait_until(
        lambda: made.request("GET", f"/v1/messages/{named}")[0] == 200, 60, what="it was read"
    )
    assert made.final(named)["status"] == "sent"
    # No task of the shop is gone, and of ours none that was not sent.
    left = names_on(url, "celery")
    read = [id for id in ours if made.request("GET", f"/v1/messages/{id}")[0] == 200]
    assert left.count("shop.tasks.charge_card") == 30
    assert left.count("mailasync.sendMail") == len(ours) - len(read)


def test_tasks_of_somebody_else_are_given_back_and_their_queue_left_alone(
    served: Service, rabbitmq: RabbitMQ, smtpd: ScriptedSMTP
) -> None:
    ours = shop_and_ours(served.settings["BROKER_URL"])
    workers = [served.worker(), served.worker()]
    assert_shop_is_left_alone(served, rabbitmq, workers, ours)
    # The doctor says why.
    doctor = served.run("-m", "flask", "doctor", name="doctor")
    doctor.says(
        "as a task on it is not ours: 'shop.tasks.charge_card'; set MAILASYNC_SERVE_CELERY_QUEUE=off"
    )
    assert doctor.process.wait(60) == 1
    # A worker that is started anew serves the queue again.
    workers[0].stop()
    served.worker()
    stock = Celery(broker=served.settings["BROKER_URL"])
    id = stock.send_task("mailasync.sendMail", [MAIL]).id
    stock.close()
    wait_until(
        lambda: served.request("GET", f"/v1/messages/{id}")[0] == 200, 60, what="it was read"
    )


def test_a_broken_connection_brings_no_worker_back_to_the_queue(
    served: Service, rabbitmq: RabbitMQ, smtpd: ScriptedSMTP
) -> None:
    url = served.settings["BROKER_URL"]
    worker = served.worker()
    stock = Celery(broker=url)
    stock.send_task("shop.tasks.charge_card", [1])
    worker.says("Canceling queue celery")
    wait_until(lambda: is_left(rabbitmq, url), 60, what="it is given back")
    rabbitmq.close_connections_of(url.rpartition("/")[2])
    wait_until(lambda: worker.text().count("Connected to amqp") == 2, 60, what="the worker is back")
    id = stock.send_task("mailasync.sendMail", [MAIL], queue="mail").id
    stock.close()
    wait_until(lambda: served.request("GET", f"/v1/messages/{id}")[0] == 200, 60, what="it works")
    assert is_left(rabbitmq, url)
    assert names_on(url, "celery") == ["shop.tasks.charge_card"]


def test_what_nobody_can_read_on_the_shared_queue_is_given_back_too(
    served: Service, rabbitmq: RabbitMQ
) -> None:
    url = served.settings["BROKER_URL"]
    worker = served.worker()
    with channel_to(url) as channel:
        put(channel, "celery", {}, b"\x80\x04K\x11.", content_type="application/x-python-serialize")
    worker.says("Canceling queue celery")
    wait_until(lambda: is_left(rabbitmq, url), 60, what="it is given back")
    with channel_to(url) as channel:
        assert channel.basic_get("celery", no_ack=True).body == b"\x80\x04K\x11."


def test_the_shared_queue_can_be_left_alone_from_the_start(
    tmp_path: Path, broker_url: str, rabbitmq: RabbitMQ, sqlite_url: str
) -> None:
    with service(
        tmp_path, BROKER_URL=broker_url, DATABASE_URL=sqlite_url, SERVE_CELERY_QUEUE="off"
    ) as made:
        made.upgrade()
        made.worker()
        assert "celery" not in rabbitmq.queues(broker_url.rpartition("/")[2])
        shop_and_ours(broker_url)
        doctor = made.run("-m", "flask", "doctor", name="doctor")
        doctor.says("worker: seen")
        assert "queue celery" not in doctor.text()
        assert len(names_on(broker_url, "celery")) == 33


def test_flask_up_on_rabbitmq_gives_tasks_of_somebody_else_back(
    tmp_path: Path,
    broker_url: str,
    rabbitmq: RabbitMQ,
    sqlite_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    ours = shop_and_ours(broker_url)
    ports = {"INBOX_SMTP_PORT": str(free_port())}
    with service(
        tmp_path, **{**to_smtpd, **ports, "BROKER_URL": broker_url, "DATABASE_URL": sqlite_url}
    ) as made:
        made.upgrade()
        up = made.up("--deliver")
        assert_shop_is_left_alone(made, rabbitmq, [up], ours)
