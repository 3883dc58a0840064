"""The contents of accepted messages: written once, when they are accepted, and read for each attempt."""

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, insert, literal, null, select

from mailroom.model.message import Address, Attachment, Message, State
from mailroom.store.db.schema import contents, files, recipients, tags
from mailroom.store.db.statements import Rows, inserted

_CONTENTS = inserted(contents, ("id", "content"))
_RECIPIENTS = inserted(recipients, ("id", "position", "address", "name", "kind", "state"))
_TAGS = inserted(tags, ("tag", "id"))
_CONTENTS_OF = Rows(contents, ("id",), lambda given: select(contents).where(contents.c.id == given["id"]))
_RECIPIENTS_OF = Rows(
    recipients,
    ("id",),
    lambda given: (
        select(recipients)
        .where(recipients.c.id == given["id"])
        .order_by(recipients.c.id, recipients.c.position)
    ),
)


def write(connection: Connection, accepted: Sequence[tuple[str, Message, Sequence[State]]]) -> None:
    """Write the content of new messages, each with the states of its recipients."""
    _CONTENTS(connection, [{"id": id, "content": message.to_row()} for id, message, _ in accepted])
    _RECIPIENTS(
        connection,
        [
            {"id": id, "position": n, "address": to.address, "name": to.name, "kind": kind, "state": state}
            for id, message, states in accepted
            for n, (to, kind, state) in enumerate(zip(message.everyone, message.kinds(), states, strict=True))
        ],
    )
    _TAGS(connection, [{"tag": tag, "id": id} for id, message, _ in accepted for tag in message.tags])
    for id, message, _ in accepted:
        for position, file in enumerate(
            message.attachments
        ):  # One by one: drivers copy what is executed together.
            connection.execute(
                files.insert(),
                {
                    "id": id,
                    "position": position,
                    "name": file.name,
                    "content_type": file.content_type,
                    "content": file.content,
                    "content_id": file.content_id or None,
                },
            )


def subject_key(subject: str) -> str:
    """Return what is kept of a subject to find it by."""
    return subject.casefold()


@dataclass(frozen=True)
class Content:
    """The content of a message, and the state of each recipient."""

    message: Message
    states: list[str]
    has_attachments: bool = False


def load(
    connection: Connection, ids: Collection[str], *, with_attachments: bool = True
) -> dict[str, Content]:
    """Load what the messages of these ids hold, without those whose content is no longer kept."""
    rows = {row.id: json.loads(row.content) for row in _CONTENTS_OF.of(connection, ids)}
    people: dict[str, list[Any]] = defaultdict(list)
    for person in _RECIPIENTS_OF.of(connection, rows):
        people[person.id].append(person)
    attached = (
        load_attachments(connection, [id for id, content in rows.items() if "attachments" in content])
        if with_attachments
        else {}
    )
    return {
        id: Content(
            Message.from_row(
                content, [(p.kind, Address(p.address, p.name)) for p in people[id]], attached.get(id, ())
            ),
            [p.state for p in people[id]],
            "attachments" in content,
        )
        for id, content in rows.items()
    }


def load_attachments(connection: Connection, ids: Sequence[str]) -> dict[str, tuple[Attachment, ...]]:
    """The files of these messages or jobs, in order."""
    found: dict[str, tuple[Attachment, ...]] = {}
    if ids:
        for row in connection.execute(
            select(files).where(files.c.id.in_(ids)).order_by(files.c.id, files.c.position)
        ):
            file = Attachment(row.name, row.content_type, row.content, row.content_id or "")
            found[row.id] = (*found.get(row.id, ()), file)
    return found


def copy(connection: Connection, id: str, *, to: str) -> None:
    """Give the new message `to` what `id` holds; all recipients begin anew."""
    anew: dict[str, Any] = {"state": literal(State.QUEUED.value), "reply": null()}
    for table in (contents, recipients, tags, files):
        columns = (
            {column.name: column for column in table.c}
            | {"id": literal(to)}
            | (anew if table is recipients else {})
        )
        connection.execute(
            insert(table).from_select([*columns], select(*columns.values()).where(table.c.id == id))
        )
