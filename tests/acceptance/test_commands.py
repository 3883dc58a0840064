"""The commands about mails, as a person or a script types them: flask send, status, tail, config; and which database they are about."""

import json
import os
import pty
import subprocess
import sys
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest
from flask.testing import FlaskCliRunner
from sqlalchemy import Connection

import app as web
from mailroom.config.environment import load, origins
from mailroom.model.ids import new_id
from mailroom.store.db.database import Database
from mailroom.store.events.changes import OVERLAP, Changes
from mailroom.store.events.timeline import record
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.submission.message import message_from
from tests.acceptance.test_up import alone  # noqa: F401  # a fixture
from tests.services import free_port, wait_until
from tests.services.processes import Done, Service, service
from tests.services.schema import ready
from tests.services.smtpd import ScriptedSMTP

BOB = "bob@example.org"


def flask(made: Service, *arguments: str, stdin: bytes = b"", **settings: str) -> Done:
    return made.call(
        "-m",
        "flask",
        *arguments,
        stdin=stdin,
        env={f"MAILASYNC_{name}": value for name, value in settings.items()},
    )


def received(smtpd: ScriptedSMTP) -> list[EmailMessage]:
    found = [message_from_bytes(mail.data, policy=default) for mail in smtpd.messages]
    return [mail for mail in found if isinstance(mail, EmailMessage)]


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    """SQLite, unless a test names another: a command is a process or more, and what differs is tested below it."""
    url: str = request.getfixturevalue(getattr(request, "param", "sqlite_url"))
    return url


@pytest.fixture
def here(sqlite_url: str) -> FlaskCliRunner:
    """The commands in this process, on an outbox without web, worker or broker."""
    ready(sqlite_url).close()
    settings = {
        "ENV_FILE": "",
        "DATABASE_URL": sqlite_url,
        "BROKER_URL": f"pyamqp://guest:geheim@127.0.0.1:{free_port()}//",
    }
    return web.create_app(
        load({f"MAILASYNC_{name}": value for name, value in settings.items()})
    ).test_cli_runner()


def test_a_person_at_a_terminal_sees_what_it_waits_for(pair: Service) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "send", BOB, "--delay", "3600", "--wait=1"],
        cwd=pair.project,
        env=pair.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    assert process.wait(60) == 1
    with os.fdopen(ours, "rb") as terminal:
        said = terminal.read1(100_000).decode()
    assert "\r\x1b[K   0 s  scheduled; to be sent at 20" in said


# --- flask send ----------------------------------------------------------------------------------------------------


def test_what_is_sent_arrives_as_it_was_asked_for(
    pair: Service, smtpd: ScriptedSMTP, tmp_path: Path
) -> None:
    (tmp_path / "näme.csv").write_bytes(b"a,b\n1,2\n")
    (tmp_path / "mail.html").write_text("<p>Grüße</p>")
    pair.worker()
    done = flask(
        pair,
        "send",
        "Bob <bob@example.org>",
        "Grüße",
        "--to",
        "carol@example.org",
        "--cc",
        "dave@example.org",
        "--bcc",
        "eve@example.org",
        "--reply-to",
        "help@example.org",
        "-s",
        "Hallo",
        "--html",
        str(tmp_path / "mail.html"),
        "--file",
        str(tmp_path / "näme.csv"),
        "--header",
        "X-A: b: c",
        "--tag",
        "greeting",
        "--wait",
    )
    assert (done.code, done.err.strip()) == (0, "sent: 250 2.0.0 ok"), done
    [mail], [told] = received(smtpd), smtpd.messages
    assert sorted(told.rcpt_tos) == [
        BOB,
        "carol@example.org",
        "dave@example.org",
        "eve@example.org",
    ]
    assert (
        mail["To"],
        mail["Cc"],
        mail["Bcc"],
        mail["Reply-To"],
        mail["Subject"],
        mail["X-A"],
    ) == (
        "Bob <bob@example.org>, carol@example.org",
        "dave@example.org",
        None,
        "help@example.org",
        "Hallo",
        "b: c",
    )
    text, html = mail.get_body(("plain",)), mail.get_body(("html",))
    assert (
        text
        and html
        and (text.get_content().strip(), html.get_content().strip()) == ("Grüße", "<p>Grüße</p>")
    )
    [file] = mail.iter_attachments()
    assert (file.get_filename(), file.get_content_type(), file.get_payload(decode=True)) == (
        "näme.csv",
        "text/csv",
        b"a,b\n1,2\n",
    )
    [id] = done.lines
    assert flask(pair, "status", id, "--json").json["status"] == "sent"


