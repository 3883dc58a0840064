"""Replies that mean "you may not send for now" are about the account: no mail fails for them."""

import pytest

from mailroom.config.accounts import next_hop
from mailroom.config.environment import load
from mailroom.model.account import AccountState
from mailroom.model.message import State
from mailroom.model.retry import Schedule
from mailroom.smtp.connection import Reply
from mailroom.smtp.replies import (
    account_error_of,
    is_about_session,
    says_bad_address,
    says_too_many_connections,
    state_of,
)

SCHEDULE = Schedule.parse("30s, 2m")
DAY, SECONDS = (AccountState.PARKED, 600), (AccountState.PAUSED, 1)
MENDED = (AccountState.HALTED, 900)


@pytest.mark.parametrize(
    ("code", "text", "meaning"),
    [
        (550, "5.4.5 Daily user sending limit exceeded", DAY),
        (550, "5.7.1 Daily SMTP relay limit exceeded for customer", DAY),
        (
            550,
            "5.1.90 Your message can't be sent because you've reached your daily limit for message recipients",
            DAY,
        ),
        (554, "5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException", DAY),
        (550, "5.7.1 user@example.org exceeded hour limit", DAY),
        (
            550,
            "Domain example.org has exceeded the max emails per hour (200) allowed. Message discarded.",
            DAY,
        ),
        (
            550,
            "User alice has exceeded its 24-hour sending limit. Messages to 500 recipients were sent.",
            DAY,
        ),
        (550, "5.4.6 You have exceeded your daily quota", DAY),
        (454, "Throttling failure: Daily message quota exceeded.", DAY),
        (454, "Throttling failure: Maximum sending rate exceeded.", SECONDS),
        (452, "4.7.1 Hourly sending quota reached, try again later", DAY),
        (550, "Sending limit per day reached", DAY),
        (550, "5.4.6 Unusual sending activity detected. Please try after sometime", DAY),
        (550, "MI:STC 163 smtp10,NuRpCgC3", DAY),
        (451, "MI:SFQ 163 smtp10,NuRpCgC3", DAY),
        (
            550,
            "Domain example.org has exceeded the max defers and failures per hour (5/5 (100%)) allowed.",
            DAY,
        ),
        (550, "Ip frequency limited", DAY),
        (550, "Domain frequency limited", DAY),
        (550, "sorry, too many emails (#5.7.1)", DAY),
        (550, "User has exceeded outgoing email quota", DAY),
        (552, "Monthly sending quota exceeded", DAY),
        (552, "Not enough sending quota", DAY),
        (
            554,
            "5.7.1 <DATA>: Data command rejected: limit of 400 rcpts per 24 hours for client reached",
            DAY,
        ),
        (554, "5.7.1 <DATA>: Data command rejected: only 10 messages per day", DAY),
        (
            450,
            "4.7.1 <END-OF-MESSAGE>: End-of-data rejected: Number messages per hour exceeded.",
            DAY,
        ),
        (554, "5.7.1 Policy rejection; Message count quota exceeded", DAY),
        (451, "You've exceeded your messaging limits", DAY),
        (
            550,
            "5.7.233 Your message can't be sent because your tenant exceeded its daily limit",
            DAY,
        ),
        (550, "5.1.8 Access denied, bad outbound sender AS(42004)", MENDED),
        (550, "5.7.705 Access denied, tenant has exceeded threshold", MENDED),
        (554, "Message rejected: Sending paused for this account.", MENDED),
        (550, 'Outgoing mail from "example.org" has been suspended.', MENDED),
        (552, "Your account has been suspended. Please contact us to reactivate", MENDED),
    ],
)
def test_a_limit_is_the_accounts_and_ends(
    code: int, text: str, meaning: tuple[AccountState, float]
) -> None:
    reply = Reply(code, text)
    account_error = account_error_of(reply, SCHEDULE)
    assert account_error
    assert (account_error.state, account_error.excuses) == (meaning[0], True)
    assert account_error.waits[0] >= meaning[1]
    assert account_error.waits[0] <= 3600
    assert (state_of(reply), says_bad_address(reply)) == (State.DEFERRED, False)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (552, "5.2.2 The recipient's mailbox has exceeded its storage limit"),
        (550, "5.2.2 Mailbox over daily receiving limit"),
        (
            550,
            "5.2.1 The recipient has exceeded their limit for the number of messages they can receive per hour",
        ),
        (550, "5.1.1 no such user at 10.5.4.50"),
        (554, "5.7.1 message content rejected"),
        (550, "15.4.5 no"),
        (552, "5.3.4 message size exceeds fixed limit"),
        (552, "5.2.3 Message exceeds daily size limit"),
        (
            550,
            "5.2.1 The user you are trying to contact has exceeded their hourly inbound message limit",
        ),
        (550, "5.2.2 bob@example.org: daily quota exceeded for inbox"),
        (550, "5.7.1 The recipient bob@example.org has exceeded its daily message limit"),
        (550, "5.7.1 Too many messages for this recipient"),
        (554, "DT:SPM 163 smtp10"),
        (550, "5.2.1 This account has been temporarily suspended"),
        (550, "5.1.1 <bob@daily-limit.example>: user unknown"),
        (550, '5.1.1 <"daily limit"@example.org>: user unknown'),
        (550, "5.1.2 daily-limit.example: no such domain"),
        (554, "5.7.1 over the limit of spam, see https://example.org/one-hour/daily"),
    ],
)
def test_a_limit_of_the_recipient_or_of_the_mail_is_not_the_accounts(code: int, text: str) -> None:
    assert account_error_of(Reply(code, text), SCHEDULE) is None
    assert state_of(Reply(code, text)) is State.FAILED


@pytest.mark.parametrize(
    ("given", "most"),
    [
        ({"SMTP_HOST": "mail.example.org"}, 10),
        ({"SMTP_HOST": "smtp-relay.gmail.com"}, 80),
        ({}, 80),
        ({"MAIL_USERNAME": "alice@example.org", "MAIL_PASSWORD": "x"}, 80),
        ({"SMTP_HOST": "mail.example.org", "SMTP_MAILS_PER_CONNECTION": "3"}, 3),
    ],
)
def test_a_connection_takes_as_many_mails_as_suit_the_server(
    given: dict[str, str], most: int
) -> None:
    settings = load({f"MAILASYNC_{name}": value for name, value in given.items()})
    assert next_hop(settings).mails_per_connection == most


@pytest.mark.parametrize(
    "name", ["a@concurrent.example", "concurrent.example", "https://[::1]/concurrent"]
)
def test_a_name_in_a_reply_says_nothing_of_connections_or_sessions(name: str) -> None:
    assert says_too_many_connections(Reply(550, "5.7.1 too many concurrent sessions"))
    assert not says_too_many_connections(Reply(550, f"5.7.1 <{name}>: {name} is not welcome"))
    assert not is_about_session(Reply(550, "5.7.1 <per-session@one-connection.example>: unknown"))


@pytest.mark.parametrize(
    "text",
    [
        "Connection frequency limited",
        "Too many connexions, slow down. LPN105_107",
        "5.7.1 Connection count exceeded",
        "Max connections reached",
        "5.7.0 Too many open sessions",
        "4.3.2 sender thread limit exceeded",
    ],
)
def test_a_connection_too_many_pauses_for_seconds_whatever_its_code(text: str) -> None:
    account_error = account_error_of(Reply(550, text), SCHEDULE, of_message=False)
    assert account_error
    assert (account_error.state, account_error.waits[0], account_error.excuses) == (
        AccountState.PAUSED,
        5,
        True,
    )
