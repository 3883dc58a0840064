"""The road of a mail, as real processes: web, RabbitMQ, worker, SMTP server."""

import secrets
import sqlite3
from pathlib import Path
from typing import Any

from celery import Celery
from sqlalchemy import make_url

from tests.measure import Pace
from tests.services import let_pass, wait_until
from tests.services.postgres import Postgres
from tests.services.processes import Service, service
from tests.services.rabbitmq import RabbitMQ
from tests.services.schema import on_postgresql, on_sqlite
from tests.services.smtpd import ScriptedSMTP

#: Times as long as in quiet: who waits for a broker that does not answer takes hundreds of times as long.
MUCH = 30


def posted(pair: Service, pace: Pace, name: str) -> list[str]:
    """Post ten mails, each a lap of this name, and return their ids."""
    ids = []
    for number in range(10):
        with pace.lap(name):
            ids.append(pair.post("/v1/messages", subject=f"{name} {number}"))
    return ids


def test_a_mail_goes_from_post_to_the_mail_server_once(pair: Service, smtpd: ScriptedSMTP) -> None:
    # Given the pair
    pair.web()
    pair.worker()
    # When a mail is posted
    id = pair.post(subject="Hello", contents="The work is done.")
    # Then it is sent, once, and its timeline tells so
    told = pair.final(id)
    assert told["status"] == "sent"
    assert told["attempts"] == 1
    assert told["recipients"][0]["status"] == "sent"
    assert told["recipients"][0]["reply"].startswith("250")
    wait_until(
        lambda: (
            [step["event"] for step in pair.message(id)["timeline"]]
            == ["accepted", "queued", "sent"]
        ),
        what="all is told",
    )
    assert [mail.rcpt_tos for mail in smtpd.messages] == [("bob@example.org",)]
    assert smtpd.copies(told["message_id"]) == 1
    assert smtpd.violations == []


def test_the_answer_does_not_wait_for_the_work(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str], smtpd: ScriptedSMTP
) -> None:
    with service(
        tmp_path,
        **{
            **to_smtpd,
            "BROKER_URL": broker_url,
            "DATABASE_URL": sqlite_url,
            "SIMULATED_WORK_SECONDS": "5",
        },
    ) as pair:
        # Given the pair, warm, with five seconds of simulated work
        pair.upgrade()
        pair.web()
        pair.worker()
        pair.post("/v1/messages", subject="warm")
        # When mails are posted
        ids = [pair.post(subject=f"mail {number}") for number in range(20)]
        # Then the answers come before the work is done, the job is seen at work, and each mail comes once, after it
        wait_until(
            lambda: "simulate is running: step" in pair.message(ids[-1])["why"],
            what="why tells of the job",
        )
        for id in ids:
            told = pair.final(id)
            assert smtpd.copies(told["message_id"]) == 1
            assert [step["event"] for step in told["timeline"]].index("sent") > 0
        assert len(smtpd.payloads) == 21


