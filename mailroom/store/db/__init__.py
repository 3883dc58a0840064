"""The database itself: tables, connections, statements, migrations."""
