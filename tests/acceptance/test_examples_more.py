"""The examples cafe, periodic and notify.py: by their own commands, as real processes on RabbitMQ."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.services import free_port, is_alive, wait_until
from tests.services.processes import PROJECT, Program, Service, service
from tests.services.rabbitmq import RabbitMQ
from tests.services.smtpd import ScriptedSMTP

NOTIFY = "examples/notify.py"
RUN = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
#: As a terminal starts a command. What a script puts in the background ignores SIGINT (POSIX, shell, 2.11), under
#: nohup SIGHUP as well; all that it starts inherits that, and a shell may not even trap such a signal (2.14, trap).
RUN_IN_FOREGROUND = f"import signal; [signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGHUP)]; {RUN}"
VENV = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def stack(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]
) -> Iterator[Service]:
    """Settings alone, of which no example knows; the processes are for the test to start."""
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=sqlite_url, **to_smtpd) as made:
        made.upgrade()
        yield made


def start(stack: Service, example: str, name: str, **env: str) -> Program:
    """Run one line of the example's Procfile as it stands."""
    lines = (PROJECT / "examples" / example / "Procfile").read_text().splitlines()
    [command] = [line.removeprefix(f"{name}:") for line in lines if line.startswith(f"{name}:")]
    program = stack.run("-c", RUN, *shlex.split(command), name=name, env={**VENV, **env})
    if " worker " in command:
        program.says(" ready.")
    elif "app.py" in command:
        stack._answers(program)
    return program


def finished(stack: Service, id: str) -> Any:
    wait_until(lambda: stack.request("GET", f"/v1/jobs/{id}")[0] == 200, what="the order was read")
    return stack.request("GET", f"/v1/jobs/{id}", headers={"Prefer": "wait=15"})[1]


def seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()


