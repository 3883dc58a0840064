"""What a mail server can say or not say, at every phase; the server's log says how many copies there are."""

from tests.faults.rig import Rig
from tests.faults.test_faults import assert_good, on_postgresql, on_sqlite, rig
from tests.services import wait_until

__all__ = ["rig"]

PHASES = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT")
TEMPORARY = ("450 4.2.1 try later", "451 4.3.0 try later", "452 4.2.2 full")
PERMANENT = ("550 5.2.1 disabled", "552 5.2.2 full", "554 5.7.1 no")


@on_sqlite
def test_what_is_temporary_at_any_phase_ends_in_one_copy(rig: Rig) -> None:
    for phase in ("MAIL", "RCPT", "DATA", "DOT"):
        for reply in TEMPORARY:
            rig.smtpd.reply(phase, reply)
    for phase in PHASES:
        rig.smtpd.reply(phase, "421 4.3.2 closing")
    for phase in ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "PAYLOAD"):
        rig.smtpd.drop(phase)
    rig.post(40, "temporary")
    assert_good(rig.verdict())


@on_postgresql
def test_a_link_lost_after_the_dot_and_replies_that_are_none_are_uncertain_and_told(
    rig: Rig,
) -> None:
    rig.smtpd.drop("DOT", times=3)
    rig.smtpd.drop("DOT", reset=True)
    for phase in PHASES:
        rig.smtpd.reply(phase, "\u20ac what?")
        rig.smtpd.reply(phase, "999 what?")
    rig.post(40, "uncertain")
    verdict = rig.verdict()
    assert_good(verdict, duplicated=6)
    assert verdict.uncertain_attempts == 6


@on_sqlite
def test_a_server_that_hangs_after_the_dot_and_vanishes_is_uncertain(rig: Rig) -> None:
    held = rig.smtpd.hold("DOT")
    rig.post(10, "hangs")
    wait_until(held.reached.is_set, what="one is at the dot")
    wait_until(lambda: rig.unfinished() == 1, what="the others are through")
    rig.smtpd.stop()
    held.release()
    rig.smtpd.start()
    verdict = rig.verdict()
    assert_good(verdict, duplicated=1)
    assert verdict.uncertain_attempts == 1


@on_postgresql
def test_what_is_permanent_fails_with_the_servers_words_and_no_copy(rig: Rig) -> None:
    posted = {}
    for reply in PERMANENT:
        rig.smtpd.reply("RCPT", reply, match=f"rcpt-{reply[:3]}")
        rig.smtpd.reply("DOT", reply, match=f"dot-{reply[:3]}")
        posted[rig.load.post(f"rcpt-{reply[:3]}@example.org").id] = reply
        posted[rig.load.post(f"dot-{reply[:3]}@example.org", subject=f"dot-{reply[:3]}").id] = reply
    for id, reply in posted.items():
        told = rig.service.final(id)
        assert (told["status"], told["attempts"]) == ("failed", 1)
        assert reply in told["recipients"][0]["reply"]
        assert rig.smtpd.copies(told["message_id"], refused=False) == 0
