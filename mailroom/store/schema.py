"""The tables. Times are whole milliseconds since 1970 (UTC) by the database's own clock, so that hosts need not agree."""

from typing import Any

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, LargeBinary, MetaData, Select, String, Table, Text, select
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import GenericFunction

metadata = MetaData()

_Auto = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only in an INTEGER key.

#: One row: the identity of this outbox, which every nudge carries.
identity = Table(
    "identity", metadata,
    Column("outbox_id", String(36), primary_key=True),
)

messages = Table(
    "messages", metadata,
    Column("id", String(200), primary_key=True),
    Column("state", String(12), nullable=False),
    Column("queue", String(40), nullable=False),
    Column("message_id", String(300), nullable=False),  # the header field, without angle brackets
    Column("created_at", BigInteger, nullable=False),
    Column("next_attempt_at", BigInteger),  # set while scheduled or deferred
    Column("published_at", BigInteger),  # a nudge was confirmed, or is being made by a sweeper
    Column("owner", String(36)),  # the worker that has it, while sending or in_data
    Column("attempt", Integer, nullable=False),
    Column("uncertain_attempts", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),  # how often its owner died; from 1 on it is claimed alone
    Column("job_id", String(36)),
    Column("reason", Text),  # the last thing worth saying: a server's words, a job's error
    Column("account", String(100)),  # the sender account of its last attempt
    Column("parked", Integer),  # 1 while it is deferred until an account can send, and NULL else
    Column("excused", Integer, nullable=False, server_default="0"),  # attempts that ended with an account's trouble, and do not count
    Column("max_attempts", Integer),  # NULL: as many as RETRY_SCHEDULE has
    Column("expires_at", BigInteger),
    Column("resent_of", String(200)),  # the message that a person had sent once more
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
    Column("state", String(12), nullable=False),  # queued, sent, deferred or failed
    Column("reply", Text),
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
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
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

#: What jobs made, by the job's id.
files = Table(
    "files", metadata,
    Column("id", String(200), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

#: What a client's Idempotency-Key stands for. `owner` is the API key it came with, hashed; "" where there is none.
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

#: One row a worker; it is the lease of everything that worker owns.
workers = Table(
    "workers", metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("queues", Text, nullable=False),  # separated by commas
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("stopped_at", BigInteger),
)


def locked(found: Select[Any]) -> Select[Any]:
    """The ids that `found` gives, for an UPDATE; on PostgreSQL without those that somebody else is changing just now.

    By way of a CTE, which PostgreSQL runs once: a plain subquery with LIMIT may be run for each row, and lock another each time.
    """
    rows = found.with_for_update(skip_locked=True).cte("found")
    return select(rows.c.id)


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
