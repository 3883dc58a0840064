"""The log: its places and forms, and what never gets into it."""

import io
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from celery import Celery

from mailroom.config import logs
from mailroom.config.environment import load
from mailroom.config.settings import Settings, SettingsError
from mailroom.process.log_file import LogFileHandler
from tests.services import free_port, wait_until
from tests.services.processes import Service, service
from tests.services.smtpd import ScriptedSMTP


def read(**variables: str) -> Settings:
    return load(
        {
            "MAILASYNC_ENV_FILE": "",
            **{f"MAILASYNC_{name}": value for name, value in variables.items()},
        }
    )


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    monkeypatch.setattr(logging, "raiseExceptions", True)
    made = logging.getLogger("tests.logs")
    made.setLevel(logging.DEBUG)
    made.propagate = False
    made.handlers = [logging.StreamHandler(io.StringIO())]
    yield made
    for handler in made.handlers:
        handler.close()


@pytest.fixture
def stack(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    """Web and worker, to be started."""
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=sqlite_url, **to_smtpd) as made:
        made.upgrade()
        yield made


def lines_of(file: Path, words: str) -> list[str]:
    """The lines of a log file, when `words` are in it."""
    wait_until(
        lambda: file.exists() and words in file.read_text(), what=f"{file.name} says {words!r}"
    )
    return file.read_text().splitlines()


def written(logger: logging.Logger) -> str:
    text: str = logger.handlers[0].stream.getvalue()  # type: ignore[attr-defined]
    return text


@pytest.mark.parametrize(
    "text",
    [
        "550 5.1.1 <bob@example.org>: no such user",
        "to=bob@example.org,",
        "{'to': 'bob@example.org'}",
        "pyamqp://bob:x@example.org//",
        "bob+tag@bücher.example",
        '"bob@example.org"',
        '<"bob@ bob@"@example.org>',
        r'{"to": "\"bob@ \\\"x\"@example.org"}',
        'to="bob@."@example.org',
        "'\"bob@ b\"@example.org'",
    ],
)
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
    assert (first["level"], first["logger"], first["message"]) == (
        "WARNING",
        "tests.logs",
        "first\nsecond <address>",
    )
    assert "ValueError: no" in second["exception"]


def test_json_names_the_request_and_the_message_where_they_are_known(
    logger: logging.Logger,
) -> None:
    logs.finish_setup(read(LOG_FORMAT="json"), logger)
    token = logs.request_id.set("request-1")
    logger.info("first", extra={"message_id": "message-1"})
    logs.request_id.reset(token)
    # A Celery client may have chosen that.
    logger.info("second", extra={"message_id": "bob@example.org"})
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


# --- what cannot be written ------------------------------------------------------------------------------------------


def moved_away(file: Path) -> Callable[[], object]:
    file.parent.rename(file.parent.with_name("away"))
    return file.parent.mkdir


def made_a_directory(file: Path) -> Callable[[], object]:
    file.rename(file.with_name("away"))
    file.mkdir()
    return file.rmdir


def put_on_a_full_disk(file: Path) -> Callable[[], object]:
    file.unlink()
    file.symlink_to("/dev/full")
    return file.unlink


@pytest.mark.parametrize("spoil", [moved_away, made_a_directory, put_on_a_full_disk])
def test_a_log_file_that_cannot_be_written_is_told_once_and_goes_on_when_it_can(
    logger: logging.Logger,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], Callable[[], object]],
) -> None:
    file = tmp_path / "logs" / "mail.log"
    file.parent.mkdir()
    logs.finish_setup(read(LOG_FILE=str(file)), logger)
    logger.info("before")
    mend = spoil(file)
    for n in range(5):
        logger.info("lost %d", n)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mailasync: the log file {file} cannot be written: ")
    mend()
    logger.info("after")
    logger.info("and on")
    lines = [line.partition(": ")[2] for line in file.read_text().splitlines()]
    assert lines == [
        "after",
        "5 lines before the last one could not be written to this file",
        "and on",
    ]
    assert "lost 4" in written(logger)
    assert capsys.readouterr().err == ""


def test_a_line_that_was_cut_by_a_full_disk_spoils_no_other(
    logger: logging.Logger, tmp_path: Path
) -> None:
    file = tmp_path / "mail.log"
    logs.finish_setup(read(LOG_FILE=str(file)), logger)
    logger.info("first")
    size = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 10, size[1]))
    try:
        logger.info("second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, size)
        signal.signal(signal.SIGXFSZ, before)
    logger.info("third")
    lines = file.read_text().splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "first",
        "",
        "third",
        "1 lines before the last one could not be written to this file",
    ]


