"""Accepts messages, and returns the details of each. A worker's steps with them are in claims.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Connection, Select, case, func, literal_column, select
from sqlalchemy.exc import IntegrityError

from mailroom.model.errors import MailroomError
from mailroom.model.ids import MailId, new_id
from mailroom.model.message import ANYTIME, FINAL, Address, Message, SendOptions, State
from mailroom.store.content import load, subject_key, write
from mailroom.store.db.database import Database
from mailroom.store.db.dialects import now_ms
from mailroom.store.db.schema import contents, events, jobs, messages, recipients, workers
from mailroom.store.db.statements import Rows, RowValues, parameter
from mailroom.store.events.counters import count
from mailroom.store.events.timeline import record
from mailroom.store.events.webhook_events import enqueue_webhooks
from mailroom.store.jobs.jobs import SMALL_MAX_CHARACTERS, SUMMARY, NewJob, insert, is_large
from mailroom.store.keys.rate_limits import Charge, RateLimited, debit
from mailroom.store.messages.idempotency import Kept, KeyTaken, give_back, take
from mailroom.store.messages.suppressions import REASON as SUPPRESSED
from mailroom.store.messages.suppressions import state_at_acceptance, suppressed_among

#: Longer than most mails, so that a disk with room for this has room for them. PostgreSQL compresses it.
REHEARSAL_CHARACTERS = 65_536


@dataclass(frozen=True, kw_only=True)
class NewMessage:
    """Everything that one accepted message writes, and the id it gets."""

    id: str
    message: Message
    message_id: str
    queue: str = "mail"
    job: NewJob | None = None
    terms: SendOptions = ANYTIME  #: its times are by the database's clock
    sender: str | None = None  #: the account that has to send it; None: any
    webhook: str | None = None  #: a URL that gets the events of this message
    key_id: str | None = None  #: the API key it came with
    failed: str = ""  #: why it could not be accepted, if it is recorded only for that
    #: whether the client only wants to see what would be sent: it is not accepted
    dry_run: bool = False

    @property
    def mail_id(self) -> MailId:
        """The id, as `sendMail.delay` wants it."""
        return MailId(self.id, queue=self.queue, is_queued=self.state is State.QUEUED)

    @property
    def state(self) -> State:
        if self.failed:
            return State.FAILED
        if self.job:
            return State.WAITING
        return State.SCHEDULED if self.terms.is_scheduled else State.QUEUED


@dataclass(frozen=True)
class Batch:
    """Messages that are accepted together or not at all.

    `kept` is the client's Idempotency-Key, and the answer that the same request gets when it comes again.
    """

    acceptances: Sequence[NewMessage]
    kept: Kept | None = None
    charge: Charge | None = None  #: what it counts against an API key with a limit

    @property
    def is_large(self) -> bool:
        size = sum(acceptance.message.size for acceptance in self.acceptances)
        jobs = [acceptance.job for acceptance in self.acceptances if acceptance.job]
        return size > SMALL_MAX_CHARACTERS or any(map(is_large, jobs))


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of a timeline. `at` is in milliseconds since 1970."""

    at: int
    event: str
    attempt: int | None
    detail: str | None


@dataclass(frozen=True, kw_only=True)
class MessageDetails:
    """All that is known of one message. Times are in milliseconds since 1970."""

    now: int
    row: dict[str, Any]
    recipients: list[dict[str, Any]]
    events: list[Event]
    content: dict[str, Any]  #: subject, tags and so on; empty where that is no longer kept
    job: dict[str, Any] | None
    worker_seen_at: int | None  #: when any worker was last seen
    worker_beat_at: int | None  #: when one was last seen that has not stopped since


