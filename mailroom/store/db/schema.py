"""The tables. Times are whole milliseconds since 1970 (UTC) by the database's own clock, so that hosts need not agree."""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    String,
    Table,
    Text,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

metadata = MetaData()

_Auto = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER key.

#: One row: the identity of this outbox, which every nudge carries.
identity = Table(
    "identity", metadata,
    Column("outbox_id", String(36), primary_key=True),
)

#: One row: what is known of this database's clock.
clock = Table(
    "clock", metadata,
    Column("id", Integer, primary_key=True),
    Column("latest_at", BigInteger, nullable=False),  # the latest time that it told, noted every few seconds
    Column("stepped_at", BigInteger),  # when it was last found to be earlier than that …
    Column("step_ms", BigInteger),  # … and by how much
)

#: The states of a mail that goes as it should.
PASSING = ("queued", "sending", "in_data", "sent")

messages = Table(
    "messages", metadata,
    Column("id", String(200), primary_key=True),
    Column("state", String(12), nullable=False),
    Column("queue", String(40), nullable=False),
    Column("message_id", String(300), nullable=False),  # the header field, without angle brackets
    Column("created_at", BigInteger, nullable=False),
    Column("first_attempt_at", BigInteger),  # the Date of the mail
    Column("next_attempt_at", BigInteger),  # set while scheduled or deferred
    Column("at_named", Integer),  # 1 if a client named that moment, and not how long it is to wait
    Column("published_at", BigInteger),  # a nudge was confirmed, or is being made by a sweeper
    Column("owner", String(36)),  # the worker that has it, while sending or in_data
    Column("attempt", Integer, nullable=False),  # the number of the last one; none is ever used again
    Column("uncertain_attempts", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),  # how often its owner died; from 1 on it is claimed alone
    Column("job_id", String(36)),
    Column("reason", Text),  # the last thing worth saying: a server's words, a job's error
    Column("account", String(100)),  # the sender account of its last attempt
    Column("parked", Integer),  # 1 while it is deferred until an account can send, and NULL else
    Column("excused", Integer, nullable=False, server_default="0"),  # attempts that do not count towards the schedule
    Column("given_back", Integer, nullable=False, server_default="0"),  # … of these those that nothing was sent of, and that are not shown
    Column("settled", Integer, nullable=False, server_default="0"),  # the last attempt whose end its own worker put on record
    Column("max_attempts", Integer),  # NULL: as many as RETRY_SCHEDULE has
    Column("expires_at", BigInteger),
    Column("resent_of", String(200)),  # the message that a person had sent once more
    Column("key_id", String(12)),  # the API key that it came with
    Column("webhook", Text),  # the URL that is told of this message, beside those of `webhooks`
    Column("sender", String(100)),  # the account that has to send it, where its From names one
    Column("subject_key", Text),  # its subject in lower case, to find it by
    # What the sweeper asks for: small indexes over the few rows that wait, whatever the table holds.
    Index("messages_due", "next_attempt_at", sqlite_where=Column("next_attempt_at").is_not(None),
          postgresql_where=Column("next_attempt_at").is_not(None)),
    Index("messages_queued", "published_at", sqlite_where=Column("state") == "queued", postgresql_where=Column("state") == "queued"),
    Index("messages_owned", "owner", sqlite_where=Column("owner").is_not(None), postgresql_where=Column("owner").is_not(None)),
    Index("messages_parked", "attempt", "created_at", "id", sqlite_where=Column("parked").is_not(None),
          postgresql_where=Column("parked").is_not(None)),
    Index("messages_expiring", "expires_at", sqlite_where=Column("expires_at").is_not(None),
          postgresql_where=Column("expires_at").is_not(None)),
    Index("messages_created", "created_at", "id"),
    Index("messages_job", "job_id", sqlite_where=Column("job_id").is_not(None), postgresql_where=Column("job_id").is_not(None)),
    # Lists by state. The states that each mail passes through are left out: they are found by age, and cost no write here.
    Index("messages_listed", "state", "created_at", "id", sqlite_where=Column("state").not_in(PASSING),
          postgresql_where=Column("state").not_in(PASSING)),
    sqlite_with_rowid=False,
)

