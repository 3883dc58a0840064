"""Accepts messages, and tells where each one is. What a worker does with them is in claims.py."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, case, func, literal_column, select
from sqlalchemy.exc import IntegrityError

from mailroom.model.errors import MailroomError
from mailroom.model.ids import MailId, new_id
from mailroom.model.message import ANYTIME, FINAL, Address, Message, SendOptions, State
from mailroom.store.content import load, subject_key, write
from mailroom.store.db.database import Database
from mailroom.store.db.schema import contents, events, jobs, messages, now_ms, recipients, workers
from mailroom.store.db.statements import Given, Rows, asked
from mailroom.store.events.counters import count
from mailroom.store.events.deliveries import tell
from mailroom.store.events.timeline import record
from mailroom.store.jobs.jobs import SMALL_MAX_CHARACTERS, SUMMARY, NewJob, insert, is_large
from mailroom.store.keys.rate_limits import Charge, RateLimited, debit
from mailroom.store.messages.idempotency import Kept, KeyTaken, give_back, take
from mailroom.store.messages.suppressions import REASON as SUPPRESSED
from mailroom.store.messages.suppressions import state_at_acceptance, suppressed_among

#: More than most mails, so that a disk which takes this takes them; PostgreSQL packs it to next to nothing.
REHEARSAL_CHARACTERS = 65_536


@dataclass(frozen=True, kw_only=True)
class NewMessage:
    """Everything that one accepted message writes, and the id it gets."""

    id: str
    message: Message
    message_id: str
    queue: str = "mail"
    job: NewJob | None = None
    terms: SendOptions = ANYTIME  #: its moments are by the database's clock
    sender: str | None = None  #: the account that has to send it; None: whichever has room
    webhook: str | None = None  #: the URL that is told of this message
    key_id: str | None = None  #: the API key it came with
    failed: str = ""  #: set where it is recorded only to tell why it could not be accepted
    dry_run: bool = False  #: set where the client asked only what would be sent, and it is not to be accepted

    @property
    def mail_id(self) -> MailId:
        """The id, as `sendMail.delay` wants it."""
        return MailId(self.id, queue=self.queue, is_queued=self.state is State.QUEUED)

    @property
    def state(self) -> State:
        if self.failed:
            return State.FAILED
        return State.WAITING if self.job else State.SCHEDULED if self.terms.is_scheduled else State.QUEUED


@dataclass(frozen=True)
class Batch:
    """Messages that are accepted together or not at all, and the client's key with the answer it gets whenever it comes again."""

    acceptances: Sequence[NewMessage]
    kept: Kept | None = None
    charge: Charge | None = None  #: what it costs a key with a limit

    @property
    def is_large(self) -> bool:
        size = sum(acceptance.message.size for acceptance in self.acceptances)
        return size > SMALL_MAX_CHARACTERS or any(
            is_large(acceptance.job) for acceptance in self.acceptances if acceptance.job
        )


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
    worker_beat_at: int | None  #: the same, of those that have not said that they stop


