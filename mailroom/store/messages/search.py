"""Lists messages, newest first, a page at a time, in a time that does not grow with the table.

Where an index says that few messages match, they are read and sorted. Where many match, messages are read by
age until the page is full, or ends after LOOKED_MAX of them; the next page goes on from there.
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

#: The most messages that are read for one page.
LOOKED_MAX = 20_000
#: The most messages that are sorted.
FEW = 2_000

#: A position in the list: when the message was accepted, in milliseconds since 1970, and its id.
Position = tuple[int, str]
_position = tuple_(messages.c.created_at, messages.c.id)


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search for messages to list. Times are in milliseconds since 1970; "" and None: any."""

    status: str = ""
    to: str = ""  #: a recipient's address, as it is in the envelope
    tag: str = ""
    words: str = ""  #: in the subject or in the address of a recipient; case does not matter
    since: int | None = None
    until: int | None = None
    after: Position | None = None  #: the last one of the page before
    limit: int = 20


@dataclass(frozen=True)
class Page:
    """Messages, each with subject, tags and recipients; `next` is where the next page starts, if any."""

    rows: list[dict[str, Any]]
    next: Position | None


def listed(database: Database, search: Search) -> Page:
    """Return a page. It may have fewer rows than `limit`, even none, though there is another page."""
    return database.read(lambda connection: _listed(connection, search))


def newest(database: Database, search: Search) -> list[dict[str, Any]]:
    """Return as many rows as `limit` says, however long that takes."""
    page = listed(database, search)
    rows = page.rows
    while page.next and len(rows) < search.limit:
        missing = search.limit - len(rows)
        rest = replace(search, after=page.next, limit=missing)
        page = listed(database, rest)
        rows += page.rows
    return rows


def number(database: Database, status: State, most: int) -> int:
    """Count the messages in a state that not every message passes through, `most` at most."""
    ids = select(messages.c.id).where(*_in_order(Search(status=status))).limit(most).subquery()
    return (
        database.read(lambda connection: connection.scalar(select(func.count()).select_from(ids)))
        or 0
    )


def _listed(connection: Connection, search: Search) -> Page:
    few = _few(connection, search)
    if few is None:
        positions, next = _by_age(connection, search)
    else:
        positions, next = _sorted(connection, search, few)
    ids = [id for _, id in positions]
    return Page(_rows(connection, ids), next)


def _few(connection: Connection, search: Search) -> Sequence[str] | None:
    """Return ids that include all matches, where an index says that they are few; else None."""
    indexed: list[Select[Any]] = []
    if search.to:
        to_address = select(recipients.c.id).where(recipients.c.address == search.to)
        indexed.append(to_address.distinct())
    if search.tag:
        indexed.append(select(tags.c.id).where(tags.c.tag == search.tag))
    if search.status == State.QUEUED:
        queued = messages.c.state == literal_column("'queued'")
        indexed.append(select(messages.c.id).where(queued))
    if search.status in (State.SENDING, State.IN_DATA):
        owned = messages.c.owner.is_not(None)
        indexed.append(select(messages.c.id).where(owned))
    for statement in indexed:
        ids = connection.scalars(statement.limit(FEW + 1)).all()
        if len(ids) <= FEW:
            return ids
    return None


def _sorted(
    connection: Connection, search: Search, ids: Sequence[str]
) -> tuple[list[Position], Position | None]:
    """Sort here, and find here what comes after a position.

    A database may compare ids by the rules of a language.
    """
    from_the_start = replace(search, after=None)
    matching = select(messages.c.created_at, messages.c.id).where(
        messages.c.id.in_(ids),
        *_in_order(from_the_start),
        *_on_sight(search),
    )
    rows = connection.execute(matching).all()
    positions = [(row.created_at, row.id) for row in rows]
    positions.sort(reverse=True)
    if search.after is not None:
        positions = [position for position in positions if position < search.after]
    return _page(positions, search.limit, end=None)


def _page(
    positions: list[Position], limit: int, *, end: Position | None
) -> tuple[list[Position], Position | None]:
    """Return the positions of a page, and where the next page starts: `end` if these are all."""
    page = positions[:limit]
    has_more = len(positions) > limit
    return page, page[-1] if has_more else end


