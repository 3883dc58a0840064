"""The wheel: built, installed into an empty environment, and used in a directory that has nothing to do with it."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import mailroom
from tests.services import free_port, wait_until
from tests.services.processes import PROJECT, Service, service
from tests.services.smtpd import ScriptedSMTP

#: Modules that others may have in the current directory, and that nothing of ours may take for its own.
OTHERS = ("app", "default_settings", "mailroom", "flask", "queue")
#: A job type in the current directory, and what it returns.
JOBS = """from pathlib import Path

import mailroom
from mailroom.jobs.registry import job


@job("place")
def place():
    return {"of_mailroom": Path(mailroom.__file__).parts[-3]}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `python -m build` makes of what the source distribution has, and no other file."""
    directory = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(directory)]
    subprocess.run([*build, str(PROJECT)], check=True, capture_output=True)
    [made] = directory.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment with the wheel; what the service needs comes from the environment of the tests."""
    directory = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    python = str(directory / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    subprocess.run([*install, "--no-deps", "--no-index", str(wheel)], check=True)
    (site_packages(directory) / "needed.pth").write_text(f"{Path(click.__file__).parents[1]}\n")
    return directory


@pytest.fixture
def installed(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    """The installed service, started in a directory of somebody else's programs."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    current = tmp_path / "current"
    current.mkdir()
    for name in OTHERS:
        (current / f"{name}.py").write_text("raise SystemExit('not of mailasync')\n")
    (current / "reports.py").write_text(JOBS)
    (current / ".env").write_text("MAILASYNC_PORT=of somebody else\n")
    with service(tmp_path, INBOX_SMTP_PORT=str(free_port()), SIMULATED_WORK_SECONDS="0") as made:
        made.project = current
        made.python = str(environment / "bin" / "python")
        yield made


def site_packages(environment: Path) -> Path:
    [directory] = environment.glob("lib/python*/site-packages")
    return directory


def files(directory: Path) -> dict[str, tuple[int, int]]:
    """Return the size and the time of each file below a directory."""
    return {
        str(file.relative_to(directory)): (file.stat().st_size, file.stat().st_mtime_ns)
        for file in directory.rglob("*")
    }


def program(environment: Path) -> str:
    return str(environment / "bin" / "mailasync")


def test_the_wheel_has_all_that_runs_and_takes_two_names(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    dist_info = f"mailasync-{mailroom.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"mailasync.py", "mailroom", dist_info}
    listed = ["git", "-C", str(PROJECT), "ls-files", "mailroom", "migrations", "docs/clients"]
    kept = set(subprocess.check_output(listed, text=True).splitlines())
    elsewhere = ("migrations/", "docs/clients/")
    wanted = {f"mailroom/{name}" if name.startswith(elsewhere) else name for name in kept}
    wanted |= {"mailasync.py", "mailroom/app.py", "mailroom/default_settings.py"}
    assert {name for name in names if not name.startswith(dist_info)} == wanted


def test_up_sends_a_mail_and_writes_to_the_state_directory_only(
    installed: Service, environment: Path, tmp_path: Path
) -> None:
    before = files(environment)
    # When it runs in one process
    up = installed.web(program(environment), "up")
    id = installed.post()
    # Then the mail is in its inbox, and pages have their styles and programs
    assert installed.final(id)["status"] == "sent"
    [mail] = installed.get("/inbox/api/messages?to=bob@example.org&wait=20")["data"]
    assert (mail["subject"], mail["text"]) == ("Hello", "The work is done.")
    assert installed.request("GET", "/static/web/pages.css")[0] == 200
    assert "Node" in installed.get("/docs")
    # And commands find its database
    done = installed.call(program(environment), "status", id, "--json")
    assert (done.code, done.json["status"]) == (0, "sent")
    assert "using the database of mailasync up" in done.err
    assert up.stop() == 0
    # And it has written nothing but its state
    assert files(environment) == before
    assert {file.name for file in installed.project.iterdir()} == {
        ".env",
        "reports.py",
        *(f"{name}.py" for name in OTHERS),
    }
    [state] = (tmp_path / "state").iterdir()
    assert (state.name, (state / "up.sqlite3").exists()) == ("mailasync", True)
    assert state.stat().st_mode & 0o077 == 0


def test_the_pair_runs_jobs_of_the_current_directory(
    installed: Service,
    environment: Path,
    tmp_path: Path,
    broker_url: str,
    to_smtpd: dict[str, str],
    smtpd: ScriptedSMTP,
) -> None:
    # Given the pair, in a directory of ours, whose `.env` names the job's module
    home = tmp_path / "home"
    home.mkdir()
    (home / ".env").write_text("MAILASYNC_JOBS=reports\n")
    installed.settings |= {"HOME": str(home), "BROKER_URL": broker_url, **to_smtpd}
    installed.settings["ENV_FILE"] = str(home / ".env")  # as a test has none unless it says so
    for name in (
        "mailroom",
        "flask",
        "queue",
    ):  # Celery itself looks into the current directory first.
        (installed.project / f"{name}.py").unlink()
    installed.web(program(environment), "web")
    installed.run(program(environment), "worker", "--concurrency=4", name="worker").says(" ready.")
    # When a job is posted, with a mail
    notify = {
        "to": "bob@example.org",
        "subject": "Done",
        "contents": "In {{ job.result.of_mailroom }}",
    }
    job = {"name": "place", "notify": notify}
    assert installed.request("POST", "/v1/jobs", job)[0] == 202
    # Then its module was found here, and ours where they are installed
    wait_until(lambda: smtpd.messages, what="its mail is sent")
    assert b"In site-packages" in smtpd.messages[0].data
    assert (home / "mailasync.sqlite3").exists()
    # And Celery's own command is a worker, too
    installed.worker()


def test_a_wrong_setting_is_told_in_one_line(installed: Service, environment: Path) -> None:
    done = installed.call(program(environment), "up", env={"MAILASYNC_PROT": "1"})
    assert done.code == 1
    [line] = done.err.splitlines()
    assert "did you mean MAILASYNC_PORT? " in line
    assert os.path.exists(line.split()[-4])
