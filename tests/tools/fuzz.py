"""Ten thousand hostile requests against the application, and a look at every mail that comes of them: `python -m tests.tools.fuzz --help`.

Each request is a valid one with something hostile in it. The application, its database, the deliveries and the mail server are real; an
audit hook of the interpreter watches what is opened and whom is connected to. It ends with exit code 1 if an answer was a 5xx, slow or
unhelpful, if a file was opened or a connection made that nobody had to, or if a mail that arrived is not, to the last header field, what
was asked for. `tests/tools/hostile.py` makes the requests, `tests/tools/oracle.py` says what has to arrive.
"""

import argparse
import json
import logging
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask.testing import FlaskClient
from sqlalchemy import text
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request as WsgiRequest

import app as web
from mailroom.cli import database as database_module
from mailroom.config.environment import load
from mailroom.delivery.admission import Admission
from mailroom.delivery.attempt import AttemptRunner, Sender
from mailroom.delivery.delivery import Delivery
from mailroom.model.account import DEFAULT_ACCOUNT, NextHop
from mailroom.model.ids import new_id
from mailroom.model.message import Address
from mailroom.model.retry import Schedule
from mailroom.smtp.pool import Sessions
from mailroom.store.db.database import Database
from mailroom.store.jobs.claims import JobClaims
from mailroom.store.jobs.jobs import JobEnd, JobState
from mailroom.store.maintenance.rescue import Sweeps
from mailroom.store.messages.claims import Claims
from mailroom.store.workers import Heartbeat
from mailroom.worker import runtime
from tests.services.processes import PROJECT
from tests.services.smtpd import ScriptedSMTP
from tests.tools.hostile import TEMPLATES, Maker, Request
from tests.tools.oracle import SENDER, Asked, asked_mails, differences

#: Of processor time, as the machine may be busy with something else.
ANSWER_MAX_SECONDS = 2.0
DELIVER_EVERY = 100
PROBLEMS_MAX = 30
#: A port on which nobody listens, where the broker would be.
NO_BROKER_PORT = 9
#: What no request is a reason for, whatever its arguments.
NEVER = frozenset(
    {
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
        "pty.spawn",
        "os.startfile",
        "webbrowser.open",
        "urllib.Request",
        "ftplib.connect",
        "imaplib.open",
        "poplib.connect",
        "http.client.connect",
        "pickle.find_class",
        "os.scandir",
        "os.walk",
        "glob.glob",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.mkdir",
        "os.link",
        "os.symlink",
        "os.chmod",
        "os.chown",
        "os.truncate",
        "os.putenv",
        "shutil.copyfile",
        "shutil.rmtree",
        "tempfile.mkstemp",
        "tempfile.mkdtemp",
        "socket.sendto",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "socket.bind",
    }
)


class Watch:
    """What the interpreter's audit hook saw while it was on; a hook cannot be taken away again, so there is one."""

    def __init__(self) -> None:
        self.ports: set[int] = set()
        self.on = False
        self.seen: list[str] = []
        pages = [PROJECT / "mailroom" / "web" / name for name in ("static", "templates")]
        roots = [Path(root) for root in [sys.prefix, sys.base_prefix, *map(str, pages)]]
        self.roots = tuple({f"{root}/" for root in [*roots, *(root.resolve() for root in roots)]})
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and (event in NEVER or not self._is_known(event, args)):
            self.seen.append(f"{event} {args!r:.300}")

    def _is_code(self, path: object) -> bool:
        """Whether it is a module of somebody else's that is imported late, or a page of ours."""
        name = str(path)
        return (
            isinstance(path, int)
            or name.startswith(self.roots)
            or name in ("/dev/urandom", "/dev/null")
        )

    def _is_known(self, event: str, args: tuple[Any, ...]) -> bool:
        if event in ("open", "os.listdir"):
            return self._is_code(args[0])
        if event == "socket.connect":
            return args[1][:2] in {("127.0.0.1", port) for port in self.ports}
        if event == "socket.getaddrinfo":
            return args[0] == "127.0.0.1" and int(args[1]) in self.ports
        return True


