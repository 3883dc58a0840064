"""The commands about addresses that get no mail: flask suppressions list, add, remove."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from mailroom.cli.context import CommandContext
from mailroom.cli.output import AS_JSON, AS_JSON_LINES, errors_in_a_line, parsed_address
from mailroom.model.times import timestamp_seconds
from mailroom.store.messages.suppressions import Reason, Suppression, Suppressions

PAGE_SIZE = 500


@click.group("suppressions")
def suppressions_group() -> None:
    """Addresses that get no mail: refused by their server, unsubscribed, complained, or added by hand."""


@suppressions_group.command("list")
@click.option(
    "--reason",
    type=click.Choice([reason.value for reason in Reason]),
    help="Only those with this reason.",
)
@AS_JSON_LINES
@click.pass_obj
def list_suppressions(context: CommandContext, reason: str | None, as_json: bool) -> None:
    """List all suppressed addresses, the newest first."""
    with errors_in_a_line(), context.open_database() as database:
        for suppression in every_suppression(Suppressions(database), reason or ""):
            click.echo(json.dumps(as_object(suppression)) if as_json else as_line(suppression))


@suppressions_group.command("add")
@click.argument("address")
@click.option("--detail", help="Why, in one line.")
@AS_JSON
@click.pass_obj
def add_suppression(
    context: CommandContext, address: str, detail: str | None, as_json: bool
) -> None:
    """Send no more mail to ADDRESS, not even mail that is already on its way."""
    address = parsed_address(address)
    with errors_in_a_line(), context.open_database() as database:
        is_new = Suppressions(database).add(address, Reason.MANUAL, detail)
        suppression = Suppressions(database).find(address)
    if suppression is None:
        return
    if as_json:
        click.echo(json.dumps(as_object(suppression)))
    else:
        click.echo(as_line(suppression) + ("" if is_new else "; was so before"))


@suppressions_group.command("remove")
@click.argument("address")
@AS_JSON
@click.pass_obj
def remove_suppression(context: CommandContext, address: str, as_json: bool) -> None:
    """Let ADDRESS get mail again; ends with 1 if it was not suppressed."""
    address = parsed_address(address)
    with errors_in_a_line(), context.open_database() as database:
        is_removed = Suppressions(database).remove(address)
    if as_json:
        click.echo(json.dumps({"address": address.lower(), "removed": is_removed}))
    elif is_removed:
        click.echo(f"{address.lower()}: gets mail again")
    else:
        click.echo(f"{address.lower()}: was not suppressed", err=True)
    sys.exit(0 if is_removed else 1)


def every_suppression(suppressions: Suppressions, reason: str) -> Iterator[Suppression]:
    """Yield all suppressions, read a page at a time; "" for any reason."""
    page = suppressions.page(limit=PAGE_SIZE, reason=reason)
    while page:
        yield from page
        last = page[-1]
        page = suppressions.page(
            limit=PAGE_SIZE, after=(last.created_at, last.address), reason=reason
        )


def as_object(suppression: Suppression) -> dict[str, Any]:
    return {
        "address": suppression.address,
        "reason": suppression.reason,
        "detail": suppression.detail,
        "message": suppression.message_id,
        "created_at": timestamp_seconds(suppression.created_at),
    }


def as_line(suppression: Suppression) -> str:
    line = f"{suppression.address}: {suppression.reason} since {timestamp_seconds(suppression.created_at)}"
    return f"{line}: {suppression.detail}" if suppression.detail else line
