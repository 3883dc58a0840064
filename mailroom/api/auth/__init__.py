"""Who may do what: keys, sessions, scopes, senders, rates."""
