"""Text for every reader: one line, no control characters, only what UTF-8 holds."""

import pytest
from pydantic_core import PydanticCustomError

from mailroom.model.text import (
    check_subject,
    has_control,
    one_line,
    refuse_control,
    short,
    short_repr,
    without_control,
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("no such user", "no such user"),
        ("  a\r\n b\t\tc ", "a b c"),
        ("\x1b[31mred\x07\x00", "[31mred"),
        ("two\u2028lines\u0085more", "two lines more"),
        ("\ud83d half", "\ufffd half"),
        (ValueError("what\nnow"), "what now"),
    ],
)
def test_one_line_keeps_the_words_and_nothing_that_a_terminal_obeys(
    text: object, line: str
) -> None:
    assert one_line(text) == line


def test_one_line_is_cut_after_it_is_cleaned() -> None:
    assert one_line(" \n one two three", most=7) == "one two"


def test_without_control_keeps_all_other_spaces() -> None:
    assert without_control("a  b\r\nc\x00") == "a  b c "


def test_a_control_character_is_refused_with_its_place() -> None:
    with pytest.raises(
        PydanticCustomError, match=r"an address without control characters, got '\\n' at 3"
    ):
        refuse_control("bob\n", expected="an address")
    refuse_control("bob")
    assert has_control("a\u2029") and not has_control("a b")


def test_a_subject_is_one_line_of_at_most_998_characters() -> None:
    assert check_subject("s" * 998) == "s" * 998
    with pytest.raises(PydanticCustomError, match="at most 998 characters, got 999"):
        check_subject("s" * 999)
    with pytest.raises(PydanticCustomError, match="one line without control characters"):
        check_subject("a\nb")


def test_what_is_shown_of_a_value_is_json_of_at_most_80_characters() -> None:
    assert short_repr({"to": "ü"}) == '{"to": "\\u00fc"}'
    assert short_repr({1: {(): 2}}) == "a dict that cannot be shown"
    assert len(short("x" * 81)) == 80 and short("x" * 80) == "x" * 80
