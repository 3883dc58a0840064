"""Stored templates: the texts that a message names, and fills in."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, update

from mailroom.store.db.database import Database
from mailroom.store.db.schema import insertion, now_ms, templates

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
    """A template, and whether there was none of its name before."""

    template: Template
    is_new: bool


@dataclass(frozen=True)
class Templates:
    """All of them, by name."""

    database: Database

    def save(self, name: str, *, subject: str, text: str | None, html: str | None) -> Saved:
        """Create or replace; messages that were accepted before keep what they were made of."""
        return self.database.write(
            _save, {"name": name, "subject": subject, "text": text, "html": html}, alone=True
        )

    def find(self, name: str) -> Template | None:
        row = (
            self.database.read(
                lambda connection: connection.execute(
                    select(templates).where(templates.c.name == name)
                ).one_or_none()
            )
            if is_name(name)
            else None
        )
        return Template(**row._mapping) if row else None

    def delete(self, name: str) -> bool:
        """Return whether it was there."""
        return is_name(name) and self.database.write(_delete, name, alone=True)

    def page(self, *, limit: int, after: str = "") -> list[dict[str, Any]]:
        """List the templates after that name, by name, without their text and HTML."""
        asked = (
            select(templates.c.name, templates.c.subject, templates.c.created_at, templates.c.updated_at)
            .where(templates.c.name > after)
            .order_by(templates.c.name)
            .limit(limit)
        )
        return self.database.read(
            lambda connection: [dict(row) for row in connection.execute(asked).mappings()]
        )


def is_name(name: str) -> bool:
    return bool(_NAME.fullmatch(name))


def _save(connection: Connection, asked: list[dict[str, Any]]) -> list[Saved]:
    return [_save_one(connection, texts) for texts in asked]


def _save_one(connection: Connection, texts: dict[str, Any]) -> Saved:
    insert = (
        insertion(connection, templates)
        .values(**texts, created_at=now_ms(), updated_at=now_ms())
        .on_conflict_do_nothing()
        .returning(templates)
    )
    replace = (
        update(templates)
        .where(templates.c.name == texts["name"])
        .values(**texts, updated_at=now_ms())
        .returning(templates)
    )
    while True:  # Until nobody deletes it between the two.
        if row := connection.execute(insert).one_or_none():
            return Saved(Template(**row._mapping), True)
        if row := connection.execute(replace).one_or_none():
            return Saved(Template(**row._mapping), False)


def _delete(connection: Connection, names: list[str]) -> list[bool]:
    return [
        connection.execute(delete(templates).where(templates.c.name == name)).rowcount > 0 for name in names
    ]
