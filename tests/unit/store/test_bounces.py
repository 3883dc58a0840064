"""Reports of bounces, delays and complaints, applied to the mails that they are about; on both databases."""

from dataclasses import replace

import pytest
from sqlalchemy import Connection, text

from mailroom.model.account import SendingLimit
from mailroom.model.attempt import Outcome
from mailroom.model.errors import StillSending
from mailroom.model.message import State
from mailroom.model.report import Report, ReportedRecipient, ReportKind
from mailroom.store.accounts import Accounts
from mailroom.store.db.database import Database
from mailroom.store.events.counters import Counters
from mailroom.store.mailboxes import Mailboxes
from mailroom.store.messages.actions import Actions
from mailroom.store.messages.bounces import IGNORED, Bounces
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.lookups import LookUps
from mailroom.store.messages.suppressions import Suppressions
from mailroom.store.workers import Heartbeat
from tests.unit.store.test_lookups import (
    LEASE_SECONDS,
    SENT,
    accept,
    claim,
    details,
    events,
    judge,
    lose_reply,
    lose_worker,
    make_due,
    states,
)

BOB, EVE, KIM = "bob@example.org", "eve@example.org", "kim@example.org"


@pytest.fixture
def claims(database: Database) -> Claims:
    Heartbeat(database, "worker-1", "worker-1@host", ["mail"]).beat()
    return Claims(database, "worker-1", LEASE_SECONDS)


@pytest.fixture
def bounces(database: Database) -> Bounces:
    return Bounces(database)


def send(database: Database, claims: Claims, *to: str) -> str:
    id = accept(database, *to)
    attempt = claim(claims, id)
    replies = dict.fromkeys(attempt.pending, (State.SENT, "250 ok"))
    sent = Outcome(state=State.SENT, reason="250 ok", recipients=replies)
    assert claims.fence(attempt) and claims.finish(attempt, sent)
    return id


def report(id: str, *about: ReportedRecipient) -> Report:
    return Report(message_ids=(f"{id}@example.org",), recipients=about)


def failed(
    *addresses: str, status: str = "5.1.1", words: str = "550 5.1.1 unknown"
) -> ReportedRecipient:
    return ReportedRecipient(
        kind=ReportKind.FAILED, addresses=addresses, status=status, words=words
    )


def of_kind(kind: ReportKind, *addresses: str) -> ReportedRecipient:
    return replace(failed(*addresses), kind=kind, words=f"a {kind}")


def ignored(database: Database) -> float:
    return Counters(database).totals().get(IGNORED, 0)


