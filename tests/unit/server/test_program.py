"""The program `mailasync`, which a wheel installs."""

from click.testing import CliRunner
from flask import Flask

import mailroom
from mailroom.cli import COMMANDS
from mailroom.server.program import program_of


def test_it_has_all_commands_of_ours_and_none_of_flask(app: Flask) -> None:
    told = CliRunner().invoke(program_of(app), ["--help"]).output
    listed = told.partition("Commands:\n")[2].splitlines()
    assert {line.split()[0] for line in listed} == {command.name for command in COMMANDS}


def test_it_tells_its_version(app: Flask) -> None:
    told = CliRunner().invoke(program_of(app), ["--version"]).output
    assert told == f"mailasync, version {mailroom.__version__}\n"
