"""The registry of job types: names, arguments by annotation, results."""

import base64
import json
from typing import Annotated

import pytest
from pydantic import Field

from mailroom.jobs import builtin, registry
from mailroom.jobs.registry import FILE_MAX_BYTES, RESULT_MAX_BYTES, File, job, result_of
from mailroom.model.errors import InvalidMessage
from tests import jobs_for_tests

assert builtin.__name__ and jobs_for_tests.__name__


def test_arguments_are_checked_by_the_annotations() -> None:
    kind = registry.job_type("add")
    assert kind.check({"a": 2}) == {"a": 2, "b": 1}
    with pytest.raises(InvalidMessage, match="#/args/a"):
        kind.check({"a": "two"})
    with pytest.raises(InvalidMessage, match="#/args/c"):
        kind.check({"a": 1, "c": 2})
    assert registry.job_type("patient").check({"seconds": 1}) == {"seconds": 1.0}


def test_an_unknown_job_names_those_there_are() -> None:
    with pytest.raises(registry.UnknownJob, match=r"expected one of .*simulate.*, got 'brew'"):
        registry.job_type("brew")


def test_bytes_come_as_base64_of_either_alphabet() -> None:
    content = bytes(range(256))
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert registry.job_type("size").check({"image": encode(content).decode()}) == {
            "image": content
        }
    with pytest.raises(InvalidMessage, match=r"#/args/image: .*base64.*got \"!!\""):
        registry.job_type("size").check({"image": "!!"})


def test_bounds_in_an_annotation_are_kept() -> None:
    with pytest.raises(
        InvalidMessage, match=r"#/args/cups: expected less than or equal to 3, got 4"
    ):
        registry.job_type("bounded").check({"cups": 4})
    assert registry.job_type("bounded").schema()["properties"]["cups"]["maximum"] == 3


@job("bounded")
def bounded(cups: Annotated[int, Field(le=3)]) -> None: ...


def test_two_modules_cannot_give_a_type_the_same_name() -> None:
    with pytest.raises(ValueError, match="two job types are named 'simulate'"):
        job("simulate")(bounded)


def test_a_long_wrong_argument_is_told_in_part() -> None:
    with pytest.raises(InvalidMessage) as caught:
        registry.job_type("add").check({"a": "x" * 10_000})
    assert len(str(caught.value)) < 250


def test_an_application_context_is_only_for_jobs_in_a_process() -> None:
    with pytest.raises(ValueError, match="leave isolated=False away"):
        job("both", isolated=False, app_context=True)


def test_results_are_bounded_and_json() -> None:
    assert result_of({"n": [1, None]}).value == {"n": [1, None]}
    made = result_of(File("cat.png", b"123", "image/png"))
    assert (made.value, made.file) == (
        {"name": "cat.png", "content_type": "image/png", "size": 3},
        File("cat.png", b"123", "image/png"),
    )
    for wrong in (
        "x" * RESULT_MAX_BYTES,
        File("x", b"x" * (FILE_MAX_BYTES + 1)),
        float("nan"),
        object(),
        {1, 2},
    ):
        with pytest.raises((ValueError, TypeError)):
            result_of(wrong)


def test_the_arguments_as_json_schema_say_what_check_takes() -> None:
    schema = registry.job_type("add").schema()
    assert (schema["required"], schema["additionalProperties"]) == (["a"], False)
    assert {name: kind["type"] for name, kind in schema["properties"].items()} == {
        "a": "integer",
        "b": "integer",
    }
    assert json.dumps(schema)


def test_modules_that_are_listed_come_after_ours() -> None:
    assert registry.modules(" a.b, ,c ")[-2:] == ["a.b", "c"]
    assert registry.modules("")[0] == "mailroom.jobs.builtin"
