"""The examples as their documents start them: the Procfile's commands and the scripts, as they stand, in a copy as a clone has it."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from examples.fibonacci.jobs import N_MAX, fibonacci
from mailroom.jobs import registry
from tests.services import free_port, wait_until
from tests.services.processes import PROJECT, Program, Service, service

NAMES = ("notify", "fibonacci", "buttons", "blocking")
LINES_MAX = 80
TOOLS = {"bash": "bash", "curl": "curl", "jq": "jq"}  #: program: Debian's package, and Homebrew's

#: What a clone of the project has and the service needs.
SOURCES = ("app.py", "mailasync.py", "default_settings.py", "mailroom", "migrations", "examples")
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def example(tmp_path: Path, broker_url: str) -> Iterator[Service]:
    """The examples in a directory of their own, with the default database; only broker and ports are not the default ones."""
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in SOURCES:
        if (PROJECT / name).is_dir():
            shutil.copytree(
                PROJECT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__", "*.log")
            )
        else:
            shutil.copy(PROJECT / name, clone / name)
    ports = {"INBOX_PORT": str(free_port()), "INBOX_SMTP_PORT": str(free_port())}
    with service(tmp_path, BROKER_URL=broker_url, **ports) as made:
        made.project = clone
        yield made


def start(example: Service, name: str, *processes: str, **env: str) -> list[Program]:
    """Start these processes of the example's Procfile, or all; return when its web side answers."""
    commands = procfile(example.project / "examples" / name / "Procfile")
    # As a shell runs it, which finds programs in PATH.
    run = ("-c", "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])")
    started = {
        process: example.run(
            *run, *shlex.split(commands[process]), name=process, env={"PATH": PATH, **env}
        )
        for process in processes or commands
    }

    def answers() -> bool:
        for process, program in started.items():
            assert program.process.poll() is None, (
                f"{process} ended with {program.process.returncode}:\n{program.text()[-3000:]}"
            )
        try:
            return requests.get(f"{example.url}/livez", timeout=60).ok
        except requests.ConnectionError:
            return False

    wait_until(answers, what="the example answers")
    return list(started.values())


