"""The tables of the database that are about access: API keys, what they have used, sessions that ended."""

from sqlalchemy import BigInteger, Column, Index, Integer, String, Table, Text

from mailroom.store.db.schema import metadata as metadata

#: API keys; the key itself is shown once and kept nowhere.
keys = Table(
    "keys",
    metadata,
    Column("id", String(12), primary_key=True),  # the part of the key that may be seen
    Column("hash", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("scopes", Text, nullable=False),  # separated by commas: send, read, admin
    # Addresses and @domains it may send from, separated by commas; "": all.
    Column("senders", Text, nullable=False),
    Column("per_minute", Integer),  # messages; NULL: no limit
    Column("created_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
    Column("revoked_at", BigInteger),
)

#: Browsers' sessions that ended by signing out, until their cookies are too old.
signed_out = Table(
    "signed_out",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Index("signed_out_at", "at"),
    sqlite_with_rowid=False,
)

#: How much each API key with a limit has used of it; written once for each group of messages.
rates = Table(
    "rates",
    metadata,
    Column("key_id", String(12), primary_key=True),
    # When the whole rate is available again (the arrival time of GCRA), in nanoseconds since 1970.
    Column("full_at", BigInteger, nullable=False),
)
