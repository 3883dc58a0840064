"""Which browsers signed out; and what tells one attempt from another: numbers that are never used twice, and which of them have ended."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

COUNTS = (("messages", "given_back"), ("messages", "settled"), ("jobs", "excused"), ("deliveries", "excused"))


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
