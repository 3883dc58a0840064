"""A server that refuses some, or hangs up: what was read before is the answer, and the rest goes on."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from mailroom.api.http.serialize import attempts
from mailroom.delivery.groups import MAILS_MAX, Groups
from mailroom.model.account import AccountState, NextHop
from mailroom.model.attempt import Claim
from mailroom.model.errors import NotTaken, Unanswered
from mailroom.model.message import Address, Message
from mailroom.smtp.connection import Reply
from mailroom.smtp.poller import run
from mailroom.smtp.pool import Sessions
from mailroom.smtp.receipt import Receipt
from mailroom.store.db.database import Database
from mailroom.store.messages.outbox import MessageDetails
from tests.services.certificates import make_certificates
from tests.services.schema import ready
from tests.services.smtpd import ScriptedSMTP
from tests.unit.delivery.test_delivery import Office

UNKNOWN, TOO_MANY = "550 5.1.1 no such user", "421 4.7.0 mx Error: too many errors"
MAIL = b"Message-ID: <1@example.org>\r\nSubject: hello\r\n\r\nHello\r\n"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = ready(f"sqlite:///{tmp_path}/mailasync.sqlite3")
    yield made
    made.close()


@pytest.fixture(params=[True, False], ids=["pipelined", "step by step"])
def smtpd(request: pytest.FixtureRequest) -> Iterator[ScriptedSMTP]:
    with ScriptedSMTP(pipelining=request.param) as server:
        yield server


@pytest.fixture
def office(database: Database, smtpd: ScriptedSMTP) -> Iterator[Office]:
    made = Office(database, smtpd)
    yield made
    made.delivery.close()


def addresses(kind: str, count: int) -> list[Address]:
    return [Address(f"{kind}{n:02}@example.org") for n in range(count)]


def until_final(office: Office, *to: Address, most: int = 20) -> MessageDetails:
    """Try it at once, as long as its state says so; no attempt but the last may count."""
    found = office.send(*to)
    for _ in range(most):
        if (
            found.row["state"] != "deferred"
            or found.row["next_attempt_at"] - found.events[-1].at > 1000
        ):
            break
        assert attempts(found.row) - found.row["excused"] == 0
        found = office.again(found.row["id"])
    [account] = office.accounts.details()
    assert (account["state"], account["failures"]) == (AccountState.OK, 0)
    return found


def states(found: MessageDetails) -> dict[str, str]:
    return {person["address"]: person["state"] for person in found.recipients}


def test_users_who_are_unknown_fail_and_the_others_get_it_though_postfix_ends_after_twenty(
    office: Office, smtpd: ScriptedSMTP
) -> None:
    smtpd.hang_up_after(20, "RCPT", UNKNOWN, match="nobody", last=TOO_MANY)
    nobodies, friends = addresses("nobody", 25), addresses("friend", 5)
    found = until_final(office, *nobodies, *friends)
    assert found.row["state"] == "sent"
    assert {state for address, state in states(found).items() if address.startswith("nobody")} == {
        "failed"
    }
    assert {state for address, state in states(found).items() if address.startswith("friend")} == {
        "sent"
    }
    assert {person["reply"] for person in found.recipients} == {UNKNOWN, "250 2.0.0 ok"}
    assert smtpd.copies(found.row["message_id"]) == 1
    assert found.row["excused"] == found.row["attempt"] - 1


def test_the_recipient_at_whom_exim_drops_fails_and_the_others_get_it_in_smaller_groups(
    office: Office, smtpd: ScriptedSMTP
) -> None:
    smtpd.reply("RCPT", "550 5.5.3 no more", match="friend03", times=None, close=True)
    found = until_final(office, *addresses("friend", 10))
    assert found.row["state"] == "sent"
    assert [person["state"] for person in found.recipients].count("sent") == 9
    assert states(found)["friend03@example.org"] == "failed"
    assert max(len(message.rcpt_tos) for message in smtpd.messages) == 3
    assert sorted(to for message in smtpd.messages for to in message.rcpt_tos) == sorted(
        person["address"] for person in found.recipients if person["state"] == "sent"
    )


@pytest.mark.parametrize("phase", ["RCPT", "DATA"])
@pytest.mark.parametrize("reply", ["421 4.3.0 too many", ""])
def test_a_server_that_only_takes_small_groups_gets_those(
    office: Office, smtpd: ScriptedSMTP, phase: Literal["RCPT", "DATA"], reply: str
) -> None:
    smtpd.end_sessions(phase, recipients=4, reply=reply)
    found = until_final(office, *addresses("friend", 10))
    assert (found.row["state"], set(states(found).values())) == ("sent", {"sent"})
    assert max(len(message.rcpt_tos) for message in smtpd.messages) <= 3
    assert sum(len(message.rcpt_tos) for message in smtpd.messages) == 10


def test_a_round_of_groups_counts_as_one_attempt(office: Office, smtpd: ScriptedSMTP) -> None:
    smtpd.end_sessions("RCPT", recipients=2, reply="421 4.3.0 one at a time")
    for address in addresses("friend", 12):
        smtpd.reply("RCPT", "450 4.2.0 greylisted", match=address.address, times=2)
    found = office.send(*addresses("friend", 12))
    while found.row["state"] == "deferred":
        found = office.again(found.row["id"])
    assert (found.row["state"], set(states(found).values())) == ("sent", {"sent"})
    assert attempts(found.row) - found.row["excused"] <= 3


@pytest.mark.parametrize(
    ("phase", "reply"),
    [
        ("DOT", "451 4.3.0 later"),
        ("DOT", "554 5.7.1 not these words"),
        ("DATA", "451 4.3.0 later"),
        ("RCPT", UNKNOWN),
    ],
)
def test_one_too_many_does_not_fail_with_what_the_others_get(
    office: Office, smtpd: ScriptedSMTP, phase: Literal["DOT", "DATA", "RCPT"], reply: str
) -> None:
    smtpd.reply("RCPT", "552 5.5.3 too many", match="friend01")
    smtpd.reply(phase, reply)
    found = office.send(*addresses("friend", 2))
    assert (found.row["state"], states(found)["friend01@example.org"]) == ("deferred", "deferred")
    found = office.again(found.row["id"])
    assert states(found)["friend01@example.org"] == "sent"


def test_recipients_who_go_one_by_one_use_up_no_attempts(
    office: Office, smtpd: ScriptedSMTP
) -> None:
    for position in range(1, 6):
        smtpd.reply("RCPT", "452 4.5.3 too many", match=f"friend{position:02}", times=position)
    smtpd.reply("RCPT", "450 4.2.0 greylisted", match="friend05")
    found = until_final(office, *addresses("friend", 6))
    assert (found.row["reason"], attempts(found.row) - found.row["excused"]) == (
        "450 4.2.0 greylisted",
        1,
    )
    assert office.again(found.row["id"]).row["state"] == "sent"


def test_too_many_recipients_at_data_go_in_smaller_groups(
    office: Office, smtpd: ScriptedSMTP
) -> None:
    smtpd.reply("DATA", "552 5.5.3 too many recipients", times=2)
    found = until_final(office, *addresses("friend", 8))
    assert (found.row["state"], set(states(found).values())) == ("sent", {"sent"})
    assert [len(message.rcpt_tos) for message in smtpd.messages] == [2, 2, 2, 2]


def test_an_account_at_its_limit_is_parked_though_another_reply_came_first(
    office: Office, smtpd: ScriptedSMTP
) -> None:
    smtpd.reply("RCPT", "450 4.2.1 greylisted", match="friend00")
    smtpd.reply("RCPT", "550 5.4.5 Daily user sending limit exceeded", match="friend01")
    found = office.send(*addresses("friend", 3))
    assert sorted(states(found).values()) == ["deferred", "deferred", "sent"]
    [account] = office.accounts.details()
    assert (account["state"], found.row["parked"], found.row["excused"]) == (
        AccountState.PARKED,
        1,
        1,
    )


@pytest.mark.parametrize(
    ("phase", "reply"),
    [
        ("MAIL", "550 5.7.0 too many messages in this connection"),
        ("MAIL", "451 Maximum messages per session reached"),
        ("MAIL", "550 MI:DMC 163 smtp10"),
        ("RCPT", "550 RP:DRC 163 smtp10"),
        ("RCPT", "552 5.5.3 too many recipients"),
    ],
)
def test_a_session_that_takes_no_more_mails_is_followed_by_another(
    office: Office, smtpd: ScriptedSMTP, phase: Literal["MAIL", "RCPT"], reply: str
) -> None:
    office.send()
    smtpd.reply(phase, reply)
    found = office.send()
    assert (found.row["state"], found.row["attempt"], smtpd.connections) == ("sent", 1, 2)


def test_those_who_are_deferred_in_a_group_wait_by_the_schedule_and_keep_none_from_the_others(
    office: Office, smtpd: ScriptedSMTP
) -> None:
    smtpd.end_sessions("RCPT", recipients=4, reply="421 4.3.0 too many")
    smtpd.reply("RCPT", "450 4.2.1 later", match="friend01", times=4)
    found = until_final(office, *addresses("friend", 7))
    assert (found.row["state"], found.row["reason"]) == ("deferred", "450 4.2.1 later")
    assert [person["state"] for person in found.recipients].count("sent") == 6
    for _ in range(3):
        if found.row["state"] == "deferred":
            found = office.again(found.row["id"])
    assert found.row["state"] == "sent"
    assert [to for message in smtpd.messages for to in message.rcpt_tos].count(
        "friend01@example.org"
    ) == 1


def test_one_recipient_at_whom_the_server_hangs_up_is_deferred_and_pauses_nobody(
    office: Office, smtpd: ScriptedSMTP
) -> None:
    smtpd.reply("DATA", TOO_MANY)
    found = office.send()
    assert (found.row["state"], found.row["reason"], found.row["excused"]) == (
        "deferred",
        TOO_MANY,
        0,
    )
    assert office.accounts.details()[0]["state"] == AccountState.OK
    assert office.send().row["state"] == "sent"


def test_a_limit_of_the_account_is_still_one_when_the_server_hangs_up_with_it(
    office: Office, smtpd: ScriptedSMTP
) -> None:
    smtpd.reply("RCPT", "421 4.7.0 daily sending quota exceeded", match="friend01")
    found = office.send(*addresses("friend", 3))
    assert (found.row["state"], found.row["excused"]) == ("deferred", 1)
    assert office.accounts.details()[0]["state"] == AccountState.PARKED


@pytest.mark.parametrize("phase", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_refusal_at_which_it_hangs_up_is_final(
    office: Office, smtpd: ScriptedSMTP, phase: str, reset: bool
) -> None:
    smtpd.reply(phase, "550 5.7.1 no", close=True, reset=reset)
    found = office.send()
    assert (found.row["state"], found.row["reason"]) == ("failed", "550 5.7.1 no")
    assert office.accounts.details()[0]["state"] == AccountState.OK
    assert office.send().row["state"] == "sent"


@pytest.mark.parametrize(
    "reply",
    ["550 5.7.1 blocked", "501 5.5.4 no such name", "554 5.7.1 go away", "421 4.7.0 not you"],
)
@pytest.mark.parametrize(("phase", "reset"), [("GREETING", False), ("EHLO", False), ("EHLO", True)])
def test_words_before_mail_are_told(
    smtpd: ScriptedSMTP, phase: str, reply: str, reset: bool
) -> None:
    smtpd.reply(phase, reply, times=None, close=True, reset=reset)
    with pytest.raises(NotTaken) as told:
        hand_over(smtpd)
    assert (told.value.reply, told.value.of_message) == (reply, False)


# --- within the payload -----------------------------------------------------------------------------


def hand_over(smtpd: ScriptedSMTP, payload: bytes = MAIL, **hop: Any) -> Receipt:
    wanted = {"security": "none", "timeout_seconds": 60, **hop}
    sessions = Sessions(NextHop(host=smtpd.host, port=smtpd.port, **wanted))
    try:
        return run(
            sessions.attempt("alice@example.org", {0: "bob@example.org"}, payload), lambda: True
        )
    finally:
        sessions.close()


BIG = MAIL + b"x\r\n" * 5_000_000


@pytest.mark.parametrize("payload", [MAIL, BIG], ids=["small", "big"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_refusal_within_the_payload_is_the_answer(
    smtpd: ScriptedSMTP, payload: bytes, reset: bool
) -> None:
    smtpd.reply("PAYLOAD", "552 5.3.4 too big", close=True, reset=reset)
    assert hand_over(smtpd, payload) == Receipt(refused={}, final=Reply(552, "5.3.4 too big"))
    assert smtpd.payloads == []


def test_a_refusal_within_the_payload_is_the_answer_over_tls_too(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    with ScriptedSMTP(tls="ssl", certificate=certificates.valid) as smtpd:
        smtpd.reply("PAYLOAD", "552 5.3.4 too big", close=True)
        receipt = hand_over(smtpd, BIG, security="ssl", ca_file=str(certificates.ca_file))
        assert receipt == Receipt(refused={}, final=Reply(552, "5.3.4 too big"))


def test_a_refusal_of_a_server_that_reads_no_further_is_the_answer_when_our_patience_ends() -> None:
    told = threading.Event()
    replies = b"250 2.1.5 ok\r\n354 go on\r\n"
    with server("250 PIPELINING", replies, b"552 5.3.4 too big\r\n", until=told) as port:
        sessions = Sessions(
            NextHop(host="127.0.0.1", port=port, security="none", timeout_seconds=0.3)
        )
        with sessions.borrow() as session:
            steps = session.attempt("alice@example.org", {0: "bob@example.org"}, BIG)
            assert run(steps, lambda: True).final == Reply(552, "5.3.4 too big")
        told.set()


def test_a_refusal_between_354_and_the_payload_is_the_answer(smtpd: ScriptedSMTP) -> None:
    smtpd.reply("DATA", "354 go ahead\n451 4.3.0 on second thoughts", close=True)
    assert hand_over(smtpd).final == Reply(451, "4.3.0 on second thoughts")


def test_what_accepts_half_a_payload_is_no_answer(smtpd: ScriptedSMTP) -> None:
    smtpd.reply("PAYLOAD", "250 2.0.0 ok", close=True)
    with pytest.raises(NotTaken, match="hung up within the payload"):
        hand_over(smtpd, BIG)


@pytest.mark.parametrize("reset", [False, True])
def test_a_link_that_is_lost_after_the_payload_stays_uncertain(
    smtpd: ScriptedSMTP, reset: bool
) -> None:
    smtpd.drop("DOT", reset=reset)
    with pytest.raises(Unanswered):
        hand_over(smtpd)


@contextmanager
def server(
    extension: str,
    replies: bytes,
    within_payload: bytes = b"",
    *,
    until: threading.Event | None = None,
) -> Iterator[int]:
    """Listen on a port, say all that, and hang up without reading more, at once or at `until`."""

    def serve(listener: socket.socket) -> None:
        link, _ = listener.accept()
        with link:
            link.sendall(f"220 mx\r\n250-mx\r\n{extension}\r\n250 2.1.0 ok\r\n".encode() + replies)
            link.recv(4096)
            while within_payload and b"Hello" not in link.recv(4096):
                pass
            link.sendall(within_payload)
            if until:
                until.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        served = threads.submit(serve, listener)
        yield listener.getsockname()[1]
        served.result(60)


@pytest.mark.parametrize("extension", ["250 PIPELINING", "250 8BITMIME"])
def test_words_said_before_a_command_could_not_be_sent_are_read(extension: str) -> None:
    """Of a server that is gone, the first write is answered by a reset, and the next one fails."""
    with server(extension, b"550 5.1.1 no such user\r\n") as port:
        sessions = Sessions(NextHop(host="127.0.0.1", port=port, security="none"))
        with sessions.borrow() as session:
            receipt = run(session.attempt("alice@example.org", {0: "bob@example.org"}, MAIL))
    assert receipt == Receipt(refused={0: Reply(550, "5.1.1 no such user")}, final=None)


# --- groups -----------------------------------------------------------------------------------------


def claim(id: str, count: int) -> Claim:
    message = Message(to=tuple(addresses("friend", count)))
    pending = tuple(range(count))
    return Claim(id=id, attempt=1, message_id=id, created_at_ms=0, message=message, pending=pending)


def test_groups_take_turns() -> None:
    groups = Groups()
    assert groups.choose(claim("a", 5)) == (0, 1, 2, 3, 4)
    groups.shrink("a", range(5), answered=3)
    assert [groups.choose(claim("a", 5)) for _ in range(3)] == [(0, 1), (2, 3), (4, 0)]
    assert groups.choose(claim("b", 5)) == (0, 1, 2, 3, 4)


def test_of_mails_in_groups_so_many_are_remembered() -> None:
    groups = Groups()
    for n in range(MAILS_MAX + 1):
        groups.shrink(f"{n}", range(5), answered=2)
    assert [len(groups.choose(claim(id, 5))) for id in ("0", "1", f"{MAILS_MAX}")] == [5, 1, 1]
