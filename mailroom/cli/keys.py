"""The commands about API keys: flask keys create, list, revoke."""

import json
from collections.abc import Sequence

import click

from mailroom.api.auth.keys import key_json, key_row_json, make
from mailroom.cli.context import CommandContext
from mailroom.cli.output import AS_JSON, AS_JSON_LINES, errors_in_a_line, refuse_options
from mailroom.model.errors import InvalidMessage
from mailroom.model.times import timestamp_seconds
from mailroom.process.installation import PROGRAM
from mailroom.store.keys.api_keys import ApiKeys, KeyRow, Scope
from mailroom.store.keys.rate_limits import PER_MINUTE_MAX

SCOPE_HELP = (
    "send: submit mails and jobs, and look each up by its id; read: every GET; admin: everything. "
    "May be repeated."
)


@click.group("keys")
def keys_group() -> None:
    """API keys: who may send, read or administer."""


@keys_group.command("create")
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    default=[Scope.SEND.value],
    show_default=True,
    help=SCOPE_HELP,
)
@click.option(
    "--from",
    "senders",
    multiple=True,
    metavar="ADDRESS",
    help="An address or @domain that the key may send from. Without this option: any that accounts allow.",
)
@click.option(
    "--per-minute",
    type=click.IntRange(1, PER_MINUTE_MAX),
    help="Messages a minute. Without this option: no limit.",
)
@AS_JSON
@click.pass_obj
def create_key(
    context: CommandContext,
    name: str,
    scopes: Sequence[str],
    senders: Sequence[str],
    per_minute: int | None,
    as_json: bool,
) -> None:
    """Make a key and print it. It is shown only once."""
    params = {
        "name": name,
        "scopes": [Scope(scope) for scope in scopes],
        "senders": list(senders),
        "per_minute": per_minute,
    }
    with errors_in_a_line(), context.open_database() as database:
        try:
            secret, key = make(ApiKeys(database), params)
        except InvalidMessage as e:
            refuse_options(e)
    if as_json:
        click.echo(json.dumps({"key": secret, **key_json(key)}))
        return
    click.echo(f"key {key.id} is in {database}; copy it now, as it is not shown again:", err=True)
    click.echo(secret)


@keys_group.command("list")
@AS_JSON_LINES
@click.pass_obj
def list_keys(context: CommandContext, as_json: bool) -> None:
    """List all keys, revoked ones too, without their secret part."""
    with errors_in_a_line(), context.open_database() as database:
        rows = ApiKeys(database).every()
    for row in rows:
        _print(row, as_json=as_json)
    if not rows and not as_json:
        click.echo(f"no keys; make one with `{PROGRAM} keys create NAME`", err=True)


@keys_group.command("revoke")
@click.argument("id")
@AS_JSON
@click.pass_obj
def revoke_key(context: CommandContext, id: str, as_json: bool) -> None:
    """Revoke a key for good. Web processes stop accepting it within seconds."""
    with errors_in_a_line(), context.open_database() as database:
        row = ApiKeys(database).revoke(id)
    _print(row, as_json=as_json)


def _print(row: KeyRow, *, as_json: bool) -> None:
    click.echo(json.dumps(key_row_json(row)) if as_json else _line(row))


def _line(row: KeyRow) -> str:
    key = row.key
    parts = [f"{key.id}  {key.name}: {', '.join(sorted(key.scopes))}"]
    if key.senders:
        parts.append(f"from {' or '.join(key.senders)}")
    if key.per_minute:
        parts.append(f"{key.per_minute:,} messages a minute")
    parts.append(f"made {timestamp_seconds(row.created_at)}")
    parts.append(f"last used {timestamp_seconds(row.used_at)}" if row.used_at else "never used")
    if row.revoked_at:
        parts.append(f"revoked {timestamp_seconds(row.revoked_at)}")
    return "; ".join(parts)
