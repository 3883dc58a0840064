"""The command that checks the installation: flask doctor."""

import json
import sys
from collections.abc import Iterator
from functools import partial

import click

from mailroom.broker.connection import bounded_connection
from mailroom.cli.context import CommandContext
from mailroom.cli.database import choose_database
from mailroom.cli.doctor import Doctor, Finding
from mailroom.cli.output import AS_JSON_LINES
from mailroom.config.accounts import accounts
from mailroom.config.settings import Settings
from mailroom.store.db.database import Database
from mailroom.worker import runtime


@click.command("doctor")
@AS_JSON_LINES
@click.pass_obj
def doctor_command(context: CommandContext, as_json: bool) -> None:
    """Check broker, database, worker and logins; each line says ok, or what to do. Sends nothing."""
    is_well = True
    for finding in examine(context.settings):
        click.echo(json.dumps(finding.as_json()) if as_json else str(finding))
        is_well = is_well and finding.ok
    sys.exit(0 if is_well else 1)


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield the findings about the service that runs here, each as soon as it is known."""
    choice = choose_database(settings)
    database = Database(choice.url)
    connect = partial(bounded_connection, runtime.process.celery_app)
    is_broker_inside = choice.is_up and settings.embedded
    doctor = Doctor(settings, database, accounts(settings), None if is_broker_inside else connect)
    try:
        yield from doctor.examine()
    finally:
        database.close()
