"""The commands about API keys: flask keys create, list, revoke."""

import json
from collections.abc import Sequence

import click

from mailroom.api.auth.keys import key_json, key_row_json, make
from mailroom.cli.output import AS_JSON, Opened, told
from mailroom.model.errors import InvalidMessage
from mailroom.model.times import timestamp_seconds
from mailroom.store.keys.api_keys import ApiKeys, KeyRow, Scope
from mailroom.store.keys.rate_limits import PER_MINUTE_MAX


def keys_group(opened: Opened) -> click.Group:
    """Return `flask keys` with its commands; they work directly in the database."""

    @click.group("keys")
    def group() -> None:
        """API keys: who may send, read or administer."""

    @group.command("create")
    @click.argument("name")
    @click.option(
        "--scope",
        "scopes",
        multiple=True,
        type=click.Choice([scope.value for scope in Scope]),
        default=[Scope.SEND.value],
        show_default=True,
        help="send: mails and jobs, and see by its id what became of one; read: every GET; admin: everything.",
    )
    @click.option(
        "--from",
        "senders",
        multiple=True,
        metavar="ADDRESS",
        help="An address or @domain that it may send from. Without one: any that the accounts allow.",
    )
    @click.option(
        "--per-minute",
        type=click.IntRange(1, PER_MINUTE_MAX),
        help="Messages a minute. Without it: no limit.",
    )
    @AS_JSON
    def create_command(
        name: str, scopes: Sequence[str], senders: Sequence[str], per_minute: int | None, as_json: bool
    ) -> None:
        """Make a key and print it, this once."""
        asked = {
            "name": name,
            "scopes": [Scope(scope) for scope in scopes],
            "senders": [*senders],
            "per_minute": per_minute,
        }
        with told(), opened() as database:
            try:
                secret, key = make(ApiKeys(database), asked)
            except InvalidMessage as e:
                raise click.UsageError("; ".join(error.detail for error in e.errors)) from None
        if as_json:
            click.echo(json.dumps({"key": secret, **key_json(key)}))
            return
        click.echo(
            f"key {key.id} is in {database}; it is shown this once, and cannot be had again:", err=True
        )
        click.echo(secret)

    @group.command("list")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
    def list_command(as_json: bool) -> None:
        """All keys, also those that were revoked; never the secret part."""
        with told(), opened() as database:
            rows = ApiKeys(database).every()
        for row in rows:
            click.echo(json.dumps(key_row_json(row)) if as_json else _line(row))
        if not rows and not as_json:
            click.echo("no keys; make one with `flask keys create NAME`", err=True)

    @group.command("revoke")
    @click.argument("id")
    @AS_JSON
    def revoke_command(id: str, as_json: bool) -> None:
        """End a key for good. Web processes stop to take it within seconds."""
        with told(), opened() as database:
            row = ApiKeys(database).revoke(id)
        click.echo(json.dumps(key_row_json(row)) if as_json else _line(row))

    return group


def _line(row: KeyRow) -> str:
    key = row.key
    words = [
        f"{key.id}  {key.name}: {', '.join(sorted(key.scopes))}",
        f"from {' or '.join(key.senders)}" if key.senders else "",
        f"{key.per_minute:,} messages a minute" if key.per_minute else "",
        f"made {timestamp_seconds(row.created_at)}",
        f"last used {timestamp_seconds(row.used_at)}" if row.used_at else "never used",
        f"revoked {timestamp_seconds(row.revoked_at)}" if row.revoked_at else "",
    ]
    return "; ".join(filter(None, words))
