"""The commands that show where mail is, and what happens to it: flask status and flask tail."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import click

from mailroom.api.answers import MessageJson
from mailroom.api.http.serialize import message_json, message_summary_json
from mailroom.api.services import Services
from mailroom.cli.context import CommandContext
from mailroom.cli.output import AS_JSON_LINES, errors_in_a_line, parsed_address
from mailroom.model.ids import is_id
from mailroom.model.message import FINAL, State
from mailroom.model.times import timestamp
from mailroom.store.db.database import Database
from mailroom.store.events.changes import Changes
from mailroom.store.messages.search import Search, listed, newest

#: Prints one step of a mail's timeline.
PrintStep = Callable[[Mapping[str, Any]], None]

POLL_SECONDS = 0.25
TAIL_LINES_MAX = 1000
#: A mail is committed at most this long after its `created_at`.
COMMIT_MAX_MS = 5_000
RECIPIENTS_IN_A_LINE = 3
#: A progress line is no wider than this.
PROGRESS_MAX_CHARACTERS = 100


@click.command("status")
@click.argument("id")
@click.option(
    "--watch",
    is_flag=True,
    help="Keep watching until the mail has ended; exits with 0 only if it was sent.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object; with --watch also one a line for each step before it.",
)
@click.pass_obj
def status_command(context: CommandContext, id: str, watch: bool, as_json: bool) -> None:
    """Show where a mail is, why, and what has happened to it."""
    with errors_in_a_line(), context.services() as services:
        if not watch:
            return print_message(read_message(services, id), as_json=as_json)
        message = wait_until_final(services, id, print_step=step_printer(id, as_json=as_json))
        click.echo(json.dumps(message) if as_json else f"{id}: {status_line(message)}")
    sys.exit(0 if message["status"] == State.SENT else 1)


@click.command("tail")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, TAIL_LINES_MAX),
    default=20,
    show_default=True,
    help="How many of the newest to list.",
)
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Then print new mail, and what happens to any mail, until Ctrl-C.",
)
@click.option(
    "--status",
    type=click.Choice([state.value for state in State]),
    help="Only mail that has this status now.",
)
@click.option("--to", metavar="ADDRESS", help="Only mail for this recipient.")
@AS_JSON_LINES
@click.pass_obj
def tail_command(
    context: CommandContext,
    lines: int,
    follow: bool,
    status: str | None,
    to: str | None,
    as_json: bool,
) -> None:
    """List the newest mail, one a line, the newest last."""
    search = Search(status=status or "", to=parsed_address(to) if to else "", limit=lines)
    with errors_in_a_line(), context.open_database() as database:
        for entry in tail(database, search, follows=follow):
            click.echo(json.dumps(entry) if as_json else tail_line(entry))


def read_message(services: Services, id: str) -> MessageJson:
    """Return the mail as the API shows it; end the command if there is none with this id."""
    details = services.outbox.details(id) if is_id(id) else None
    if details is None:
        raise click.ClickException(
            f"there is no message with this id in {services.outbox.database}"
        )
    return message_json(details)


def step_printer(id: str, *, as_json: bool) -> PrintStep:
    def print_step(step: Mapping[str, Any]) -> None:
        click.echo(json.dumps({"id": id, **step}) if as_json else step_line(step))

    return print_step


def wait_until_final(
    services: Services,
    id: str,
    *,
    print_step: PrintStep | None = None,
    seconds: float | None = None,
) -> MessageJson:
    """Read the mail until it has ended, or for `seconds`; return it as it is then.

    `print_step` gets each step of the timeline once. A person at a terminal sees a line of progress as well.
    """
    started_at, seen = time.monotonic(), set[tuple[Any, ...]]()
    while True:
        message = read_message(services, id)
        new_steps = [step for step in message["timeline"] if tuple(step.items()) not in seen]
        seen |= {tuple(step.items()) for step in new_steps}
        if new_steps and print_step:
            print_progress("")
            for step in new_steps:
                print_step(step)
        waited_seconds = time.monotonic() - started_at
        if message["status"] in FINAL or (seconds is not None and waited_seconds >= seconds):
            print_progress("")
            return message
        print_progress(f"{waited_seconds:4.0f} s  {status_line(message)}")
        time.sleep(POLL_SECONDS)


def status_line(message: MessageJson) -> str:
    """Return the status and the reason, which in some states begins with the status itself."""
    status, why = message["status"], message["why"]
    return why if why.startswith(status) else f"{status}; {why}"


def print_progress(line: str) -> None:
    """Write over the last line of a terminal; do nothing if standard error is none."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{line[:PROGRESS_MAX_CHARACTERS]}", nl=False, err=True)