_watch: list[Watch] = []


def watch() -> Watch:
    """The one of this process."""
    if not _watch:
        _watch.append(Watch())
    return _watch[0]


@dataclass
class Fuzz:
    """One run: sends requests, delivers what was accepted, and notes what is wrong."""

    client: FlaskClient
    database: Database
    smtpd: ScriptedSMTP
    maker: Maker
    watch: Watch
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    wrong: int = 0
    mails: int = 0
    slowest: float = 0.0
    #: by the id of the message, until it was looked at
    _due: dict[str, Asked] = field(default_factory=dict)
    _judged: int = 0

    def __post_init__(self) -> None:
        self.heartbeat = Heartbeat(self.database, new_id(), "fuzz", ["mail"])
        self.heartbeat.beat()
        claims = Claims(self.database, self.heartbeat.id, 3600)
        sessions = Sessions(
            NextHop(host=self.smtpd.host, port=self.smtpd.port, security="none", timeout_seconds=10)
        )
        agent = AttemptRunner(
            {DEFAULT_ACCOUNT: Sender(Address(SENDER), sessions)}, Schedule.parse("10s"), "resend"
        )
        self.delivery = Delivery(claims, agent, Admission(4))
        self.runs, self.sweeps = (
            JobClaims(self.database, self.heartbeat.id, 3600),
            Sweeps(self.database, 3600, "resend"),
        )

    def prepare(self) -> None:
        """Store the templates, and deliver one mail unwatched: some modules are imported, and our own name is looked up, only then."""
        for name, source in TEMPLATES.items():
            self.client.put(f"/v1/templates/{name}", json=source)
        for path in ("/", "/v1/messages"):
            answer = self.client.post(
                path, json={"to": "first@example.org", "html": "<style>p {color: red}</style><p>ü"}
            )
            self.delivery.deliver([answer.json["id"]])  # type: ignore[index]  # it is an object
        self.client.get("/v1/messages/nobody")
        self._judged = len(self.smtpd.messages)

    def run(self, bodies: int, *, first: int = 0, told: bool = False) -> None:
        started = time.monotonic()
        for number in range(first, first + bodies):
            request = self.maker.request(number)
            self.watch.on = True
            try:
                self.send(request)
            except Exception as e:
                # A request that kills the application is a find, not the end of the run.
                self.tell(request, f"{type(e).__name__}: {e}"[:500])
            finally:
                self.watch.on = False
            if (number + 1 - first) % DELIVER_EVERY == 0 or number + 1 == first + bodies:
                self.deliver()
                if told:
                    progress(number + 1 - first, bodies, self, time.monotonic() - started)

    def send(self, request: Request) -> None:
        before = time.process_time()
        builder = EnvironBuilder(
            request.path,
            method=request.method,
            data=request.data,
            content_type=request.content_type,
            headers=request.headers.items(),
            query_string=request.query or None,
        )
        environ = builder.get_environ()
        environ.update(request.environ)
        # Not client.open: that would read the path once more, and correct a length that is a lie.
        answer = self.client.response_wrapper(
            *self.client.run_wsgi_app(environ, buffered=True), request=WsgiRequest(environ)
        )
        seconds = time.process_time() - before
        self.slowest = max(self.slowest, seconds)
        self.statuses[f"{answer.status_code}"] += 1
        for fault in faults_of(answer, seconds, request, self.maker.secret):
            self.tell(request, fault)
        for seen in self.watch.seen:
            self.tell(request, f"it led to {seen}")
        self.watch.seen.clear()
        is_new = (
            request.method == "POST"
            and answer.status_code in (200, 202)
            and "Idempotency-Replayed" not in answer.headers
        )
        if is_new and answer.is_json:
            for id, asked in asked_mails(request, answer.json):
                self._due[id] = asked

    def deliver(self) -> None:
        """End all jobs, let go what waits for its time, deliver, and compare each mail with what was asked for."""
        self.heartbeat.beat()
        self.watch.on = True
        self._deliver()
        self.watch.on = False
        arrived = self.smtpd.messages[self._judged :]
        self._judged += len(arrived)
        by_id = {delivery.message_id: delivery for delivery in arrived}
        for id, asked in self._due.items():
            row = self._row(id)
            if row is None or row.state != "sent":
                self._not_sent(
                    asked,
                    f"{id} was accepted and is {row and (row.state, row.reason)}",
                    row.state if row else "",
                )
                continue
            self.mails += 1
            delivery = by_id.pop(f"<{row.message_id}>", None)
            for fault in (
                ["it did not arrive"]
                if delivery is None
                else differences(delivery, asked, self.maker.secret)
            ):
                self.tell(asked.request, fault)
            if delivery is not None and self.mails % 10 == 0 and asked.job is None:
                raw = self.client.get(f"/v1/messages/{id}/raw")
                if raw.status_code != 200 or raw.data != delivery.data:
                    self.tell(asked.request, f"/raw says {raw.status_code} and is not what arrived")
        for delivery in by_id.values():
            self.problem(
                f"nobody asked for {delivery.message_id} to {delivery.rcpt_tos}: {delivery.data[:1000]!r}"
            )
        for seen in [*self.watch.seen, *map(str, self.smtpd.violations)]:
            self.problem(f"delivering led to {seen}")
        self.watch.seen.clear()
        self.smtpd.violations.clear()
        self._due.clear()

    def _deliver(self) -> None:
        for claim in self.runs.claim("jobs", ["simulate"], limit=10_000):
            self.runs.finish(
                claim,
                JobEnd(
                    state=JobState.SUCCEEDED, result=json.dumps(self.maker.hostile_result(claim.id))
                ),
            )
        with self.database.engine.begin() as connection:
            connection.execute(
                text("UPDATE messages SET next_attempt_at = 1 WHERE state = 'scheduled'")
            )
        while self.sweeps.due():
            pass
        ids = [
            id for id in self._due if (row := self._row(id)) is not None and row.state == "queued"
        ]
        for at in range(0, len(ids), DELIVER_EVERY):
            self.delivery.deliver(ids[at : at + DELIVER_EVERY])

    def _row(self, id: str) -> Any:
        return self.database.read(
            lambda connection: connection.execute(
                text("SELECT state, reason, message_id FROM messages WHERE id = :id"), {"id": id}
            ).one_or_none()
        )

    def _not_sent(self, asked: Asked, fault: str, state: str) -> None:
        if not (state == "expired" and asked.may_expire) and not (
            state == "canceled" and asked.job is not None
        ):
            self.tell(asked.request, fault)

    def tell(self, request: Request, fault: str) -> None:
        self.problem(
            f"request {request.number} ({request.method} {request.path[:200]}): {fault}\n"
            f"    {request.headers!r:.300} {request.content_type!r} {request.data[:1000]!r}"
        )

    def problem(self, fault: str) -> None:
        self.wrong += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(fault)

    def close(self) -> None:
        self.delivery.stop()
        self.delivery.close()


