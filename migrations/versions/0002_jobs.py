"""Adds to jobs when their mail is sent, how they are retried, and the files they made."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("retry", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("notify_on", sa.String(length=8), nullable=True))
    op.add_column("jobs", sa.Column("retry_of", sa.String(length=36), nullable=True))
    op.add_column("jobs", sa.Column("next_attempt_at", sa.BigInteger(), nullable=True))
    op.create_index("jobs_created", "jobs", ["created_at", "id"])
    op.create_table(
        "files",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("content_type", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", "position"),
    )
