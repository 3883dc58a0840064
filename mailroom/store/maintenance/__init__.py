"""Maintenance of the database: rescue, expiry, retention, and the checks of clock and disk."""