def call(example: Service, *command: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run one of its scripts, with the web side's address where the scripts look for it."""
    for program, package in TOOLS.items():
        assert shutil.which(program), (
            f"{program} is not installed: apt-get install {package}, or brew install {package}"
        )
    return subprocess.run(
        command,
        cwd=example.project,
        env={**example.environment, "PATH": PATH, "BASE_URL": example.url, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def try_documented(example: Service, file: str) -> list[str]:
    """Run the curl lines of a docstring, each with the `task_id` that came last; return the answers."""
    answers: list[str] = []
    for command in commands_in(example.project / file):
        if command[0] == "curl":
            tasks = re.findall(r'"task_id": ?"([^"]+)"', " ".join(answers))
            line = [
                word.replace("http://127.0.0.1:5000", example.url).replace(
                    "<task_id>", "".join(tasks[-1:])
                )
                for word in command
            ]
            ran = call(example, *line, "-fsS")
            assert ran.returncode == 0, (line, ran.stderr)
            answers.append(ran.stdout)
    return answers


def procfile(file: Path) -> dict[str, str]:
    """The commands by process, as honcho reads them."""
    return dict(re.findall(r"^([A-Za-z0-9_-]+):\s*(.+)$", file.read_text(), re.MULTILINE))


def commands_in(file: Path) -> list[list[str]]:
    """The commands that a file tells its reader to type: indented lines of a docstring, or of a comment; two spaces end a command."""
    text = file.read_text()
    told = (
        ast.get_docstring(ast.parse(text)) or ""
        if file.suffix == ".py"
        else "\n".join(re.findall(r"^# ?(.*)$", text, re.MULTILINE))
    )
    return [
        shlex.split(re.split(r"\s{2,}", line.strip())[0])
        for line in told.splitlines()
        if line.startswith("    ")
    ]


def files(name: str) -> list[Path]:
    found = [
        file
        for file in (PROJECT / "examples" / name).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    ]
    return sorted(file for file in found if file.suffix != ".log")


# --- what a reader finds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_file_is_read_in_two_minutes(name: str) -> None:
    assert files(name)
    assert {
        str(file): lines
        for file in files(name)
        if (lines := len(file.read_text().splitlines())) > LINES_MAX
    } == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_that_a_file_tells_to_type_exists(name: str) -> None:
    processes = [
        shlex.split(command)
        for command in procfile(PROJECT / "examples" / name / "Procfile").values()
    ]
    typed = [
        command
        for file in files(name)
        if file.suffix in (".py", "", ".sh")
        for command in commands_in(file)
    ]
    assert ["make", "example", f"NAME={name}"] in typed
    for command in processes + typed:
        refuse_missing(command)


def refuse_missing(command: list[str]) -> None:
    if command[0] == "env":
        settings = dict(word.split("=", 1) for word in command[1:] if word.startswith("MAILASYNC_"))
        for module in settings["MAILASYNC_JOBS"].split(","):
            assert (PROJECT / f"{module.replace('.', '/')}.py").is_file(), command
        command = command[1 + len(settings) :]
    program, *arguments = command
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (PROJECT / "Makefile").read_text(), re.MULTILINE), (
            command
        )
        assert (PROJECT / "examples" / arguments[1].removeprefix("NAME=") / "Procfile").is_file(), (
            command
        )
    elif program == "python":
        file = f"{arguments[1].replace('.', '/')}.py" if arguments[0] == "-m" else arguments[0]
        assert (PROJECT / file).is_file(), command
    elif "/" in program:
        assert os.access(PROJECT / program, os.X_OK), command
    else:
        assert shutil.which(program, path=PATH), command


# --- notify --------------------------------------------------------------------------------------------------------


def test_notify_answers_at_once_and_the_mail_comes_five_seconds_later(example: Service) -> None:
    start(example, "notify")
    inbox = f"http://127.0.0.1:{example.settings['INBOX_PORT']}"
    wait_until(lambda: listens(f"{inbox}/livez"), what="the inbox answers")
    ran = call(example, "examples/notify/check.sh", INBOX_URL=inbox)
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    answered = re.search(r"^200 after ([0-9.]+) s: ", ran.stdout, re.MULTILINE)
    assert answered
    assert "arrived: Hello: The work is done." in ran.stdout
    # And it came once, five seconds after it was accepted, to somebody who never got a mail before
    [mail] = requests.get(f"{inbox}/inbox/api/messages", timeout=60).json()["data"]
    told = example.message(json.loads(ran.stdout[answered.end() :].partition("\n")[0])["id"])
    assert told["message_id"] == mail["message_id"]
    accepted = datetime.fromisoformat(told["created_at"])
    assert (datetime.fromisoformat(mail["received_at"]) - accepted).total_seconds() >= max(
        5, float(answered[1])
    )


def test_the_check_of_notify_fails_where_nobody_answers(example: Service) -> None:
    ran = call(example, "examples/notify/check.sh")
    assert ran.returncode != 0
    assert "arrived" not in ran.stdout


def listens(url: str) -> bool:
    try:
        return requests.get(url, timeout=60).ok
    except requests.ConnectionError:
        return False


# --- fibonacci -----------------------------------------------------------------------------------------------------

NUMBERS = {-1: [], 0: [0], 1: [0, 1], 3: [0, 1, 1, 2], 5: [0, 1, 1, 2, 3, 5]}


@pytest.mark.parametrize("n", NUMBERS)
def test_fibonacci_by_a_plain_call(n: int) -> None:
    assert fibonacci(n) == NUMBERS[n]


def test_fibonacci_is_exact_in_json_up_to_its_limit() -> None:
    assert fibonacci(N_MAX)[-1] <= 2**53 < sum(fibonacci(N_MAX)[-2:])
    with pytest.raises(ValueError, match=f"expected n up to {N_MAX}, got {N_MAX + 1}"):
        fibonacci(N_MAX + 1)
    with pytest.raises(ValueError, match="expected n up to"):
        fibonacci(10**100)


def test_fibonacci_has_the_routes_and_the_json_of_its_tutorial(example: Service) -> None:
    # Given the web side alone
    start(example, "fibonacci", "web")
    assert example.request("GET", "/ping") == (200, {"status": "success", "message": "pong"})
    ran = call(example, "examples/fibonacci/integration.sh", TRIES="2")
    assert ran.returncode == 1
    assert '"status":"PENDING"' in ran.stdout.replace(" ", "")
    assert "is the worker running?" in ran.stderr
    canceled = create(example, 2)
    assert example.request("POST", f"/v1/jobs/{canceled}/cancel")[0] == 200
    assert example.get(f"/status/{canceled}") == {"status": "REVOKED", "result": None}
    # When a worker comes
    start(example, "fibonacci", "worker")
    ran = call(example, "examples/fibonacci/integration.sh")
    # Then the script ends with the result, and every line of the docstring does what it says
    assert ran.returncode == 0, (ran.stdout, ran.stderr)
    assert (
        ran.stdout.splitlines()[-1].replace(" ", "") == '{"status":"SUCCESS","result":[0,1,1,2,3]}'
    )
    assert '"pong"' in try_documented(example, "examples/fibonacci/app.py")[0]
    # And the numbers are those of a plain call, whether they come with quotes or without
    asked = {create(example, given): n for n in NUMBERS for given in (n, str(n))}
    for id, n in asked.items():
        assert ended(example, f"/status/{id}", "status") == {
            "status": "SUCCESS",
            "result": NUMBERS[n],
        }
    # And what failed says why, and the worker's log is in the file
    too_much = example.request("POST", "/v1/jobs", {"name": "fibonacci", "args": {"n": N_MAX + 1}})[
        1
    ]["id"]
    failed = ended(example, f"/status/{too_much}", "status")
    assert failed["status"] == "FAILURE"
    assert f"expected n up to {N_MAX}" in failed["result"]
    log = example.project / "examples/fibonacci/celery.log"
    wait_until(lambda: all(id in log.read_text() for id in asked), what="the log has them all")


def test_fibonacci_refuses_what_is_no_number_and_knows_its_tasks(example: Service) -> None:
    start(example, "fibonacci", "web")
    texts = ("four", "", "4.5", " 4", "1_0", "٤", str(N_MAX + 1), "9" * 1000)
    others: tuple[object, ...] = (N_MAX + 1, 10**30, 4.0, True, None, [4], {})
    bodies: list[object] = [{"number": given} for given in (*texts, *others)]
    for body in (*bodies, {}, {"numbr": "4"}, [], "4", b"null"):
        status, told = example.request("POST", "/create", body)
        assert (status, [error["pointer"] for error in told["errors"]]) == (422, ["#/number"]), body
        assert f"expected a whole number up to {N_MAX}, got" in told["detail"]
    assert example.request("POST", "/create", b"{")[0] == 400
    assert (
        example.request(
            "POST",
            "/create",
            b"number=4",
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        )[0]
        == 415
    )
    for unknown in ("nonsense", "01a1fa74-7cbf-77a5-bd1e-567fa7461b6e"):
        status, told = example.request("GET", f"/status/{unknown}")
        assert (status, told["status"]) == (404, 404)
        assert unknown in told["detail"]


def create(example: Service, number: object) -> str:
    status, told = example.request("POST", "/create", {"number": number})
    assert (status, told["status"], [*told["data"]]) == (200, "success", ["task_id"])
    id: str = told["data"]["task_id"]
    return id


def ended(example: Service, path: str, key: str) -> Any:
    """What the tutorial's status route tells once the task has ended."""
    wait_until(
        lambda: example.get(path)[key] in ("SUCCESS", "FAILURE", "REVOKED"),
        what=f"{path} has ended",
    )
    return example.get(path)


# --- buttons -------------------------------------------------------------------------------------------------------


def test_buttons_run_three_tasks_at_once_on_three_workers(example: Service) -> None:
    web, *workers = start(example, "buttons", UNIT_SECONDS="2")
    for worker in workers:
        worker.says(" ready.")
    # Given three tasks that run, when a fourth one comes, then it waits for one of them
    ids = [press(example, length) for length in (3, 3, 2)]
    wait_until(lambda: states(example, ids) == ["STARTED"] * 3, what="three tasks run at once")
    ids.append(press(example, 1))
    assert states(example, ids) == ["STARTED"] * 3 + ["PENDING"]
    for id in ids:
        assert ended(example, f"/tasks/{id}", "task_status") == {
            "task_id": id,
            "task_status": "SUCCESS",
            "task_result": True,
        }
    for worker in workers:
        worker.says("(create_task) attempt 1: succeeded")
    # And the lines of the docstring work: `-F`, and a slash at the end
    started, told = try_documented(example, "examples/buttons/app.py")
    assert started.partition(":")[0].strip('{ "\n') == "task_id" and "task_status" in told
    assert web.process.poll() is None


def test_the_page_of_buttons_needs_nothing_but_its_own_files(example: Service) -> None:
    start(example, "buttons", "web")
    page = requests.get(f"{example.url}/buttons", timeout=60)
    assert re.findall(r'<button name="type" value="(\d)">(\w+)</button>', page.text) == [
        ("1", "Short"),
        ("2", "Medium"),
        ("3", "Long"),
    ]
    policy = dict(
        rule.split(" ", 1) for rule in page.headers["Content-Security-Policy"].split("; ")
    )
    assert {*policy.values()} == {"'none'", "'self'"} and policy["default-src"] == "'none'"
    used_by_the_page = {name for name, value in policy.items() if value == "'self'"}
    assert used_by_the_page == {  # script, style, icon, polling, form
        "script-src",
        "style-src",
        "img-src",
        "connect-src",
        "form-action",
    }
    assert not re.search(r"<style|\son\w+=|\sstyle=|<script(?![^>]* src=)", page.text)
    used = re.findall(r'(?:src|href|action)="([^"]+)"', page.text)
    assert sorted(used) == [
        "/static/buttons/icon.svg",
        "/static/buttons/tasks.css",
        "/static/buttons/tasks.js",
        "/tasks",
    ]
    for path in used:
        if path.startswith("/static"):
            text = requests.get(example.url + path, timeout=60).text
            assert "//" not in re.sub(r'xmlns="[^"]*"|^// .*$', "", text, flags=re.MULTILINE)
            assert "url(" not in text and "@import" not in text
    # Without JavaScript the form itself is sent, and answered; and what is no length is refused.
    assert states(example, [press(example, 3)]) == ["PENDING"]
    for form in ({"type": "4"}, {"type": "one"}, {"type": ""}, {}):
        refused = requests.post(f"{example.url}/tasks", form, timeout=60)
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "#/type")
    assert example.request("GET", "/tasks/nonsense")[0] == 404


def press(example: Service, length: int) -> str:
    answer = requests.post(f"{example.url}/tasks", {"type": str(length)}, timeout=60)
    assert (answer.status_code, [*answer.json()]) == (202, ["task_id"])
    id: str = answer.json()["task_id"]
    return id


def states(example: Service, ids: list[str]) -> list[str]:
    return [example.get(f"/tasks/{id}")["task_status"] for id in ids]


# --- blocking ------------------------------------------------------------------------------------------------------


def test_blocking_shows_both_times_side_by_side(example: Service) -> None:
    start(example, "blocking")
    ran = call(example, "python", "-m", "examples.blocking.compare", "1", example.url)
    assert ran.returncode == 0, ran.stderr
    answered, ended = re.findall(
        r"^(?:answer after|work ended) +([0-9.]+) s +([0-9.]+) s", ran.stdout, re.MULTILINE
    )
    assert float(answered[0]) >= 1 > float(answered[1])
    assert float(ended[1]) >= 1
    assert ran.stdout.rstrip().endswith("succeeded")
    inside, background, job = try_documented(example, "examples/blocking/app.py")
    assert "worked for 2 s" in inside
    assert "task_id" in background
    assert "worked for 2 s" in job
    for seconds in ("-1", "31", "nan", "inf", "two"):
        for method, path in (("GET", "/blocking"), ("POST", "/background")):
            status, told = example.request(method, f"{path}?seconds={seconds}")
            assert (status, told["errors"][0]["pointer"]) == (422, "?seconds")


def test_the_jobs_of_the_examples_are_registered_by_their_names() -> None:
    assert registry.job_type("fibonacci").function is fibonacci
