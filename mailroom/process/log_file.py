"""Writes the log to a file, which may be moved away, forbidden or full without stopping any mail."""

import io
import logging
import os
import threading
import time

from mailroom.process.terminal import complain

#: The time between two complaints about a file.
COMPLAIN_SECONDS = 60.0


class LogFile:
    """A file that lines are appended to; it is opened again if it was moved or deleted."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: io.FileIO | None = None
        self._identity = (0, 0)  #: device and inode
        self._lock = threading.Lock()
        self._lost = 0  #: lines that could not be written since the last one that could
        self._is_torn = False  #: its last line was written only in part
        self._complained_at = float("-inf")

    def append(self, line: str) -> int:
        """Write the line if possible; return how many lines before it were lost. Never raises."""
        data = line.encode(errors="backslashreplace")
        with self._lock:
            try:
                self._write(self._open_file(), data)
            except OSError as e:
                self._lose(e)
                return 0
            lost, self._lost = self._lost, 0
            return lost

    def _open_file(self) -> io.FileIO:
        if self._file is not None and self._is_still_there():
            return self._file
        self.close()
        self._file = io.FileIO(self._path, "a")
        self._identity, self._is_torn = _identity(os.fstat(self._file.fileno())), False
        return self._file

    def _is_still_there(self) -> bool:
        try:
            return _identity(os.stat(self._path)) == self._identity
        except OSError:
            return False

    def _write(self, file: io.FileIO, data: bytes) -> None:
        rest = memoryview(b"\n" + data if self._is_torn else data)
        while rest:
            rest = rest[file.write(rest) :]
            self._is_torn = bool(rest)

    def _lose(self, error: OSError) -> None:
        self._lost += 1
        if time.monotonic() - self._complained_at > COMPLAIN_SECONDS:
            self._complained_at = time.monotonic()
            complain(
                f"the log file {self._path} cannot be written: {error.strerror}; "
                "mail goes on, and so does the file as soon as it can be written"
            )

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


#: The open files by path, as the handlers of several loggers share a file.
_files: dict[str, LogFile] = {}


class LogFileHandler(logging.Handler):
    """Appends records to a LogFile; after lines were lost, the next one is followed by how many they were."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = _files.setdefault(path, LogFile(path))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lost = self._file.append(self.format(record) + "\n")
            if lost:
                self._file.append(self.format(_gap(lost)) + "\n")
        except Exception:
            self.handleError(record)  # The record cannot be formatted.

    def close(self) -> None:
        self._file.close()
        super().close()


def _gap(count: int) -> logging.LogRecord:
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelno": logging.WARNING,
            "levelname": "WARNING",
            "msg": "%d lines before the last one could not be written to this file",
            "args": (count,),
        }
    )
