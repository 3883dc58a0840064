"""Many workers reach for the same mails at once, and each mail has one owner."""

import threading
from collections import Counter
from typing import Any

import pytest

from mailroom.model.ids import new_id
from mailroom.model.message import Address, Message
from mailroom.store.db import postgresql
from mailroom.store.db.database import Database
from mailroom.store.messages.claims import Claims
from mailroom.store.messages.outbox import NewMessage, Outbox
from mailroom.store.workers import Heartbeat
from tests.faults import backlog

RACES = 2_000
RACERS = 20
CHUNK = 100


def test_of_twenty_workers_that_want_a_mail_one_gets_it_in_two_thousand_races(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Twenty threads take turns in this process, and on a busy machine each has to wait for long.
    monkeypatch.setattr(
        postgresql, "SERVER_LIMITS", "SET idle_in_transaction_session_timeout = '60s'"
    )
    monkeypatch.setattr(postgresql.BoundedConnection, "answer_seconds", 60.0)
    template = new_id()
    Outbox(database).accept(
        NewMessage(
            id=template,
            message=Message(to=(Address("bob@example.org", ""),)),
            message_id="a@example.org",
        )
    )
    backlog.copy(database.engine, template, first=0, count=RACES)
    processes = [Database(database.url.render_as_string(hide_password=False)) for _ in range(4)]
    racers = [Claims(processes[n % len(processes)], f"racer-{n}", 60.0) for n in range(RACERS)]
    for racer in racers:
        Heartbeat(racer.database, racer.owner, racer.owner, []).beat()
    start, won, lost_their_way = threading.Barrier(RACERS), Counter[str](), list[Any]()

    def race(racer: Claims) -> None:
        try:
            for first in range(0, RACES, CHUNK):
                start.wait(60)
                claims = racer.claim(backlog.copied(first, CHUNK))
                assert all(racer.fence(claim) for claim in claims[:1])
                won.update(claim.id for claim in claims)
        except BaseException as e:
            lost_their_way.append(e)
            start.abort()

    threads = [threading.Thread(target=race, args=(racer,)) for racer in racers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        process.close()
    assert lost_their_way == []
    assert len(won) == RACES and set(won.values()) == {1}
