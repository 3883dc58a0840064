"""Run a command, and mail how it ended: exit code, duration and the last 50 lines of its output.

    python notify.py --to me@example.org [--url http://127.0.0.1:5000] -- python train.py

Copy this one file; it needs only requests. If the service has an API key, put it into NOTIFY_KEY.
It exits as the command did: with its exit code, or 128 + n if signal n ended it.
"""

import argparse
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from types import FrameType

import requests
from requests.adapters import HTTPAdapter, Retry

TAIL_LINES = 50
TAIL_MAX_BYTES = 256_000
LINE_MAX_CHARACTERS = 500
#: How often to check whether the command has ended while it prints nothing.
POLL_SECONDS = 0.5

#: Control sequences of terminals, such as colours and progress bars, and characters no mail may contain.
CONTROL = re.compile(
    r"(?m:^).*\r(?=[^\r\n])"  # A line that a carriage return overwrites.
    r"|\x1b\[[0-9;?]*[ -/]*[@-~]"
    r"|[^\t\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\U0010ffff]"
)


class Tail:
    """The end of the output; lines of stdout and stderr are never mixed within a line."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._unfinished: dict[int, bytes] = {}  #: by file descriptor, the beginning of a line

    def add(self, source: int, chunk: bytes) -> None:
        beginning = self._unfinished.get(source, b"")[-TAIL_MAX_BYTES:]
        lines, newline, self._unfinished[source] = (beginning + chunk).rpartition(b"\n")
        self._text.extend(lines + newline)
        del self._text[:-TAIL_MAX_BYTES]

    def lines(self) -> list[str]:
        unfinished = [self._unfinished[source] for source in sorted(self._unfinished)]
        raw = bytes(self._text) + b"".join(unfinished)
        text = CONTROL.sub("", raw.decode(errors="replace")).rstrip()
        return [line[:LINE_MAX_CHARACTERS] for line in text.split("\n")[-TAIL_LINES:]]


def run(command: list[str], tail: Tail) -> int:
    """Run the command, pass its output on, and return the exit code that a shell would.

    That is 127 for a command that does not exist, and 128 + n for one that signal n ended.
    """
    # Python buffers its output when it goes into a pipe, unless it is told not to.
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment)
    except OSError as e:
        message = os.fsencode(f"notify.py: {command[0]}: {e.strerror}\n")
        tail.add(2, message)
        os.write(2, message)
        return 127 if isinstance(e, FileNotFoundError) else 126
    forward_signals(process)
    pass_on_output(process, tail)
    code = process.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return code if code >= 0 else 128 - code


def forward_signals(process: subprocess.Popen[bytes]) -> None:
    """Let the command decide what a signal to this program means."""

    def forward(number: int, frame: FrameType | None) -> None:
        # On a terminal, Ctrl-C reaches the command by itself.
        on_terminal = any(os.isatty(descriptor) for descriptor in range(3))
        if number != signal.SIGINT or not on_terminal:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)


def pass_on_output(process: subprocess.Popen[bytes], tail: Tail) -> None:
    """Copy stdout and stderr until both are closed, or the command has ended."""
    assert process.stdout and process.stderr
    # In this order, so that an error is not printed before what the command said earlier.
    targets = {process.stdout.fileno(): 1, process.stderr.fileno(): 2}
    polls_after_end = 0
    # What the command left running in the background may keep the pipes open for ever.
    while targets and polls_after_end < 4:
        ready, _, _ = select.select(list(targets), [], [], POLL_SECONDS)
        for source in ready:
            chunk = os.read(source, 65536)
            if not chunk:
                del targets[source]
                continue
            tail.add(source, chunk)
            with suppress(OSError):  # A closed terminal or a full disk must not end the work.
                write_all(targets[source], chunk)
        if process.poll() is not None:
            polls_after_end += 1


def write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def subject_of(command: list[str], code: int, seconds: float) -> str:
    result = f"failed ({code})" if code else "ok"
    words = " ".join(shlex.join(command).split())[:150]
    duration = timedelta(seconds=round(seconds))
    return CONTROL.sub("", f"{result}: {words} ({duration})")


def send_mail(url: str, key: str, mail: dict[str, object]) -> None:
    """Hand the mail to the service; retries for 14 s while the service is down or answers 502 to 504."""
    session = requests.Session()
    # allowed_methods=None retries POST as well; the service has not accepted the mail in these cases.
    retries = Retry(4, backoff_factor=1, status_forcelist=[502, 503, 504], allowed_methods=None)
    session.mount(url, HTTPAdapter(max_retries=retries))
    headers = {"Authorization": f"Bearer {key}"} if key else None
    response = session.post(
        f"{url.rstrip('/')}/v1/messages", json=mail, headers=headers, timeout=15
    )
    if response.status_code != 202:
        raise requests.HTTPError(response.text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a command, and mail how it ended.")
    parser.add_argument("--to", required=True, action="append")
    parser.add_argument("--url", default="http://127.0.0.1:5000", help="of the service")
    key_help = "better set NOTIFY_KEY, which `ps` does not show"
    parser.add_argument("--key", default=os.environ.get("NOTIFY_KEY", ""), help=key_help)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("expected -- and a command")

    tail, started = Tail(), time.monotonic()
    code = run(command, tail)
    subject = subject_of(command, code, time.monotonic() - started)
    contents = "\n".join([subject, os.uname().nodename, "", *tail.lines()])
    mail = {"to": options.to, "subject": subject, "contents": contents}
    try:
        send_mail(options.url, options.key, mail)
    except (requests.RequestException, KeyboardInterrupt) as e:
        print(f"notify.py: not mailed to {', '.join(options.to)}: {subject}", file=sys.stderr)
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
