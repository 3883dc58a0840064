"""API keys, rate limits, secrets and sign-outs."""