class Outbox:
    def __init__(self, database: Database) -> None:
        self.database = database

    def accept(
        self, acceptance: NewMessage, kept: Kept | None = None, charge: Charge | None = None
    ) -> bool:
        """Commit the message to disk, and the job before it; on return they are kept.

        False: one with this id was accepted before.

        Raises:
          KeyTaken: it was not accepted, as another request with this Idempotency-Key was, or is about to be.
          RateLimited: it was not accepted, as the API key has reached its limit.
          CommitUnanswered: it may have been accepted.
          StoreUnavailable: it was not.
        """
        try:
            self.accept_all(Batch([acceptance], kept, charge))
        except IntegrityError:
            if not self.database.read(lambda connection: _is_known(connection, acceptance)):
                raise
            return False
        return True

    def accept_all(self, batch: Batch) -> None:
        """Commit these messages to disk, all or none; raises what `accept` raises."""
        refusal = self.database.write(_accept, batch, alone=batch.is_large)
        if refusal:
            raise refusal

    def rehearse(self) -> None:
        """Accept a mail and undo that. Raises StoreUnavailable where no mail would be accepted."""
        message = Message(to=(Address("nobody@localhost"),), text=" " * REHEARSAL_CHARACTERS)
        accepted = [NewMessage(id=new_id(), message=message, message_id="rehearsal@localhost")]
        self.database.rehearse(lambda connection: _insert(connection, accepted))

    def mark_published(self, ids: Sequence[str], *, seconds_ago: float = 0) -> None:
        """Note that the broker has confirmed a nudge for each of `ids`, which was sent so long ago."""
        # Alone: workers lock these rows, and no POST should wait for them or be undone by a deadlock.
        self.database.write(_mark_published, (ids, int(seconds_ago * 1000)), alone=True)

    def details(self, id: str) -> MessageDetails | None:
        """Return all that is known of a message; None if there is no such message."""
        return self.database.read(lambda connection: _details(connection, id))

    def state(self, id: str) -> State | None:
        """Return the state alone, which is cheap; None if there is no such message."""
        return self.database.read(lambda connection: _state(connection, id))

    def content(self, id: str) -> Message | None:
        """Return what is to be sent, or was sent; None if that is not known, or no longer kept."""
        return self.database.read(lambda connection: _content(connection, id))

    def message_of(self, job_id: str) -> Message | None:
        """Return the message that waits or waited for that job."""
        return self.database.read(lambda connection: _message_of(connection, job_id))

    def workers_seen(self) -> tuple[int, int | None, int | None]:
        """Return three times, in milliseconds since 1970.

        They are: now; when any worker of this outbox was last seen; when one was that has not stopped since.
        """
        now, seen, beat = self.database.read(
            lambda connection: connection.execute(_WORKERS_SEEN).one()
        )
        return now, seen, beat

    def worker_seen_ms_ago(self) -> int | None:
        """Return how long ago a worker was last seen that has not stopped since, in milliseconds.

        None: there is no such worker.
        """
        now, _, beat = self.workers_seen()
        return None if beat is None else now - beat


#: Columns that are written just as they are.
_COLUMNS = (
    "id",
    "state",
    "queue",
    "message_id",
    "job_id",
    "reason",
    "max_attempts",
    "sender",
    "webhook",
    "key_id",
    "subject_key",
    "taken",
)


def _new(row: RowValues) -> Any:
    """Insert a message; its times are those that were named, or so many milliseconds from now, or NULL."""
    values = {name: row[name] for name in _COLUMNS} | {
        "created_at": now_ms(),
        "next_attempt_at": func.coalesce(row["scheduled_at"], now_ms() + row["delay"]),
        "at_named": case((row["scheduled_at"].is_not(None), literal_column("1"))),
        "expires_at": func.coalesce(row["expires_at"], now_ms() + row["expires_in"]),
        **dict.fromkeys(("attempt", "uncertain_attempts", "crashes"), literal_column("0")),
    }
    return messages.insert().from_select([*values], select(*values.values()))


_NEW_MESSAGES = Rows(
    messages, (*_COLUMNS, "scheduled_at", "delay", "expires_at", "expires_in"), _new
)
#: The times of a message that has ended already, and never comes due.
_NOT_DUE = {"scheduled_at": None, "delay": None}


def _accept(connection: Connection, batches: list[Batch]) -> list[MailroomError | None]:
    """Write the batches whose Idempotency-Key is new and whose API key is within its limit.

    Return for each of the others why it is refused.
    """
    ours = take(connection, [batch.kept for batch in batches])
    charges = [
        batch.charge if is_ours else None for batch, is_ours in zip(batches, ours, strict=True)
    ]
    passed = debit(connection, charges)
    refusals = list(map(_refusal, batches, ours, passed))
    results = [*zip(batches, refusals, strict=True)]
    give_back(
        connection, [batch.kept for batch, refusal in results if isinstance(refusal, RateLimited)]
    )
    accepted = [new for batch, refusal in results if refusal is None for new in batch.acceptances]
    if accepted:
        _insert(connection, accepted)
    return refusals


def _refusal(batch: Batch, is_ours: bool, is_passed: bool) -> MailroomError | None:
    if not is_ours:
        return KeyTaken()
    if is_passed or batch.charge is None or batch.charge.rate is None:
        return None
    return RateLimited(batch.charge.rate)


class _Start(NamedTuple):
    """A message to be written, and the states in which it and its recipients begin."""

    new: NewMessage
    state: State
    recipient_states: list[State]


