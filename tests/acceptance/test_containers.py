"""Dockerfile, compose.yaml and Procfile name what is there. Their form is `make check`'s matter, by hadolint and Compose's schema."""

import re
import shlex
import socket
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from dotenv import dotenv_values
from flask import Flask
from ruamel.yaml import YAML

import app
import default_settings
from mailroom.config.accounts import next_hop, schedule, sender
from mailroom.config.environment import load
from mailroom.config.settings import SECRETS, Settings
from mailroom.inbox import InboxStorage, create_blueprint
from tests.services import free_port, wait_until
from tests.services.processes import PROJECT, Service, service
from tests.services.schema import on_postgresql, on_sqlite

DOCKERFILE = (PROJECT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load(PROJECT / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if one["image"] == "mailasync"}
#: The Dockerfile's steps, in order.
STEPS = re.findall(r"^([A-Z]+) (.+)$", re.sub(r"\\\n\s*", "", DOCKERFILE), re.MULTILINE)
#: What its top tells a user to put into .env.
NEEDED = dict.fromkeys(
    re.findall(r"for name in ([A-Z_ ]+); do", (PROJECT / "compose.yaml").read_text())[0].split(),
    "0123456789abcdef",
)
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-+?])([^}]*))?\}")


def filled(text: str, given: dict[str, str]) -> str:
    """Fill in the variables as Compose does."""

    def value(found: re.Match[str]) -> str:
        name, how, word = found.groups()
        held = given.get(name, "")
        assert held or how in (":-", ":+"), f"{name} is not set: {word}"
        return (word if held else "") if how == ":+" else held or word

    return _VARIABLE.sub(value, text)


def environment(name: str, dotenv: dict[str, str]) -> dict[str, str]:
    """What a service of ours finds in its environment if .env holds `dotenv`."""
    found: dict[str, str] = {}
    for file in SERVICES[name].get("env_file", []):
        path = filled(file["path"], dotenv)
        if path == ".env":
            found |= dotenv
        elif (PROJECT / path).exists():
            found |= {key: value or "" for key, value in dotenv_values(PROJECT / path).items()}
        else:
            assert file["required"] is False
    return found | {
        key: filled(value, dotenv) for key, value in SERVICES[name].get("environment", {}).items()
    }


def settings_of(name: str, **dotenv: str) -> Settings:
    return load({"MAILASYNC_ENV_FILE": "", **environment(name, NEEDED | dotenv)})


def commands() -> list[tuple[str, list[str]]]:
    """Every command that a container or honcho runs, with whose it is."""
    lines = [line.split(": ", 1) for line in (PROJECT / "Procfile").read_text().splitlines()]
    return [
        *((name, shlex.split(command)) for name, command in lines),
        *((name, one["command"]) for name, one in OURS.items()),
        (
            "Dockerfile",
            YAML(typ="safe", pure=True).load(next(what for step, what in STEPS if step == "CMD")),
        ),
    ]


def checks() -> list[tuple[str, list[str]]]:
    """The health checks of our services, as programs with their arguments."""
    inline = next(
        re.findall(r"CMD (\[.*\])", what)[0] for step, what in STEPS if step == "HEALTHCHECK"
    )
    ours = [
        (name, one["healthcheck"]["test"][1:])
        for name, one in OURS.items()
        if "test" in one["healthcheck"]
    ]
    return [*ours, ("web", YAML(typ="safe", pure=True).load(inline))]


def served() -> Flask:
    made = app.create_app()
    made.register_blueprint(create_blueprint(InboxStorage()))
    return made


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_each_service_are_settings_and_load(name: str) -> None:
    given = environment(name, NEEDED)
    ours = {key.removeprefix("MAILASYNC_") for key in given if key.startswith("MAILASYNC_")}
    assert ours <= default_settings.__annotations__.keys()
    settings = settings_of(name)
    assert sender(settings) and next_hop(settings) and schedule(settings)
    assert ("MAILASYNC_HOST" in given) == (not settings.listens_on_loopback)


def test_only_the_three_secrets_have_to_be_set_and_each_of_them_has() -> None:
    assert set(NEEDED) == {"MAILASYNC_API_KEY", "POSTGRES_PASSWORD", "RABBITMQ_PASSWORD"}
    for missing in NEEDED:
        given = {key: value for key, value in NEEDED.items() if key != missing}
        with pytest.raises(AssertionError, match=f"{missing} is not set"):
            assert [environment(name, given) for name in SERVICES]


def test_no_secret_is_written_down() -> None:
    for name, one in SERVICES.items():
        for key, value in one.get("environment", {}).items():
            assert not re.search(
                r"(PASS|KEY|AUTH|BROKER_URL|DATABASE_URL)", key
            ) or _VARIABLE.search(value), f"{name}: {key}"
    assert not [
        step
        for step in STEPS
        if step[0] in ("ARG", "ENV") and any(secret in step[1] for secret in SECRETS)
    ]