def test_a_worker_is_told_at_once(pair: Service, smtpd: ScriptedSMTP) -> None:
    pair.worker()
    id = flask(pair, "send", BOB, "hello", "--json").json["id"]
    steps = wait_until(
        lambda: [
            now for now in [flask(pair, "status", id, "--json").json] if now["status"] == "sent"
        ]
    )[0]["timeline"]
    assert [step["event"] for step in steps] == ["accepted", "queued", "sent"]


def test_while_the_broker_is_away_it_is_kept_and_goes_later(
    pair: Service, smtpd: ScriptedSMTP
) -> None:
    done = flask(
        pair,
        "send",
        BOB,
        "hello",
        "--json",
        BROKER_URL=f"pyamqp://guest:geheim@127.0.0.1:{free_port()}//",
    )
    assert (done.code, done.json["status"]) == (0, "queued")
    assert done.json["remark"].startswith(
        "the broker cannot be reached (OperationalError); the mail is kept"
    )
    assert "geheim" not in done.out + done.err
    pair.worker()
    assert flask(pair, "status", done.json["id"], "--watch").code == 0
    assert len(smtpd.messages) == 1


def test_the_end_decides_what_waiting_ends_with(pair: Service, smtpd: ScriptedSMTP) -> None:
    pair.worker()
    smtpd.reply("RCPT", "550 5.7.1 not you", times=1)
    done = flask(pair, "send", BOB, "hello", "--wait", "--json")
    assert (done.code, done.json["status"], done.json["why"]) == (
        1,
        "failed",
        "failed: 550 5.7.1 not you",
    )
    done = flask(pair, "send", BOB, "hello", "--delay", "3600", "--wait=0.5")
    assert (done.code, len(done.lines)) == (1, 1)
    assert done.err.startswith("scheduled; to be sent at 20")
    assert flask(pair, "cancel", done.out.strip()).code == 0


def test_text_and_request_come_from_standard_input(here: FlaskCliRunner) -> None:
    assert here.invoke(args=["send", BOB, "-"], input="Grüße\n".encode()).exit_code == 0
    request = {
        "to": [BOB, "carol@example.org"],
        "subject": "S",
        "priority": "low",
        "metadata": {"order": "4711"},
    }
    done = here.invoke(
        args=["send", "--request", "-", "--json"], input=json.dumps(request).encode()
    )
    assert (done.exit_code, json.loads(done.stdout)["status"]) == (0, "queued")
    told = json.loads(
        here.invoke(args=["send", BOB, "--text", "-", "--dry-run", "--json"], input=b"text").stdout
    )
    assert (told["dry_run"], told["recipients"], "\r\n\r\ntext" in told["raw"]) == (
        True,
        [{"email": BOB, "kind": "to"}],
        True,
    )
    assert here.invoke(args=["send", BOB, "--dry-run"]).stdout.count("Message-ID: ") == 1
    assert [line.split()[-1] for line in here.invoke(args=["tail"]).stdout.splitlines()] == [
        BOB,
        "S",
    ]