class Outbox:
    def __init__(self, database: Database) -> None:
        self.database = database

    def accept(self, acceptance: NewMessage, kept: Kept | None = None, charge: Charge | None = None) -> bool:
        """Commit the message to disk, and the job before it; on return they are kept. False: one with this id was accepted before.

        Raises:
          KeyTaken: it was not accepted, as another request with this Idempotency-Key was, or is about to be.
          RateLimited: it was not accepted, as the API key has no room for it.
          CommitUnanswered: it may have been accepted.
          StoreUnavailable: it was not.
        """
        try:
            self.accept_all(Batch([acceptance], kept, charge))
        except IntegrityError:
            if not self.database.read(lambda connection: _known(connection, acceptance)):
                raise
            return False
        return True

    def accept_all(self, batch: Batch) -> None:
        """Commit these messages to disk, all or none; raises what `accept` raises."""
        refusal = self.database.write(_accept, batch, alone=batch.is_large)
        if refusal:
            raise refusal

    def rehearse(self) -> None:
        """Accept a mail and undo it. Raises StoreUnavailable: none would be accepted."""
        message = Message(to=(Address("nobody@localhost"),), text=" " * REHEARSAL_CHARACTERS)
        accepted = [NewMessage(id=new_id(), message=message, message_id="rehearsal@localhost")]
        self.database.rehearse(lambda connection: _insert(connection, accepted))

    def mark_published(self, ids: Sequence[str], *, seconds_ago: float = 0) -> None:
        """Note that a nudge for each of `ids`, sent so long ago, was confirmed by the broker."""
        # Alone: workers hold locks on these rows, and no POST should have to wait for those, or die of a deadlock with them.
        self.database.write(_mark_published, (ids, int(seconds_ago * 1000)), alone=True)

    def standing(self, id: str) -> MessageDetails | None:
        """Return where the message is, and how it came there; None if there is no such message."""
        return self.database.read(lambda connection: _standing(connection, id))

    def state(self, id: str) -> State | None:
        """The state alone, for whoever looks often."""
        return self.database.read(lambda connection: _state(connection, id))

    def content(self, id: str) -> Message | None:
        """Return what is to be sent, or was; None if that is not known, or no longer."""
        return self.database.read(lambda connection: _content(connection, id))

    def message_of(self, job_id: str) -> Message | None:
        """Return what was to be sent when that job ended."""
        return self.database.read(lambda connection: _message_of(connection, job_id))

    def workers_seen(self) -> tuple[int, int | None, int | None]:
        """Now, when any worker of this outbox was last seen, and when one that has not stopped since; in milliseconds since 1970."""
        now, seen, beat = self.database.read(lambda connection: connection.execute(_WORKERS_SEEN).one())
        return now, seen, beat

    def worker_seen_ms_ago(self) -> int | None:
        """Return how long ago a worker of this outbox was seen that has not stopped since.

        The time is in milliseconds; None if there is none.
        """
        now, _, beat = self.workers_seen()
        return None if beat is None else now - beat


_PLAIN = (
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
)


def _new(given: Given) -> Any:
    """A message with moments that were named, or so many milliseconds from now; NULL where neither was."""
    values = {name: given[name] for name in _PLAIN} | {
        "created_at": now_ms(),
        "next_attempt_at": func.coalesce(given["scheduled_at"], now_ms() + given["delay"]),
        "at_named": case((given["scheduled_at"].is_not(None), literal_column("1"))),
        "expires_at": func.coalesce(given["expires_at"], now_ms() + given["expires_in"]),
        **dict.fromkeys(("attempt", "uncertain_attempts", "crashes"), literal_column("0")),
    }
    return messages.insert().from_select([*values], select(*values.values()))


_NEW_MESSAGES = Rows(messages, (*_PLAIN, "scheduled_at", "delay", "expires_at", "expires_in"), _new)


#: What has ended already never comes due.
_NOT_DUE = {"scheduled_at": None, "delay": None}


def _accept(connection: Connection, asked: list[Batch]) -> list[MailroomError | None]:
    """Write those whose Idempotency-Key is not taken, and whose API key has room for them; say of each why not."""
    ours = take(connection, [batch.kept for batch in asked])
    passed = debit(
        connection, [batch.charge if is_ours else None for batch, is_ours in zip(asked, ours, strict=True)]
    )
    refusals = [
        _refusal(batch, is_ours, is_passed)
        for batch, is_ours, is_passed in zip(asked, ours, passed, strict=True)
    ]
    give_back(
        connection,
        [
            batch.kept
            for batch, is_ours, is_passed in zip(asked, ours, passed, strict=True)
            if is_ours and not is_passed
        ],
    )
    if new := [
        a
        for batch, refusal in zip(asked, refusals, strict=True)
        if refusal is None
        for a in batch.acceptances
    ]:
        _insert(connection, new)
    return refusals


def _refusal(batch: Batch, is_ours: bool, is_passed: bool) -> MailroomError | None:
    if not is_ours:
        return KeyTaken()
    return (
        None
        if is_passed or batch.charge is None or batch.charge.rate is None
        else RateLimited(batch.charge.rate)
    )


