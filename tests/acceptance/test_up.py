"""The commands as a newcomer types them: flask up, flask inbox, python3 app.py; and what they say when they cannot start."""

import base64
import shutil
import smtplib
import socket
import sqlite3
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.services import free_port, is_alive, wait_until
from tests.services.processes import PROJECT, Service, service
from tests.services.smtpd import ScriptedSMTP


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Service]:
    """The service in a copy of its own, in a directory with a space in its name, with free ports and nothing else set."""
    project = tmp_path / "my mail"
    scratch = (".git", ".venv", ".hypothesis", "instance", "__pycache__", ".*_cache", ".env")
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns(*scratch))
    with service(
        tmp_path,
        INBOX_SMTP_PORT=str(free_port()),
        INBOX_PORT=str(free_port()),
        SIMULATED_WORK_SECONDS="1",
    ) as made:
        made.project = project
        yield made


def arrived(alone: Service, to: str = "bob@example.org", wait: int = 20) -> list[dict[str, str]]:
    found: list[dict[str, str]] = alone.get(
        f"/inbox/api/messages?to={to}&wait={wait}", timeout=wait + 5
    )["data"]
    return found


def test_up_needs_nothing_and_ends_with_a_mail_that_can_be_read(alone: Service) -> None:
    up = alone.up()
    # It prints its addresses and a line to paste.
    assert f"http://127.0.0.1:{alone.port}/inbox/" in up.text()
    command = next(line for line in up.text().splitlines() if line.startswith("curl "))
    answer = subprocess.check_output(
        ["bash", "-c", command.replace("you@example.org", "bob@example.org")], text=True
    )
    assert '"status":"waiting"' in answer
    [mail] = arrived(alone)
    assert (mail["subject"], mail["text"]) == ("Hello", "The work is done.")
    with urllib.request.urlopen(f"{alone.url}/inbox/{mail['id']}?view=text") as page:
        assert "The work is done." in page.read().decode()
    assert (alone.project / "instance" / "up.sqlite3").exists()
    assert "WARNING" not in up.text()
    assert "ERROR" not in up.text()
    assert up.stop() == 0


def test_up_never_sends_to_gmail_unless_told_to(alone: Service) -> None:
    alone.settings |= {
        "MAIL_USERNAME": "alice@gmail.com",
        "MAIL_PASSWORD": "s3cret",
        "SIMULATED_WORK_SECONDS": "0",
    }
    up = alone.up()
    assert "the inbox; --deliver sends it for real" in up.text()
    alone.post()
    assert arrived(alone)[0]["from"] == "alice@gmail.com"
    assert "s3cret" not in up.text()
    up.stop()
    alone.up("--deliver").says("mail goes to       smtp.gmail.com:465")


def test_up_leaves_the_accounts_of_a_file_alone(
    alone: Service, tmp_path: Path, smtpd: ScriptedSMTP
) -> None:
    file = tmp_path / "accounts.toml"
    file.write_text(
        f"""[[account]]
        name = "ops"
        username = "ops@example.org"
        password = "s3cret"
        smtp_host = "127.0.0.1"
        smtp_port = {smtpd.port}
        smtp_security = "none"
        smtp_auth = "off"
        imap_host = "127.0.0.1"
        """
    )
    alone.settings |= {"ACCOUNTS_FILE": str(file), "SIMULATED_WORK_SECONDS": "0"}
    alone.up()
    alone.post()
    assert arrived(alone)[0]["from"] == "ops@example.org"
    assert not smtpd.commands


def test_up_that_was_killed_goes_on_where_it_was(alone: Service) -> None:
    up = alone.up()
    ids = [alone.post(subject=f"mail {n}") for n in range(5)]
    up.kill()
    alone.settings["LEASE_SECONDS"] = "2"
    alone.up()
    for id in ids:
        assert alone.final(id)["status"] == "sent"
    assert sorted(mail["subject"] for mail in arrived(alone)) == [f"mail {n}" for n in range(5)]


