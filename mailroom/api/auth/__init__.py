"""Access control: API keys, browser sessions, scopes, senders and rate limits."""
