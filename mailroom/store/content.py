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
_CONTENTS_OF = Rows(
    contents, ("id",), lambda row: select(contents).where(contents.c.id == row["id"])
)
_RECIPIENTS_OF = Rows(
    recipients,
    ("id",),
    lambda row: (
        select(recipients)
        .where(recipients.c.id == row["id"])
        .order_by(recipients.c.id, recipients.c.position)
    ),
)


def write(connection: Connection, accepted: Sequence[tuple[str, Message, Sequence[State]]]) -> None:
    """Write the content of new messages, each with the states of its recipients."""
    rows = [{"id": id, "content": message.to_row()} for id, message, _ in accepted]
    _CONTENTS(connection, rows)
    people: list[dict[str, Any]] = []
    for id, message, states in accepted:
        people += _recipient_rows(id, message, states)
    _RECIPIENTS(connection, people)
    _TAGS(
        connection, [{"tag": tag, "id": id} for id, message, _ in accepted for tag in message.tags]
    )
    for id, message, _ in accepted:
        for position, file in enumerate(message.attachments):
            # One by one, as a driver copies all that is executed together.
            connection.execute(files.insert(), _file_row(id, position, file))


def _recipient_rows(id: str, message: Message, states: Sequence[State]) -> list[dict[str, Any]]:
    people = zip(message.everyone, message.kinds(), states, strict=True)
    return [
        {
            "id": id,
            "position": n,
            "address": to.address,
            "name": to.name,
            "kind": kind,
            "state": state,
        }
        for n, (to, kind, state) in enumerate(people)
    ]


def _file_row(id: str, position: int, file: Attachment) -> dict[str, Any]:
    return {
        "id": id,
        "position": position,
        "name": file.name,
        "content_type": file.content_type,
        "content": file.content,
        "content_id": file.content_id or None,
    }


def subject_key(subject: str) -> str:
    """Return the form of a subject in which it is searched."""
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
    """Load the contents of these messages, by id, without those that are no longer kept."""
    rows = {row.id: json.loads(row.content) for row in _CONTENTS_OF.of(connection, ids)}
    people: dict[str, list[Any]] = defaultdict(list)
    for person in _RECIPIENTS_OF.of(connection, rows):
        people[person.id].append(person)
    attached: dict[str, tuple[Attachment, ...]] = {}
    if with_attachments:
        ids_with = [id for id, content in rows.items() if "attachments" in content]
        attached = load_attachments(connection, ids_with)
    return {id: _content(row, people[id], attached.get(id, ())) for id, row in rows.items()}


def _content(
    row: dict[str, Any], people: Sequence[Any], attachments: tuple[Attachment, ...]
) -> Content:
    addresses = [(person.kind, Address(person.address, person.name)) for person in people]
    message = Message.from_row(row, addresses, attachments)
    states = [person.state for person in people]
    return Content(
        message,
        states,
        has_attachments="attachments" in row,
    )


def load_attachments(
    connection: Connection, ids: Sequence[str]
) -> dict[str, tuple[Attachment, ...]]:
    """Return the files of these messages or jobs, in order, by id."""
    attachments: dict[str, tuple[Attachment, ...]] = {}
    if not ids:
        return attachments
    of_ids = select(files).where(files.c.id.in_(ids)).order_by(files.c.id, files.c.position)
    for row in connection.execute(of_ids):
        file = Attachment(row.name, row.content_type, row.content, row.content_id or "")
        earlier = attachments.get(row.id, ())
        attachments[row.id] = (*earlier, file)
    return attachments


def copy(connection: Connection, id: str, *, to: str) -> None:
    """Copy the content of message `id` to the new message `to`; nothing was sent to its recipients yet."""
    for table in (contents, recipients, tags, files):
        columns: dict[str, Any] = {column.name: column for column in table.c} | {"id": literal(to)}
        if table is recipients:
            columns |= {"state": literal(State.QUEUED.value), "reply": null()}
        rows = select(*columns.values()).where(table.c.id == id)
        connection.execute(insert(table).from_select([*columns], rows))
