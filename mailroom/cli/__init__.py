"""The commands: flask up, inbox, doctor, purge, db upgrade, db restored, and what a person does with one message."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from mailroom.cli.config import config_command
from mailroom.cli.context import examine, working
from mailroom.cli.database import db_upgrade, pair
from mailroom.cli.database import opened as opened_by
from mailroom.cli.keys import keys_group
from mailroom.cli.output import AS_JSON, Opened, told
from mailroom.cli.send import send_command
from mailroom.cli.suppressions import suppression_commands
from mailroom.cli.templates import template_commands
from mailroom.cli.watch import watch_commands
from mailroom.config.environment import origins
from mailroom.config.settings import Settings
from mailroom.model.errors import InvalidMessage
from mailroom.model.ids import is_id, new_id
from mailroom.model.times import timestamp_seconds
from mailroom.store.maintenance.restore import hold
from mailroom.store.maintenance.retention import Retention
from mailroom.store.messages.actions import Actions, UnknownMessage, WrongState
from mailroom.store.messages.outbox import Outbox
from mailroom.submission.fields import read_fields
from mailroom.submission.times import RescheduleRequest


def commands(
    settings: Settings,
    *,
    up: Callable[[bool], None],
    inbox: Callable[[], None],
    message_id: Callable[[str], str],
) -> list[click.Command]:
    """Return the commands; `up` and `inbox` serve, which is the server's matter."""
    # The database of whichever service runs here; and that of app.py and its workers, for what runs without them.
    opened, opened_pair = partial(opened_by, settings), partial(opened_by, settings, pair(settings))

    @click.command("up")
    @click.option(
        "--deliver", is_flag=True, help="Hand mails to the configured account or SMTP host, not to the inbox."
    )
    def up_command(deliver: bool) -> None:
        """Run everything in one process: web, worker, database, inbox. No account, no root, no other server."""
        up(deliver)

    @click.command("inbox")
    def inbox_command() -> None:
        """Run the disposable inbox alone, as the next hop of `python3 app.py` and its worker."""
        inbox()

    @click.group("db")
    def db_group() -> None:
        """The database."""

    @db_group.command("upgrade")
    def upgrade_command() -> None:
        """Bring the database to the schema of this version. Stop the old version first."""
        with told():
            click.echo(db_upgrade(settings))

    @db_group.command("restored")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object.")
    def restored_command(as_json: bool) -> None:
        """Hold what was on its way, after a backup was restored or an asynchronous stand-by took over, and before
        anything starts on it: it may have been sent since."""
        with told(), opened_pair() as database:
            done = hold(database, lease_seconds=settings.LEASE_SECONDS)
        if as_json:
            click.echo(json.dumps(asdict(done)))
            return
        click.echo(f"messages held: {done.held}; each may have been sent since this state of the database")
        click.echo(
            f"jobs ended as failed: {done.jobs}, and messages that waited to tell of their success: {done.failed}"
        )
        click.echo(
            f"outbox {done.outbox_id}: nudges from before the restore are refused, with a line in the worker's log for each"
        )
        click.echo(
            "Next: start web and worker. `flask release ID` lets one message go, `flask release --all` all of them;\n"
            "POST /v1/jobs/<id>/retry runs a job once more, with its mail."
        )

    @click.command("purge")
    @click.option(
        "--days",
        type=click.FloatRange(min=0),
        help="Keep what ended in the last so many days. Without it: RETENTION_DAYS.",
    )
    @click.option("--yes", is_flag=True, help="Do not ask.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object.")
    def purge_command(days: float | None, yes: bool, as_json: bool) -> None:
        """Delete messages and jobs that ended long ago, with all that belongs to them. Workers do so by themselves, little by little."""
        if days is None and not settings.RETENTION_DAYS:
            raise click.UsageError("RETENTION_DAYS is 0, which keeps everything; say --days")
        with told(), opened_pair() as database:
            purge(
                Retention(database, settings.RETENTION_DAYS if days is None else days),
                ask=not yes,
                as_json=as_json,
            )

    @click.command("doctor")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
    def doctor_command(as_json: bool) -> None:
        """Look at broker, database, worker and logins: each line is ok, or says what to do. Sends nothing."""
        well = True
        for finding in examine(settings):
            click.echo(json.dumps(finding.as_json()) if as_json else str(finding))
            well = well and finding.ok
        sys.exit(0 if well else 1)

    return [
        doctor_command,
        up_command,
        inbox_command,
        db_group,
        keys_group(opened),
        purge_command,
        *message_commands(opened, message_id),
        suppression_commands(opened),
        template_commands(opened),
        send_command(partial(working, settings)),
        *watch_commands(opened, partial(working, settings)),
        config_command(settings, origins),
    ]


