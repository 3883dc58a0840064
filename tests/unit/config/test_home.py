"""HOME: where `.env` and the database files are, in a clone and for an installed wheel."""

import sys
from pathlib import Path

import pytest

from mailroom.config.environment import load
from mailroom.config.settings import SettingsError, database_url
from mailroom.process import installation
from mailroom.process.installation import data_directory, home, user_state
from tests.services.processes import PROJECT


def test_a_clone_keeps_everything_in_itself() -> None:
    assert (home(""), data_directory("")) == (PROJECT, PROJECT / "instance")


def test_home_is_for_both_and_may_begin_with_a_tilde(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert home("~/mail") == data_directory("~/mail") == tmp_path / "mail"
    monkeypatch.chdir(tmp_path)
    assert home("mail") == tmp_path / "mail"


def test_a_wheel_uses_the_state_directory_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(installation, "IS_INSTALLED", True)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert home("") == data_directory("") == tmp_path / "mailasync"


@pytest.mark.parametrize(
    ("platform", "chosen", "expected"),
    [
        ("linux", {}, ".local/state/mailasync"),
        ("linux", {"XDG_STATE_HOME": ""}, ".local/state/mailasync"),
        ("linux", {"XDG_STATE_HOME": "relative"}, ".local/state/mailasync"),
        ("darwin", {"XDG_STATE_HOME": "/state"}, "Library/Application Support/mailasync"),
    ],
)
def test_the_state_directory_is_the_one_of_the_platform(
    platform: str, chosen: dict[str, str], expected: str
) -> None:
    assert user_state(chosen, platform) == Path.home() / expected


def test_home_has_the_env_file_and_the_database(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("MAILASYNC_PORT=5001\n")
    settings = load({"MAILASYNC_HOME": str(tmp_path)})
    assert settings.PORT == 5001
    assert database_url(settings) == f"sqlite:///{tmp_path}/mailasync.sqlite3"


def test_an_env_file_cannot_say_where_it_is(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("MAILASYNC_HOME=/elsewhere\n")
    with pytest.raises(SettingsError, match=r"MAILASYNC_HOME in .*\.env is read too late"):
        load({"MAILASYNC_ENV_FILE": str(file)})
