"""Records what happens, and for whom: the timeline, webhooks, counters."""
