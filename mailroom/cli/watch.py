"""flask status and flask tail: where messages are, and what happens to them."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import click

from mailroom.api.answers import MessageJson
from mailroom.api.http.serialize import message_json, message_summary_json
from mailroom.api.services import Services
from mailroom.cli.output import Opened, told
from mailroom.cli.suppressions import parsed
from mailroom.model.ids import is_id
from mailroom.model.message import FINAL, State
from mailroom.model.times import timestamp
from mailroom.store.db.database import Database
from mailroom.store.events.changes import Changes
from mailroom.store.messages.search import Search, listed, newest

#: What the API works with, on the database that a command is about.
Working = Callable[[], AbstractContextManager[Services]]
Tell = Callable[[Mapping[str, Any]], None]

LOOK_SECONDS = 0.25
TAIL_MAX = 1000
#: A message is committed at most so long after the moment that it bears.
COMMIT_MAX_MS = 5_000


def watch_commands(opened: Opened, working: Working) -> list[click.Command]:
    @click.command("status")
    @click.argument("id")
    @click.option("--watch", is_flag=True, help="Go on until it has ended; ends with 0 only if it was sent.")
    @click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="One JSON object; with --watch before it one a line for each step.",
    )
    def status_command(id: str, watch: bool, as_json: bool) -> None:
        """Show where a message is, why, and what happened to it."""
        with told(), working() as services:
            if not watch:
                return say(look(services, id), as_json=as_json)
            now = follow(
                services,
                id,
                tell=lambda step: click.echo(json.dumps({"id": id, **step}) if as_json else as_step(step)),
            )
            if as_json:
                click.echo(json.dumps(now))
            else:
                click.echo(f"{id}: {standing(now)}")
        sys.exit(0 if now["status"] == State.SENT else 1)

    @click.command("tail")
    @click.option(
        "-n",
        "--lines",
        type=click.IntRange(0, TAIL_MAX),
        default=20,
        show_default=True,
        help="So many of the newest.",
    )
    @click.option(
        "-f", "--follow", is_flag=True, help="Then new ones, and what happens to any, until Ctrl-C."
    )
    @click.option(
        "--status", type=click.Choice([state.value for state in State]), help="Only those that are so now."
    )
    @click.option("--to", metavar="ADDRESS", help="Only those for this recipient.")
    @click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
    def tail_command(lines: int, follow: bool, status: str | None, to: str | None, as_json: bool) -> None:
        """The newest messages, one a line, the newest last."""
        search = Search(status=status or "", to=parsed(to) if to else "", limit=lines)
        with told(), opened() as database:
            for line in tail(database, search, follows=follow):
                click.echo(json.dumps(line) if as_json else as_line(line))

    return [status_command, tail_command]


def look(services: Services, id: str) -> MessageJson:
    """Return the message as the API answers it; ends the command where there is none."""
    details = services.outbox.details(id) if is_id(id) else None
    if details is None:
        raise click.ClickException(f"there is no message with this id in {services.outbox.database}")
    return message_json(details)


def follow(
    services: Services, id: str, *, tell: Tell | None = None, seconds: float | None = None
) -> MessageJson:
    """Look until it has ended, for so long at most; `tell` gets each new step, a person at a terminal sees what it waits for."""
    started, seen = time.monotonic(), set[tuple[Any, ...]]()
    while True:
        now = look(services, id)
        new = [step for step in now["timeline"] if tuple(step.items()) not in seen]
        seen |= {tuple(step.items()) for step in new}
        if new and tell:
            progress("")
            for step in new:
                tell(step)
        if now["status"] in FINAL or (seconds is not None and time.monotonic() - started >= seconds):
            progress("")
            return now
        progress(f"{time.monotonic() - started:4.0f} s  {standing(now)}")
        time.sleep(LOOK_SECONDS)


def standing(now: MessageJson) -> str:
    """State and reason; in some states the reason begins with the state."""
    status, why = now["status"], now["why"]
    return why if why.startswith(status) else f"{status}; {why}"


def progress(words: str) -> None:
    """Write over one line of a terminal; do nothing where nobody looks."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{words[:100]}", nl=False, err=True)


def tail(database: Database, search: Search, *, follows: bool) -> Iterator[Mapping[str, Any]]:
    """The newest, then new ones and what happens to any."""
    changes = Changes(database, status=search.status, to=search.to)
    changes.start()
    latest = newest(database, Search(limit=1))
    since: int = latest[0]["created_at"] if latest else 0
    seen = {row["id"]: row["created_at"] for row in arrivals(database, Search(), since)} if follows else {}
    for row in reversed(newest(database, search) if search.limit else []):
        seen[row["id"]] = row["created_at"]
        yield message_summary_json(row)
    while follows:
        for row in [row for row in arrivals(database, search, since) if row["id"] not in seen]:
            seen[row["id"]] = row["created_at"]
            yield message_summary_json(row)
        for line in changes.look():
            yield change(line)
        since = max([since, *seen.values()])
        seen = {id: at for id, at in seen.items() if at >= since - COMMIT_MAX_MS}
        time.sleep(LOOK_SECONDS)


def arrivals(database: Database, search: Search, since: int) -> list[dict[str, Any]]:
    """List the messages since then, the oldest first, with all that may have been committed late."""
    page = listed(database, replace(search, since=since - COMMIT_MAX_MS, limit=TAIL_MAX))
    found = page.rows
    while page.next:
        page = listed(database, replace(search, since=since - COMMIT_MAX_MS, limit=TAIL_MAX, after=page.next))
        found += page.rows
    return found[::-1]


def change(line: dict[str, Any]) -> dict[str, Any]:
    return (
        {"id": line["id"], "at": timestamp(line["at"]), "event": line["event"]}
        | {name: line[name] for name in ("attempt", "detail") if line[name]}
        | {"status": line["state"]}
    )


def as_line(line: Mapping[str, Any]) -> str:
    """A message, or what happened to one."""
    if "event" in line:
        return f"{line['id']}  {as_step(line)}"
    whom = ", ".join(person["email"] for person in line["recipients"][:3]) + (
        " …" if len(line["recipients"]) > 3 else ""
    )
    return f"{line['id']}  {line['created_at']}  {line['status']}  {whom}  {line['subject']}".rstrip()


def as_step(step: Mapping[str, Any]) -> str:
    return (
        f"{step['at']}  {step['event']}"
        + (f", attempt {step['attempt']}" if step.get("attempt") else "")
        + (f": {step['detail']}" if step.get("detail") else "")
    )


def say(now: MessageJson, *, as_json: bool) -> None:
    """The whole message."""
    if as_json:
        return click.echo(json.dumps(now))
    click.echo(f"{now['id']}: {standing(now)}")
    for person in now["recipients"]:
        click.echo(
            f"  {person['kind']} {person['email']}: {person['status']}"
            + (f", {person['reply']}" if person["reply"] else "")
        )
    for step in now["timeline"]:
        click.echo(as_step(step))
