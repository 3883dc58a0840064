"""Who gets no mail any more: bounces, the check before an attempt, the list over HTTP and by commands, one-click unsubscribes."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import event, text

from mailroom.config.environment import load
from mailroom.config.settings import SettingsError
from mailroom.model.account import SendingLimit
from mailroom.model.message import Address, Message, SendOptions, State
from mailroom.smtp.poller import run
from mailroom.store.db.database import Database
from mailroom.store.db.schema import suppressions
from mailroom.store.events.webhooks import Webhooks
from mailroom.store.jobs.jobs import Jobs, NewJob
from mailroom.store.messages.actions import Actions
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.store.messages.suppressions import (
    REASON,
    REPLY,
    Reason,
    Suppression,
    Suppressions,
    Unsubscribes,
    drop_suppressed,
    state_at_acceptance,
    suppressed_among,
)
from tests.services.application import made
from tests.services.schema import on_sqlite
from tests.services.smtpd import ScriptedSMTP
from tests.unit.api.test_messages import MAIL
from tests.unit.delivery.test_delivery import BOB, CAROL, Office, people, told

PUBLIC_URL = "https://mail.example.org"
CLICK = {"List-Unsubscribe": "One-Click"}
DAVE = Address("Dave@Example.org")


@pytest.fixture
def office(database: Database, smtpd: ScriptedSMTP) -> Iterator[Office]:
    made = Office(database, smtpd)
    yield made
    made.delivery.close()


@pytest.fixture
def listed(database: Database) -> Suppressions:
    return Suppressions(database)


@pytest.fixture
def unsubscribes(database: Database) -> Unsubscribes:
    return Unsubscribes(database, PUBLIC_URL)


def state(office: Office, id: str) -> str:
    return str(office.details(id).row["state"])


# --- the list ------------------------------------------------------------------------------------------------------


def test_an_address_is_suppressed_until_it_is_removed_in_whatever_case(
    listed: Suppressions,
) -> None:
    assert listed.add("Bob@Example.org", detail="asked by phone")
    found = listed.find("bob@example.ORG")
    assert found and (found.address, found.reason, found.detail, found.message_id) == (
        "bob@example.org",
        "manual",
        "asked by phone",
        None,
    )
    assert listed.remove("BOB@example.org")
    assert not listed.remove("bob@example.org")
    assert listed.find("bob@example.org") is None


def test_who_is_there_already_stays_as_it_is(listed: Suppressions) -> None:
    listed.add("bob@example.org", detail="first")
    assert not listed.add("bob@example.org", detail="second")
    assert listed.add_all(["BOB@example.org", "carol@example.org", "Carol@example.org"]) == 1
    found = listed.find("bob@example.org")
    assert found and found.detail == "first"


def test_pages_go_through_all_newest_first_and_none_twice(
    listed: Suppressions, database: Database
) -> None:
    def insert(
        connection: Any,
    ) -> None:  # Ten of each moment, so that only the address tells them apart.
        connection.execute(
            suppressions.insert(),
            [
                {
                    "address": f"{n:02}@example.org",
                    "reason": Reason.BOUNCED if n % 3 else Reason.MANUAL,
                    "created_at": n // 10,
                }
                for n in range(50)
            ],
        )

    database.transaction(insert)
    for reason, count in (("", 50), ("bounced", 33), ("manual", 17), ("unsubscribed", 0)):
        seen: list[Suppression] = []
        while page := listed.page(
            limit=7, after=(seen[-1].created_at, seen[-1].address) if seen else None, reason=reason
        ):
            seen += page
        assert [one.address for one in seen] == sorted((one.address for one in seen), reverse=True)
        assert len({one.address for one in seen}) == count


def test_thousands_are_looked_up_by_one_statement_and_the_index(
    listed: Suppressions, database: Database
) -> None:
    listed.add_all([f"{n}@example.org" for n in range(1000)])
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    asked = [f"{n}@EXAMPLE.org" for n in range(990, 70_000)]
    found = database.read(lambda connection: suppressed_among(connection, asked))
    assert found == {f"{n}@example.org" for n in range(990, 1000)}
    assert database.read(lambda connection: suppressed_among(connection, [])) == set()
    assert len([statement for statement in statements if "suppressions" in statement]) == 1
    if database.engine.dialect.name == "sqlite":
        plan = database.read(
            lambda connection: connection.execute(
                text(f"EXPLAIN QUERY PLAN {statements[-1].replace('?', ':wanted')}"),
                {"wanted": "[]"},
            ).all()
        )
        assert any(
            "SEARCH suppressions USING PRIMARY KEY (address=?)" in row.detail for row in plan
        )


# --- bounces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        "550 5.1.1 no such user",
        "550 5.1.2 no such domain",
        "553 5.1.3 bad syntax",
        "551 5.1.6 moved",
        "556 5.1.10 null MX",
        "550-5.1.1 The account\r\n550 5.1.1 does not exist",
    ],
)
def test_a_bad_address_is_suppressed_with_the_servers_words(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions, reply: str
) -> None:
    smtpd.reply("RCPT", reply, match="Dave@")
    found = office.send(BOB, DAVE)
    suppressed = listed.find("dave@example.org")
    assert suppressed
    assert (suppressed.reason, suppressed.message_id) == (Reason.BOUNCED, found.row["id"])
    assert suppressed.detail == found.recipients[1]["reply"] and str(suppressed.detail).startswith(
        reply[:3]
    )
    assert listed.find("bob@example.org") is None
    assert (found.row["state"], found.recipients[1]["state"]) == ("sent", "failed")


@on_sqlite
@pytest.mark.parametrize(
    "reply",
    [
        "550 no such user",
        "550 5.2.1 disabled",
        "552 5.2.2 mailbox full",
        "554 5.7.1 blocked",
        "550 5.1.0 refused",
        "553 5.1.7 your address",
        "550 5.1.8 your domain",
        "550 5.1.11 what",
        "450 4.1.1 later",
        "450 5.1.1 later",
        "550 5.4.5 Daily user sending limit exceeded",
        "550 see 5.1.1",
        "550 15.1.1 no",
        "550 5.1.1.1 no",
        "550 5.10.1 no",
    ],
)
def test_what_says_nothing_of_the_address_suppresses_nobody(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions, reply: str
) -> None:
    smtpd.reply("RCPT", reply)
    office.send()
    assert listed.page(limit=10) == []


@pytest.mark.parametrize("phase", ["MAIL", "DATA", "DOT"])
def test_a_reply_that_names_no_recipient_suppresses_nobody(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions, phase: str
) -> None:
    smtpd.reply(phase, "550 5.1.1 no such user")
    assert office.send(BOB, CAROL).row["state"] == "failed"
    assert listed.page(limit=10) == []


@pytest.mark.parametrize("table", ["suppressions", "deliveries", "tallies", "usage"])
def test_what_goes_with_an_outcome_cannot_keep_it_from_being_recorded(
    office: Office, smtpd: ScriptedSMTP, database: Database, table: str
) -> None:
    smtpd.reply("RCPT", "550 5.1.1 no", match="carol@")
    Webhooks(database).create("https://hook.example.org/")
    claims = Claims(
        database, office.heartbeat.id, 20, (SendingLimit(account="default", messages=100),)
    )
    id = office.accept(BOB, CAROL)
    key = {
        "suppressions": "created_at",
        "deliveries": "number",
        "tallies": "count",
        "usage": "messages",
    }[table]
    office.sql(
        f"CREATE TRIGGER broken BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'broken'); END"
        if database.url.get_backend_name() == "sqlite"
        else f"ALTER TABLE {table} ADD CHECK ({key} < 0) NOT VALID"
    )
    office.delivery.recorder.claims = claims
    assert office.delivery.deliver([id])
    found = office.details(id)
    assert (found.row["state"], people(found)) == (
        "sent",
        [("sent", "250 2.0.0 ok"), ("failed", "550 5.1.1 no")],
    )
    assert told(found) == [("sent", 1)]
    assert not claims._in_hand


def test_a_bounce_is_noted_though_another_recipient_is_tried_again(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions
) -> None:
    smtpd.reply("RCPT", "550 5.1.1 no such user", match="bob@")
    smtpd.reply("RCPT", "450 4.2.1 later", match="carol@")
    found = office.send(BOB, CAROL)
    assert found.row["state"] == "deferred"
    assert [one.address for one in listed.page(limit=10)] == ["bob@example.org"]


def test_an_attempt_that_is_no_longer_ours_suppresses_nobody(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions
) -> None:
    id = office.accept(BOB)
    (claim,) = office.claims.claim([id])
    smtpd.reply("RCPT", "550 5.1.1 no such user")
    found = run(office.delivery.recorder.attempt(claim), lambda: True)
    assert found and found.bounced == {0}
    office.sql("UPDATE messages SET attempt = attempt + 1 WHERE id = :id", id=id)
    assert not office.claims.finish(claim, found)
    assert listed.page(limit=10) == []


def test_a_person_who_unsubscribed_stays_so_after_a_bounce_and_not_the_other_way(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions, unsubscribes: Unsubscribes
) -> None:
    smtpd.reply("RCPT", "550 5.1.1 no such user")
    first = office.send().row["id"]
    assert unsubscribes.unsubscribe(token(unsubscribes, first))
    found = listed.find("bob@example.org")
    assert found and (found.reason, found.detail) == (Reason.UNSUBSCRIBED, None)
    assert not listed.add("bob@example.org")
    assert listed.find("bob@example.org") == found


# --- before the attempt --------------------------------------------------------------------------------------------


def test_who_is_suppressed_after_acceptance_gets_no_mail(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions
) -> None:
    id, other = office.accept(DAVE), office.accept(CAROL)
    listed.add("dave@example.org")
    assert office.delivery.deliver([id, other])
    found = office.details(id)
    assert (found.row["state"], found.row["reason"], found.row["attempt"], found.row["owner"]) == (
        "suppressed",
        REASON,
        0,
        None,
    )
    assert people(found) == [("suppressed", REPLY)]
    assert told(found) == [("suppressed", None)]
    assert state(office, other) == "sent"
    assert [message.rcpt_tos for message in smtpd.messages] == [("carol@example.org",)]


def test_the_other_recipients_get_it(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions
) -> None:
    id = office.accept(BOB, DAVE, CAROL)
    listed.add("dave@example.org")
    assert office.delivery.deliver([id])
    assert people(office.details(id)) == [
        ("sent", "250 2.0.0 ok"),
        ("suppressed", REPLY),
        ("sent", "250 2.0.0 ok"),
    ]
    assert state(office, id) == "sent"
    assert [message.rcpt_tos for message in smtpd.messages] == [
        ("bob@example.org", "carol@example.org")
    ]


def test_many_that_were_suppressed_meanwhile_are_taken_out_together(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions
) -> None:
    ids = [office.accept(DAVE, CAROL), office.accept(DAVE), office.accept(BOB, CAROL)]
    listed.add_all(["dave@example.org", "carol@example.org"])
    assert office.delivery.deliver(ids)
    assert [state(office, id) for id in ids] == ["suppressed", "suppressed", "sent"]
    assert [message.rcpt_tos for message in smtpd.messages] == [("bob@example.org",)]


def test_what_was_suppressed_at_acceptance_does_not_come_due(
    office: Office, database: Database, listed: Suppressions
) -> None:
    listed.add("bob@example.org")
    Outbox(database).accept(
        NewMessage(
            id="later",
            message=Message(to=(BOB,)),
            message_id="later@example.org",
            terms=SendOptions(delay=1),
        )
    )
    assert (state(office, "later"), office.details("later").row["next_attempt_at"]) == (
        "suppressed",
        None,
    )


def test_a_job_that_fails_says_nothing_of_who_was_suppressed_before(
    office: Office, database: Database, listed: Suppressions
) -> None:
    listed.add("bob@example.org")
    job = NewJob(id="job-1", name="simulate", args={}, queue="jobs", timeout_seconds=1)
    Outbox(database).accept(
        NewMessage(
            id="both", message=Message(to=(BOB, CAROL)), message_id="both@example.org", job=job
        )
    )
    Jobs(database, 20).cancel("job-1")
    assert [person["state"] for person in office.details("both").recipients] == [
        "suppressed",
        "canceled",
    ]


@pytest.mark.parametrize(("reply", "end"), [("250 ok", "sent"), ("550 5.7.1 no", "failed")])
def test_a_message_ends_by_what_became_of_the_others(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions, reply: str, end: str
) -> None:
    smtpd.reply("RCPT", reply, match="bob@")
    smtpd.reply("RCPT", "450 4.2.1 later", match="carol@", times=None)
    found = office.send(BOB, CAROL)
    assert found.row["state"] == "deferred"
    listed.add("carol@example.org")
    again = office.again(found.row["id"])
    assert (again.row["state"], again.row["next_attempt_at"]) == (end, None)
    assert [person["state"] for person in again.recipients] == [end, "suppressed"]
    assert told(again)[-1] == (end, None)
    assert len(smtpd.messages) == (end == "sent")


def test_a_row_that_another_worker_has_is_left_alone(
    office: Office, listed: Suppressions, database: Database
) -> None:
    id = office.accept(BOB)
    assert office.claims.claim([id])
    listed.add("bob@example.org")

    def drop(connection: Any) -> None:
        drop_suppressed(connection, [id])

    database.transaction(drop)
    found = office.details(id)
    assert (found.row["state"], found.recipients[0]["state"]) == ("sending", "queued")


def test_a_claim_of_a_hundred_costs_two_statements_more(office: Office, database: Database) -> None:
    ids = [office.accept(Address(f"{n}@example.org")) for n in range(100)]
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    def drop(connection: Any) -> None:
        drop_suppressed(connection, ids)

    database.transaction(drop)
    assert [
        statement.split()[0]
        for statement in statements
        if not statement.startswith(("BEGIN", "SET"))
    ] == ["SELECT"] * 2
    if database.engine.dialect.name == "sqlite":
        (looked,) = (statement for statement in statements if "FROM recipients" in statement)
        plan = database.read(
            lambda connection: connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {looked}", ("[]", "", "")
            ).all()
        )
        assert [row.detail for row in plan] == [
            "SCAN given VIRTUAL TABLE INDEX 1:",
            "SEARCH recipients USING PRIMARY KEY (id=?)",
        ]


def test_sent_once_more_it_is_suppressed_again_until_the_address_is_let_go(
    office: Office, smtpd: ScriptedSMTP, listed: Suppressions, database: Database
) -> None:
    listed.add("bob@example.org")
    first = office.accept(BOB)
    assert office.delivery.deliver([first])
    for new, end in (("again", "suppressed"), ("at-last", "sent")):
        if end == "sent":
            listed.remove("bob@example.org")
        Actions(database).resend(first, new, message_id=f"{new}@example.org")
        assert office.delivery.deliver([new])
        assert state(office, new) == end
    assert len(smtpd.messages) == 1


@pytest.mark.parametrize(
    ("begins", "addresses", "message", "each"),
    [
        (State.QUEUED, ["bob@example.org"], State.QUEUED, [State.QUEUED]),
        (
            State.QUEUED,
            ["DAVE@example.org", "bob@example.org"],
            State.QUEUED,
            [State.SUPPRESSED, State.QUEUED],
        ),
        (State.WAITING, ["Dave@example.org"], State.SUPPRESSED, [State.SUPPRESSED]),
        (
            State.SCHEDULED,
            ["dave@example.org", "dave@example.ORG"],
            State.SUPPRESSED,
            [State.SUPPRESSED] * 2,
        ),
        (State.FAILED, ["dave@example.org"], State.FAILED, [State.FAILED]),
        (State.FAILED, [], State.FAILED, []),
        (State.QUEUED, [], State.QUEUED, []),
    ],
)
def test_states_at_acceptance(
    begins: State, addresses: list[str], message: State, each: list[State]
) -> None:
    assert state_at_acceptance(begins, addresses, {"dave@example.org"}) == (message, each)


# --- links ---------------------------------------------------------------------------------------------------------


def token(unsubscribes: Unsubscribes, id: str, position: int = 0) -> str:
    return unsubscribes.url(id, position).removeprefix(f"{PUBLIC_URL}/unsubscribe/")


def test_a_link_suppresses_its_recipient_and_is_told_once(
    office: Office, listed: Suppressions, unsubscribes: Unsubscribes
) -> None:
    id = office.send(BOB, DAVE).row["id"]
    for _ in range(2):
        assert unsubscribes.unsubscribe(token(unsubscribes, id, 1))
    found = listed.find("dave@example.org")
    assert found and (found.reason, found.message_id) == (Reason.UNSUBSCRIBED, id)
    assert listed.find("bob@example.org") is None
    assert told(office.details(id)) == [("sent", 1), ("unsubscribed", None)]
    assert office.send(DAVE).row["state"] == "suppressed"


def test_a_link_is_fit_for_a_url_whatever_the_id(unsubscribes: Unsubscribes) -> None:
    for id in ("~" * 200, "a b/c?d#e&f", "x"):
        assert re.fullmatch(
            r"https://mail\.example\.org/unsubscribe/[A-Za-z0-9_.-]+", unsubscribes.url(id, 99)
        )


def test_no_other_link_is_known(
    office: Office, unsubscribes: Unsubscribes, listed: Suppressions, tmp_path: Any
) -> None:
    id = office.accept(BOB, CAROL)
    good = token(unsubscribes, id)
    said, mac = good.rsplit(".", 1)
    first = "A" if mac[0] != "A" else "B"
    wrong = [
        "",
        ".",
        "..",
        "...",
        said,
        f"{said}.",
        f".{mac}",
        f"{said}.{mac[:-1]}",
        f"{said}.{first}{mac[1:]}",
        f"{said}={mac}",
        f"{said[:-1]}1.{mac}",
        f"{said}0.{mac}",
        f" {good}",
        f"{good}=",
        f"{said}.{mac.swapcase()}",
        "ü.0.ü",
        "\0.0.\0",
        "A" * 10_000,
        token(unsubscribes, id, 2),
        token(unsubscribes, "another"),
        token(Unsubscribes(office.database, ""), id, -1),
    ]
    for one in wrong:
        assert not unsubscribes.is_known(one)
        assert not unsubscribes.unsubscribe(one)
    assert unsubscribes.is_known(good)
    assert listed.page(limit=10) == []


def test_every_process_makes_the_same_links_also_when_all_begin_at_once(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    processes = [Database(url) for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda one: Unsubscribes(one, PUBLIC_URL).url("id", 0), processes))
    for one in processes:
        one.close()
    assert len(set(found)) == 1
    assert Unsubscribes(database, f"{PUBLIC_URL}/").url("id", 0) == found[0]


def test_the_secret_is_shown_by_no_repr(unsubscribes: Unsubscribes) -> None:
    unsubscribes.url("id", 0)
    assert unsubscribes._key.hex() not in repr(unsubscribes) and repr(
        unsubscribes._key
    ) not in repr(unsubscribes)


# --- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    yield from made(database_url, PUBLIC_URL=PUBLIC_URL)


def link(app: Flask, id: str, position: int = 0) -> str:
    url: str = app.extensions["mailasync"].unsubscribes.url(id, position)
    return url.removeprefix(PUBLIC_URL)


def test_one_is_added_shown_and_removed(client: FlaskClient) -> None:
    answer = client.post(
        "/v1/suppressions", json={"address": "Bob <Bob@Example.org>", "detail": "by phone"}
    )
    assert (answer.status_code, answer.headers["Location"]) == (
        201,
        "/v1/suppressions/bob@example.org",
    )
    assert answer.json and answer.json["created_at"].endswith("Z")
    assert answer.json | {"created_at": ""} == {
        "address": "bob@example.org",
        "reason": "manual",
        "detail": "by phone",
        "message": None,
        "created_at": "",
    }
    assert client.get("/v1/suppressions/BOB@example.org").json == answer.json
    assert client.post("/v1/suppressions", json={"address": "bob@example.org"}).json == answer.json
    assert client.delete("/v1/suppressions/bob@example.org").status_code == 204
    for gone in (
        client.get("/v1/suppressions/bob@example.org"),
        client.delete("/v1/suppressions/bob@example.org"),
    ):
        assert (gone.status_code, gone.content_type) == (404, "application/problem+json")


@on_sqlite
@pytest.mark.parametrize(
    "address",
    [
        "a/b=c@example.org",
        "a+b?c#d%e@example.org",
        "bob@xn--mller-kva.example",
        "bob@müller.example",
        '"odd user/?"@example.org',
        "abc..@example.org",
    ],
)
def test_any_address_has_a_url(client: FlaskClient, address: str) -> None:
    where = client.post("/v1/suppressions", json={"address": address}).headers["Location"]
    assert client.get(where).status_code == 200
    assert client.delete(where).status_code == 204


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("abc.@docomo.ne.jp", '"ABC."@docomo.ne.jp'),
        ('"abc..d"@docomo.ne.jp', "Abc..d@docomo.ne.jp"),
        ('"bob"@example.org', "Bob@example.org"),
    ],
)
def test_an_address_is_one_with_quotes_or_without(
    app: Flask, client: FlaskClient, one: str, other: str
) -> None:
    for given, again in ((one, other), (other, one)):
        assert client.post("/v1/suppressions", json={"address": given}).status_code == 201
        assert client.post("/v1/suppressions", json={"addresses": [again]}).json == {
            "added": 0,
            "known": 1,
        }
        assert status(client, again) == "suppressed"
        assert flask(app, "add", again)[1].endswith("; was so before")
        assert client.get(f"/v1/suppressions/{again}").status_code == 200
        assert flask(app, "remove", again)[0] == 0
        assert status(client, given) == "queued"


def status(client: FlaskClient, to: str) -> object:
    """Send a mail; return how it stands."""
    where = client.post("/v1/messages", json={"to": to}).headers["Location"]
    return (client.get(where).json or {})["status"]


def test_many_are_added_in_one_request(client: FlaskClient) -> None:
    addresses = [f"{n}@example.org" for n in range(1000)]
    client.post("/v1/suppressions", json={"address": "5@example.org"})
    answer = client.post("/v1/suppressions", json={"addresses": [*addresses[:-1], "1@EXAMPLE.org"]})
    assert (answer.status_code, answer.json) == (201, {"added": 998, "known": 1})
    assert client.post("/v1/suppressions", json={"addresses": addresses}).json == {
        "added": 1,
        "known": 999,
    }


def test_pages_over_http(client: FlaskClient) -> None:
    client.post(
        "/v1/suppressions", json={"addresses": [f"a+{n:02}@example.org" for n in range(45)]}
    )
    seen: list[str] = []
    query = "?limit=20"
    while query:
        page = client.get(f"/v1/suppressions{query}").json
        assert page and page["has_more"] == (page["next"] is not None)
        seen += [one["address"] for one in page["data"]]
        query = f"?limit=20&after={page['next']}" if page["next"] else ""
    assert len(seen) == len({*seen}) == 45
    assert client.get("/v1/suppressions?reason=bounced").json == {
        "data": [],
        "has_more": False,
        "next": None,
    }


@on_sqlite
@pytest.mark.parametrize(
    ("body", "pointer", "detail"),
    [
        ({}, "#", "expected either `address` or `addresses`, got none"),
        ({"address": "bob@example.org", "addresses": ["bob@example.org"]}, "#", "got both"),
        ({"address": "nobody"}, "#/address", 'expected an address, got "nobody"'),
        (
            {"addresses": ["bob@example.org", "nobody"]},
            "#/addresses/1",
            'expected an address, got "nobody"',
        ),
        ({"addresses": []}, "#/addresses", "expected 1 to 1000 addresses, got 0"),
        (
            {"addresses": ["bob@example.org"] * 1001},
            "#/addresses",
            "expected 1 to 1000 addresses, got 1001",
        ),
        ({"address": "bob@example.org", "detail": "a\nb"}, "#/detail", "expected one line"),
        ({"address": "bob@example.org", "detail": "a\0b"}, "#/detail", "expected one line"),
        (
            {"address": "bob@example.org", "detail": "x" * 501},
            "#/detail",
            "expected at most 500 characters, got 501",
        ),
        (
            {"address": "bob@example.org", "detail": "\ud800"},
            "#/detail",
            "half of a surrogate pair",
        ),
        ({"address": 17}, "#/address", "expected a string, got 17"),
        ({"adress": "bob@example.org"}, "#/adress", "did you mean address?"),
    ],
)
def test_what_cannot_be_added_is_refused_with_a_reason(
    client: FlaskClient, body: Any, pointer: str, detail: str
) -> None:
    answer = client.post("/v1/suppressions", data=json.dumps(body), content_type="application/json")
    wrong = json.loads(answer.data)["errors"][0]
    assert (answer.status_code, wrong["pointer"]) == (422, pointer)
    assert detail in wrong["detail"]
    assert client.get("/v1/suppressions").json["data"] == []  # type: ignore[index]


@on_sqlite
@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=%C2%B2",
        "after=x",
        "after=%C3%BC",
        "after=MQ",
        "after=MSAA",
        "after=OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5OSBh",
        "reason=x",
        "reason=%00",
    ],
)
def test_a_query_of_another_form_is_422(client: FlaskClient, query: str) -> None:
    answer = client.get(f"/v1/suppressions?{query}")
    assert answer.status_code == (200 if query == "after=MQ" else 422)


@on_sqlite
@pytest.mark.parametrize(
    "path", ["nobody", "%00@example.org", "a%0Ab@example.org", "%FF", "x" * 5000]
)
def test_what_is_no_address_is_404(client: FlaskClient, path: str) -> None:
    assert client.get(f"/v1/suppressions/{path}").status_code == 404
    assert client.delete(f"/v1/suppressions/{path}").status_code == 404


# --- one click -----------------------------------------------------------------------------------------------------


def test_a_page_asks_and_only_its_button_unsubscribes(app: Flask, client: FlaskClient) -> None:
    where = link(app, client.post("/v1/messages", json=MAIL).json["id"])  # type: ignore[index]
    page = client.get(where)
    assert (page.status_code, page.content_type) == (200, "text/html; charset=utf-8")
    assert '<form method="post"><button name="List-Unsubscribe" value="One-Click">' in page.text
    assert "bob" not in page.text and "<script" not in page.text
    policy = page.headers["Content-Security-Policy"]
    assert (
        policy.startswith("default-src 'none'; style-src 'sha256-")
        and "unsafe" not in policy
        and "form-action 'self'" in policy
    )
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert client.head(where).status_code == 200
    assert client.get("/v1/suppressions").json["data"] == []  # type: ignore[index]
    done = client.post(where, data=CLICK)
    assert (done.status_code, "Set-Cookie" in done.headers) == (200, False)
    found = client.get("/v1/suppressions/bob@example.org").json
    assert found and found["reason"] == "unsubscribed"


def test_both_forms_of_rfc_8058_are_taken_twice_and_nothing_else(
    app: Flask, client: FlaskClient
) -> None:
    where = link(app, client.post("/v1/messages", json=MAIL).json["id"])  # type: ignore[index]
    many = "&".join(f"a{n}=b" for n in range(5000)) + "&List-Unsubscribe=One-Click"
    for body in ("", "List-Unsubscribe=no", many):
        assert (
            client.post(
                where, data=body, content_type="application/x-www-form-urlencoded"
            ).status_code
            == 400
        )
    assert client.post(where, json=CLICK).status_code == 400
    assert client.get("/v1/suppressions/bob@example.org").status_code == 404
    for kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        assert client.post(where, data=CLICK, content_type=kind).status_code == 200
    assert client.get("/v1/suppressions/bob@example.org").status_code == 200


def test_it_is_open_from_anywhere_and_the_list_is_not(database_url: str) -> None:
    for app in made(database_url, PUBLIC_URL=PUBLIC_URL, API_KEY="secret"):
        client = app.test_client()
        key = {"Authorization": "Bearer secret"}
        where = link(app, client.post("/v1/messages", json=MAIL, headers=key).json["id"])  # type: ignore[index]
        foreign = {
            "Host": "mail.example.org",
            "X-Forwarded-For": "192.0.2.1",
            "Origin": "https://webmail.example",
        }
        assert client.get(where, headers=foreign).status_code == 200
        assert client.post(where, data=CLICK, headers=foreign).status_code == 200
        for method, path in (
            ("GET", ""),
            ("POST", ""),
            ("GET", "/bob@example.org"),
            ("DELETE", "/bob@example.org"),
        ):
            assert client.open(f"/v1/suppressions{path}", method=method).status_code == 401
        assert client.get("/unsubscribe/../v1/suppressions").status_code in (401, 404)
        assert client.get("/v1/suppressions/bob@example.org", headers=key).status_code == 200


def test_every_wrong_link_gets_the_same_answer(app: Flask, client: FlaskClient) -> None:
    id = client.post("/v1/messages", json=MAIL).json["id"]  # type: ignore[index]
    good = link(app, id)
    client.post(good, data=CLICK)
    wrong = [
        f"{good[:-1]}",
        link(app, "another"),
        link(app, id, 1),
        "/unsubscribe/x",
        "/unsubscribe/%00",
        "/unsubscribe/%FF",
        "/unsubscribe/" + "x" * 5000,
    ]
    asked: list[Any] = [("GET", None), ("POST", CLICK), ("POST", {})]
    answers = [
        client.open(path, method=method, data=data) for path in wrong for method, data in asked
    ]
    for answer in answers:
        answer.headers.pop("X-Request-Id", None)
    assert {(answer.status_code, answer.data, str(answer.headers)) for answer in answers} == {
        (404, answers[0].data, str(answers[0].headers))
    }


def test_a_public_url_that_nobody_could_follow_stops_the_start() -> None:
    for good in (
        "",
        PUBLIC_URL,
        "https://example.org:8443/mail/",
        "http://127.0.0.1:5000",
        "http://[::1]:5000",
        "http://localhost",
    ):
        assert good == load({"MAILASYNC_ENV_FILE": "", "MAILASYNC_PUBLIC_URL": good}).PUBLIC_URL
    for wrong in (
        "example.org",
        "http://example.org",
        "https://",
        "ftp://example.org",
        "https://example.org/?a=b",
        "https://a@example.org",
        "https://example.org/>\r\nX: y",
        "https://[bad",
        "https://example.org/#x",
        " https://example.org",
    ):
        with pytest.raises(
            SettingsError, match="MAILASYNC_PUBLIC_URL: expected an address like https://"
        ):
            load({"MAILASYNC_ENV_FILE": "", "MAILASYNC_PUBLIC_URL": wrong})


# --- commands ------------------------------------------------------------------------------------------------------


def flask(app: Flask, *arguments: str) -> tuple[int, str]:
    done = app.test_cli_runner().invoke(args=["suppressions", *arguments])
    return done.exit_code, done.output.strip()


def test_commands_add_list_and_remove(app: Flask, client: FlaskClient) -> None:
    code, said = flask(app, "add", "Bob@Example.org", "--detail", "by phone")
    assert code == 0 and re.fullmatch(r"bob@example\.org: manual since \S+Z: by phone", said)
    assert flask(app, "add", "bob@example.org") == (0, f"{said}; was so before")
    code, line = flask(app, "add", "carol@example.org", "--json")
    assert (code, json.loads(line)["address"]) == (0, "carol@example.org")
    listed = [
        line.split(":")[0] for line in flask(app, "list", "--reason", "manual")[1].splitlines()
    ]
    assert listed == ["carol@example.org", "bob@example.org"]
    shown = [json.loads(line) for line in flask(app, "list", "--json")[1].splitlines()]
    assert shown[-1] | {"created_at": ""} == {
        "address": "bob@example.org",
        "reason": "manual",
        "detail": "by phone",
        "message": None,
        "created_at": "",
    }
    assert flask(app, "list", "--reason", "bounced") == (0, "")
    assert flask(app, "remove", "BOB@example.org") == (0, "bob@example.org: gets mail again")
    assert flask(app, "remove", "bob@example.org") == (1, "bob@example.org: was not suppressed")
    assert flask(app, "remove", "carol@example.org", "--json") == (
        0,
        '{"address": "carol@example.org", "removed": true}',
    )
    assert flask(app, "add", "nobody")[0] == 2


def test_a_long_list_is_listed_whole(app: Flask) -> None:
    Suppressions(app.extensions["mailasync"].outbox.database).add_all(
        [f"{n}@example.org" for n in range(1200)]
    )
    assert len({*flask(app, "list")[1].splitlines()}) == 1200
