"""Nudges that RabbitMQ dropped: by a purge, by a policy of an operator. Their mails and jobs go on all the same, within seconds."""

from pathlib import Path

from sqlalchemy import text

from mailroom.store.db.database import Database, run
from tests.services import wait_until
from tests.services.processes import Service, service
from tests.services.rabbitmq import RabbitMQ
from tests.services.smtpd import ScriptedSMTP


def vhost_of(url: str) -> str:
    return url.rpartition("/")[2]


def published(database: Database) -> bool:
    """Whether each message has had its nudge; those that have it had it a minute ago from now on."""
    waits = "SELECT count(*) FROM messages WHERE state = 'queued' AND published_at IS NULL"
    if database.read(lambda connection: connection.scalar(text(waits))):
        return False
    return bool(
        database.write(
            run, text("UPDATE messages SET published_at = published_at - 60000 RETURNING id")
        )
    )


def test_nudges_that_were_lost_on_any_queue_are_made_again_soon(
    tmp_path: Path,
    rabbitmq: RabbitMQ,
    broker_url: str,
    sqlite_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=sqlite_url, **to_smtpd) as pair:
        # Given the queues, of which one keeps a single nudge, and no worker just now
        pair.upgrade()
        pair.web()
        pair.worker().stop()
        rabbitmq.set_policy(vhost_of(broker_url), r"^mail\.bulk$", max_length=1)
        mails = [*bulk(pair, 40), pair.post("/v1/messages")]
        job = pair.request("POST", "/v1/jobs", {"name": "simulate", "args": {"seconds": 0}})[1][
            "id"
        ]
        database = Database(sqlite_url)
        wait_until(lambda: published(database), 60, what="all are on their queues")
        database.close()
        # When whatever is still there is purged
        rabbitmq.purge(vhost_of(broker_url))
        # Then all goes when a worker is back
        pair.worker()
        assert {pair.final(id, timeout=60)["status"] for id in mails} == {"sent"}
        wait_until(
            lambda: pair.get(f"/v1/jobs/{job}")["status"] == "succeeded", 60, what="the job has run"
        )
        assert len(smtpd.payloads) == 41


def bulk(pair: Service, number: int) -> list[str]:
    listed = [{"to": "bob@example.org", "subject": str(index)} for index in range(number)]
    return [told["id"] for told in pair.request("POST", "/v1/messages/batch", listed)[1]["data"]]
