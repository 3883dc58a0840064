"""Sets up where the log goes, how it looks, and which request a line is about.

Addresses and bodies must never be in it.
"""

import json
import logging
import re
import socket
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from mailroom.config.settings import Settings
from mailroom.process.log_file import LogFileHandler

#: Also one with quotes, which may be escaped: "odd user"@example.org.
_ADDRESS = re.compile(
    r"""(?:\\?"(?:\\.|[^"\\\n]){1,130}\\?"|[^\s<>()\[\]{},;:"'`=]+)@[^\s<>()\[\]{},;"'`]+"""
)
#: Loggers that write out task arguments (a client's whole mail) below WARNING, and nothing else that is worth it.
_ARGUMENTS_SHOWN = frozenset({"celery.pool", "celery.concurrency.base"})

_HOST_NAME = socket.gethostname()

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

#: The request that this thread answers; "" while it answers none.
request_id: ContextVar[str] = ContextVar("request_id", default="")


class NoPersonalData(logging.Filter):
    """Takes addresses out of every record, and drops those that show the arguments of a task."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name in _ARGUMENTS_SHOWN and record.levelno < logging.WARNING:
            return False
        message = _message(record)
        record.msg, record.args = _ADDRESS.sub(_masked, message) if "@" in message else message, None
        if record.exc_info and not record.exc_text:
            record.exc_text = _ADDRESS.sub(_masked, logging.Formatter().formatException(record.exc_info))
        return True


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as e:  # The arguments do not fit; that must end nothing but the line.
        return f"a line of {record.pathname}:{record.lineno} cannot be shown: {type(e).__name__}"


def _masked(found: re.Match[str]) -> str:
    """The names of workers look like addresses, and so does a broker whose password Celery has masked; both stay."""
    return (
        found[0]
        if found[0].startswith("**@") or found[0].rstrip(".:").endswith(f"@{_HOST_NAME}")
        else "<address>"
    )


class TextFormatter(logging.Formatter):
    """Lines of text, each with the request that it is about at its end, where it is about one."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return f"{line} [{id}]" if (id := request_id.get()) else line


class JSONFormatter(logging.Formatter):
    """Lines of one JSON object, with `request_id` and `message_id` where they are known.

    Whoever logs about a message says `extra={"message_id": id}`. A client may have chosen that id, and an address for it.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if id := request_id.get():
            line["request_id"] = id
        if message_id := getattr(record, "message_id", None):
            line["message_id"] = _ADDRESS.sub(_masked, str(message_id))
        if record.exc_info:
            line["exception"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(line)


def setup_web(settings: Settings) -> None:
    """Log to the terminal; for processes that Celery does not set up."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter(settings))
    finish_setup(settings, logging.getLogger())


def finish_setup(settings: Settings, logger: logging.Logger) -> None:
    """Add LOG_FILE, the format, and the filter to the handlers that `logger` has."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # A line that cannot be written is dropped, and not told by a traceback.
    _replace_file_handlers(logger)
    if settings.LOG_FILE and not any(isinstance(handler, LogFileHandler) for handler in logger.handlers):
        to_file = LogFileHandler(str(Path(settings.LOG_FILE).expanduser()))
        to_file.setFormatter(formatter(settings))
        logger.addHandler(to_file)
    for handler in logger.handlers:
        if settings.LOG_FORMAT == "json":
            handler.setFormatter(formatter(settings))
        handler.addFilter(NoPersonalData())


def _replace_file_handlers(logger: logging.Logger) -> None:
    """Have what Celery's --logfile writes written by ours, as that one raises where it cannot."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            ours = LogFileHandler(handler.baseFilename)
            ours.setFormatter(handler.formatter)
            logger.removeHandler(handler)
            logger.addHandler(ours)
            handler.close()


def formatter(settings: Settings) -> logging.Formatter:
    return JSONFormatter() if settings.LOG_FORMAT == "json" else TextFormatter(TEXT_FORMAT)
