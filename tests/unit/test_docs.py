"""The documents say what is there: README, docs/, the map of the code, default_settings.py."""

import ast
import json
import re
import subprocess
import tomllib
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

import click
import pytest
from flask import Flask

import app
import default_settings
import mailasync
import mailroom
from benchmarks import report
from mailroom.api import problems
from mailroom.api.http.serialize import message_json
from mailroom.api.routes import jobs
from mailroom.api.services import Services
from mailroom.config.settings import SECRETS, Settings
from mailroom.inbox import InboxStorage, create_blueprint
from mailroom.jobs import registry
from mailroom.model.errors import InvalidMessage
from mailroom.model.message import State
from mailroom.server import serve
from mailroom.store.db.database import Database
from mailroom.store.db.migrate import upgrade
from mailroom.store.jobs.jobs import Jobs, JobState
from mailroom.store.messages.outbox import Outbox
from mailroom.submission.message import read_message
from mailroom.submission.reader import SubmissionReader
from tests.tools.documents import BLOCKS, CODE, PAGES, PROJECT, TEXT, block_with, table

ORDERS = SubmissionReader(
    "localhost",
    account_of=lambda address: "default",
    template=lambda name: None,
    unsubscribe_url=lambda id: "",
    webhook_problem=lambda url: "",
)
#: Bodies in their curl lines, of mails and of jobs.
BODIES = re.findall(r"^ *curl [^\n]*:5000/(?:v1/messages)? [^\n]*-d '([^']*)'", TEXT, re.MULTILINE)
JOB_BODIES = re.findall(r"^ *curl [^\n]*/v1/jobs [^\n]*-d '([^']*)'", TEXT, re.MULTILINE)
#: Where each kind of route is listed.
ROUTES = ("docs/http-api.md", "docs/pages.md", "docs/inbox.md")


@pytest.fixture
def served() -> Flask:
    """The application as `flask up` serves it, with the inbox."""
    made = app.create_app()
    made.register_blueprint(create_blueprint(InboxStorage()))
    return made


