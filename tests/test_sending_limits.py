"""A server's words for "you have sent enough for now" are the account's trouble: no mail fails and nobody is suppressed."""

import pytest

from mailroom.mail.link import Reply
from mailroom.mail.message import AccountState, State
from mailroom.mail.replies import is_of_bad_address, state_of, trouble_of
from mailroom.mail.schedule import Schedule
from mailroom.route import next_hop
from mailroom.settings import load

SCHEDULE = Schedule.parse("30s, 2m")
DAY, SECONDS = (AccountState.PARKED, 600), (AccountState.PAUSED, 1)


@pytest.mark.parametrize(("code", "text", "meaning"), [
    (550, "5.4.5 Daily user sending limit exceeded", DAY),
    (550, "5.7.1 Daily SMTP relay limit exceeded for customer", DAY),
    (550, "5.1.90 Your message can't be sent because you've reached your daily limit for message recipients", DAY),
    (554, "5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException", DAY),
    (550, "5.7.1 user@example.org exceeded hour limit", DAY),
    (550, "Domain example.org has exceeded the max emails per hour (200) allowed. Message discarded.", DAY),
    (550, "User alice has exceeded its 24-hour sending limit. Messages to 500 recipients were sent.", DAY),
    (550, "5.4.6 You have exceeded your daily quota", DAY),
    (454, "Throttling failure: Daily message quota exceeded.", DAY),
    (454, "Throttling failure: Maximum sending rate exceeded.", SECONDS),
    (452, "4.7.1 Hourly sending quota reached, try again later", DAY),
    (550, "Sending limit per day reached", DAY),
])
def test_a_limit_is_the_accounts_and_ends(code: int, text: str, meaning: tuple[AccountState, float]) -> None:
    reply = Reply(code, text)
    trouble = trouble_of(reply, SCHEDULE)
    assert trouble
    assert (trouble.state, trouble.excuses) == (meaning[0], True)
    assert trouble.waits[0] >= meaning[1]
    assert trouble.waits[0] <= 3600
    assert (state_of(reply), is_of_bad_address(reply)) == (State.DEFERRED, False)


@pytest.mark.parametrize(("code", "text"), [
    (552, "5.2.2 The recipient's mailbox has exceeded its storage limit"),
    (550, "5.2.2 Mailbox over daily receiving limit"),
    (550, "5.2.1 The recipient has exceeded their limit for the number of messages they can receive per hour"),
    (550, "5.1.1 no such user at 10.5.4.50"), (554, "5.7.1 message content rejected"), (550, "15.4.5 no"),
    (552, "5.3.4 message size exceeds fixed limit"),
])
def test_a_limit_of_the_recipient_or_of_the_mail_is_not_the_accounts(code: int, text: str) -> None:
    assert trouble_of(Reply(code, text), SCHEDULE) is None
    assert state_of(Reply(code, text)) is State.FAILED


@pytest.mark.parametrize(("given", "most"), [
    ({"SMTP_HOST": "mail.example.org"}, 10), ({"SMTP_HOST": "smtp-relay.gmail.com"}, 80), ({}, 80),
    ({"MAIL_USERNAME": "alice@example.org", "MAIL_PASSWORD": "x"}, 80),
    ({"SMTP_HOST": "mail.example.org", "SMTP_MAILS_PER_CONNECTION": "3"}, 3),
])
def test_a_connection_takes_as_many_mails_as_suit_the_server(given: dict[str, str], most: int) -> None:
    settings = load({f"MAILASYNC_{name}": value for name, value in given.items()})
    assert next_hop(settings).mails_per_connection == most
