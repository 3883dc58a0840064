"""Sets up the log: where it goes, its format, and the request id on each line.

The log must never contain addresses or bodies of mails.
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

#: An address, also with a quoted local part, whose quotes may be escaped: "odd user"@example.org.
_ADDRESS = re.compile(
    r"""(?:\\?"(?:\\.|[^"\\\n]){1,130}\\?"|[^\s<>()\[\]{},;:"'`=]+)@[^\s<>()\[\]{},;"'`]+"""
)
#: Celery's loggers that log task arguments (a client's whole mail) below WARNING, and nothing else of use.
_ARGUMENT_LOGGERS = frozenset({"celery.pool", "celery.concurrency.base"})

_HOST_NAME = socket.gethostname()

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

#: The id of the request that this thread handles; "" outside a request.
request_id: ContextVar[str] = ContextVar("request_id", default="")


class NoPersonalData(logging.Filter):
    """Masks addresses in every record, and drops records that contain the arguments of a task."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name in _ARGUMENT_LOGGERS and record.levelno < logging.WARNING:
            return False
        message = _message(record)
        if "@" in message:
            message = _ADDRESS.sub(_masked, message)
        record.msg, record.args = message, None
        if record.exc_info and not record.exc_text:
            traceback = logging.Formatter().formatException(record.exc_info)
            record.exc_text = _ADDRESS.sub(_masked, traceback)
        return True


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as e:  # The arguments do not fit the format; that must not stop whoever logs.
        return f"a line of {record.pathname}:{record.lineno} cannot be shown: {type(e).__name__}"


def _masked(match: re.Match[str]) -> str:
    """Keep what only looks like an address: worker names, and broker URLs with a masked password."""
    text = match[0]
    is_worker = text.rstrip(".:").endswith(f"@{_HOST_NAME}")
    return text if is_worker or text.startswith("**@") else "<address>"


class TextFormatter(logging.Formatter):
    """Formats lines of text; a line logged during a request ends with the request's id."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        return f"{line} [{id}]" if (id := request_id.get()) else line


class JSONFormatter(logging.Formatter):
    """Formats each line as a JSON object, with `request_id` and `message_id` where they are known.

    Code that logs about a message passes `extra={"message_id": id}`. Clients may choose that id, even an
    address, so it is masked as well.
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
    """Log to the terminal, in processes whose log Celery does not set up."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter(settings))
    finish_setup(settings, logging.getLogger())


def finish_setup(settings: Settings, logger: logging.Logger) -> None:
    """Add LOG_FILE to the handlers of `logger`, and our format and filter to all of them."""
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.raiseExceptions = False  # A line that cannot be written is dropped without a traceback.
    _replace_file_handlers(logger)
    if settings.LOG_FILE and not any(
        isinstance(handler, LogFileHandler) for handler in logger.handlers
    ):
        file_handler = LogFileHandler(str(Path(settings.LOG_FILE).expanduser()))
        file_handler.setFormatter(formatter(settings))
        logger.addHandler(file_handler)
    for handler in logger.handlers:
        if settings.LOG_FORMAT == "json":
            handler.setFormatter(formatter(settings))
        handler.addFilter(NoPersonalData())


def _replace_file_handlers(logger: logging.Logger) -> None:
    """Replace the handlers of Celery's --logfile by ours, which never raise if the file is not writable."""
    for handler in list(logger.handlers):
        if isinstance(handler, logging.FileHandler):
            ours = LogFileHandler(handler.baseFilename)
            ours.setFormatter(handler.formatter)
            logger.removeHandler(handler)
            logger.addHandler(ours)
            handler.close()


def formatter(settings: Settings) -> logging.Formatter:
    return JSONFormatter() if settings.LOG_FORMAT == "json" else TextFormatter(TEXT_FORMAT)
