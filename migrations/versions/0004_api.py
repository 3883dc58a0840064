"""Adds attachments, tags, templates, suppressions, webhooks, API keys and counters."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

LISTED = sa.text("state NOT IN ('queued', 'sending', 'in_data', 'sent')")
DUE = sa.text("next_attempt_at IS NOT NULL")
OWNED = sa.text("owner IS NOT NULL")


def upgrade() -> None:
    for column in (
        sa.Column("key_id", sa.String(length=12), nullable=True),
        sa.Column("webhook", sa.Text(), nullable=True),
        sa.Column("sender", sa.String(length=100), nullable=True),
    ):
        op.add_column("messages", column)
    op.create_index(
        "messages_listed",
        "messages",
        ["state", "created_at", "id"],
        sqlite_where=LISTED,
        postgresql_where=LISTED,
    )
    op.add_column(
        "recipients", sa.Column("kind", sa.String(length=3), server_default="to", nullable=False)
    )
    op.create_index("recipients_of", "recipients", ["address", "id"])
    op.add_column("files", sa.Column("content_id", sa.String(length=200), nullable=True))
    op.create_table(
        "tags",
        sa.Column("tag", sa.String(length=100), nullable=False),
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["messages.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("tag", "id"),
        sqlite_with_rowid=False,
    )
    op.create_index("tags_of", "tags", ["id"])
    op.create_table(
        "templates",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("html", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "suppressions",
        sa.Column("address", sa.String(length=320), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("message_id", sa.String(length=200), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("address"),
        sqlite_with_rowid=False,
    )
    op.create_index("suppressions_created", "suppressions", ["created_at", "address"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.String(length=100), nullable=False),
        sa.PrimaryKeyConstraint("name"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("secret", sa.String(length=100), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "deliveries",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("webhook_id", sa.String(length=36), nullable=False),
        sa.Column("message_id", sa.String(length=200), nullable=True),
        sa.Column("event", sa.String(length=40), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(length=12), nullable=True),
        sa.Column("message_attempt", sa.Integer(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("state", sa.String(length=10), server_default="pending", nullable=False),
        sa.Column("next_attempt_at", sa.BigInteger(), nullable=True),
        sa.Column("owner", sa.String(length=36), nullable=True),
        sa.Column("code", sa.Integer(), nullable=True),
        sa.Column("reply", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["next_attempt_at", "webhook_id"],
        sqlite_where=DUE,
        postgresql_where=DUE,
    )
    op.create_index(
        "deliveries_owned", "deliveries", ["owner"], sqlite_where=OWNED, postgresql_where=OWNED
    )
    op.create_index("deliveries_of", "deliveries", ["message_id"])
    op.create_index("deliveries_to", "deliveries", ["webhook_id", "number"])
    op.create_table(
        "keys",
        sa.Column("id", sa.String(length=12), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("senders", sa.Text(), nullable=False),
        sa.Column("per_minute", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("used_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "rates",
        sa.Column("key_id", sa.String(length=12), nullable=False),
        sa.Column("full_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "tallies",
        sa.Column("minute", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("event", sa.String(length=40), nullable=False),
        sa.Column("source", sa.String(length=36), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("minute", "event", "source"),
        sqlite_with_rowid=False,
    )
