"""Adds subjects to search, and the history of the queue, for the pages."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

SUBJECTS = {
    "sqlite": (
        "UPDATE messages SET subject_key = "
        "(SELECT lower(substr(json_extract(content, '$.subject'), 1, 200)) FROM contents "
        "WHERE contents.id = messages.id)"
    ),
    "postgresql": (
        "UPDATE messages SET subject_key = lower(left(CAST(content AS json) ->> 'subject', 200)) "
        "FROM contents WHERE contents.id = messages.id"
    ),
}


def upgrade() -> None:
    op.add_column("messages", sa.Column("subject_key", sa.Text(), nullable=True))
    op.execute(sa.text(SUBJECTS[op.get_bind().dialect.name]))
    op.create_table(
        "samples",
        sa.Column("minute", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.Column("oldest_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("minute"),
    )