def _by_age(connection: Connection, search: Search) -> tuple[list[Position], Position | None]:
    by_age = (
        select(messages.c.created_at, messages.c.id)
        .where(*_in_order(search))
        .order_by(messages.c.created_at.desc(), messages.c.id.desc())
    )
    end: Position | None = None
    conditions = _on_sight(search)
    if conditions:
        last = connection.execute(by_age.offset(LOOKED_MAX - 1).limit(2)).all()
        by_age = by_age.where(*conditions)
        if len(last) == 2:
            end = (last[0].created_at, last[0].id)
            by_age = by_age.where(_position >= tuple_(*map(literal, end)))
    rows = connection.execute(by_age.limit(search.limit + 1))
    positions = [(row.created_at, row.id) for row in rows]
    return _page(positions, search.limit, end=end)


def _in_order(search: Search) -> list[ColumnElement[bool]]:
    """Return the conditions that an index covers, in the order of the list."""
    conditions: list[ColumnElement[bool]] = []
    if search.status and search.status not in PASSING:
        # With the index's own condition, or SQLite would not use the index.
        passing: list[ColumnElement[Any]] = [literal_column(f"'{state}'") for state in PASSING]
        conditions += [
            messages.c.state == search.status,
            messages.c.state.not_in(passing),
        ]
    if search.since is not None:
        conditions.append(messages.c.created_at >= search.since)
    if search.until is not None:
        conditions.append(messages.c.created_at < search.until)
    if search.after:
        conditions.append(_position < tuple_(*map(literal, search.after)))
    return conditions


def _on_sight(search: Search) -> list[ColumnElement[bool]]:
    """Return the conditions that have to be checked for each message."""
    conditions: list[ColumnElement[bool]] = []
    if search.status in PASSING:
        conditions.append(messages.c.state == search.status)
    if search.to:
        conditions.append(
            exists().where(recipients.c.id == messages.c.id, recipients.c.address == search.to)
        )
    if search.tag:
        has_tag = exists().where(
            tags.c.id == messages.c.id,
            tags.c.tag == search.tag,
        )
        conditions.append(has_tag)
    if search.words:
        address = func.lower(recipients.c.address)
        in_address = [
            address.contains(text, autoescape=True) for text in _in_addresses(search.words)
        ]
        subject = search.words.casefold()
        in_subject = messages.c.subject_key.contains(subject, autoescape=True)
        in_recipient = exists().where(recipients.c.id == messages.c.id, or_(*in_address))
        conditions.append(or_(in_subject, in_recipient))
    return conditions


def _in_addresses(words: str) -> list[str]:
    """Return the forms that these words may have in an address.

    SQLite's lower() changes only ASCII, and a domain is stored in ASCII. An address has quotes where it needs
    them, wherever somebody typed them.
    """
    if words.isascii():
        lower = words.lower()
        quoted = lower.replace("@", '"@')
        unquoted = lower.replace('"', "")
        return list(dict.fromkeys([lower, quoted, unquoted]))
    lower_ascii = "".join(letter.lower() if letter.isascii() else letter for letter in words)
    upper_rest = "".join(letter if letter.isascii() else letter.upper() for letter in lower_ascii)
    forms = [words.casefold(), lower_ascii, upper_rest]
    for form in [*forms]:
        local, at, domain = form.rpartition("@")
        with suppress(UnicodeError):  # A part of a domain need not be a valid one.
            domain_ascii = domain.encode("idna").decode()
            forms.append(f"{local}{at}{domain_ascii}")
    return list(dict.fromkeys(forms))


def _rows(connection: Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Return these messages, in this order."""
    with_content = select(messages, contents.c.content).join(
        contents, contents.c.id == messages.c.id, isouter=True
    )
    of_ids = with_content.where(messages.c.id.in_(ids))
    selected = connection.execute(of_ids).mappings()
    rows = {row["id"]: dict(row) for row in selected}
    people = _recipients(connection, ids)
    for row in rows.values():
        content = json.loads(row.pop("content") or "{}")
        row |= {
            "subject": content.get("subject", ""),
            "tags": content.get("tags", []),
            "recipients": people[row["id"]],
        }
    return [rows[id] for id in ids if id in rows]


def _recipients(connection: Connection, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the recipients of these messages, by the message's id."""
    by_position = (
        select(recipients)
        .where(recipients.c.id.in_(ids))
        .order_by(recipients.c.id, recipients.c.position)
    )
    people: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for person in connection.execute(by_position).mappings():
        people[person["id"]].append(dict(person))
    return people