@pytest.mark.parametrize("stream", ["closed", "broken", "none"])
def test_no_line_raises_where_standard_error_takes_none(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    error = os.fdopen(writes, "w")
    if stream == "closed":
        error.close()
    monkeypatch.setattr(sys, "stderr", None if stream == "none" else error)
    logger.handlers = [logging.StreamHandler()]
    logs.finish_setup(read(LOG_FILE="/dev/full"), logger)
    logger.info("heard")
    logger.warning("wrong %d", "number")
    with suppress(BrokenPipeError):
        error.close()


def test_a_line_that_cannot_be_made_names_its_place_and_none_of_its_arguments(
    logger: logging.Logger,
) -> None:
    logs.finish_setup(read(), logger)
    logger.info("heard %d", "bob")
    assert re.search(r"a line of .*test_logs\.py:\d+ cannot be shown: TypeError", written(logger))
    assert "bob" not in written(logger)


def test_half_a_character_is_written_to_a_log_file(tmp_path: Path) -> None:
    handler = LogFileHandler(str(tmp_path / "mail.log"))
    handler.handle(logging.makeLogRecord({"msg": "heard \ud800"}))
    handler.close()
    assert (tmp_path / "mail.log").read_text() == "heard \\ud800\n"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("nowhere/mail.log", "No such file or directory"),
        (".", "Is a directory"),
        ("file/mail.log", "Not a directory"),
    ],
)
def test_a_log_file_that_cannot_be_written_is_refused(
    tmp_path: Path, place: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        SettingsError,
        match=f"MAILASYNC_LOG_FILE: expected a file that can be written, got '.*': {reason}",
    ):
        read(LOG_FILE=str(tmp_path / place))


