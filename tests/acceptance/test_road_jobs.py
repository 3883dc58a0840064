"""Jobs as real processes: web, RabbitMQ, workers, SMTP server. Whatever happens to a job, its end can be read, and its mail comes once."""

import email
import email.policy
import http.client
import json
import signal
import statistics
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import amqp
import pytest
from celery import Celery
from kombu import Connection

from tests.measure import TRIES, Pace
from tests.services import wait_until
from tests.services.processes import Service, service
from tests.services.rabbitmq import RabbitMQ
from tests.services.smtpd import ScriptedSMTP

FINAL = {"succeeded", "failed", "timed_out", "canceled"}


def start(pair: Service, name: str, to: str = "", **more: Any) -> str:
    """Post a job, with a mail to this address, and return its id."""
    notify = (
        {
            "to": to,
            "subject": "{{ job.name }} {{ job.status }}",
            "contents": "{{ job.result }}{{ job.error }}",
        }
        if to
        else None
    )
    status, answer = pair.request("POST", "/v1/jobs", {"name": name, "notify": notify, **more})
    assert status == 202, answer
    id: str = answer["id"]
    return id


def ended(pair: Service, id: str) -> Any:
    """Wait until the job has ended, and return it."""
    seen: list[Any] = [None]

    def has_ended() -> bool:
        seen[0] = pair.get(f"/v1/jobs/{id}")
        return seen[0].get("status") in FINAL

    wait_until(has_ended, what=f"job {id} has ended")
    return seen[0]


def is_running(pair: Service, id: str) -> bool:
    return bool(pair.get(f"/v1/jobs/{id}")["status"] == "running")


def subjects(smtpd: ScriptedSMTP) -> dict[str, str]:
    """The subject of the mail that each recipient got; nobody got two."""
    read = [
        (mail.rcpt_tos[0], email.message_from_bytes(mail.data, policy=email.policy.default))
        for mail in smtpd.payloads
    ]
    got = [(to, str(mail["Subject"])) for to, mail in read]
    assert max(Counter(to for to, _ in got).values(), default=0) <= 1, got
    return dict(got)


@pytest.fixture
def jobs_pair(tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]) -> Any:
    with service(
        tmp_path,
        BROKER_URL=broker_url,
        DATABASE_URL=sqlite_url,
        JOBS="tests.jobs_for_tests",
        **to_smtpd,
    ) as made:
        made.upgrade()
        made.web()
        yield made


def test_whatever_a_job_does_its_end_can_be_read_and_its_mail_comes_once(
    jobs_pair: Service, smtpd: ScriptedSMTP
) -> None:
    # Given a worker, and jobs that do the worst
    jobs_pair.worker()
    worst: dict[str, tuple[dict[str, Any], str, str]] = {
        "add": ({"args": {"a": 1}}, "succeeded", ""),
        "raise": ({}, "failed", "ValueError: no such file"),
        "die": ({}, "failed", "its process ended"),
        "sleep": ({}, "timed_out", "0.5 s"),
        "fork": ({"timeout_seconds": 1}, "timed_out", "1 s"),
        "copy": ({}, "succeeded", ""),
        "huge": ({}, "failed", "the most"),
        "print": ({"args": {"lines": ["geheim"], "megabytes": 100}}, "succeeded", ""),
        "patient": ({"args": {"seconds": 60}, "timeout_seconds": 0.5}, "timed_out", "0.5 s"),
        "odd result": ({}, "failed", "not JSON serializable"),
        "exit": ({}, "failed", "tired"),
    }
    # When all are started
    ids = {
        name: start(jobs_pair, name, f"{name.replace(' ', '-')}@example.org", **more)
        for name, (more, _, _) in worst.items()
    }
    # Then each ends as it should, says why, and sends its mail
    for name, (_, status, words) in worst.items():
        job = ended(jobs_pair, ids[name])
        assert (name, job["status"]) == (name, status), job
        assert words in (job["error"] or ""), job
        assert jobs_pair.final(job["message"]["id"])["status"] == "sent"
    assert subjects(smtpd) == {
        f"{name.replace(' ', '-')}@example.org": f"{name} {status}"
        for name, (_, status, _) in worst.items()
    }
    # And what is no job is refused
    add = {"name": "add", "args": {"a": 1}}
    for wrong in (
        {"name": "brew"},
        add | {"args": {"a": "x"}},
        {"name": "add"},
        {},
        add | {"notify": 5},
    ):
        assert jobs_pair.request("POST", "/v1/jobs", wrong)[0] == 422


