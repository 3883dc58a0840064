"""Runs migrations on the connection of mailroom/store/db/migrate.py, in its transaction and its lock."""

from alembic import context

from mailroom.store.db.access_schema import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=False
)
context.run_migrations()
