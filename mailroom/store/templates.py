"""Stored templates, which a message names and fills in."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, update

from mailroom.store.db.database import Database
from mailroom.store.db.dialects import insertion, now_ms
from mailroom.store.db.schema import templates

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Template:
    """A template as it is stored."""

    name: str
    subject: str
    text: str | None
    html: str | None
    created_at: int  #: milliseconds since 1970
    updated_at: int


class Saved(NamedTuple):
    """A template, and whether there was none with its name before."""

    template: Template
    is_new: bool


@dataclass(frozen=True)
class Templates:
    """The templates of an outbox."""

    database: Database

    def save(self, name: str, *, subject: str, text: str | None, html: str | None) -> Saved:
        """Create or replace a template; messages that were accepted before do not change."""
        values = {"name": name, "subject": subject, "text": text, "html": html}
        return self.database.write(_save, values, alone=True)

    def find(self, name: str) -> Template | None:
        if not is_name(name):
            return None
        template = select(templates).where(templates.c.name == name)
        row = self.database.read(lambda connection: connection.execute(template).one_or_none())
        return Template(**row._mapping) if row else None

    def delete(self, name: str) -> bool:
        """Delete a template; False if there was none with this name."""
        return is_name(name) and self.database.write(_delete, name, alone=True)

    def page(self, *, limit: int, after: str = "") -> list[dict[str, Any]]:
        """List the templates after that name, by name, without their text and HTML."""
        page = (
            select(
                templates.c.name,
                templates.c.subject,
                templates.c.created_at,
                templates.c.updated_at,
            )
            .where(templates.c.name > after)
            .order_by(templates.c.name)
            .limit(limit)
        )
        rows = self.database.read(lambda connection: connection.execute(page).mappings().all())
        return [dict(row) for row in rows]


def is_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name))


def _save(connection: Connection, items: list[dict[str, Any]]) -> list[Saved]:
    return [_save_one(connection, values) for values in items]


def _save_one(connection: Connection, values: dict[str, Any]) -> Saved:
    insert = (
        insertion(connection, templates)
        .values(**values, created_at=now_ms(), updated_at=now_ms())
        .on_conflict_do_nothing()
        .returning(templates)
    )
    replace = (
        update(templates)
        .where(templates.c.name == values["name"])
        .values(**values, updated_at=now_ms())
        .returning(templates)
    )
    while True:  # Another transaction may delete it between the two.
        if row := connection.execute(insert).one_or_none():
            return Saved(Template(**row._mapping), True)
        if row := connection.execute(replace).one_or_none():
            return Saved(Template(**row._mapping), False)


def _delete(connection: Connection, names: list[str]) -> list[bool]:
    by_name = [delete(templates).where(templates.c.name == name) for name in names]
    return [connection.execute(statement).rowcount > 0 for statement in by_name]