@pytest.mark.parametrize(
    ("database_url", "name"),
    [("sqlite", "nap"), ("postgresql", "patient")],
    indirect=["database_url"],
)
def test_a_killed_workers_job_ends_and_its_failure_mail_comes_once(
    pair: Service, smtpd: ScriptedSMTP, name: str
) -> None:
    pair.settings["JOBS"] = "tests.jobs_for_tests"
    pair.web()
    worker = pair.worker()
    once = start(pair, name, "once@example.org", args={"seconds": 60})
    twice = start(pair, name, "twice@example.org", args={"seconds": 2}, max_attempts=2)
    wait_until(
        lambda: all(pair.get(f"/v1/jobs/{id}")["status"] == "running" for id in (once, twice)),
        what="both run",
    )
    worker.kill()
    pair.worker()
    job = ended(pair, once)
    assert (job["status"], job["error"], job["attempts"]) == (
        "failed",
        "the worker that ran it died",
        1,
    )
    assert pair.final(job["message"]["id"])["status"] == "sent"
    again = ended(pair, twice)
    assert (again["status"], again["attempts"]) == ("succeeded", 2)
    assert pair.final(again["message"]["id"])["status"] == "sent"
    assert subjects(smtpd) == {
        "once@example.org": f"{name} failed",
        "twice@example.org": f"{name} succeeded",
    }


@pytest.mark.parametrize("name", ["nap", "patient"])
def test_a_canceled_job_ends_at_once_frees_its_slot_and_sends_nothing(
    jobs_pair: Service, smtpd: ScriptedSMTP, name: str
) -> None:
    jobs_pair.settings["JOB_SLOTS"] = "1"
    jobs_pair.worker()
    running = start(jobs_pair, name, "bob@example.org", args={"seconds": 60})
    wait_until(lambda: jobs_pair.get(f"/v1/jobs/{running}")["status"] == "running", what="it runs")
    queued = start(jobs_pair, name, "carol@example.org", args={"seconds": 0})
    canceled = start(jobs_pair, name, "dave@example.org", args={"seconds": 0})
    assert jobs_pair.request("POST", f"/v1/jobs/{canceled}/cancel")[0] == 200
    status, job = jobs_pair.request("POST", f"/v1/jobs/{running}/cancel")
    assert (status, job["status"], job["message"]["status"]) == (200, "canceled", "canceled")
    assert ended(jobs_pair, queued)["status"] == "succeeded"
    assert jobs_pair.final(jobs_pair.get(f"/v1/jobs/{queued}")["message"]["id"])["status"] == "sent"
    assert subjects(smtpd) == {"carol@example.org": f"{name} succeeded"}


def test_progress_is_seen_over_http_while_a_job_runs_and_a_client_can_wait_for_the_end(
    jobs_pair: Service,
) -> None:
    jobs_pair.worker()
    id = start(jobs_pair, "simulate", args={"seconds": 3})
    seen: list[float] = []

    def watch() -> bool:
        seen.append(jobs_pair.get(f"/v1/jobs/{id}")["progress"])
        return seen[-1] >= 0.3

    wait_until(watch, what="progress is seen")
    assert seen == sorted(seen) and 0 < seen[-1] < 1
    status, job = jobs_pair.request("GET", f"/v1/jobs/{id}", headers={"Prefer": "wait=60"})
    assert (status, job["status"], job["progress"]) == (200, "succeeded", 1.0)


def test_a_server_asked_to_stop_answers_those_who_wait(jobs_pair: Service) -> None:
    web = jobs_pair._programs[-1]
    id = start(jobs_pair, "simulate", args={"seconds": 3})
    waiter = http.client.HTTPConnection(jobs_pair.url.removeprefix("http://"), timeout=60)
    waiter.request("GET", f"/v1/jobs/{id}", headers={"Prefer": "wait=50"})
    # By then the other request is at work.
    assert [jobs_pair.get("/livez")["status"] for _ in range(20)] == ["ok"] * 20
    assert web.stop() == 0
    with waiter.getresponse() as answer:
        assert (answer.status, json.load(answer)["status"]) == (200, "queued")
    waiter.close()


