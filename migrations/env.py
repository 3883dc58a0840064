"""Runs migrations on the connection that mailroom/store/db/migrate.py gives, in its transaction and under its lock."""

from alembic import context

from mailroom.store.db.schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=False
)
context.run_migrations()