@pytest.mark.parametrize(
    "command", [("app.py",), ("-m", "flask", "up"), ("-m", "celery", "-A", "mailasync", "worker")]
)
def test_such_a_log_file_stops_the_start_with_one_sentence(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    with service(tmp_path, LOG_FILE=str(tmp_path / "nowhere" / "mail.log")) as made:
        program = made.run(*command, name="refused")
        assert program.process.wait(60) != 0
    assert program.text().strip() == (
        f"mailasync: MAILASYNC_LOG_FILE: expected a file that can be written, got "
        f"'{tmp_path}/nowhere/mail.log': No such file or directory"
    )


@pytest.mark.parametrize(
    "arguments", [("--loglevel=INFO", "--logfile={}"), ("-l", "INFO", "-f", "{}")]
)
def test_a_worker_logs_where_celery_is_told_to(
    stack: Service, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
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
        worker = stack.worker(
            "--loglevel=INFO", f"--logfile={tmp_path}/%n.log", *arguments, wait=False
        )
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


def test_loglevel_warning_keeps_warnings_and_no_more(
    tmp_path: Path, sqlite_url: str, to_smtpd: dict[str, str]
) -> None:
    nobody = f"pyamqp://guest@127.0.0.1:{free_port()}//"
    with service(
        tmp_path,
        BROKER_URL=nobody,
        DATABASE_URL=sqlite_url,
        LOG_FILE=str(tmp_path / "mail.log"),
        **to_smtpd,
    ) as made:
        made.upgrade()
        worker = made.worker("--loglevel=WARNING", wait=False)
        worker.says("WARNING")
        worker.says("the broker cannot be reached")
        lines_of(tmp_path / "mail.log", "the broker cannot be reached")
    assert "INFO" not in worker.text()
    assert "INFO" not in (tmp_path / "mail.log").read_text()


@pytest.mark.parametrize("how", ["LOG_FILE", "--logfile"])
def test_json_files_at_debug_hold_objects_and_nobodys_mail(
    stack: Service, smtpd: ScriptedSMTP, tmp_path: Path, how: str
) -> None:
    stack.settings["LOG_FORMAT"] = "json"
    stack.settings |= {"LOG_FILE": str(tmp_path / "mail.log")} if how == "LOG_FILE" else {}
    stack.web()
    worker = stack.worker(
        "--loglevel=DEBUG",
        *((f"--logfile={tmp_path}/mail.log",) if how == "--logfile" else ()),
        wait=False,
    )
    lines_of(tmp_path / "mail.log", " ready.")
    smtpd.reply("RCPT", "550 5.1.1 <refused@example.org> is nobody", match="refused@example.org")
    ids = [
        stack.post(subject="geheim-subject", contents="geheim-body"),
        stack.post(to="refused@example.org", contents="geheim-body"),
    ]
    stock = Celery(broker=stack.settings["BROKER_URL"])
    ids.append(
        stock.send_task(
            "mailasync.sendMail", [{"to": "bob@example.org", "contents": "geheim-body"}]
        ).id
    )
    stock.send_task("mailasync.sendmail", [{"to": "bob@example.org", "contents": "geheim-body"}])
    stock.close()
    wait_until(
        lambda: stack.request("GET", f"/v1/messages/{ids[-1]}")[0] == 200, what="the task was read"
    )
    assert [stack.final(id)["status"] for id in ids] == ["sent", "failed", "sent"]
    lines_of(tmp_path / "mail.log", "is no mail that can be accepted")
    worker.stop()
    text = (tmp_path / "mail.log").read_text()
    said = [json.loads(line) for line in text.splitlines()]
    assert {one["message_id"] for one in said if one["logger"] == "mailasync.delivery"} == set(ids)
    assert {"DEBUG", "INFO", "ERROR"} <= {one["level"] for one in said}
    assert all(list(one)[:4] == ["time", "level", "logger", "message"] for one in said)
    assert "geheim" not in text and "@example.org" not in text


@pytest.mark.parametrize("how", ["LOG_FILE", "--logfile"])
def test_mail_goes_on_while_the_log_file_cannot_be_written(
    stack: Service, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "logs" / "mail.log"
    file.parent.mkdir()
    stack.settings |= {"LOG_FILE": str(file)} if how == "LOG_FILE" else {}
    web = stack.web()
    worker = stack.worker(
        "--loglevel=INFO", *((f"--logfile={file}",) if how == "--logfile" else ()), wait=False
    )
    lines_of(file, " ready.")
    mend = moved_away(file)
    assert {stack.final(stack.post(), timeout=60)["status"] for _ in range(3)} == {"sent"}
    worker.says(f"mailasync: the log file {file} cannot be written: No such file or directory")
    mend()
    id = stack.post()
    assert stack.final(id, timeout=60)["status"] == "sent"
    lines_of(file, f"message {id} attempt 1: sent")
    lines_of(file, "before the last one could not be written")
    assert worker.stop() == 0
    assert [program.text().count("cannot be written") for program in (worker, web)] in (
        [1, 0],
        [1, 1],
    )


#: Runs the rest of the command line without standard streams that can be written to.
BROKEN = "reads, writes = os.pipe(); os.close(reads); os.dup2(writes, 1); os.dup2(writes, 2)"
CLOSED = "os.closerange(0, 3)"


@pytest.mark.parametrize("streams", [BROKEN, CLOSED], ids=["broken", "closed"])
def test_a_service_whose_output_nobody_takes_serves_all_the_same(
    stack: Service, tmp_path: Path, streams: str
) -> None:
    stack.settings |= {"INBOX_SMTP_PORT": str(free_port()), "LOG_FILE": str(tmp_path / "mail.log")}
    del stack.settings["BROKER_URL"]
    run = f"import os, sys; {streams}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    up = stack.run("-c", run, "-m", "flask", "up", "--deliver", name="up")
    stack._answers(up)
    assert stack.final(stack.post(), timeout=60)["status"] == "sent"
    assert stack.get("/readyz")["status"] == "ok"
    assert up.stop() == 0
    lines_of(tmp_path / "mail.log", "sent (250)")


@pytest.mark.parametrize("streams", [BROKEN, CLOSED], ids=["broken", "closed"])
def test_a_worker_whose_output_nobody_takes_works_all_the_same(
    stack: Service, tmp_path: Path, streams: str
) -> None:
    stack.settings["LOG_FILE"] = str(tmp_path / "mail.log")
    run = f"import os, sys; {streams}; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    worker = stack.run(
        "-c", run, "-m", "celery", "-A", "mailasync", "worker", "--loglevel=INFO", name="worker"
    )
    lines_of(tmp_path / "mail.log", " ready.")
    stack.web()
    assert stack.final(stack.post(), timeout=60)["status"] == "sent"
    assert worker.stop() == 0