def faults_of(answer: Any, seconds: float, request: Request, secret: str) -> Iterator[str]:
    """What is wrong with an answer by itself."""
    if answer.status_code >= 500:
        yield f"answered {answer.status_code}: {answer.data[:500]!r}"
    if seconds > ANSWER_MAX_SECONDS:
        yield f"took {seconds:.1f} s of the processor"
    if secret.encode() in answer.data or secret in str(answer.headers):
        yield "the answer holds what is in the canary's file"
    # As long as it is, whatever was sent.
    is_document = request.path.split("?")[0] == "/openapi.json"
    if not is_document and len(answer.data) > 20 * len(request.data) + 200_000:
        yield f"{len(request.data)} bytes led to an answer of {len(answer.data)}"
    if any(
        ord(character) < 32 or ord(character) == 127
        for _, value in answer.headers
        for character in value
    ):
        yield f"a control character in the headers {answer.headers}"
    if (
        answer.status_code >= 400
        and request.method != "HEAD"
        and not request.path.startswith("/unsubscribe/")
    ):  # The latter is a page.
        yield from faults_of_problem(answer)


def faults_of_problem(answer: Any) -> Iterator[str]:
    told = json.loads(answer.data) if answer.mimetype == "application/problem+json" else {}
    if told.get("status") != answer.status_code or not told.get("title") or "code" not in told:
        yield f"{answer.status_code} is no problem document: {answer.content_type} {answer.data[:300]!r}"
    if answer.status_code == 400 and not told.get("detail"):
        yield f"a 400 says nothing: {answer.data[:300]!r}"
    for error in told.get("errors", []):
        is_placed = error.get("pointer") or error.get("parameter")
        if (
            not is_placed
            or "expected" not in error["detail"].lower()
            or "got" not in error["detail"]
        ):
            yield f"an error does not say what was expected and what came: {error}"
    if answer.status_code == 422 and not told.get("errors"):
        yield f"a 422 names no field: {answer.data[:300]!r}"


