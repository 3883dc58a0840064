"""Connections are granted in order, to single mails and batches in turn, and to each account its own."""

import threading
from collections.abc import Iterator

import pytest

from mailroom.delivery import admission as admission_module
from mailroom.delivery.admission import UNLIMITED, WAITING_PER_CONNECTION, Admission
from tests.services import wait_until


class Line:
    """Threads that request a connection one after the other, and end when told."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.share = admission._shares["default"]
        self.admitted: list[str] = []
        self.withdrawn: list[str] = []
        self.ends: dict[str, threading.Event] = {}
        self.threads: list[threading.Thread] = []

    def ask(self, name: str, *, alone: bool = False) -> None:
        before = self._count()
        self.ends[name] = threading.Event()
        thread = threading.Thread(target=self._take_alone if alone else self._take, args=(name,))
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: self._count() > before, 60, what=f"{name} is in line")

    def end(self, name: str) -> None:
        self.ends[name].set()

    def _count(self) -> int:
        waiting = len(self.share.singles) + len(self.admission._exclusive_waiting)
        return waiting + len(self.admitted) + len(self.withdrawn)

    def _take(self, name: str) -> None:
        with self.admission.shared() as is_admitted:
            (self.admitted if is_admitted else self.withdrawn).append(name)
            self.ends[name].wait(60)

    def _take_alone(self, name: str) -> None:
        with self.admission.exclusive(), self.admission.without_waiting("default"):
            self.admitted.append(name)
            self.ends[name].wait(60)


class Batch:
    """A batch that requests many connections, and counts those that are granted."""

    def __init__(self, admission: Admission, account: str, most: int) -> None:
        self.granted = self.withdrawn = 0
        admission.request(account, most, self._take, self._leave)

    def _take(self, count: int) -> None:
        self.granted += count

    def _leave(self, count: int) -> None:
        self.withdrawn += count


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line(Admission(2))
    yield made
    for end in made.ends.values():
        end.set()
    for thread in made.threads:
        thread.join(60)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever does not end at once hangs."""
    monkeypatch.setattr(admission_module, "HANGS_AFTER_SECONDS", 0.0)


def test_whoever_came_first_is_let_in_first(line: Line) -> None:
    for name in ("a", "b", "c", "d"):
        line.ask(name)
    wait_until(lambda: len(line.admitted) == 2, 60, what="two are in")
    line.end("b")
    wait_until(lambda: len(line.admitted) == 3, 60, what="the next is in")
    assert sorted(line.admitted[:2]) == ["a", "b"]
    assert line.admitted[2:] == ["c"]


def test_one_that_ends_and_asks_again_goes_to_the_end_of_the_line() -> None:
    admission, order = Admission(1), list[str]()
    first = admission.shared()
    first.__enter__()
    waiting = threading.Thread(target=lambda: _note(admission, order))
    waiting.start()
    wait_until(lambda: len(admission._shares["default"].singles) == 1, 60, what="the other waits")
    first.__exit__(None, None, None)
    with admission.shared():
        order.append("again")
    waiting.join(60)
    assert order == ["other", "again"]


def _note(admission: Admission, order: list[str]) -> None:
    with admission.shared():
        order.append("other")


def test_who_asks_for_many_gets_what_is_free_and_the_rest_before_those_who_came_later() -> None:
    admission = Admission(10)
    first, second = Batch(admission, "default", 3), Batch(admission, "default", 9)
    third = Batch(admission, "default", 8)
    assert (first.granted, second.granted, third.granted) == (3, 7, 0)
    for _ in range(3):
        admission.release_connection()
    assert (first.granted, second.granted, third.granted) == (3, 9, 1)


def test_a_single_mail_passes_those_who_ask_for_many_but_not_one_after_the_other(
    line: Line,
) -> None:
    admission = line.admission
    running = Batch(admission, "default", 2)
    many = [Batch(admission, "default", 1) for _ in range(3)]
    assert running.granted == 2
    for name in ("a", "b"):
        line.ask(name)
    admission.release_connection()
    wait_until(lambda: line.admitted == ["a"], 60, what="the single one is in")
    admission.release_connection()
    assert [batch.granted for batch in many] == [1, 0, 0]
    line.end("a")
    wait_until(lambda: line.admitted == ["a", "b"], 60, what="the next single one is in")
    line.end("b")
    wait_until(
        lambda: [batch.granted for batch in many] == [1, 1, 0], 60, what="the next of many is in"
    )


