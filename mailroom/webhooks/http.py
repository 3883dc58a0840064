"""Reads an HTTP/1.1 server's answer as far as it counts: its status, Retry-After, and the first words of its body."""

import re
from contextlib import suppress
from dataclasses import dataclass
from http.client import BadStatusLine, HTTPException, RemoteDisconnected
from io import BufferedReader

BODY_MAX_BYTES = 4096
WORDS_MAX_CHARACTERS = 300
LINE_MAX_BYTES = 65_536
#: Of one header section; what comes after that is not read.
HEADER_MAX_BYTES = 1_000_000
#: Interim answers (RFC 9110, 15.2: 100, 102, 103 …) before the final one.
INTERIM_MAX = 20
SWITCHING_PROTOCOLS = 101
WITHOUT_BODY = frozenset({204, 304})

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})(?: ([^\r\n]*))?\r?\n")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\x9f\u2028\u2029\ufffd]+")


@dataclass(frozen=True)
class Answer:
    """A receiver's final answer. Without a code there was none, and `words` say why."""

    code: int | None
    words: str
    retry_after: str = ""


def read_answer(source: BufferedReader) -> Answer:
    """Read to the final answer. Its status line is all that it needs: what is cut, odd or endless after that is let go.

    Raises:
      OSError, HTTPException: there was no final status line.
    """
    for _ in range(INTERIM_MAX):
        code, reason = _read_status(source)
        header: dict[str, str] = {}
        if 100 <= code < 200 and code != SWITCHING_PROTOCOLS:  # After 101 no HTTP follows.
            _read_header(source, header)
            continue
        body = b""
        with suppress(OSError, ValueError, HTTPException):
            _read_header(source, header)
            body = b"" if code in WITHOUT_BODY else _read_body(source, header)
        words = words_of(body.decode(errors="replace")) or words_of(reason)
        return Answer(code, words, header.get("retry-after", ""))
    raise HTTPException(f"{INTERIM_MAX} interim answers, and no final one")


def words_of(text: str) -> str:
    """The beginning of it, on one line."""
    return _UNPRINTABLE.sub(" ", text).strip()[:WORDS_MAX_CHARACTERS]


def _read_status(source: BufferedReader) -> tuple[int, str]:
    """The code of a status line, and its reason."""
    line = source.readline(LINE_MAX_BYTES)
    if not line:
        raise RemoteDisconnected("closed without an answer")
    found = _STATUS.fullmatch(line)
    if not found:
        raise BadStatusLine(words_of(line.decode(errors="replace")))
    return int(found[1]), (found[2] or b"").decode(errors="replace")


def _read_header(source: BufferedReader, header: dict[str, str]) -> None:
    """Fill in the first value of each field, by its name in small letters."""
    left = HEADER_MAX_BYTES
    while (line := source.readline(LINE_MAX_BYTES)).strip():
        left -= len(line)
        if left < 0:
            raise HTTPException("the header has no end")
        name, _, value = line.decode("latin-1").partition(":")
        header.setdefault(name.strip().lower(), value.strip())


def _read_body(source: BufferedReader, header: dict[str, str]) -> bytes:
    """Return what is there of it at once; a server may keep the connection, or be in no hurry."""
    size = BODY_MAX_BYTES
    if "chunked" in header.get("transfer-encoding", "").lower():
        size = int(source.readline(LINE_MAX_BYTES).partition(b";")[0], 16)
    elif "content-length" in header:
        size = int(header["content-length"])
    return source.read1(min(size, BODY_MAX_BYTES)) if size > 0 else b""
