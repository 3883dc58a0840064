"""Webhooks: tells clients what happened to their messages, and never calls into our own network."""
