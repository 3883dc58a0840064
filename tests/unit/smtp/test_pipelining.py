"""A server that announces PIPELINING, and loses or garbles commands, gets all mails: step by step."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from mailroom.cli.doctor import Doctor, Finding
from mailroom.config.accounts import accounts, next_hop
from mailroom.config.environment import load
from mailroom.smtp.connection import Reply
from mailroom.smtp.envelope import Envelope
from mailroom.smtp.pipelining import Pipelining
from mailroom.store.db.database import Database
from tests.services.schema import ready
from tests.services.smtpd import ScriptedSMTP
from tests.unit.delivery.test_delivery import BOB, CAROL, Office, people

Spoiling = Literal["loses", "garbles"]
OK, GO = Reply(250, "ok"), Reply(354, "go ahead")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = ready(f"sqlite:///{tmp_path}/mailasync.sqlite3")
    yield made
    made.close()


@pytest.mark.parametrize("spoiling", ["loses", "garbles"])
def test_all_mails_are_sent_and_the_next_hop_is_remembered(
    database: Database, spoiling: Spoiling, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mailasync.delivery")
    with ScriptedSMTP(pipelining=spoiling) as smtpd:
        office = Office(database, smtpd, timeout_seconds=0.5)
        for _ in range(4):
            found = office.send(BOB, CAROL)
            assert (found.row["state"], found.row["attempt"], found.row["excused"]) == (
                "sent",
                1,
                0,
            )
            assert people(found) == [("sent", "250 2.0.0 ok")] * 2
            assert smtpd.copies(found.row["message_id"]) == 1
        assert smtpd.connections == 2  # In vain, and then for all of them.
        assert [message.rcpt_tos for message in smtpd.messages] == [
            (BOB.address, CAROL.address)
        ] * 4
        assert caplog.text.count("announces PIPELINING, and loses or garbles commands") == 1
        office.delivery.close()


def test_a_server_that_answers_so_step_by_step_too_is_believed(database: Database) -> None:
    with ScriptedSMTP() as smtpd:
        smtpd.reply("RCPT", "503 5.5.1 not you", match="bob@", times=2)
        office = Office(database, smtpd)
        found = office.send()
        assert (found.row["state"], found.row["reason"]) == ("failed", "503 5.5.1 not you")
        assert smtpd.connections == 2
        assert office.send(CAROL).row["state"] == "sent"
        assert [batch for batch in smtpd.batches if batch[-1] == "DATA"][-1][0].startswith("MAIL")
        office.delivery.close()


def test_it_stays_where_one_of_several_is_refused_so_step_by_step_too(database: Database) -> None:
    with ScriptedSMTP() as smtpd:
        smtpd.reply(
            "RCPT", "503 5.5.1 this mail server requires authentication", match="bob@", times=2
        )
        office = Office(database, smtpd)
        assert people(office.send(BOB, CAROL)) == [
            ("failed", "503 5.5.1 this mail server requires authentication"),
            ("sent", "250 2.0.0 ok"),
        ]
        assert office.send(CAROL).row["state"] == "sent"
        assert [batch for batch in smtpd.batches if batch[-1] == "DATA"][-1][0].startswith("MAIL")
        office.delivery.close()


def test_it_can_be_turned_off(database: Database) -> None:
    with ScriptedSMTP() as smtpd:
        office = Office(database, smtpd, pipelining=False)
        assert office.send(BOB, CAROL).row["state"] == "sent"
        assert {len(batch) for batch in smtpd.batches} == {1}
        office.delivery.close()


def test_the_setting_is_of_all_accounts_or_of_one(tmp_path: Path) -> None:
    assert next_hop(load({"MAILASYNC_ENV_FILE": ""})).pipelining
    settings = {"MAILASYNC_ENV_FILE": "", "MAILASYNC_SMTP_PIPELINING": "off"}
    assert not next_hop(load(settings)).pipelining
    file = tmp_path / "accounts.toml"
    file.write_text(
        '[[account]]\nname = "a"\nfrom = "a@example.org"\nsmtp_pipelining = "auto"\n'
        '[[account]]\nname = "b"\nfrom = "b@example.org"\n'
    )
    found = accounts(load(settings | {"MAILASYNC_ACCOUNTS_FILE": str(file)}))
    assert [account.hop.pipelining for account in found] == [True, False]


TIMED_OUT, LOST = Reply(0, "timed out"), Reply(0, "connection closed by the server")


@pytest.mark.parametrize(
    ("replies", "hangup", "doubted"),
    [
        ([OK, OK, GO], None, False),
        ([OK, Reply(550, "5.1.1 no"), Reply(503, "no valid RCPT")], None, False),
        ([OK, Reply(502, "what?"), Reply(554, "no")], None, True),
        ([OK, OK, Reply(503, "bad order")], None, True),
        ([Reply(503, "not now"), Reply(503, "not now"), Reply(503, "not now")], None, False),
        ([OK, Reply(503, "5.5.0 improper command pipelining")], LOST, True),
        ([Reply(554, "SMTP synchronization error")], LOST, True),
        (
            [OK, Reply(550, "5.1.1 <bob@pipeline.example> unknown"), Reply(554, "no valid RCPT")],
            None,
            False,
        ),
        ([], TIMED_OUT, False),
        ([OK], TIMED_OUT, True),
        ([OK, OK], TIMED_OUT, True),
        ([OK], LOST, False),
    ],
)
def test_it_is_doubted_for_some_replies(
    replies: list[Reply], hangup: Reply | None, doubted: bool
) -> None:
    assert Pipelining("mx", is_used=True).doubts(envelope(*replies, hangup=hangup)) == doubted


def envelope(*replies: Reply, hangup: Reply | None = None) -> Envelope:
    return Envelope(positions=(0,), replies=replies, hangup=hangup, timed_out=hangup is TIMED_OUT)


def test_after_it_has_worked_a_silent_server_is_only_silent() -> None:
    pipelining = Pipelining("mx", is_used=True)
    assert not pipelining.doubts(envelope(OK, OK, GO))
    assert not pipelining.doubts(envelope(OK, hangup=TIMED_OUT))
    assert pipelining.doubts(envelope(OK, Reply(502, "what?"), Reply(554, "no")))


@pytest.mark.parametrize(
    ("pipelining", "setting", "ok", "words"),
    [
        (True, "auto", True, "takes commands in one write"),
        (True, "off", True, "off, as"),
        ("loses", "auto", False, "set MAILASYNC_SMTP_PIPELINING=off"),
        ("garbles", "auto", False, "set MAILASYNC_SMTP_PIPELINING=off"),
        (False, "auto", None, ""),
    ],
)
def test_the_doctor_tries_it(
    database: Database, pipelining: bool | Spoiling, setting: str, ok: bool | None, words: str
) -> None:
    with ScriptedSMTP(pipelining=pipelining) as smtpd:
        settings = load(
            {
                "MAILASYNC_ENV_FILE": "",
                "MAILASYNC_SMTP_HOST": smtpd.host,
                "MAILASYNC_SMTP_SECURITY": "none",
                "MAILASYNC_SMTP_PORT": str(smtpd.port),
                "MAILASYNC_SMTP_PIPELINING": setting,
                "MAILASYNC_SMTP_TIMEOUT_SECONDS": "1",
            }
        )
        doctor = Doctor(settings, database, accounts(settings), None)
        findings: dict[str, Finding] = {one.what: one for one in doctor.examine()}
        assert findings["login of account default"].ok
        finding = findings.get("pipelining of account default")
        assert (finding.ok if finding else None) is ok
        assert words in (finding.words if finding else "")
        assert pipelining == "garbles" or smtpd.violations == []