def test_a_stock_celery_client_starts_jobs(jobs_pair: Service, smtpd: ScriptedSMTP) -> None:
    worker = jobs_pair.worker()
    stock = Celery(broker=jobs_pair.settings["BROKER_URL"])
    task = "mailasync.runJob"
    whole = stock.send_task(
        task, [{"name": "add", "args": {"a": 1, "b": 2}, "notify": {"to": "bob@example.org"}}]
    ).id
    stock.send_task(
        task,
        [{"name": "add", "args": {"a": 1, "b": 2}, "notify": {"to": "bob@example.org"}}],
        task_id=whole,
    )
    short = stock.send_task(task, ["add", {"a": 5}]).id
    bare = stock.send_task(task, ["whoami"], queue="jobs").id
    named = stock.send_task(task, kwargs={"name": "add", "args": {"a": 7}}).id
    odd: list[Any] = [
        ["brew"],
        [17],
        [],
        ["add", {"a": "geheim"}],
        ["add", 1, 2],
        [{"name": "add", "notify": {"to": "geheim"}}],
        ["x" * 500],
    ]
    wrong = [stock.send_task(task, args).id for args in odd]
    stock.send_task(task, ["add", {"a": 1}], task_id="x" * 100)
    stock.close()
    assert ended(jobs_pair, whole)["result"] == 3
    assert ended(jobs_pair, short)["result"] == 6
    assert ended(jobs_pair, named)["result"] == 8
    assert ended(jobs_pair, bare)["status"] == "succeeded"
    for id in wrong:
        job = ended(jobs_pair, id)
        assert job["status"] == "failed" and job["error"], job
    wait_until(lambda: "of 100 characters cannot be stored" in worker.text())
    assert jobs_pair.final(ended(jobs_pair, whole)["message"]["id"])["status"] == "sent"
    assert subjects(smtpd) == {"bob@example.org": "Job add succeeded"}
    assert "geheim" not in worker.text()
    assert "raised unexpected" not in worker.text()


def test_a_worker_serves_only_the_queues_it_was_given(jobs_pair: Service) -> None:
    jobs_pair.worker("--loglevel=INFO", "-Q", "mail,mail.bulk")
    id = start(jobs_pair, "add", args={"a": 1})
    mail = jobs_pair.post("/v1/messages")
    assert jobs_pair.final(mail)["status"] == "sent"
    job = jobs_pair.get(f"/v1/jobs/{id}")
    assert (job["status"], job["why"]) == (
        "queued",
        "no worker serves the queue jobs; start one with `celery -A mailasync worker -Q jobs`",
    )
    jobs_pair.worker("--loglevel=INFO", "-Q", "jobs")
    assert ended(jobs_pair, id)["status"] == "succeeded"


def test_a_job_runs_in_the_context_of_the_flask_application(jobs_pair: Service) -> None:
    jobs_pair.worker()
    id = start(jobs_pair, "in flask")
    assert ended(jobs_pair, id)["result"] == "app"


def test_what_a_job_made_is_attached_to_its_mail_and_can_be_fetched(
    jobs_pair: Service, smtpd: ScriptedSMTP
) -> None:
    jobs_pair.worker()
    job = ended(jobs_pair, start(jobs_pair, "made", "bob@example.org", args={"size": 512}))
    assert job["file"] == {
        "name": "bytes.bin",
        "content_type": "application/x-bytes",
        "size": 512,
        "url": f"/v1/jobs/{job['id']}/file",
    }
    assert jobs_pair.final(job["message"]["id"])["status"] == "sent"
    [mail] = smtpd.payloads
    [attached] = email.message_from_bytes(mail.data, policy=email.policy.default).iter_attachments()
    assert (attached.get_filename(), attached.get_content()) == ("bytes.bin", bytes(range(256)) * 2)


def see_who_holds_a_message_ended(node: RabbitMQ) -> None:
    """Wait until RabbitMQ ends a consumer that does not acknowledge.

    RabbitMQ 3 and 4.0 close the channel; 4.3 cancels the consumer, and waits for ever on a classic queue.
    """
    with Connection(node.url()) as connection:
        channel: Any = connection.channel()
        channel.queue_declare(
            "held", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
        )
        channel.basic_publish(amqp.Message("x"), routing_key="held")
        channel.basic_consume("held", callback=lambda message: None)
        with pytest.raises((amqp.exceptions.PreconditionFailed, amqp.exceptions.ConsumerCancelled)):
            drain_without_end(connection)


def drain_without_end(connection: Connection) -> None:
    while True:
        connection.drain_events(timeout=60)


