"""Lists messages, newest first, a page at a time, in a time that does not grow with what is stored.

What few messages have is found by an index and sorted. What many have is found by going through the messages by age, as it comes soon;
where it does not, a page ends after LOOKED_MAX of them, and the next one goes on from there.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
)

from mailroom.model.message import State
from mailroom.store.db.database import Database
from mailroom.store.db.schema import PASSING, contents, messages, recipients, tags

#: Messages that one page goes through at most.
LOOKED_MAX = 20_000
#: What no more messages have than this is sorted.
FEW = 2_000

#: A place in the list: when the message was made, in milliseconds since 1970, and its id.
Place = tuple[int, str]
_place = tuple_(messages.c.created_at, messages.c.id)


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for messages to list. Moments are in milliseconds since 1970; "" and None: any."""

    status: str = ""
    to: str = ""  #: a recipient's address, as it is in the envelope
    tag: str = ""
    words: str = ""  #: what the subject has, or the address of a recipient; case does not matter
    since: int | None = None
    until: int | None = None
    after: Place | None = None  #: the last one of the page before
    limit: int = 20


@dataclass(frozen=True)
class Page:
    """The rows, each with its subject, its tags and its recipients; `next` is where to go on, None at the end."""

    rows: list[dict[str, Any]]
    next: Place | None


def listed(database: Database, search: Search) -> Page:
    """Return a page; it may have fewer rows than `limit`, and even none, though others come after it."""
    return database.read(lambda connection: _listed(connection, search))


def newest(database: Database, search: Search) -> list[dict[str, Any]]:
    """Return as many rows as `limit` says, however long that takes."""
    page = listed(database, search)
    rows = page.rows
    while page.next and len(rows) < search.limit:
        page = listed(database, replace(search, after=page.next, limit=search.limit - len(rows)))
        rows += page.rows
    return rows


def number(database: Database, status: State, most: int) -> int:
    """Count the messages in a state that not every one passes through, `most` at most."""
    found = select(messages.c.id).where(*_in_order(Search(status=status))).limit(most).subquery()
    return database.read(lambda connection: connection.scalar(select(func.count()).select_from(found))) or 0


def _listed(connection: Connection, search: Search) -> Page:
    few = _few(connection, search)
    found, next = _by_age(connection, search) if few is None else _sorted(connection, search, few)
    return Page(_rows(connection, [id for _, id in found]), next)


def _few(connection: Connection, search: Search) -> Sequence[str] | None:
    """The ids of which the list is a part, where an index tells that these are few."""
    indexed: list[Select[Any]] = []
    if search.to:
        indexed.append(select(recipients.c.id).where(recipients.c.address == search.to).distinct())
    if search.tag:
        indexed.append(select(tags.c.id).where(tags.c.tag == search.tag))
    if search.status == State.QUEUED:
        indexed.append(select(messages.c.id).where(messages.c.state == literal_column("'queued'")))
    if search.status in (State.SENDING, State.IN_DATA):
        indexed.append(select(messages.c.id).where(messages.c.owner.is_not(None)))
    for ids in indexed:
        if len(found := connection.scalars(ids.limit(FEW + 1)).all()) <= FEW:
            return found
    return None


def _sorted(connection: Connection, search: Search, ids: Sequence[str]) -> tuple[list[Place], Place | None]:
    """Sort the places; what comes after a place is told here too.

    A database may order ids by the rules of a language.
    """
    rows = connection.execute(
        select(messages.c.created_at, messages.c.id).where(
            messages.c.id.in_(ids), *_in_order(replace(search, after=None)), *_on_sight(search)
        )
    ).all()
    places = [(row.created_at, row.id) for row in rows]
    found = sorted((place for place in places if search.after is None or place < search.after), reverse=True)
    return found[: search.limit], found[search.limit - 1] if len(found) > search.limit else None


