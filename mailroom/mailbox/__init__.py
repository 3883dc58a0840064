"""Reads the mailbox of a sending account: what became of a mail after the server took it."""
