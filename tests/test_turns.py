"""Turns are given in the order they were asked for."""

import threading
from collections.abc import Iterator

import pytest

from mailroom.mail.turns import Turns
from tests.services import wait_until


class Line:
    """Threads that ask for a turn one after the other, and end it when told."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.admitted: list[str] = []
        self.ends: dict[str, threading.Event] = {}
        self.threads: list[threading.Thread] = []

    def ask(self, name: str, *, alone: bool = False) -> None:
        before = len(self.turns._waiting) + self.turns._running
        self.ends[name] = threading.Event()
        thread = threading.Thread(target=self._take, args=(name, alone))
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: len(self.turns._waiting) + self.turns._running > before, 5, what=f"{name} is in line")

    def end(self, name: str) -> None:
        self.ends[name].set()

    def _take(self, name: str, alone: bool) -> None:
        with self.turns.alone() if alone else self.turns.shared():
            self.admitted.append(name)
            self.ends[name].wait(10)


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line(Turns(2))
    yield made
    for end in made.ends.values():
        end.set()
    for thread in made.threads:
        thread.join(10)


def test_whoever_came_first_is_let_in_first(line: Line) -> None:
    for name in ("a", "b", "c", "d"):
        line.ask(name)
    wait_until(lambda: len(line.admitted) == 2, 5, what="two are in")
    line.end("b")
    wait_until(lambda: len(line.admitted) == 3, 5, what="the next is in")
    assert sorted(line.admitted[:2]) == ["a", "b"]
    assert line.admitted[2:] == ["c"]


def test_one_that_ends_and_asks_again_goes_to_the_end_of_the_line() -> None:
    turns, order = Turns(1), list[str]()
    first = turns.shared()
    first.__enter__()
    waiting = threading.Thread(target=lambda: _note(turns, order))
    waiting.start()
    wait_until(lambda: len(turns._waiting) == 1, 5, what="the other waits")
    first.__exit__(None, None, None)
    with turns.shared():
        order.append("again")
    waiting.join(5)
    assert order == ["other", "again"]


def _note(turns: Turns, order: list[str]) -> None:
    with turns.shared():
        order.append("other")


def test_one_alone_waits_for_the_others_and_keeps_new_ones_out(line: Line) -> None:
    line.ask("a")
    line.ask("alone", alone=True)
    line.ask("b")
    wait_until(lambda: line.admitted == ["a"], 5, what="the first is in")
    line.end("a")
    wait_until(lambda: line.admitted == ["a", "alone"], 5, what="the one is in")
    assert line.turns._running == 1
    line.end("alone")
    wait_until(lambda: line.admitted == ["a", "alone", "b"], 5, what="the last is in")


def test_who_asks_for_many_gets_what_is_free_and_a_fifth_at_least() -> None:
    turns = Turns(10)
    assert [turns.ask(3).given, turns.ask(20).given] == [3, 7]
    asked = turns.ask(8)
    turns.give_back()
    assert (asked.given, turns._running) == (0, 9)
    turns.give_back()
    assert (asked.given, asked.admitted.is_set()) == (2, True)
    turns.give_back(10)
    assert turns.ask(1).given == 1


def test_one_for_many_keeps_its_place_until_it_is_withdrawn() -> None:
    turns = Turns(5)
    assert turns.ask(5).given == 5
    first, second, third = turns.ask(5), turns.ask(1), turns.ask(2)
    turns.give_back()
    assert (first.given, second.given, third.given) == (1, 0, 0)
    turns.withdraw(second)
    turns.give_back(2)
    assert (first.given, second.given, third.given) == (1, 0, 2)
    turns.withdraw(third)
    assert turns.ask(4).given == 2


def test_one_alone_waits_until_all_is_on_record(line: Line) -> None:
    asked = line.turns.ask(2)
    line.ask("alone", alone=True)
    line.turns.give_back(2)
    assert (asked.given, line.admitted) == (2, [])
    line.turns.leave(2)
    wait_until(lambda: line.admitted == ["alone"], 5, what="it is in")
