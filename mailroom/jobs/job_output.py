"""Logs what a job prints, line by line and within limits."""

import logging

log = logging.getLogger("mailasync.jobs")

#: Of each job's output only so much is logged.
OUTPUT_MAX_BYTES = 64_000
OUTPUT_LINE_MAX_CHARACTERS = 500

_NOT_PRINTED = dict.fromkeys([*range(32), *range(127, 160)], " ")


class JobOutput:
    """The output of one job."""

    def __init__(self, id: str) -> None:
        self._id = id
        self._line = bytearray()
        self._bytes_left = OUTPUT_MAX_BYTES

    def add(self, chunk: bytes) -> None:
        """Log the lines that are complete with `chunk`."""
        if self._bytes_left < 0:
            return
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            self._append(piece)
            self.end_line()
        self._append(rest)

    def end_line(self) -> None:
        """Log the line so far, if there is anything in it."""
        text = self._line.decode(errors="replace").translate(_NOT_PRINTED)
        text = text[:OUTPUT_LINE_MAX_CHARACTERS].rstrip()
        was_logged = self._bytes_left >= 0
        self._bytes_left -= len(self._line) + 1
        self._line.clear()
        if was_logged and self._bytes_left < 0:
            log.info("job %s: (the rest of what it prints is not shown)", self._id)
        elif was_logged and text:
            log.info("job %s: %s", self._id, text)

    def _append(self, piece: bytes) -> None:
        self._line += piece[: 4 * OUTPUT_LINE_MAX_CHARACTERS - len(self._line)]
