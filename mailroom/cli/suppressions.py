"""The commands about who gets no mail: flask suppressions list, add, remove."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import click
from pydantic_core import PydanticCustomError

from mailroom.cli.output import AS_JSON, Opened, told
from mailroom.model.addresses import parse_address
from mailroom.model.times import timestamp_seconds
from mailroom.store.messages.suppressions import Reason, Suppression, Suppressions

PAGE = 500


def suppression_commands(opened: Opened) -> click.Group:
    """Return the group; each command works directly in the database."""

    @click.group("suppressions")
    def group() -> None:
        """Addresses that get no mail: refused by their server, unsubscribed, or added by hand."""

    @group.command("list")
    @click.option("--reason", type=click.Choice([reason.value for reason in Reason]), help="Only these.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
    def list_command(reason: str | None, as_json: bool) -> None:
        """All of them, the newest first."""
        with told(), opened() as database:
            for one in every(Suppressions(database), reason or ""):
                click.echo(json.dumps(as_object(one)) if as_json else as_line(one))

    @group.command("add")
    @click.argument("address")
    @click.option("--detail", help="Why, in a line.")
    @AS_JSON
    def add_command(address: str, detail: str | None, as_json: bool) -> None:
        """Send ADDRESS no mail any more, what is on its way to it included."""
        whom = parsed(address)
        with told(), opened() as database:
            is_new = Suppressions(database).add(whom, Reason.MANUAL, detail)
            one = Suppressions(database).find(whom)
        if one:
            click.echo(
                json.dumps(as_object(one))
                if as_json
                else as_line(one) + ("" if is_new else "; was so before")
            )

    @group.command("remove")
    @click.argument("address")
    @AS_JSON
    def remove_command(address: str, as_json: bool) -> None:
        """Let ADDRESS get mail again; ends with 1 if it does already."""
        whom = parsed(address)
        with told(), opened() as database:
            is_gone = Suppressions(database).remove(whom)
        click.echo(
            json.dumps({"address": whom.lower(), "removed": is_gone})
            if as_json
            else f"{whom.lower()}: {'gets mail again' if is_gone else 'was not suppressed'}",
            err=not is_gone and not as_json,
        )
        sys.exit(0 if is_gone else 1)

    return group


def every(suppressions: Suppressions, reason: str) -> Iterator[Suppression]:
    """All, a page at a time."""
    found = suppressions.page(limit=PAGE, reason=reason)
    while found:
        yield from found
        found = suppressions.page(limit=PAGE, after=(found[-1].created_at, found[-1].address), reason=reason)


def parsed(address: str) -> str:
    try:
        return parse_address(address).address
    except PydanticCustomError as e:
        raise click.UsageError(e.message()) from None


def as_object(one: Suppression) -> dict[str, Any]:
    return {
        "address": one.address,
        "reason": one.reason,
        "detail": one.detail,
        "message": one.message_id,
        "created_at": timestamp_seconds(one.created_at),
    }


def as_line(one: Suppression) -> str:
    return f"{one.address}: {one.reason} since {timestamp_seconds(one.created_at)}" + (
        f": {one.detail}" if one.detail else ""
    )
