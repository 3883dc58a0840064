"""Texts with places to fill in: stored templates, and what a mail tells of its job."""
