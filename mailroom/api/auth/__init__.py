"""Access control, or who may do what: keys, sessions, scopes, senders, rates."""