def test_up_ends_with_the_process_that_was_started(alone: Service) -> None:
    up = alone.up()
    up.process.kill()
    up.process.wait(60)

    def port_is_free() -> bool:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            return probe.connect_ex(("127.0.0.1", alone.port)) != 0

    wait_until(port_is_free, what="the port is free")
    assert not is_alive(up.pid)


def test_up_runs_on_rabbitmq_when_a_broker_is_set(alone: Service, broker_url: str) -> None:
    alone.settings["BROKER_URL"] = broker_url
    up = alone.up()
    assert "RabbitMQ" in up.text()
    assert alone.final(alone.post())["status"] == "sent"
    wait_until(lambda: {*alone.get("/readyz")["checks"].values()} == {"ok"}, what="all is well")
    assert up.stop() == 0


def test_up_never_falls_back_in_silence(alone: Service) -> None:
    alone.settings["BROKER_URL"] = f"pyamqp://guest@127.0.0.1:{free_port()}//"
    alone.settings["SIMULATED_WORK_SECONDS"] = "0"
    alone.up()
    id = alone.post()
    wait_until(
        lambda: "broker unreachable since" in alone.message(id)["why"],
        what="why tells of the broker",
    )
    assert alone.message(id)["status"] == "queued"


def test_the_pair_without_an_account_sends_to_the_inbox_that_runs_alone(
    alone: Service, broker_url: str
) -> None:
    alone.settings["BROKER_URL"] = broker_url
    alone.run("-m", "flask", "inbox", name="inbox")
    web = alone.web()
    web.says(f"mail goes to 127.0.0.1:{alone.settings['INBOX_SMTP_PORT']} (flask inbox)")
    alone.worker()
    id = alone.post()
    assert alone.final(id)["status"] == "sent"
    inbox = Service(alone.directory, alone.settings, port=int(alone.settings["INBOX_PORT"]))
    assert arrived(inbox)[0]["subject"] == "Hello"
    assert inbox.request("GET", "/inbox/", headers={"Host": "evil.example.org"})[0] == 401


def test_the_inbox_serves_others_with_the_api_key_only(alone: Service) -> None:
    alone.settings |= {"INBOX_HOST": "0.0.0.0", "API_KEY": "s3cret"}
    program = alone.run("-m", "flask", "inbox", name="inbox")
    program.says(f"the inbox takes mail on 0.0.0.0:{alone.settings['INBOX_SMTP_PORT']}")
    inbox = Service(alone.directory, alone.settings, port=int(alone.settings["INBOX_PORT"]))
    others = {"Host": "inbox.example.org"}
    inbox._answers(program)
    assert inbox.request("GET", "/livez", headers=others)[0] == 200
    for wrong in (
        "",
        "Bearer other",
        "Bearer",
        "Basic",
        "Basic !",
        basic("s3cret", ""),
        basic("any", "other"),
    ):
        for path in ("/inbox/", "/inbox/api/messages", "/livez/../inbox/"):
            assert (
                inbox.request("GET", path, headers={**others, "Authorization": wrong})[0] == 401
            ), wrong
    for right in ("Bearer s3cret", basic("any", "s3cret"), basic("", "s3cret")):
        assert inbox.request("GET", "/inbox/", headers={**others, "Authorization": right})[0] == 200
    with smtplib.SMTP("127.0.0.1", int(alone.settings["INBOX_SMTP_PORT"])) as client:
        client.sendmail("alice@example.org", "bob@example.org", b"Subject: Hello\r\n\r\nhello\r\n")
    [mail] = inbox.request(
        "GET", "/inbox/api/messages?wait=10", headers={"Authorization": "Bearer s3cret"}
    )[1]["data"]
    assert mail["subject"] == "Hello"
    assert "s3cret" not in program.text()


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def test_a_post_does_not_wait_for_the_work(alone: Service) -> None:
    alone.settings["SIMULATED_WORK_SECONDS"] = "600"
    alone.up()
    ids = [alone.post() for _ in range(10)]
    assert {alone.message(id)["status"] for id in ids} == {"waiting"}


