"""Remembers the outbox and all that belongs to it.

Only here is SQLAlchemy; every change of state is one conditional UPDATE.
"""
