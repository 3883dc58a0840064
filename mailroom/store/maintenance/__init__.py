"""Work that is done time and again: rescue, expiry, retention, and looks at clock and disk."""