def _insert(connection: Connection, accepted: list[NewMessage]) -> None:
    starts = _starts(connection, accepted)
    _NEW_MESSAGES(connection, [_row(start.new, start.state) for start in starts])
    write(
        connection, [(start.new.id, start.new.message, start.recipient_states) for start in starts]
    )
    new_jobs = [new.job for new in accepted if new.job]
    if new_jobs:
        insert(connection, new_jobs)
    count(connection, {"accepted": len(accepted)})
    enqueue_webhooks(
        connection,
        [{"id": new.id, "event": "accepted", "webhook": new.webhook} for new in accepted],
    )
    # The timeline shows the others' acceptance by their row in messages.
    ended = [
        {"id": start.new.id, "event": start.state, "detail": start.new.failed or SUPPRESSED}
        for start in starts
        if start.state in FINAL
    ]
    record(connection, ended)


def _starts(connection: Connection, accepted: list[NewMessage]) -> list[_Start]:
    addresses = [[recipient.address for recipient in new.message.everyone] for new in accepted]
    suppressed = suppressed_among(connection, list(chain.from_iterable(addresses)))
    return [
        _Start(new, *state_at_acceptance(new.state, people, suppressed))
        for new, people in zip(accepted, addresses, strict=True)
    ]


def _row(new: NewMessage, state: State) -> dict[str, Any]:
    """Return the values of `_NEW_MESSAGES`."""
    reason = SUPPRESSED if state is State.SUPPRESSED else None
    names_itself = new.message.is_raw and not new.message_id.startswith(new.id)
    return {
        "id": new.id,
        "state": state,
        "queue": new.queue,
        "message_id": new.message_id,
        "job_id": new.job and new.job.id,
        "reason": new.failed or reason,
        "sender": new.sender,
        "webhook": new.webhook,
        "key_id": new.key_id,
        "subject_key": subject_key(new.message.subject),
        "taken": 1 if names_itself else None,
        **vars(new.terms),
        "delay": new.terms.delay or None,
        **(_NOT_DUE if state in FINAL else {}),
    }


def _is_known(connection: Connection, new: NewMessage) -> bool:
    """Tell whether there is such a message, or such a job, already."""
    message = select(messages.c.id).where(messages.c.id == new.id)
    if connection.scalar(message) is not None:
        return True
    if new.job is None:
        return False
    return connection.scalar(select(jobs.c.id).where(jobs.c.id == new.job.id)) is not None


# A message that a worker has claimed is marked already, and is left out: it may be locked together with
# others.
_MARK = Rows(
    messages,
    ("id",),
    lambda row: (
        messages.update()
        .values(published_at=now_ms() - parameter("ms_ago", BigInteger))
        .where(
            messages.c.id == row["id"],
            messages.c.state == State.QUEUED,
            # coalesce keeps SQLite from choosing the index on all that are queued.
            func.coalesce(messages.c.published_at, 0) == 0,
        )
    ),
)


def _mark_published(connection: Connection, chunks: list[tuple[Sequence[str], int]]) -> list[None]:
    for ids, ms_ago in chunks:
        _MARK.of(connection, ids, ms_ago=ms_ago)
    return [None] * len(chunks)


def _message_of(connection: Connection, job_id: str) -> Message | None:
    id = connection.scalar(
        select(messages.c.id).where(messages.c.job_id == job_id, messages.c.resent_of.is_(None))
    )
    return _content(connection, id) if id else None


def _content(connection: Connection, id: str) -> Message | None:
    content = load(connection, [id]).get(id)
    return content.message if content else None


def _state(connection: Connection, id: str) -> State | None:
    value = connection.scalar(select(messages.c.state).where(messages.c.id == id))
    return State(value) if value else None


_WORKERS_SEEN = select(
    now_ms(),
    func.max(workers.c.seen_at),
    func.max(case((workers.c.stopped_at.is_(None), workers.c.seen_at))),
)


def _details(connection: Connection, id: str) -> MessageDetails | None:
    row = _one(connection, messages.select().where(messages.c.id == id))
    if row is None:
        return None
    people = recipients.select().where(recipients.c.id == id).order_by(recipients.c.position)
    timeline = (
        events.select().where(events.c.id.in_([id, row["job_id"] or id])).order_by(events.c.number)
    )
    job = select(*SUMMARY).where(jobs.c.id == row["job_id"])
    content = connection.scalar(select(contents.c.content).where(contents.c.id == id))
    now, seen, beat = connection.execute(_WORKERS_SEEN).one()
    return MessageDetails(
        now=now,
        row=row,
        content=json.loads(content or "{}"),
        recipients=list(map(dict, connection.execute(people).mappings())),
        events=list(map(_event, connection.execute(timeline))),
        job=_one(connection, job) if row["job_id"] else None,
        worker_seen_at=seen,
        worker_beat_at=beat,
    )


def _one(connection: Connection, statement: Select[Any]) -> dict[str, Any] | None:
    row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else dict(row)


def _event(line: Any) -> Event:
    return Event(at=line.at, event=line.event, attempt=line.attempt, detail=line.detail)
