"""Reads what a client asks for, from bytes to a message, or a refusal that names field and reason."""
