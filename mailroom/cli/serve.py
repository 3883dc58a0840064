"""The commands that serve: flask up, web, worker and inbox."""

import os
import sys

import click

from mailroom.cli.context import CommandContext
from mailroom.process.installation import PYTHON


@click.command("up")
@click.option(
    "--deliver",
    is_flag=True,
    help="Hand mail to the configured account or SMTP host, not to the inbox.",
)
@click.pass_obj
def up_command(context: CommandContext, deliver: bool) -> None:
    """Run everything in one process: web, worker, database and inbox.

    Needs no account, no root and no other server.
    """
    context.up(deliver)


@click.command("web")
@click.pass_obj
def web_command(context: CommandContext) -> None:
    """Run the web side of the pair, as `python3 app.py` does in a clone."""
    context.web()


@click.command("worker", context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker_command(arguments: tuple[str, ...]) -> None:
    """Run a worker: celery -A mailasync worker --loglevel=INFO, with further ARGUMENTS of Celery's."""
    sys.stdout.flush()
    # Becomes Celery itself, so that signals reach it, and without the web side in its memory.
    celery = ["-m", "celery", "-A", "mailasync", "worker", "--loglevel=INFO"]
    os.execv(sys.executable, [*PYTHON, *celery, *arguments])


@click.command("inbox")
@click.pass_obj
def inbox_command(context: CommandContext) -> None:
    """Run the disposable inbox alone, as the next hop of the pair, web and worker."""
    context.inbox()
