"""The commands that serve: flask up and flask inbox."""

import click

from mailroom.cli.context import CommandContext


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


@click.command("inbox")
@click.pass_obj
def inbox_command(context: CommandContext) -> None:
    """Run the disposable inbox alone, as the next hop of `python3 app.py` and its worker."""
    context.inbox()
