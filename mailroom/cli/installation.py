"""The commands about this installation: flask config and flask doctor."""

import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import click

from mailroom.broker.connection import bounded_connection
from mailroom.cli.context import CommandContext
from mailroom.cli.database import choose_database
from mailroom.cli.doctor import Doctor, Finding
from mailroom.cli.output import AS_JSON_LINES
from mailroom.config.accounts import accounts
from mailroom.config.environment import origins
from mailroom.config.settings import SECRETS, Settings
from mailroom.store.db.database import Database
from mailroom.worker import runtime

VALUE_WIDTH_MAX = 40


class SettingRow(NamedTuple):
    """A setting as it is printed."""

    name: str
    value: object  #: "***" for a secret
    source: str


@click.command("config")
@AS_JSON_LINES
@click.pass_obj
def config_command(context: CommandContext, as_json: bool) -> None:
    """Print every setting with its value and where that comes from; secrets as ***."""
    rows = setting_rows(context.settings)
    name_width = max(len(row.name) for row in rows)
    value_width = min(VALUE_WIDTH_MAX, max(len(str(row.value)) for row in rows))
    for name, value, source in rows:
        if as_json:
            secret = name in SECRETS
            click.echo(
                json.dumps({"name": name, "value": value, "source": source, "secret": secret})
            )
        else:
            click.echo(f"{name:{name_width}}  {value!s:{value_width}}  {source}")


def setting_rows(settings: Settings) -> list[SettingRow]:
    sources = origins()
    rows = []
    for field in fields(settings):
        value: Any = getattr(settings, field.name)
        if value and field.name in SECRETS:
            value = "***"
        rows.append(SettingRow(field.name, value, sources[field.name]))
    return rows


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
