"""Prints every setting in force, and where its value comes from: flask config."""

import json
from dataclasses import fields
from typing import Any, NamedTuple

import click

from mailroom.cli.context import CommandContext
from mailroom.cli.output import AS_JSON_LINES
from mailroom.config.environment import origins
from mailroom.config.settings import SECRETS, Settings

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
