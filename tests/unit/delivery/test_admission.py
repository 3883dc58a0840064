"""Turns are given in their order, to single mails and to many by turns, and to each account its own."""

import threading
from collections.abc import Iterator

import pytest

from mailroom.delivery import admission as turns_module
from mailroom.delivery.admission import PLENTY, WAITING_PER_CONNECTION, Admission
from tests.services import wait_until


class Line:
    """Threads that ask for a turn one after the other, and end it when told."""

    def __init__(self, turns: Admission) -> None:
        self.turns = turns
        self.share = turns._shares["default"]
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
        waiting = len(self.share.singles) + len(self.turns._to_be_alone)
        return waiting + len(self.admitted) + len(self.withdrawn)

    def _take(self, name: str) -> None:
        with self.turns.shared() as is_given:
            (self.admitted if is_given else self.withdrawn).append(name)
            self.ends[name].wait(60)

    def _take_alone(self, name: str) -> None:
        with self.turns.alone(), self.turns.at_once("default"):
            self.admitted.append(name)
            self.ends[name].wait(60)


class Group:
    """One that asks for many turns, and counts those it was given."""

    def __init__(self, turns: Admission, account: str, most: int) -> None:
        self.given = self.withdrawn = 0
        turns.ask(account, most, self._take, self._leave)

    def _take(self, count: int) -> None:
        self.given += count

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
    monkeypatch.setattr(turns_module, "HANGS_AFTER_SECONDS", 0.0)


def test_whoever_came_first_is_let_in_first(line: Line) -> None:
    for name in ("a", "b", "c", "d"):
        line.ask(name)
    wait_until(lambda: len(line.admitted) == 2, 60, what="two are in")
    line.end("b")
    wait_until(lambda: len(line.admitted) == 3, 60, what="the next is in")
    assert sorted(line.admitted[:2]) == ["a", "b"]
    assert line.admitted[2:] == ["c"]


def test_one_that_ends_and_asks_again_goes_to_the_end_of_the_line() -> None:
    turns, order = Admission(1), list[str]()
    first = turns.shared()
    first.__enter__()
    waiting = threading.Thread(target=lambda: _note(turns, order))
    waiting.start()
    wait_until(lambda: len(turns._shares["default"].singles) == 1, 60, what="the other waits")
    first.__exit__(None, None, None)
    with turns.shared():
        order.append("again")
    waiting.join(60)
    assert order == ["other", "again"]


def _note(turns: Admission, order: list[str]) -> None:
    with turns.shared():
        order.append("other")


def test_who_asks_for_many_gets_what_is_free_and_the_rest_before_those_who_came_later() -> None:
    turns = Admission(10)
    first, second = Group(turns, "default", 3), Group(turns, "default", 9)
    third = Group(turns, "default", 8)
    assert (first.given, second.given, third.given) == (3, 7, 0)
    for _ in range(3):
        turns.give_back()
    assert (first.given, second.given, third.given) == (3, 9, 1)


