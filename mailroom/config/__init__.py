"""The settings, the sending accounts that they describe, and the log."""
