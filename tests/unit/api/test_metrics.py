"""What is counted, on both databases; what `/metrics` tells of it; and the ids of requests."""

import io
import json
import logging
import time

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, event

from mailroom.api.services import Services
from mailroom.config import logs
from mailroom.model.attempt import Outcome
from mailroom.model.errors import StoreUnavailable
from mailroom.model.message import State
from mailroom.store.db.database import Database
from mailroom.store.events.counters import (
    KEPT_MINUTES,
    LATENCY_SECONDS,
    SENT_WITHIN,
    Counters,
    count,
    count_events,
)
from mailroom.store.events.queue_history import QueueHistory
from mailroom.store.jobs.jobs import JobEnd, Jobs, JobState, NotifyOn
from mailroom.store.maintenance.expiry import Expiry
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.maintenance.retention import Retention
from mailroom.store.messages.actions import Actions
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import Outbox
from tests.services import DEADLINE_SECONDS
from tests.services.application import made
from tests.unit.store.test_job_claims import FAILED, SUCCEEDED, claim, new, waiting
from tests.unit.store.test_job_claims import worker as job_worker
from tests.unit.store.test_outbox import (
    DEFERRED,
    LEASE_SECONDS,
    SENT,
    accept,
    age,
    claim_one,
    run,
    worker,
)

MANY = 100_000
REFUSED = Outcome(state=State.FAILED, reason="550 no", recipients={0: (State.FAILED, "550 no")})
UNANSWERED = Outcome(
    state=State.UNCERTAIN,
    reason="no reply",
    recipients={0: (State.UNCERTAIN, "no reply")},
    uncertain=True,
)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


@pytest.fixture
def claims(database: Database) -> Claims:
    return worker(database, "worker-1")


@pytest.fixture
def counters(database: Database) -> Counters:
    return Counters(database)


def tally(database: Database, **counts: int) -> None:
    def work(connection: Connection, items: list[dict[str, int]]) -> list[None]:
        for item in items:
            count(connection, item)
        return [None] * len(items)

    database.write(work, counts)


def database_of(app: Flask) -> Database:
    services: Services = app.extensions["mailasync"]
    return services.outbox.database