def _insert(connection: Connection, accepted: list[NewMessage]) -> None:
    everyone = [[to.address for to in a.message.everyone] for a in accepted]
    suppressed = suppressed_among(connection, [address for people in everyone for address in people])
    standing = [
        state_at_acceptance(a.state, people, suppressed) for a, people in zip(accepted, everyone, strict=True)
    ]
    _NEW_MESSAGES(
        connection,
        [
            {
                "id": a.id,
                "state": state,
                "queue": a.queue,
                "message_id": a.message_id,
                "job_id": a.job and a.job.id,
                "reason": a.failed or (SUPPRESSED if state is State.SUPPRESSED else None),
                "sender": a.sender,
                "webhook": a.webhook,
                "key_id": a.key_id,
                "subject_key": subject_key(a.message.subject),
                **vars(a.terms),
                "delay": a.terms.delay or None,
                **(_NOT_DUE if state in FINAL else {}),
            }
            for a, (state, _) in zip(accepted, standing, strict=True)
        ],
    )
    write(connection, [(a.id, a.message, states) for a, (_, states) in zip(accepted, standing, strict=True)])
    if new_jobs := [a.job for a in accepted if a.job]:
        insert(connection, new_jobs)
    count(connection, {"accepted": len(accepted)})
    tell(connection, [{"id": a.id, "event": "accepted", "webhook": a.webhook} for a in accepted])
    # Those that go at once are told by that; those that end here have nothing else to tell it by.
    ended = [
        {"id": a.id, "event": state, "detail": a.failed or SUPPRESSED}
        for a, (state, _) in zip(accepted, standing, strict=True)
        if state in FINAL
    ]
    record(connection, ended)


def _known(connection: Connection, acceptance: NewMessage) -> bool:
    """Tell whether there is such a message, or such a job, already."""
    message = connection.scalar(select(messages.c.id).where(messages.c.id == acceptance.id))
    return message is not None or (
        acceptance.job is not None
        and connection.scalar(select(jobs.c.id).where(jobs.c.id == acceptance.job.id)) is not None
    )


# One that a worker has claimed is marked already, and may be locked together with others of the same worker.
_MARK = Rows(
    messages,
    ("id",),
    lambda given: (
        messages.update()
        .values(published_at=now_ms() - asked("ms_ago", BigInteger))
        .where(
            messages.c.id == given["id"],
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
    found = load(connection, [id]).get(id)
    return found.message if found else None


def _state(connection: Connection, id: str) -> State | None:
    found = connection.scalar(select(messages.c.state).where(messages.c.id == id))
    return State(found) if found else None


_WORKERS_SEEN = select(
    now_ms(), func.max(workers.c.seen_at), func.max(case((workers.c.stopped_at.is_(None), workers.c.seen_at)))
)


def _standing(connection: Connection, id: str) -> MessageDetails | None:
    row = connection.execute(messages.select().where(messages.c.id == id)).mappings().one_or_none()
    if row is None:
        return None
    people = connection.execute(
        recipients.select().where(recipients.c.id == id).order_by(recipients.c.position)
    ).mappings()
    told = connection.execute(
        events.select().where(events.c.id.in_([id, row["job_id"] or id])).order_by(events.c.number)
    ).mappings()
    job = (
        connection.execute(select(*SUMMARY).where(jobs.c.id == row["job_id"])).mappings().one_or_none()
        if row["job_id"]
        else None
    )
    content = connection.scalar(select(contents.c.content).where(contents.c.id == id))
    now, seen, beat = connection.execute(_WORKERS_SEEN).one()
    return MessageDetails(
        now=now,
        row=dict(row),
        content=json.loads(content or "{}"),
        recipients=[dict(person) for person in people],
        events=[Event(at=e["at"], event=e["event"], attempt=e["attempt"], detail=e["detail"]) for e in told],
        job=dict(job) if job else None,
        worker_seen_at=seen,
        worker_beat_at=beat,
    )
