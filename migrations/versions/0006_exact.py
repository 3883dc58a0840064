"""Adds sign-outs, counts of attempts, the database's clock, times that clients named, worker troubles."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

COUNTS = (
    ("messages", "given_back"),
    ("messages", "settled"),
    ("jobs", "excused"),
    ("deliveries", "excused"),
)


def upgrade() -> None:
    op.create_table(
        "signed_out",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_with_rowid=False,
    )
    op.create_index("signed_out_at", "signed_out", ["at"])
    for table, column in COUNTS:
        op.add_column(table, sa.Column(column, sa.Integer(), nullable=False, server_default="0"))
    clock = op.create_table(
        "clock",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("latest_at", sa.BigInteger(), nullable=False),
        sa.Column("stepped_at", sa.BigInteger(), nullable=True),
        sa.Column("step_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.bulk_insert(clock, [{"id": 1, "latest_at": 0}])
    op.add_column("messages", sa.Column("at_named", sa.Integer(), nullable=True))
    op.execute("UPDATE messages SET at_named = 1 WHERE state = 'scheduled'")
    op.add_column("messages", sa.Column("first_attempt_at", sa.BigInteger()))
    op.add_column("workers", sa.Column("broker_trouble", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("celery_queue_left", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("hanging", sa.Text(), nullable=True))
    op.add_column("workers", sa.Column("thread_trouble", sa.Text(), nullable=True))
