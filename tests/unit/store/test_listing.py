"""Lists of messages: the same whichever way they are found, and in a time that does not grow with what is stored."""

from collections.abc import Iterator
from itertools import count

import pytest
from sqlalchemy import text

from mailroom.model.ids import new_id
from mailroom.model.message import Address, Message
from mailroom.store.db.database import Database
from mailroom.store.events.changes import pulse
from mailroom.store.messages import search as listing
from mailroom.store.messages.outbox import Batch, NewMessage, Outbox
from mailroom.store.messages.search import Page, Position, Search, listed, newest

_numbers = count()


@pytest.fixture
def many(database: Database) -> Database:
    """Sixty messages, each at a moment of its own but for the last ten; every third to Bob, and every twentieth failed."""
    accept(database, *(f"bob{n}@example.org" if n % 3 else "bob@example.org" for n in range(60)))
    with database.engine.begin() as connection:
        for n, id in enumerate(
            connection.scalars(text("SELECT id FROM messages ORDER BY id")).all()
        ):
            state = "failed" if n % 20 == 0 else "sent" if n % 2 else "queued"
            connection.execute(
                text("UPDATE messages SET created_at = :at, state = :state WHERE id = :id"),
                {"at": 1000 + min(n, 50), "state": state, "id": id},
            )
    return database


@pytest.fixture(params=["few", "many"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of finding what there is: by an index, and by age with a bound that a page comes to."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "many":
            patch.setattr(listing, "FEW", 1)
            patch.setattr(listing, "LOOKED_MAX", 7)
        yield request.param


def accept(database: Database, *people: str, subject: str = "Hello") -> list[str]:
    ids = [new_id() for _ in people]
    Outbox(database).accept_all(
        Batch(
            [
                NewMessage(
                    id=id,
                    message_id=f"{id}@example.org",
                    message=Message(
                        to=(Address(to),),
                        subject=f"{subject} {next(_numbers)}",
                        text="x",
                        tags=("odd",) if n % 2 else (),
                    ),
                )
                for n, (id, to) in enumerate(zip(ids, people, strict=True))
            ]
        )
    )
    return ids


def pages(database: Database, search: Search) -> list[Page]:
    found = [listed(database, search)]
    while found[-1].next:
        found.append(listed(database, Search(**{**vars(search), "after": found[-1].next})))
    return found


@pytest.mark.parametrize(
    "search",
    [
        Search(limit=7),
        Search(status="sent", limit=7),
        Search(status="queued", limit=3),
        Search(status="failed", limit=2),
        Search(to="bob@example.org", limit=4),
        Search(tag="odd", limit=7),
        Search(words="BOB5", limit=3),
        Search(words="hello", limit=7),
        Search(status="sent", to="bob@example.org", limit=2),
        Search(since=1020, until=1030, limit=3),
        Search(words="no such", limit=5),
        Search(status="held"),
        Search(to="nobody@example.org"),
    ],
    ids=lambda search: (
        ",".join(
            f"{name}={value}" for name, value in vars(search).items() if value and name != "limit"
        )
        or "all"
    ),
)
def test_pages_hold_what_there_is_once_and_in_order(
    many: Database, way: str, search: Search
) -> None:
    found = pages(many, search)
    rows = [row for page in found for row in page.rows]

    def fits(row: dict[str, object]) -> bool:
        to = row["recipients"][0]["address"]  # type: ignore[index]
        words = search.words.lower()
        return (
            (not search.status or row["state"] == search.status)
            and (not search.to or to == search.to)
            and (not search.tag or search.tag in row["tags"])  # type: ignore[operator]
            and (words in str(row["subject"]).lower() or words in to)
            and (search.since or 0) <= row["created_at"] < (search.until or 10**18)  # type: ignore[operator]
        )

    every = listed(many, Search(limit=100)).rows
    assert len(every) == 60
    assert [row["id"] for row in rows] == [row["id"] for row in every if fits(row)]
    assert all(len(page.rows) <= search.limit for page in found)
    assert [row["id"] for row in newest(many, search)] == [row["id"] for row in rows][
        : search.limit
    ]


def test_a_page_goes_through_so_many_messages_and_no_more(many: Database) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "LOOKED_MAX", 25)
        first = listed(many, Search(words="no such"))
        assert (first.rows, first.next) == ([], place(many, 24))
        assert listed(many, Search(words="no such", after=place(many, 34))) == Page([], None)


def place(database: Database, number: int) -> Position:
    row = listed(database, Search(limit=100)).rows[number]
    return row["created_at"], row["id"]


def test_the_way_by_an_index_is_taken_where_few_have_it(many: Database) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "LOOKED_MAX", 1)
        assert listed(many, Search(to="bob59@example.org")).next is None
        assert len(listed(many, Search(to="bob@example.org", limit=100)).rows) == 20


def test_a_pulse_is_another_one_when_something_has_happened(database: Database) -> None:
    before = pulse(database, 20)
    assert pulse(database, 20) == before
    seen = {before}
    [id] = accept(database, "bob@example.org")
    for statement in (
        f"UPDATE messages SET published_at = 5 WHERE id = '{id}'",
        f"UPDATE messages SET state = 'sending', owner = 'w', attempt = 1 WHERE id = '{id}'",
        f"INSERT INTO events (id, at, event) VALUES ('{id}', 5, 'sent')",
        "INSERT INTO jobs (id, name, args, queue, state, progress, timeout_ms, attempt, max_attempts, created_at, owner) "
        "VALUES ('j', 'simulate', '{}', 'jobs', 'running', 0, 1, 1, 1, 5, 'w')",
        "UPDATE jobs SET progress = 500",
        "INSERT INTO accounts (name, state, since, failures, credentials) VALUES ('one', 'ok', 5, 0, '')",
        "UPDATE accounts SET until = 7",
        "INSERT INTO deliveries (webhook_id, event, at, next_attempt_at) VALUES ('h', 'message.sent', 5, 5)",
        "UPDATE deliveries SET next_attempt_at = NULL",
    ):
        seen.add(pulse(database, 20))
        with database.engine.begin() as connection:
            connection.execute(text(statement))
    assert len(seen | {pulse(database, 20)}) == 11