@contextmanager
def canary() -> Iterator[int]:
    """A port to which nobody may connect."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]
        listening.setblocking(False)
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return
        raise AssertionError("somebody connected to the canary's port")


@contextmanager
def fuzzing(directory: Path, *, seed: int) -> Iterator[Fuzz]:
    """The application on a database of its own in `directory`, and a mail server."""
    url = f"sqlite:///{directory}/fuzz.sqlite3"
    settings = load(
        {
            f"MAILASYNC_{name}": value
            for name, value in {
                "ENV_FILE": "",
                "DATABASE_URL": url,
                "BROKER_URL": f"pyamqp://guest@127.0.0.1:{NO_BROKER_PORT}//",
                "MAIL_FROM": SENDER,
                "MAIL_ALIASES": "@example.org",
                "PUBLIC_URL": "https://mail.example.org",
                "SIMULATED_WORK_SECONDS": "0",
            }.items()
        }
    )
    database_module.db_upgrade(settings)
    database, seer = Database(url), watch()
    secret = directory / "secret.css"
    maker = Maker(seed, canary=str(secret), port=0)
    secret.write_text(f"p {{ color: {maker.secret} }}")
    with canary() as port, ScriptedSMTP() as smtpd:
        maker.port = port
        seer.ports = {smtpd.port, NO_BROKER_PORT}
        served = web.create_app(settings, database=database)
        fuzz = Fuzz(served.test_client(), database, smtpd, maker, seer)
        try:
            fuzz.prepare()
            yield fuzz
        finally:
            seer.on = False
            fuzz.close()
            served.extensions["mailasync"].api_keys.close()
            runtime.stop_publisher()
            database.close()


def progress(number: int, of: int, fuzz: Fuzz, seconds: float) -> None:
    """A line that a terminal overwrites, and that a file gets each thousand."""
    if sys.stdout.isatty() or number % 1000 == 0 or number == of:
        bar = "#" * (20 * number // of)
        print(
            f"\r[{bar:<20}] {number}/{of} bodies, {fuzz.mails} mails, {fuzz.wrong} wrong, {seconds:4.0f} s",
            end="" if sys.stdout.isatty() and number < of else "\n",
            flush=True,
        )


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bodies", type=int, default=10_000, help="requests (10000)")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other requests (1)")
    parser.add_argument(
        "--first",
        type=int,
        default=0,
        help="number of the first request, to repeat one of a run with --bodies 1 (0)",
    )
    return parser.parse_args()


def main() -> int:
    options = read_options()
    # What the application logs of each refusal would hide the bar.
    logging.disable(logging.CRITICAL)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="mailasync-fuzz-") as directory,
        fuzzing(Path(directory), seed=options.seed) as fuzz,
    ):
        fuzz.run(options.bodies, first=options.first, told=True)
    print(*fuzz.problems, sep="\n\n")
    answers = ", ".join(f"{count} × {status}" for status, count in sorted(fuzz.statuses.items()))
    print(
        f"{'good' if not fuzz.wrong else 'BAD'}: seed {options.seed}, {options.bodies} bodies in {time.monotonic() - started:.0f} s; "
        f"answers: {answers}; the slowest took {fuzz.slowest:.2f} s; {fuzz.mails} mails arrived and were compared; {fuzz.wrong} wrong"
    )
    return 1 if fuzz.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
