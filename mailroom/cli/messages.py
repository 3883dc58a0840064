"""The commands by which a person acts on a mail: flask cancel, hold, retry, release, reschedule, resend.

They work directly in the database, so no web process is needed; a worker's sweeper notices within a second.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click

from mailroom.cli.context import CommandContext
from mailroom.cli.output import AS_JSON, errors_in_a_line, refuse_options
from mailroom.model.errors import InvalidMessage
from mailroom.model.ids import is_id, new_id
from mailroom.model.times import timestamp_seconds
from mailroom.process.installation import PROGRAM
from mailroom.store.messages.actions import Actions, UnknownMessage, WrongState
from mailroom.store.messages.outbox import Outbox
from mailroom.submission.fields import read_fields
from mailroom.submission.times import RescheduleRequest


@click.command("cancel")
@click.argument("id")
@AS_JSON
@click.pass_obj
def cancel_command(context: CommandContext, id: str, as_json: bool) -> None:
    """Cancel a mail before it is sent; a job that it waits for still runs."""
    act(context, id, lambda actions: actions.cancel(id), as_json=as_json)


@click.command("hold")
@click.argument("id")
@AS_JSON
@click.pass_obj
def hold_command(context: CommandContext, id: str, as_json: bool) -> None:
    """Hold a mail until somebody releases it."""
    act(context, id, lambda actions: actions.hold(id), as_json=as_json)


@click.command("retry")
@click.argument("id")
@AS_JSON
@click.pass_obj
def retry_command(context: CommandContext, id: str, as_json: bool) -> None:
    """Try a mail now; one that has ended goes again to the recipients who do not have it."""
    act(context, id, lambda actions: actions.retry(id), as_json=as_json)


@click.command("release")
@click.argument("id", required=False, default="")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help=f"All mail that is held, as after `{PROGRAM} db restored`.",
)
@AS_JSON
@click.pass_obj
def release_command(context: CommandContext, id: str, every: bool, as_json: bool) -> None:
    """Release a mail that is held; or send an uncertain one again, with the same Message-ID."""
    if bool(id) == every:
        raise click.UsageError("expected either an ID or --all")
    if not every:
        return act(context, id, lambda actions: actions.release(id), as_json=as_json)
    with errors_in_a_line(), context.open_database() as database:
        count = Actions(database).release_all()
    click.echo(json.dumps({"released": count}) if as_json else f"released {count:,} messages")


@click.command("reschedule")
@click.argument("id")
@click.option("--at", help="A time with its offset, like 2026-01-31T12:00:00Z.")
@click.option("--delay", type=float, help="Seconds from now.")
@AS_JSON
@click.pass_obj
def reschedule_command(
    context: CommandContext, id: str, at: str | None, delay: float | None, as_json: bool
) -> None:
    """Send a mail that has not gone out yet at another time."""
    options = {"at": at, "delay": delay}
    try:
        request = read_fields(
            RescheduleRequest, {name: value for name, value in options.items() if value is not None}
        )
    except InvalidMessage as e:
        refuse_options(e)
    act(
        context,
        id,
        lambda actions: actions.reschedule(id, at=request.at, delay_seconds=request.delay or 0),
        as_json=as_json,
    )


@click.command("resend")
@click.argument("id")
@AS_JSON
@click.pass_obj
def resend_command(context: CommandContext, id: str, as_json: bool) -> None:
    """Send a mail that has ended to all its recipients once more, as a new mail."""
    copy_id = new_id()
    act(
        context,
        id,
        lambda actions: actions.resend(id, copy_id, message_id=context.message_id(copy_id)),
        as_json=as_json,
        copy_id=copy_id,
    )


def act(
    context: CommandContext,
    id: str,
    action: Callable[[Actions], None],
    *,
    as_json: bool,
    copy_id: str = "",
) -> None:
    """Run the action, print the state of the mail after it, and end the process.

    Where a mail was resent, the state is that of the new one, `copy_id`. Exits with 1 if the action was
    refused.
    """
    error, row = "", None
    with errors_in_a_line(), context.open_database() as database:
        try:
            if not is_id(id):
                raise UnknownMessage
            action(Actions(database))
        except UnknownMessage:
            error = f"there is no message with this id in {database}"
        except WrongState as e:
            error = str(e)
        row = find_row(Outbox(database), id if error or not copy_id else copy_id)
    if as_json:
        click.echo(json.dumps(as_object(row, error)))
    else:
        click.echo(as_line(row, error, is_copy=bool(copy_id)), err=bool(error))
    sys.exit(1 if error else 0)


def find_row(outbox: Outbox, id: str) -> Mapping[str, Any]:
    """Return the row of a mail, or one without a state if there is no such mail."""
    details = outbox.details(id) if is_id(id) else None
    return (
        details.row
        if details
        else {"id": id, "state": None, "resent_of": None, "next_attempt_at": None}
    )


def as_object(row: Mapping[str, Any], error: str) -> dict[str, Any]:
    state = {
        "id": row["id"],
        "status": row["state"],
        "next_attempt_at": timestamp_seconds(row["next_attempt_at"]),
        "resent_of": row["resent_of"],
    }
    return state | {"error": error} if error else state


def as_line(row: Mapping[str, Any], error: str, *, is_copy: bool) -> str:
    state = row["state"] or ""
    if row["next_attempt_at"]:
        state += f" for {timestamp_seconds(row['next_attempt_at'])}"
    parts = [state, error]
    if is_copy and not error:
        parts.append(f"resent of {row['resent_of']}")
    return f"{row['id']}: {'; '.join(filter(None, parts))}"