@on_sqlite
def test_a_stock_celery_client_sends_a_mail_by_task_name(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    # Given the pair, and a script that knows only the broker's URL
    pair.web()
    pair.worker()
    stock = Celery(broker=pair.settings["BROKER_URL"])
    # When it sends the endpoint's JSON object, the same task a second time, and one that is no mail
    mail = {"to": "bob@example.org", "subject": "from a script", "contents": "hello"}
    id = stock.send_task("mailasync.sendMail", [mail]).id
    stock.send_task("mailasync.sendMail", [mail], task_id=id)
    named = stock.send_task("mailasync.sendMail", kwargs=mail).id
    wrong = stock.send_task("mailasync.sendMail", [{"to": "nobody", "subjekt": "x"}]).id
    nothing = stock.send_task("mailasync.sendMail", [17]).id
    stock.close()
    # Then each arrives once under the id of its task, and what is no mail is told, with the reason
    wait_until(
        lambda: all(
            pair.request("GET", f"/v1/messages/{task}")[0] == 200
            for task in (id, named, wrong, nothing)
        ),
        what="all five tasks were read",
    )
    assert smtpd.copies(pair.final(id)["message_id"]) == 1
    assert smtpd.copies(pair.final(named)["message_id"]) == 1
    assert pair.message(wrong)["status"] == "failed"
    assert "#/to: expected an address" in pair.message(wrong)["why"]
    assert "did you mean subject?" in pair.message(wrong)["why"]
    assert "expected a JSON object, got 17" in pair.message(nothing)["why"]
    assert len(smtpd.payloads) == 2


@on_postgresql
def test_whatever_a_stock_client_sends_is_recorded_and_not_logged(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    pair.web()
    worker = pair.worker()
    stock = Celery(broker=pair.settings["BROKER_URL"])
    mail = {"to": "bob@example.org", "contents": "geheim"}
    odd: list[list[Any]] = [
        ["bob@example.org", "geheim"],
        [mail, "geheim"],
        [17, "geheim"],
        [["a\0b"], "geheim"],
        [],
        [["x"], "y", "z"],
        ["a\0b"],
    ]
    ids = [stock.send_task("mailasync.sendMail", args).id for args in odd]
    for unusable in ("x" * 201, "a\0b", "a\ud800b"):
        stock.send_task("mailasync.sendMail", [mail], task_id=unusable)
    last = stock.send_task("mailasync.sendMail", [mail]).id
    stock.close()
    wait_until(
        lambda: pair.request("GET", f"/v1/messages/{last}")[0] == 200, what="the last task was read"
    )
    assert pair.final(last)["status"] == "sent"
    for id in ids:
        assert pair.final(id)["why"].startswith("failed: ")
    wait_until(
        lambda: worker.text().count("it is recorded as") == 3 and len(smtpd.messages) == 4,
        what="the others were sent",
    )
    assert "geheim" not in worker.text()
    assert "raised unexpected" not in worker.text()


@on_sqlite
def test_events_for_flower_tell_no_mail(pair: Service, smtpd: ScriptedSMTP) -> None:
    pair.worker()
    stock = Celery(broker=pair.settings["BROKER_URL"])
    with stock.connection_for_read() as connection:
        events = connection.SimpleQueue(stock.events.Receiver(connection).queue, no_ack=True)
        stock.send_task("mailasync.sendMail", [{"to": "bob@example.org", "contents": "geheim"}])
        seen = ""
        while "task-succeeded" not in seen:
            seen += str(events.get(timeout=60).payload)
        events.close()
    stock.close()
    assert "task-received" in seen
    assert "mailasync.sendMail" in seen
    assert "geheim" not in seen
    assert "bob" not in seen


def test_a_worker_may_start_before_the_broker_knows_it(
    tmp_path: Path,
    rabbitmq: RabbitMQ,
    sqlite_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    vhost = f"late-{secrets.token_hex(4)}"
    with service(
        tmp_path, BROKER_URL=rabbitmq.url(vhost), DATABASE_URL=sqlite_url, **to_smtpd
    ) as pair:
        pair.upgrade()
        pair.web()
        worker = pair.worker(wait=False)
        id = pair.post()
        worker.says("RabbitMQ does not let us in, correct user, password and vhost")
        rabbitmq.add_vhost(vhost)
        assert smtpd.copies(pair.final(id)["message_id"]) == 1
    rabbitmq.delete_vhost(vhost)


def test_an_outage_of_the_database_longer_than_the_lease_loses_and_doubles_nothing(
    tmp_path: Path,
    run_directory: Path,
    broker_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    cluster = Postgres(run_directory / f"postgres-{secrets.token_hex(4)}")
    cluster.start()
    cluster.create_database("mail")
    with service(
        tmp_path,
        **{
            **to_smtpd,
            "BROKER_URL": broker_url,
            "DATABASE_URL": cluster.url("mail"),
            "LEASE_SECONDS": "4",
        },
    ) as pair:
        pair.upgrade()
        pair.web()
        worker = pair.worker()
        held = smtpd.hold("DOT", times=None)
        ids = [pair.post(subject=f"mail {n}") for n in range(5)]
        wait_until(held.reached.is_set, what="mails are at the dot")
        wait_until(
            lambda: [pair.message(id)["status"] for id in ids] == ["in_data"] * 5,
            what="all are past the fence",
        )
        cluster.kill()
        held.release()
        worker.says("its outcome waits for the database")
        let_pass(6)  # which is longer than the lease
        status, told = pair.request("POST", "/", {"to": "bob@example.org"})
        assert (status, told["code"]) == (503, "store_unavailable")
        cluster.start()
        for id in ids:
            told = pair.final(id)
            assert (
                told["status"],
                told["uncertain_attempts"],
                smtpd.copies(told["message_id"]),
            ) == (
                "sent",
                0,
                1,
            )
        assert "lost worker" not in worker.text()
        # And a worker that is told to stop while the database is away does so.
        cluster.kill()
        assert worker.stop() == 0
    cluster.close()


@on_sqlite
def test_mails_that_were_there_when_a_worker_died_are_not_taken_for_its_cause(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    pair.web()
    ids = [pair.post(subject=f"mail {n}") for n in range(4)]
    held = smtpd.hold("RCPT", times=None)
    for _ in range(3):
        held.reached.clear()
        worker = pair.worker()
        wait_until(held.reached.is_set, what="a mail is at RCPT")
        worker.kill()
    held.release()
    pair.worker()
    for id in ids:
        told = pair.final(id)
        assert (told["status"], smtpd.copies(told["message_id"])) == ("sent", 1)


def test_mail_is_accepted_while_rabbitmq_is_down_and_goes_when_it_is_back(
    tmp_path: Path,
    private_rabbitmq: RabbitMQ,
    sqlite_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    with service(
        tmp_path, BROKER_URL=private_rabbitmq.url(), DATABASE_URL=sqlite_url, **to_smtpd
    ) as pair:
        pair.upgrade()
        pair.web()
        pair.worker()
        pace = Pace()
        pair.final(posted(pair, pace, "before")[-1])
        # When RabbitMQ is killed
        private_rabbitmq.kill()
        ids = posted(pair, pace, "during")
        # Then answers come as fast as ever, and the mail says what it waits for
        assert pace.ratio("during", to="before") < MUCH
        wait_until(
            lambda: "broker unreachable since" in pair.message(ids[0])["why"],
            what="why tells of the broker",
        )
        assert pair.request("GET", "/readyz")[0] == 200
        assert pair.get("/readyz")["checks"]["broker"].startswith("unreachable")
        # And when it is back, all goes without anyone's help
        private_rabbitmq.start()
        for id in ids:
            assert pair.final(id)["status"] == "sent"
        assert len(smtpd.payloads) == 20


def test_a_worker_that_was_busy_when_rabbitmq_died_goes_on_and_ends(
    tmp_path: Path,
    private_rabbitmq: RabbitMQ,
    sqlite_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    with service(
        tmp_path, BROKER_URL=private_rabbitmq.url(), DATABASE_URL=sqlite_url, **to_smtpd
    ) as pair:
        pair.upgrade()
        pair.web()
        worker = pair.worker()
        held = smtpd.hold("DOT", times=None)
        ids = [pair.post(subject=f"mail {n}") for n in range(8)]
        wait_until(lambda: len(smtpd.payloads) >= 3, what="mails are at the dot")
        private_rabbitmq.kill()
        worker.says("onnection to broker lost")
        private_rabbitmq.start()
        wait_until(lambda: worker.text().count("Connected to amqp") == 2, what="the worker is back")
        held.release()
        for id in ids:
            assert smtpd.copies(pair.final(id)["message_id"]) == 1
        assert worker.stop() == 0


def test_a_frozen_broker_slows_no_answer(
    tmp_path: Path,
    private_rabbitmq: RabbitMQ,
    sqlite_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    with service(
        tmp_path, BROKER_URL=private_rabbitmq.url(), DATABASE_URL=sqlite_url, **to_smtpd
    ) as pair:
        pair.upgrade()
        pair.web()
        pair.worker()
        pace = Pace()
        pair.final(posted(pair, pace, "before")[-1])
        private_rabbitmq.pause()
        ids = posted(pair, pace, "during")
        assert pace.ratio("during", to="before") < MUCH
        wait_until(
            lambda: "broker unreachable since" in pair.message(ids[0])["why"],
            what="why tells of the broker",
        )
        private_rabbitmq.resume()
        for id in ids:
            assert smtpd.copies(pair.final(id)["message_id"]) == 1


@on_postgresql
def test_a_worker_killed_before_the_final_dot_loses_and_doubles_nothing(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    # Given a worker that is held by the mail server before the payload
    pair.web()
    worker = pair.worker()
    held = smtpd.hold("RCPT")
    id = pair.post()
    wait_until(held.reached.is_set, what="the mail is at RCPT")
    # When it is killed, and another one comes
    worker.kill()
    held.release()
    pair.worker()
    # Then the mail arrives, once
    told = pair.final(id)
    assert told["status"] == "sent"
    assert told["attempts"] == 2
    assert "worker lost" in [step["event"] for step in told["timeline"]]
    assert smtpd.copies(told["message_id"]) == 1


@on_sqlite
def test_a_worker_killed_after_the_final_dot_sends_again_and_says_so(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    pair.web()
    worker = pair.worker()
    held = smtpd.hold("DOT")
    id = pair.post()
    wait_until(held.reached.is_set, what="the payload is out")
    worker.kill()
    held.release()
    pair.worker()
    told = pair.final(id)
    assert told["status"] == "sent"
    assert told["uncertain_attempts"] == 1
    assert "uncertain" in [step["event"] for step in told["timeline"]]
    assert smtpd.copies(told["message_id"]) == 2
    assert len({mail.message_id for mail in smtpd.payloads}) == 1


@on_postgresql
def test_a_web_process_killed_after_its_answer_loses_nothing(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    web = pair.web()
    ids = [pair.post(subject=f"mail {number}") for number in range(20)]
    web.kill()
    pair.worker()
    pair.web()
    for id in ids:
        assert smtpd.copies(pair.final(id)["message_id"]) == 1


@on_sqlite
def test_a_worker_stopped_by_sigterm_gives_back_at_once_what_it_has_not_sent(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    # Given a worker with one mail past the fence and one before it
    pair.settings["LEASE_SECONDS"] = "600"
    pair.web()
    first = pair.worker()
    past, before = smtpd.hold("DOT", match="past"), smtpd.hold("RCPT", match="before@example.org")
    ids = [pair.post(subject="past"), pair.post(to="before@example.org")]
    wait_until(
        lambda: past.reached.is_set() and before.reached.is_set(), what="both are on their way"
    )
    # When it is told to stop, and the mail server goes on
    first.process.terminate()
    first.says("shutdown")
    second = pair.worker()
    before.release()
    past.release()
    assert first.stop() == 0
    # Then what was past the fence was finished, the other was given back, and nobody waited for a lease
    told = [pair.final(id) for id in ids]
    assert [mail["status"] for mail in told] == ["sent", "sent"]
    assert [smtpd.copies(mail["message_id"]) for mail in told] == [1, 1]
    assert [mail["uncertain_attempts"] for mail in told] == [0, 0]
    assert second.stop() == 0


def test_a_job_of_a_stopped_worker_is_taken_over(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str], smtpd: ScriptedSMTP
) -> None:
    with service(
        tmp_path,
        **{
            **to_smtpd,
            "BROKER_URL": broker_url,
            "DATABASE_URL": sqlite_url,
            "SIMULATED_WORK_SECONDS": "4",
        },
    ) as pair:
        pair.upgrade()
        pair.web()
        for end in ("stop", "kill"):
            worker = pair.worker()
            id = pair.post(subject=end)
            wait_until(
                lambda id=id: "simulate is running: step 2" in pair.message(id)["why"],  # type: ignore[misc]
                what="the job runs",
            )
            worker.stop() if end == "stop" else worker.kill()
            second = pair.worker()
            assert smtpd.copies(pair.final(id)["message_id"]) == 1
            second.stop()


@on_sqlite
def test_no_address_and_no_body_reaches_a_log_at_debug(pair: Service, smtpd: ScriptedSMTP) -> None:
    web = pair.web()
    worker = pair.worker("--loglevel=DEBUG")
    smtpd.reply("RCPT", "550 5.1.1 <refused@example.org> is nobody", match="refused@example.org")
    ids = [
        pair.post(subject="geheim-subject", contents="geheim-body"),
        pair.post(to="refused@example.org", contents="geheim-body"),
    ]
    stock = Celery(broker=pair.settings["BROKER_URL"])
    mail = {"to": "bob@example.org", "subject": "geheim-subject", "contents": "geheim-body"}
    ids.append(stock.send_task("mailasync.sendMail", [mail]).id)
    stock.send_task("mailasync.sendmail", [mail])
    stock.send_task("mailasync.sendMail", [{**mail, "to": "geheim@"}])
    with stock.connection_for_write() as connection:
        connection.Producer().publish(
            b"geheim-body bob@example.org",
            routing_key="celery",
            content_type="text/odd",
            headers={"bob@example.org": "geheim"},
        )
    stock.close()
    wait_until(
        lambda: pair.request("GET", f"/v1/messages/{ids[-1]}")[0] == 200, what="the task was read"
    )
    assert [pair.final(id)["status"] for id in ids] == ["sent", "failed", "sent"]
    worker.says("the queue celery is not consumed")
    worker.stop()
    for program in (web, worker):
        assert "geheim" not in program.text()
        assert "@example.org" not in program.text()
    assert "550" in worker.text()


@on_sqlite
def test_a_worker_on_another_database_is_noticed(tmp_path: Path, pair: Service) -> None:
    pair.web()
    other = Service(
        tmp_path, {**pair.settings, "DATABASE_URL": f"sqlite:///{tmp_path}/other.sqlite3"}
    )
    try:
        other.upgrade()
        worker = other.worker()
        pair.post()
        worker.says("web and worker need the same MAILASYNC_DATABASE_URL")
        wait_until(lambda: pair.request("GET", "/readyz")[0] == 503, what="readyz turns red")
        assert "another database" in pair.get("/readyz")["checks"]["worker"]
    finally:
        other.close()


@on_sqlite
def test_an_older_schema_stops_the_start(pair: Service) -> None:
    with sqlite3.connect(make_url(pair.settings["DATABASE_URL"]).database or "") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
    for program in (pair.run("app.py", name="web"), pair.worker(wait=False)):
        assert program.process.wait(60) != 0
        assert "flask db upgrade" in program.text()
        assert "Traceback" not in program.text()


def test_an_empty_database_is_set_up_at_the_start(
    tmp_path: Path, broker_url: str, smtpd: ScriptedSMTP, to_smtpd: dict[str, str]
) -> None:
    url = f"sqlite:///{tmp_path}/new.sqlite3"
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=url, **to_smtpd) as new:
        new.web()
        new.worker()
        new.post()
        wait_until(lambda: smtpd.payloads, what="the mail arrives")