def told(client: FlaskClient) -> dict[str, float]:
    """The samples of /metrics, by name and labels as they stand there."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    return {
        sample.name + (json.dumps(sample.labels) if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


# --- counts --------------------------------------------------------------------------------------------------------


def test_all_processes_count_together_each_in_rows_of_its_own(
    database: Database, counters: Counters
) -> None:
    other = Database(database.url.render_as_string(hide_password=False))
    for counted in (database, other, database):
        tally(counted, sent=2, failed=1)
    assert counters.totals() == {"sent": 6, "failed": 3}
    assert Counters(other).totals() == counters.totals()
    sources = database.read(
        lambda connection: connection.exec_driver_sql(
            "SELECT count(DISTINCT source) FROM tallies"
        ).scalar()
    )
    assert sources == 2
    other.close()


def test_what_is_not_committed_is_not_counted(database: Database, counters: Counters) -> None:
    def work(connection: Connection, items: list[str]) -> list[None]:
        count(connection, {"sent": 1})
        raise LookupError

    with pytest.raises(LookupError):
        database.write(work, "x")
    tally(database, failed=1)
    assert counters.totals() == {"failed": 1}


def test_a_group_commit_counts_by_one_statement(database: Database, counters: Counters) -> None:
    written: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *told: written.append(told[2]))

    def work(connection: Connection, items: list[int]) -> list[None]:
        for _ in range(50):
            count_events(connection, ["sent", "sent", "deferred", "worker lost"])
        count(connection, {"recovered": 0})
        return [None] * len(items)

    database.write(work, 1)
    assert sum("INSERT INTO tallies" in statement for statement in written) == 1
    assert counters.totals() == {"sent": 100, "deferred": 50}


def test_ends_of_attempts_are_counted(
    database: Database, outbox: Outbox, claims: Claims, counters: Counters
) -> None:
    for outcome in (SENT, SENT, DEFERRED, REFUSED, UNANSWERED):
        claims.finish(claim_one(claims, accept(outbox)), outcome)
    assert {
        name: n
        for name, n in counters.totals().items()
        if not name.startswith("sent_") and name != "accepted"
    } == {"sent": 2, "deferred": 1, "failed": 1, "uncertain": 1}


def test_an_outcome_that_changes_nothing_is_not_counted(
    outbox: Outbox, claims: Claims, counters: Counters
) -> None:
    mine = claim_one(claims, accept(outbox))
    assert claims.finish(mine, SENT)
    assert claims.finish(mine, SENT)  # It is on record, whichever of two calls put it there.
    assert counters.totals()["sent"] == 1


def test_what_people_and_time_do_is_counted(
    database: Database, outbox: Outbox, claims: Claims, counters: Counters
) -> None:
    actions, ids = Actions(database), [accept(outbox) for _ in range(4)]
    before = counters.totals().get("accepted", 0)
    actions.hold(ids[0])
    actions.cancel(ids[1])
    run(database, f"/* test */ UPDATE messages SET expires_at = 1 WHERE id = '{ids[2]}'")
    assert Expiry(database).expire() == 1
    claims.finish(claim_one(claims, ids[3]), SENT)
    actions.resend(ids[3], "again-1", message_id="again-1@example.org")
    totals = counters.totals()
    assert [totals[name] for name in ("held", "canceled", "expired")] == [1, 1, 1]
    assert totals["accepted"] == before + 1


def test_nudges_that_were_made_again_are_counted(
    database: Database, outbox: Outbox, counters: Counters
) -> None:
    sweeps = Sweeps(database, LEASE_SECONDS, "resend")
    never, lost, due = (accept(outbox) for _ in range(3))
    run(
        database,
        f"/* test */ UPDATE messages SET state = 'deferred', next_attempt_at = 1 WHERE id = '{due}'",
    )
    outbox.mark_published([lost])
    age(database, messages_created_at=60, messages_published_at=3600)
    assert [nudge.id for nudge in sweeps.due()] == [due]
    assert [nudge.id for nudge in sweeps.unpublished()] == [never]
    assert [nudge.id for nudge in sweeps.lost()] == [lost]
    assert counters.totals()["recovered"] == 2


def test_jobs_and_the_mails_that_go_with_them_are_counted(
    database: Database, counters: Counters
) -> None:
    runs, jobs = job_worker(database, "worker-1"), Jobs(database, LEASE_SECONDS)
    ends = (SUCCEEDED, FAILED, JobEnd(state=JobState.TIMED_OUT, error="took too long"))
    for end in ends:
        waiting(database, new())
        runs.finish(claim(runs), end)
    waiting(database, new(notify_on=NotifyOn.FAILURE))
    runs.finish(claim(runs), SUCCEEDED)
    waiting(database, job := new())
    jobs.cancel(job.id)
    jobs.accept(new(failed="no such job"))
    totals = counters.totals()
    assert {name: n for name, n in totals.items() if name.startswith("jobs_")} == {
        "jobs_accepted": 6,
        "jobs_succeeded": 2,
        "jobs_failed": 2,
        "jobs_timed_out": 1,
        "jobs_canceled": 1,
    }
    assert (totals["failed"], totals["canceled"]) == (2, 2)


@pytest.mark.parametrize(
    ("seconds", "within"),
    [(-3600, "sent_le_0.1"), (35, "sent_le_120"), (700, "sent_le_3600"), (7200, "sent_le_inf")],
)
def test_how_long_it_took_is_counted(
    database: Database,
    outbox: Outbox,
    claims: Claims,
    counters: Counters,
    seconds: float,
    within: str,
) -> None:
    mine = claim_one(claims, accept(outbox))
    age(database, messages_created_at=seconds)
    claims.finish(mine, SENT)
    totals = counters.totals()
    assert {name: totals[name] for name in SENT_WITHIN if name in totals} == {within: 1}
    # A busy machine may take long between the two.
    most_ms = (max(0, seconds) + DEADLINE_SECONDS) * 1000
    assert max(0, seconds) * 1000 <= totals.get("sent_ms", 0) < most_ms


def test_minutes_are_told_apart_and_added_up_when_they_are_old(
    database: Database, counters: Counters
) -> None:
    tally(database, sent=2, failed=1)
    other = Database(database.url.render_as_string(hide_password=False))
    tally(other, sent=3)
    other.close()
    [(minute, number)] = counters.over_time(0)["sent"].items()
    assert number == 5
    assert counters.over_time(0, stretch=10)["sent"] == {minute // 10: 5}
    assert counters.over_time(minute + 1) == {}
    run(database, "/* test */ UPDATE tallies SET minute = minute - 2881 WHERE event = 'sent'")
    tally(database, sent=10)
    before = counters.totals()
    for _ in range(2):
        Retention(database, 30).purge()
        assert counters.totals() == before == {"sent": 15, "failed": 1}
    assert [*counters.over_time(0)["sent"].values()] == [10]
    rows = database.read(
        lambda connection: connection.exec_driver_sql(
            "SELECT event, source, count FROM tallies WHERE minute = 0"
        ).all()
    )
    assert [tuple(row) for row in rows] == [("sent", "", 5)]


# --- how much there is ---------------------------------------------------------------------------------------------


def test_what_waits_is_told_by_state_with_its_age(
    database: Database, outbox: Outbox, claims: Claims, counters: Counters
) -> None:
    assert counters.depths(LEASE_SECONDS).oldest_seconds == 0
    fresh, published, held, mine, deferred = (accept(outbox) for _ in range(5))
    Actions(database).hold(held)
    claim_one(claims, mine)
    claims.finish(claim_one(claims, deferred), DEFERRED)
    outbox.mark_published([published], seconds_ago=100)
    runs = job_worker(database, "worker-2")
    waiting(database, new())
    waiting(database, new())
    claim(runs)
    depths = counters.depths(LEASE_SECONDS)
    assert depths.messages == {
        "queued": 2,
        "sending": 1,
        "held": 1,
        "deferred": 1,
        "waiting": 2,
        "scheduled": 0,
    }
    assert depths.jobs == {"queued": 1, "running": 1}
    assert depths.workers == 2
    assert 100 <= depths.oldest_seconds < 400
    run(
        database,
        f"/* test */ UPDATE messages SET created_at = created_at - 500000 WHERE id = '{fresh}'",
    )
    assert 500 <= counters.depths(LEASE_SECONDS).oldest_seconds < 900


def test_what_waits_is_noted_once_a_minute_by_whoever_comes_first(
    database: Database, outbox: Outbox, counters: Counters
) -> None:
    before, samples = time.time(), [QueueHistory(database, LEASE_SECONDS) for _ in range(2)]
    accept(outbox)
    run(database, "/* test */ UPDATE messages SET created_at = created_at - 90000")
    samples[0].record()
    accept(outbox)
    samples[1].record()
    [sample] = samples[0].since(0)
    assert (
        before // 60 <= sample.minute <= time.time() // 60
        and sample.waiting == 1
        and 90_000 <= sample.oldest_ms < 600_000
    )
    run(database, f"/* test */ UPDATE samples SET minute = minute - {KEPT_MINUTES + 1}")
    samples[1].record()
    assert [one.waiting for one in samples[0].since(0)] == [1, 2]
    Retention(database, 30).purge()
    assert [one.waiting for one in samples[0].since(0)] == [2]


@pytest.mark.slow
def test_a_look_at_many_rows_is_short(database: Database, counters: Counters) -> None:
    fill(database)
    depths = counters.depths(LEASE_SECONDS)
    assert depths.messages == {
        "queued": 100,
        "deferred": 100,
        "held": 100,
        "sending": 0,
        "waiting": 0,
        "scheduled": 0,
    }


def test_each_number_is_read_from_a_small_index(sqlite_url: str) -> None:
    database = next(made(sqlite_url)).extensions["mailasync"].outbox.database
    seen: list[tuple[str, tuple[object, ...]]] = []
    event.listen(
        database.engine, "before_cursor_execute", lambda *told: seen.append((told[2], told[3]))
    )
    Counters(database).depths(LEASE_SECONDS)
    [(statement, values)] = seen
    plan = [
        row[3]
        for row in database.read(
            lambda connection: connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {statement}", values
            ).all()
        )
    ]
    looks = [step for step in plan if " messages" in step or " jobs" in step]
    assert len(looks) == 10
    assert all("INDEX messages_" in step or "INDEX jobs_" in step for step in looks), looks
    assert not any("messages_created" in step or "jobs_created" in step for step in looks), looks
    database.close()


def fill(database: Database) -> None:
    """Many messages, most of which were sent."""
    run(
        database,
        f"""/* test */ INSERT INTO messages
        (id, state, queue, message_id, created_at, published_at, attempt, uncertain_attempts, crashes)
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY})
        SELECT 'm' || CAST(i AS VARCHAR(20)), CASE i % 1000 WHEN 0 THEN 'queued' WHEN 1 THEN 'deferred' WHEN 2 THEN 'held' ELSE 'sent' END,
        'mail', 'x', i, i, 0, 0, 0 FROM n""",
    )
    run(database, "/* test */ ANALYZE messages")


# --- /metrics ------------------------------------------------------------------------------------------------------


def test_metrics_tell_counts_depths_and_the_rest(app: Flask, client: FlaskClient) -> None:
    database = database_of(app)
    claims = worker(database, "worker-1")
    for outcome in (SENT, SENT, REFUSED):
        claims.finish(claim_one(claims, accept(Outbox(database))), outcome)
    accept(Outbox(database))
    tally(database, accepted=1, sent_le_5=1, sent_ms=2500)
    found = told(client)
    assert found["mailasync_up"] == 1
    assert (found["mailasync_messages_sent_total"], found["mailasync_messages_failed_total"]) == (
        2,
        1,
    )
    assert (
        found["mailasync_messages_deferred_total"] == found["mailasync_nudges_recovered_total"] == 0
    )
    assert found["mailasync_messages_accepted_total"] >= 1
    assert found['mailasync_queue_depth{"state": "queued"}'] == 1
    assert found["mailasync_queue_oldest_seconds"] < 600
    assert found["mailasync_workers"] == 1
    assert found['mailasync_jobs{"state": "queued"}'] == found["mailasync_jobs_accepted_total"] == 0
    assert found['mailasync_account_state{"account": "default", "state": "ok"}'] == 1
    assert found['mailasync_account_state{"account": "default", "state": "halted"}'] == 0
    assert (
        found["mailasync_latency_seconds_count"]
        == found['mailasync_latency_seconds_bucket{"le": "+Inf"}']
        == 3
    )
    assert found["mailasync_latency_seconds_sum"] >= 2.5
    buckets = [
        found[f'mailasync_latency_seconds_bucket{{"le": "{float(seconds)}"}}']
        for seconds in LATENCY_SECONDS
    ]
    assert buckets == sorted(buckets) and buckets[3] == 3
    assert any(name.startswith("mailasync_build_info") for name in found)


def test_the_broker_is_told_when_it_was_looked_at(app: Flask, client: FlaskClient) -> None:
    publisher = app.extensions["mailasync"].publisher()
    publisher.down, publisher.queues["mail"] = None, (7, 2)
    found = told(client)
    assert [found[f"mailasync_broker_{name}"] for name in ("up", "nudges", "consumers")] == [
        1,
        7,
        2,
    ]
    publisher.down = (0.0, "it is gone")
    found = told(client)
    assert found["mailasync_broker_up"] == 0 and "mailasync_broker_nudges" not in found


def test_an_account_with_limits_tells_what_it_sent(sqlite_url: str) -> None:
    for app in made(sqlite_url, MAIL_USERNAME="alice@gmail.com", MAIL_PASSWORD="secret-of-alice"):
        database = database_of(app)
        run(
            database,
            "/* test */ INSERT INTO usage (account, bucket, messages, recipients) "
            "SELECT 'default', CAST((julianday('now') - 2440587.5) * 144 AS INTEGER), 3, 5",
        )
        found = told(app.test_client())
        assert found['mailasync_account_sent_24h{"account": "default", "of": "recipients"}'] == 5
        assert found['mailasync_account_budget_24h{"account": "default", "of": "messages"}'] == 500
        assert "secret-of-alice" not in app.test_client().get("/metrics").text


def test_metrics_speak_openmetrics_to_who_asks_for_it(client: FlaskClient) -> None:
    answer = client.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")
    assert client.get("/metrics").headers["Content-Type"].startswith("text/plain; version=")


def test_while_the_database_is_away_metrics_say_so(app: Flask, client: FlaskClient) -> None:
    database = database_of(app)
    tally(database, sent=1)
    run(database, "/* test */ ALTER TABLE tallies RENAME TO gone")
    with pytest.raises(StoreUnavailable):
        Counters(database).totals()
    found = told(client)
    assert found["mailasync_up"] == 0
    assert not any(name.startswith(("mailasync_messages", "mailasync_queue")) for name in found)
    run(database, "/* test */ ALTER TABLE gone RENAME TO tallies")
    assert told(client)["mailasync_messages_sent_total"] == 1


def test_metrics_are_for_who_has_a_key(sqlite_url: str) -> None:
    for app in made(sqlite_url, API_KEY="a-key-for-the-tests-of-metrics"):
        client = app.test_client()
        assert client.get("/metrics").status_code == 401
        assert (
            client.get(
                "/metrics", headers={"Authorization": "Bearer a-key-for-the-tests-of-metrics"}
            ).status_code
            == 200
        )


# --- the ids of requests -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["a", "01JD-x_y.z", "x" * 128])
def test_a_clients_id_comes_back(client: FlaskClient, given: str) -> None:
    assert client.get("/ping", headers={"X-Request-Id": given}).headers["X-Request-Id"] == given


@pytest.mark.parametrize(
    "given", ["", "x" * 129, "a b", "ä", "a\tb", "<script>", "bob@example.org", "x/y"]
)
def test_another_gets_a_new_one(client: FlaskClient, given: str) -> None:
    ids = {
        client.get("/ping", headers={"X-Request-Id": given}).headers["X-Request-Id"]
        for _ in range(2)
    }
    assert len(ids) == 2 and given not in ids and all(len(id) == 36 for id in ids)


def test_each_refusal_names_the_request(sqlite_url: str) -> None:
    for app in made(sqlite_url, API_KEY="a-key-for-the-tests-of-metrics"):
        client, key = app.test_client(), {"Authorization": "Bearer a-key-for-the-tests-of-metrics"}
        answers = [
            client.get("/metrics"),
            client.get("/nowhere", headers=key),
            client.post("/v1/messages", data=b"{", content_type="application/json", headers=key),
            client.put("/v1/messages", headers=key),
            client.post("/v1/messages", json={"to": "nobody"}, headers=key),
        ]
        assert [answer.status_code for answer in answers] == [401, 404, 400, 405, 422]
        ids = [answer.headers["X-Request-Id"] for answer in answers]
        assert [json.loads(answer.text)["request_id"] for answer in answers] == ids
        assert len(set(ids)) == 5


def test_lines_about_a_request_name_it_and_no_path(app: Flask, client: FlaskClient) -> None:
    logger = logging.getLogger("mailasync")
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logs.JSONFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        client.get("/v1/messages/some-id?to=bob@example.org", headers={"X-Request-Id": "first"})
        run(database_of(app), "/* test */ ALTER TABLE messages RENAME TO gone")
        client.get("/v1/messages/other-id", headers={"X-Request-Id": "second"})
        client.get("/of-bob@example.org")
        logger.info("between requests")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    lines = [json.loads(line) for line in handler.stream.getvalue().splitlines()]
    access = [line for line in lines if line["logger"] == "mailasync.access"]
    assert [(line["level"], line["message"].rpartition(" in ")[0]) for line in access] == [
        ("DEBUG", "GET /v1/messages/<id> 422"),
        ("INFO", "GET /v1/messages/<id> 503"),
        ("DEBUG", "GET (no route) 404"),
    ]
    assert [line.get("message_id") for line in access] == ["some-id", "other-id", None]
    assert [line["request_id"] for line in access][:2] == ["first", "second"]
    assert [line["request_id"] for line in lines if line["level"] == "ERROR"] == ["second"]
    assert "request_id" not in next(line for line in lines if line["message"] == "between requests")
    assert "bob" not in handler.stream.getvalue()