@pytest.mark.parametrize("command", [("app.py",), ("-m", "flask", "up"), ("-m", "flask", "inbox")])
def test_a_taken_port_is_one_sentence_with_the_way_out(
    alone: Service, command: tuple[str, ...]
) -> None:
    setting = "INBOX_PORT" if "inbox" in command else "PORT"
    port = int(alone.settings.get("INBOX_PORT", 0)) if "inbox" in command else alone.port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        program = alone.run(*command, name="taken")
        assert program.process.wait(60) == 1
    assert f"mailasync: 127.0.0.1:{port} cannot be used" in program.text()
    assert f"set MAILASYNC_{setting} to another port" in program.text()
    assert "Traceback" not in program.text()


@pytest.mark.parametrize(
    "command", [("app.py",), ("-m", "flask", "up"), ("-m", "celery", "-A", "mailasync", "worker")]
)
def test_a_wrong_setting_is_one_sentence(alone: Service, command: tuple[str, ...]) -> None:
    alone.settings["SMTP_SECURITY"] = "tls"
    program = alone.run(*command, name="wrong")
    assert program.process.wait(60) != 0
    assert (
        program.text().strip()
        == "mailasync: MAILASYNC_SMTP_SECURITY: expected one of ssl, starttls, none, got 'tls'"
    )


@pytest.mark.parametrize("command", [("app.py",), ("-m", "flask", "up")])
def test_a_database_of_another_application_is_one_sentence(
    alone: Service, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "other.sqlite3"
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE books (id INTEGER)")
    alone.settings |= {
        "DATABASE_URL": f"sqlite:///{file}",
        "BROKER_URL": f"pyamqp://127.0.0.1:{free_port()}//",
    }
    program = alone.run(*command, name="other")
    assert program.process.wait(60) == 1
    [line] = program.text().splitlines()
    assert line.startswith(f"mailasync: sqlite:///{file}: expected schema ")
    assert line.endswith(", found none; run `flask db upgrade`")


def test_a_password_without_the_prefix_gets_a_hint(alone: Service) -> None:
    program = alone.run(
        "-m",
        "flask",
        "up",
        name="hint",
        env={"MAIL_PASSWORD": "s3cret", "MAILASYNC_SERVICE_HOST": "10.0.0.1"},
    )
    program.says("MAIL_PASSWORD is set and not read; did you mean MAILASYNC_MAIL_PASSWORD?")
    program.says("passed over, as Kubernetes made them: MAILASYNC_SERVICE_HOST")
    assert "s3cret" not in program.text()


def test_a_pool_that_forks_is_refused(alone: Service, broker_url: str) -> None:
    alone.settings["BROKER_URL"] = broker_url
    program = alone.worker("-P", "processes", wait=False)
    assert program.process.wait(60) != 0
    assert "mail is sent in threads" in program.text()


def test_a_queue_with_other_arguments_stops_the_worker_with_the_way_out(
    alone: Service, broker_url: str
) -> None:
    alone.settings["BROKER_URL"] = broker_url
    first = alone.worker()
    first.stop()
    alone.settings["QUEUE_TYPE"] = "quorum"
    program = alone.worker(wait=False)
    assert program.process.wait(60) != 0
    assert "a queue exists with other arguments" in program.text()
    assert "MAILASYNC_QUEUE_TYPE" in program.text()


def test_quorum_queues_carry_mail_too(alone: Service, broker_url: str) -> None:
    alone.settings |= {"BROKER_URL": broker_url, "QUEUE_TYPE": "quorum"}
    alone.run("-m", "flask", "inbox", name="inbox")
    alone.web()
    alone.worker()
    assert alone.final(alone.post())["status"] == "sent"


def test_the_pair_has_commands_too(
    tmp_path: Path, broker_url: str, sqlite_url: str, to_smtpd: dict[str, str]
) -> None:
    with service(tmp_path, BROKER_URL=broker_url, DATABASE_URL=sqlite_url, **to_smtpd) as pair:
        pair.web("-m", "flask", "web")
        pair.run("-m", "flask", "worker", "--concurrency=2", name="worker").says(" ready.")
        assert pair.final(pair.post("/v1/messages"))["status"] == "sent"
