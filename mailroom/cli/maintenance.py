"""The commands for whoever runs the service: flask db upgrade, db restored and purge."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict

import click

from mailroom.cli.context import CommandContext
from mailroom.cli.database import db_upgrade
from mailroom.cli.output import AS_JSON, errors_in_a_line
from mailroom.process.installation import PROGRAM
from mailroom.store.maintenance.restore import Restored, hold
from mailroom.store.maintenance.retention import Retention


@click.group("db")
def db_group() -> None:
    """Upgrade the database, or prepare it after a backup was restored."""


@db_group.command("upgrade")
@click.pass_obj
def upgrade_command(context: CommandContext) -> None:
    """Bring the database to the schema of this version. Stop the old version first."""
    with errors_in_a_line():
        click.echo(db_upgrade(context.settings))


@db_group.command("restored")
@AS_JSON
@click.pass_obj
def restored_command(context: CommandContext, as_json: bool) -> None:
    """Hold all mail that has not ended, as it may have been sent since the backup was made.

    Run this after a backup was restored or an asynchronous stand-by took over, before anything is started.
    """
    with errors_in_a_line(), context.open_pair_database() as database:
        restored = hold(database, lease_seconds=context.settings.LEASE_SECONDS)
    click.echo(json.dumps(asdict(restored)) if as_json else restored_text(restored))


def restored_text(restored: Restored) -> str:
    return (
        f"messages held: {restored.held}; each may have been sent since the backup was made\n"
        f"jobs ended as failed: {restored.jobs}, and messages that waited for their success: "
        f"{restored.failed}\n"
        f"outbox {restored.outbox_id}: nudges from before the restore are refused; the worker logs each\n"
        f"Next: start web and worker. `{PROGRAM} release ID` releases one message, "
        f"`{PROGRAM} release --all` all;\n"
        "POST /v1/jobs/<id>/retry runs a job again, with its mail."
    )


@click.command("purge")
@click.option(
    "--days",
    type=click.FloatRange(min=0),
    help="Keep what ended within this many days. Without this option: RETENTION_DAYS.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@AS_JSON
@click.pass_obj
def purge_command(context: CommandContext, days: float | None, yes: bool, as_json: bool) -> None:
    """Delete messages and jobs that ended long ago. Workers do this too, a little at a time."""
    if days is None:
        days = context.settings.RETENTION_DAYS
        if not days:
            raise click.UsageError("RETENTION_DAYS is 0, which keeps everything; say --days")
    with errors_in_a_line(), context.open_pair_database() as database:
        retention = Retention(database, days)
        expected = retention.old()
        if any(expected) and not yes:
            confirm(retention.days, *expected)
        messages, jobs = delete(retention.rounds(), expected=sum(expected))
    if as_json:
        click.echo(json.dumps({"days": retention.days, "messages": messages, "jobs": jobs}))
    else:
        click.echo(f"deleted {messages:,} messages and {jobs:,} jobs")


def confirm(days: float, messages: int, jobs: int) -> None:
    """Ask before anything is deleted; end the command unless the answer is yes."""
    click.confirm(
        f"Delete {messages + jobs:,} messages and jobs that ended more than {days:g} days ago, "
        f"{messages:,} and {jobs:,}?",
        abort=True,
        err=True,
    )


def delete(rounds: Iterable[tuple[int, int]], *, expected: int) -> tuple[int, int]:
    """Make all rounds, with a progress bar at a terminal; return how many messages and jobs were deleted."""
    deleted_messages = deleted_jobs = 0
    # Jobs that go with their message were not counted beforehand, so the bar follows only the counted rows.
    is_hidden = not sys.stderr.isatty()
    with click.progressbar(
        length=expected, label="purge", file=sys.stderr, hidden=is_hidden
    ) as bar:
        for messages, jobs in rounds:
            deleted_messages += messages
            deleted_jobs += jobs
            bar.update(messages + jobs)
    return deleted_messages, deleted_jobs
