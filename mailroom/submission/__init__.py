"""Reads what clients submit: from bytes to a message or a job, or to a refusal with field and reason."""
