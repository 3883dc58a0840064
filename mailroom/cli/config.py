"""flask config: every setting in force, and where its value comes from."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields

import click

from mailroom.config.settings import SECRETS, Settings


def config_command(settings: Settings, origins: Callable[[], Mapping[str, str]]) -> click.Command:
    """Return the command; `origins` says of each setting where its value comes from."""

    @click.command("config")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
    def command(as_json: bool) -> None:
        """Every setting with its value and where that comes from; secrets as ***."""
        found = origins()
        rows = [
            (
                field.name,
                "***"
                if field.name in SECRETS and getattr(settings, field.name)
                else getattr(settings, field.name),
                found[field.name],
            )
            for field in fields(settings)
        ]
        names, values = (max(len(str(row[column])) for row in rows) for column in (0, 1))
        for name, value, origin in rows:
            click.echo(
                json.dumps({"name": name, "value": value, "source": origin, "secret": name in SECRETS})
                if as_json
                else f"{name:{names}}  {value!s:{min(values, 40)}}  {origin}"
            )

    return command
