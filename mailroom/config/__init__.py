"""Settings, the accounts that they describe, and the log."""