def test_a_template_is_filled_in(here: FlaskCliRunner) -> None:
    arguments = ["templates", "save", "welcome", "--subject", "Welcome, {{ name }}", "--text", "-"]
    assert here.invoke(args=arguments, input=b"Hi {{ name }}").exit_code == 0
    done = here.invoke(
        args=["send", BOB, "--template", "welcome", "--variables", '{"name": "Bob"}', "--dry-run"]
    )
    assert "Subject: Welcome, Bob\n" in done.stdout and "\n\nHi Bob\n" in done.stdout
    done = here.invoke(args=["send", BOB, "--template", "welcome"])
    assert (done.exit_code, done.stdout, done.stderr[:20]) == (2, "", "#/template/variables")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bob",), '#/to: expected an address, got "bob"'),
        ((), "#/to: expected this field, got none"),
        ((BOB, "--at", "tomorrow"), "#/scheduled_at: expected a time like"),
        ((BOB, "--at", "2100-01-01T00:00:00Z", "--delay", "5"), "#/scheduled_at"),
        (
            (BOB, "--from", "x@example.net", "--header", "Bcc: y@example.net"),
            "#/headers/Bcc: expected X-",
        ),
        ((BOB, "--header", "X-A"), "expected --header 'Name: value'"),
        ((BOB, "--text", "/nowhere.txt"), "/nowhere.txt: No such file"),
        ((BOB, "--file", "/"), "/: Is a directory"),
        ((BOB, "-", "--html", "-"), "expected - for standard input once"),
        ((BOB, "words", "--text", "-"), "expected TEXT or --text FILE, got both"),
        ((BOB, "--variables", "{}"), "expected --template with --variables"),
        ((BOB, "--template", "x", "--variables", "{"), "#: expected JSON"),
        (("--request", "-", "--tag", "x"), "expected everything in --request, got tag beside it"),
        (("--request", "-"), "#: expected JSON"),
        (("--wait", BOB), "to wait without a limit, put --wait at the end"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_accepted(
    here: FlaskCliRunner, arguments: tuple[str, ...], words: str
) -> None:
    done = here.invoke(args=["send", *arguments])
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert here.invoke(args=["tail"]).output == ""


def test_each_wrong_field_is_a_line_or_one_object(here: FlaskCliRunner) -> None:
    arguments = ["send", "bob", "-s", "a\nb"]
    told = json.loads(here.invoke(args=[*arguments, "--json"]).stdout)
    assert (told["code"], [one["pointer"] for one in told["errors"]]) == (
        "validation_error",
        ["#/to", "#/subject"],
    )
    assert [line.split(":")[0] for line in here.invoke(args=arguments).stderr.splitlines()] == [
        "#/to",
        "#/subject",
    ]
    done = here.invoke(args=["send", "--request", "-", "--json"], input=b"[]")
    assert (done.exit_code, json.loads(done.stdout)["code"]) == (2, "malformed_json")


def test_a_database_that_is_not_ready_is_one_sentence(tmp_path: Path) -> None:
    with service(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/none.sqlite3") as made:
        for command in (("send", BOB), ("status", "x"), ("tail",)):
            done = flask(made, *command)
            assert (
                done.code == 1
                and "run `flask db upgrade`" in done.err
                and "Traceback" not in done.err
            )


# --- flask status, flask tail --------------------------------------------------------------------------------------


def test_status_tells_what_the_api_tells(pair: Service, smtpd: ScriptedSMTP) -> None:
    pair.web()
    pair.worker()
    smtpd.reply("RCPT", "450 4.2.1 later", times=1)
    id = pair.post("/v1/messages")
    watched = flask(pair, "status", id, "--watch", "--json")
    *steps, last = [json.loads(line) for line in watched.lines]
    assert (watched.code, last) == (0, pair.message(id))
    assert [
        step["event"] for step in steps if step["event"] in ("accepted", "deferred", "sent")
    ] == [
        "accepted",
        "deferred",
        "sent",
    ]
    assert {step["id"] for step in steps} == {id}
    said = flask(pair, "status", id)
    assert said.lines[:2] == [
        f"{id}: sent: 250 2.0.0 ok",
        "  to bob@example.org: sent, 250 2.0.0 ok",
    ]
    assert len(said.lines) == 2 + len(last["timeline"])
    assert said.lines[-1] == f"{last['timeline'][-1]['at']}  sent, attempt 2: 250 2.0.0 ok"
    done = flask(pair, "status", "nothing")
    assert (done.code, done.err.startswith("Error: there is no message with this id in ")) == (
        1,
        True,
    )


@pytest.mark.parametrize("database_url", ["postgres_url"], indirect=True)
def test_tail_shows_the_newest_last_and_follows(pair: Service, smtpd: ScriptedSMTP) -> None:
    first, second = (
        flask(pair, "send", to, "-s", to).out.strip() for to in (BOB, "carol@example.org")
    )
    assert [line.split()[0] for line in flask(pair, "tail").lines] == [first, second]
    assert [line.split()[0] for line in flask(pair, "tail", "-n", "1").lines] == [second]
    assert [line.split()[0] for line in flask(pair, "tail", "--to", BOB).lines] == [first]
    assert flask(pair, "tail", "--status", "sent").lines == []
    told = [json.loads(line) for line in flask(pair, "tail", "--json").lines]
    assert [(one["id"], one["status"], one["recipients"][0]["email"]) for one in told] == [
        (first, "queued", BOB),
        (second, "queued", "carol@example.org"),
    ]
    follower = pair.run("-m", "flask", "tail", "-f", "-n", "1", "--json", name="tail")
    follower.says(second)
    third = flask(pair, "send", BOB, "hello").out.strip()
    follower.says(third)
    pair.worker()
    wait_until(lambda: follower.text().count('"event": "sent"') == 3, what="it tells of all three")
    lines = [json.loads(line) for line in follower.text().splitlines()]
    assert [one["id"] for one in lines if "event" not in one] == [second, third]
    assert {one["id"] for one in lines if one.get("event") == "sent"} == {first, second, third}


def write(database: Database, id: str, event: str) -> None:
    def work(connection: Connection, items: list[None]) -> list[None]:
        record(connection, [{"id": id, "event": event}])
        return items

    database.write(work, None)


@pytest.mark.parametrize("database_url", ["sqlite_url", "postgres_url"], indirect=True)
def test_each_change_is_told_once_even_where_it_was_committed_late(database: Database) -> None:
    ids = [new_id() for _ in range(3)]
    for id, to in zip(ids, (BOB, BOB, "carol@example.org"), strict=True):
        Outbox(database).accept(
            NewMessage(id=id, message=message_from({"to": to}), message_id=f"{id}@x")
        )
    write(database, ids[0], "before")
    changes, theirs, sent = (
        Changes(database),
        Changes(database, to=BOB),
        Changes(database, status="sent"),
    )
    for one in (changes, theirs, sent):
        one.start()
    assert changes.look() == []
    write(database, ids[0], "one")
    write(database, ids[2], "two")
    assert [(row["id"], row["event"], row["state"]) for row in changes.look()] == [
        (ids[0], "one", "queued"),
        (ids[2], "two", "queued"),
    ]
    assert ([row["event"] for row in theirs.look()], sent.look(), changes.look()) == (
        ["one"],
        [],
        [],
    )
    for number in range(OVERLAP + 10):
        write(database, ids[1], f"{number}")
    assert len(changes.look()) == OVERLAP + 10
    assert changes.look() == []


# --- flask config --------------------------------------------------------------------------------------------------


def test_config_tells_each_value_and_its_source_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "my env").write_text(
        "MAILASYNC_MAIL_FROM=alice@example.org\nMAILASYNC_HOST=127.0.0.2\nMAILASYNC_MAIL_PASSWORD=geheim1\n"
    )
    (tmp_path / "key").write_text("geheim2\n")
    with service(
        tmp_path,
        ENV_FILE=str(tmp_path / "my env"),
        HOST="127.0.0.3",
        API_KEY_FILE=str(tmp_path / "key"),
        BROKER_URL="pyamqp://guest:geheim3@127.0.0.1//",
        DATABASE_URL="sqlite:////nowhere",
    ) as made:
        done = flask(made, "config", "--json")
        told = {one["name"]: one for one in map(json.loads, done.lines)}
        plain = flask(made, "config")
    assert "geheim" not in done.out + plain.out and "nowhere" not in done.out + plain.out
    wanted = {
        "MAIL_FROM": ("alice@example.org", f"MAILASYNC_MAIL_FROM in {tmp_path / 'my env'}"),
        "HOST": ("127.0.0.3", "MAILASYNC_HOST in the environment, before .env"),
        "API_KEY": ("***", "MAILASYNC_API_KEY_FILE in the environment"),
        "JOB_SLOTS": (50, "default_settings.py"),
        "MAIL_PASSWORD": ("***", f"MAILASYNC_MAIL_PASSWORD in {tmp_path / 'my env'}"),
    }
    assert {name: (told[name]["value"], told[name]["source"]) for name in wanted} == wanted
    assert plain.lines[0].startswith("MAIL_USERNAME") and len(plain.lines) == len(told) == len(
        origins()
    )


def test_what_flask_copied_into_the_environment_comes_from_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MAILASYNC_PORT=5001\n")
    found = origins({"MAILASYNC_ENV_FILE": str(tmp_path / ".env"), "MAILASYNC_PORT": "5001"})
    assert found["PORT"] == f"MAILASYNC_PORT in {tmp_path / '.env'}"


# --- which database ------------------------------------------------------------------------------------------------


def test_commands_are_about_flask_up_while_only_that_runs(alone: Service) -> None:  # noqa: F811  # the fixture
    # Given a fresh copy: there is nothing to look at
    done = flask(alone, "send", BOB)
    assert (done.code, "is not there yet: start app.py or a worker" in done.err) == (1, True)
    up = alone.up()
    # When flask up runs, the commands are about its mails, and say so
    done = flask(alone, "send", BOB, "hello", "-s", "By command", "--wait=30")
    assert done.code == 0, done
    assert done.err.startswith(
        "(using the database of flask up, which is running here while app.py and its worker are not: "
    )
    assert alone.get(f"/inbox/api/messages?to={BOB}&wait=10")["data"][0]["subject"] == "By command"
    assert alone.message(done.lines[0])["status"] == "sent"
    assert flask(alone, "status", done.lines[0], "--json").json == alone.message(done.lines[0])
    found = {one["what"]: one for one in map(json.loads, flask(alone, "doctor", "--json").lines)}
    assert found["broker"]["words"] == "inside of `flask up`"
    assert found["worker"]["ok"] and found["login of account default"]["ok"]
    # And not about the pair's, which would be
    assert flask(alone, "purge", "--yes").code == 1
    up.stop()
    # Then, stopped, it is named and not taken
    done = flask(alone, "tail")
    assert (
        done.code == 1
        and "`flask up` has a database, but is not running: start it, or set MAILASYNC_DATABASE_URL=sqlite:////"
        in done.err
    )
    url = done.err.strip().rpartition("MAILASYNC_DATABASE_URL=")[2]
    assert len(flask(alone, "tail", DATABASE_URL=url).lines) == 1