def test_a_job_longer_than_rabbitmq_waits_for_an_ack_runs_once_and_its_worker_lives(
    tmp_path: Path, private_rabbitmq: RabbitMQ, sqlite_url: str, to_smtpd: dict[str, str]
) -> None:
    # Given a RabbitMQ that ends who owes it an acknowledgement for two seconds
    private_rabbitmq.set_consumer_timeout(2)
    with service(
        tmp_path,
        BROKER_URL=private_rabbitmq.url(),
        DATABASE_URL=sqlite_url,
        QUEUE_TYPE="quorum",
        JOBS="tests.jobs_for_tests",
        **to_smtpd,
    ) as pair:
        pair.upgrade()
        pair.web()
        worker = pair.worker()
        # When jobs take five times as long
        ids = [start(pair, name, args={"seconds": 10}) for name in ("nap", "patient")]
        # Then RabbitMQ does what it threatens to whoever holds a message, and not to our worker
        see_who_holds_a_message_ended(private_rabbitmq)
        assert [ended(pair, id)["attempts"] for id in ids] == [1, 1]
        assert [ended(pair, id)["status"] for id in ids] == ["succeeded"] * 2
        assert (
            not any(word in worker.text() for word in ("PreconditionFailed", "ConsumerCancelled"))
            and worker.process.poll() is None
        )
    private_rabbitmq.kill()  # which ends what was set


def test_a_long_queue_of_beers_holds_up_neither_coffee_nor_mail(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str], smtpd: ScriptedSMTP
) -> None:
    # Given two workers for everything
    with service(
        tmp_path,
        BROKER_URL=broker_url,
        DATABASE_URL=sqlite_url,
        JOBS="examples.cafe.jobs",
        **to_smtpd,
    ) as pair:
        pair.upgrade()
        pair.web()
        pair.worker()
        pair.worker()
        # When more beers are wanted than two workers can pour, and then a coffee and a mail
        for _ in range(110):
            start(pair, "beer", args={"seconds": 600})
        coffee = start(pair, "coffee", args={"seconds": 0})
        mail = pair.post("/v1/messages")
        # Then both are done while beers wait still
        assert ended(pair, coffee)["status"] == "succeeded"
        assert pair.final(mail)["status"] == "sent"
        assert pair.get("/v1/jobs?queue=beer&status=queued&limit=1")["data"], (
            "the beers should not be over yet"
        )


def test_jobs_that_wait_use_all_slots_at_once(jobs_pair: Service) -> None:
    jobs_pair.settings["JOBS"] = ""
    jobs_pair.worker()
    ids = [start(jobs_pair, "simulate", args={"seconds": 600}) for _ in range(60)]
    wait_until(
        lambda: len(jobs_pair.get("/v1/jobs?status=running&limit=100")["data"]) == 50,
        what="all slots are used",
    )
    for id in ids:
        jobs_pair.request("POST", f"/v1/jobs/{id}/cancel")


def test_a_cpu_bound_job_in_flask_up_leaves_the_answers_fast(
    tmp_path: Path, to_smtpd: dict[str, str]
) -> None:
    with service(
        tmp_path,
        DATABASE_URL=f"sqlite:///{tmp_path}/up.sqlite3",
        JOBS="tests.jobs_for_tests",
        **to_smtpd,
    ) as up:
        up.upgrade()
        up.up("--deliver")

        def post_often(pace: Pace, name: str) -> None:
            for _ in range(60):
                with pace.lap(name):
                    up.post("/v1/messages")

        up.post("/v1/messages")
        ratios = []
        for _ in range(TRIES):
            pace = Pace()
            post_often(pace, "idle")
            id = start(up, "burn", args={"seconds": 600})
            wait_until(partial(is_running, up, id), what="it burns")
            post_often(pace, "busy")
            up.request("POST", f"/v1/jobs/{id}/cancel")
            ratios.append(pace.ratio("busy", to="idle", of=statistics.median))
            if ratios[-1] <= 2:
                break
        assert min(ratios) <= 2, ratios


def test_a_worker_asked_to_stop_lets_a_short_job_end(jobs_pair: Service, tmp_path: Path) -> None:
    worker = jobs_pair.worker()
    mark = tmp_path / "begun"
    id = start(jobs_pair, "nap", args={"seconds": 2, "mark": str(mark)})
    wait_until(lambda: jobs_pair.get(f"/v1/jobs/{id}")["status"] == "running", what="it runs")
    wait_until(mark.exists, what="it has begun")
    worker._signal(signal.SIGTERM)
    assert ended(jobs_pair, id)["status"] == "succeeded"
    assert worker.process.wait(60) == 0