def test_a_bounce_reaches_its_recipient_and_the_suppressions(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    id = send(database, claims, BOB, EVE, KIM)
    assert bounces.apply(report(id, failed("EVE@Example.org")))
    assert states(database, id) == ("sent", ["sent", "bounced", "sent"])
    assert events(database, id) == ["sent", "bounced"]
    assert details(database, id).recipients[1]["reply"] == "550 5.1.1 unknown"
    suppression = Suppressions(database).find(EVE)
    assert suppression and (suppression.reason, suppression.message_id) == ("bounced", id)
    # A second report changes nothing.
    assert not bounces.apply(report(id, failed(EVE)))
    assert events(database, id) == ["sent", "bounced"]
    # And a retry reaches nobody but the one.
    Suppressions(database).remove(EVE)
    Actions(database).retry(id)
    again = claim(claims, id)
    assert (again.pending, again.taken_before) == ((1,), True)


def test_a_full_mailbox_is_no_bad_address(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    id = send(database, claims, BOB)
    assert bounces.apply(report(id, failed(BOB, status="5.2.2", words="552 5.2.2 full")))
    assert states(database, id) == ("bounced", ["bounced"])
    assert Suppressions(database).find(BOB) is None


def test_a_delay_is_told_and_changes_nothing(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    id = send(database, claims, BOB)
    assert bounces.apply(report(id, of_kind(ReportKind.DELAYED, BOB)))
    assert states(database, id) == ("sent", ["sent"])
    assert events(database, id) == ["sent", "delayed"]


@pytest.mark.parametrize("addresses", [(BOB,), ()])
def test_a_complaint_suppresses(
    database: Database, claims: Claims, bounces: Bounces, addresses: tuple[str, ...]
) -> None:
    id = send(database, claims, BOB)
    assert bounces.apply(report(id, of_kind(ReportKind.COMPLAINT, *addresses)))
    assert states(database, id) == ("complained", ["complained"])
    suppression = Suppressions(database).find(BOB)
    assert suppression and suppression.reason == "complained"


def test_a_limit_parks_the_account_and_queues_the_mail_again(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    accounts = Accounts(database, [SendingLimit(account="default")])
    accounts.register()
    id = send(database, claims, BOB)
    assert bounces.apply(report(id, of_kind(ReportKind.LIMIT, BOB)))
    assert states(database, id) == ("deferred", ["queued"])
    [account] = accounts.details()
    assert (account["state"], account["reason"]) == ("parked", "a limit")
    row = details(database, id).row
    assert (row["parked"], row["next_attempt_at"]) == (1, account["until"])
    # Nothing that is lost now may be taken for sent by the copy that there is.
    accounts.try_now("default")
    make_due(database)
    assert LookUps(database, "default").due() == []


@pytest.mark.parametrize(
    "message_ids", [("nobody@example.org",), (), ("%@example.org", "' OR 1=1@example.org")]
)
def test_a_report_about_no_mail_of_ours_changes_nothing_and_is_counted(
    database: Database, claims: Claims, bounces: Bounces, message_ids: tuple[str, ...]
) -> None:
    id = send(database, claims, BOB)
    forged = Report(message_ids=message_ids, recipients=(failed(BOB),))
    assert not bounces.apply(forged)
    assert states(database, id) == ("sent", ["sent"])
    assert ignored(database) == 1


@pytest.mark.parametrize("addresses", [("mallory@example.org",), ()])
def test_a_report_about_somebody_else_changes_nothing(
    database: Database, claims: Claims, bounces: Bounces, addresses: tuple[str, ...]
) -> None:
    id = send(database, claims, BOB, EVE)
    assert not bounces.apply(report(id, failed(*addresses)))
    assert states(database, id) == ("sent", ["sent", "sent"])


def test_the_local_part_alone_is_not_enough(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    id = send(database, claims, BOB)
    other = Report(message_ids=(f"{id}@example.net",), recipients=(failed(BOB),))
    assert not bounces.apply(other)


def test_a_bounce_of_a_mail_that_is_looked_for_settles_it(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    id = lose_reply(database, claims, judge=judge())
    assert bounces.apply(report(id, failed(BOB)))
    assert states(database, id) == ("bounced", ["bounced"])
    make_due(database)
    assert LookUps(database, "default").due() == []


def test_a_mail_is_found_by_a_message_id_that_is_not_made_of_its_id(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    id = send(database, claims, BOB)

    def rename(connection: Connection) -> None:
        connection.execute(text("/* test */ UPDATE messages SET message_id = 'other@example.org'"))

    database.transaction(rename)
    assert bounces.apply(Report(message_ids=("other@example.org",), recipients=(failed(BOB),)))
    assert states(database, id) == ("bounced", ["bounced"])


def test_one_worker_reads_a_mailbox_until_it_dies(database: Database) -> None:
    for name in ("one", "two"):
        Heartbeat(database, name, name, ["mail"]).beat()
    one, two = (Mailboxes(database, name, LEASE_SECONDS) for name in ("one", "two"))
    assert one.claim("ops")
    assert one.note_read("ops", uid_validity=7, uid=12)
    assert two.claim("ops") is None
    assert not two.note_read("ops", uid_validity=7, uid=1)
    assert two.claim("other")
    lose_worker(database)
    Heartbeat(database, "two", "two", ["mail"]).beat()
    position = two.claim("ops")
    assert position and (position.uid_validity, position.uid) == (7, 12)
    assert not one.release("ops")
    assert two.release("ops")


@pytest.mark.parametrize("kind", [ReportKind.FAILED, ReportKind.DELAYED, ReportKind.LIMIT])
def test_a_report_that_is_read_again_changes_nothing(
    database: Database, claims: Claims, bounces: Bounces, kind: ReportKind
) -> None:
    # Given a report after which the mail was sent once more
    id = send(database, claims, BOB)
    about = replace(of_kind(kind, BOB), status="5.2.2")
    first = replace(report(id, about), digest="1")
    assert bounces.apply(first)
    send_again(database, claims, id, kind)
    told = events(database, id)
    # When its mail is read again, as all mails got new numbers
    assert not bounces.apply(first)
    # Then it is known, and another one in the same words is not
    assert (states(database, id), events(database, id)) == (("sent", ["sent"]), told)
    assert bounces.apply(replace(first, digest="2"))


def send_again(database: Database, claims: Claims, id: str, kind: ReportKind) -> None:
    if kind is ReportKind.DELAYED:
        return
    Actions(database).retry(id)
    attempt = claim(claims, id)
    sent = Outcome(state=State.SENT, reason="250 ok", recipients={0: (State.SENT, "250 ok")})
    assert claims.fence(attempt) and claims.finish(attempt, sent)


def test_a_report_that_comes_before_the_reply_is_applied_after_it(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    id = accept(database, BOB)
    attempt = claim(claims, id)
    assert claims.fence(attempt)
    early = report(id, failed(BOB))
    with pytest.raises(StillSending):
        bounces.apply(early)
    assert claims.finish(attempt, SENT)
    assert bounces.apply(early)
    assert states(database, id) == ("bounced", ["bounced"])
    assert ignored(database) == 0


def test_a_delay_leaves_the_reason(database: Database, claims: Claims, bounces: Bounces) -> None:
    id = send(database, claims, BOB)
    assert bounces.apply(report(id, of_kind(ReportKind.DELAYED, BOB)))
    assert details(database, id).row["reason"] == "250 ok"


def test_a_limit_is_a_bounce_where_the_content_is_gone(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    id = send(database, claims, BOB, EVE)

    def forget(connection: Connection) -> None:
        connection.execute(text("/* test */ DELETE FROM contents"))

    database.transaction(forget)
    assert bounces.apply(report(id, of_kind(ReportKind.LIMIT, BOB)))
    assert states(database, id) == ("sent", ["bounced", "sent"])


def test_a_limit_of_one_leaves_the_look_for_the_others(
    database: Database, claims: Claims, bounces: Bounces
) -> None:
    id = lose_reply(database, claims, BOB, EVE, judge=judge())
    assert bounces.apply(report(id, of_kind(ReportKind.LIMIT, BOB)))
    assert states(database, id) == ("deferred", ["queued", "uncertain"])
    make_due(database)
    [due] = LookUps(database, "default").due()
    assert LookUps(database, "default").found(due)
    assert states(database, id) == ("queued", ["queued", "sent"])