class TestAlone:
    def test_one_waits_for_the_others_and_keeps_new_ones_out(self, line: Line) -> None:
        line.ask("a")
        line.ask("alone", alone=True)
        line.ask("b")
        assert line.admitted == ["a"]
        line.end("a")
        wait_until(lambda: line.admitted == ["a", "alone"], 60, what="the one is in")
        line.end("alone")
        wait_until(lambda: line.admitted == ["a", "alone", "b"], 60, what="the last is in")

    def test_one_waits_until_all_is_on_record(self, line: Line) -> None:
        batch = Batch(line.admission, "default", 2)
        line.ask("alone", alone=True)
        for _ in range(2):
            line.admission.release_connection()
        assert (batch.granted, line.admitted) == (2, [])
        for _ in range(2):
            line.admission.finish()
        wait_until(lambda: line.admitted == ["alone"], 60, what="it is in")

    def test_others_are_let_in_after_each(self, line: Line) -> None:
        line.ask("first", alone=True)
        for name, alone in (("second", True), ("a", False)):
            line.ask(name, alone=alone)
        line.end("first")
        wait_until(
            lambda: line.admitted == ["first", "a"], 60, what="another is in before the next"
        )
        line.end("a")
        wait_until(lambda: line.admitted == ["first", "a", "second"], 60, what="the next is in")

    def test_one_does_not_wait_for_those_that_hang(
        self, line: Line, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Batch(line.admission, "default", 1)
        line.ask("alone", alone=True)
        assert line.admitted == []
        monkeypatch.setattr(admission_module, "HANGS_AFTER_SECONDS", 0.0)
        wait_until(lambda: line.admitted == ["alone"], 60, what="it is in")

    @pytest.mark.usefixtures("hasty")
    def test_one_that_hangs_keeps_nobody_out(self, line: Line) -> None:
        line.ask("alone", alone=True)
        line.ask("a")
        wait_until(lambda: line.admitted == ["alone", "a"], 60, what="the other is in")


class TestAccounts:
    def test_each_has_its_share_and_one_connection_at_least(self) -> None:
        for connections, count, share in ((10, 1, 10), (10, 2, 5), (10, 3, 3), (2, 3, 1)):
            admission = Admission(connections, {str(n): "" for n in range(count)})
            assert [Batch(admission, str(n), 100).granted for n in range(count)] == [share] * count
            assert admission.connections == share * count

    def test_one_whose_turns_do_not_end_keeps_none_from_another(self) -> None:
        admission = Admission(4, {"stuck": "", "well": ""})
        stuck, well = Batch(admission, "stuck", 10), Batch(admission, "well", 10)
        for _ in range(8):
            admission.release_connection("well")
        assert (stuck.granted, well.granted) == (2, 10)

    @pytest.mark.usefixtures("hasty")
    def test_nobody_waits_any_more_for_one_that_hangs_where_there_are_others(self) -> None:
        for servers, withdrawn in (({"stuck": "a"}, 0), ({"stuck": "a", "well": "b"}, 8)):
            admission = Admission(2 * len(servers), servers)
            stuck = Batch(admission, "stuck", 10)
            admission.withdraw_hanging()
            assert (stuck.granted, stuck.withdrawn) == (2, withdrawn)
            assert admission.hanging().keys() == {"stuck"}
            assert admission.hanging()["stuck"].startswith(
                "its server, a, has taken no mail since 20"
            )

    def test_of_each_no_more_are_claimed_than_its_connections_can_take_soon(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        admission = Admission(4, {"one": "a", "two": "b"})
        most = 2 + 2 * WAITING_PER_CONNECTION
        assert admission.free("one") == (most, "a free connection of account one")
        Batch(admission, "one", 10)
        assert (admission.free("one").mails, admission.free("two").mails) == (most - 10, most)
        admission.release_connection("one", admission_module.HANGS_AFTER_SECONDS + 1)
        admission.finish("one")
        assert admission.free("one").mails == 0  # None waits for one that is slow.
        admission.release_connection("one", 0.1)
        admission.finish("one")
        assert admission.free("one").mails == most - 8
        monkeypatch.setattr(admission_module, "HANGS_AFTER_SECONDS", 0.0)
        assert admission.free("one").mails == 0
        words = admission.free("one").reason
        assert (
            "a free connection of account one: its server, a, has taken no mail since 20" in words
        )

    def test_one_that_is_the_only_one_takes_all(self) -> None:
        admission = Admission(4)
        Batch(admission, "default", 10)
        assert admission.free("default").mails == UNLIMITED


def test_when_it_closes_nobody_waits_now_or_later(line: Line) -> None:
    batch = Batch(line.admission, "default", 5)
    line.ask("a")
    line.ask("alone", alone=True)
    line.admission.close()
    wait_until(
        lambda: line.withdrawn == ["a"] and line.admitted == ["alone"], 60, what="all are told"
    )
    assert (batch.granted, batch.withdrawn, Batch(line.admission, "default", 5).withdrawn) == (
        2,
        3,
        5,
    )
