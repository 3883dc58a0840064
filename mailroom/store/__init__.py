"""The database: the outbox and all that belongs to it.

SQLAlchemy is used only here; every change of a state is one conditional UPDATE.
"""