def message_commands(opened: Opened, message_id: Callable[[str], str]) -> list[click.Command]:
    """Make the commands by which a person acts on a message, directly in the database.

    No web process is needed, and a worker's sweeper sees it in a second.
    """

    @click.command("release")
    @click.argument("id", required=False, default="")
    @click.option("--all", "every", is_flag=True, help="All that are held, as after `flask db restored`.")
    @AS_JSON
    def release_command(id: str, every: bool, as_json: bool) -> None:
        """Let go a message that is held, or send one that is uncertain once more, with the same Message-ID."""
        if bool(id) == every:
            raise click.UsageError("expected either an ID or --all")
        if not every:
            return act(opened, id, lambda actions: actions.release(id), as_json=as_json)
        with told(), opened() as database:
            count = Actions(database).release_all()
        click.echo(json.dumps({"released": count}) if as_json else f"released {count:,} messages")

    @click.command("reschedule")
    @click.argument("id")
    @click.option("--at", help="A time with its offset, like 2026-01-31T12:00:00Z.")
    @click.option("--delay", type=float, help="Seconds from now.")
    @AS_JSON
    def reschedule_command(id: str, at: str | None, delay: float | None, as_json: bool) -> None:
        """Send a message that is on its way at another time."""
        try:
            when = read_fields(
                RescheduleRequest,
                {name: value for name, value in (("at", at), ("delay", delay)) if value is not None},
            )
        except InvalidMessage as e:
            raise click.UsageError("; ".join(error.detail for error in e.errors)) from None
        act(
            opened,
            id,
            lambda actions: actions.reschedule(id, at=when.at, delay_seconds=when.delay or 0),
            as_json=as_json,
        )

    @click.command("resend")
    @click.argument("id")
    @AS_JSON
    def resend_command(id: str, as_json: bool) -> None:
        """Send a message that has ended once more to all its recipients, as a new one."""
        new = new_id()
        act(
            opened,
            id,
            lambda actions: actions.resend(id, new, message_id=message_id(new)),
            as_json=as_json,
            then=new,
        )

    return [
        plain(
            opened,
            "cancel",
            "Take a message back before it is sent; a job that it waits for goes on.",
            Actions.cancel,
        ),
        plain(opened, "hold", "Stop a message until somebody releases it.", Actions.hold),
        plain(
            opened,
            "retry",
            "Try a message now; one that failed or expired once more, for those who do not have it.",
            Actions.retry,
        ),
        release_command,
        reschedule_command,
        resend_command,
    ]


def plain(opened: Opened, name: str, help: str, action: Callable[[Actions, str], None]) -> click.Command:
    """A command that needs nothing but the id."""

    @click.command(name, help=help)
    @click.argument("id")
    @AS_JSON
    def command(id: str, as_json: bool) -> None:
        act(opened, id, lambda actions: action(actions, id), as_json=as_json)

    return command


def act(opened: Opened, id: str, action: Callable[[Actions], None], *, as_json: bool, then: str = "") -> None:
    """Do it and say in a line how the message is now, or the new one `then`; end with 1 and its state where it cannot be done."""
    error = ""
    with told(), opened() as database:
        try:
            if not is_id(id):
                raise UnknownMessage
            action(Actions(database))
        except UnknownMessage:
            error = f"there is no message with this id in {database}"
        except WrongState as e:
            error = str(e)
        standing = Outbox(database).details(id if error or not then else then) if is_id(id) else None
    row = standing.row if standing else {"id": id, "state": None, "resent_of": None, "next_attempt_at": None}
    click.echo(
        json.dumps(as_object(row, error)) if as_json else as_line(row, error, once_more=bool(then)),
        err=bool(error) and not as_json,
    )
    sys.exit(1 if error else 0)


def as_object(row: Mapping[str, Any], error: str) -> dict[str, Any]:
    told = {
        "id": row["id"],
        "status": row["state"],
        "next_attempt_at": timestamp_seconds(row["next_attempt_at"]),
        "resent_of": row["resent_of"],
    }
    return told | ({"error": error} if error else {})


def as_line(row: Mapping[str, Any], error: str, *, once_more: bool) -> str:
    words = [row["state"] or ""]
    if row["next_attempt_at"]:
        words[0] += f" for {timestamp_seconds(row['next_attempt_at'])}"
    if once_more and not error:
        words.append(f"resent of {row['resent_of']}")
    return f"{row['id']}: {'; '.join(filter(None, [*words, error]))}"


def purge(retention: Retention, *, ask: bool, as_json: bool) -> None:
    """Count, ask, delete, tell."""
    old = retention.old()
    what = f"messages and jobs that ended more than {retention.days:g} days ago"
    if ask and any(old):
        click.confirm(f"Delete {sum(old):,} {what}, {old[0]:,} and {old[1]:,}?", abort=True, err=True)
    gone = [0, 0]
    # Jobs go with their messages and are in no count before, so the bar is about rows that were looked for.
    with click.progressbar(
        length=sum(old), label="purge", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        for messages, jobs in retention.rounds():
            gone[0] += messages
            gone[1] += jobs
            bar.update(messages + jobs)
    click.echo(
        json.dumps({"days": retention.days, "messages": gone[0], "jobs": gone[1]})
        if as_json
        else f"deleted {gone[0]:,} messages and {gone[1]:,} jobs"
    )
