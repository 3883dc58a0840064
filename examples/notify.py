"""Run a command, and mail how it ended: exit code, duration and the last 50 lines. One file to copy; it needs only requests.

    python notify.py --to me@example.org [--url http://127.0.0.1:5000] -- python train.py

It exits as the command did: with its code, or 128 + n where signal n ended it. If the service has an API key, put it into NOTIFY_KEY.
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

import requests
from requests.adapters import HTTPAdapter, Retry

#: What a terminal obeys (a progress bar's line written over, colours), and what no mail may hold.
CONTROL = re.compile(
    r"(?m:^).*\r(?=[^\r\n])|\x1b\[[0-9;?]*[ -/]*[@-~]|[^\t\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\U0010ffff]"
)


def run(command: list[str], tail: bytearray) -> int:
    """Run it, pass its output on and keep the end; return what a shell would: 127 for what is not there, 128 + n for signal n."""
    try:  # Python holds its output back where it goes into a pipe, unless it is asked not to.
        process = subprocess.Popen(command, stdout=-1, stderr=-1, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    except OSError as e:
        tail.extend(os.fsencode(f"notify.py: {command[0]}: {e.strerror}\n"))
        os.write(2, tail)
        return 127 if isinstance(e, FileNotFoundError) else 126
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
    ):  # Of these Ctrl-C on a terminal reaches the command by itself.
        signal.signal(
            number,
            lambda n, _: (
                None if n == signal.SIGINT and any(map(os.isatty, range(3))) else process.send_signal(n)
            ),
        )
    sinks = {pipe.fileno(): sink for pipe, sink in ((process.stdout, 1), (process.stderr, 2)) if pipe}
    rest, ended = dict.fromkeys(sinks, b""), 0
    while sinks and ended < 4:  # What the command left in the background may hold its pipes for ever.
        for source in select.select([*sinks], [], [], 0.5)[
            0
        ]:  # In this order, so that no error comes before what was said earlier.
            if not (chunk := os.read(source, 65536)):
                del sinks[source]
                continue
            lines, newline, rest[source] = (rest[source][-256_000:] + chunk).rpartition(b"\n")
            tail.extend(lines + newline)
            del tail[:-256_000]
            with suppress(OSError):  # A terminal that was closed, or a full disk, must not end the work.
                while chunk := chunk[os.write(sinks[source], chunk) :]:
                    pass
        ended += process.poll() is not None
    tail.extend(b"".join(rest.values()))
    code = process.wait()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return code if code >= 0 else 128 - code


parser = argparse.ArgumentParser(description="Run a command, and mail how it ended.")
parser.add_argument("--to", required=True, action="append")
parser.add_argument("--url", default="http://127.0.0.1:5000", help="of the service")
parser.add_argument(
    "--key",
    default=os.environ.get("NOTIFY_KEY", ""),
    help="better in NOTIFY_KEY, where `ps` does not show it",
)
parser.add_argument("command", nargs=argparse.REMAINDER)
asked = parser.parse_args()
command = asked.command[asked.command[:1] == ["--"] :] or parser.error("expected -- and a command")
tail, started = bytearray(), time.monotonic()
code = run(command, tail)
took = timedelta(seconds=round(time.monotonic() - started))
subject = CONTROL.sub(
    "", f"{f'failed ({code})' if code else 'ok'}: {' '.join(shlex.join(command).split())[:150]} ({took})"
)
lines = [line[:500] for line in CONTROL.sub("", tail.decode(errors="replace")).rstrip().split("\n")[-50:]]
session = (
    requests.Session()
)  # It tries for 14 s more where the service is away, or answers that it took nothing.
session.mount(
    asked.url,
    HTTPAdapter(
        max_retries=Retry(4, backoff_factor=1, status_forcelist=[502, 503, 504], allowed_methods=None)
    ),
)
try:
    answer = session.post(
        f"{asked.url.rstrip('/')}/v1/messages",
        timeout=15,
        headers={"Authorization": f"Bearer {asked.key}"} if asked.key else None,
        json={
            "to": asked.to,
            "subject": subject,
            "contents": "\n".join([subject, os.uname().nodename, "", *lines]),
        },
    )
    if answer.status_code != 202:
        raise requests.HTTPError(answer.text)
except (requests.RequestException, KeyboardInterrupt) as e:
    print(
        f"notify.py: not mailed to {', '.join(asked.to)}: {subject}\n{type(e).__name__}: {e}", file=sys.stderr
    )
sys.exit(code)
