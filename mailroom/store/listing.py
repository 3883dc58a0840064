"""Lists messages, newest first, a page at a time."""

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, literal, select, tuple_

from mailroom.store.database import Database
from mailroom.store.schema import contents, messages, recipients, tags


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to list. Moments are in milliseconds since 1970; "" and None: any."""

    status: str = ""
    to: str = ""  #: a recipient's address, as it is in the envelope
    tag: str = ""
    since: int | None = None
    until: int | None = None
    after: tuple[int, str] | None = None  #: created_at and id of the last one of the page before
    limit: int = 20


def listed(database: Database, search: Search) -> list[dict[str, Any]]:
    """The rows, each with its subject, its tags and its recipients."""
    return database.read(lambda connection: _listed(connection, search))


def _listed(connection: Connection, search: Search) -> list[dict[str, Any]]:
    found = select(messages, contents.c.content).join(contents, contents.c.id == messages.c.id, isouter=True)
    # The few ids that a recipient or a tag has are looked up first, and then sorted; a plan by age would look at every message.
    if search.to:
        found = found.where(messages.c.id.in_(select(recipients.c.id).where(recipients.c.address == search.to)))
    if search.tag:
        found = found.where(messages.c.id.in_(select(tags.c.id).where(tags.c.tag == search.tag)))
    if search.status:
        found = found.where(messages.c.state == search.status)
    if search.since is not None:
        found = found.where(messages.c.created_at >= search.since)
    if search.until is not None:
        found = found.where(messages.c.created_at < search.until)
    if search.after:
        found = found.where(tuple_(messages.c.created_at, messages.c.id) < tuple_(*map(literal, search.after)))
    rows = [dict(row) for row in connection.execute(
        found.order_by(messages.c.created_at.desc(), messages.c.id.desc()).limit(search.limit)).mappings()]
    people: dict[str, list[Any]] = defaultdict(list)
    for person in connection.execute(select(recipients).where(recipients.c.id.in_([row["id"] for row in rows]))
                                     .order_by(recipients.c.id, recipients.c.position)).mappings():
        people[person["id"]].append(dict(person))
    for row in rows:
        content = json.loads(row.pop("content") or "{}")
        row |= {"subject": content.get("subject", ""), "tags": content.get("tags", []), "recipients": people[row["id"]]}
    return rows
