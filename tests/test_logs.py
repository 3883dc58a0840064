"""The log: its places and forms, and what never gets into it."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery

from mailroom import logs
from mailroom.settings import Settings, SettingsError, load
from tests.services import free_port, wait_until
from tests.services.processes import Service, service
from tests.services.smtpd import ScriptedSMTP


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


@pytest.fixture
def stack(tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]) -> Iterator[Service]:
    """Web and worker, to be started."""
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=sqlite_url, **to_smtpd) as made:
        made.upgrade()
        yield made


def lines_of(file: Path, words: str) -> list[str]:
    """The lines of a log file, when `words` are in it."""
    wait_until(lambda: file.exists() and words in file.read_text(), what=f"{file.name} says {words!r}")
    return file.read_text().splitlines()


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


def test_json_names_the_request_and_the_message_where_they_are_known(logger: logging.Logger) -> None:
    logs.finish_setup(read(LOG_FORMAT="json"), logger)
    token = logs.request_id.set("request-1")
    logger.info("first", extra={"message_id": "message-1"})
    logs.request_id.reset(token)
    logger.info("second", extra={"message_id": "bob@example.org"})  # A Celery client may have chosen that.
    logger.info("third", extra={"message_id": None})
    first, second, third = (json.loads(line) for line in written(logger).splitlines())
    assert list(first) == ["time", "level", "logger", "message", "request_id", "message_id"]
    assert (first["request_id"], first["message_id"]) == ("request-1", "message-1")
    assert list(second)[4:] == ["message_id"] and second["message_id"] == "<address>"
    assert list(third) == ["time", "level", "logger", "message"]


def test_text_names_the_request(logger: logging.Logger) -> None:
    logger.handlers[0].setFormatter(logs.formatter(read()))
    token = logs.request_id.set("request-1")
    logger.info("first")
    logs.request_id.reset(token)
    logger.info("second")
    first, second = written(logger).splitlines()
    assert first.endswith("INFO tests.logs: first [request-1]")
    assert second.endswith("INFO tests.logs: second")


def test_a_log_file_gets_the_same(logger: logging.Logger, tmp_path: Path) -> None:
    logs.finish_setup(read(LOG_FILE=str(tmp_path / "mail.log")), logger)
    logger.info("heard bob@example.org")
    assert "tests.logs: heard <address>" in (tmp_path / "mail.log").read_text()


def test_the_broker_stays_and_its_password_was_never_there(logger: logging.Logger) -> None:
    logs.finish_setup(read(), logger)
    logger.info("Connected to amqp://guest:**@127.0.0.1:5672//")  # as Celery writes it
    assert "amqp://guest:**@127.0.0.1:5672//" in written(logger)


def test_a_log_file_that_was_moved_away_begins_anew(logger: logging.Logger, tmp_path: Path) -> None:
    file = tmp_path / "mail.log"
    logs.finish_setup(read(LOG_FILE=str(file)), logger)
    logger.info("first")
    file.rename(tmp_path / "mail.log.1")
    logger.info("second")
    assert "first" in (tmp_path / "mail.log.1").read_text()
    assert "second" in file.read_text() and "first" not in file.read_text()


@pytest.mark.parametrize(("place", "reason"), [
    ("nowhere/mail.log", "No such file or directory"), (".", "Is a directory"), ("file/mail.log", "Not a directory")])
def test_a_log_file_that_cannot_be_written_is_refused(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=f"MAILASYNC_LOG_FILE: expected a file that can be written, got '.*': {reason}"):
        read(LOG_FILE=str(tmp_path / place))


@pytest.mark.parametrize("command", [("app.py",), ("-m", "flask", "up"), ("-m", "celery", "-A", "mailasync", "worker")])
def test_such_a_log_file_stops_the_start_with_one_sentence(tmp_path: Path, command: tuple[str, ...]) -> None:
    with service(tmp_path, LOG_FILE=str(tmp_path / "nowhere" / "mail.log")) as made:
        program = made.run(*command, name="refused")
        assert program.process.wait(60) != 0
    assert program.text().strip() == (f"mailasync: MAILASYNC_LOG_FILE: expected a file that can be written, got "
                                      f"'{tmp_path}/nowhere/mail.log': No such file or directory")


@pytest.mark.parametrize("arguments", [("--loglevel=INFO", "--logfile={}"), ("-l", "INFO", "-f", "{}")])
def test_a_worker_logs_where_celery_is_told_to(stack: Service, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    stack.settings["LOG_FILE"] = str(tmp_path / "not this one.log")
    file = tmp_path / "worker of mine.log"
    worker = stack.worker(*(argument.format(file) for argument in arguments), wait=False)
    lines = lines_of(file, " ready.")
    assert any("INFO" in line and "Connected to amqp" in line for line in lines)
    assert "INFO" not in worker.text()
    assert (tmp_path / "not this one.log").read_text() == ""
    assert worker.stop() == 0


def test_celerys_names_in_a_log_files_name_are_filled_in(stack: Service, tmp_path: Path) -> None:
    for arguments in (("-n", "first@%h"), ()):
        worker = stack.worker("--loglevel=INFO", f"--logfile={tmp_path}/%n.log", *arguments, wait=False)
        file = tmp_path / ("first.log" if arguments else f"mailasync-{worker.pid}-*.log")
        wait_until(lambda file=file: list(tmp_path.glob(file.name)), what=f"there is {file.name}")  # type: ignore[misc]
        [found] = tmp_path.glob(file.name)
        assert f" {found.stem}@{logs._HOST_NAME} ready." in lines_of(found, " ready.")[-1]
        worker.stop()


def test_web_and_worker_write_log_file_and_terminal(stack: Service, tmp_path: Path) -> None:
    stack.settings["LOG_FILE"] = str(tmp_path / "mail.log")
    web, worker = stack.web(), stack.worker()
    id = stack.post()
    stack.final(id)
    words = f"message {id} attempt 1: sent (250)"
    assert sum(words in line for line in lines_of(tmp_path / "mail.log", words)) == 1
    worker.says(words)
    # The web side's own words, too: it started before there was a worker.
    lines_of(tmp_path / "mail.log", "no worker is running")
    web.says("no worker is running")


def test_loglevel_warning_keeps_warnings_and_no_more(tmp_path: Path, sqlite_url: str, to_smtpd: dict[str, str]) -> None:
    nobody = f"pyamqp://guest@127.0.0.1:{free_port()}//"
    with service(tmp_path, BROKER_URL=nobody, DATABASE_URL=sqlite_url, LOG_FILE=str(tmp_path / "mail.log"), **to_smtpd) as made:
        made.upgrade()
        worker = made.worker("--loglevel=WARNING", wait=False)
        worker.says("WARNING")
        worker.says("the broker cannot be reached")
        lines_of(tmp_path / "mail.log", "the broker cannot be reached")
    assert "INFO" not in worker.text()
    assert "INFO" not in (tmp_path / "mail.log").read_text()


@pytest.mark.parametrize("how", ["LOG_FILE", "--logfile"])
def test_json_files_at_debug_hold_objects_and_nobodys_mail(stack: Service, smtpd: ScriptedSMTP, tmp_path: Path, how: str) -> None:
    stack.settings["LOG_FORMAT"] = "json"
    stack.settings |= {"LOG_FILE": str(tmp_path / "mail.log")} if how == "LOG_FILE" else {}
    stack.web()
    worker = stack.worker("--loglevel=DEBUG", *((f"--logfile={tmp_path}/mail.log",) if how == "--logfile" else ()), wait=False)
    lines_of(tmp_path / "mail.log", " ready.")
    smtpd.reply("RCPT", "550 5.1.1 <refused@example.org> is nobody", match="refused@example.org")
    ids = [stack.post(subject="geheim-subject", contents="geheim-body"), stack.post(to="refused@example.org", contents="geheim-body")]
    stock = Celery(broker=stack.settings["BROKER_URL"])
    ids.append(stock.send_task("mailasync.sendMail", [{"to": "bob@example.org", "contents": "geheim-body"}]).id)
    stock.send_task("mailasync.sendmail", [{"to": "bob@example.org", "contents": "geheim-body"}])
    stock.close()
    wait_until(lambda: stack.request("GET", f"/v1/messages/{ids[-1]}")[0] == 200, what="the task was read")
    assert [stack.final(id)["status"] for id in ids] == ["sent", "failed", "sent"]
    lines_of(tmp_path / "mail.log", "unregistered task")
    worker.stop()
    text = (tmp_path / "mail.log").read_text()
    said = [json.loads(line) for line in text.splitlines()]
    assert {one["message_id"] for one in said if one["logger"] == "mailasync.delivery"} == set(ids)
    assert {"DEBUG", "INFO", "ERROR"} <= {one["level"] for one in said}
    assert all(list(one)[:4] == ["time", "level", "logger", "message"] for one in said)
    assert "geheim" not in text and "@example.org" not in text
