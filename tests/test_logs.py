"""The log: its places and forms, and what never gets into it."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailroom import logs
from mailroom.settings import Settings, load


def read(**variables: str) -> Settings:
    return load({"MAILASYNC_ENV_FILE": "", **{f"MAILASYNC_{name}": value for name, value in variables.items()}})


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("tests.logs")
    made.setLevel(logging.DEBUG)
    made.propagate = False
    made.handlers = [logging.StreamHandler(io.StringIO())]
    yield made
    for handler in made.handlers:
        handler.close()


def written(logger: logging.Logger) -> str:
    text: str = logger.handlers[0].stream.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize("text", [
    "550 5.1.1 <bob@example.org>: no such user", "to=bob@example.org,", "{'to': 'bob@example.org'}", "pyamqp://bob:x@example.org//",
    "bob+tag@bücher.example", '"bob@example.org"'])
def test_no_address_is_written(logger: logging.Logger, text: str) -> None:
    logs.finish_setup(read(), logger)
    logger.info("heard %s", text)
    assert "bob@" not in written(logger)
    assert "@" not in written(logger)
    assert "<address>" in written(logger)


def test_the_names_of_workers_stay(logger: logging.Logger) -> None:
    logs.finish_setup(read(), logger)
    logger.info("%s ready.", f"mailasync-1-ab@{logs._HOST_NAME}")
    assert f"mailasync-1-ab@{logs._HOST_NAME} ready." in written(logger)


def test_an_address_in_a_traceback_is_not_written(logger: logging.Logger) -> None:
    logs.finish_setup(read(), logger)
    try:
        raise ValueError("bob@example.org")
    except ValueError:
        logger.exception("failed")
    assert "ValueError: <address>" in written(logger)


def test_json_is_one_object_a_line(logger: logging.Logger) -> None:
    logs.finish_setup(read(LOG_FORMAT="json"), logger)
    logger.warning("first\nsecond %s", "bob@example.org")
    try:
        raise ValueError("no")
    except ValueError:
        logger.exception("failed")
    first, second = (json.loads(line) for line in written(logger).splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("WARNING", "tests.logs", "first\nsecond <address>")
    assert "ValueError: no" in second["exception"]


def test_a_log_file_gets_the_same(logger: logging.Logger, tmp_path: Path) -> None:
    logs.finish_setup(read(LOG_FILE=str(tmp_path / "mail.log")), logger)
    logger.info("heard bob@example.org")
    assert "tests.logs: heard <address>" in (tmp_path / "mail.log").read_text()
