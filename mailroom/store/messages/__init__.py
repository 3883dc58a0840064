"""Messages: accepted, claimed, changed, found, suppressed."""