def _by_age(connection: Connection, search: Search) -> tuple[list[Place], Place | None]:
    looked = (
        select(messages.c.created_at, messages.c.id)
        .where(*_in_order(search))
        .order_by(messages.c.created_at.desc(), messages.c.id.desc())
    )
    end: Place | None = None
    if conditions := _on_sight(search):
        last = connection.execute(looked.offset(LOOKED_MAX - 1).limit(2)).all()
        end = (last[0].created_at, last[0].id) if len(last) == 2 else None
        looked = looked.where(*conditions, *([_place >= tuple_(*map(literal, end))] if end else []))
    found = [(row.created_at, row.id) for row in connection.execute(looked.limit(search.limit + 1))]
    return found[: search.limit], found[search.limit - 1] if len(found) > search.limit else end


def _in_order(search: Search) -> list[ColumnElement[bool]]:
    """Return the conditions that an index has in the order of the list."""
    wanted: list[ColumnElement[bool]] = []
    if (
        search.status and search.status not in PASSING
    ):  # With the index's own condition, or SQLite would not see that it may use it.
        wanted += [
            messages.c.state == search.status,
            messages.c.state.not_in([literal_column(f"'{state}'") for state in PASSING]),
        ]
    if search.since is not None:
        wanted.append(messages.c.created_at >= search.since)
    if search.until is not None:
        wanted.append(messages.c.created_at < search.until)
    if search.after:
        wanted.append(_place < tuple_(*map(literal, search.after)))
    return wanted


def _on_sight(search: Search) -> list[ColumnElement[bool]]:
    """Return the conditions that each message is looked at for."""
    wanted: list[ColumnElement[bool]] = []
    if search.status in PASSING:
        wanted.append(messages.c.state == search.status)
    if search.to:
        wanted.append(exists().where(recipients.c.id == messages.c.id, recipients.c.address == search.to))
    if search.tag:
        wanted.append(exists().where(tags.c.id == messages.c.id, tags.c.tag == search.tag))
    if search.words:
        sought = search.words.casefold()
        theirs = [
            func.lower(recipients.c.address).contains(one, autoescape=True)
            for one in _in_addresses(search.words)
        ]
        wanted.append(
            or_(
                messages.c.subject_key.contains(sought, autoescape=True),
                exists().where(recipients.c.id == messages.c.id, or_(*theirs)),
            )
        )
    return wanted


def _in_addresses(words: str) -> list[str]:
    """Return how these words may stand in an address.

    SQLite makes only ASCII lower there, and a domain is in ASCII.
    Quotes are where the address needs them, and not where somebody has typed them.
    """
    if words.isascii():
        small = words.lower()
        return list(dict.fromkeys([small, small.replace("@", '"@'), small.replace('"', "")]))
    typed = "".join(letter.lower() if letter.isascii() else letter for letter in words)
    found = [
        words.casefold(),
        typed,
        "".join(letter if letter.isascii() else letter.upper() for letter in typed),
    ]
    for one in [*found]:
        local, at, domain = one.rpartition("@")
        with suppress(UnicodeError):  # A part of a domain's name need not be one.
            found.append(f"{local}{at}{domain.encode('idna').decode()}")
    return list(dict.fromkeys(found))


def _rows(connection: Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
    """These messages, in this order."""
    found = select(messages, contents.c.content).join(contents, contents.c.id == messages.c.id, isouter=True)
    rows = {
        row["id"]: dict(row) for row in connection.execute(found.where(messages.c.id.in_(ids))).mappings()
    }
    people: dict[str, list[Any]] = defaultdict(list)
    for person in connection.execute(
        select(recipients).where(recipients.c.id.in_(ids)).order_by(recipients.c.id, recipients.c.position)
    ).mappings():
        people[person["id"]].append(dict(person))
    for row in rows.values():
        content = json.loads(row.pop("content") or "{}")
        row |= {
            "subject": content.get("subject", ""),
            "tags": content.get("tags", []),
            "recipients": people[row["id"]],
        }
    return [rows[id] for id in ids if id in rows]