@pytest.mark.parametrize(
    ("dotenv", "hop"),
    [
        ({}, "inbox:1025"),
        (
            {"MAILASYNC_MAIL_USERNAME": "alice@gmail.com", "MAILASYNC_MAIL_PASSWORD": "x"},
            "smtp.gmail.com:465",
        ),
        (
            {"MAILASYNC_SMTP_HOST": "mail.example.org", "MAILASYNC_SMTP_SECURITY": "starttls"},
            "mail.example.org:587",
        ),
        (
            {
                "MAILASYNC_SMTP_HOST": "mail.example.org",
                "MAILASYNC_MAIL_USERNAME": "alice@example.org",
                "MAILASYNC_MAIL_PASSWORD": "x",
            },
            "mail.example.org:465",
        ),
    ],
)
def test_mail_goes_to_the_inbox_until_an_account_or_a_host_is_set(
    dotenv: dict[str, str], hop: str
) -> None:
    assert {str(next_hop(settings_of(name, **dotenv))) for name in ("web", "worker")} == {hop}


def test_the_inbox_listens_where_the_worker_sends_and_the_checks_look() -> None:
    inbox, web = (
        settings_of("inbox"),
        settings_of("web", MAILASYNC_PORT="5001", MAILASYNC_HOST="127.0.0.1"),
    )
    assert (
        next_hop(settings_of("worker")).port == inbox.INBOX_SMTP_PORT
        and inbox.INBOX_HOST == "0.0.0.0"
    )
    ports = {
        "web": web.PORT,
        "inbox": inbox.INBOX_PORT,
        "flower": int(SERVICES["flower"]["command"][-1].removeprefix("--port=")),
    }
    asked = {(name, int(check[2])) for name, check in checks() if check[1] == "deploy/answers.py"}
    published = {name: int(SERVICES[name]["ports"][0].rpartition(":")[2]) for name in ports}
    assert asked == set(ports.items()) and published == ports
    assert int(next(what for step, what in STEPS if step == "EXPOSE")) == web.PORT


def test_web_worker_and_migrate_have_the_same_stores_at_services_that_are_there() -> None:
    stores = {
        (settings.BROKER_URL, settings.DATABASE_URL)
        for settings in map(settings_of, ("web", "worker", "migrate", "flower"))
    }
    [(broker, database)] = stores
    rabbitmq, postgres = (SERVICES[name]["environment"] for name in ("rabbitmq", "postgres"))
    assert (
        broker
        == f"pyamqp://{rabbitmq['RABBITMQ_DEFAULT_USER']}:{filled(rabbitmq['RABBITMQ_DEFAULT_PASS'], NEEDED)}@rabbitmq//"
    )
    assert database == (
        f"postgresql://{postgres['POSTGRES_USER']}:{filled(postgres['POSTGRES_PASSWORD'], NEEDED)}@postgres/"
        f"{postgres['POSTGRES_DB']}"
    )


@pytest.mark.parametrize(("name", "command"), commands())
def test_every_command_is_one_that_exists(name: str, command: list[str], tmp_path: Path) -> None:
    program, *arguments = command
    if program == "flask":
        assert app.create_app().cli.get_command(None, arguments[0]), arguments  # type: ignore[arg-type]  # it needs no context
        program, arguments = "flask", [*arguments, "--help"]
    elif program == "celery":
        assert arguments[:2] == ["-A", "mailasync"]
        assert all(
            (PROJECT / file).exists() for file in re.findall(r"--conf=(\S+)", " ".join(arguments))
        )
        arguments = [*arguments[:3], "--help"]
    else:
        assert program in ("python", "python3") and [
            (PROJECT / file).exists() for file in arguments
        ] == [True]
        return
    done = Service(tmp_path, {}).call("-m", program, *arguments)
    assert done.code == 0, f"{name}: {done.out}{done.err}"


def test_the_procfile_is_the_pair_and_the_inbox() -> None:
    assert [name for name, _ in commands()][:3] == ["web", "worker", "inbox"]


def test_every_service_that_runs_on_is_looked_after() -> None:
    for name, one in SERVICES.items():
        if name == "migrate":
            assert one["healthcheck"] == {"disable": True} and one["restart"] == "no"
        else:
            assert (
                one["healthcheck"]["test"]
                and one["restart"] == "unless-stopped"
                and one["stop_grace_period"]
            ), name
        for needed, how in one.get("depends_on", {}).items():
            assert how["condition"] == (
                "service_completed_successfully" if needed == "migrate" else "service_healthy"
            )
    assert all("migrate" in SERVICES[name]["depends_on"] for name in ("web", "worker"))
    assert {
        mount.partition(":")[0] for one in SERVICES.values() for mount in one.get("volumes", [])
    } == COMPOSE["volumes"].keys()


def test_what_the_health_checks_ask_for_is_there() -> None:
    routes = served().url_map.bind("127.0.0.1")
    for name, check in checks():
        assert check[0] == "python"
        if check[1] == "-m":
            assert (PROJECT / f"{check[2].replace('.', '/')}.py").exists()
        else:
            assert (PROJECT / check[1]).exists()
            assert check[3] == "/healthcheck" if name == "flower" else routes.match(check[3], "GET")


