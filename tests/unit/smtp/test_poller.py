"""The poller: one thread waits for the mail servers of many attempts; others wake it."""

from mailroom.smtp.poller import Poller


def test_it_is_woken_from_any_thread_and_once_is_enough() -> None:
    poller: Poller[str, None] = Poller()
    poller.wake()
    poller.wake()
    poller.wait()  # It would wait for ever.
    assert not poller.ended
    poller.close()


def test_to_wake_one_that_has_ended_is_no_error() -> None:
    poller: Poller[str, None] = Poller()
    poller.close()
    poller.wake()  # As where its thread ends by itself, between the flag that it shall and this.
    assert len(poller) == 0
