"""The commands: flask up, flask inbox, flask db upgrade."""

from collections.abc import Callable

import click


def commands(*, up: Callable[[bool], None], inbox: Callable[[], None], upgrade: Callable[[], str]) -> list[click.Command]:
    """Return the commands; what they do is app.py's, which puts everything together."""

    @click.command("up")
    @click.option("--deliver", is_flag=True, help="Hand mails to the configured account or SMTP host, not to the inbox.")
    def up_command(deliver: bool) -> None:
        """Run everything in one process: web, worker, database, inbox. No account, no root, no other server."""
        up(deliver)

    @click.command("inbox")
    def inbox_command() -> None:
        """Run the disposable inbox alone, as the next hop of `python3 app.py` and its worker."""
        inbox()

    @click.group("db")
    def db_group() -> None:
        """The database."""

    @db_group.command("upgrade")
    def upgrade_command() -> None:
        """Bring the database to the schema of this version. Stop the old version first."""
        click.echo(upgrade())

    return [up_command, inbox_command, db_group]