def test_ports_are_published_on_loopback_only_and_workers_can_be_many() -> None:
    for name, one in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in one.get("ports", [])), name
        assert "container_name" not in one and "network_mode" not in one
    assert not {"ports", "hostname"} & SERVICES["worker"].keys()


def test_an_image_holds_what_it_needs_and_none_of_ours_runs_as_root() -> None:
    copied = [
        source
        for step, what in STEPS
        if step == "COPY" and "--from" not in what
        for source in what.split()[:-1]
    ]
    assert all((PROJECT / source).exists() for source in copied)
    assert {
        "app.py",
        "mailasync.py",
        "default_settings.py",
        "mailroom",
        "migrations",
        "deploy",
    } <= set(copied)
    assert (
        set(re.findall(r"-r (\S+)", DOCKERFILE)) <= set(copied) and "--require-hashes" in DOCKERFILE
    )
    users = [what for step, what in STEPS if step == "USER"]
    assert users == ["10001:10001"] and "--uid 10001" in DOCKERFILE
    assert (
        all(what.startswith("[") for step, what in STEPS if step == "CMD")
        and ("STOPSIGNAL", "SIGTERM") in STEPS
    )
    assert not {"USER", "ENTRYPOINT"} & {key.upper() for one in OURS.values() for key in one}
    # Nothing is left out by .dockerignore that is copied; and nothing gets in that nobody copies.
    lines = [
        line
        for line in (PROJECT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert lines[0] == "*" and {line[1:] for line in lines if line.startswith("!")} == set(copied)


@pytest.mark.parametrize(
    "path",
    [
        ".env",
        ".git/config",
        "instance/mailasync.sqlite3",
        ".venv/bin/python",
        "tests/conftest.py",
        "mailroom/.env",
        "deploy/.env",
        "mailroom/__pycache__/logs.pyc",
    ],
)
def test_passwords_history_and_data_never_get_into_an_image(path: str) -> None:
    """By .dockerignore's rule: the last line that fits a path, or a directory over it, decides."""
    ignored = False
    for line in (PROJECT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        fits = (
            any(fnmatch(part, pattern) for part in Path(path).parts)
            if "**/" in line
            else fnmatch(Path(path).parts[0], pattern)
        )
        if line and not line.startswith("#") and fits:
            ignored = not line.startswith("!")
    assert ignored


def test_the_python_of_the_image_is_one_that_the_project_runs_on() -> None:
    bases = {what.split()[0] for step, what in STEPS if step == "FROM"}
    [(major, minor)] = [re.findall(r"python:(\d+)\.(\d+)-slim-\w+$", base)[0] for base in bases]
    least = re.findall(
        r'requires-python = ">=(\d+)\.(\d+)"', (PROJECT / "pyproject.toml").read_text()
    )[0]
    assert (int(major), int(minor)) >= (int(least[0]), int(least[1]))


def test_a_port_that_answers_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    with service(tmp_path, INBOX_SMTP_PORT=str(free_port()), INBOX_PORT=str(free_port())) as made:
        port = made.settings["INBOX_PORT"]
        Service(tmp_path, made.settings, port=int(port))._answers(
            made.run("-m", "flask", "inbox", name="inbox")
        )
        asked = {
            path: subprocess.run(
                [sys.executable, "deploy/answers.py", port, path], cwd=PROJECT, capture_output=True
            ).returncode
            for path in ("/livez", "/nothing")
        }
    assert asked == {"/livez": 0, "/nothing": 1}
    gone = subprocess.run(
        [sys.executable, "deploy/answers.py", port, "/livez"], cwd=PROJECT, capture_output=True
    )
    assert gone.returncode == 1


@on_postgresql
def test_a_worker_that_lives_is_told_from_one_that_does_not(pair: Service) -> None:
    def beats(name: str) -> int:
        return pair.run("-m", "deploy.beats", name=name).process.wait(60)

    assert beats("before") == 1
    worker = pair.worker()
    assert beats("living") == 0
    worker.kill()
    wait_until(lambda: beats("killed") == 1, what="its lease ended")
    pair.worker().stop()
    assert beats("stopped") == 1
    pair.settings["DATABASE_URL"] = f"postgresql://postgres@127.0.0.1:{free_port()}/none"
    gone = pair.run("-m", "deploy.beats", name="gone")
    assert gone.process.wait(60) == 1 and "Traceback" not in gone.text()


@on_sqlite
def test_a_worker_elsewhere_does_not_count(pair: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.worker("--loglevel=INFO", "-n", "worker@elsewhere")
    asked = "import socket, runpy; socket.gethostname = lambda: {!r}; runpy.run_module('deploy.beats', run_name='__main__')"
    assert {
        host: pair.run("-c", asked.format(host), name="beats").process.wait(60)
        for host in ("elsewhere", socket.gethostname(), "where")
    } == {"elsewhere": 0, socket.gethostname(): 1, "where": 1}
