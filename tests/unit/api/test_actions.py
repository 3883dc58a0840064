"""Cancel, hold, release, retry, reschedule, resend, and expiry: in every state, on both databases, over HTTP and by command."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event

from mailroom.model.attempt import Outcome
from mailroom.model.ids import new_id
from mailroom.model.message import FINAL, Address, Message, SendOptions, State
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import upgrade
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import JobEnd, Jobs, JobState, NewJob
from mailroom.store.maintenance.expiry import Expiry
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.messages.actions import Actions, UnknownMessage, WrongState
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import MessageDetails, NewMessage, Outbox
from mailroom.store.workers import Heartbeat
from tests.services import LEASE_SECONDS, wait_until
from tests.services.postgres import Postgres
from tests.services.processes import Service
from tests.services.schema import on_postgresql, on_sqlite
from tests.services.smtpd import ScriptedSMTP
from tests.unit.api.test_messages import MAIL
from tests.unit.store.test_outbox import run

HOUR_MS = 3_600_000
RECIPIENT = {
    State.SENT: "sent",
    State.FAILED: "failed",
    State.UNCERTAIN: "uncertain",
    State.CANCELED: "canceled",
    State.EXPIRED: "expired",
    State.DEFERRED: "deferred",
    State.SUPPRESSED: "suppressed",
    State.BOUNCED: "bounced",
    State.COMPLAINED: "complained",
}
#: The states in which each action can be done, and what the message and its recipient are then.
TABLE: dict[str, tuple[set[str], str, str]] = {
    "cancel": ({"waiting", "scheduled", "queued", "deferred", "held"}, "canceled", "canceled"),
    "hold": ({"scheduled", "queued", "deferred"}, "held", "queued"),
    "release": ({"held", "uncertain"}, "queued", "queued"),
    "retry": ({"scheduled", "deferred", "failed", "expired", "bounced"}, "queued", "queued"),
    "reschedule": ({"scheduled", "queued", "deferred"}, "scheduled", "queued"),
    "resend": (set(map(str, FINAL)), "", ""),
}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """An outbox that the tests of this module share; each makes messages of its own."""
    name = f"actions_{new_id().replace('-', '')}"
    cluster: Postgres | None = (
        None if request.param == "sqlite" else request.getfixturevalue("postgres")
    )
    if cluster:
        cluster.create_database(name)
    made = Database(
        cluster.url(name)
        if cluster
        else f"sqlite:///{tmp_path_factory.mktemp('actions')}/mailasync.sqlite3"
    )
    upgrade(made)
    yield made
    made.close()
    if cluster:
        cluster.drop_database(name)


@pytest.fixture
def outbox(database: Database) -> Outbox:
    return Outbox(database)


@pytest.fixture
def actions(database: Database) -> Actions:
    return Actions(database)


@pytest.fixture
def claims(database: Database) -> Claims:
    """Of a worker that is alive now: the tests before may have taken longer than its lease."""
    Heartbeat(database, "worker-1", "worker-1@host", ["mail"]).beat()
    return Claims(database, "worker-1", LEASE_SECONDS)


def accept(outbox: Outbox, *to: str, job: NewJob | None = None, **terms: Any) -> str:
    id = new_id()
    message = Message(
        to=tuple(Address(address) for address in to or ("bob@example.org",)),
        subject="Hello",
        text="Hi",
    )
    assert outbox.accept(
        NewMessage(
            id=id,
            message=message,
            message_id=f"{id}@example.org",
            job=job,
            terms=SendOptions(**terms),
        )
    )
    return id


def simulate() -> NewJob:
    return NewJob(
        id=new_id(), name="simulate", args={"seconds": 1}, queue="jobs", timeout_seconds=10
    )


def message_in(outbox: Outbox, state: State) -> str:
    """A message in this state, with the columns that go with it."""
    id = accept(outbox, job=simulate() if state is State.WAITING else None)
    run(
        outbox.database,
        "/* test */ UPDATE messages SET state = :state, attempt = 2, reason = 'before' WHERE id = :id",
        state=state.value,
        id=id,
    )
    run(
        outbox.database,
        "/* test */ UPDATE recipients SET state = :state WHERE id = :id",
        state=RECIPIENT.get(state, "queued"),
        id=id,
    )
    if state in (State.SCHEDULED, State.DEFERRED):
        run(
            outbox.database,
            "/* test */ UPDATE messages SET next_attempt_at = :at WHERE id = :id",
            at=now(outbox) + HOUR_MS,
            id=id,
        )
    if state in (State.SENDING, State.IN_DATA):
        run(
            outbox.database,
            "/* test */ UPDATE messages SET owner = 'worker-1' WHERE id = :id",
            id=id,
        )
    return id


def now(outbox: Outbox) -> int:
    return int(time.time() * 1000)


def details(outbox: Outbox, id: str) -> MessageDetails:
    found = outbox.details(id)
    assert found
    return found


def state(outbox: Outbox, id: str) -> str:
    return str(details(outbox, id).row["state"])


def do(actions: Actions, name: str, id: str) -> str:
    """Do it, and return the id of the message that it is about then."""
    new = new_id()
    if name == "resend":
        actions.resend(id, new, message_id=f"{new}@x")
        return new
    acts: dict[str, Callable[[str], None]] = {
        "cancel": actions.cancel,
        "hold": actions.hold,
        "release": actions.release,
        "retry": actions.retry,
        "reschedule": lambda id: actions.reschedule(id, delay_seconds=60),
    }
    acts[name](id)
    return id


# --- the table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("action", TABLE)
def test_each_action_in_each_state(
    outbox: Outbox, actions: Actions, action: str, before: State
) -> None:
    id = message_in(outbox, before)
    told = details(outbox, id)
    states, then, recipient = TABLE[action]
    if before not in states:
        with pytest.raises(WrongState, match=str(before)) as refused:
            do(actions, action, id)
        assert refused.value.state is before
        assert details(outbox, id).row == told.row
        assert (details(outbox, id).recipients, details(outbox, id).events) == (told.recipients, [])
        return
    about = do(actions, action, id)
    after = details(outbox, id)
    if action == "resend":
        assert (after.row, after.recipients) == (told.row, told.recipients)
        assert [(e.event, e.detail) for e in after.events] == [("resent", f"as {about}")]
        return
    assert (after.row["state"], after.recipients[0]["state"]) == (then, recipient)
    assert [e.event for e in after.events] == [
        {
            "cancel": "canceled",
            "hold": "held",
            "release": "released",
            "retry": "retried",
            "reschedule": "rescheduled",
        }[action]
    ]
    assert after.row["message_id"] == told.row["message_id"]
    assert (
        after.row["attempt"],
        after.row["owner"],
        after.row["published_at"],
        after.row["parked"],
    ) == (
        2,
        None,
        None,
        None,
    )
    assert (after.row["next_attempt_at"] is not None) == (action == "reschedule")
    assert after.row["excused"] == (2 if before in FINAL and then == "queued" else 0)


@pytest.mark.parametrize("action", TABLE)
def test_an_unknown_message_is_told(actions: Actions, action: str) -> None:
    with pytest.raises(UnknownMessage):
        do(actions, action, "nothing")


# --- against a worker ----------------------------------------------------------------------------------------------


def test_a_claim_and_a_cancel_at_the_same_time_never_both_win(
    outbox: Outbox, actions: Actions, claims: Claims
) -> None:
    ids = [accept(outbox) for _ in range(60)]

    def cancel(id: str) -> bool:
        try:
            actions.cancel(id)
        except WrongState:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        canceled = [threads.submit(cancel, id) for id in ids]
        claimed = [threads.submit(claims.claim, [id]) for id in reversed(ids)][::-1]
        for id, one, other in zip(ids, canceled, claimed, strict=True):
            assert one.result() != bool(other.result())
            assert state(outbox, id) == ("canceled" if one.result() else "sending")


def test_what_a_worker_has_cannot_be_canceled_and_goes_on(
    outbox: Outbox, actions: Actions, claims: Claims
) -> None:
    id = accept(outbox)
    [claim] = claims.claim([id])
    with pytest.raises(WrongState, match="got one that is sending"):
        actions.cancel(id)
    assert claims.fence(claim)
    with pytest.raises(WrongState, match="got one that is in_data"):
        actions.cancel(id)
    assert claims.finish(claim, Outcome(state=State.SENT, recipients={0: (State.SENT, "250 ok")}))


# --- what each does ------------------------------------------------------------------------------------------------


def test_a_retry_reaches_only_those_who_do_not_have_the_mail(
    outbox: Outbox, actions: Actions, claims: Claims
) -> None:
    id = accept(outbox, "bob@example.org", "carol@example.org")
    [claim] = claims.claim([id])
    claims.finish(
        claim,
        Outcome(
            state=State.SENT, recipients={0: (State.SENT, "250 ok"), 1: (State.FAILED, "550 no")}
        ),
    )
    actions.retry(id)
    [again] = claims.claim([id])
    assert (again.pending, again.sent_before, again.attempt, again.counted) == ((1,), True, 2, 1)
    claims.finish(again, Outcome(state=State.SENT, recipients={1: (State.SENT, "250 ok")}))
    with pytest.raises(WrongState, match="has no recipient to try again"):
        actions.retry(id)


def test_a_retry_of_a_deferred_mail_leaves_out_who_was_refused_for_good(
    outbox: Outbox, actions: Actions, claims: Claims
) -> None:
    id = accept(outbox, "bob@example.org", "carol@example.org")
    [claim] = claims.claim([id])
    claims.finish(
        claim,
        Outcome(
            state=State.DEFERRED,
            wait_seconds=60,
            recipients={0: (State.FAILED, "550"), 1: (State.DEFERRED, "450")},
        ),
    )
    actions.retry(id)
    [again] = claims.claim([id])
    assert (again.pending, again.counted) == ((1,), 2)


def test_a_retry_of_a_mail_that_killed_its_workers_is_claimed_alone_and_may_kill_again(
    outbox: Outbox, actions: Actions
) -> None:
    id = message_in(outbox, State.FAILED)
    run(outbox.database, "/* test */ UPDATE messages SET crashes = 6 WHERE id = :id", id=id)
    actions.retry(id)
    assert details(outbox, id).row["crashes"] == 1


def test_a_mail_whose_job_failed_is_not_retried_and_can_be_resent(
    outbox: Outbox, actions: Actions, database: Database
) -> None:
    job = simulate()
    id = accept(outbox, job=job)
    end_job(database, job, JobState.FAILED)
    assert state(outbox, id) == "failed"
    with pytest.raises(WrongState, match="its job did not succeed"):
        actions.retry(id)
    new = do(actions, "resend", id)
    assert (state(outbox, new), details(outbox, new).row["job_id"]) == ("queued", job.id)
    told = Jobs(database, 20).details(job.id)
    assert told and told.message and told.message["id"] == id
    assert outbox.message_of(job.id)


def test_what_cannot_be_accepted_has_nobody_to_be_sent_to(outbox: Outbox, actions: Actions) -> None:
    id = new_id()
    outbox.accept(
        NewMessage(id=id, message=Message(to=()), message_id="x@localhost", failed="no mail")
    )
    for action in ("retry", "resend"):
        with pytest.raises(WrongState, match="has no recip"):
            do(actions, action, id)


def test_a_canceled_mail_leaves_its_job_running(
    outbox: Outbox, actions: Actions, database: Database
) -> None:
    job = simulate()
    id = accept(outbox, job=job)
    actions.cancel(id)
    assert details(outbox, id).row["reason"] == "by request; its job goes on"
    assert Jobs(database, 20).state(job.id) is JobState.QUEUED
    again = do(actions, "resend", id)
    assert state(outbox, again) == "waiting"
    end_job(database, job, JobState.SUCCEEDED)
    assert (state(outbox, id), state(outbox, again)) == ("canceled", "queued")


def test_a_resent_mail_is_new_and_goes_to_all(
    outbox: Outbox, actions: Actions, claims: Claims
) -> None:
    id = accept(outbox, "bob@example.org", "carol@example.org", max_attempts=3, expires_in=HOUR_MS)
    [claim] = claims.claim([id])
    claims.finish(
        claim,
        Outcome(
            state=State.SENT, recipients={0: (State.SENT, "250 ok"), 1: (State.FAILED, "550 no")}
        ),
    )
    new = do(actions, "resend", id)
    row = details(outbox, new).row
    assert (row["resent_of"], row["message_id"], row["max_attempts"], row["expires_at"]) == (
        id,
        f"{new}@x",
        3,
        None,
    )
    [again] = claims.claim([new])
    assert (again.message, again.pending, again.attempt, again.sent_before) == (
        claim.message,
        (0, 1),
        1,
        False,
    )


def test_rescheduled_it_comes_due_at_its_time(
    outbox: Outbox, actions: Actions, database: Database
) -> None:
    sweeps = Sweeps(database, LEASE_SECONDS, "resend")
    later, soon = accept(outbox), accept(outbox)
    actions.reschedule(later, at=now(outbox) + HOUR_MS)
    actions.reschedule(soon, delay_seconds=0)
    due = [nudge.id for nudge in sweeps.due()]
    assert soon in due and later not in due
    assert (state(outbox, later), state(outbox, soon)) == ("scheduled", "queued")


def test_it_cannot_be_scheduled_for_after_it_expires(outbox: Outbox, actions: Actions) -> None:
    id = accept(outbox, expires_in=HOUR_MS)
    with pytest.raises(WrongState, match="it is queued, and expires before that time"):
        actions.reschedule(id, delay_seconds=3601)
    actions.reschedule(id, delay_seconds=3500)


@pytest.mark.parametrize("action", ["release", "retry", "resend"])
def test_without_its_content_nothing_can_be_sent(
    outbox: Outbox, actions: Actions, action: str
) -> None:
    id = message_in(outbox, State.UNCERTAIN if action == "release" else State.FAILED)
    run(outbox.database, "/* test */ DELETE FROM contents WHERE id = :id", id=id)
    with pytest.raises(WrongState, match="content"):
        do(actions, action, id)


def end_job(database: Database, job: NewJob, how: JobState) -> None:
    runs = JobClaims(database, "worker-1", LEASE_SECONDS)
    claim = next(
        claim for claim in runs.claim("jobs", ["simulate"], limit=1000) if claim.id == job.id
    )
    assert (
        runs.finish(claim, JobEnd(state=how, error=None if how is JobState.SUCCEEDED else "no"))
        is not None
    )


# --- expiry --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", State)
def test_a_message_that_still_waits_expires(
    outbox: Outbox, database: Database, before: State
) -> None:
    id = message_in(outbox, before)
    kept = details(outbox, id).recipients[0]["state"]
    run(
        database,
        "/* test */ UPDATE messages SET expires_at = :at WHERE id = :id",
        at=now(outbox) - 1000,
        id=id,
    )
    waits = before in (State.WAITING, State.SCHEDULED, State.QUEUED, State.DEFERRED, State.HELD)
    assert Expiry(database).expire() == int(waits)
    after = details(outbox, id)
    assert (after.row["state"], after.recipients[0]["state"]) == (
        ("expired", "expired") if waits else (before, kept)
    )
    assert [e.event for e in after.events] == (["expired"] if waits else [])
    assert (after.row["expires_at"] is None) == (before not in (State.SENDING, State.IN_DATA))
    assert after.row["next_attempt_at"] is None or not waits
    run(database, "/* test */ UPDATE messages SET expires_at = NULL WHERE id = :id", id=id)


def test_messages_expire_once_a_few_at_a_time(outbox: Outbox, database: Database) -> None:
    ids = [accept(outbox, expires_in=1) for _ in range(25)]
    kept = accept(outbox, expires_in=HOUR_MS)
    wait_until(
        lambda: now(outbox) - 10 > details(outbox, ids[-1]).row["expires_at"], what="they are past"
    )
    with ThreadPoolExecutor(4) as threads:
        counts = list(threads.map(lambda _: Expiry(database).expire(10), range(6)))
    while counts[-1]:
        counts.append(Expiry(database).expire(10))
    assert sum(counts) + Expiry(database).expire() == 25 and max(counts) == 10
    assert {state(outbox, id) for id in ids} == {"expired"}
    assert state(outbox, kept) == "queued"


def test_an_expired_mail_can_be_tried_again_and_expires_no_more(
    outbox: Outbox, actions: Actions, database: Database
) -> None:
    id = message_in(outbox, State.EXPIRED)
    run(
        database,
        "/* test */ UPDATE messages SET expires_at = :at WHERE id = :id",
        at=now(outbox) - 1000,
        id=id,
    )
    actions.retry(id)
    assert details(outbox, id).row["expires_at"] is None
    held = message_in(outbox, State.HELD)
    run(
        database,
        "/* test */ UPDATE messages SET expires_at = :at WHERE id = :id",
        at=now(outbox) - 1000,
        id=held,
    )
    actions.release(held)
    assert Expiry(database).expire() == 1
    assert (state(outbox, id), state(outbox, held)) == ("queued", "expired")


def test_every_statement_finds_its_rows_by_an_index(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    upgrade(database)
    seen: list[tuple[str, Any]] = []
    outbox, actions = Outbox(database), Actions(database)
    ids = [message_in(outbox, state) for state in State]
    event.listen(
        database.engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, parameters, context, many: seen.append(
            (statement, parameters)
        ),
    )
    for id in ids:
        for action in TABLE:
            with suppress(WrongState):
                do(actions, action, id)
    accept(outbox, expires_in=1)
    wait_until(lambda: Expiry(database).expire() == 1, what="it has expired")
    for statement, parameters in list(seen):  # Explaining is seen, too.
        if statement.split()[0] in ("SELECT", "UPDATE") or "SELECT" in statement:
            with database.engine.connect() as connection:
                plan = [
                    step[3]
                    for step in connection.exec_driver_sql(
                        f"EXPLAIN QUERY PLAN {statement}",
                        parameters[0] if isinstance(parameters, list) else parameters,
                    )
                ]
            few = (
                "CONSTANT",
                "webhooks",
                "json_each",
                "SCAN found VIRTUAL TABLE",
                "SCAN given VIRTUAL TABLE",
            )
            whole = [
                step
                for step in plan
                if step.startswith("SCAN") and not any(one in step for one in few)
            ]
            assert whole == [], (statement, plan)
    assert len(seen) > 200
    database.close()


# --- over HTTP -----------------------------------------------------------------------------------------------------


def post(client: FlaskClient, **fields: Any) -> str:
    answer: Any = client.post("/v1/messages", json=MAIL | fields)
    assert answer.status_code == 202, answer.json
    id: str = answer.json["id"]
    return id


def get(client: FlaskClient, id: str) -> Any:
    return client.get(f"/v1/messages/{id}").json


def ask(client: FlaskClient, id: str, action: str, body: Any = None, **headers: str) -> Any:
    return client.post(f"/v1/messages/{id}/{action}", json=body, headers=headers)


def test_the_answer_is_the_message_as_it_is_then(client: FlaskClient) -> None:
    id = post(client)
    answer = ask(client, id, "hold")
    assert (answer.status_code, answer.json) == (200, client.get(f"/v1/messages/{id}").json)
    assert (answer.json["status"], answer.json["why"]) == (
        "held",
        "held: a person stopped it, and a person lets it go",
    )
    assert ask(client, id, "release").json["status"] == "queued"
    assert ask(client, id, "reschedule", {"delay": 60}).json["why"].startswith("to be sent at 20")
    assert ask(client, id, "retry").json["status"] == "queued"
    assert ask(client, id, "cancel").json["why"] == "canceled: by request"
    again, told = ask(client, id, "resend"), get(client, id)
    assert (again.status_code, again.json["resent_of"], again.json["status"]) == (202, id, "queued")
    assert again.headers["Location"] == f"/v1/messages/{again.json['id']}"
    assert again.json["message_id"] != answer.json["message_id"]
    assert [step["event"] for step in told["timeline"]] == [
        "accepted",
        "held",
        "released",
        "rescheduled",
        "retried",
        "canceled",
        "resent",
    ]


def test_canceling_the_mail_of_a_job_says_that_the_job_goes_on(client: FlaskClient) -> None:
    answer: Any = client.post("/", json=MAIL)
    told = ask(client, answer.json["id"], "cancel").json
    assert told["why"] == "canceled: by request; its job goes on"
    assert told["job"]["status"] == "queued"


def test_a_wrong_state_is_409_and_an_unknown_id_404(client: FlaskClient) -> None:
    id = post(client)
    ask(client, id, "cancel")
    for action in ("cancel", "hold", "release", "retry", "reschedule"):
        answer = ask(client, id, action, {"delay": 60})
        told = json.loads(answer.data)
        assert (answer.status_code, answer.content_type, told["code"]) == (
            409,
            "application/problem+json",
            "conflict",
        )
        assert told["detail"].endswith("got one that is canceled")
    for action in TABLE:
        for unknown in ("nothing", "a%00b", "x" * 300):
            assert ask(client, unknown, action, {"delay": 60}).status_code == 404


@pytest.mark.parametrize(
    ("body", "pointer", "words"),
    [
        ({}, "#", "expected either `at` or `delay`, got none"),
        ({"delay": 5, "at": "2100-01-01T00:00:00Z"}, "#/at", "at most 366 days ahead"),
        ({"at": "2020-01-01T00:00:00Z"}, "#/at", "expected a time in the future"),
        ({"at": "2026-12-01T00:00:00"}, "#/at", "with its offset"),
        ({"at": "2026-13-01T00:00:00Z"}, "#/at", "expected a time that exists"),
        ({"at": 1800000000}, "#/at", "expected a time like"),
        ({"delay": -1}, "#/delay", "expected greater than or equal to 0, got -1"),
        ({"delay": "5"}, "#/delay", "expected a valid number"),
        ({"delay": True}, "#/delay", "expected a valid number"),
        ({"dely": 5}, "#/dely", "did you mean delay?"),
    ],
)
def test_a_time_that_is_none_is_refused_and_changes_nothing(
    client: FlaskClient, body: Any, pointer: str, words: str
) -> None:
    id = post(client)
    answer = ask(client, id, "reschedule", body)
    told = json.loads(answer.data)
    assert answer.status_code == 422
    assert [(error["pointer"], words in error["detail"]) for error in told["errors"]] == [
        (pointer, True)
    ], told
    assert client.get(f"/v1/messages/{id}").json["status"] == "queued"  # type: ignore[index]


def test_a_time_is_read_with_its_offset(client: FlaskClient) -> None:
    ahead = time.time() + 7200
    local = time.strftime("%Y-%m-%dT%H:%M:%S+02:00", time.gmtime(ahead + 7200))
    told = ask(client, post(client), "reschedule", {"at": local}).json
    assert told["next_attempt_at"] == time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(ahead))


def test_a_resend_with_a_key_makes_one(client: FlaskClient, app: Flask) -> None:
    id = post(client)
    refused = ask(client, id, "resend", **{"Idempotency-Key": "again"})
    assert refused.status_code == 409
    ask(client, id, "cancel")
    first, second = (ask(client, id, "resend", **{"Idempotency-Key": "again"}) for _ in range(2))
    assert (first.status_code, second.status_code, second.headers["Idempotency-Replayed"]) == (
        202,
        202,
        "true",
    )
    assert first.json["id"] == second.json["id"]


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        ({"expires_at": "2020-01-01T00:00:00Z"}, "#/expires_at", "expected a time in the future"),
        ({"expires_at": "tomorrow"}, "#/expires_at", "expected a time like"),
        ({"expires_in": 0}, "#/expires_in", "expected greater than 0"),
        ({"expires_in": 1e9}, "#/expires_in", "expected less than or equal to"),
        ({"max_attempts": 0}, "#/max_attempts", "expected greater than or equal to 1"),
        ({"max_attempts": 101}, "#/max_attempts", "expected less than or equal to 100"),
        ({"max_attempts": "3"}, "#/max_attempts", "expected a valid integer"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/jobs"])
def test_terms_that_are_none_are_refused(
    client: FlaskClient, path: str, fields: Any, pointer: str, words: str
) -> None:
    job = path == "/v1/jobs"
    body = (
        {"name": "simulate", "args": {"seconds": 1}, "notify": MAIL | fields}
        if job
        else MAIL | fields
    )
    told = json.loads(client.post(path, json=body).data)
    assert [(error["pointer"], words in error["detail"]) for error in told["errors"]] == [
        (pointer.replace("#", "#/notify") if job else pointer, True)
    ], told


def test_terms_are_kept_and_told(client: FlaskClient) -> None:
    told: Any = client.get(f"/v1/messages/{post(client, expires_in=3600, max_attempts=2)}").json
    created, expires = (
        time.mktime(time.strptime(told[name][:19], "%Y-%m-%dT%H:%M:%S"))
        for name in ("created_at", "expires_at")
    )
    assert (abs(expires - created - 3600) <= 1, told["max_attempts"]) == (True, 2)
    assert json.loads(
        client.post(
            "/v1/messages", json=MAIL | {"expires_in": 1, "expires_at": told["expires_at"]}
        ).data
    )["errors"] == [{"pointer": "#", "detail": "expected expires_at or expires_in, got both"}]
    job: Any = client.post(
        "/v1/jobs",
        json={"name": "simulate", "args": {"seconds": 1}, "notify": MAIL | {"expires_in": 60}},
    ).json
    told = client.get(f"/v1/messages/{job['message']['id']}").json
    assert told["expires_at"] is not None


# --- by command, with real processes -------------------------------------------------------------------------------


def flask(pair: Service, *arguments: str) -> tuple[int, str]:
    program = pair.run("-m", "flask", *arguments, name="flask")
    code = program.process.wait(60)
    return code, program.text().strip()


@on_postgresql
def test_commands_work_on_the_database_and_a_worker_follows(
    pair: Service, smtpd: ScriptedSMTP, tmp_path: Path
) -> None:
    # Given messages that no worker has seen
    pair.web()
    canceled, held, later, plain = (
        pair.post(subject=name) for name in ("canceled", "held", "later", "plain")
    )
    # When a person acts on them
    assert flask(pair, "cancel", canceled) == (0, f"{canceled}: canceled")
    assert flask(pair, "hold", held) == (0, f"{held}: held")
    code, said = flask(pair, "reschedule", later, "--delay", "3600")
    assert (code, said.startswith(f"{later}: scheduled for 20")) == (0, True)
    code, said = flask(pair, "retry", plain)
    assert (code, said) == (
        1,
        f"{plain}: queued; expected a message that is scheduled, deferred, failed, expired, sent or bounced, "
        "got one that is queued",
    )
    code, said = flask(pair, "cancel", canceled, "--json")
    assert (code, json.loads(said)["status"], json.loads(said)["id"]) == (1, "canceled", canceled)
    code, said = flask(pair, "cancel", "nothing")
    assert code == 1 and said.startswith("nothing: there is no message with this id in ")
    assert flask(pair, "reschedule", later)[0] == 2
    # Then a worker sends the one that nobody stopped, and each of the others when it is let go
    pair.worker()
    assert pair.final(plain)["status"] == "sent"
    assert [mail.rcpt_tos for mail in smtpd.messages] == [("bob@example.org",)]
    assert flask(pair, "release", held) == (0, f"{held}: queued")
    assert flask(pair, "retry", later) == (0, f"{later}: queued")
    code, said = flask(pair, "resend", canceled, "--json")
    again = json.loads(said)
    assert (code, again["status"], again["resent_of"]) == (0, "queued", canceled)
    for id in (held, later, again["id"]):
        assert smtpd.copies(pair.final(id)["message_id"]) == 1
    assert pair.message(canceled)["status"] == "canceled"
    assert len(smtpd.payloads) == 4


@on_sqlite
def test_a_failed_mail_that_is_retried_goes_with_the_same_message_id(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    pair.web()
    pair.worker()
    smtpd.reply("RCPT", "550 5.7.1 not wanted", times=1)
    id = pair.post()
    failed = pair.final(id)
    assert failed["status"] == "failed"
    status, told = pair.request("POST", f"/v1/messages/{id}/retry")
    assert (status, told["status"]) == (200, "queued")
    wait_until(lambda: pair.message(id)["status"] == "sent", what="it is sent")
    assert pair.message(id)["message_id"] == failed["message_id"]
    assert smtpd.copies(failed["message_id"]) == 1


@on_sqlite
def test_all_that_is_held_is_released_by_one_command(pair: Service) -> None:
    pair.web()
    ids = [pair.post(subject=str(number)) for number in range(5)]
    for id in ids[:3]:
        assert pair.request("POST", f"/v1/messages/{id}/hold")[0] == 200
    assert pair.request("POST", f"/v1/messages/{ids[0]}/cancel")[0] == 200
    assert flask(pair, "release", "--all") == (0, "released 2 messages")
    assert flask(pair, "release", "--all", "--json") == (0, '{"released": 0}')
    assert flask(pair, "release")[0] == 2
    assert [pair.message(id)["status"] for id in ids] == ["canceled", *["queued"] * 4]
