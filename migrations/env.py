"""Runs migrations on the connection that mailroom/store/migrate.py gives, in its transaction and under its lock."""

from alembic import context

from mailroom.store.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=False)
context.run_migrations()