def test_a_single_mail_passes_those_who_ask_for_many_but_not_one_after_the_other(line: Line) -> None:
    turns = line.turns
    running = Group(turns, "default", 2)
    many = [Group(turns, "default", 1) for _ in range(3)]
    assert running.given == 2
    for name in ("a", "b"):
        line.ask(name)
    turns.give_back()
    wait_until(lambda: line.admitted == ["a"], 60, what="the single one is in")
    turns.give_back()
    assert [group.given for group in many] == [1, 0, 0]
    line.end("a")
    wait_until(lambda: line.admitted == ["a", "b"], 60, what="the next single one is in")
    line.end("b")
    wait_until(lambda: [group.given for group in many] == [1, 1, 0], 60, what="the next of many is in")


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
        group = Group(line.turns, "default", 2)
        line.ask("alone", alone=True)
        for _ in range(2):
            line.turns.give_back()
        assert (group.given, line.admitted) == (2, [])
        for _ in range(2):
            line.turns.leave()
        wait_until(lambda: line.admitted == ["alone"], 60, what="it is in")

    def test_others_are_let_in_after_each(self, line: Line) -> None:
        line.ask("first", alone=True)
        for name, alone in (("second", True), ("a", False)):
            line.ask(name, alone=alone)
        line.end("first")
        wait_until(lambda: line.admitted == ["first", "a"], 60, what="another is in before the next")
        line.end("a")
        wait_until(lambda: line.admitted == ["first", "a", "second"], 60, what="the next is in")

    def test_one_does_not_wait_for_those_that_hang(self, line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
        Group(line.turns, "default", 1)
        line.ask("alone", alone=True)
        assert line.admitted == []
        monkeypatch.setattr(turns_module, "HANGS_AFTER_SECONDS", 0.0)
        wait_until(lambda: line.admitted == ["alone"], 60, what="it is in")

    @pytest.mark.usefixtures("hasty")
    def test_one_that_hangs_keeps_nobody_out(self, line: Line) -> None:
        line.ask("alone", alone=True)
        line.ask("a")
        wait_until(lambda: line.admitted == ["alone", "a"], 60, what="the other is in")


class TestAccounts:
    def test_each_has_its_share_and_one_connection_at_least(self) -> None:
        for connections, count, share in ((10, 1, 10), (10, 2, 5), (10, 3, 3), (2, 3, 1)):
            turns = Admission(connections, {str(n): "" for n in range(count)})
            assert [Group(turns, str(n), 100).given for n in range(count)] == [share] * count
            assert turns.connections == share * count

    def test_one_whose_turns_do_not_end_keeps_none_from_another(self) -> None:
        turns = Admission(4, {"stuck": "", "well": ""})
        stuck, well = Group(turns, "stuck", 10), Group(turns, "well", 10)
        for _ in range(8):
            turns.give_back("well")
        assert (stuck.given, well.given) == (2, 10)

    @pytest.mark.usefixtures("hasty")
    def test_nobody_waits_any_more_for_one_that_hangs_where_there_are_others(self) -> None:
        for servers, withdrawn in (({"stuck": "a"}, 0), ({"stuck": "a", "well": "b"}, 8)):
            turns = Admission(2 * len(servers), servers)
            stuck = Group(turns, "stuck", 10)
            turns.withdraw_hanging()
            assert (stuck.given, stuck.withdrawn) == (2, withdrawn)
            assert turns.hanging().keys() == {"stuck"}
            assert turns.hanging()["stuck"].startswith("its server, a, has taken no mail since 20")

    def test_of_each_no_more_are_claimed_than_its_connections_can_take_soon(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        turns = Admission(4, {"one": "a", "two": "b"})
        most = 2 + 2 * WAITING_PER_CONNECTION
        assert turns.free("one") == (most, "a free connection of account one")
        Group(turns, "one", 10)
        assert (turns.free("one").mails, turns.free("two").mails) == (most - 10, most)
        turns.give_back("one", turns_module.HANGS_AFTER_SECONDS + 1)
        turns.leave("one")
        assert turns.free("one").mails == 0  # One that is slow has no line.
        turns.give_back("one", 0.1)
        turns.leave("one")
        assert turns.free("one").mails == most - 8
        monkeypatch.setattr(turns_module, "HANGS_AFTER_SECONDS", 0.0)
        assert turns.free("one").mails == 0
        words = turns.free("one").words
        assert "a free connection of account one: its server, a, has taken no mail since 20" in words

    def test_one_that_is_the_only_one_takes_all(self) -> None:
        turns = Admission(4)
        Group(turns, "default", 10)
        assert turns.free("default").mails == PLENTY


def test_when_it_closes_nobody_waits_now_or_later(line: Line) -> None:
    group = Group(line.turns, "default", 5)
    line.ask("a")
    line.ask("alone", alone=True)
    line.turns.close()
    wait_until(lambda: line.withdrawn == ["a"] and line.admitted == ["alone"], 60, what="all are told")
    assert (group.given, group.withdrawn, Group(line.turns, "default", 5).withdrawn) == (2, 3, 5)
