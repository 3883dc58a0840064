"""The programs of docs/clients: docs/clients.md shows them, and they send one mail each; `make check-clients` runs all."""

import os
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.services import free_port
from tests.services.processes import PROJECT, Service, service
from tests.tools import check_clients
from tests.tools.check_clients import (
    ALL,
    CLIENTS,
    ORDER,
    RECIPIENT,
    URL,
    Client,
    Failed,
    run,
    start,
)

PAGE = (PROJECT / "docs/clients.md").read_text()
IN_ANY_CASE = [client for client in ALL if client.name in ("curl", "Python")]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Service]:
    database = f"sqlite:///{tmp_path}/clients.sqlite3"
    with service(
        tmp_path, INBOX_SMTP_PORT=str(free_port()), DATABASE_URL=database, API_KEY="s3cret"
    ) as made:
        made.upgrade()
        made.up()
        yield made


@pytest.mark.parametrize("client", ALL, ids=lambda client: client.name)
def test_the_docs_show_each_program_as_it_is(client: Client) -> None:
    text = (CLIENTS / client.file).read_text()
    language = client.file.partition(".")[2].replace("py", "python").replace("mjs", "js")
    assert f"```{language}\n{text}```\n" in PAGE and f"docs/clients/{client.file}" in PAGE
    assert all(
        word in text
        for word in (URL, RECIPIENT, ORDER, "MAILASYNC_API_KEY", "wait=30", "Idempotency-Key")
    )


def test_the_docs_page_shows_each_program_with_its_own_address(client: FlaskClient) -> None:
    page = unescape(client.get("/docs", base_url="http://127.0.0.1:8080").text)
    for one in ALL:
        assert (CLIENTS / one.file).read_text().replace(
            "http://127.0.0.1:5000", "http://127.0.0.1:8080"
        ) in page


def test_every_program_is_one_that_is_run() -> None:
    assert sorted(file.name for file in CLIENTS.iterdir()) == sorted(client.file for client in ALL)


def test_a_program_that_is_run_twice_sends_one_mail_and_waits_for_it(served: Service) -> None:
    for client in IN_ANY_CASE:
        run(client, served)


def test_a_mail_that_does_not_arrive_fails(
    served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "clients"
    changed.mkdir()
    [python] = (client for client in ALL if client.name == "Python")
    monkeypatch.setattr(check_clients, "CLIENTS", changed)
    text = (CLIENTS / python.file).read_text()
    (changed / python.file).write_text(text.replace("on its way", "lost"))
    with pytest.raises(Failed, match=r"expected one mail for python@example.org in the inbox"):
        run(python, served)
    (changed / python.file).write_text(text.replace('"Order 4711"', "4711"))
    with pytest.raises(Failed, match="it ended with 1"):
        run(python, served)


def test_a_service_that_does_not_start_is_said(tmp_path: Path) -> None:
    with (
        service(tmp_path, SMTP_SECURITY="tls") as wrong,
        pytest.raises(Failed, match="flask db upgrade"),
    ):
        start(wrong)
    with (
        service(
            tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/new.sqlite3", PORT="1", HOST="192.0.2.1"
        ) as wrong,
        pytest.raises(Failed, match="cannot be used"),
    ):
        start(wrong)


def test_without_npm_it_says_what_to_install(tmp_path: Path) -> None:
    for name in ("curl", "node"):
        (tmp_path / name).symlink_to("/bin/true")
    environment = {
        **os.environ,
        "PATH": str(tmp_path),
        "TEST_SERVERS_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.check_clients"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        "npm is not here" in done.stderr
        and "install Node.js" in done.stderr
        and "nothing was checked" in done.stderr
    )
    assert "Traceback" not in done.stderr
