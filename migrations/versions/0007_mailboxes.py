"""Adds the mailboxes of accounts, and what is looked for in their Sent folders."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "mailboxes",
        sa.Column("account", sa.String(length=100), nullable=False),
        sa.Column("owner", sa.String(length=36), nullable=True),
        sa.Column("uid_validity", sa.BigInteger(), nullable=True),
        sa.Column("uid", sa.BigInteger(), nullable=True),
        sa.Column("read_at", sa.BigInteger(), nullable=True),
        sa.Column("sent_folder", sa.Text(), nullable=True),
        sa.Column("trouble", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("account"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "reports",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["messages.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", "digest"),
        sqlite_with_rowid=False,
    )
    op.add_column("messages", sa.Column("taken", sa.Integer(), nullable=True))
    op.add_column("messages", sa.Column("looks", sa.Integer(), nullable=True))
    op.add_column("messages", sa.Column("looks_then", sa.String(length=12), nullable=True))
    own_message_id = sa.text("substr(message_id, 1, length(id)) <> id")
    op.create_index(
        "messages_named",
        "messages",
        ["message_id"],
        sqlite_where=own_message_id,
        postgresql_where=own_message_id,
    )
