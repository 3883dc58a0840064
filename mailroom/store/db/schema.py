"""The tables of the database.

Times are whole milliseconds since 1970 (UTC) by the database's own clock, so that hosts need not agree.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TextClause,
    text,
)

metadata = MetaData()

#: A number that the database counts up. SQLite does that only in a key of type INTEGER.
_Auto = BigInteger().with_variant(Integer, "sqlite")


def _partial_index(name: str, *columns: str, where: ColumnElement[bool] | TextClause) -> Index:
    """Index only the rows of that condition, which queries have to name just as it stands here."""
    return Index(name, *columns, sqlite_where=where, postgresql_where=where)


#: One row: the identity of this outbox, which every nudge carries.
identity = Table(
    "identity",
    metadata,
    Column("outbox_id", String(36), primary_key=True),
)

#: One row: whether this database's clock was set back.
clock = Table(
    "clock",
    metadata,
    Column("id", Integer, primary_key=True),
    # the latest time that was read, noted every few seconds
    Column("latest_at", BigInteger, nullable=False),
    Column("stepped_at", BigInteger),  # when it was last found to be earlier than that
    Column("step_ms", BigInteger),  # and by how much
)

#: The condition of messages whose Message-ID does not begin with their id, as that is none for a header.
OWN_MESSAGE_ID = "substr(message_id, 1, length(id)) <> id"
#: The states that a mail passes through when all goes well.
PASSING = ("queued", "sending", "in_data", "sent")

messages = Table(
    "messages",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("state", String(12), nullable=False),
    Column("queue", String(40), nullable=False),
    Column("message_id", String(300), nullable=False),  # the header field, without angle brackets
    Column("created_at", BigInteger, nullable=False),
    Column("first_attempt_at", BigInteger),  # the Date of the mail
    Column("next_attempt_at", BigInteger),  # set while scheduled or deferred
    Column("at_named", Integer),  # 1 if a client named that time, and not a delay
    Column("published_at", BigInteger),  # a nudge was confirmed, or is being made by a sweeper
    Column("owner", String(36)),  # the worker that has it, while sending or in_data
    # the number of the last one; none is ever used again
    Column("attempt", Integer, nullable=False),
    Column("uncertain_attempts", Integer, nullable=False),
    # how often its owner died; if ever, it is claimed alone
    Column("crashes", Integer, nullable=False),
    Column("job_id", String(36)),
    Column("reason", Text),  # the last thing worth saying: a server's words, a job's error
    Column("account", String(100)),  # the sender account of its last attempt
    Column("parked", Integer),  # 1 while it is deferred until an account can send, and NULL else
    # Attempts that do not count towards RETRY_SCHEDULE.
    Column("excused", Integer, nullable=False, server_default="0"),
    # Of the excused attempts, those that were given back before anything was sent; they are not shown.
    Column("given_back", Integer, nullable=False, server_default="0"),
    # The last attempt whose own worker wrote down how it ended.
    Column("settled", Integer, nullable=False, server_default="0"),
    Column("max_attempts", Integer),  # NULL: as many as RETRY_SCHEDULE has
    Column("expires_at", BigInteger),
    Column("resent_of", String(200)),  # the message that a person had sent once more
    Column("key_id", String(12)),  # the API key that it came with
    Column("webhook", Text),  # a URL that gets its events, beside those of `webhooks`
    Column("sender", String(100)),  # the account that has to send it, where its From names one
    Column("subject_key", Text),  # its subject in lower case, to find it by
    # 1 once the next hop took it for some recipient: from then on a copy may be in the Sent folder. From the
    # start where a client chose the Message-ID, as it may have put a copy there itself.
    Column("taken", Integer),
    # Set while the last attempt is uncertain and is looked for in the Sent folder at `next_attempt_at`:
    # how often that was done, and the state to come if it is not there.
    Column("looks", Integer),
    Column("looks_then", String(12)),
    # For the sweeper: small indexes over the few rows that wait, however large the table is.
    _partial_index("messages_due", "next_attempt_at", where=Column("next_attempt_at").is_not(None)),
    _partial_index("messages_queued", "published_at", where=Column("state") == "queued"),
    _partial_index("messages_owned", "owner", where=Column("owner").is_not(None)),
    _partial_index(
        "messages_parked", "attempt", "created_at", "id", where=Column("parked").is_not(None)
    ),
    _partial_index("messages_expiring", "expires_at", where=Column("expires_at").is_not(None)),
    Index("messages_created", "created_at", "id"),
    _partial_index("messages_job", "job_id", where=Column("job_id").is_not(None)),
    # All others are found by the id in it.
    _partial_index("messages_named", "message_id", where=text(OWN_MESSAGE_ID)),
    # Lists by state. The states that every mail passes through are left out, which saves a write each time:
    # messages in those states are found by age.
    _partial_index(
        "messages_listed", "state", "created_at", "id", where=Column("state").not_in(PASSING)
    ),
    sqlite_with_rowid=False,
)

#: Apart from messages, so that a change of state does not write the content again.
contents = Table(
    "contents",
    metadata,
    Column("id", String(200), ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("content", Text, nullable=False),
)

recipients = Table(
    "recipients",
    metadata,
    Column("id", String(200), ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("address", String(320), nullable=False),
    Column("name", Text, nullable=False),
    # queued, sent, deferred, failed, uncertain, suppressed, bounced or complained
    Column("state", String(12), nullable=False),
    Column("reply", Text),
    Column("kind", String(3), nullable=False, server_default="to"),  # to, cc or bcc
    Index("recipients_of", "address", "id"),
    sqlite_with_rowid=False,
)

#: The reports that were applied, by digests: numbered anew, or after a crash, the same mail is read again.
reports = Table(
    "reports",
    metadata,
    Column("id", String(200), ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Column("digest", String(64), primary_key=True),
    sqlite_with_rowid=False,
)

#: A client's words for its messages, to find them by.
tags = Table(
    "tags",
    metadata,
    Column("tag", String(100), primary_key=True),
    Column("id", String(200), ForeignKey("messages.id", ondelete="CASCADE"), primary_key=True),
    Index("tags_of", "id"),
    sqlite_with_rowid=False,
)

#: The timeline, one row for each event. `accepted` and `queued` have none: the row in messages shows them.
events = Table(
    "events",
    metadata,
    Column("number", _Auto, primary_key=True, autoincrement=True),
    Column("id", String(200), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("event", String(20), nullable=False),
    Column("attempt", Integer),
    Column("detail", Text),
    Index("events_of", "id", "number"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("args", Text, nullable=False),  # JSON object
    Column("queue", String(40), nullable=False),
    # queued, running, succeeded, failed, timed_out, canceled
    Column("state", String(12), nullable=False),
    Column("progress", Integer, nullable=False),  # per mille
    Column("step", Text),
    Column("result", Text),  # JSON
    Column("error", Text),
    Column("timeout_ms", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),  # as of messages
    # Attempts that were given back, and do not count.
    Column("excused", Integer, nullable=False, server_default="0"),
    Column("max_attempts", Integer, nullable=False),  # of those that count
    Column("retry", Text),  # how long to wait after attempt 1, 2, …, as in RETRY_SCHEDULE
    # success, failure or both: when the message that waits for it goes
    Column("notify_on", String(8)),
    Column("retry_of", String(36)),  # the job that a client had run once more
    Column("next_attempt_at", BigInteger),  # set while queued for another attempt
    Column("owner", String(36)),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    _partial_index("jobs_queued", "queue", "created_at", where=Column("state") == "queued"),
    Index("jobs_created", "created_at", "id"),
    _partial_index("jobs_owned", "owner", where=Column("owner").is_not(None)),
)

#: Attachments: the files that jobs made, by the job's id, and those of messages, by the message's id.
files = Table(
    "files",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("content_id", String(200)),  # set where the HTML shows it, as cid:…
)

#: The answers to requests with an Idempotency-Key.
#: `owner` is the id of the API key that the request came with; "" where there is none.
idempotency = Table(
    "idempotency",
    metadata,
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
    "accounts",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("state", String(10), nullable=False),  # ok, paused, halted or parked
    Column("reason", Text),  # the server's words
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger),  # when it is tried again, with one mail; NULL while it is ok
    Column("failures", Integer, nullable=False),  # in a row, each a longer pause
    Column("credentials", String(64), nullable=False),  # a keyed hash: whether they changed
)

#: How much each account sent, by intervals of ten minutes since 1970.
usage = Table(
    "usage",
    metadata,
    Column("account", String(100), primary_key=True),
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),
    Column("messages", Integer, nullable=False),
    Column("recipients", Integer, nullable=False),
    sqlite_with_rowid=False,
)

#: The mailbox of each account in which bounces are looked for; the worker that reads it owns its row.
mailboxes = Table(
    "mailboxes",
    metadata,
    Column("account", String(100), primary_key=True),
    Column("owner", String(36)),
    Column("uid_validity", BigInteger),  # of the UIDs (RFC 3501, 2.3.1.1)
    Column("uid", BigInteger),  # of the last mail that was read
    Column("read_at", BigInteger),  # when all new mails had been read
    Column("sent_folder", Text),  # "": none was found
    Column("trouble", Text),  # why it cannot be read, while it cannot
    sqlite_with_rowid=False,
)

#: Stored templates, which a message names and fills in.
templates = Table(
    "templates",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("subject", Text, nullable=False),
    Column("text", Text),
    Column("html", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

#: The addresses that get no mail any more.
suppressions = Table(
    "suppressions",
    metadata,
    Column("address", String(320), primary_key=True),  # in lower case
    Column("reason", String(20), nullable=False),  # bounced, complained, unsubscribed or manual
    Column("detail", Text),  # the server's words, or a person's
    Column("message_id", String(200)),  # the message whose recipient it was
    Column("created_at", BigInteger, nullable=False),
    Index("suppressions_created", "created_at", "address"),
    sqlite_with_rowid=False,
)

#: The secrets that this service signs with, one for each purpose, made when first needed.
secrets = Table(
    "secrets",
    metadata,
    Column("name", String(40), primary_key=True),
    Column("value", String(100), nullable=False),  # in hexadecimal
    sqlite_with_rowid=False,
)

#: URLs that get the events of messages. The row `own` stands for the URLs that messages name.
webhooks = Table(
    "webhooks",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("url", Text, nullable=False),
    Column("secret", String(100), nullable=False),
    Column("events", Text, nullable=False),  # separated by commas; "": all
    Column("state", String(10), nullable=False),  # enabled or disabled
    Column("reason", Text),  # why it was disabled
    Column("created_at", BigInteger, nullable=False),
)

#: One row for each event and each webhook that wants it.
deliveries = Table(
    "deliveries",
    metadata,
    Column("number", _Auto, primary_key=True, autoincrement=True),
    Column("webhook_id", String(36), nullable=False),
    Column("message_id", String(200)),  # NULL: a test
    Column("event", String(40), nullable=False),  # message.sent
    Column("at", BigInteger, nullable=False),
    Column("status", String(12)),  # the message's state then …
    Column("message_attempt", Integer),  # … and which attempt at it that was
    Column("detail", Text),
    # The number of the last attempt to deliver; none is ever used again.
    Column("attempt", Integer, nullable=False, server_default="0"),
    # Attempts that were given back, or came before a replay.
    Column("excused", Integer, nullable=False, server_default="0"),
    # pending, delivered or failed
    Column("state", String(10), nullable=False, server_default="pending"),
    Column("next_attempt_at", BigInteger),  # set while pending and without an owner
    Column("owner", String(36)),  # the worker that delivers it now
    Column("code", Integer),  # of the last answer
    Column("reply", Text),  # the last answer's first words, or what went wrong
    _partial_index(
        "deliveries_due",
        "next_attempt_at",
        "webhook_id",
        where=Column("next_attempt_at").is_not(None),
    ),
    _partial_index("deliveries_owned", "owner", where=Column("owner").is_not(None)),
    Index("deliveries_of", "message_id"),
    Index("deliveries_to", "webhook_id", "number"),
    sqlite_autoincrement=True,  # What a client knows a delivery by is never another's.
)

#: How many events there were in each minute, counted by each process.
tallies = Table(
    "tallies",
    metadata,
    # Minutes since 1970; minute 0 has the sums of all that is too old to be kept by minute.
    Column("minute", BigInteger, primary_key=True, autoincrement=False),
    Column("event", String(40), primary_key=True),
    # The process that counts: each has rows of its own, so that no two wait for each other.
    Column("source", String(36), primary_key=True),
    Column("count", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

#: How many messages waited in each minute, as the first process to look in that minute saw it.
samples = Table(
    "samples",
    metadata,
    Column("minute", BigInteger, primary_key=True, autoincrement=False),  # since 1970
    # messages that are queued, with a worker, or deferred
    Column("waiting", Integer, nullable=False),
    # How long the message that was queued first had waited for a worker.
    Column("oldest_ms", BigInteger, nullable=False),
)

#: One row for each worker: its heartbeat, and so its lease on every row that it owns.
workers = Table(
    "workers",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("queues", Text, nullable=False),  # separated by commas
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("stopped_at", BigInteger),
    Column("broker_trouble", Text),  # what keeps it from its queues, while something does
    Column("celery_queue_left", Text),  # why it takes nothing from the queue `celery` any more
    Column("hanging", Text),  # JSON: by account, a description of its server that hangs
    Column("thread_trouble", Text),  # which of its threads are down, or were a moment ago
)