def test_make_example_lists_them_and_knows_no_other() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "example"],
        cwd=PROJECT,
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    named = {line.split()[2].removeprefix("NAME=") for line in listed}
    assert named == {file.parent.name for file in PROJECT.glob("examples/*/Procfile")}
    unknown = subprocess.run(
        ["make", "example", "NAME=tea"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert unknown.returncode
    assert unknown.stderr.startswith("there is no example tea; make example lists them")


def is_ready(honcho: Program, name: str) -> bool:
    return re.search(rf"{name}\.1 .* ready\.", honcho.text()) is not None


def test_control_c_ends_all_that_make_example_started(stack: Service) -> None:
    stack.settings |= {"INBOX_PORT": str(free_port()), "INBOX_SMTP_PORT": str(free_port())}
    honcho = stack.run(
        "-m",
        "honcho",
        "-e",
        os.devnull,
        "-f",
        "examples/cafe/Procfile",
        "start",
        name="honcho",
        env=VENV,
    )
    for name in ("beer", "coffee", "mail"):
        wait_until(
            partial(is_ready, honcho, name), what=f"{name} is ready: {honcho.text()[-2000:]}"
        )
    stack._answers(honcho)
    honcho.process.send_signal(signal.SIGINT)
    assert honcho.process.wait(60) == 130
    pids = [int(pid) for pid in re.findall(r"started \(pid=(\d+)\)", honcho.text())]
    assert len(pids) == 5
    assert not any(is_alive(pid) for pid in pids)


# --- cafe ----------------------------------------------------------------------------------------------------------


def test_a_coffee_does_not_wait_behind_twenty_beers(stack: Service, smtpd: ScriptedSMTP) -> None:
    for name in ("beer", "coffee", "mail", "web"):
        start(stack, "cafe", name)
    told = subprocess.run(
        [sys.executable, "examples/cafe/order.py", "--beers", "20", "--to", "bob@example.org"],
        cwd=PROJECT,
        env=stack.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    ids = [line.split() for line in told.stdout.splitlines()]
    assert [drink for drink, _ in ids] == ["beer"] * 20 + ["coffee"]
    coffee = finished(stack, ids[-1][1])
    assert (coffee["status"], coffee["result"], coffee["queue"]) == (
        "succeeded",
        "1 cup of coffee",
        "coffee",
    )
    beers = stack.get("/v1/jobs?name=beer&limit=100")["data"]
    assert len(beers) == 20
    assert [
        beer
        for beer in beers
        if not beer["started_at"] or beer["started_at"] > coffee["finished_at"]
    ], "all were served first"
    wait_until(lambda: smtpd.messages, what="the mail is there")
    [mail] = smtpd.messages
    assert mail.rcpt_tos == ("bob@example.org",)
    assert b"Subject: Your coffee is ready" in mail.data
    assert b"Here is 1 cup of coffee." in mail.data


def test_an_order_without_a_broker_ends_with_a_sentence(stack: Service) -> None:
    told = subprocess.run(
        [sys.executable, "examples/cafe/order.py"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**stack.environment, "MAILASYNC_BROKER_URL": "pyamqp://guest@127.0.0.1:1//"},
    )
    assert told.returncode == 1
    assert told.stderr.startswith("order.py: the broker did not accept the order: ")
    assert "Traceback" not in told.stderr


# --- periodic ------------------------------------------------------------------------------------------------------


def has_ticked(beat: Program) -> bool:
    return beat.text().count("Sending due task daily report") >= 4


def test_beat_mails_a_report_and_two_of_it_mail_no_more(
    stack: Service, smtpd: ScriptedSMTP, tmp_path: Path
) -> None:
    every = {"REPORT_TO": "bob@example.org", "REPORT_EVERY_SECONDS": "1"}
    for name in ("web", "worker"):
        start(stack, "periodic", name)
    beats = [
        start(stack, "periodic", "beat", REPORT_STATE_FILE=f"{tmp_path}/beat-{n}", **every)
        for n in range(2)
    ]
    for beat in beats:
        wait_until(partial(has_ticked, beat), what="it has ticked")
    for beat in beats:
        assert beat.stop() == 0
    ticks = [beat.text().count("Sending due task daily report") for beat in beats]

    def jobs() -> list[Any]:
        found: list[Any] = stack.get("/v1/jobs?name=report&limit=100")["data"]
        return found if {job["status"] for job in found} == {"succeeded"} else []

    wait_until(lambda: len(smtpd.messages) == len(jobs()) >= 2, what="each job has its mail")
    assert len(jobs()) <= max(ticks) + 3 < sum(ticks)
    for mail in smtpd.messages:
        assert mail.rcpt_tos == ("bob@example.org",)
        assert re.search(
            rb"The disk is [\d.]+ % full: [\d.]+ of [\d.]+ GB are free\.",
            mail.data.replace(b"=\r\n", b""),
        )
    assert len({mail.message_id for mail in smtpd.messages}) == len(smtpd.messages)


def test_a_broker_that_is_away_does_not_end_beat(
    tmp_path: Path,
    private_rabbitmq: RabbitMQ,
    sqlite_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    with service(
        tmp_path, BROKER_URL=private_rabbitmq.url(), DATABASE_URL=sqlite_url, **to_smtpd
    ) as stack:
        stack.upgrade()
        private_rabbitmq.kill()
        beat = start(
            stack,
            "periodic",
            "beat",
            REPORT_EVERY_SECONDS="1",
            REPORT_STATE_FILE=f"{tmp_path}/beat",
        )
        beat.says("beat: Connection error")
        private_rabbitmq.start()
        start(stack, "periodic", "worker")
        wait_until(lambda: smtpd.messages, what="a report is there")
        assert beat.stop() == 0


def test_without_being_hurried_beat_ticks_each_day_at_seven(stack: Service, tmp_path: Path) -> None:
    beat = start(stack, "periodic", "beat", REPORT_STATE_FILE=str(tmp_path / "new" / "beat"))
    beat.says("beat: Starting...")
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "from examples.periodic.schedule import app; print(app.conf.beat_schedule)",
        ],
        cwd=PROJECT,
        env=stack.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "<crontab: 0 7 * * * (m/h/dM/MY/d)>" in told.stdout
    assert beat.stop() == 0


# --- notify.py -----------------------------------------------------------------------------------------------------


@pytest.fixture
def up(stack: Service) -> Service:
    """Everything in one process, to be started, which hands its mail to `smtpd`."""
    stack.settings["INBOX_SMTP_PORT"] = str(free_port())
    return stack


def notify(
    up: Service, *command: str, to: str = "bob@example.org", **options: Any
) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, **options.pop("env", {})}
    pipes: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    } | options
    line = [sys.executable, NOTIFY, "--to", to, "--url", up.url, "--", *command]
    return subprocess.Popen(
        [sys.executable, "-c", RUN_IN_FOREGROUND, *line],
        cwd=PROJECT,
        env=environment,
        start_new_session=True,
        **pipes,
    )


def told(process: "subprocess.Popen[bytes]") -> tuple[int, bytes, bytes]:
    with process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            # Else `with` waits for it, and its pipes, for ever.
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, out, err


@pytest.fixture
def in_background() -> Iterator[None]:
    """Ignore what a script's background ignores, and nohup, as does all that is started meanwhile."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def mails(smtpd: ScriptedSMTP, count: int) -> dict[str, str]:
    """The text of each mail by its subject, without the duration."""
    wait_until(lambda: len(smtpd.messages) >= count, what=f"{count} mails are there")
    found = {}
    for mail in smtpd.messages:
        read = message_from_bytes(mail.data, policy=policy.default)
        assert isinstance(read, EmailMessage)
        body = read.get_body(("plain",))
        assert body
        subject, _, duration = str(read["Subject"]).rpartition(" ")
        assert re.fullmatch(r"\(0:00:\d\d\)", duration)
        found[subject] = str(body.get_content()).replace("\r\n", "\n").rstrip()
    return found


def test_a_command_is_passed_through_and_its_end_is_mailed(
    up: Service, smtpd: ScriptedSMTP
) -> None:
    up.up("--deliver")
    noisy = "import sys\nfor n in range(1, 61): print('line', n)\nsys.exit('no more')"
    assert told(notify(up, sys.executable, "-c", noisy)) == (
        1,
        b"".join(b"line %d\n" % n for n in range(1, 61)),
        b"no more\n",
    )
    assert told(notify(up, "true")) == (0, b"", b"")
    assert told(notify(up, "no-such-command", "--to", "x")) == (
        127,
        b"",
        b"notify.py: no-such-command: No such file or directory\n",
    )
    assert told(notify(up, "./README.md"))[0] == 126
    assert told(notify(up, "sh", "-c", "kill -9 $$"))[0] == 137
    code, _, said = told(notify(up, "true", to="nobody"))
    assert code == 0
    assert b"notify.py: not mailed to nobody: ok: true (0:00:00)" in said
    assert b"expected an address" in said
    found = mails(smtpd, 5)
    [long] = [subject for subject in found if "for n in range" in subject]
    assert long.startswith("failed (1): ")
    lines = found.pop(long).split("\n")
    assert {f"line {n}" for n in range(12, 61)} <= {*lines}
    assert "no more" in lines
    assert "line 10" not in lines
    assert (
        "no-such-command: No such file or directory"
        in found["failed (127): no-such-command --to x"]
    )
    assert {*found} == {
        "ok: true",
        "failed (127): no-such-command --to x",
        "failed (126): ./README.md",
        "failed (137): sh -c 'kill -9 $$'",
    }


def test_garbage_colours_and_a_gigabyte_of_output_do_no_harm(
    up: Service, smtpd: ScriptedSMTP
) -> None:
    up.up("--deliver")
    garbage = r"printf '\033[31mred\033[0m\000\377\376\n10%%\r20%%\r30%%\n{{ job }} \302\240\n'; printf '%10000d\n' 7"
    code, out, _ = told(notify(up, "sh", "-c", garbage))
    assert (code, out[:14]) == (0, b"\x1b[31mred\x1b[0m\0\xff")
    with open(os.devnull, "wb") as nothing:
        large = notify(
            up,
            "sh",
            "-c",
            "yes 0123456789 | head -c 1000000000; echo; echo the end",
            stdout=nothing,
        )
        assert told(large)[0] == 0
    texts = list(mails(smtpd, 2).values())
    assert "red\ufffd\ufffd\n30%\n{{ job }}" in texts[0]
    assert max(map(len, texts[0].split("\n"))) <= 500
    assert texts[1].endswith("the end")
    assert len(texts[1].split("\n")) == 3 + 50


@pytest.mark.usefixtures("in_background")
def test_a_signal_reaches_the_command_and_the_mail_goes_all_the_same(
    up: Service, smtpd: ScriptedSMTP
) -> None:
    up.up("--deliver")
    for number, (which, code) in enumerate(
        [(signal.SIGTERM, 7), (signal.SIGINT, 130), (signal.SIGHUP, 129)], start=1
    ):
        process = notify(
            up,
            "sh",
            "-c",
            "trap 'echo gone; exit 7' TERM; echo ready; while :; do sleep 0.05; done",
        )
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(which)
        assert told(process)[0] == code
        [text] = [
            text
            for subject, text in mails(smtpd, number).items()
            if subject.startswith(f"failed ({code}): sh -c ")
        ]
        assert text.endswith("ready\ngone" if code == 7 else "ready")


def test_control_c_on_a_terminal_reaches_the_command_once(up: Service, smtpd: ScriptedSMTP) -> None:
    up.up("--deliver")
    counts = (
        "import signal, sys, time; got = []; signal.signal(signal.SIGINT, lambda *_: got.append(1)); print('ready')\n"
        "while not got: time.sleep(0.05)\ntime.sleep(0.5); sys.exit(40 + len(got))"
    )
    own = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    ours, its = pty.openpty()
    command = [
        sys.executable,
        "-c",
        own,
        NOTIFY,
        "--to",
        "bob@example.org",
        "--url",
        up.url,
        "--",
        sys.executable,
        "-c",
        counts,
    ]
    process = subprocess.Popen(
        command, cwd=PROJECT, stdin=its, stdout=its, stderr=its, start_new_session=True
    )
    os.close(its)
    try:
        assert b"ready" in os.read(ours, 100)
        os.write(ours, b"\x03")
        assert process.wait(60) == 41
    finally:
        os.close(ours)
    assert len(mails(smtpd, 1)) == 1


class Busy(BaseHTTPRequestHandler):
    """A service that takes a mail at the third time."""

    asked: ClassVar[list[tuple[str | None, Any]]] = []

    def do_POST(self) -> None:
        self.asked.append(
            (
                self.headers["Authorization"],
                json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
            )
        )
        self.send_response(503 if len(self.asked) < 3 else 202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_a_service_that_is_away_is_tried_again_and_what_was_not_sent_is_said(
    tmp_path: Path,
) -> None:
    lost = notify(Service(tmp_path, {}), "sh", "-c", "exit 3")  # nobody listens there
    with HTTPServer(("127.0.0.1", 0), Busy) as busy:
        threading.Thread(target=busy.serve_forever, daemon=True).start()
        service = Service(tmp_path, {}, port=busy.server_port)
        assert told(notify(service, "true", env={"NOTIFY_KEY": "geheim"}))[0] == 0
        busy.shutdown()
    expected = ("Bearer geheim", ["bob@example.org"], "ok: true (0:00:00)")
    assert [(key, mail["to"], mail["subject"]) for key, mail in Busy.asked] == [expected] * 3
    code, _, said = told(lost)
    assert code == 3
    assert b"notify.py: not mailed to bob@example.org: failed (3): sh -c 'exit 3' (0:00:00)" in said
    assert b"Traceback" not in said
