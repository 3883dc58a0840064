"""Notes what happened, and who is told of it: the timeline, webhooks, counters."""
