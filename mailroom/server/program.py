"""The program `mailasync` of the wheel: all commands of ours that `flask` has, in whatever directory."""

import os
import sys
from importlib import import_module

import click
from flask import Flask

import mailroom
from mailroom.process.installation import APPLICATION

HELP = "An e-mail microservice: takes mail over HTTP, and keeps it until it is sent. Try `mailasync up`."
_VERSION = click.version_option(mailroom.__version__, prog_name="mailasync")


def main() -> None:
    """Run one command. Neither FLASK_APP nor an app.py or `.env` of the current directory is looked at."""
    # For modules that JOBS names; last, so that nothing there hides a module of ours or of Python.
    sys.path.append(os.getcwd())
    try:
        app: Flask = import_module(APPLICATION).create_app()
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    program = program_of(app)
    with app.app_context():
        program()


def program_of(app: Flask) -> click.Command:
    """Return a program with the commands of an application."""
    return _VERSION(click.Group("mailasync", commands=app.cli.commands, help=HELP))