#: Apart from messages, so that a change of state does not write the content again.
contents = Table(
    "contents", metadata,
    Column("id", String(200), ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("content", Text, nullable=False),
)

recipients = Table(
    "recipients", metadata,
    Column("id", String(200), ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("address", String(320), nullable=False),
    Column("name", Text, nullable=False),
    Column("state", String(12), nullable=False),  # queued, sent, deferred, failed, uncertain or suppressed
    Column("reply", Text),
    Column("kind", String(3), nullable=False, server_default="to"),  # to, cc or bcc
    Index("recipients_of", "address", "id"),
    sqlite_with_rowid=False,
)

#: A client's words for its messages, to find them by.
tags = Table(
    "tags", metadata,
    Column("tag", String(100), primary_key=True),
    Column("id", String(200), ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Index("tags_of", "id"),
    sqlite_with_rowid=False,
)

#: The timeline, one row an event; what the row in messages tells by itself (accepted, queued) has none.
events = Table(
    "events", metadata,
    Column("number", _Auto, primary_key=True, autoincrement=True),
    Column("id", String(200), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("event", String(20), nullable=False),
    Column("attempt", Integer),
    Column("detail", Text),
    Index("events_of", "id", "number"),
)

jobs = Table(
    "jobs", metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("args", Text, nullable=False),  # JSON object
    Column("queue", String(40), nullable=False),
    Column("state", String(12), nullable=False),  # queued, running, succeeded, failed, timed_out, canceled
    Column("progress", Integer, nullable=False),  # per mille
    Column("step", Text),
    Column("result", Text),  # JSON
    Column("error", Text),
    Column("timeout_ms", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),  # as of messages
    Column("excused", Integer, nullable=False, server_default="0"),  # attempts that were given back, and do not count
    Column("max_attempts", Integer, nullable=False),  # of those that count
    Column("retry", Text),  # how long to wait after attempt 1, 2, …, as in RETRY_SCHEDULE
    Column("notify_on", String(8)),  # success, failure or both: when the message that waits for it goes
    Column("retry_of", String(36)),  # the job that a client had run once more
    Column("next_attempt_at", BigInteger),  # set while queued for another attempt
    Column("owner", String(36)),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Index("jobs_queued", "queue", "created_at", sqlite_where=Column("state") == "queued", postgresql_where=Column("state") == "queued"),
    Index("jobs_created", "created_at", "id"),
    Index("jobs_owned", "owner", sqlite_where=Column("owner").is_not(None), postgresql_where=Column("owner").is_not(None)),
)

#: What jobs made, by the job's id; and what goes with a message, by the message's.
files = Table(
    "files", metadata,
    Column("id", String(200), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("content_id", String(200)),  # set where the HTML shows it, as cid:…
)

#: What a client's Idempotency-Key stands for. `owner` is the id of the API key it came with; "" where there is none.
idempotency = Table(
    "idempotency", metadata,
    Column("owner", String(64), primary_key=True),
    Column("key", String(256), primary_key=True),
    Column("request_hash", String(64), nullable=False),
    Column("answer", Text, nullable=False),  # JSON: status, location, body
    Column("created_at", BigInteger, nullable=False),
    Index("idempotency_created", "created_at"),
    sqlite_with_rowid=False,
)

#: One row a sender account.
accounts = Table(
    "accounts", metadata,
    Column("name", String(100), primary_key=True),
    Column("state", String(10), nullable=False),  # ok, paused, halted or parked
    Column("reason", Text),  # the server's words
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger),  # when it is tried again, with one mail; NULL while it is ok
    Column("failures", Integer, nullable=False),  # in a row, each a longer pause
    Column("credentials", String(64), nullable=False),  # a keyed hash: whether they changed
)

#: What each account sent, in stretches of ten minutes.
usage = Table(
    "usage", metadata,
    Column("account", String(100), primary_key=True),
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),  # ten minutes since 1970
    Column("messages", Integer, nullable=False),
    Column("recipients", Integer, nullable=False),
    sqlite_with_rowid=False,
)

#: Texts that a message names, and fills in.
templates = Table(
    "templates", metadata,
    Column("name", String(100), primary_key=True),
    Column("subject", Text, nullable=False),
    Column("text", Text),
    Column("html", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

#: Who gets no mail any more.
suppressions = Table(
    "suppressions", metadata,
    Column("address", String(320), primary_key=True),  # in lower case
    Column("reason", String(20), nullable=False),  # bounced, unsubscribed or manual
    Column("detail", Text),  # the server's words, or a person's
    Column("message_id", String(200)),  # the message that it came of
    Column("created_at", BigInteger, nullable=False),
    Index("suppressions_created", "created_at", "address"),
    sqlite_with_rowid=False,
)

#: What this service signs with, by purpose; each made once, by whoever needs it first.
secrets = Table(
    "secrets", metadata,
    Column("name", String(40), primary_key=True),
    Column("value", String(100), nullable=False),  # in hexadecimal
    sqlite_with_rowid=False,
)

#: Who is told of what happens to messages. The row `own` stands for the URLs that messages name themselves.
webhooks = Table(
    "webhooks", metadata,
    Column("id", String(36), primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", String(100), nullable=False),
    Column("events", Text, nullable=False),  # separated by commas; "": all
    Column("state", String(10), nullable=False),  # enabled or disabled
    Column("reason", Text),  # why it was disabled
    Column("created_at", BigInteger, nullable=False),
)

#: One row for each event that somebody is to be told of.
deliveries = Table(
    "deliveries", metadata,
    Column("number", _Auto, primary_key=True, autoincrement=True),
    Column("webhook_id", String(36), nullable=False),
    Column("message_id", String(200)),  # NULL: a test
    Column("event", String(40), nullable=False),  # message.sent
    Column("at", BigInteger, nullable=False),
    Column("status", String(12)),  # the message's state then …
    Column("message_attempt", Integer),  # … and which attempt at it that was
    Column("detail", Text),
    Column("attempt", Integer, nullable=False, server_default="0"),  # at telling it, numbered as those of messages
    Column("excused", Integer, nullable=False, server_default="0"),  # attempts that were given back, or came before a replay
    Column("state", String(10), nullable=False, server_default="pending"),  # pending, delivered or failed
    Column("next_attempt_at", BigInteger),  # set while pending, and nobody is at it
    Column("owner", String(36)),  # the worker that is at it
    Column("code", Integer),  # of the last answer
    Column("reply", Text),  # the last answer's first words, or what went wrong
    Index("deliveries_due", "next_attempt_at", "webhook_id", sqlite_where=Column("next_attempt_at").is_not(None),
          postgresql_where=Column("next_attempt_at").is_not(None)),
    Index("deliveries_owned", "owner", sqlite_where=Column("owner").is_not(None), postgresql_where=Column("owner").is_not(None)),
    Index("deliveries_of", "message_id"),
    Index("deliveries_to", "webhook_id", "number"),
    sqlite_autoincrement=True,  # What a client knows a delivery by is never another's.
)

#: API keys; the key itself is shown once and kept nowhere.
keys = Table(
    "keys", metadata,
    Column("id", String(12), primary_key=True),  # the part of the key that may be seen
    Column("hash", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("scopes", Text, nullable=False),  # separated by commas: send, read, admin
    Column("senders", Text, nullable=False),  # addresses and @domains it may send from, separated by commas; "": all
    Column("per_minute", Integer),  # messages; NULL: no limit
    Column("created_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Column("revoked_at", BigInteger),
)

#: Browsers' sessions that ended by signing out, until their cookies are too old.
signed_out = Table(
    "signed_out", metadata,
    Column("id", String(40), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Index("signed_out_at", "at"),
    sqlite_with_rowid=False,
)

#: What each limited key has used of its rate: one row, written once for each group of messages.
rates = Table(
    "rates", metadata,
    Column("key_id", String(12), primary_key=True),
    Column("full_at", BigInteger, nullable=False),  # when all is there again (GCRA's arrival time), in nanoseconds since 1970
)

#: How much happened in each minute, as each process counted it.
tallies = Table(
    "tallies", metadata,
    Column("minute", BigInteger, primary_key=True, autoincrement=False),  # since 1970; 0 holds what is older than what is kept
    Column("event", String(40), primary_key=True),
    Column("source", String(36), primary_key=True),  # the process that counts, so that no two wait for each other's row
    Column("count", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

#: How much waited in each minute, as whoever came first in it saw.
samples = Table(
    "samples", metadata,
    Column("minute", BigInteger, primary_key=True, autoincrement=False),  # since 1970
    Column("waiting", Integer, nullable=False),  # messages that are queued, with a worker, or deferred
    Column("oldest_ms", BigInteger, nullable=False),  # how long the queued one that has waited longest for a worker had done so
)

#: One row a worker; it is the lease of everything that worker owns.
workers = Table(
    "workers", metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("queues", Text, nullable=False),  # separated by commas
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("stopped_at", BigInteger),
    Column("broker_trouble", Text),  # what keeps it from its queues, while something does
    Column("celery_queue_left", Text),  # why it takes nothing from the queue `celery` any more
    Column("hanging", Text),  # JSON: by account, what is to be said of a server that hangs
    Column("thread_trouble", Text),  # which of its threads are down, or were a moment ago
)


def locked(found: Select[Any]) -> Select[Any]:
    """The ids that `found` gives, for an UPDATE; on PostgreSQL without those that somebody else is changing just now.

    By way of a CTE, which PostgreSQL runs once: a plain subquery with LIMIT may be run for each row, and lock another each time.
    """
    rows = found.with_for_update(skip_locked=True).cte("found")
    return select(rows.c.id)


def insertion(connection: Connection, table: Table) -> Any:
    """An INSERT of this database's dialect, which alone can say ON CONFLICT."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


class now_ms(GenericFunction[int]):
    """The database's clock in whole milliseconds since 1970."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _now_sqlite(element: now_ms, compiler: Any, **kw: Any) -> str:
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"


@compiles(now_ms, "postgresql")
def _now_postgresql(element: now_ms, compiler: Any, **kw: Any) -> str:
    # The same all through a statement, so that it can be looked up in an index; clock_timestamp() would be compared with each row.
    return "CAST(extract(epoch FROM statement_timestamp()) * 1000 AS BIGINT)"