def tracked() -> dict[str, str]:
    """The files that git tracks or would, by name; what is no text in them is left out."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    return {
        name: (PROJECT / name).read_text(errors="replace")
        for name in set(names)
        if name and (PROJECT / name).is_file()
    }


def test_the_docs_name_every_route_once_and_no_other(served: Flask) -> None:
    routes = {
        f"{method} {rule.rule.rstrip('/') or '/'}"
        for rule in served.url_map.iter_rules()
        if not rule.endpoint.endswith("static")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    named = [
        route
        for page in ROUTES
        for route in re.findall(r"^\| `([A-Z]+ /[^`]*)` \|", PAGES[page], re.MULTILINE)
    ]
    assert sorted(named) == sorted(routes)


def test_each_route_of_the_api_and_of_the_inbox_is_on_its_page(served: Flask) -> None:
    rules = {
        rule.rule.rstrip("/")
        for rule in served.url_map.iter_rules()
        if "static" not in rule.endpoint
    }
    for page, start in (("docs/http-api.md", "/v1/"), ("docs/inbox.md", "/inbox")):
        assert [
            rule for rule in rules if rule.startswith(start) and f" {rule}` |" not in PAGES[page]
        ] == []


def test_the_docs_name_every_setting_with_its_default() -> None:
    def message_json(value: object) -> str:
        return "–" if value == "" else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"

    rows = table("docs/settings.md", "name")
    assert {name: default for name, default, _ in rows} == {
        f"`{name}`": message_json(getattr(default_settings, name))
        for name in default_settings.__annotations__
    }
    assert all(("Secret." in meaning) == (name.strip("`") in SECRETS) for name, _, meaning in rows)


def test_the_docs_name_only_settings_that_exist() -> None:
    named = set(re.findall(r"\bMAILASYNC_([A-Z0-9_]*[A-Z0-9])\b", TEXT))
    assert named <= default_settings.__annotations__.keys()


def test_default_settings_and_settings_are_the_same_list() -> None:
    types = get_type_hints(Settings)
    assert list(get_type_hints(default_settings).items()) == [
        (field.name, types[field.name]) for field in fields(Settings)
    ]


def test_each_setting_has_its_comment() -> None:
    lines = (PROJECT / "default_settings.py").read_text().splitlines()
    bare = [
        line
        for before, line in pairwise(lines)
        if re.match(r"[A-Z0-9_]+:", line) and not before.startswith("#:")
    ]
    assert bare == []


def test_the_docs_name_every_make_target_and_no_other() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    assert len(targets) == len(set(targets))
    assert set(re.findall(r"\bmake ([a-z-]+)", CODE)) == set(targets)
    listed = "".join(row[0] for row in table("docs/contributing.md", "command"))
    assert set(re.findall(r"`make ([a-z-]+)`", listed)) == set(targets)


def test_contributing_names_only_make_targets_that_exist() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)", (PROJECT / "CONTRIBUTING.md").read_text()))
    assert named and named <= set(
        re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    )


def test_the_example_of_an_env_file_has_only_settings_that_exist() -> None:
    named = set(
        re.findall(r"^#?MAILASYNC_(\w+)=", (PROJECT / ".env.example").read_text(), re.MULTILINE)
    )
    assert named and named <= {setting.name for setting in fields(Settings)}


def test_the_workflow_of_a_pull_request_is_the_command_of_this_repository() -> None:
    assert re.search(
        r"^ +- run: \.ci/run$", (PROJECT / ".github/workflows/ci.yml").read_text(), re.MULTILINE
    )
    assert (PROJECT / ".ci/run").stat().st_mode & 0o100


def flask_commands(code: str) -> list[tuple[str, str]]:
    """Return the commands that a text names, each with its inner one or an empty text."""
    program = r"(?:\bflask|(?:(?<=`)|(?<=bin/))mailasync|\{\{ program \}\})"
    return re.findall(program + r" ([a-z]+)(?: ([a-z]+))?", code)


def is_command(served: Flask, name: str, inner: str) -> bool:
    command = served.cli.commands.get(name)
    if isinstance(command, click.Group):
        return not inner or inner in command.commands
    return command is not None


def test_flask_commands_in_the_docs_exist_and_are_all_there_are(served: Flask) -> None:
    named = flask_commands(CODE)
    assert [one for one in named if not is_command(served, *one)] == []
    assert {name for name, _ in named} == served.cli.commands.keys()


def test_flask_commands_on_the_pages_exist(served: Flask) -> None:
    pages = [file.read_text() for file in (PROJECT / "mailroom").glob("*/templates/**/*.html")]
    named = [one for page in pages for one in flask_commands(page)]
    assert len(named) > 5 and [one for one in named if not is_command(served, *one)] == []


def test_files_in_the_docs_exist() -> None:
    named = re.findall(r"(?<![\w/.])((?:\w+/)*\w[\w.]*\.(?:py|json|md))\b(?!\()", CODE)
    assert (
        named
        and [
            name
            for name in named
            if not any((PROJECT / folder / name).exists() for folder in ("", "docs"))
        ]
        == []
    )


def test_files_in_the_map_of_the_code_exist() -> None:
    named = re.findall(r"\b((?:\w+/)*\w+\.py)\b", str(mailroom.__doc__))
    assert (
        named
        and [
            name
            for name in named
            if not (PROJECT / name).exists() and not list(PROJECT.glob(f"mailroom/**/{name}"))
        ]
        == []
    )


def test_states_in_the_docs_are_the_states() -> None:
    for page, states in (("docs/messages.md", State), ("docs/jobs.md", JobState)):
        assert [row[0].strip("`") for row in table(page, "status | means")] == [*states]


def test_curl_bodies_in_the_docs_are_accepted_or_refused_as_they_show() -> None:
    [refused] = [body for body in BODIES if "subjct" in body]
    assert len(BODIES) > 5
    assert all(read_message(body.encode()).to for body in BODIES if body != refused)
    with pytest.raises(InvalidMessage) as caught:
        ORDERS.mail(json.loads(refused))
    assert json.loads(problems.invalid(caught.value).get_data()) == json.loads(
        block_with("json", "validation_error")
    )


def test_mails_of_programs_in_the_docs_are_accepted() -> None:
    mails = [
        ast.literal_eval(node.value)
        for kind, block in BLOCKS
        if kind == "python"
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and '"to"' in block
        if ast.unparse(node.targets[0]) == "mail"
    ]
    assert len(mails) >= 3 and all(read_message(json.dumps(mail).encode()).to for mail in mails)


def test_jobs_in_the_docs_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_types", {**registry._types})
    exec(block_with("python", '@job("report")'), {"__name__": "reports"})
    assert len(JOB_BODIES) >= 2
    for body in JOB_BODIES:
        order = ORDERS.job(json.loads(body))
        assert order.mail and order.mail.message.template


def test_the_docs_show_a_job_as_the_api_does(served: Flask, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/docs.sqlite3")
    upgrade(database)
    order = ORDERS.job(json.loads(next(body for body in JOB_BODIES if "simulate" in body)))
    assert order.mail
    Outbox(database).accept(order.mail)
    standing = Jobs(database, 20).details(order.job.id)
    assert standing is not None
    services: Services = served.extensions["mailasync"]
    served.extensions["mailasync"] = replace(services, publisher=lambda: None)
    with served.app_context():
        real = jobs.job_json(standing)
    database.close()
    told = json.loads(block_with("json", "retry_of"))
    assert list(told) == list(real)
    assert real["message"] is not None
    assert told["args"] == real["args"] and told["message"].keys() == real["message"].keys()


def test_json_in_the_docs_is_json() -> None:
    for kind, block in BLOCKS:
        assert kind != "json" or json.loads(block)
    assert read_message(block_with("json", '"contents"').encode()).subject


def test_the_curl_line_is_the_one_that_flask_up_prints() -> None:
    settings = Settings(
        **{name: getattr(default_settings, name) for name in default_settings.__annotations__}
    )
    line = f"```sh\n{serve.curl(settings)}\n```"
    assert all(line in PAGES[page] for page in ("README.md", "docs/quickstart.md"))


def test_the_docs_show_a_message_as_the_api_does(served: Flask, tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/docs.sqlite3")
    upgrade(database)
    outbox = Outbox(database)
    accepted = ORDERS.mail(json.loads(BODIES[0]), work_seconds=5)
    outbox.accept(accepted)
    services: Services = served.extensions["mailasync"]
    served.extensions["mailasync"] = replace(services, outbox=outbox, publisher=lambda: None)
    standing = outbox.details(accepted.id)
    assert standing is not None
    with served.app_context():
        real = message_json(standing)
    database.close()
    told = json.loads(block_with("json", '"subject": "Hello",\n'))
    assert list(told) == list(real)
    assert real["job"] is not None
    assert list(told["recipients"][0]) == list(real["recipients"][0])
    assert list(told["job"]) == list(real["job"])
    assert told["timeline"][0].keys() == real["timeline"][0].keys()


def test_python_in_the_docs_compiles() -> None:
    sources = [block for kind, block in BLOCKS if kind == "python"]
    assert sources
    for source in sources:
        compile(source, "docs", "exec")


def test_celery_client_in_the_docs_names_the_task_and_a_mail_that_is_accepted() -> None:
    found = re.search(
        r'send_task\(\s*"([^"]+)",\s*\[(\{.*\})\],?\s*\)', block_with("python", "send_task")
    )
    assert found and found[1] == mailasync.sendMail.name and read_message(found[2].encode()).to


def test_the_version_is_in_one_place_and_the_changelog_has_it() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"] and "version" not in project["project"]
    assert project["tool"]["hatch"]["version"] == {"path": "mailroom/__init__.py"}
    released = re.findall(
        r"^## (\d+\.\d+\.\d+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert released[0] == mailroom.__version__


def test_changelog_has_a_place_for_what_is_not_released() -> None:
    assert re.search(r"^## Unreleased$", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_no_file_names_a_machine_or_a_package_index() -> None:
    index = re.compile(
        r"py[p]i\.|pythonhoste[d]\.|registry\.npm[j]s|(?:extra-)?index-ur[l]|find-link[s]",
        re.IGNORECASE,
    )
    home = re.compile(r"(?<![\w.])/(?:root|home|work|Users)/[\w.]+")
    found = {name: [*index.findall(text), *home.findall(text)] for name, text in tracked().items()}
    assert {name: what for name, what in found.items() if what} == {}


def test_the_speed_that_the_docs_tell_is_what_make_bench_measured() -> None:
    for heading, rows, file in (
        ("what", report.ROWS, "results.md"),
        ("at scale", report.SCALE_ROWS, "scale.md"),
    ):
        told, measured = (
            table("docs/speed.md", heading),
            (PROJECT / "benchmarks" / file).read_text(),
        )
        assert [row[:2] for row in told] == [[expected.what, expected.target] for expected in rows]
        assert [row for row in told if f"| {' | '.join(row)} |" not in measured] == []