def tail(database: Database, search: Search, *, follows: bool) -> Iterator[Mapping[str, Any]]:
    """Yield the newest mails; if it follows, then new ones and the steps of all, without end."""
    changes = Changes(database, status=search.status, to=search.to)
    changes.start()
    latest = newest(database, Search(limit=1))
    since: int = latest[0]["created_at"] if latest else 0
    seen: dict[str, int] = {}  #: id -> created_at
    if follows:
        seen = {row["id"]: row["created_at"] for row in created_since(database, Search(), since)}
    for row in reversed(newest(database, search) if search.limit else []):
        seen[row["id"]] = row["created_at"]
        yield message_summary_json(row)
    while follows:
        new_rows = [row for row in created_since(database, search, since) if row["id"] not in seen]
        for row in new_rows:
            seen[row["id"]] = row["created_at"]
            yield message_summary_json(row)
        for change in changes.look():
            yield change_json(change)
        since = max([since, *seen.values()])
        seen = {
            id: created_at for id, created_at in seen.items() if created_at >= since - COMMIT_MAX_MS
        }
        time.sleep(POLL_SECONDS)


def created_since(database: Database, search: Search, since: int) -> list[dict[str, Any]]:
    """List the mails created since then, the oldest first, and those that were committed late."""
    search = replace(search, since=since - COMMIT_MAX_MS, limit=TAIL_LINES_MAX)
    page = listed(database, search)
    rows = page.rows
    while page.next:
        page = listed(database, replace(search, after=page.next))
        rows += page.rows
    return rows[::-1]


def change_json(change: Mapping[str, Any]) -> dict[str, Any]:
    step = {"id": change["id"], "at": timestamp(change["at"]), "event": change["event"]}
    details = {name: change[name] for name in ("attempt", "detail") if change[name]}
    return step | details | {"status": change["state"]}


def tail_line(entry: Mapping[str, Any]) -> str:
    """Return a line for a mail, or for a step of one."""
    if "event" in entry:
        return f"{entry['id']}  {step_line(entry)}"
    addresses = [recipient["email"] for recipient in entry["recipients"]]
    to = ", ".join(addresses[:RECIPIENTS_IN_A_LINE])
    if len(addresses) > RECIPIENTS_IN_A_LINE:
        to += " …"
    return f"{entry['id']}  {entry['created_at']}  {entry['status']}  {to}  {entry['subject']}".rstrip()


def step_line(step: Mapping[str, Any]) -> str:
    line = f"{step['at']}  {step['event']}"
    if step.get("attempt"):
        line += f", attempt {step['attempt']}"
    if step.get("detail"):
        line += f": {step['detail']}"
    return line


def print_message(message: MessageJson, *, as_json: bool) -> None:
    """Print the whole mail: its status, each recipient and each step."""
    if as_json:
        return click.echo(json.dumps(message))
    click.echo(f"{message['id']}: {status_line(message)}")
    for recipient in message["recipients"]:
        line = f"  {recipient['kind']} {recipient['email']}: {recipient['status']}"
        click.echo(f"{line}, {recipient['reply']}" if recipient["reply"] else line)
    for step in message["timeline"]:
        click.echo(step_line(step))
