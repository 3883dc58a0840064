"""Turns are given in the order they were asked for, to single mails and to many by turns."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from mailroom.mail.turns import Turns
from tests.services import wait_until


def nobody() -> None:
    """Is told."""


class Line:
    """Threads that ask for a turn one after the other, and end it when told."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.admitted: list[str] = []
        self.ends: dict[str, threading.Event] = {}
        self.threads: list[threading.Thread] = []

    def ask(self, name: str, *, alone: bool = False) -> None:
        before = len(self.turns._singles) + self.turns._running
        self.ends[name] = threading.Event()
        thread = threading.Thread(target=self._take, args=(name, alone))
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: len(self.turns._singles) + self.turns._running > before, 5, what=f"{name} is in line")

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
    wait_until(lambda: len(turns._singles) == 1, 5, what="the other waits")
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


def test_who_asks_for_many_gets_what_is_free_and_is_told() -> None:
    turns, told = Turns(10), list[str]()
    assert [turns.ask(3, partial(told.append, "a")).given, turns.ask(20, partial(told.append, "b")).given] == [3, 7]
    asked = turns.ask(8, partial(told.append, "c"))
    assert (asked.given, told) == (0, ["a", "b"])
    turns.give_back(2)
    assert (asked.given, told) == (2, ["a", "b", "c"])


def test_a_single_mail_passes_those_who_ask_for_many_but_not_one_after_the_other(line: Line) -> None:
    turns = line.turns
    assert turns.ask(2, nobody).given == 2
    many = [turns.ask(2, nobody) for _ in range(3)]
    for name in ("a", "b"):
        line.ask(name)
    turns.give_back()
    wait_until(lambda: line.admitted == ["a"], 5, what="the single one is in")
    turns.give_back()
    assert [asked.given for asked in many] == [1, 0, 0]
    line.end("a")
    wait_until(lambda: line.admitted == ["a", "b"], 5, what="the next single one is in")
    line.end("b")
    wait_until(lambda: [asked.given for asked in many] == [1, 1, 0], 5, what="the next of many is in")


def test_one_alone_waits_until_all_is_on_record(line: Line) -> None:
    asked = line.turns.ask(2, nobody)
    line.ask("alone", alone=True)
    line.turns.give_back(2)
    assert (asked.given, line.admitted) == (2, [])
    line.turns.leave(2)
    wait_until(lambda: line.admitted == ["alone"], 5, what="it is in")
